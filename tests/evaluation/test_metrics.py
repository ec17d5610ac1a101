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
    num_labels, best = scores.shape[1], scores.argmax(axis=1)
    confusion = metrics.confusion_matrix(scores, labels)
    counts = metrics.count_confused(confusion)
    np.testing.assert_array_equal(confusion, sklearn.metrics.confusion_matrix(labels, best, labels=range(num_labels)))
    theirs = sklearn.metrics.precision_recall_fscore_support(labels, best, labels=range(num_labels), zero_division=0)
    for ours, their in zip((counts.precision, counts.recall, counts.f1, counts.support), theirs, strict=True):
        np.testing.assert_allclose(ours, their, rtol=0, atol=TOLERANCE)
    assert metrics.matthews(confusion) == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, best), abs=TOLERANCE)
    loss = sklearn.metrics.log_loss(labels, scores, labels=range(num_labels))
    assert metrics.log_loss(scores, labels) == pytest.approx(loss, rel=LOSS_TOLERANCE)


@single
def test_calibration_is_the_formula_of_guo(scores, labels):
    """Written out, bin by bin, from section 2 of the paper; its bins are open below and closed above."""
    error, confidence, right = 0.0, scores.max(axis=1).astype(np.float64), scores.argmax(axis=1) == labels
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            error += inside.sum() / len(labels) * abs(right[inside].mean() - confidence[inside].mean())
    found = metrics.calibration_error(metrics.reliability(scores, labels))
    assert found == pytest.approx(error, abs=TOLERANCE)


def test_a_score_on_the_edge_of_a_bin_belongs_to_the_lower_one():
    scores = np.array([[0.8, 0.2], [0.6, 0.4], [1.0, 0.0]])  # 12/15, 9/15, 15/15
    bins = metrics.reliability(scores, np.array([0, 0, 0]))
    assert [index for index, one in enumerate(bins) if one.num_texts] == [8, 11, 14]
    assert bins[8] == pytest.approx((8 / 15, 9 / 15, 1, 0.6, 1))


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
    counts, predicted, truth = metrics.count_labels(scores, targets), scores > 0.5, targets.astype(int)
    theirs = sklearn.metrics.precision_recall_fscore_support(truth, predicted, zero_division=0)
    for ours, their in zip((counts.precision, counts.recall, counts.f1, counts.support), theirs, strict=True):
        np.testing.assert_allclose(ours, their, rtol=0, atol=TOLERANCE)
    micro = sklearn.metrics.f1_score(truth, predicted, average="micro", zero_division=0)
    assert counts.micro_f1 == pytest.approx(micro, abs=TOLERANCE)
    flat = sklearn.metrics.log_loss(truth.ravel(), scores.ravel(), labels=[0, 1])
    assert metrics.log_loss(*metrics.decisions(scores, targets)) == pytest.approx(flat, rel=LOSS_TOLERANCE)
    ours = [metrics.average_precision(*columns) for columns in zip(scores.T, targets.T, strict=True)]
    theirs = np.atleast_1d(sklearn.metrics.average_precision_score(truth, scores, average=None))
    has_positive = targets.any(axis=0)
    np.testing.assert_allclose(np.array(ours)[has_positive], theirs[has_positive], rtol=0, atol=TOLERANCE)
    assert np.isnan(np.array(ours)[~has_positive]).all(), "scikit-learn warns there and gives 0"
    if targets.any():
        micro = sklearn.metrics.average_precision_score(truth, scores, average="micro")
        assert metrics.average_precision(scores.ravel(), targets.ravel()) == pytest.approx(micro, abs=TOLERANCE)


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
def test_correlations_are_those_of_the_definition(values, targets):
    """Of the values and of their ranks, by NumPy."""
    ranks = [scipy.stats.rankdata(series) for series in (values, targets)]
    assert metrics.correlations(values, targets) == pytest.approx(
        {"pearson": np.corrcoef(values, targets)[0, 1], "spearman": np.corrcoef(*ranks)[0, 1]}, abs=1e-10
    )


@pytest.mark.parametrize(
    ("values", "targets"),
    [(np.arange(5.0), np.full(5, 0.1)), (np.full(5, 0.1), np.arange(5.0)), (np.ones(1), np.ones(1))],
    ids=["constant targets", "constant values", "one text"],
)
def test_a_correlation_that_has_no_meaning_is_nan_without_a_warning(values, targets):
    assert all(np.isnan(value) for value in metrics.correlations(values, targets).values())


def test_values_that_are_nearly_constant_correlate_without_a_warning():
    assert metrics.correlations(1 + 1e-15 * np.arange(5.0), np.arange(5.0))["spearman"] > 0.9
