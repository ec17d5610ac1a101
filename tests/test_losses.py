"""The losses of texts against PyTorch's, weighted and focal ones too, at logits of trained size and beyond."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxsent.losses import losses

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
