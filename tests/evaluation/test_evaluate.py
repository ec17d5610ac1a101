"""`flaxsent evaluate`: its figures against scikit-learn on files of every kind, calibration, and what is refused."""

import contextlib
import csv
import dataclasses
import functools
import io
import json
import math
import os
import shutil
import stat
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import sklearn.metrics

import flaxsent
from flaxsent.evaluation import report as evaluate
from flaxsent.cli import main
from flaxsent.models.config import TEMPERATURE_KEY, read_config, set_temperature, to_json
from flaxsent.postprocessing import postprocess
from tests.conftest import texts_of_lengths

# Of scores of float32 logits, computed in rows of another length or by another backend.
TOLERANCE = 1e-5

MULTI = {"problem_type": "multi_label_classification"}
REGRESSION = {"id2label": {"0": "score"}}

TEXTS = texts_of_lengths(np.random.default_rng(0).integers(1, 30, 60).tolist())


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def figures(capsys, folder, file, *arguments):
    code, out, err = run(capsys, "evaluate", "--model", folder, "--data", file, "--json", *arguments)
    assert (code, err) == (0, "")
    return json.loads(out)


def write_csv(file, rows, columns=("text", "label")):
    with open(file, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return file


@pytest.fixture(scope="module")
def model(tiny_folder):
    """`model(**changes)`: a folder of one layer, its classifier, and its scores of `TEXTS`."""

    @functools.cache
    def make(key):
        folder = tiny_folder("bert", num_hidden_layers=1, **json.loads(key))
        classifier = flaxsent.load(folder, backend="native")
        return folder, classifier, np.asarray(classifier.postprocess(evaluate.logits_of(classifier, TEXTS)))

    return lambda **changes: make(json.dumps(changes))


def config_of(**changes):
    return read_config(json.dumps({"model_type": "bert", **flaxsent.parity.CONFIGS["bert"], **changes}))


def mostly_right(scores, share=0.8):
    """Labels of which the model has so many right."""
    rng = np.random.default_rng(1)
    is_kept = rng.random(len(scores)) < share
    return np.where(is_kept, scores.argmax(axis=1), rng.integers(0, scores.shape[1], len(scores)))


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
        evaluate.read_data(write_csv(tmp_path / "lists.csv", lists), classifier.config).targets, targets
    )


def test_regression(capsys, model, tmp_path):
    folder, _, scores = model(**REGRESSION)
    values = scores[:, 0]
    targets = (values + np.random.default_rng(3).standard_normal(60)).round(1)  # some of them equal
    told = figures(capsys, folder, write_csv(tmp_path / "data.csv", zip(TEXTS, targets, strict=True)))
    assert told["pearson"] == pytest.approx(scipy.stats.pearsonr(values, targets)[0], abs=TOLERANCE)
    assert told["spearman"] == pytest.approx(scipy.stats.spearmanr(values, targets)[0], abs=TOLERANCE)
    error = sklearn.metrics.mean_squared_error(targets, values)
    assert told["mean_squared_error"] == pytest.approx(error, abs=TOLERANCE)


def test_what_has_no_meaning_is_null_and_a_dash():
    one = evaluate.measure(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32), config_of(**REGRESSION))
    told = evaluate.to_json(one)
    assert (told["pearson"], told["spearman"], told["mean_squared_error"]) == (None, None, 0)
    assert "pearson             –" in evaluate.table(one)


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
    "lists in cells": (MULTI, ['["LABEL_1"]', "[2]"], [[0, 1, 0], [0, 0, 1]], [".csv", ".tsv", ".jsonl", ".parquet"]),
    "values": (REGRESSION, [0.25, -3], [[0.25], [-3]], [".csv", ".tsv", ".jsonl", ".parquet"]),
}


@pytest.mark.parametrize(("changes", "labels", "targets", "suffixes"), ROWS.values(), ids=ROWS)
def test_every_format_gives_the_same_targets(tmp_path, changes, labels, targets, suffixes):
    for suffix in suffixes:
        file = write(tmp_path / f"data{suffix}", [*zip(["good", "bad"], labels, strict=True)])
        data = evaluate.read_data(file, config_of(**{"num_labels": 3} | changes))
        assert data.texts == ["good", "bad"]
        assert data.targets.tolist() == targets


