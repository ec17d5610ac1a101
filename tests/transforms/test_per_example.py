"""Gradients of each text beside a loop over single texts and beside PyTorch; measures beside explicit gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxsent
from flaxsent import models
from flaxsent.checkpoint.weights import to_tensors
from flaxsent.engine import Engine
from flaxsent.losses import losses
from flaxsent.packing import pack
from flaxsent.transforms import (
    el2n,
    ensemble,
    errors,
    gradients,
    grand,
    influence,
    join,
    last_inputs,
    quantize,
    soup,
    stack,
    tangent_kernel,
)
from tests.conftest import NATIVE, counted_compilations

# Gradients of size up to 1e3, by the same sums in another order: relative to the largest of an array.
RELATIVE = 2e-5

TEXTS = ["so good", "a", "not bad at all, this film is so much", "hate", "the the the film", ("so", "bad")]
LABELS = {
    "single_label_classification": np.array([0, 2, 1, 1, 0, 2], np.int32),
    "multi_label_classification": np.array(
        [[0, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1]], np.float32
    ),
    "regression": np.array([0.5, -3.0, 2.0, 0.0, 7.0, 1.5], np.float32),
}


def load(tiny_folder, problem_type, family="bert", **changes):
    labels = {"0": "value"} if problem_type == "regression" else {str(index): f"LABEL_{index}" for index in range(3)}
    folder = tiny_folder(family, problem_type=problem_type, id2label=labels, **changes)
    return folder, flaxsent.load(folder, backend="native")


def packed(classifier, labels):
    """Rows of several texts, with their labels; and where each text is."""
    tokens, placement = pack(classifier.tokenizer.encode(TEXTS), row_length=24)
    num_segments = int(placement.segment.max()) + 1
    assert num_segments > 1
    laid = np.zeros((tokens.input_ids.shape[0], num_segments, *labels.shape[1:]), labels.dtype)
    laid[placement.row, placement.segment] = labels
    return tokens, num_segments, jnp.asarray(laid), placement


def gradients_of_each(classifier, labels, placed):
    """Of the texts, in their order."""
    tokens, num_segments, laid, placement = placed
    each = jax.jit(gradients(classifier.logits, problem_type=classifier.config.problem_type), static_argnums=2)
    found = each(classifier.params, tokens, num_segments, laid)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[placement.row, placement.segment], found)


def loop(classifier, labels):
    """One text at a time, padded to one length, by plain `grad`."""
    problem_type = classifier.config.problem_type

    @jax.jit
    def one(params, tokens, label):
        return jax.grad(lambda params: losses(classifier.forward(params, tokens), label, problem_type=problem_type)[0])(
            params
        )

    rows = [classifier.tokenize([text], length=24) for text in TEXTS]
    return [one(classifier.params, row, jnp.asarray(labels[index : index + 1])) for index, row in enumerate(rows)]


def check_close(ours, theirs):
    for path, leaf in jax.tree_util.tree_leaves_with_path(ours):
        expected = np.asarray(dict(jax.tree_util.tree_leaves_with_path(theirs))[path])
        np.testing.assert_allclose(
            leaf, expected, rtol=0, atol=RELATIVE * max(np.abs(expected).max(), 1), err_msg=str(path)
        )


def squared_length(tree):
    return sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def one_label(tiny_folder):
    """A folder, its classifier, and the gradients of the texts in packed rows."""
    problem_type = "single_label_classification"
    folder, classifier = load(tiny_folder, problem_type, num_hidden_layers=1)
    labels = LABELS[problem_type]
    return folder, classifier, gradients_of_each(classifier, labels, packed(classifier, labels))


def of_text(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def test_gradients_of_packed_texts_equal_a_loop_over_single_ones(one_label):
    _, classifier, ours = one_label
    theirs = loop(classifier, LABELS["single_label_classification"])
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs)) > 0.1
    for index, expected in enumerate(theirs):
        check_close(of_text(ours, index), dict(expected))


@pytest.mark.slow
@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_gradients_of_other_losses_equal_a_loop_too(tiny_folder, problem_type):
    _, classifier = load(tiny_folder, problem_type, num_hidden_layers=1)
    labels = LABELS[problem_type]
    ours = gradients_of_each(classifier, labels, packed(classifier, labels))
    for index, expected in enumerate(loop(classifier, labels)):
        check_close(of_text(ours, index), dict(expected))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_lengths_of_gradients_come_from_the_engine_which_knows_no_label(one_label, layout):
    _, classifier, explicit = one_label
    problem_type = "single_label_classification"

    def function(*arguments):
        return tangent_kernel(classifier.logits)(*arguments), classifier.logits(*arguments)

    with Engine(classifier, function=function, layout=layout, row_lengths=[40], tokens_per_step=80) as engine:
        kernel_BCC, logits_BC = map(jnp.asarray, engine(TEXTS))
    lengths_B = grand(kernel_BCC, errors(logits_BC, jnp.asarray(LABELS[problem_type]), problem_type=problem_type))
    expected = [np.sqrt(squared_length(of_text(explicit, index))) for index in range(len(TEXTS))]
    assert min(expected) > 0.01
    np.testing.assert_allclose(lengths_B, expected, rtol=1e-4)  # the root of a sum of squares of float32 gradients


@pytest.mark.torch
def test_gradients_of_each_text_equal_pytorch(one_label):
    import torch
    from transformers import AutoModelForSequenceClassification

    folder, classifier, ours = one_label
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    encodings = classifier.tokenizer.encode(TEXTS)
    for index, (ids, types) in enumerate(zip(encodings.input_ids, encodings.token_type_ids, strict=True)):
        model.zero_grad()
        inputs = {"input_ids": torch.tensor([ids]), "token_type_ids": torch.tensor([types])}
        label = int(LABELS["single_label_classification"][index])
        model(**inputs, labels=torch.tensor([label])).loss.backward()
        theirs = {name: weight.grad.numpy() for name, weight in model.named_parameters()}
        found = to_tensors(of_text(ours, index))
        assert found.keys() == theirs.keys()
        for name, expected in theirs.items():
            atol = RELATIVE * max(np.abs(expected).max(), 1)
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=atol, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "problem_type"),
    [
        ("roberta", "multi_label_classification"),  # whose last layer lies deeper
        ("bert", "regression"),
        # roberta's layers and head
        *((name, "single_label_classification") for name in NATIVE if name not in ("camembert", "xlm-roberta")),
    ],
)
def test_influence_equals_the_product_of_explicit_gradients_of_the_last_layer(tiny_folder, family, problem_type):
    changes = {"num_hidden_layers": 1} if family == "roberta" else {}
    _, classifier = load(tiny_folder, problem_type, family, **changes)
    labels = LABELS[problem_type]
    placed = packed(classifier, labels)
    found = gradients_of_each(classifier, labels, placed)
    flat = [np.asarray(leaf, np.float64).reshape(len(TEXTS), -1) for leaf in models.last_layer(found).values()]
    expected_BB = sum(leaf @ leaf.T for leaf in flat)

    def function(*arguments):
        return last_inputs(classifier.logits)(*arguments), classifier.logits(*arguments)

    with Engine(classifier, function=function, row_lengths=[40], tokens_per_step=80) as engine:
        inputs_BD, logits_BC = map(jnp.asarray, engine(TEXTS))
    errors_BC = errors(logits_BC, jnp.asarray(labels), problem_type=problem_type)
    train, dev = (inputs_BD, errors_BC), (inputs_BD[:2], errors_BC[:2])
    assert np.abs(expected_BB).max() > 0.1
    atol = RELATIVE * np.abs(expected_BB).max()
    np.testing.assert_allclose(influence(train, dev), expected_BB[:, :2], rtol=0, atol=atol)


def test_el2n_is_the_distance_of_the_probabilities_from_the_label():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(7, 3)).astype(np.float32), rng.integers(0, 3, 7).astype(np.int32)
    probs = np.exp(logits.astype(np.float64))
    probs /= probs.sum(axis=-1, keepdims=True)
    ours = el2n(errors(jnp.asarray(logits), jnp.asarray(labels), problem_type="single_label_classification"))
    np.testing.assert_allclose(ours, np.linalg.norm(probs - np.eye(3)[labels], axis=-1), atol=1e-6)


@pytest.mark.parametrize("transform", [tangent_kernel, last_inputs])
def test_nothing_compiles_after_warmup(tiny_folder, transform):
    _, classifier = load(tiny_folder, "single_label_classification", num_hidden_layers=1)
    function, shapes = transform(classifier.logits), {"row_lengths": [40], "tokens_per_step": 80}
    with Engine(classifier, function=function, layout="padded", **shapes) as engine:
        engine.warmup()
        with counted_compilations() as compilations:
            engine([*TEXTS, *(f"{text} film" for text in TEXTS if isinstance(text, str))])
        assert compilations == []


def test_measures_of_an_ensemble_are_those_of_its_members(tiny_folder):
    """Transforms compose: TracIn over checkpoints sums over the members, of which these are the inputs."""
    _, one = load(tiny_folder, "single_label_classification", num_hidden_layers=1)
    other = dataclasses.replace(one, params=jax.tree.map(lambda leaf: leaf * 1.25, one.params))
    function = last_inputs(one.logits)
    with Engine(join([one, other]), function=ensemble(function), row_lengths=[40], tokens_per_step=80) as engine:
        together_BND = engine(TEXTS)
    for index, member in enumerate((one, other)):
        with Engine(member, function=function, row_lengths=[40], tokens_per_step=80) as engine:
            np.testing.assert_allclose(together_BND[:, index], engine(TEXTS), rtol=0, atol=RELATIVE)


def test_params_in_int8_have_no_gradient_and_no_mean(one_label):
    _, classifier, _ = one_label
    small, tokens, labels = quantize(classifier.params), classifier.tokenize(["so good"]), jnp.zeros((1, 1), jnp.int32)
    each = gradients(classifier.logits, problem_type="single_label_classification")
    for make, told in (
        (lambda: each(small, tokens, 1, labels), "have no gradient"),
        (lambda: tangent_kernel(classifier.logits)(small, tokens, 1), "have no gradient"),
        (lambda: soup(stack([small, small])), "have no mean"),
    ):
        with pytest.raises(flaxsent.FlaxsentError, match=f"int8 {told}"):
            make()
    pair = dataclasses.replace(classifier, params=stack([small, small]))
    with Engine(pair, function=ensemble(classifier.scores), row_lengths=[40], tokens_per_step=80) as engine:
        both_BNC = engine(TEXTS)
    with Engine(dataclasses.replace(classifier, params=small), row_lengths=[40], tokens_per_step=80) as engine:
        np.testing.assert_allclose(both_BNC[:, 1], engine(TEXTS), rtol=0, atol=2e-6)  # scores of size 1
