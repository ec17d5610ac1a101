"""Thresholds of labels: the best F1 there is, stored with the labels, and what `decode` and `classify` make of them."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import sklearn.metrics

import flaxsent
from flaxsent.base import FlaxsentError, Prediction
from flaxsent.classifier import with_thresholds
from flaxsent.models.config import read_config, to_json
from flaxsent.parity.random_checkpoints import CONFIGS
from flaxsent.postprocessing import decode, tune_thresholds

THREE = {"id2label": {str(index): f"LABEL_{index}" for index in range(3)}}
MULTI = {"problem_type": "multi_label_classification"}


def config_of(**changes):
    return read_config(json.dumps({"model_type": "bert", **CONFIGS["bert"], **THREE, **MULTI, **changes}))


def drawn(num_texts, num_labels, *, share, seed=0, digits=None):
    """Targets, and scores that say something of them; a few digits make many of them equal."""
    rng = np.random.default_rng(seed)
    targets = rng.random((num_texts, num_labels)) < share
    scores = 1 / (1 + np.exp(-(rng.standard_normal(targets.shape) * 2 + 2 * targets - 2)))
    # No label is above a threshold with a score of 0.
    return (scores if digits is None else scores.round(digits).clip(0.1)).astype(np.float32), targets.astype(np.float32)


@pytest.mark.parametrize(
    ("num_texts", "share", "digits"), [(1, 0.5, None), (2, 0.5, None), (100, 0.3, None), (300, 0.05, 1), (50, 0.9, 2)]
)
def test_a_tuned_threshold_has_the_best_f1_of_all(num_texts, share, digits):
    scores, targets = drawn(num_texts, 7, share=share, digits=digits)
    for label, threshold in enumerate(tune_thresholds(scores, targets)):
        own, true = scores[:, label], targets[:, label]
        found = sklearn.metrics.f1_score(true, own > np.float64(threshold), zero_division=0)
        slow = [sklearn.metrics.f1_score(true, own >= one, zero_division=0) for one in np.unique(own) if one > 0]
        assert found == max(slow, default=0)
        assert 0 < threshold < 1
        assert (own != threshold).all(), "it is between two scores"
        if true.any():
            precision, recall, _ = sklearn.metrics.precision_recall_curve(true, own)
            curve = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
            assert found == pytest.approx(curve.max(), abs=1e-9)
        else:
            assert threshold == 0.5, "nothing is known of it"


def test_of_thresholds_that_are_as_good_the_nearest_to_one_half_is_taken():
    scores = np.array([[0.9], [0.6], [0.4], [0.1]])  # above 0.5: 1 of 1 and 1 of 2; above 0.25: 2 of 3 and 2 of 2
    assert tune_thresholds(scores, np.array([[1], [0], [1], [0]])) == (0.25,)
    assert tune_thresholds(np.array([[0.9], [0.1]]), np.array([[1], [0]])) == (0.5,)
    # 2 · 1 / (1 + 2) = 2 · 2 / (4 + 2): above 0.75, or all of the four.
    scores = np.array([[0.9], [0.6], [0.58], [0.4]])
    assert tune_thresholds(scores, np.array([[1], [0], [0], [1]])) == (0.75,)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_scores_that_are_all_0_or_1_have_a_threshold(value):
    (threshold,) = tune_thresholds(np.full((3, 1), value, np.float32), np.ones((3, 1)))
    assert threshold == 0.5


def test_decode_gives_each_label_above_its_threshold_best_first():
    probs = np.array([[0.3, 0.9, 0.6], [0.1, 0.2, 0.6], [0.21, 0.5, 0.61]], np.float32)
    found = decode(probs, labels="abc", thresholds=(0.2, 0.5, 0.605))
    assert [one.labels for one in found] == [("b", "a"), (), ("c", "a")]
    assert found[1] == Prediction((), ())
    assert (found[1].label, found[1].score) == (None, None)
    for found in (decode(probs, labels="abc", thresholds=(0.9,) * 3, top_k=1), decode(probs, labels="abc")):
        assert [one.labels for one in found] == [("b",), ("c",), ("c",)]
    with pytest.raises(FlaxsentError, match="top_k=0 is no number of labels"):
        decode(probs, labels="abc", top_k=0)


def test_thresholds_are_stored_with_the_labels_and_read_again(tiny_folder, tmp_path):
    classifier = flaxsent.load(tiny_folder("bert", num_hidden_layers=1, **MULTI), backend="native")
    thresholds = (0.125, 0.3333333333333333, 0.9)
    flaxsent.save(with_thresholds(classifier, thresholds), tmp_path / "model")
    stored = json.loads((tmp_path / "model" / "config.json").read_text())["id2threshold"]
    assert stored == {"0": 0.125, "1": 0.3333333333333333, "2": 0.9}
    again = flaxsent.load(tmp_path / "model", backend="native")
    assert again.config.label_thresholds == again.config.thresholds == thresholds
    texts = ["so good", "bad", "i hate the film"]
    scores = np.asarray(again.predict(again.params, again.tokenize(texts)))
    expected = [{again.config.labels[index] for index in np.flatnonzero(row > thresholds)} for row in scores]
    assert [{*one.labels} for one in flaxsent.classify(texts, again)] == expected
    assert [len(one.labels) for one in flaxsent.classify(texts, again, top_k=2)] == [2, 2, 2]
    # What they are of is another model then.
    assert (
        flaxsent.load(
            tmp_path / "model", labels=["a", "b", "c"], problem_type=MULTI["problem_type"]
        ).config.label_thresholds
        is None
    )
    flaxsent.save(with_thresholds(again, None), tmp_path / "model")
    assert "id2threshold" not in json.loads((tmp_path / "model" / "config.json").read_text())


@pytest.mark.torch
def test_pytorchs_config_keeps_thresholds_and_the_model_is_the_same(tiny_folder, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification

    source = tiny_folder("bert", num_hidden_layers=1, **MULTI)
    classifier = with_thresholds(flaxsent.load(source, backend="native"), (0.1, 0.2, 0.3))
    flaxsent.save(classifier, tmp_path / "model")
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values()), info
    tokens = classifier.tokenize(["so good"])
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor(tokens.input_ids)).logits.numpy()
    # Logits in float32, as in tests/models.
    np.testing.assert_allclose(theirs, classifier.forward(classifier.params, tokens), atol=1e-4)
    model.save_pretrained(tmp_path / "theirs")
    config = read_config((tmp_path / "theirs" / "config.json").read_text())
    assert config.label_thresholds == (0.1, 0.2, 0.3)


def test_scores_that_are_no_probabilities_are_compared_with_the_logit():
    config = config_of(function_to_apply="none", id2threshold={"0": 0.5, "1": 0.731058578630005, "2": 0.25})
    assert config.score_thresholds == pytest.approx((0, 1, -np.log(3)))
    assert config_of(function_to_apply="softmax").score_thresholds is None
    assert config_of(problem_type="regression", id2label={"0": "x"}).thresholds is None
    assert config_of().score_thresholds == (0.5,) * 3


BAD = {
    "list": [0.5] * 3,
    "too few": {"0": 0.5},
    "one": {"0": 0.5, "1": 0.5, "2": 1},
    "zero": {"0": 0.5, "1": 0.5, "2": 0},
    "text": {"0": 0.5, "1": 0.5, "2": "a"},
    "another index": {"0": 0.5, "1": 0.5, "3": 0.5},
    "bool": {"0": 0.5, "1": 0.5, "2": True},
    "nan": {"0": 0.5, "1": 0.5, "2": float("nan")},
    "number": 0.5,
    "long": "x" * 999,
}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_thresholds_that_are_none_are_refused_in_one_line(value):
    with pytest.raises(FlaxsentError, match=r"has id2threshold=.*; expected a number between 0 and 1 for each") as err:
        config_of(id2threshold=value)
    assert len(str(err.value)) < 250


def test_a_model_of_one_label_keeps_none():
    config = config_of(problem_type="single_label_classification", id2threshold={"0": 0.1})
    assert config.label_thresholds is config.thresholds is None
    assert "id2threshold" not in to_json(config, dtype="float32")


@pytest.mark.parametrize("thresholds", [(0.5,), (0.5, 0.5, 0.0), (0.5, 0.5, 1.0), (0.5, 0.5, float("nan"))])
def test_with_thresholds_refuses_what_is_none(tiny_folder, thresholds):
    classifier = flaxsent.load(tiny_folder("bert", num_hidden_layers=1, **MULTI), backend="native")
    with pytest.raises(FlaxsentError, match="expected 3, each between 0 and 1"):
        with_thresholds(classifier, thresholds)
    other = dataclasses.replace(classifier.config, problem_type="single_label_classification")
    with pytest.raises(FlaxsentError, match="thresholds are for several labels at once"):
        with_thresholds(dataclasses.replace(classifier, config=other), (0.5,) * 3)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "digits"), [(0.3, None), (0.05, 1), (0.5, 2)])
def test_thresholds_of_all_labels_together_have_the_best_micro_f1(share, digits):
    scores, targets = drawn(12, 3, share=share, digits=digits)
    targets[0] = 1
    thresholds = tune_thresholds(scores, targets, average="micro")
    found = sklearn.metrics.f1_score(targets, scores > np.array(thresholds), average="micro", zero_division=0)
    every = [(*np.unique(own), 1.0) for own in scores.T]
    slow = [
        sklearn.metrics.f1_score(targets, scores >= np.array(one), average="micro", zero_division=0)
        for one in itertools.product(*every)
    ]
    assert found == pytest.approx(max(slow), abs=1e-12)
    assert all(0 < one < 1 for one in thresholds)