def test_pairs_and_names_of_columns(capsys, model, tmp_path, monkeypatch):
    folder, scored = model()[0], []

    def logits_of(classifier, texts, *, on_scored):
        scored.extend(texts)
        return np.eye(3, dtype=np.float32)

    monkeypatch.setattr(evaluate, "logits_of", logits_of)
    rows = [("so bad", 2, "the film"), ("", 0, "the cast"), ("good", 1, "the plot")]
    file = write_csv(tmp_path / "data.csv", rows, ("b", "gold", "a"))
    columns = ("--text-column", "a", "--second-column", "b", "--label-column", "gold")
    told = figures(capsys, folder, file, *columns)
    assert scored == [("the film", "so bad"), ("the cast", ""), ("the plot", "good")]
    assert told["confusion"] == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]


def drawn(temperature, num_texts=4000, num_labels=4):
    """Logits, and labels drawn from their softmax at a temperature."""
    rng = np.random.default_rng(4)
    logits = 4 * rng.standard_normal((num_texts, num_labels))
    return logits.astype(np.float32), (logits / temperature + rng.gumbel(size=logits.shape)).argmax(axis=1)


def test_table_has_the_figures_the_labels_and_the_confusion_matrix():
    logits, labels = drawn(1.0, num_texts=200, num_labels=3)
    report = evaluate.measure(logits, labels, config_of(id2label={"0": "a", "1": "b\x1b[2J\n" + "b" * 40, "2": "c"}))
    told = evaluate.table(report)
    heading, *blocks = told.split("\n\n")
    assert heading == "200 texts, single label classification, at temperature 1"
    assert blocks[0].splitlines()[0].split() == ["accuracy", f"{report.figures['accuracy']:.4f}"]
    assert [line.split()[-1] for line in blocks[1].splitlines()] == ["texts", *map(str, np.bincount(labels).tolist())]
    assert [[int(cell) for cell in line.split()[-3:]] for line in blocks[2].splitlines()[1:]] == report.confusion
    assert told.replace("\n", "").isprintable(), "labels move no cursor"
    assert max(map(len, told.splitlines())) < 80


def test_a_matrix_too_wide_for_a_terminal_is_left_to_json():
    logits, labels = drawn(1.0, num_texts=50, num_labels=30)
    report = evaluate.measure(logits, labels, config_of(num_labels=30))
    assert "The confusion matrix of 30 labels is in --json." in evaluate.table(report)
    assert np.shape(evaluate.to_json(report)["confusion"]) == (30, 30)


def test_lengths_are_those_before_texts_are_cut(model):
    _, classifier, _ = model()  # which reads 40 tokens
    lengths = [1, 6, 38, 39, 100]
    found = evaluate.lengths_of(classifier, texts_of_lengths(lengths * 500))
    assert found.num_tokens.tolist() == [length + 2 for length in lengths] * 500  # [CLS] and [SEP]
    assert found.limit == 40


@pytest.mark.parametrize("changes", [{}, MULTI, REGRESSION])
def test_by_length_is_the_same_on_the_texts_of_each_length(changes):
    logits, labels = drawn(1.0, num_texts=40, num_labels=1 if changes == REGRESSION else 4)
    config = config_of(**({"num_labels": 4} if changes != REGRESSION else {}) | changes)
    targets = labels if not changes else (logits > np.random.default_rng(0).random()).astype(np.float32)
    lengths = np.tile([3, 8, 9, 16, 17, 32, 33, 40, 41, 102], 4)
    report = evaluate.measure(logits, targets, config, lengths=evaluate.Lengths(lengths, 40))
    spans = [(1, 8), (9, 16), (17, 32), (33, 40), (41, None)]
    assert [(one.shortest, one.longest) for one in report.by_length] == spans
    for shortest, longest, num_texts, found in report.by_length:
        chosen = (lengths >= shortest) & (lengths <= (longest or math.inf))
        alone = evaluate.measure(logits[chosen], targets[chosen], config)
        assert num_texts == alone.num_texts == 8
        assert found == pytest.approx(alone.figures, abs=1e-12, nan_ok=True)
    rows = [line.split("  ")[0] for line in evaluate.table(report).split("\n\n")[-1].splitlines()]
    assert rows == ["tokens", "1 to 8", "9 to 16", "17 to 32", "33 to 40", "41 or more, cut"]
    assert [one["num_texts"] for one in evaluate.to_json(report)["by_length"]] == [8] * 5


