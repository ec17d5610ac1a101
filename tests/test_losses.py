"""The losses of texts against PyTorch's, weighted and focal ones too, at logits of trained size and beyond."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxsent.base import FlaxsentError
from flaxsent.losses import losses, pair_loss

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(7, 5)).astype(np.float32) * np.float32([0.1, 1, 3, 8, 30, 60, 300])[:, None]
ONE = np.array([4, 0, 2, 2, 1, 3, 0], np.int32)
SEVERAL = RNG.integers(0, 2, (7, 5)).astype(np.float32)
WEIGHTS = np.array([0.25, 1.0, 3.0, 40.0, 0.5], np.float32)


def ours(labels, **options):
    """The losses and the gradient of their sum."""

    def of(logits):
        each = losses(logits, jnp.asarray(labels), **options)
        return jnp.sum(each), each

    (_, each), gradient = jax.value_and_grad(of, has_aux=True)(jnp.asarray(LOGITS))
    return np.asarray(each), np.asarray(gradient)


def theirs(function):
    import torch

    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    each = function(logits)
    each.sum().backward()
    assert logits.grad is not None
    return each.detach().numpy(), logits.grad.numpy()


def check(found, expected):
    for one, other in zip(found, expected, strict=True):
        # float32 against float64: a few roundings of numbers up to 300 times 40, the weight.
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_class_weights_of_one_label_equal_pytorchs(label_smoothing):
    import torch

    reference = functools.partial(
        torch.nn.functional.cross_entropy,
        target=torch.tensor(ONE).long(),
        weight=torch.tensor(WEIGHTS).double(),
        label_smoothing=label_smoothing,
        reduction="none",
    )
    options = {"class_weights": jnp.asarray(WEIGHTS), "label_smoothing": label_smoothing}
    check(ours(ONE, problem_type="single_label_classification", **options), theirs(reference))


@pytest.mark.torch
def test_class_weights_of_several_labels_are_pytorchs_pos_weight():
    import torch

    loss = torch.nn.BCEWithLogitsLoss(reduction="none", pos_weight=torch.tensor(WEIGHTS).double())
    expected = theirs(lambda logits: loss(logits, torch.tensor(SEVERAL).double()).mean(-1))
    options = {"problem_type": "multi_label_classification", "class_weights": jnp.asarray(WEIGHTS)}
    check(ours(SEVERAL, **options), expected)


@pytest.mark.torch
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_several_labels_is_torchvisions(gamma):
    import torch

    def sigmoid_focal_loss(logits):
        """torchvision.ops.sigmoid_focal_loss with alpha=-1, which is none."""
        targets, p = torch.tensor(SEVERAL).double(), torch.sigmoid(logits)
        ce_loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        p_t = p * targets + (1 - p) * (1 - targets)
        return (ce_loss * ((1 - p_t).clamp(min=1e-300) ** gamma)).mean(-1)

    check(ours(SEVERAL, problem_type="multi_label_classification", focal_gamma=gamma), theirs(sigmoid_focal_loss))


@pytest.mark.torch
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_one_label_is_that_of_the_paper(gamma):
    import torch

    def focal_loss(logits):
        """FL(p_t) = −α_t (1 − p_t)ᵞ log p_t, equation 5 of Lin et al. 2017, α_t being the class weight."""
        log_p = torch.log_softmax(logits, dim=-1)[torch.arange(7), torch.tensor(ONE).long()]
        others = 1 - torch.nn.functional.one_hot(torch.tensor(ONE).long(), 5)
        wrong = (torch.softmax(logits, dim=-1) * others).sum(-1)  # 1 − p_t, which is not 0 where p_t rounds to 1
        return -torch.tensor(WEIGHTS).double()[torch.tensor(ONE).long()] * wrong.clamp(min=1e-300) ** gamma * log_p

    options = {"class_weights": jnp.asarray(WEIGHTS), "focal_gamma": gamma}
    check(ours(ONE, problem_type="single_label_classification", **options), theirs(focal_loss))


@pytest.mark.parametrize("gamma", [0.3, 1.0, 5.0])
def test_the_gradient_of_the_focal_loss_is_finite_where_nothing_is_left_to_learn(gamma):
    logits = jnp.array([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0], [0.0, 0.0, 0.0]])
    for problem_type, labels in (
        ("single_label_classification", jnp.array([0, 0, 1])),
        ("multi_label_classification", jnp.eye(3)),
    ):
        gradient = jax.grad(
            lambda x: jnp.sum(losses(x, labels, problem_type=problem_type, focal_gamma=gamma))  # noqa: B023
        )(logits)
        assert jnp.isfinite(gradient).all()
        assert jnp.abs(gradient).max() > 1e-3


# pairs of texts

LENGTHS = np.array([1e-3, 1, 1, 10, 1, 1, 1, 0.1, 0], np.float32)[:, None]
EMBEDDINGS = RNG.normal(size=(9, 6)).astype(np.float32) * LENGTHS
IS_TEXT = np.array([1, 1, 1, 0, 1, 1, 1, 1, 0], np.float32)
PAIRED = {
    "single_label_classification": np.array([0, 1, 1, 1, 2, 0, 1, 3, 0], np.int32),
    "multi_label_classification": RNG.integers(0, 2, (9, 4)).astype(np.float32) * (np.arange(9)[:, None] != 5),
}


def pairs_of_setfit(labels):
    """The pairs that `setfit.sampler.ContrastiveDataset` draws by oversampling until each has been drawn as often.

    Positive are those with the same label, or one of several in common; the fewer are repeated until they are as many
    as the others. Of a text with itself, which it draws too, the cosine is 1 where there is no dropout.
    """
    kinds = {True: [], False: []}
    for i, j in zip(*np.triu_indices(len(labels), 0), strict=True):
        is_same = any(np.logical_and(labels[i], labels[j])) if labels.ndim == 2 else labels[i] == labels[j]
        kinds[bool(is_same)] += [(i, j)] if i != j else []
    likes, others = kinds[True] * len(kinds[False]), kinds[False] * len(kinds[True])
    assert len(likes) == len(others) > 0
    return np.array(likes + others), np.repeat([1.0, 0.0], len(likes))


@pytest.mark.torch
@pytest.mark.parametrize("problem_type", PAIRED)
def test_pairs_have_sentence_transformers_loss_of_those_that_setfit_draws(problem_type):
    import torch

    labels = PAIRED[problem_type]
    is_text = IS_TEXT > 0
    pairs, targets = pairs_of_setfit(labels[is_text])
    theirs = torch.tensor(EMBEDDINGS[is_text], dtype=torch.float64, requires_grad=True)
    # CosineSimilarityLoss.forward.
    cosines = torch.cosine_similarity(theirs[pairs[:, 0]], theirs[pairs[:, 1]])
    expected = torch.nn.functional.mse_loss(cosines, torch.tensor(targets))
    expected.backward()
    assert theirs.grad is not None
    found, gradient = jax.value_and_grad(pair_loss)(
        *(jnp.asarray(one) for one in (EMBEDDINGS, labels, IS_TEXT)), problem_type=problem_type
    )
    # float32 against float64; the gradient of a short vector is long.
    np.testing.assert_allclose(found, expected.item(), rtol=1e-5)
    lengths = np.maximum(np.linalg.norm(EMBEDDINGS, axis=1, keepdims=True), 1e-3)
    np.testing.assert_allclose((gradient * lengths)[is_text], theirs.grad.numpy() * lengths[is_text], atol=1e-6)
    assert not np.any(gradient[~is_text])


def test_pairs_of_one_kind_alone_are_half_of_the_loss():
    right_angles, labels = jnp.eye(3), jnp.array([0, 1, 2])
    assert pair_loss(right_angles, labels, jnp.ones(3)) == 0
    assert pair_loss(right_angles, labels * 0, jnp.ones(3)) == 0.5
    assert pair_loss(right_angles, labels * 0, jnp.zeros(3)) == 0


def test_the_loss_of_pairs_composes_with_jit_vmap_and_grad():
    labels, weights = (jnp.asarray(one) for one in (PAIRED["single_label_classification"], IS_TEXT))
    stack = jnp.stack([jnp.asarray(EMBEDDINGS), 2 * jnp.asarray(EMBEDDINGS[::-1])])
    gradient = jax.grad(pair_loss)
    found = jax.jit(jax.vmap(lambda one: gradient(one, labels, weights)))(stack)
    for each, one in zip(found, stack, strict=True):
        # Relative to the largest: sums of float32 in another order.
        expected = gradient(one, labels, weights)
        np.testing.assert_allclose(each, expected, atol=1e-5 * float(jnp.abs(expected).max()))


def test_values_have_no_pairs():
    with pytest.raises(FlaxsentError, match="regression has values, not labels"):
        pair_loss(jnp.eye(3), jnp.arange(3.0), jnp.ones(3), problem_type="regression")
