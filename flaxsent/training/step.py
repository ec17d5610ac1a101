"""One step as pure functions: the loss, its gradient and the update; `trainer.py` loops over them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from flaxsent.base import FlaxsentError, Params, ProblemType, Tokens
from flaxsent.files import require
from flaxsent.losses import losses
from flaxsent.training.batches import Batch

if TYPE_CHECKING:
    import optax
else:
    optax = require("optax", needed_by="training", extra="train")

Forward = Callable[[Params, Tokens, Key[Array, ""] | None], Float[Array, "*texts C"]]
Loss = Callable[[Params, Batch, Key[Array, ""] | None], Float[Array, ""]]
Objective = Callable[..., Float[Array, ""]]
"""A `Loss` that is given, by name, the `forward` that it is of, and the `problem_type`."""


class TrainState(NamedTuple):
    """All that a step changes; a pytree."""

    params: Params
    """In float32."""
    average: Params
    """Exponential moving average of `params`."""
    opt_state: optax.OptState
    step: Int[Array, ""]
    key: Key[Array, ""]


class StepReport(NamedTuple):
    """What a step tells; on the device until it is asked for."""

    loss: Float[Array, ""]
    """Before the update."""
    gradient_norm: Float[Array, ""]
    """Before it is cut."""


def loss(
    params: Params,
    batch: Batch,
    key: Key[Array, ""] | None,
    *,
    forward: Forward,
    problem_type: ProblemType = "single_label_classification",
    teacher_weight: float = 0.0,
    teacher_temperature: float = 1.0,
    **of_labels: Any,
) -> Float[Array, ""]:
    """Mean over the texts of a batch, with dropout drawn from `key`; None switches dropout off.

    `of_labels` are the options of `losses.losses`. With class weights, too, the mean is over the number of texts:
    PyTorch's own, over their weights, takes the effect out of small batches.
    Where there are a teacher's scores, each text's loss is mixed with the distance to them; a text without a label has
    that distance alone.
    """
    logits = forward(params, batch.tokens, key).astype(jnp.float32)
    weights = jnp.asarray(batch.weights)
    each = losses(logits, jnp.asarray(batch.labels), problem_type=problem_type, **of_labels)
    if batch.teacher is not None:
        distances = _distances(logits, jnp.asarray(batch.teacher), problem_type, teacher_temperature)
        own = (1 - teacher_weight) * (1.0 if batch.is_labelled is None else jnp.asarray(batch.is_labelled))
        each = own * each + (1 - own) * distances
    return jnp.sum(each * weights) / jnp.maximum(jnp.sum(weights), 1)


def _distances(
    logits: Float[Array, "*texts C"], scores: Float[Array, "*texts C"], problem_type: ProblemType, temperature: float
) -> Float[Array, "*texts"]:
    """Cross entropy with the teacher's scores, both at a temperature; times its square, to keep the gradients' size."""
    if problem_type == "regression":
        return jnp.mean(jnp.square(logits - scores), axis=-1)
    least = jnp.finfo(jnp.float32).tiny
    if problem_type == "single_label_classification":
        targets = jax.nn.softmax(jnp.log(jnp.maximum(scores, least)) / temperature, axis=-1)
        return temperature**2 * optax.softmax_cross_entropy(logits / temperature, targets)
    odds = jnp.log(jnp.maximum(scores, least)) - jnp.log(jnp.maximum(1 - scores, least))
    targets = jax.nn.sigmoid(odds / temperature)
    return temperature**2 * jnp.mean(optax.sigmoid_binary_cross_entropy(logits / temperature, targets), axis=-1)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    average_decay: float | Float[Array, ""],
    accumulation: int = 1,
) -> tuple[TrainState, StepReport]:
    """One update; the key of the state draws its dropout."""
    key, dropout_key = jax.random.split(state.key)
    value, gradient = value_and_gradient(state.params, batch, dropout_key, loss=loss, accumulation=accumulation)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes Python's floats with its integer counters
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = cast(Params, optax.apply_updates(state.params, updates))
    # Over the first steps the average follows the parameters closely, so that it forgets where they started.
    num_steps = state.step.astype(jnp.float32)
    decay = jnp.minimum(average_decay, (1 + num_steps) / (10 + num_steps))
    average = cast(Params, optax.incremental_update(params, state.average, 1 - decay))
    report = StepReport(value, optax.tree.norm(gradient))
    return TrainState(params, average, opt_state, state.step + 1, key), report


def value_and_gradient(
    params: Params, batch: Batch, key: Key[Array, ""], *, loss: Loss, accumulation: int
) -> tuple[Float[Array, ""], Params]:
    """The loss of a batch and its gradient, computed in `accumulation` parts; each text has the same weight."""
    if accumulation == 1:
        return jax.value_and_grad(loss)(params, batch, key)
    # A part takes every n-th row, so that it is spread over the devices as the whole batch is.
    parts = jax.tree.map(lambda leaf: jnp.moveaxis(jnp.reshape(leaf, (-1, accumulation, *leaf.shape[1:])), 1, 0), batch)
    total = jnp.maximum(jnp.sum(parts.weights), 1)

    def add(sums: tuple[Array, Params], part: tuple[Batch, Array]) -> tuple[tuple[Array, Params], None]:
        share = jnp.sum(part[0].weights) / total
        value, gradient = jax.value_and_grad(loss)(params, *part)
        return jax.tree.map(lambda total, one: total + share * one, sums, (value, gradient)), None

    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add, zeros, (parts, jax.random.split(key, accumulation)))[0]


def with_frozen(loss: Loss, frozen: Params) -> Loss:
    """The loss without gradients of frozen parameters; layers below all that is trained are not run backwards."""

    def partly(params: Params, batch: Batch, key: Key[Array, ""] | None) -> Float[Array, ""]:
        held = jax.tree.map(lambda leaf, is_held: jax.lax.stop_gradient(leaf) if is_held else leaf, params, frozen)
        return loss(held, batch, key)

    return partly


def dev_logits(params: Params, batch: Batch, *, forward: Forward) -> Float[Array, "*texts C"]:
    """The logits in float32 of a batch of dev, without dropout."""
    return forward(params, batch.tokens, None).astype(jnp.float32)


def mean_loss(losses: Sequence[Float[Array, ""]], *, step: int) -> float:
    """The mean of the last steps' losses, fetched from the device.

    Raises:
        FlaxsentError: it is not finite; then the parameters are not, either.
    """
    value = float(np.mean(jax.device_get(list(losses))))
    if not np.isfinite(value):
        raise FlaxsentError(f"the loss is {value} at step {step}; try a lower learning_rate, or a longer warmup.")
    return value