def test_plot_draws_a_panel_for_each_report(tmp_path):
    logits, labels = drawn(2.0, num_texts=500)
    targets = np.eye(4, dtype=np.float32)[labels]
    reports = [
        evaluate.measure(logits, labels, config_of(num_labels=4)),
        evaluate.measure(logits, targets, config_of(num_labels=4, **MULTI)),
    ]
    widths = []
    for number in (1, 2):
        evaluate.plot(reports[:number], tmp_path / "a.png")
        content = (tmp_path / "a.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        widths.append(int.from_bytes(content[16:20]))
    assert widths[1] == 2 * widths[0]


def test_matplotlib_that_is_missing_is_told_with_its_command_before_anything_is_computed(capsys, monkeypatch, model):
    monkeypatch.setattr(evaluate, "Engine", None)
    monkeypatch.setattr(evaluate.importlib.util, "find_spec", lambda name: None)
    code, _, err = run(capsys, "evaluate", "--model", model()[0], "--data", "data.csv", "--plot", "a.png")
    assert (code, err) == (
        2,
        "flaxsent: error: the reliability diagram needs matplotlib, which is not installed: "
        'pip install "flaxsent[plot]"\n',
    )


MISTAKES = {
    "no file": ({}, None, [], "No such file"),
    "no bytes": ({}, "", [], "has the columns (none); expected text"),
    "no rows": ({}, "text,label\n", [], "has no rows"),
    "no text column": ({}, "sentence,label\na,LABEL_0\n", [], "has the columns sentence, label; expected text"),
    "no second column": ({}, "text,label\na,0\n", ["--second-column", "b"], "expected text and b"),
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
    "plot of regression": (REGRESSION, "text,label\na,1\n", ["--plot", "a.png"], "--plot draws the reliability"),
    "plot of an unknown kind": ({}, "text,label\na,0\n", ["--plot", "a.xyz"], "a.xyz: expected a file that ends in"),
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
    before = (folder / "config.json").read_bytes()
    code, out, err = run(capsys, "evaluate", "--model", folder, "--data", "data.csv", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("flaxsent: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert (folder / "config.json").read_bytes() == before


def test_logits_that_are_not_finite_are_refused(model):
    _, classifier, _ = model()
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, classifier.params)
    with pytest.raises(ValueError, match="NaN or infinite"):
        evaluate.logits_of(dataclasses.replace(classifier, params=params), TEXTS)


# calibration


def log_loss_at(logits, labels, temperature):
    scaled = np.asarray(logits, np.float64) / temperature
    return -np.mean(scaled[np.arange(len(labels)), labels] - scipy.special.logsumexp(scaled, axis=1))


@pytest.mark.parametrize("temperature", [0.3, 2.5])
def test_the_temperature_is_that_of_least_log_loss(temperature):
    logits, labels = drawn(temperature)
    fitted = evaluate.fit_temperature(logits, labels, "single_label_classification")
    assert fitted == pytest.approx(temperature, rel=0.1), "what labels were drawn at, but for chance"
    least = scipy.optimize.minimize_scalar(
        lambda log: log_loss_at(logits, labels, math.exp(log)),
        bounds=(-5, 5),
        options={"xatol": 1e-9},
        method="bounded",
    )
    assert fitted == pytest.approx(math.exp(least.x), rel=1e-5)  # near the least, the loss is flat to its 11th digit
    slope = jax.grad(lambda log: jnp.mean(_cross_entropy(logits, labels, jnp.exp(log))))(math.log(fitted))
    assert abs(slope) <= 1e-4  # float32


def _cross_entropy(logits, labels, temperature):
    scaled = jnp.asarray(logits) / temperature
    return jax.nn.logsumexp(scaled, axis=-1) - scaled[jnp.arange(len(labels)), labels]


def test_the_temperature_of_several_labels_is_that_of_their_decisions():
    rng = np.random.default_rng(5)
    logits = 3 * rng.standard_normal((2000, 3)).astype(np.float32)
    targets = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits / 2))).astype(np.float32)
    fitted = evaluate.fit_temperature(logits, targets, "multi_label_classification")
    losses = [
        sklearn.metrics.log_loss(targets.ravel(), scipy.special.expit(logits.astype(np.float64) / t).ravel())
        for t in (fitted * 0.99, fitted, fitted * 1.01)
    ]
    assert losses[1] == min(losses)
    assert fitted == pytest.approx(2, rel=0.1)


