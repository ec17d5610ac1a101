"""Parts of labelled texts: as many of each label as scikit-learn's, equal texts together, the same for a seed."""

import numpy as np
import pytest

from flaxsent.base import FlaxsentError
from flaxsent.data.labels import Examples
from flaxsent.training.splits import folds, select, split, stratify

RNG = np.random.default_rng(0)
ONE = Examples([f"text {n}" for n in range(603)], RNG.choice(4, 603, p=[0.6, 0.3, 0.08, 0.02]).tolist())


def test_folds_have_as_many_of_each_label_as_scikit_learns():
    model_selection = pytest.importorskip("sklearn.model_selection")
    parts = folds(ONE, 5, problem_type="single_label_classification", seed=0)
    labels = np.array(ONE.labels)
    ours = np.array([np.bincount(labels[parts == fold], minlength=4) for fold in range(5)])
    splitter = model_selection.StratifiedKFold(5, shuffle=True, random_state=0)
    theirs = np.array([np.bincount(labels[test], minlength=4) for _, test in splitter.split(labels, labels)])
    # Whatever the order of the folds, a label is in each of them as often as in any other, or once more.
    np.testing.assert_array_equal(np.sort(ours, axis=0), np.sort(theirs, axis=0))
    assert np.ptp(np.bincount(parts)) <= 1


def test_the_parts_are_those_of_the_seed():
    first, again, other = (folds(ONE, 3, problem_type="single_label_classification", seed=seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_a_label_of_several_is_in_each_part_by_its_share_also_a_rare_one():
    hot = RNG.random((1000, 6)) < np.array([0.5, 0.3, 0.1, 0.05, 0.02, 0.01])
    data = Examples([str(n) for n in range(1000)], [tuple(np.flatnonzero(row).tolist()) for row in hot])
    parts = stratify(data, [0.8, 0.2], problem_type="multi_label_classification", seed=0)
    for label in range(6):
        share = (parts[hot[:, label]] == 1).mean()
        assert abs(share - 0.2) <= max(1 / hot[:, label].sum(), 0.02), label
    assert abs((parts == 1).mean() - 0.2) <= 0.02


def test_values_are_in_each_part_from_low_to_high():
    values = RNG.normal(size=500).tolist()
    parts = folds(Examples([str(n) for n in range(500)], values), 5, problem_type="regression", seed=0)
    tenth = np.argsort(np.argsort(values)) // 50
    assert all(np.ptp(np.bincount(parts[tenth == one], minlength=5)) <= 1 for one in range(10))


def test_equal_texts_are_in_one_part():
    texts = [f"text {n % 40}" for n in range(200)]
    data = Examples(texts, [n % 3 for n in range(200)])
    train, dev = split(data, 0.2, problem_type="single_label_classification", seed=0)
    assert sorted([*train, *dev]) == [*range(200)]
    assert not {*select(data, train).texts} & {*select(data, dev).texts}
    assert 20 <= len(dev) <= 60


def test_the_only_text_of_a_label_is_learned_from():
    data = Examples([*"abcdefghijk"], [0] * 10 + [1])
    train, _ = split(data, 0.3, problem_type="single_label_classification", seed=0)
    assert 10 in train


def test_parts_without_texts_and_more_folds_than_texts_are_refused():
    data = Examples(["a", "b", "b"], [0, 1, 0])
    with pytest.raises(FlaxsentError, match="folds=3 are more than the 2 different texts; expected as many at most"):
        folds(data, 3, problem_type="single_label_classification", seed=0)
    with pytest.raises(FlaxsentError, match=r"dev_fraction=0.1 of 3 texts leaves 3 to learn from and 0 for dev"):
        split(data, 0.1, problem_type="single_label_classification", seed=0)
