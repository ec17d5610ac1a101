"""`evaluate --tune-thresholds`, `--abstain-below` and `--predictions`."""

import csv
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import sklearn.metrics

import flaxsent
from flaxsent.evaluation import metrics
from flaxsent.evaluation.calibration import calibrated_config
from flaxsent.evaluation.report import measure
from flaxsent.postprocessing import tune_thresholds
from tests.evaluation.conftest import (
    MULTI,
    REGRESSION,
    TEXTS,
    TOLERANCE,
    config_of,
    figures,
    mostly_right,
    run,
    write_csv,
)


def several(scores, seed=2):
    """Targets of several labels, of which the scores say something at thresholds that are not 0.5."""
    rng = np.random.default_rng(seed)
    return scores + 0.05 * rng.standard_normal(scores.shape) > np.median(scores, axis=0)


@pytest.fixture
def task(model, tmp_path):
    """A folder of a model of several labels, its scores, the targets and a file with them."""
    source, classifier, scores = model(**MULTI)
    targets = several(scores)
    lists = [json.dumps([classifier.config.labels[index] for index in np.flatnonzero(row)]) for row in targets]
    file = write_csv(tmp_path / "data.csv", zip(TEXTS, lists, strict=True))
    return shutil.copytree(source, tmp_path / "model"), scores, targets, file