def test_no_temperature_fits_what_is_all_right_or_says_nothing():
    logits, _ = drawn(1.0, num_texts=50)
    with pytest.raises(ValueError, match="has all 50 texts right"):
        evaluate.fit_temperature(logits, logits.argmax(axis=1), "single_label_classification")
    for labels in (logits.argmin(axis=1), np.zeros(50, np.int64)):
        scored = logits if labels.any() else np.ones((50, 2), np.float32)
        with pytest.raises(ValueError, match="do not favour the right labels"):
            evaluate.fit_temperature(scored, labels, "single_label_classification")


@pytest.fixture(scope="module")
def calibration(model, tmp_path_factory):
    """A folder after --calibrate, the one before, the file, what was printed, the labels and the scores before."""
    plain, folder = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("model")
    _, classifier, scores = model()
    for target in (plain, folder):
        flaxsent.save(classifier, target)
    os.chmod(folder / "config.json", 0o640)
    labels = mostly_right(scores, share=0.95)
    file = write_csv(folder.parent / "calibration.csv", zip(TEXTS, labels, strict=True))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["evaluate", "--model", str(folder), "--data", str(file), "--calibrate"]) == 0
    return folder, plain, file, out.getvalue(), labels, scores


@pytest.fixture
def calibrated(calibration, tmp_path):
    """A copy of the calibrated folder."""
    return shutil.copytree(calibration[0], tmp_path / "calibrated")


def temperature_of(folder):
    return json.loads((folder / "config.json").read_text())[TEMPERATURE_KEY]


def test_calibration_lowers_the_log_loss_and_tells_both(calibration):
    folder, _, _, out, labels, before = calibration
    temperature, config = temperature_of(folder), flaxsent.load(folder, backend="native").config
    first, _, second = out.splitlines()[:3]
    assert (config.temperature, config.problem_type) == (temperature, "single_label_classification")
    now = evaluate.measure(np.log(before), labels, config)  # but for a constant a row, logits
    loss, error = sklearn.metrics.log_loss(labels, before), now.figures["calibration_error"]
    assert first.startswith(f"temperature 1 → {temperature:.4g}, log loss {loss:.4f} → {now.figures['log_loss']:.4f}, ")
    assert first.endswith(f" → {error:.4f}; stored in {folder / 'config.json'}")
    assert second == f"60 texts, single label classification, at temperature {temperature:.4g}"
    assert now.figures["log_loss"] < loss
    assert now.figures["accuracy"] == np.mean(before.argmax(axis=1) == labels), "the best labels stay"


def test_calibrating_again_changes_nothing(capsys, calibration, calibrated):
    before = temperature_of(calibrated)
    told = figures(capsys, calibrated, calibration[2], "--calibrate")
    assert told["temperature"] == pytest.approx(before, rel=1e-6)
    assert told["before"]["log_loss"] == pytest.approx(told["log_loss"], abs=1e-9)
    assert temperature_of(calibrated) == told["temperature"]


