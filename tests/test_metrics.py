"""Every figure against scikit-learn and SciPy on random scores, and on those that are awkward."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from flaxsent.evaluation import metrics

# float64 sums of a few hundred terms in another order.
TOLERANCE = 1e-12
# Of log loss, relative: scikit-learn takes logarithms in float32, as the scores are.
LOSS_TOLERANCE = 1e-6


def random_scores(num_texts, num_labels, seed=0):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((num_texts, num_labels))
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32)


def random_labels(num_texts, labels, seed=1):
    return np.random.default_rng(seed).choice(labels, num_texts)


def tied_scores(num_texts, num_labels):
    """Of equal scores in a row, and the same rows again and again."""
    rows = np.array([[0.5, 0.5, 0, 0], [0.25] * 4, [0, 0, 0.5, 0.5], [1, 0, 0, 0]], np.float32)[:, :num_labels]
    return np.tile(rows, (num_texts // 4 + 1, 1))[:num_texts]


SINGLE = {
    "two labels": (random_scores(300, 2), random_labels(300, 2)),
    "five labels": (random_scores(500, 5), random_labels(500, 5)),
    "a label that the data has not": (random_scores(200, 4), random_labels(200, [0, 1, 3])),
    "a label that neither has": (
        np.concatenate([random_scores(50, 2), np.zeros((50, 1), np.float32)], axis=1),
        random_labels(50, 2),
    ),
    "one prediction for all": (np.tile(np.array([[0.2, 0.7, 0.1]], np.float32), (90, 1)), random_labels(90, 3)),
    "one label and one prediction": (np.array([[0.9, 0.1]] * 7, np.float32), np.zeros(7, np.int64)),
    "ties": (tied_scores(101, 4), random_labels(101, 4)),
    "one row": (random_scores(1, 3), np.array([2])),
    "scores of 0 and 1": (np.eye(3, dtype=np.float32)[random_labels(60, 3)], random_labels(60, 3, seed=2)),
}
single = pytest.mark.parametrize(("scores", "labels"), SINGLE.values(), ids=SINGLE)


@single
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_figures_of_one_label_are_those_of_scikit_learn(scores, labels):
    sums, num_labels = metrics.label_sums(scores, labels), scores.shape[1]
    best, every = scores.argmax(axis=1), range(num_labels)
    assert sums.num_texts == len(labels)
    assert sums.accuracy == pytest.approx(sklearn.metrics.accuracy_score(labels, best), abs=TOLERANCE)
    theirs = sklearn.metrics.precision_recall_fscore_support(labels, best, labels=every, zero_division=0)
    for ours, their in zip((sums.precision, sums.recall, sums.f1, sums.support), theirs, strict=True):
        np.testing.assert_allclose(ours, their, rtol=0, atol=TOLERANCE)
    macro = sklearn.metrics.f1_score(labels, best, average="macro")
    assert sums.macro_f1 == pytest.approx(macro, abs=TOLERANCE)
    assert sums.matthews == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, best), abs=TOLERANCE)
    assert sums.log_loss == pytest.approx(sklearn.metrics.log_loss(labels, scores, labels=every), rel=LOSS_TOLERANCE)
    np.testing.assert_array_equal(sums.confusion, sklearn.metrics.confusion_matrix(labels, best, labels=every))


@single
def test_calibration_is_the_formula_of_guo(scores, labels):
    """Written out, bin by bin, from section 2 of the paper; its bins are open below and closed above."""
    error, confidence, right = 0.0, scores.max(axis=1).astype(np.float64), scores.argmax(axis=1) == labels
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            error += inside.sum() / len(labels) * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.label_sums(scores, labels).calibration_error == pytest.approx(error, abs=TOLERANCE)


def test_a_score_on_the_edge_of_a_bin_belongs_to_the_lower_one():
    scores = np.array([[0.8, 0.2], [0.6, 0.4], [1.0, 0.0]])  # 12/15, 9/15, 15/15
    sums = metrics.label_sums(scores, np.array([0, 0, 0]))
    assert np.flatnonzero(sums.num_in_bin).tolist() == [8, 11, 14]


@single
def test_sums_of_batches_add_to_that_of_all(scores, labels):
    cuts = [len(labels) // 3, len(labels) // 3, len(labels) // 2]  # one batch is empty
    parts = zip(np.split(scores, cuts), np.split(labels, cuts), strict=True)
    first, *rest = [metrics.label_sums(*part) for part in parts]
    total, whole = sum(rest, first), metrics.label_sums(scores, labels)
    for name in ("confusion", "num_in_bin", "num_right_in_bin"):
        np.testing.assert_array_equal(getattr(total, name), getattr(whole, name))
    for name in ("accuracy", "macro_f1", "matthews", "log_loss", "calibration_error"):
        assert getattr(total, name) == pytest.approx(getattr(whole, name), abs=TOLERANCE)


def random_targets(num_texts, num_labels, share=0.3, seed=3):
    return (np.random.default_rng(seed).random((num_texts, num_labels)) < share).astype(np.float32)


def uniform(num_texts, num_labels):
    return np.random.default_rng(5).random((num_texts, num_labels)).astype(np.float32)


MULTI = {
    "five labels": (uniform(300, 5), random_targets(300, 5)),
    "a label that no text has": (uniform(80, 3), random_targets(80, 3) * np.array([1, 0, 1], np.float32)),
    "a label that all have": (uniform(80, 3), np.maximum(random_targets(80, 3), np.array([0, 1, 0], np.float32))),
    "no label at all": (uniform(40, 3), np.zeros((40, 3), np.float32)),
    "none predicted": (uniform(40, 3) / 2, random_targets(40, 3)),
    "one score for all": (np.full((50, 4), 0.75, np.float32), random_targets(50, 4)),
    "ties": (uniform(200, 3).round(1), random_targets(200, 3)),
    "one row": (uniform(1, 4), random_targets(1, 4, share=0.5)),
    "scores of 0 and 1": (uniform(60, 3).round(), random_targets(60, 3)),
}
multi = pytest.mark.parametrize(("scores", "targets"), MULTI.values(), ids=MULTI)


@multi
@pytest.mark.filterwarnings("ignore:No positive class found in y_true")
def test_figures_of_several_labels_are_those_of_scikit_learn(scores, targets):
    sums, predicted, truth = metrics.multi_label_sums(scores, targets), scores > 0.5, targets.astype(int)
    assert sums.num_texts == len(targets)
    assert sums.accuracy == pytest.approx(sklearn.metrics.accuracy_score(truth, predicted), abs=TOLERANCE)
    theirs = sklearn.metrics.precision_recall_fscore_support(truth, predicted, zero_division=0)
    for ours, their in zip((sums.precision, sums.recall, sums.f1, sums.support), theirs, strict=True):
        np.testing.assert_allclose(ours, their, rtol=0, atol=TOLERANCE)
    for average, ours in (("macro", sums.macro_f1), ("micro", sums.micro_f1)):
        their = sklearn.metrics.f1_score(truth, predicted, average=average, zero_division=0)
        assert ours == pytest.approx(their, abs=TOLERANCE)
    flat = sklearn.metrics.log_loss(truth.ravel(), scores.ravel(), labels=[0, 1])
    assert sums.decisions.log_loss == pytest.approx(flat, rel=LOSS_TOLERANCE)
    each = [metrics.average_precision(*columns) for columns in zip(scores.T, targets.T, strict=True)]
    for average, ours in {
        None: each,
        "macro": np.mean(each),
        "micro": metrics.average_precision(scores.ravel(), targets.ravel()),
    }.items():
        their = sklearn.metrics.average_precision_score(truth, scores, average=average)
        np.testing.assert_allclose(ours, their, rtol=0, atol=TOLERANCE)


@multi
def test_sums_of_several_labels_add(scores, targets):
    half = len(targets) // 2
    total = metrics.multi_label_sums(scores[:half], targets[:half]) + metrics.multi_label_sums(
        scores[half:], targets[half:]
    )
    whole = metrics.multi_label_sums(scores, targets)
    for name in ("num_texts", "accuracy", "macro_f1", "micro_f1"):
        assert getattr(total, name) == getattr(whole, name)
    assert total.decisions.log_loss == pytest.approx(whole.decisions.log_loss, abs=TOLERANCE)
    assert total.decisions.calibration_error == pytest.approx(whole.decisions.calibration_error, abs=TOLERANCE)


RNG = np.random.default_rng(7)
SERIES = {
    "noise": (RNG.standard_normal(200), RNG.standard_normal(200)),
    "a relation": (x := RNG.standard_normal(200), x**3 + RNG.standard_normal(200)),
    "far from 0": (1e6 + RNG.standard_normal(100), 1e6 + RNG.standard_normal(100)),
    "ties": (RNG.integers(0, 5, 300).astype(float), RNG.integers(0, 3, 300).astype(float)),
    "opposite": (np.arange(10.0), -np.arange(10.0)),
    "two rows": (np.array([1.0, 2.0]), np.array([5.0, 3.0])),
}


@pytest.mark.parametrize(("values", "targets"), SERIES.values(), ids=SERIES)
def test_correlations_are_those_of_scipy(values, targets):
    assert metrics.pearson(values, targets) == pytest.approx(scipy.stats.pearsonr(values, targets)[0], abs=1e-10)
    assert metrics.spearman(values, targets) == pytest.approx(scipy.stats.spearmanr(values, targets)[0], abs=TOLERANCE)


@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
def test_correlation_with_a_constant_is_nan_as_in_scipy():
    values, constant = np.arange(5.0), np.full(5, 0.1)
    for ours, theirs in ((metrics.pearson, scipy.stats.pearsonr), (metrics.spearman, scipy.stats.spearmanr)):
        assert np.isnan([ours(values, constant), theirs(values, constant)[0], ours(values[:1], values[:1])]).all()
