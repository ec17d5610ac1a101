"""`flaxsent classify` with labels of one's own, and with the vector of each text as a column."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import flaxsent
from flaxsent.cli import main
from flaxsent.transforms import Embedded, windows, zero_shot
from tests.jobs.conftest import TEXTS, do, names, read_csv

LABELS = ["good film", "bad"]


def command(capsys, *arguments):
    code = main(["classify", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def nli(tiny_folder):
    return tiny_folder("bert", id2label={"0": "entailment", "1": "neutral", "2": "contradiction"})


@pytest.fixture(scope="module")
def expected(nli):
    classifier = zero_shot(flaxsent.load(nli), LABELS, template="It is {}.", multi_label=True)
    with flaxsent.Engine(classifier) as engine:
        return dict(zip(TEXTS, engine(TEXTS), strict=True))


def asked(nli):
    return ["--model", nli, "--labels", " good film, bad", "--template", "It is {}.", "--multi-label"]


def test_labels_of_ones_own_for_texts_and_lines(nli, expected, capsys, monkeypatch, tmp_path):
    texts = ["I hate this so much!", *TEXTS[-2:]]
    for text in texts[1:]:
        assert text in expected
    code, out, err = command(capsys, *asked(nli), "--format", "jsonl", "--top-k", 2, *texts)
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    for text, row in zip(texts, rows, strict=True):
        found = {one["label"]: one["score"] for one in row["scores"]}
        # Scores in float32, of rows of other lengths.
        np.testing.assert_allclose([found[label] for label in LABELS], expected[text], atol=1e-6)
    (tmp_path / "lines").write_text("\n".join(texts))
    with open(tmp_path / "lines", encoding="utf-8") as lines:
        monkeypatch.setattr("sys.stdin", lines)
        code, again, err = command(capsys, *asked(nli), "--format", "jsonl", "--top-k", 2, "-")
    assert (code, err) == (0, "")
    for one, row in zip(map(json.loads, again.splitlines()), rows, strict=True):
        assert [each["label"] for each in one["scores"]] == [each["label"] for each in row["scores"]]


def test_labels_of_ones_own_for_files(nli, expected, folder, capsys):
    job = [*asked(nli), "--input", folder / "in.csv", "--output", folder / "out.csv", "--all-scores"]
    code, _, err = command(capsys, *job)
    assert (code, err.count("\n")) == (0, 1)
    assert "truncated to 40 tokens" in err
    rows = read_csv(folder / "out.csv")
    assert [*rows[0]] == ["id", "text", "label", "score", *LABELS]
    for row in rows:
        np.testing.assert_allclose([float(row[label]) for label in LABELS], expected[row["text"]], atol=1e-6)
        scores = expected[row["text"]]
        assert json.loads(row["label"]) == [LABELS[index] for index in np.argsort(-scores) if scores[index] > 0.5]
    for change in (["--template", "It is not {}."], ["--entailment", "neutral"], ["--labels", "bad,good film"]):
        code, _, err = command(capsys, *job, *change, "--resume")
        assert (code, err.count("\n")) == (2, 1)
        assert 'made by another job: its zero shot: {"labels": ["good film", "bad"], "template": "It is {}."' in err


def test_labels_of_ones_own_are_asked_of_each_window(nli, folder, capsys):
    classifier = zero_shot(windows(flaxsent.load(nli), stride=5, pooling="max_logits"), LABELS)
    with flaxsent.Engine(classifier) as engine:
        expected = engine(TEXTS)
    job = ["--model", nli, "--labels", ",".join(LABELS), "--input", folder / "in.csv", "--output", folder / "out.csv"]
    code, _, err = command(
        capsys, *job, "--all-scores", "--long-texts", "windows", "--stride", 5, "--pooling", "max_logits"
    )
    assert (code, err.count("\n")) == (0, 1)
    limit = classifier.tokenizer.text_limit
    assert f"texts of more than {limit} tokens were read in" in err
    found = [[float(row[label]) for label in LABELS] for row in read_csv(folder / "out.csv")]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_mistakes_about_labels_are_one_line(nli, tiny_folder, folder, capsys):
    paths = ["--input", folder / "in.csv", "--output", folder / "out.csv"]
    for arguments, told in {
        ("--template", "It is {}.", "so good"): "--template needs --labels",
        ("--multi-label", "so good"): "--multi-label needs --labels",
        ("--entailment", "entailment", "so good"): "--entailment needs --labels",
        ("--labels", "", "so good"): "none empty",
        ("--labels", "a,,b", "so good"): "none empty",
        ("--labels", "a,a", *paths): "all different",
        ("--labels", "a,b", "--template", "so", *paths): "does not name the label",
        ("--labels", "a,b", "--second-column", "id", *paths): "--second-column does not go with --labels",
        ("--labels", "a,b", "--entailment", "yes", "so good"): "none of the checkpoint's labels",
        ("--labels", "a,b", "--embeddings", *paths[:3], folder / "out.jsonl"): "another vector with each",
        ("--labels", "a,b", "--model", tiny_folder("bert"), "so good"): "models with the same labels of their own",
        ("--embeddings", "--uncertainty", *paths[:3], folder / "out.jsonl"): "embeddings need one model",
        ("--labels", "a,b", "--long-texts", "windows", "--stride", "36", "so good"): "stride=36: windows of",
        ("--embeddings", "so good"): "--embeddings needs --input",
        ("--embeddings", *paths): ".csv has no lists",
    }.items():
        code, _, err = command(capsys, "--model", nli, *arguments)
        assert (code, err.count("\n")) == (2, 1), err
        assert told in err
    assert names(folder) == ["in.csv"]
    code, _, err = command(capsys, "--model", tiny_folder("bert"), "--labels", "a,b", "so good")
    assert (code, err.count("\n"), "expected an NLI model" in err) == (2, 1, True)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_embeddings_are_a_column_of_lists(suffix, tiny_folder, folder, capsys):
    classifier = flaxsent.load(tiny_folder("bert"))
    with flaxsent.Engine(classifier, function=classifier.embeddings) as engine:
        expected = engine(TEXTS)
    output = folder / f"out.{suffix}"
    job = ["--model", tiny_folder("bert"), "--input", folder / "in.csv", "--output", output, "--prefix", "my "]
    assert command(capsys, *job, "--embeddings", "--all-scores")[0] == 0
    if suffix == "jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        assert str(parquet.read_schema(output).field("my embedding").type) == "list<element: float>"
        rows = parquet.read_table(output).to_pylist()
    labels = [f"my {label}" for label in classifier.config.labels]
    assert [*rows[0]] == ["id", "text", "my label", "my score", "my embedding", *labels]
    # Vectors in float32, of rows of other lengths.
    np.testing.assert_allclose([row["my embedding"] for row in rows], expected, atol=1e-5)
    assert all(row["my score"] == max(row[label] for label in labels) for row in rows)
    code, _, err = command(capsys, *job, "--all-scores", "--resume")
    assert (code, "another job: its embeddings: true then, false now" in err) == (2, True)


def test_a_vector_that_is_not_finite_is_a_bad_row(tiny_folder, folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")

    def function(params, tokens, num_segments):
        scores = classifier.scores(params, tokens, num_segments)
        return Embedded(scores, jnp.where(scores > 0.55, jnp.inf, scores))

    with flaxsent.Engine(classifier, function=function) as engine:
        scores_BC = engine(TEXTS).scores
        outcome = do(
            engine, folder / "in.csv", folder / "out.jsonl", embeddings=True, bad_rows=f"{folder / 'bad.jsonl'}"
        )
    assert 0 < outcome.num_bad_rows == (scores_BC > 0.55).any(axis=-1).sum() < len(TEXTS)
    assert len((folder / "out.jsonl").read_text().splitlines()) == len(TEXTS) - outcome.num_bad_rows
    for line in map(json.loads, (folder / "bad.jsonl").read_text().splitlines()):
        assert line["reason"] == "has a vector of numbers that are not all finite"
