"""A report as a table, as JSON and as a reliability diagram."""

import os
import sys

import numpy as np
import pytest

import flaxsent.cli.evaluate
from flaxsent.evaluation.pictures import plot
from flaxsent.evaluation.report import measure
from flaxsent.evaluation.tables import changes, table, to_json
from tests.evaluation.conftest import MULTI, REGRESSION, config_of, drawn, run


def test_what_has_no_meaning_is_null_and_a_dash():
    one = measure(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32), config_of(**REGRESSION))
    told = to_json(one)
    assert (told["pearson"], told["spearman"], told["mean_squared_error"]) == (None, None, 0)
    assert "pearson             –" in table(one)


def test_table_has_the_figures_the_labels_and_the_confusion_matrix():
    logits, labels = drawn(1.0, num_texts=200, num_labels=3)
    report = measure(logits, labels, config_of(id2label={"0": "a", "1": "b\x1b[2J\n" + "b" * 40, "2": "c"}))
    told = table(report)
    heading, *blocks = told.split("\n\n")
    assert heading == "200 texts, single label classification"
    assert blocks[0].splitlines()[0].split() == ["accuracy", f"{report.figures['accuracy']:.4f}"]
    assert [line.split()[-1] for line in blocks[1].splitlines()] == ["texts", *map(str, np.bincount(labels).tolist())]
    assert blocks[2].startswith("true label \\ predicted  ")
    assert [[int(cell) for cell in line.split()[-3:]] for line in blocks[2].splitlines()[1:]] == report.confusion
    assert told.replace("\n", "").isprintable(), "labels move no cursor"
    assert max(map(len, told.splitlines())) < 80


def test_a_matrix_too_wide_for_a_terminal_is_left_to_json():
    logits, labels = drawn(1.0, num_texts=50, num_labels=30)
    report = measure(logits, labels, config_of(num_labels=30))
    assert table(report).endswith("The confusion matrix of 30 labels is too wide for a table; --json has it.")
    assert np.shape(to_json(report)["confusion"]) == (30, 30)


def test_macro_average_precision_leaves_out_labels_without_texts_and_says_how_many():
    logits, _ = drawn(1.0, num_texts=50)
    targets = (logits > 0).astype(np.float32)
    targets[:, 1:3] = 0
    report = measure(logits, targets, config_of(num_labels=4, **MULTI))
    told = to_json(report)
    assert (told["macro_average_precision"], told["num_labels_without_texts"]) == (1, 2), "the others rank perfectly"
    each = [one["average_precision"] for one in told["by_label"].values()]
    assert each == [1, None, None, 1]
    lines = [line.split() for line in table(report).splitlines()]
    assert ["labels", "without", "texts", "2"] in lines
    assert lines[-3][3:] == ["0.0000", "–", "0"], "F1 of a label that is only given wrongly"
    of_none = measure(logits, np.zeros_like(targets), config_of(num_labels=4, **MULTI)).figures
    assert np.isnan([of_none["macro_average_precision"], of_none["micro_average_precision"]]).all()
    assert of_none["num_labels_without_texts"] == 4


def test_changes_are_those_of_what_a_temperature_changes():
    logits, labels = drawn(2.0, num_texts=200)
    config = config_of(num_labels=4)
    before, after = measure(logits, labels, config), measure(logits / 2, labels, config)
    log_losses, errors = ([one.figures[name] for one in (before, after)] for name in ("log_loss", "calibration_error"))
    expected = "log loss {:.4f} → {:.4f}, calibration error {:.4f} → {:.4f}".format(*log_losses, *errors)
    assert changes(before, after) == expected


def test_plot_draws_a_panel_for_each_report(tmp_path):
    logits, labels = drawn(2.0, num_texts=500)
    targets = np.eye(4, dtype=np.float32)[labels]
    reports = {
        "before": measure(logits, labels, config_of(num_labels=4)),
        "calibrated": measure(logits, targets, config_of(num_labels=4, **MULTI)),
    }
    widths = []
    for number in (1, 2):
        plot(dict([*reports.items()][:number]), tmp_path / "a.PNG")
        content = (tmp_path / "a.PNG").read_bytes()
        assert content.startswith(b"\x89PNG")
        widths.append(int.from_bytes(content[16:20]))
    assert widths[1] == 2 * widths[0]
    assert [file.name for file in tmp_path.iterdir()] == ["a.PNG"]


def test_a_picture_is_whole_or_not_there(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    logits, labels = drawn(2.0, num_texts=50)
    report = measure(logits, labels, config_of(num_labels=4))
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.svg"):
        plot({"reliability": report}, tmp_path / "a.svg")
    assert not [*tmp_path.iterdir()]


def test_matplotlib_that_is_missing_is_told_with_its_command_before_anything_is_computed(capsys, monkeypatch, model):
    monkeypatch.setattr(flaxsent.cli.evaluate.report, "Engine", None)
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    code, _, err = run(capsys, "evaluate", "--model", model()[0], "--data", "data.csv", "--plot", "a.png")
    assert (code, err) == (
        2,
        "flaxsent: error: the reliability diagram needs matplotlib, which is not installed: "
        'pip install "flaxsent[plot]"\n',
    )
