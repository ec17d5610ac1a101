"""A new head starts at the prior: the least loss that logits without a text can have, and no other head is touched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxsent import models
from flaxsent.data.labels import Examples
from flaxsent.losses import losses
from flaxsent.training.options import TrainOptions
from flaxsent.training.prior import prior_bias
from flaxsent.training.trainer import Trainer
from tests.training.test_class_weights import config
from tests.training.test_trainer import LABELS, SMALL, load

RNG = np.random.default_rng(0)
TARGETS = {
    "single_label_classification": RNG.choice(3, 500, p=[0.9, 0.08, 0.02]).astype(np.int32),
    "multi_label_classification": (RNG.random((500, 3)) < np.array([0.6, 0.1, 0.02])).astype(np.float32),
    "regression": RNG.normal(3, 2, 500).astype(np.float32),
}


@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 30.0)])
@pytest.mark.parametrize("problem_type", TARGETS)
def test_no_other_constant_has_less_loss(problem_type, weights):
    targets, names = TARGETS[problem_type], ("value",) if problem_type == "regression" else ("a", "b", "c")
    weights_C = None if weights is None or problem_type == "regression" else np.array(weights, np.float32)
    bias = prior_bias(targets, config(problem_type, names), weights_C=weights_C)

    def mean_loss(logits):
        options = {} if weights_C is None else {"class_weights": jnp.asarray(weights_C)}
        all_logits = jnp.broadcast_to(logits[None], (len(targets), len(names)))
        return jnp.mean(losses(all_logits, jnp.asarray(targets), problem_type=problem_type, **options))

    gradient = jax.grad(mean_loss)(jnp.asarray(bias, jnp.float32))
    # 0 but for sums of 500 float32, of terms as large as the weights.
    assert jnp.abs(gradient).max() <= 1e-5 * max(weights or (1,))


def test_the_bias_is_the_logarithm_of_the_share_and_the_log_odds():
    one = prior_bias(np.array([0, 0, 0, 1], np.int32), config("single_label_classification", ("a", "b")))
    np.testing.assert_allclose(one, np.log([0.75, 0.25]))
    hot = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], np.float32)
    several = prior_bias(hot, config("multi_label_classification", ("a", "b")))
    np.testing.assert_allclose(several, np.log([3.0, 1 / 3]))


def test_a_label_without_a_text_has_a_finite_bias():
    for problem_type, targets in (
        ("single_label_classification", np.array([0, 1], np.int32)),
        ("multi_label_classification", np.array([[1, 0, 1], [1, 0, 0]], np.float32)),
    ):
        assert np.isfinite(prior_bias(targets, config(problem_type))).all()


@pytest.mark.parametrize("problem_type", LABELS)
def test_a_run_starts_there_with_a_new_head_alone(tiny_folder, problem_type):
    data = Examples(["a", "b", "c", "d"], LABELS[problem_type])
    new = load(tiny_folder("bert", **SMALL), problem_type=problem_type, new_head=True)

    def first_bias(classifier, **options):
        state = Trainer(classifier, data, options=TrainOptions(**options)).start().state
        jax.tree.map(
            np.testing.assert_array_equal,
            models.last_layer(state.params)["kernel"],
            models.last_layer(classifier.params)["kernel"],
        )
        return np.asarray(models.last_layer(state.params)["bias"])

    from flaxsent.training.batches import labels_as_arrays

    expected = prior_bias(labels_as_arrays(data, new.config), new.config)
    np.testing.assert_allclose(first_bias(new), expected, rtol=1e-6)
    assert not np.any(np.asarray(models.last_layer(new.params)["bias"]))  # the classifier stays as it is
    assert not first_bias(new, head_bias="zero").any()
    assert not first_bias(new, freeze=("classifier.*",)).any()
    if problem_type != "regression":
        np.testing.assert_allclose(first_bias(new, class_weights={}), expected, rtol=1e-6)
    if problem_type == "single_label_classification":
        trained = load(tiny_folder("bert", **SMALL))
        np.testing.assert_array_equal(first_bias(trained), models.last_layer(trained.params)["bias"])
