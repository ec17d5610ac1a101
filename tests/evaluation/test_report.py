"""`flaxsent evaluate`: its figures against scikit-learn on files of every kind, and what it refuses."""

import dataclasses
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

import flaxsent
from flaxsent.evaluation.report import Lengths, lengths_of, measure, read_data
from flaxsent.evaluation.tables import table, to_json
from flaxsent.transforms import zero_shot
from tests.conftest import texts_of_lengths
from tests.evaluation.conftest import (
    MULTI,
    REGRESSION,
    TEXTS,
    TOLERANCE,
    config_of,
    drawn,
    figures,
    mostly_right,
    run,
    scores_of,
    write_csv,
)


def test_one_label_of_several(capsys, model, tmp_path):
    folder, _, scores = model()
    labels, best = mostly_right(scores), scores.argmax(axis=1)
    rows = [(text, f"LABEL_{label}") for text, label in zip(TEXTS, labels, strict=True)]
    told = figures(capsys, folder, write_csv(tmp_path / "data.csv", rows), "--plot", tmp_path / "a.png")
    assert (told["num_texts"], told["problem_type"]) == (60, "single_label_classification")
    assert told["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, best))
    assert told["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(labels, best, average="macro"))
    assert told["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, best))
    assert told["log_loss"] == pytest.approx(sklearn.metrics.log_loss(labels, scores), abs=TOLERANCE)
    assert told["confusion"] == sklearn.metrics.confusion_matrix(labels, best).tolist()
    each = sklearn.metrics.f1_score(labels, best, average=None)
    assert [told["by_label"][label]["f1"] for label in told["labels"]] == pytest.approx(each.tolist())
    assert sum(one["num_texts"] for one in told["bins"]) == 60
    gaps = [abs(one["score"] - one["accuracy"]) * one["num_texts"] for one in told["bins"] if one["num_texts"]]
    assert told["calibration_error"] == pytest.approx(sum(gaps) / 60)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_several_labels_at_once(capsys, model, tmp_path):
    folder, classifier, scores = model(**MULTI)
    targets = np.random.default_rng(2).integers(0, 2, (60, 3))
    names = [[f"LABEL_{index}" for index in np.flatnonzero(row)] for row in targets]
    rows = [(text, "; ".join(several) or "[]") for text, several in zip(TEXTS, names, strict=True)]
    told = figures(capsys, folder, write_csv(tmp_path / "data.csv", rows), "--label-separator", ";")
    predicted = scores > 0.5
    for average in ("micro", "macro"):
        f1 = sklearn.metrics.f1_score(targets, predicted, average=average)
        precision = sklearn.metrics.average_precision_score(targets, scores, average=average)
        assert told[f"{average}_f1"] == pytest.approx(f1)
        assert told[f"{average}_average_precision"] == pytest.approx(precision, abs=TOLERANCE)
    assert told["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(targets, predicted))
    assert told["log_loss"] == pytest.approx(sklearn.metrics.log_loss(targets.ravel(), scores.ravel()), abs=TOLERANCE)
    assert told["by_label"]["LABEL_1"]["num_texts"] == targets[:, 1].sum()
    lists = [(text, json.dumps(several)) for text, several in zip(TEXTS, names, strict=True)]
    np.testing.assert_array_equal(
        read_data(write_csv(tmp_path / "lists.csv", lists), classifier.config).targets, targets
    )


LABELS = ["film", "hate this film"]
ASKED = ("--labels", ",".join(LABELS), "--template", "it is {}")


@pytest.fixture
def asked(model, tmp_path):
    """An NLI folder, its classifier by `LABELS`, its scores of `TEXTS`, and a file of these with labels."""
    folder, nli, _ = model(id2label={"0": "contradiction", "1": "neutral", "2": "entailment"})
    classifier = zero_shot(nli, LABELS, template="it is {}")
    scores = scores_of(classifier, TEXTS)
    targets = mostly_right(scores)
    rows = [(text, LABELS[one]) for text, one in zip(TEXTS, targets, strict=True)]
    return folder, scores, targets, write_csv(tmp_path / "data.csv", rows)


def test_labels_given_at_run_time(capsys, asked, tmp_path):
    folder, scores, targets, file = asked
    told = figures(capsys, folder, file, *ASKED)
    assert (told["labels"], told["problem_type"]) == (LABELS, "single_label_classification")
    assert told["accuracy"] == pytest.approx((scores.argmax(axis=1) == targets).mean())
    assert told["log_loss"] == pytest.approx(sklearn.metrics.log_loss(targets, scores), abs=TOLERANCE)
    several = zero_shot(flaxsent.load(folder, backend="native"), LABELS, template="it is {}", multi_label=True)
    given = scores_of(several, TEXTS) > 0.5
    rows = [(text, json.dumps([LABELS[one]])) for text, one in zip(TEXTS, targets, strict=True)]
    told = figures(capsys, folder, write_csv(tmp_path / "several.csv", rows), "--multi-label", *ASKED)
    assert told["micro_f1"] == pytest.approx(sklearn.metrics.f1_score(np.eye(2)[targets], given, average="micro"))
    for name in ("--calibrate", "--tune-thresholds"):
        code, _, err = run(capsys, "evaluate", "--model", folder, "--data", file, *ASKED, name)
        assert (code, err.count("\n")) == (2, 1)
        assert f"{name} writes into a model, which knows nothing of --labels" in err


@pytest.mark.slow
def test_labels_given_at_run_time_on_a_page_and_beside_another_model(capsys, model, asked, tmp_path):
    """Which is asked for them too, unless they are its own."""
    folder, scores, targets, file = asked
    own, _, theirs = model(id2label=dict(enumerate(LABELS)), seed=1)
    for other, best in ((folder, scores), (own, theirs)):
        page = ("--report", tmp_path / "page.html") if other == own else ()
        told = figures(capsys, folder, file, *ASKED, "--compare", other, *page)["compare"]
        assert told["figures"]["accuracy"] == pytest.approx((best.argmax(axis=1) == targets).mean())
    assert "not coloured" not in (tmp_path / "page.html").read_text()
    assert 'class="for"' in (tmp_path / "page.html").read_text().split("</h1>")[-1]


def test_regression(capsys, model, tmp_path):
    folder, _, scores = model(**REGRESSION)
    values = scores[:, 0]
    targets = (values + np.random.default_rng(3).standard_normal(60)).round(1)  # some of them equal
    told = figures(capsys, folder, write_csv(tmp_path / "data.csv", zip(TEXTS, targets, strict=True)))
    assert told["pearson"] == pytest.approx(scipy.stats.pearsonr(values, targets)[0], abs=TOLERANCE)
    assert told["spearman"] == pytest.approx(scipy.stats.spearmanr(values, targets)[0], abs=TOLERANCE)
    error = sklearn.metrics.mean_squared_error(targets, values)
    assert told["mean_squared_error"] == pytest.approx(error, abs=TOLERANCE)


def write(file, rows):
    columns = ("text", "label")
    match file.suffix:
        case ".csv":
            write_csv(file, rows)
        case ".tsv":
            file.write_text("".join(f"{text}\t{label}\n" for text, label in [columns, *rows]))
        case ".jsonl":
            file.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
        case ".parquet":
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.table(dict(zip(columns, zip(*rows, strict=True), strict=True))), file)
    return file


ROWS = {
    "names": ({}, ["LABEL_2", "LABEL_0"], [2, 0], [".csv", ".tsv", ".jsonl", ".parquet"]),
    "indices": ({}, [1, 2], [1, 2], [".csv", ".tsv", ".jsonl", ".parquet"]),
    "lists": (MULTI, [["LABEL_2", "LABEL_0"], []], [[1, 0, 1], [0, 0, 0]], [".jsonl", ".parquet"]),
    "lists in cells": (
        MULTI,
        ['["LABEL_1"]', '["LABEL_2", "LABEL_0"]'],
        [[0, 1, 0], [1, 0, 1]],
        [".csv", ".tsv", ".jsonl", ".parquet"],
    ),
    "indices in cells": (MULTI, ["[1]", "[2, 0]"], [[0, 1, 0], [1, 0, 1]], [".csv", ".tsv", ".jsonl", ".parquet"]),
    "vectors": (MULTI, [[0, 1, 0], [1, 0, 1]], [[0, 1, 0], [1, 0, 1]], [".jsonl", ".parquet"]),
    "values": (REGRESSION, [0.25, -3], [[0.25], [-3]], [".csv", ".tsv", ".jsonl", ".parquet"]),
}


@pytest.mark.parametrize(("changes", "labels", "targets", "suffixes"), ROWS.values(), ids=ROWS)
def test_every_format_gives_the_same_targets(tmp_path, changes, labels, targets, suffixes):
    for suffix in suffixes:
        file = write(tmp_path / f"data{suffix}", [*zip(["good", "bad"], labels, strict=True)])
        data = read_data(file, config_of(**{"num_labels": 3} | changes))
        assert data.texts == ["good", "bad"]
        assert data.targets.tolist() == targets


def test_pairs_and_names_of_columns(capsys, model, tmp_path):
    folder, classifier, _ = model()
    pairs = [("the film", "so bad"), ("the cast", "a film"), ("the plot", "good"), ("good", "hate the plot")]
    best = scores_of(classifier, pairs).argmax(axis=1)
    assert (best != scores_of(classifier, [pair[::-1] for pair in pairs]).argmax(axis=1)).any(), "their order shows"
    rows = [(second, label, first) for (first, second), label in zip(pairs, best, strict=True)]
    file = write_csv(tmp_path / "data.csv", rows, ("b", "gold", "a"))
    columns = ("--text-column", "a", "--second-column", "b", "--label-column", "gold")
    assert figures(capsys, folder, file, *columns)["accuracy"] == 1


def test_lengths_are_those_before_texts_are_cut(model):
    _, classifier, _ = model()  # which reads 40 tokens
    lengths = [1, 6, 38, 39, 100]
    found = lengths_of(classifier, texts_of_lengths(lengths * 500))
    assert found.num_tokens.tolist() == [length + 2 for length in lengths] * 500  # [CLS] and [SEP]
    assert found.limit == 40


@pytest.mark.parametrize("changes", [{}, MULTI, REGRESSION])
def test_by_length_is_the_same_on_the_texts_of_each_length(changes):
    logits, labels = drawn(1.0, num_texts=40, num_labels=1 if changes == REGRESSION else 4)
    config = config_of(**({"num_labels": 4} if changes != REGRESSION else {}) | changes)
    targets = labels if not changes else (logits > np.random.default_rng(0).random()).astype(np.float32)
    lengths = np.tile([3, 8, 9, 16, 17, 32, 33, 40, 41, 102], 4)
    report = measure(logits, targets, config, lengths=Lengths(lengths, 40))
    spans = [(1, 8), (9, 16), (17, 32), (33, 40), (41, None)]
    assert [(one.shortest, one.longest) for one in report.by_length] == spans
    for shortest, longest, num_texts, found in report.by_length:
        chosen = (lengths >= shortest) & (lengths <= (longest or math.inf))
        alone = measure(logits[chosen], targets[chosen], config)
        assert num_texts == alone.num_texts == 8
        assert found == pytest.approx(alone.figures, abs=1e-12, nan_ok=True)
    rows = [line.split("  ")[0] for line in table(report).split("\n\n")[-1].splitlines()]
    assert rows == ["tokens", "1 to 8", "9 to 16", "17 to 32", "33 to 40", "41 or more"]
    assert [one["num_texts"] for one in to_json(report)["by_length"]] == [8] * 5


MISTAKES = {
    "no file": ({}, None, [], "No such file"),
    "no bytes": ({}, "", [], "has the columns (none); expected text"),
    "no rows": ({}, "text,label\n", [], "has no rows"),
    "no text column": ({}, "sentence,label\na,LABEL_0\n", [], "has the columns sentence, label; expected text"),
    "no second column": ({}, "text,label\na,0\n", ["--second-column", "b"], "has the columns text, label; expected b"),
    "no label column": ({}, "text,sentiment\na,LABEL_0\n", [], "expected label"),
    "unknown label": ({}, "text,label\na,LABEL_0\nb,good\n", [], "row 3 has the label 'good'"),
    "index beyond the labels": ({}, "text,label\na,3\n", [], "row 2 has the label '3'"),
    "no label": ({}, "text,label\na,\n", [], "row 2 has no label in the column 'label'"),
    "broken row": ({}, "text,label\na\n", [], "row 2 has 1 columns; expected 2"),
    "value for a model of labels": ({}, "text,label\na,0.25\n", [], "row 2 has the label '0.25'"),
    "list for a model of one label": ({}, "text,label\na,[0]\n", [], "row 2 has the label"),
    "name for regression": (REGRESSION, "text,label\na,POSITIVE\n", [], "'POSITIVE'; expected a finite number"),
    "infinite value": (REGRESSION, "text,label\na,inf\n", [], "'inf'; expected a finite number"),
    "one name for several labels": (MULTI, "text,label\na,LABEL_0\n", [], "'LABEL_0'; expected a list of"),
    "unknown name in a list": (MULTI, 'text,label\na,"[""LABEL_9""]"\n', [], "LABEL_9"),
    "list that is no JSON": (MULTI, "text,label\na,[LABEL_0]\n", [], "row 2 has the label '[LABEL_0]'"),
    "regression of several values": ({"problem_type": "regression"}, "text,label\na,1\n", [], "gives 3 values"),
    "plot of regression": (REGRESSION, "text,label\na,1\n", ["--plot", "a.png"], "--plot draws how reliable"),
    "plot of an unknown kind": (
        {},
        "text,label\na,0\n",
        ["--plot", "a.xyz"],
        "a.xyz: expected a file name that ends in",
    ),
    "plot in no folder": ({}, "text,label\na,0\n", ["--plot", "no/a.png"], "there is no folder no"),
    "calibration of regression": (REGRESSION, "text,label\na,1\n", ["--calibrate"], "--calibrate fits a temperature"),
}


@pytest.mark.parametrize(("changes", "content", "arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line_and_exit_code_2(
    capsys, tiny_folder, tmp_path, monkeypatch, changes, content, arguments, message
):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "data.csv").write_text(content)
    folder = tiny_folder("bert", num_hidden_layers=1, **changes)
    before = (folder / "model.safetensors").read_bytes()
    code, out, err = run(capsys, "evaluate", "--model", folder, "--data", "data.csv", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("flaxsent: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert (folder / "model.safetensors").read_bytes() == before


def test_labels_that_are_numbers_are_names_and_not_indices(capsys, tiny_folder, tmp_path):
    """A model of 1 to 4 stars: 0 is not the first of them."""
    stars = {str(index): str(index + 1) for index in range(4)}
    folder = tiny_folder("bert", num_hidden_layers=1, id2label=stars)
    told = figures(capsys, folder, write_csv(tmp_path / "data.csv", [("good", 1), ("so good", 4), ("bad", 4)]))
    assert [told["by_label"][label]["num_texts"] for label in "1234"] == [1, 0, 0, 2]
    for suffix in (".csv", ".tsv", ".jsonl", ".parquet"):
        file = write(tmp_path / f"data{suffix}", [("good", 4), ("bad", 0)])
        code, out, err = run(capsys, "evaluate", "--model", folder, "--data", file)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "has the label '0': '0' is unknown; expected 1, 2, 3, 4; pass --bad-rows" in err


def test_logits_that_are_not_finite_are_refused_with_the_record(capsys, model, tmp_path):
    """NaN in the embedding of one letter: texts that have it are refused, not those that share a row with them."""
    _, classifier, _ = model()
    texts = ["so good", "bad", "the zebra", "a film", "zero"]
    file = write_csv(tmp_path / "data.csv", [(text, 0) for text in texts])
    letter = classifier.tokenizer.backend.encode("z", add_special_tokens=False).ids[0]
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.at[letter].set(jnp.nan) if "word_embeddings" in jax.tree_util.keystr(path) else leaf,
        classifier.params,
    )
    flaxsent.save(dataclasses.replace(classifier, params=params), tmp_path / "model")
    assert np.isnan(scores_of(flaxsent.load(tmp_path / "model", backend="native"), texts)[0]).all(), "they share a row"
    code, out, err = run(capsys, "evaluate", "--model", tmp_path / "model", "--data", file)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"NaN or infinite for the text of {file} row 4;" in err


def test_an_exported_folder_has_the_figures_of_its_checkpoint(capsys, model, tmp_path, symbolic_sizes):
    folder, classifier, scores = model()
    flaxsent.export(classifier, tmp_path / "exported", platforms=["cpu"])
    file = write_csv(tmp_path / "data.csv", zip(TEXTS, mostly_right(scores), strict=True))
    ours, theirs = (figures(capsys, one, file, "--by-length") for one in (folder, tmp_path / "exported"))
    assert theirs["confusion"] == ours["confusion"]
    assert theirs["log_loss"] == pytest.approx(ours["log_loss"], abs=TOLERANCE)
    assert theirs["by_length"] == [pytest.approx(one, abs=TOLERANCE) for one in ours["by_length"]]


@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["table", "json"])
def test_texts_that_are_cut_are_told_once_on_standard_error(capsys, model, tmp_path, arguments):
    file = write_csv(tmp_path / "data.csv", [*zip(texts_of_lengths([50, 3, 60, 38]), "0120", strict=True)])
    code, out, err = run(capsys, "evaluate", "--model", model()[0], "--data", file, *arguments)
    assert (code, err) == (0, "flaxsent: 2 texts were truncated to 40 tokens\n")
    assert out


def test_evaluating_imports_neither_torch_nor_transformers_nor_matplotlib(model, tmp_path):
    file = write_csv(tmp_path / "data.csv", [("so good", 1), ("so bad", 0)])
    code = (
        "import sys, flaxsent.cli\n"
        "flaxsent.cli.main(['evaluate', '--model', sys.argv[1], '--data', sys.argv[2]])\n"
        "slow = {'torch', 'transformers', 'flax', 'matplotlib', 'sklearn', 'scipy.stats', 'scipy.optimize'}\n"
        "print(sorted(slow & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, str(model()[0]), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