def test_calibration_changes_one_key_of_one_file(calibration):
    folder, plain = calibration[:2]
    assert {file.name for file in folder.iterdir()} == {file.name for file in plain.iterdir()}
    for file in plain.iterdir():
        if file.name != "config.json":
            assert (folder / file.name).read_bytes() == file.read_bytes()
    before, now = (json.loads((at / "config.json").read_text()) for at in (plain, folder))
    assert now == before | {TEMPERATURE_KEY: now[TEMPERATURE_KEY]}
    assert stat.S_IMODE((folder / "config.json").stat().st_mode) == 0o640


@pytest.mark.parametrize("backend", ["native", pytest.param("flax", marks=pytest.mark.flax_auto)])
def test_all_scores_are_the_calibrated_ones_from_then_on(capsys, calibration, backend):
    folder, texts = calibration[0], texts_of_lengths([1, 5, 9, 12, 20, 25, 30, 37])
    classifier = flaxsent.load(folder, backend=backend)
    tokens = classifier.tokenize(texts, length=40)
    logits = np.asarray(jax.jit(classifier.forward)(classifier.params, tokens))
    expected = scipy.special.softmax(logits.astype(np.float64) / temperature_of(folder), axis=1)
    assert np.abs(expected - scipy.special.softmax(logits, axis=1)).max() > 0.05, "the temperature shows"
    scores = {"postprocess": classifier.postprocess(logits), "predict": classifier.predict(classifier.params, tokens)}
    with flaxsent.Engine(classifier, row_lengths=[40], tokens_per_step=320) as engine:
        scores["engine"] = engine(texts)
    scores["classify"] = [by_label(zip(*one, strict=True)) for one in flaxsent.classify(texts, classifier, top_k=None)]
    if backend == "native":  # which the command line takes
        code, out, _ = run(capsys, "classify", "--model", folder, "--format", "jsonl", "--top-k", "3", *texts)
        assert code == 0
        assert (
            f"single_label_classification, at temperature {temperature_of(folder):.4g}\n"
            in run(capsys, "info", folder)[1]
        )
        rows = [json.loads(line)["scores"] for line in out.splitlines()]
        scores["command"] = [by_label((one["label"], one["score"]) for one in row) for row in rows]
    for name, found in scores.items():
        assert np.abs(np.asarray(found) - expected).max() <= TOLERANCE, name


def by_label(pairs):
    return [score for _, score in sorted(pairs)]


