"""Ensembles and Monte Carlo dropout beside a plain loop over members or keys, with the measures in float64 by SciPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import flaxsent
from flaxsent.engine import Engine
from flaxsent.packing import pack
from flaxsent.parity.random_checkpoints import random_checkpoint
from flaxsent.transforms import (
    disagreement,
    ensemble,
    entropy,
    join,
    monte_carlo_dropout,
    mutual_information,
    soup,
    spread,
    stack,
    uncertainty,
)
from tests.conftest import AWKWARD_TEXTS, counted_compilations, texts_of_lengths

# The same sums in another order: scores of size 1. The measures are sums and logarithms of these.
TOLERANCE = 2e-6

SHAPES = {"row_lengths": [64], "tokens_per_step": 256, "steps_per_window": 4}
SCORE_FUNCTIONS = {"softmax": "single_label_classification", "sigmoid": "multi_label_classification"}


def drawn_again(classifier, seed):
    """Another member of the same architecture: all weights a bit elsewhere, so that the members do not agree."""
    rng = np.random.default_rng(seed)

    def move(leaf):
        leaf = np.asarray(leaf)
        return jnp.asarray(leaf + 0.3 * leaf.std() * rng.standard_normal(leaf.shape, np.float32))

    return dataclasses.replace(classifier, params=jax.tree.map(move, classifier.params))


def make_members(folder):
    first = flaxsent.load(folder, backend="native")
    return [first, drawn_again(first, 1), drawn_again(first, 2)]


@pytest.fixture(scope="module")
def members(tiny_folder):
    """Of one layer: dropout takes long to compile."""
    return make_members(tiny_folder("bert", num_hidden_layers=1))


def mixed_texts(number, seed=0):
    lengths = np.minimum(np.random.default_rng(seed).geometric(0.07, number), 38)
    return [*AWKWARD_TEXTS, *texts_of_lengths(lengths.tolist(), seed), ("so", "good")]


def measured(probs_BNC, score_function):
    """The measures of float64 probabilities, text by text."""
    is_several = score_function == "sigmoid"
    found = {"scores": [], "spread": [], "entropy": [], "mutual_information": [], "disagreement": []}
    for probs_NC in np.asarray(probs_BNC, np.float64):
        found["scores"].append(probs_NC.mean(axis=0))
        found["spread"].append(probs_NC.std(axis=0))
        if is_several:  # each label is a coin of its own
            mean = scipy.stats.entropy(np.stack([probs_NC.mean(0), 1 - probs_NC.mean(0)]))
            own = [scipy.stats.entropy(np.stack([probs_C, 1 - probs_C])) for probs_C in probs_NC]
            votes = (probs_NC > 0.5).sum(axis=0)
            found["disagreement"].append(np.minimum(votes, len(probs_NC) - votes) / len(probs_NC))
        else:
            mean = scipy.stats.entropy(probs_NC.mean(axis=0))
            own = [scipy.stats.entropy(probs_C) for probs_C in probs_NC]
            votes = np.bincount(probs_NC.argmax(axis=-1))
            found["disagreement"].append(1 - votes.max() / votes.sum())
        found["entropy"].append(mean)
        found["mutual_information"].append(mean - np.mean(own, axis=0))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("score_function", SCORE_FUNCTIONS)
def test_an_ensemble_in_the_engine_equals_a_loop_over_its_members(tiny_folder, score_function):
    members = make_members(tiny_folder("bert", problem_type=SCORE_FUNCTIONS[score_function]))
    assert members[0].config.score_function == score_function
    texts = mixed_texts(60)
    loop = []
    for member in members:
        with Engine(member, **SHAPES) as engine:
            loop.append(engine(texts))
    scores = ensemble(members[0].scores)

    def both(params, tokens, num_segments):
        measures = uncertainty(scores, score_function=score_function)
        return scores(params, tokens, num_segments), measures(params, tokens, num_segments)

    with Engine(join(members), function=both, **SHAPES) as engine:
        together, ours = engine(texts)
    assert together.shape == (len(texts), 3, members[0].config.num_labels)
    np.testing.assert_allclose(together, np.stack(loop, axis=1), rtol=0, atol=TOLERANCE)
    expected = measured(np.stack(loop, axis=1), score_function)
    assert np.max(expected["disagreement"]) > 0.3, "the members do not agree on all texts"
    assert np.max(expected["mutual_information"]) > 0.05
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(ours, name), value, rtol=0, atol=10 * TOLERANCE, err_msg=name)


@pytest.mark.slow
def test_dropout_on_packed_rows_equals_a_loop_over_keys(members):
    classifier, seed, num_samples = members[0], 7, 5
    tokens, _ = pack(classifier.tokenizer.encode(mixed_texts(20)), row_length=64)
    num_segments = int(tokens.segment_ids.max())
    ours = jax.jit(monte_carlo_dropout(classifier.scores, num_samples=num_samples, seed=seed), static_argnums=2)(
        classifier.params, tokens, num_segments
    )
    forward = jax.jit(classifier.forward_packed, static_argnums=2)
    loop = [
        classifier.postprocess(forward(classifier.params, tokens, num_segments, key))
        for key in jax.random.split(jax.random.key(seed), num_samples)
    ]
    np.testing.assert_allclose(ours, np.stack(loop, axis=2), rtol=0, atol=TOLERANCE)
    assert np.std(loop, axis=0).max() > 0.01, "the draws differ"


def test_dropout_in_the_engine_is_pure(members):
    """The same texts and the same seed give the same bits, in another engine too."""
    classifier, texts = members[0], mixed_texts(40)
    found = []
    for _ in range(2):
        function = uncertainty(
            monte_carlo_dropout(classifier.scores, num_samples=3, seed=5),
            score_function=classifier.config.score_function,
        )
        with Engine(classifier, function=function, **SHAPES) as engine:
            found.append(engine(texts))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert found[0].mutual_information.max() > 0.001


def test_dropout_of_a_family_that_does_not_pack(members):
    """Its `forward` gets the keys."""
    keys = jax.random.split(jax.random.key(0), 3)

    def forward(params, tokens, key=None):
        return jax.random.normal(key, (tokens.input_ids.shape[0], 3))

    padded = dataclasses.replace(members[0], forward_packed=None, forward=forward)
    ours = monte_carlo_dropout(padded.logits, num_samples=3)(padded.params, padded.tokenize(["so good", "bad"]), 1)
    np.testing.assert_array_equal(ours[:, 0], np.stack([jax.random.normal(key, (2, 3)) for key in keys], axis=1))


@pytest.mark.parametrize("kind", ["members", "dropout"])
def test_nothing_compiles_after_warmup(members, kind):
    classifier = join(members) if kind == "members" else members[0]
    scores, score_function = classifier.scores, classifier.config.score_function
    function = ensemble(scores) if kind == "members" else monte_carlo_dropout(scores, num_samples=3)
    with Engine(classifier, function=uncertainty(function, score_function=score_function), **SHAPES) as engine:
        engine.warmup()
        with counted_compilations() as compilations:
            engine(mixed_texts(300, seed=3))
        assert compilations == []


def test_the_values_of_regression_have_a_spread_and_nothing_else(tiny_folder):
    first = flaxsent.load(tiny_folder("bert", problem_type="regression"), backend="native")
    pair = [first, drawn_again(first, 1)]
    with Engine(join(pair), function=ensemble(first.scores), **SHAPES) as engine:
        values_BNC = engine(["so good", "bad"])
    np.testing.assert_allclose(
        spread(jnp.asarray(values_BNC)), np.std(values_BNC.astype(np.float64), axis=1), atol=1e-6
    )
    expected = "no probabilities, as of regression, have no entropy; they have a spread"
    with pytest.raises(flaxsent.FlaxsentError, match=expected):
        uncertainty(ensemble(first.scores), score_function="none")
    for measure in (entropy, mutual_information, disagreement):
        with pytest.raises(flaxsent.FlaxsentError, match=expected):
            measure(jnp.asarray(values_BNC), score_function="none")


def test_certain_probabilities_have_no_entropy_and_no_nan():
    probs = jnp.array([[0.0, 1.0], [0.0, 1.0]])
    for score_function in SCORE_FUNCTIONS:
        for measure in (entropy, mutual_information, disagreement):
            assert np.asarray(measure(probs, score_function=score_function)).max() == 0


def test_the_soup_of_bread_is_bread_and_of_two_is_their_mean(members):
    one, two, _ = (member.params for member in members)
    jax.tree.map(np.testing.assert_array_equal, dict(soup(stack([one, one]))), dict(one))
    tasted = soup(stack([one, two]))
    for ours, first, second in zip(*map(jax.tree.leaves, (tasted, one, two)), strict=True):
        expected = (np.asarray(first, np.float64) + np.asarray(second, np.float64)) / 2
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)  # float32's rounding of sizes up to 10
    half = stack([jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), dict(one))] * 2)
    assert {leaf.dtype for leaf in jax.tree.leaves(soup(half))} == {jnp.dtype(jnp.bfloat16)}


# Mistakes.


def test_params_of_other_shapes_are_one_line(tiny_folder):
    one = flaxsent.load(tiny_folder("bert"), backend="native")
    narrow = flaxsent.load(tiny_folder("bert", intermediate_size=20), backend="native")
    other = flaxsent.load(tiny_folder("distilbert"), backend="native")
    with pytest.raises(flaxsent.FlaxsentError, match=r"member 1 .*float32\[20\] at bert\.\S+, and the first has"):
        stack([one.params, narrow.params])
    with pytest.raises(flaxsent.FlaxsentError, match=r"member 1 .* has nothing at bert\."):
        stack([one.params, other.params])
    with pytest.raises(flaxsent.FlaxsentError, match="no members"):
        stack([])


def test_classifiers_that_do_not_go_together_are_one_line(tiny_folder, tmp_path):
    one = flaxsent.load(tiny_folder("bert"), backend="native")
    for key, value in {
        "hidden_act": "relu",
        "layer_norm_eps": 1e-5,
        "problem_type": "multi_label_classification",
        "model_type": None,
    }.items():
        if value is None:
            other = flaxsent.load(tiny_folder("distilbert"), backend="native")
        else:
            other = flaxsent.load(tiny_folder("bert", **{key: value}), backend="native")
        with pytest.raises(flaxsent.FlaxsentError, match="member 1 of the ensemble has another") as err:
            join([one, other])
        assert "\n" not in str(err.value)
    swapped = dataclasses.replace(one, config=dataclasses.replace(one.config, labels=one.config.labels[::-1]))
    with pytest.raises(flaxsent.FlaxsentError, match="another labels than the first"):
        join([one, swapped])
    random_checkpoint(tmp_path, "bert")
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(
        text.replace('"lowercase":true', '"lowercase":false').replace('"lowercase": true', '"lowercase": false')
    )
    cased = flaxsent.load(tmp_path, backend="native")
    with pytest.raises(flaxsent.FlaxsentError, match="another tokenizer than the first"):
        join([one, cased])


@pytest.mark.parametrize("num_samples", [0, 1, True])
def test_too_few_samples_are_one_line(members, num_samples):
    with pytest.raises(flaxsent.FlaxsentError, match="expected 2 or more draws"):
        monte_carlo_dropout(members[0].scores, num_samples=num_samples)
