"""A linear probe: the encoder as it is, and the layer of the logits that has the least penalised loss, by L-BFGS.

All texts are computed once. The layer reads what the head makes of them before it; these features are standardised for
the fit, which is folded into the layer afterwards.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from flaxsent import models
from flaxsent.base import FlaxsentError, Params, ProblemType, Text
from flaxsent.classifier import Classifier, check_is_of_one_model
from flaxsent.data.labels import Examples
from flaxsent.engine import Engine
from flaxsent.files import require
from flaxsent.losses import losses
from flaxsent.models.config import as_trained
from flaxsent.placement import device_of
from flaxsent.postprocessing import postprocess
from flaxsent.training import choosing, class_weights, splits
from flaxsent.training.batches import labels_as_arrays
from flaxsent.training.choosing import Evaluation
from flaxsent.training.options import RunOptions, TrainOptions
from flaxsent.training.prior import prior_bias

if TYPE_CHECKING:
    import optax
else:
    optax = require("optax", needed_by="training", extra="train")

logger = logging.getLogger(__name__)

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4, 3e-5)
"""From which one is chosen: half of it times the squares of the kernel is added to the mean loss of a text."""

_MOST_WORSE = 2
"""Penalties in a row that are worse than the best, after which smaller ones are not tried."""

_NUM_FOLDS = 5
_MOST_STEPS, _LEAST_GRADIENT = 500, 1e-5


class Layer(NamedTuple):
    """Of the logits."""

    kernel: Float[Array, "D C"]
    bias: Float[Array, " C"]


class Probed(NamedTuple):
    """What `probe` finds."""

    classifier: Classifier
    evaluation: Evaluation | None
    """Of dev, or in the cross-validation; None where there was neither."""


_OPTIONS = ("class_weights", "seed", "metric", "sharding", "num_epochs")
"""Those of training that a probe without steps has a use for, or that do it no harm."""


def check(options: RunOptions, train_options: TrainOptions) -> None:
    """Raises FlaxsentError for options that do not go with --probe."""
    for given, flag in (
        (options.sweep, "--sweep"),
        (options.seeds > 1, "--seeds"),
        (options.folds, "--folds"),
        (options.teacher, "--teacher"),
        (train_options.lora_rank, "--lora-rank"),
    ):
        if given:
            raise FlaxsentError(f"{flag} does not go with --probe; leave one of the two out.")
    if train_options.num_epochs is not None:
        return
    for field in dataclasses.fields(train_options):
        if field.name not in _OPTIONS and getattr(train_options, field.name) != field.default:
            flag = f"--{field.name.replace('_', '-')}"
            raise FlaxsentError(f"{flag} is for steps; --probe alone makes none: leave it out, or pass --epochs, too.")


def check_can_probe(classifier: Classifier) -> None:
    """Raises FlaxsentError for a classifier without a layer that can be fitted."""
    check_is_of_one_model(classifier)
    if not classifier.packs:
        raise FlaxsentError(f"a probe needs flaxsent's own encoder, which there is not for {classifier.config.family}.")


def probe(
    classifier: Classifier,
    train: Examples,
    dev: Examples | None = None,
    options: TrainOptions | None = None,
    *,
    penalty: float | None = None,
    report: Callable[[str], None] = logger.info,
) -> Probed:
    """The classifier with the layer of its logits fitted to `train`; of the options, those in `_OPTIONS` matter.

    The penalty is the one of `PENALTIES` with the least loss on dev, or without dev in a cross-validation; several
    labels at once get thresholds from the same texts. Where there is a `penalty` and no dev, that is taken instead, and
    there are no thresholds: a cross-validation is of no use where the encoder has learned from these texts.

    Raises:
        FlaxsentError: labels that do not fit the classifier, or it is not one with a layer that can be fitted.
    """
    options = TrainOptions() if options is None else options
    check_can_probe(classifier)
    config = as_trained(classifier.config)
    kind, metric = config.problem_type, choosing.metric_of(config.problem_type, options.metric)
    targets = labels_as_arrays(train, config)
    told = options.class_weights
    weights_C = None if told is None else class_weights.weights_of(told, targets, config)
    features_ND = _features(classifier, train.texts)
    mean_D, spread_D = features_ND.mean(axis=0, dtype=np.float64), features_ND.std(axis=0, dtype=np.float64)
    # A feature that is all but constant would be blown up by its spread.
    spread_D = np.maximum(spread_D, 1e-2 * np.median(spread_D) + 1e-12)

    def standardised(found_ND: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
        return ((found_ND - mean_D) / spread_D).astype(np.float32)

    scale = 1.0
    if kind == "regression":  # so that the penalties mean the same whatever the unit
        scale = float(targets.std(dtype=np.float64)) or 1.0
    fitted = functools.partial(
        fit_layer,
        standardised(features_ND),
        (targets / scale).astype(np.float32) if kind == "regression" else targets,
        problem_type=kind,
        start_C=prior_bias(targets, config, weights_C=weights_C) / scale,
        class_weights=weights_C,
    )

    def logits(layer: Layer, found_ND: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N C"]:
        return (standardised(found_ND) @ np.asarray(layer.kernel) + np.asarray(layer.bias)) * np.float32(scale)

    start = f"probe: {len(train.texts):,} texts, {features_ND.shape[1]} features; penalty"
    if dev is None and penalty is not None:
        report(f"{start} {penalty:g}")
        return Probed(_with_layer(classifier, fitted(penalty=penalty), mean_D, spread_D, scale), None)
    if dev is not None:
        checked, dev_ND = labels_as_arrays(dev, config), _features(classifier, dev.texts)

        def unseen(penalty: float) -> Float[np.ndarray, "M C"]:
            return logits(fitted(penalty=penalty), dev_ND)
    else:
        num_folds, checked = min(_NUM_FOLDS, len({*train.texts})), targets
        if num_folds < 2:
            raise FlaxsentError("a probe without dev needs 2 different texts or more, to choose its penalty.")
        fold_N = splits.folds(train, num_folds, problem_type=kind, seed=options.seed)

        def unseen(penalty: float) -> Float[np.ndarray, "M C"]:
            out_NC = np.zeros((len(fold_N), config.num_labels), np.float32)
            for fold in range(num_folds):
                layer = fitted(penalty=penalty, weights_N=(fold_N != fold).astype(np.float32))
                out_NC[fold_N == fold] = logits(layer, features_ND[fold_N == fold])
            return out_NC

    penalty, best_MC = _choose(unseen, lambda logits_MC: _mean_loss(logits_MC, checked, kind))
    layer = fitted(penalty=penalty)
    report(f"{start} {penalty:g}, by {'dev' if dev is not None else 'cross-validation'}")
    evaluation = choosing.evaluate(best_MC, checked, config, metric=metric)
    return Probed(
        choosing.as_evaluated(_with_layer(classifier, layer, mean_D, spread_D, scale), evaluation), evaluation
    )


def _choose(
    unseen: Callable[[float], Float[np.ndarray, "M C"]], loss: Callable[[Float[np.ndarray, "M C"]], float]
) -> tuple[float, Float[np.ndarray, "M C"]]:
    """The penalty with the least loss on texts that were not seen, and their logits."""
    found: list[tuple[float, Float[np.ndarray, "M C"]]] = []
    means: list[float] = []
    for penalty in PENALTIES:
        found.append((penalty, unseen(penalty)))
        means.append(loss(found[-1][1]))
        if len(means) - 1 - int(np.argmin(means)) == _MOST_WORSE:
            break
    return found[int(np.argmin(means))]


def fit_layer(
    features_ND: Float[np.ndarray, "N D"],
    targets: Shaped[np.ndarray, "*N_or_C"],
    *,
    problem_type: ProblemType,
    penalty: float,
    start_C: Float[np.ndarray, " C"],
    weights_N: Float[np.ndarray, " N"] | None = None,
    class_weights: Float[np.ndarray, " C"] | None = None,
) -> Layer:
    """The layer with the least mean loss of the texts, those of several labels added up, and penalty.

    It is scikit-learn's LogisticRegression with C = 1 / (penalty · N), and Ridge with alpha = penalty · N / 2. The bias
    starts at `start_C`, and has no penalty; texts weigh 1, or `weights_N`.
    """
    weights_N = np.ones(len(features_ND), np.float32) if weights_N is None else weights_N
    first = Layer(jnp.zeros((features_ND.shape[1], len(start_C))), jnp.asarray(start_C, jnp.float32))
    weights_C = None if class_weights is None else jnp.asarray(class_weights)
    # Optax promotes.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return _fit(first, features_ND, targets, weights_N, jnp.float32(penalty), weights_C, problem_type=problem_type)


_Carry = tuple[Layer, Any, Int[Array, ""], Float[Array, ""]]
"""The state of L-BFGS is the second, the length of the gradient the last."""


@functools.partial(jax.jit, static_argnames="problem_type")
def _fit(
    first: Layer,
    features_ND: Float[Array, "N D"],
    targets: Shaped[Array, "*N_or_C"],
    weights_N: Float[Array, " N"],
    penalty: Float[Array, ""],
    class_weights: Float[Array, " C"] | None,
    *,
    problem_type: ProblemType,
) -> Layer:
    # Of several labels, `losses` takes the mean.
    num_losses = first.bias.size if problem_type == "multi_label_classification" else 1

    def objective(layer: Layer) -> Float[Array, ""]:
        logits_NC = jnp.matmul(features_ND, layer.kernel, precision="highest") + layer.bias
        each_N = losses(logits_NC, targets, problem_type=problem_type, class_weights=class_weights)
        return num_losses * jnp.sum(weights_N * each_N) / jnp.sum(weights_N) + penalty / 2 * jnp.sum(layer.kernel**2)

    optimizer = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(objective)

    def step(carry: _Carry) -> _Carry:
        layer, state, count, _ = carry
        value, gradient = value_and_gradient(layer, state=state)
        told = {"value": value, "grad": gradient, "value_fn": objective}
        updates, state = optimizer.update(gradient, state, layer, **told)
        layer = Layer(*jax.tree.map(jnp.add, layer, updates))
        return layer, state, count + 1, optax.tree.norm(optax.tree.get(state, "grad"))

    def goes_on(carry: _Carry) -> Bool[Array, ""]:
        _, _, count, norm = carry
        return (count < _MOST_STEPS) & (norm > _LEAST_GRADIENT)

    return jax.lax.while_loop(goes_on, step, (first, optimizer.init(first), jnp.int32(0), jnp.float32(jnp.inf)))[0]


def with_features(params: Params) -> Params:
    """Params whose logits are the features that the layer of the logits reads: the identity is in its place."""
    kernel = models.last_layer(params)["kernel"]
    identity = {"kernel": jnp.eye(len(kernel), dtype=kernel.dtype), "bias": jnp.zeros(len(kernel), kernel.dtype)}
    return models.with_last_layer(params, identity)


def _features(classifier: Classifier, texts: list[Text]) -> Float[np.ndarray, "N D"]:
    with jax.default_device(device_of(models.last_layer(classifier.params)["kernel"])):
        params = with_features(classifier.params)
    with Engine(dataclasses.replace(classifier, params=params), function=classifier.logits) as engine:
        return engine(texts)


def _mean_loss(
    logits_NC: Float[np.ndarray, "N C"], targets: Shaped[np.ndarray, "*N_or_C"], problem_type: ProblemType
) -> float:
    each_N = losses(jnp.asarray(logits_NC), jnp.asarray(targets), problem_type=problem_type)
    return float(np.mean(np.asarray(each_N), dtype=np.float64))


def _with_layer(
    classifier: Classifier,
    layer: Layer,
    mean_D: Float[np.ndarray, " D"],
    spread_D: Float[np.ndarray, " D"],
    scale: float,
) -> Classifier:
    """With a layer that reads the features as they are."""
    kernel_DC = np.asarray(layer.kernel, np.float64) / spread_D[:, None] * scale
    bias_C = np.asarray(layer.bias, np.float64) * scale - mean_D @ kernel_DC
    before = models.last_layer(classifier.params)
    dtype = before["kernel"].dtype
    with jax.default_device(device_of(before["kernel"])):
        last = {**before, "kernel": jnp.asarray(kernel_DC, dtype), "bias": jnp.asarray(bias_C, dtype)}
    config = as_trained(classifier.config)
    params = models.with_last_layer(classifier.params, last)
    scores = functools.partial(postprocess, config=config)
    return dataclasses.replace(classifier, params=params, config=config, postprocess=scores)