@pytest.mark.torch
def test_pytorch_opens_a_calibrated_folder_and_keeps_the_temperature(calibration, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model, info = AutoModelForSequenceClassification.from_pretrained(calibration[0], output_loading_info=True)
    assert not any(info.values()), info
    model.save_pretrained(tmp_path)
    config = read_config((tmp_path / "config.json").read_text())
    assert config.temperature == temperature_of(calibration[0])


def test_save_and_load_keep_the_temperature_and_a_new_head_drops_it(calibrated, tmp_path):
    classifier = flaxsent.load(calibrated, backend="native")
    flaxsent.save(classifier, tmp_path / "copy")
    assert temperature_of(tmp_path / "copy") == temperature_of(calibrated)
    assert flaxsent.load(tmp_path / "copy", backend="native").config.temperature == classifier.config.temperature
    headed = flaxsent.load(calibrated, backend="native", labels=["a", "b", "c"])
    assert headed.config.temperature == 1
    flaxsent.save(headed, tmp_path / "headed")
    assert TEMPERATURE_KEY not in json.loads((tmp_path / "headed" / "config.json").read_text())


@pytest.mark.parametrize("name", [None, "distilbert-base-uncased", "owner/name"])
def test_what_lies_in_no_folder_is_not_calibrated(capsys, monkeypatch, name):
    monkeypatch.setattr(flaxsent.cli, "load", None)  # refused before
    model = [] if name is None else ["--model", name]
    code, _, err = run(capsys, "evaluate", "--data", "data.csv", "--calibrate", *model)
    assert code == 2
    assert (
        f"flaxsent.save(flaxsent.load({'' if name is None else repr(name)}), FOLDER), and pass --model FOLDER." in err
    )
    assert err.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_computed(capsys, calibrated, monkeypatch):
    monkeypatch.setattr(flaxsent.cli, "load", None)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    code, _, err = run(capsys, "evaluate", "--model", calibrated, "--data", "data.csv", "--calibrate")
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot be written in" in err


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_a_config_is_whole_when_storing_fails(calibrated, monkeypatch, name):
    def fails(*_):
        raise OSError(28, "No space left on device")

    before = {file.name: file.read_bytes() for file in calibrated.iterdir()}
    monkeypatch.setattr(os, name, fails)
    with pytest.raises(OSError, match="No space left"):
        evaluate.store_temperature(calibrated, 3.0)
    assert {file.name: file.read_bytes() for file in calibrated.iterdir()} == before


def test_a_temperature_of_1_is_not_stored(calibrated):
    evaluate.store_temperature(calibrated, 1.0)
    assert TEMPERATURE_KEY not in json.loads((calibrated / "config.json").read_text())


# the temperature in the config and in postprocess

BERT = json.dumps({"model_type": "bert", **flaxsent.parity.CONFIGS["bert"]})


IMPOSSIBLE = [0, -1, 1e-300, 1e300, 10**400, "2", True, [2], {}, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", IMPOSSIBLE, ids=lambda value: str(value)[:9])
def test_impossible_temperature_is_refused_by_the_name_of_its_key(value):
    text = json.dumps(json.loads(BERT) | {TEMPERATURE_KEY: value})
    with pytest.raises(ValueError, match=f"{TEMPERATURE_KEY}=.*; expected a number from 0.001 to 1000.0"):
        read_config(text)


def test_temperature_of_the_config():
    assert read_config(BERT).temperature == 1
    assert read_config(json.dumps(json.loads(BERT) | {TEMPERATURE_KEY: None})).temperature == 1
    config = read_config(set_temperature(BERT, 1.25))
    assert config.temperature == 1.25
    assert read_config(to_json(config, dtype="float32")).temperature == 1.25
    assert set_temperature(set_temperature(BERT, 1.25), 1.0) == set_temperature(BERT, 1.0)
    with pytest.raises(ValueError, match="regression has no probabilities to scale: remove the key"):
        set_temperature(json.dumps(json.loads(BERT) | {"num_labels": 1}), 1.25)


@pytest.mark.parametrize("temperature", [0.001, 0.5, 3.0, 1000.0])
def test_postprocess_divides_the_logits(temperature):
    logits = np.array([[-3.0, 0.5, 4.0], [9.0, 9.0, -9.0], [6e4, -6e4, 0.0]], np.float32)
    exact = logits.astype(np.float64) / temperature
    formulas = {
        "single_label_classification": scipy.special.softmax(exact, axis=-1),
        "multi_label_classification": scipy.special.expit(exact),
        "regression": logits,
    }
    for problem_type, expected in formulas.items():
        scores = postprocess(logits, problem_type=problem_type, temperature=temperature)
        assert scores.dtype == jnp.float32
        # At 0.001, float32 rounds quotients of some thousands by 1e-4 and more; else, a few units in the last place.
        rtol = 2e-3 if temperature == 0.001 else 1e-5
        np.testing.assert_allclose(scores, expected, rtol=rtol, atol=1e-30)


def test_without_the_key_scores_are_what_they_were_to_the_bit():
    logits = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    for problem_type in ("single_label_classification", "multi_label_classification"):
        ours = jax.jit(lambda x, kind=problem_type: postprocess(x, problem_type=kind, temperature=1.0))(logits)
        plain = jax.nn.softmax if problem_type.startswith("single") else jax.nn.sigmoid
        np.testing.assert_array_equal(ours, jax.jit(plain)(logits))


def test_evaluating_imports_neither_torch_nor_transformers_nor_matplotlib(model, tmp_path):
    file = write_csv(tmp_path / "data.csv", [("so good", 1), ("so bad", 0)])
    code = (
        "import sys, flaxsent.cli\n"
        "flaxsent.cli.main(['evaluate', '--model', sys.argv[1], '--data', sys.argv[2]])\n"
        "print(sorted({'torch', 'transformers', 'flax', 'matplotlib', 'sklearn'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, str(model()[0]), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
