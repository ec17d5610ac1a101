"""Labels that are most likely wrong: beside cleanlab, on labels that were changed, and from the command line."""

import json

import numpy as np
import pytest

from flaxsent.evaluation import suspects
from tests.evaluation.cleanlab_golden import FILE, cases, found_by_cleanlab
from tests.evaluation.conftest import MULTI, REGRESSION, TEXTS, figures, run, write_csv

GOLDEN = json.loads(FILE.read_text())
LABELS = ["LABEL_0", "LABEL_1", "LABEL_2"]


def same_but_for_ties(ours, theirs, scores, labels):
    """The same texts, in an order of the same margins: equal margins have no order."""
    margins = suspects._margins(scores, labels)
    assert sorted(ours) == sorted(theirs)
    np.testing.assert_allclose(margins[ours], margins[theirs], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", GOLDEN)
def test_suspects_are_those_of_cleanlab(name):
    scores, labels = cases()[name]
    same_but_for_ties(suspects.find(scores, labels).tolist(), GOLDEN[name], scores, labels)


def test_cleanlab_still_finds_what_the_file_says():
    pytest.importorskip("cleanlab")
    for name, case in cases().items():
        same_but_for_ties(found_by_cleanlab(*case), GOLDEN[name], *case)


def test_cases_are_worth_their_names():
    assert GOLDEN.keys() == cases().keys()
    assert min(map(len, GOLDEN.values())) > 0
    assert cases()["a label that no text has"][1].max() == 2


# The command line.


@pytest.fixture
def labelled(model, tmp_path):
    """A model's own best labels, and two that were changed where it is most certain of the label that most have."""
    folder, classifier, scores_BC = model()
    labels = scores_BC.argmax(axis=1)
    most = np.bincount(labels).argmax()
    changed = np.argsort(-scores_BC[:, most])[:2].tolist()
    labels[changed] = [(most + 1) % 3, (most + 2) % 3]
    assert set(labels) == {0, 1, 2}
    file = write_csv(tmp_path / "data.csv", [(text, LABELS[label]) for text, label in zip(TEXTS, labels, strict=True)])
    return folder, classifier, scores_BC, changed, file


def test_changed_labels_are_suspect(capsys, labelled):
    folder, _, scores_BC, changed, file = labelled
    told = figures(capsys, folder, file, "--suspects", 9)
    assert sorted(one["record"] for one in told["suspects"]) == sorted(index + 2 for index in changed)
    assert told["num_suspects"] == 2
    for one in told["suspects"]:
        index = one["record"] - 2
        assert one["text"] == TEXTS[index]
        assert one["suggested"] == LABELS[scores_BC[index].argmax()]
        own = scores_BC[index, LABELS.index(one["label"])]
        np.testing.assert_allclose(one["margin"], own - scores_BC[index].max(), atol=1e-5)
    assert len(figures(capsys, folder, file, "--suspects", 1)["suspects"]) == 1
    code, out, err = run(capsys, "evaluate", "--model", folder, "--data", file, "--suspects", 1)
    assert (code, err) == (0, "")
    heading, columns, row = out.splitlines()[-3:]
    assert heading == "2 labels are suspect; the first 1:"
    assert columns.split() == ["row", "label", "suggested", "margin", "text"]
    assert row.split()[0] == str(told["suspects"][0]["record"])


def test_no_suspect_is_said_too(capsys, labelled, tmp_path):
    folder, _, scores_BC, _, _ = labelled
    rows = [(text, LABELS[label]) for text, label in zip(TEXTS, scores_BC.argmax(axis=1), strict=True)]
    _, out, _ = run(
        capsys, "evaluate", "--model", folder, "--data", write_csv(tmp_path / "b.csv", rows), "--suspects", 3
    )
    assert out.splitlines()[-1] == "0 labels are suspect."


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_scores_of_a_file_give_what_the_model_gives(capsys, labelled, tmp_path, suffix):
    """What `classify --all-scores` wrote; with the model for its labels, or with those of the label column."""
    folder, _, _, _, file = labelled
    by_model = figures(capsys, folder, file, "--suspects", 9)
    # The label column is in the way of the added one.
    texts = write_csv(tmp_path / "texts.csv", [(text,) for text in TEXTS], ["text"])
    scores = tmp_path / f"scores.{suffix}"
    code, *_ = run(capsys, "classify", "--model", folder, "--input", texts, "--output", scores, "--all-scores")
    assert code == 0
    for model in (["--model", folder], []):
        code, out, err = run(capsys, "evaluate", *model, "--data", file, "--scores", scores, "--suspects", 9, "--json")
        assert (code, err) == (0, "")
        told = json.loads(out)
        assert [one["record"] for one in told["suspects"]] == [one["record"] for one in by_model["suspects"]]
        assert told["confusion"] == by_model["confusion"]
        np.testing.assert_allclose(told["log_loss"], by_model["log_loss"], rtol=1e-4)  # scores of six digits


@pytest.mark.parametrize("changes", [MULTI, REGRESSION], ids=["multi-label", "regression"])
def test_scores_of_other_kinds_give_what_the_model_gives(capsys, model, tmp_path, changes):
    folder, classifier, scores_BC = model(**changes)
    labels = [[index for index in range(3) if row[index] > 0.5] for row in scores_BC] if changes == MULTI else scores_BC
    rows = [
        (text, json.dumps(label) if changes == MULTI else float(label[0]) / 2)
        for text, label in zip(TEXTS, labels, strict=True)
    ]
    file = write_csv(tmp_path / "data.csv", rows)
    given = [(text, *row.tolist()) for text, row in zip(TEXTS, scores_BC, strict=True)]
    scores = write_csv(tmp_path / "scores.csv", given, ["text", *classifier.config.labels])
    expected = figures(capsys, folder, file)
    told = figures(capsys, folder, file, "--scores", scores)
    assert told.keys() == expected.keys()
    for name in ("log_loss", "accuracy", "pearson", "mean_squared_error"):
        np.testing.assert_allclose(told.get(name, 0), expected.get(name, 0), rtol=1e-4)


def test_mistakes_are_one_line(capsys, labelled, tmp_path, model):
    folder, _, scores_BC, _, file = labelled

    def given(texts=TEXTS, scores=scores_BC, columns=LABELS):
        rows = [(text, *map(str, row)) for text, row in zip(texts, scores, strict=False)]
        return write_csv(tmp_path / "scores.csv", rows, ["text", *columns])

    nan = scores_BC.copy()
    nan[3, 0] = np.nan
    for make, told in (
        (lambda: given(columns=["a", "b", "c"]), "expected LABEL_0 and LABEL_1 and LABEL_2"),
        (lambda: given(texts=TEXTS[::-1]), "row 2 has another text than"),
        (lambda: given(texts=TEXTS[:-1]), "has 59 rows, and"),
        (lambda: given(texts=[*TEXTS, "more"], scores=[*scores_BC, scores_BC[0]]), "has 61 rows, and"),
        (lambda: given(scores=2 * scores_BC), "expected probabilities with the sum 1"),
        (lambda: given(scores=np.array([["x"] * 3] * 60)), "row 2 has the scores x, x, x; expected probabilities"),
        (lambda: given(scores=nan), "row 5 has the scores nan"),
        (lambda: tmp_path / "none.csv", "none.csv"),
    ):
        code, out, err = run(capsys, "evaluate", "--model", folder, "--data", file, "--scores", make())
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert told in err
    for arguments, told in (
        (["--suspects", 0], "--suspects 0 is less than 1"),
        (["--scores", given(), "--by-length"], "--by-length needs a model"),
        (["--scores", given(), "--calibrate"], "--calibrate needs a model"),
    ):
        code, out, err = run(capsys, "evaluate", "--model", folder, "--data", file, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert told in err
    for changes in (MULTI, REGRESSION):
        code, _, err = run(capsys, "evaluate", "--model", model(**changes)[0], "--data", file, "--suspects", 1)
        assert code == 2
        assert "--suspects compares one label a text" in err


def test_an_empty_class_and_a_text_that_nothing_is_confident_of():
    scores = np.array([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.34, 0.33, 0.33]])
    labels = np.array([0, 0, 1, 1])
    # Thresholds 0.7 and 0.515: no text is confidently another label than its own.
    assert suspects.find(scores, labels).tolist() == []
