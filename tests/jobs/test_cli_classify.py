"""`flaxsent classify`: what it prints, and that mistakes are one line."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import flaxsent
from flaxsent.cli import classify, main
from flaxsent.parity.random_checkpoints import random_checkpoint
from tests.jobs.conftest import COMMAND, names, read_csv


def command(capsys, *arguments):
    code = main(["classify", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_writes_the_file_and_is_quiet(folder, capsys, tiny_folder):
    (folder / "in.txt").write_text("so good\n" + "word " * 99 + "\n")
    options = ["--model", tiny_folder("bert"), "--input", folder / "in.txt", "--text-column", "line"]
    code, out, err = command(capsys, *options, "--output", folder / "out.csv")
    assert (code, out, err) == (0, "", "flaxsent: 1 texts were truncated to 40 tokens\n")
    assert [*read_csv(folder / "out.csv")[0]] == ["line", "label", "score"]
    code, out, err = command(capsys, *options, "--output", folder / "out.csv", "--resume")
    assert (code, out) == (0, "")
    assert err.endswith("out.csv is finished already\n")
    code, out, err = command(capsys, *options, "--output", folder / "out.csv", "--resume", "--all-scores")
    assert (code, out) == (2, "")
    assert "out.csv was made by another job: its all scores: false then, true now" in err
    assert err.count("\n") == 1
    more = ("--resume", "--special-tokens-in-text", "literal")
    code, out, err = command(capsys, *options, "--output", folder / "out.csv", *more)
    assert (code, out) == (2, "")
    assert 'made by another job: its special tokens in text: "special" then, "literal" now' in err


@pytest.mark.slow
def test_devices_that_share_the_params_write_what_one_writes(folder, tiny_folder):
    model = tiny_folder("bert", hidden_size=64, num_attention_heads=4, intermediate_size=128)
    options = ["--model", str(model), "--input", str(folder / "in.csv"), "--output"]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    for output, how in (("one.csv", "data"), ("eight.csv", "fsdp,tensor=4")):
        environment = os.environ | (flags if how != "data" else {})
        subprocess.run([*COMMAND, *options, str(folder / output), "--sharding", how], env=environment, check=True)
    one, eight = (read_csv(folder / name) for name in ("one.csv", "eight.csv"))
    assert [row["label"] for row in one] == [row["label"] for row in eight]
    for row, other in zip(one, eight, strict=True):
        # Sums in another order, in float32.
        assert abs(float(row["score"]) - float(other["score"])) <= 1e-5


def test_standard_input_is_read_as_lines(tmp_path, tiny_folder):
    options = ["--model", str(tiny_folder("bert")), "--input", "-", "--output", str(tmp_path / "out.jsonl")]
    done = subprocess.run(
        [*COMMAND, *options, "--bad-rows", str(tmp_path / "bad.jsonl")],
        input=b"so good\n\xff\nbad",
        capture_output=True,
    )
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.decode().splitlines()[-1:] == [f"flaxsent: 1 rows were set aside in {tmp_path / 'bad.jsonl'}"]
    assert [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        "so good",
        "bad",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["so good", "--output", "out.csv"],
        ["so good", "--resume"],
        ["--input", "in.csv"],
        ["--input", "in.csv", "--output", "out.csv", "--top-k", "0"],
        ["--input", "in.csv", "--output", "out.csv", "--format", "tsv"],
        ["so good", "--input", "in.csv", "--output", "out.csv"],
        ["--input", "none.csv", "--output", "out.csv"],
        ["--input", "in.csv", "--output", "/proc/out.csv"],
        ["--input", "in.csv", "--output", "none/out.csv"],
        ["--input", "in.csv", "--output", "out.csv", "--text-column", "none"],
        ["--input", "in.csv", "--output", "out.csv", "--model", "/nowhere"],
    ],
    ids=" ".join,
)
def test_mistakes_are_one_line_and_exit_code_2(folder, capsys, monkeypatch, arguments):
    monkeypatch.chdir(folder)
    code, out, err = command(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("flaxsent: error: ")
    assert err.count("\n") == 1
    assert names(folder) == ["in.csv"]


# Texts and lines.


@pytest.fixture
def stdin(tmp_path, monkeypatch):
    """Puts bytes on standard input."""

    def put(content):
        (tmp_path / "stdin").write_bytes(content)
        stream = (tmp_path / "stdin").open()
        monkeypatch.setattr(sys, "stdin", stream)
        return stream

    return put


def test_lines_of_standard_input_come_out_in_their_order(stdin, capsys, tiny_folder, monkeypatch):
    monkeypatch.setattr(classify, "_CHUNK", 2)
    arguments = ["-", "--model", tiny_folder("bert"), "--format", "jsonl"]
    lines = ["so good", "", "bad 😀", "a\tb", "so good"]
    with stdin(("\ufeff" + "\r\n".join(lines)).encode()):
        code, out, err = command(capsys, *arguments)
    assert (code, err) == (0, "")
    found = [json.loads(line) for line in out.splitlines()]
    assert [record["text"] for record in found] == lines
    _, out, _ = command(capsys, *lines, *arguments[1:])
    alone = [json.loads(line)["scores"][0] for line in out.splitlines()]
    assert [record["scores"][0]["label"] for record in found] == [score["label"] for score in alone]
    # Packed in other rows, and the scores are of size 1.
    both = [[score["score"] for score in scores] for scores in ([record["scores"][0] for record in found], alone)]
    np.testing.assert_allclose(*both, rtol=0, atol=2e-6)


def test_lines_before_a_broken_one_still_come_out(stdin, capsys, tiny_folder):
    with stdin(b"so good\nso bad\n\xff\xfe\nlost\n"):
        code, out, err = command(capsys, "-", "--model", tiny_folder("bert"), "--format", "jsonl")
    assert code == 2
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["so good", "so bad"]
    assert err == "flaxsent: error: standard input line 3 is not UTF-8 text; convert it first.\n"


def test_truncated_lines_are_told_once(stdin, capsys, tiny_folder, monkeypatch):
    monkeypatch.setattr(classify, "_CHUNK", 2)
    with stdin(b"".join(b"word " * 99 + b"%d\n" % number for number in range(7))):
        code, _, err = command(capsys, "-", "--model", tiny_folder("bert"))
    assert (code, err) == (0, "flaxsent: 7 texts were truncated to 40 tokens\n")


def test_no_lines_give_no_rows(stdin, capsys, tiny_folder):
    with stdin(b""):
        assert command(capsys, "-", "--model", tiny_folder("bert"), "--format", "jsonl") == (0, "", "")


def test_a_line_whose_score_is_no_number_is_told_by_its_number(stdin, capsys, tiny_folder, monkeypatch):
    monkeypatch.setattr(classify, "_CHUNK", 2)
    score = flaxsent.Engine.__call__

    def with_nan(engine, texts):
        return np.where(np.array([[text == "odd"] for text in texts]), np.float32(np.nan), score(engine, texts))

    monkeypatch.setattr(flaxsent.Engine, "__call__", with_nan)
    with stdin(b"a\nb\nc\nodd\n"):
        code, out, err = command(capsys, "-", "--model", tiny_folder("bert"), "--format", "tsv")
    assert (code, out.count("\n")) == (2, 3), "the header, and the chunk before"
    assert err.startswith("flaxsent: error: standard input line 4 has a score that is not a finite number")


def test_lines_come_out_before_the_input_ends(tiny_folder):
    arguments = ["-", "--model", str(tiny_folder("bert")), "--format", "jsonl"]
    with subprocess.Popen([*COMMAND, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.writelines(f"line {number}\n" for number in range(1030))
        process.stdin.flush()
        found = [json.loads(process.stdout.readline())["text"] for _ in range(1024)]
        assert process.poll() is None
        rest, _ = process.communicate()
    assert found == [f"line {number}" for number in range(1024)]
    assert rest.count("\n") == 6


# Several models, and how certain they are.

MEASURES = ["entropy", "mutual_information", "disagreement"]


@pytest.fixture(scope="module")
def two_models(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("member") for _ in range(2)]
    for seed, model in enumerate(folders):
        random_checkpoint(model, "bert", seed=seed, num_hidden_layers=1)
    return [str(model) for model in folders]


def test_several_models_are_an_ensemble(folder, capsys, two_models):
    """In a file, printed, and without the measures: each is what the library gives."""
    texts = ["so good", "bad", "not bad at all"]
    scores_BNC = np.stack([flaxsent.Engine(flaxsent.load(model))(texts) for model in two_models], axis=1)
    mean_BC = scores_BNC.mean(axis=1, dtype=np.float64)
    entropy_B = -(mean_BC * np.log(mean_BC)).sum(axis=-1)
    models = [part for model in two_models for part in ("--model", model)]
    (folder / "three.txt").write_text("\n".join(texts))
    paths = ["--input", folder / "three.txt", "--output", folder / "out.jsonl"]
    assert command(capsys, *models, "--uncertainty", *paths) == (0, "", "")
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [[*row] for row in rows] == [["text", "label", "score", *MEASURES]] * 3
    np.testing.assert_allclose([row["entropy"] for row in rows], entropy_B, atol=1e-5)
    np.testing.assert_allclose([row["score"] for row in rows], mean_BC.max(axis=-1), atol=2e-6)
    _, out, _ = command(capsys, *models, "--uncertainty", "--format", "jsonl", *texts)
    for line, row in zip(map(json.loads, out.splitlines()), rows, strict=True):
        np.testing.assert_allclose([line[name] for name in MEASURES], [row[name] for name in MEASURES], atol=1e-5)
    _, out, _ = command(capsys, *models, "--format", "tsv", *texts)
    found = [line.split("\t") for line in out.splitlines()]
    assert found[0] == ["label", "score", "text"]
    np.testing.assert_allclose([float(row[1]) for row in found[1:]], mean_BC.max(axis=-1), atol=2e-6)


def test_one_model_is_measured_by_draws_of_dropout(folder, capsys, two_models):
    arguments = ["--model", two_models[0], "--uncertainty", "--samples", 3, "--input", folder / "in.csv"]
    arguments += ["--output", folder / "out.csv", "--all-scores", "--prefix", "my "]
    assert command(capsys, *arguments)[0] == 0
    rows, labels = read_csv(folder / "out.csv"), ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert [*rows[0]] == ["id", "text", *(f"my {name}" for name in ("label", "score", *MEASURES, *labels))]
    assert max(float(row["my mutual_information"]) for row in rows) > 0.001
    assert {round(float(row["my disagreement"]) * 3) for row in rows} <= {0, 1, 2}
    for row in rows:
        assert float(row["my score"]) == max(float(row[f"my {label}"]) for label in labels)
        assert float(row["my mutual_information"]) <= float(row["my entropy"])
    # The number of draws is part of what the job is.
    arguments[4] = 4
    code, _, err = command(capsys, *arguments, "--resume")
    assert code == 2
    assert 'another job: its uncertainty: "3 draws of dropout" then, "4 draws of dropout" now' in err


def test_measures_of_rows_without_a_finite_score_are_set_aside_with_them(folder, capsys, two_models, monkeypatch):
    batches = flaxsent.Engine.batches

    def with_nan(engine, texts):
        for results in batches(engine, texts):
            if len(results.scores) > 1:
                scores_BC = results.scores.copy()
                scores_BC[1] = np.nan
                results = results._replace(scores=scores_BC)
            yield results

    monkeypatch.setattr(flaxsent.Engine, "batches", with_nan)
    (folder / "three.txt").write_text("so good\nbad\nnot bad at all")
    paths = ["--input", folder / "three.txt", "--output", folder / "out.jsonl", "--bad-rows", folder / "bad.jsonl"]
    models = [part for model in two_models for part in ("--model", model)]
    assert command(capsys, *models, "--uncertainty", *paths)[0] == 0
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["so good", "not bad at all"]
    assert json.loads((folder / "bad.jsonl").read_text())["row"] == 2


def test_the_measures_are_printed(capsys, two_models):
    arguments = ["--model", two_models[0], "--uncertainty", "--samples", 2, "so good"]
    code, out, err = command(capsys, *arguments, "--format", "tsv")
    assert (code, err) == (0, "")
    header, row = (line.split("\t") for line in out.splitlines())
    assert header == ["label", "score", *MEASURES, "text"]
    assert (len(row), row[-1]) == (len(header), "so good")
    code, out, _ = command(capsys, *arguments, "--format", "table")
    assert "  mutual information 0." in out


def test_mistakes_about_members_are_one_line(capsys, two_models, tiny_folder):
    one, other = two_models
    dry = tiny_folder("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    for arguments, told in {
        ("--samples", 3): "--samples needs --uncertainty",
        ("--uncertainty", "--model", one, "--model", other, "--samples", 3): "--samples needs --uncertainty, and one",
        ("--uncertainty", "--model", one, "--samples", 1): "expected 2 or more draws of dropout",
        ("--uncertainty", "--model", one, "--model", tiny_folder("distilbert")): "member 1 of the ensemble has another",
        ("--uncertainty", "--model", dry): "has no dropout",
        (
            "--uncertainty",
            "--model",
            tiny_folder("bert", problem_type="regression"),
        ): "no probabilities, as of regression",
    }.items():
        code, _, err = command(capsys, *arguments, "so good")
        assert (code, err.count("\n")) == (2, 1), err
        assert told in err


# Disks.


def test_a_full_disk_is_one_line(folder, capsys, tiny_folder, monkeypatch):
    def full(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    options = ["--model", tiny_folder("bert"), "--input", folder / "in.csv", "--output", folder / "out.csv"]
    code, out, err = command(capsys, *options)
    assert (code, out) == (2, "")
    assert err.startswith("flaxsent: error: [Errno 28] No space left on device: ")
    assert err.count("\n") == 1
    assert names(folder) == ["in.csv"]
    monkeypatch.undo()
    assert command(capsys, *options)[0] == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_ours_is_one_line(folder, capsys, tiny_folder):
    (folder / "theirs").mkdir(mode=0o500)
    options = ["--model", tiny_folder("bert"), "--input", folder / "in.csv", "--output"]
    for output in (folder / "theirs" / "out.csv", folder / "theirs"):
        code, _, err = command(capsys, *options, output)
        assert code == 2
        assert err.endswith("is a folder that you may not write to; choose another.\n")
