"""What `classify` adds where a text may have several labels, or none: lists, more columns, and null."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import flaxsent
from flaxsent.classifier import with_thresholds
from flaxsent.cli import main

TEXTS = ["so good", "bad", "i hate the film", "not bad at all"]
NONE = 2
"""The text that is given no label."""


@pytest.fixture(scope="module")
def scored(tiny_folder, tmp_path_factory):
    """A folder with a model that gives the third text no label and others some, and a CSV; scores; labels given."""
    folder = tmp_path_factory.mktemp("several")
    classifier = flaxsent.load(
        tiny_folder("bert", num_hidden_layers=1, problem_type="multi_label_classification"), backend="native"
    )
    scores = np.asarray(classifier.predict(classifier.params, classifier.tokenize(TEXTS)))
    higher = [[one for one in column if one > column[NONE]] for column in scores.T]
    thresholds = np.array([min(column, default=1) for column in higher])
    thresholds = (thresholds + scores[NONE]) / 2
    flaxsent.save(with_thresholds(classifier, tuple(thresholds.tolist())), folder / "model")
    (folder / "in.csv").write_text("text\n" + "\n".join(TEXTS) + "\n")
    expected = [
        [classifier.config.labels[index] for index in np.argsort(-row, kind="stable") if row[index] > thresholds[index]]
        for row in scores
    ]
    assert expected[NONE] == []
    assert max(map(len, expected)) > 1
    return folder, scores, expected


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


def rows_of(file):
    match file.suffix:
        case ".parquet":
            return pq.read_table(file).to_pylist()
        case ".jsonl":
            return [json.loads(line) for line in file.read_text().splitlines()]
    with open(file, newline="") as stream:
        return [*csv.DictReader(stream)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_text_has_each_label_above_its_threshold(scored, tmp_path, capsys, suffix):
    folder, scores, expected = scored
    job = ["classify", "--model", folder / "model", "--input", folder / "in.csv", "--output", tmp_path / f"out{suffix}"]
    run(capsys, *job, "--all-scores")
    rows = rows_of(tmp_path / f"out{suffix}")
    parse = json.loads if suffix == ".csv" else list
    assert [parse(row["label"]) for row in rows] == expected
    for row, own in zip(rows, scores, strict=True):
        given = [float(row[label]) for label in parse(row["label"])]
        assert parse(row["score"]) == pytest.approx(given, abs=0)
        # Of float32 logits in rows of another length.
        np.testing.assert_allclose([float(row[f"LABEL_{index}"]) for index in range(3)], own, atol=1e-5)
    assert run_again(capsys, job, "--all-scores") == "is finished already"
    assert "its top k: null then, 2 now" in run_again(capsys, job, "--all-scores", "--top-k", "2")
    if suffix == ".parquet":
        types = {field.name: str(field.type) for field in pq.read_schema(tmp_path / "out.parquet")}
        assert types["label"].startswith("list<")
        assert types["label"].endswith("string>")


def run_again(capsys, job, *arguments):
    main([*map(str, job), *arguments, "--resume"])
    return capsys.readouterr().err.strip()[-19:] if not arguments[1:] else capsys.readouterr().err


def test_such_a_file_is_one_to_train_on(scored, tmp_path, capsys):
    from flaxsent.data.labels import read_annotations, resolve

    folder, _, expected = scored
    run(capsys, "classify", "--model", folder / "model", "--input", folder / "in.csv", "--output", tmp_path / "out.csv")
    annotations = read_annotations(tmp_path / "out.csv")
    assert annotations.labels == [tuple(one) for one in expected]
    assert resolve(annotations).problem_type == "multi_label_classification"


@pytest.mark.parametrize("suffix", [".tsv", ".parquet"])
@pytest.mark.parametrize("kind", ["several", "one"])
def test_top_k_adds_columns_for_each_rank(scored, tiny_folder, tmp_path, capsys, suffix, kind):
    folder = scored[0]
    model = folder / "model" if kind == "several" else tiny_folder("bert", num_hidden_layers=1)
    (tmp_path / "in.tsv").write_text("text\n" + "\n".join(TEXTS) + "\n")
    job = ["classify", "--model", model, "--input", tmp_path / "in.tsv", "--output", tmp_path / f"out{suffix}"]
    run(capsys, *job, "--top-k", "9" if kind == "several" else "2")
    if suffix == ".tsv":
        header, *lines = [line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines()]
        rows = [dict(zip(header, line, strict=True)) for line in lines]
    else:
        rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    ranks = ["", "_2", "_3"] if kind == "several" else ["", "_2"]
    assert [*rows[0]] == ["text", *(f"{name}{rank}" for rank in ranks for name in ("label", "score"))]
    expected = flaxsent.classify(TEXTS, flaxsent.load(model, backend="native"), top_k=len(ranks))
    for row, (labels, own) in zip(rows, expected, strict=True):
        assert tuple(row[f"label{rank}"] for rank in ranks) == labels
        np.testing.assert_allclose([float(row[f"score{rank}"]) for rank in ranks], own, atol=1e-5)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_below_the_threshold_there_is_no_label_and_the_score_stays(tiny_folder, tmp_path, capsys, suffix):
    model = tiny_folder("bert", num_hidden_layers=1)
    (tmp_path / "in.csv").write_text("text\n" + "\n".join(TEXTS) + "\n")
    predictions = flaxsent.classify(TEXTS, flaxsent.load(model, backend="native"))
    scores = sorted(one.score for one in predictions)
    least = (scores[1] + scores[2]) / 2
    output = tmp_path / f"out{suffix}"
    job = ["classify", "--model", model, "--input", tmp_path / "in.csv", "--output", output]
    run(capsys, *job, "--abstain-below", least)
    empty = "" if suffix == ".csv" else None
    rows = rows_of(output)
    assert [row["label"] for row in rows] == [one.label if one.score >= least else empty for one in predictions]
    assert [row["label"] for row in rows].count(empty) == 2
    np.testing.assert_allclose([float(row["score"]) for row in rows], [one.score for one in predictions], atol=1e-5)


def test_texts_on_the_command_line_have_them_too(scored, tiny_folder, capsys):
    folder, _, expected = scored
    model = ["classify", "--model", folder / "model"]
    lines = run(capsys, *model, "--format", "tsv", *TEXTS).splitlines()
    assert lines[0] == "label\tscore\ttext"
    assert [json.loads(line.split("\t")[0]) for line in lines[1:]] == expected
    lines = run(capsys, *model, "--format", "jsonl", *TEXTS).splitlines()
    assert [[one["label"] for one in json.loads(line)["scores"]] for line in lines] == expected
    assert run(capsys, *model, "--format", "table", TEXTS[NONE]).split() == ["–", *TEXTS[NONE].split()]
    model = ["classify", "--model", tiny_folder("bert", num_hidden_layers=1), "--abstain-below"]
    line = run(capsys, *model, 1, "--format", "jsonl", "bad")
    assert (json.loads(line)["label"], len(json.loads(line)["scores"])) == (None, 1)
    assert run(capsys, *model, 1, "--format", "tsv", "bad").splitlines()[1].startswith("\t0.")
    assert run(capsys, *model, 1, "--format", "table", "bad").startswith("– ")
    assert json.loads(run(capsys, *model, 0, "--format", "jsonl", "bad"))["label"].startswith("LABEL_")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--abstain-below", "0.7"], "--abstain-below is for a model that gives a text one label"),
        (["--top-k", "0"], "--top-k 0 is less than 1"),
        (["--top-k", "-1"], "--top-k -1 is less than 1"),
    ],
)
@pytest.mark.parametrize("files", [True, False])
def test_what_does_not_fit_is_one_line(scored, tmp_path, capsys, arguments, message, files):
    folder, _, _ = scored
    what = ["--input", folder / "in.csv", "--output", tmp_path / "out.csv"] if files else ["so good"]
    code = main([*map(str, ["classify", "--model", folder / "model", *arguments, *what])])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("value", ["nan", "-0.1", "1.5"])
def test_what_is_no_probability_is_one_line(tiny_folder, capsys, value):
    code = main(["classify", "--model", str(tiny_folder("bert", num_hidden_layers=1)), f"--abstain-below={value}", "a"])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "expected a probability, from 0 to 1" in err
