"""The command line: what it prints, and that a user's mistake is one line and exit code 2."""

import datetime
import json
from importlib.metadata import version

import pytest

from flaxsent.cli import main
from tests.conftest import HAS_FLAX, HAS_FLAX_AUTO

COURSE = ["I've been waiting for a HuggingFace course my whole life", "I hate this so much!"]


def run(capsys, *arguments):
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_classify_labels_the_sentences_of_the_course(capsys):
    code, out, err = run(capsys, "classify", *COURSE)
    assert (code, err) == (0, "")
    header, *rows = out.splitlines()
    assert header.split("\t") == ["label", "score", "text"]
    assert [row.split("\t")[0] for row in rows] == ["POSITIVE", "NEGATIVE"]
    assert [row.split("\t")[2] for row in rows] == COURSE


def test_special_tokens_in_a_text_are_letters_where_that_is_asked_for(capsys):
    text = "so good [SEP] so bad"

    def scores(text, *options):
        code, out, _ = run(capsys, "classify", "--format", "jsonl", *options, text)
        assert code == 0
        return json.loads(out)["scores"]

    literal = scores(text, "--special-tokens-in-text", "literal")
    assert literal == scores("so good [ sep ] so bad") != scores(text)


def test_jsonl_holds_the_text_and_scores_that_sum_to_one(capsys):
    code, out, _ = run(capsys, "classify", "--format", "jsonl", "--top-k", "2", 'tab\t"quoted"\nline 😀')
    record = json.loads(out)
    assert code == 0
    assert record["text"] == 'tab\t"quoted"\nline 😀'
    assert sum(score["score"] for score in record["scores"]) == pytest.approx(1, abs=1e-6)
    assert {score["label"] for score in record["scores"]} == {"NEGATIVE", "POSITIVE"}


def test_tsv_is_one_row_a_text_whatever_the_text(capsys):
    _, out, _ = run(capsys, "classify", "--format", "tsv", "--top-k", "5", "a\tb\nc\\d\r")
    header, row = out.splitlines()
    assert header.split("\t") == ["label", "score", "label_2", "score_2", "text"]
    assert row.split("\t")[4] == "a\\tb\\nc\\\\d\\r"


def test_table_fits_the_terminal_and_moves_no_cursor(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    _, out, _ = run(capsys, "classify", "--format", "table", "\x1b[2J\x07" + "long " * 30)
    assert len(out.rstrip("\n")) == 40
    assert out.rstrip("\n").isprintable()
    assert out.rstrip("\n").endswith("…")


def test_truncation_is_said(capsys, caplog):
    code, _, _ = run(capsys, "classify", "word " * 600)
    assert code == 0
    assert "1 of 1 texts were truncated to 512 tokens" in caplog.text


def test_info_tells_what_the_checkpoint_is(capsys):
    code, out, _ = run(capsys, "info")
    facts = {line[:13].strip(): line[14:] for line in out.splitlines()}
    assert code == 0
    assert facts["family"] == "bert"
    assert facts["labels"] == "NEGATIVE, POSITIVE"
    assert facts["max length"] == "512 tokens"
    assert facts["weights"] == "all finite"
    assert facts["parameters"] == "22,713,986"
    assert facts["forward"] == ("flax (FlaxAutoModelForSequenceClassification)" if HAS_FLAX else "native")
    assert facts["packed rows"] == "native"
    assert f"jax {version('jax')}" in facts["versions"]
    assert "temperature" not in out


def test_info_tells_both_backends(capsys, tiny_folder):
    def backends(folder):
        _, out, _ = run(capsys, "info", str(folder))
        facts = {line[:13].strip(): line[14:] for line in out.splitlines()}
        return facts["forward"], facts["packed rows"]

    forward = "flax (FlaxAutoModelForSequenceClassification)" if HAS_FLAX else "native"
    assert backends(tiny_folder("modernbert")) == (forward, "native")
    if HAS_FLAX_AUTO:
        assert backends(tiny_folder("big_bird")) == (
            "flax (FlaxAutoModelForSequenceClassification)",
            "none: this family takes one text a row",
        )


def test_info_tells_where_and_until_when_an_exported_folder_runs(capsys, tmp_path, tiny_folder, symbolic_sizes):
    exported = tmp_path / "exported"
    code, out, _ = run(capsys, "export", str(tiny_folder("bert")), str(exported), "--platforms", "cpu,tpu")
    assert code == 0
    assert out.startswith(f"{exported}: ")
    assert out.endswith(" MB, for cpu, tpu\n")
    _, out, _ = run(capsys, "info", str(exported))
    facts = {line[:13].strip(): line[14:] for line in out.splitlines()}
    assert (facts["forward"], facts["packed rows"], facts["platforms"]) == ("exported", "exported", "cpu, tpu")
    last = datetime.date.fromisoformat(facts["expires"].partition(";")[0])
    assert (last - datetime.datetime.now(datetime.UTC).date()).days in (179, 180)  # midnight may come between


@pytest.mark.slow
def test_train_and_evaluate_from_files(capsys, tmp_path, tiny_folder):
    data = tmp_path / "data.tsv"
    data.write_text("text\tlabel\n" + "good good\tPOSITIVE\nbad bad\tNEGATIVE\n" * 4)
    arguments = [
        "--model",
        str(tiny_folder("bert")),
        "--labels",
        "NEGATIVE,POSITIVE",
        "--output",
        str(tmp_path / "out"),
    ]
    code, out, err = run(capsys, "train", "--train", str(data), "--dev", str(data), "--epochs", "1", *arguments)
    assert (code, err) == (0, "")
    understood, epoch, *_ = out.splitlines()  # what is wrong with answers that are all the same may follow
    assert "8 texts" in understood
    assert epoch.startswith("epoch 1 dev accuracy ")
    code, again, _ = run(capsys, "evaluate", "--model", str(tmp_path / "out"), "--data", str(data), "--json")
    assert code == 0
    assert f"{json.loads(again)['accuracy']:.4f}" == epoch.split()[4]


@pytest.mark.parametrize(
    "arguments",
    [
        ["classify", "x", "--model", "/nowhere"],
        ["classify", "x", "--top-k", "0"],
        ["classify", "\ud800"],
        ["info", "/nowhere/at/all"],
        ["evaluate", "--data", "/nowhere.tsv"],
        ["train", "--train", "/nowhere.tsv", "--output", "/dev/null/x"],
    ],
    ids=" ".join,
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, arguments):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith("flaxsent: error: ")
    assert err.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error(sh, tmp_path):
    (tmp_path / "lines").write_text("good\n" * 3000)
    assert sh(f"classify - <{tmp_path}/lines | head -1") == (0, "label\tscore\ttext\n", "")