def test_tuned_thresholds_are_stored_and_raise_the_figures(capsys, task):
    folder, scores, targets, file = task
    weights, config = ((folder / name).read_bytes() for name in ("model.safetensors", "config.json"))
    told = figures(capsys, folder, file, "--tune-thresholds")
    stored = flaxsent.load(folder, backend="native").config.label_thresholds
    assert stored == pytest.approx(tune_thresholds(scores, targets), abs=TOLERANCE)
    assert told["thresholds_stored_in"] == str(folder / "config.json")
    assert (folder / "model.safetensors").read_bytes() == weights
    raw = json.loads((folder / "config.json").read_text())
    assert raw.pop("id2threshold") == {str(index): one for index, one in enumerate(stored)}
    assert raw == json.loads(config)
    given = scores > np.array(stored)
    assert told["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(targets, given, average="macro"))
    assert told["micro_f1"] == pytest.approx(sklearn.metrics.f1_score(targets, given, average="micro"))
    assert told["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(targets, given))
    assert told["macro_f1"] > told["before"]["macro_f1"]
    assert [one["threshold"] for one in told["by_label"].values()] == pytest.approx(stored)
    again = figures(capsys, folder, file)
    assert again["macro_f1"] == told["macro_f1"], "they are used from then on"
    code, out, _ = run(capsys, "evaluate", "--model", folder, "--data", file, "--tune-thresholds")
    assert code == 0
    assert out.startswith("thresholds: accuracy ")
    assert f"; stored in {folder / 'config.json'}\n\n60 texts" in out


def test_calibrating_moves_the_thresholds_with_the_probabilities(capsys, task):
    folder, _, _, file = task
    before = figures(capsys, folder, file, "--tune-thresholds")
    after = figures(capsys, folder, file, "--calibrate")
    assert after["temperature"] != pytest.approx(1, abs=0.05)
    for figure in ("accuracy", "micro_f1", "macro_f1"):
        assert after[figure] == pytest.approx(before[figure]), figure
    again = figures(capsys, folder, file)
    assert again["macro_f1"] == pytest.approx(before["macro_f1"])
    assert again["log_loss"] < before["log_loss"]


def test_both_at_once_tune_what_is_calibrated(capsys, task):
    folder, _, _, file = task
    told = figures(capsys, folder, file, "--calibrate", "--tune-thresholds")
    again = figures(capsys, folder, file)
    for figure in ("macro_f1", "log_loss"):
        assert told[figure] == pytest.approx(again[figure], abs=TOLERANCE)
    assert told["before"]["log_loss"] > told["log_loss"]
    stored = flaxsent.load(folder, backend="native").config.label_thresholds
    assert [one["threshold"] for one in told["by_label"].values()] == pytest.approx(stored)


def test_thresholds_near_the_ends_stay_between_them():
    config = config_of(**MULTI, id2threshold={"0": 0.999, "1": 0.001})
    for temperature in (0.001, 1000):
        assert all(0 < one < 1 for one in calibrated_config(config, temperature).label_thresholds)


@pytest.mark.parametrize("least", [0.0, 0.4, 0.55, 1.0])
def test_coverage_and_the_accuracy_of_what_is_answered(capsys, model, tmp_path, least):
    folder, _, scores = model()
    labels = mostly_right(scores)
    file = write_csv(tmp_path / "data.csv", zip(TEXTS, labels, strict=True))
    told = figures(capsys, folder, file, "--abstain-below", least, "--by-length")
    is_sure = scores.max(axis=1) >= least
    assert told["coverage"] == is_sure.mean()
    if is_sure.any():
        right = sklearn.metrics.accuracy_score(labels[is_sure], scores.argmax(axis=1)[is_sure])
        assert told["accuracy_of_answered"] == pytest.approx(right)
    else:
        assert told["accuracy_of_answered"] is None
    whole = sum(one["coverage"] * one["num_texts"] for one in told["by_length"])
    assert whole == pytest.approx(is_sure.sum())
    code, out, _ = run(capsys, "evaluate", "--model", folder, "--data", file, "--abstain-below", least)
    assert code == 0
    assert f"\ncoverage              {is_sure.mean():.4f}\naccuracy of answered  " in out


def rows_of(file):
    if file.suffix == ".parquet":
        return pq.read_table(file).to_pylist()
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    with open(file, newline="") as stream:
        return [*csv.DictReader(stream, delimiter="," if file.suffix == ".csv" else "\t")]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("kind", [{}, MULTI, REGRESSION], ids=["one label", "several labels", "regression"])
def test_predictions_are_a_table_that_evaluates_to_the_same(capsys, model, tmp_path, suffix, kind):
    folder, classifier, scores = model(**kind)
    names, is_text = classifier.config.labels, suffix in (".csv", ".tsv")
    if kind == MULTI:
        own = [[names[index] for index in np.flatnonzero(row)] for row in several(scores)]
        cells, said = map(json.dumps, own), [[names[c] for c in np.argsort(-row) if row[c] > 0.5] for row in scores]
    elif kind == REGRESSION:
        own = cells = scores[:, 0].round(1).tolist()
        own[0] = cells[0] = 0.25
        said = scores[:, 0].tolist()
    else:
        own = cells = [names[index] for index in mostly_right(scores)]
        said = [names[index] for index in scores.argmax(axis=1)]
    file = write_csv(tmp_path / "data.csv", zip(TEXTS, cells, strict=True))
    told = figures(capsys, folder, file, "--predictions", tmp_path / f"out{suffix}")
    rows = rows_of(tmp_path / f"out{suffix}")
    assert [int(row["row"]) for row in rows] == [*range(2, len(TEXTS) + 2)]
    assert [row["text"] for row in rows] == TEXTS
    for column, expected in (("label", own), ("predicted", said)):
        found = [row[column] for row in rows]
        if kind == REGRESSION:
            np.testing.assert_allclose([*map(float, found)], expected, atol=TOLERANCE)
        else:
            assert ([*map(json.loads, found)] if kind == MULTI and is_text else found) == expected
    if kind != REGRESSION:
        table = [[float(row[name]) for name in names] for row in rows]
        np.testing.assert_allclose(table, scores, atol=TOLERANCE)
        code, out, err = run(
            capsys, "evaluate", "--model", folder, "--data", file, "--scores", tmp_path / f"out{suffix}", "--json"
        )
        assert (code, err) == (0, "")
        assert json.loads(out)["accuracy"] == told["accuracy"]
        assert json.loads(out)["log_loss"] == pytest.approx(told["log_loss"], abs=TOLERANCE)


def test_predictions_keep_pairs_and_texts_of_any_kind(capsys, model, tmp_path):
    folder, _, _ = model()
    rows = [('so "good",\n\tyes', "<b>é</b>", 0), ("a", "=1+1", 1)]
    file = write_csv(tmp_path / "data.csv", rows, ("one", "two", "label"))
    columns = ["--text-column", "one", "--second-column", "two"]
    figures(capsys, folder, file, *columns, "--predictions", tmp_path / "out.csv")
    assert [(row["one"], row["two"]) for row in rows_of(tmp_path / "out.csv")] == [row[:2] for row in rows]


def test_counts_at_thresholds_are_scikit_learns():
    rng = np.random.default_rng(0)
    scores, targets = rng.random((50, 4)), rng.random((50, 4)) < 0.4
    thresholds = np.array([0.1, 0.5, 0.7, 0.9])
    counts = metrics.count_labels(scores, targets.astype(np.float32), thresholds)
    expected = sklearn.metrics.precision_recall_fscore_support(targets, scores > thresholds, zero_division=0)
    for found, theirs in zip((counts.precision, counts.recall, counts.f1, counts.support), expected, strict=True):
        np.testing.assert_allclose(found, theirs)


def test_figures_that_thresholds_do_not_touch_stay():
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((40, 3)).astype(np.float32), (rng.random((40, 3)) < 0.4).astype(np.float32)
    names = {"id2label": {"0": "a", "1": "b", "2": "c"}}
    plain, tuned = (
        measure(logits, targets, config_of(**MULTI, **names, **more)).figures
        for more in ({}, {"id2threshold": {"0": 0.2, "1": 0.3, "2": 0.4}})
    )
    for figure in ("micro_average_precision", "macro_average_precision", "log_loss", "calibration_error"):
        assert plain[figure] == tuned[figure]
    assert plain["micro_f1"] != tuned["micro_f1"]


MISTAKES = {
    "tuning one label": (
        {},
        "a,0",
        ["--tune-thresholds"],
        "--tune-thresholds is for a model that gives a text several",
    ),
    "tuning regression": (REGRESSION, "a,1", ["--tune-thresholds"], "this one gives it one label or value"),
    "tuning scores": (MULTI, 'a,"[0]"', ["--tune-thresholds", "--scores", "x.csv"], "--tune-thresholds needs a model"),
    "abstaining of several": (MULTI, 'a,"[0]"', ["--abstain-below", "0.5"], "where it may have several, thresholds"),
    "abstaining of regression": (REGRESSION, "a,1", ["--abstain-below", "0.5"], "gives a text one label"),
    "abstaining at no probability": ({}, "a,0", ["--abstain-below", "nan"], "expected a probability, from 0 to 1"),
    "predictions without columns": ({}, "a,0", ["--predictions", "x.txt"], "a .txt has no columns"),
    "predictions of no kind": ({}, "a,0", ["--predictions", "x.xlsx"], "expected a file that ends in"),
    "predictions in no folder": ({}, "a,0", ["--predictions", "no/x.csv"], "there is no folder no"),
    "predictions over the data": ({}, "a,0", ["--predictions", "data.csv"], "is an input, and would be overwritten"),
    "predictions of a label named text": (
        {"id2label": {"0": "text", "1": "b"}},
        "a,b",
        ["--predictions", "x.csv"],
        "would have the column 'text' twice",
    ),
}


@pytest.mark.parametrize(("changes", "row", "arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(capsys, tiny_folder, tmp_path, monkeypatch, changes, row, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text(f"text,label\n{row}\n")
    folder = tiny_folder("bert", num_hidden_layers=1, **changes)
    before = (folder / "config.json").read_bytes()
    code, out, err = run(capsys, "evaluate", "--model", folder, "--data", "data.csv", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert (folder / "config.json").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["data.csv"]


@pytest.mark.parametrize("model_of", ["embedded", "hub", "exported", "adapter"])
def test_thresholds_are_stored_in_folders_alone(capsys, model, tmp_path, symbolic_sizes, model_of):
    file = write_csv(tmp_path / "data.csv", [("a", "[0]")])
    if model_of == "exported":
        flaxsent.export(model(**MULTI)[1], tmp_path / "exported", platforms=["cpu"])
    if model_of == "adapter":
        (tmp_path / "adapter_config.json").write_text("{}")
    models = {"hub": "acme/x", "exported": tmp_path / "exported", "adapter": tmp_path}
    named = [] if model_of == "embedded" else ["--model", models[model_of]]
    code, out, err = run(capsys, "evaluate", *named, "--data", file, "--tune-thresholds")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--tune-thresholds" in err
    assert "config.json of" in err


def test_an_exported_folder_keeps_the_thresholds(capsys, task, tmp_path, symbolic_sizes):
    folder, _, _, file = task
    told = figures(capsys, folder, file, "--tune-thresholds")
    flaxsent.export(flaxsent.load(folder, backend="native"), tmp_path / "exported", platforms=["cpu"])
    assert figures(capsys, tmp_path / "exported", file)["macro_f1"] == pytest.approx(told["macro_f1"])
