"""Fine-tuning as pure functions: `loss` and `train_step`, and `fit`, which loops over them (optax).

A batch is padded texts of like length with their labels, always the same number of them: few shapes compile.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from flaxsent.classifier import Classifier, classify
from flaxsent.packing import select
from flaxsent.records import LabelledTexts
from flaxsent.types import Encodings, Params, Tokens

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Padded texts and the index of each one's label; -1 fills a batch up and counts for nothing."""

    tokens: Tokens
    labels: Int[Array, " B"] | Int[np.ndarray, " B"]


class TrainState(NamedTuple):
    """All that a training run changes; a pytree."""

    params: Params
    average: Params
    """Exponential moving average of `params`: what `fit` returns."""
    opt_state: optax.OptState
    step: Int[Array, ""]
    key: Key[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How `fit` trains; the defaults fine-tune a small encoder on some ten thousand sentences."""

    learning_rate: float = 1e-4
    """Peak of a schedule that rises over `warmup` and falls linearly to 0."""
    batch_size: int = 64
    num_epochs: int = 3
    warmup: float = 0.06
    """Share of the steps."""
    weight_decay: float = 0.01
    """Of kernels and embeddings; biases and LayerNorms have none, as Devlin et al. (2018) train."""
    max_grad_norm: float = 1.0
    average_decay: float = 0.999
    max_length: int = 128
    seed: int = 0


def loss(
    params: Params, batch: Batch, key: Key[Array, ""] | None, *, forward: Callable[..., Float[Array, "B C"]]
) -> Float[Array, ""]:
    """Mean cross entropy of the batch's labels, with dropout drawn from `key`; None is no dropout."""
    logits_BC = forward(params, batch.tokens, key)
    is_text_B = (jnp.asarray(batch.labels) >= 0).astype(jnp.float32)
    each_B = optax.softmax_cross_entropy_with_integer_labels(logits_BC, jnp.maximum(jnp.asarray(batch.labels), 0))
    return jnp.sum(each_B * is_text_B) / jnp.maximum(jnp.sum(is_text_B), 1)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    loss: Callable[[Params, Batch, Key[Array, ""] | None], Float[Array, ""]],
    optimizer: optax.GradientTransformation,
    average_decay: float,
) -> tuple[TrainState, Float[Array, ""]]:
    """One update; returns the next state and the loss before it."""
    key, dropout_key = jax.random.split(state.key)
    value, gradient = jax.value_and_grad(loss)(state.params, batch, dropout_key)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = cast(Params, optax.apply_updates(state.params, updates))
    # The average forgets its start: over the first steps it is a plain mean.
    num_steps = state.step.astype(jnp.float32)
    decay = jnp.minimum(average_decay, (1 + num_steps) / (10 + num_steps))
    average = cast(Params, optax.incremental_update(params, state.average, 1 - decay))
    return TrainState(params, average, opt_state, state.step + 1, key), value


def make_optimizer(options: TrainOptions, num_steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2017) with clipping, linear warm-up and linear decay."""
    num_warmup = round(options.warmup * num_steps)
    schedule = optax.schedules.join_schedules(
        [
            optax.schedules.linear_schedule(0.0, options.learning_rate, num_warmup),
            optax.schedules.linear_schedule(options.learning_rate, 0.0, num_steps - num_warmup),
        ],
        [num_warmup],
    )
    return optax.chain(
        optax.clip_by_global_norm(options.max_grad_norm),
        optax.adamw(schedule, weight_decay=options.weight_decay, mask=_is_decayed),
    )


def fit(
    classifier: Classifier,
    train: LabelledTexts,
    dev: LabelledTexts | None = None,
    *,
    options: TrainOptions | None = None,
    report: Callable[[str], None] = logger.info,
    on_epoch: Callable[[Classifier], None] | None = None,
) -> Classifier:
    """Fine-tunes all parameters and returns the classifier with their moving average.

    `report` gets a line of text now and then; the accuracy on `dev` is told after each epoch and chooses nothing.
    `on_epoch` gets the classifier as it is after each epoch.

    Raises:
        ValueError: the classifier is not one of a single label among several, or there are no epochs to train.
    """
    if classifier.config.problem_type != "single_label_classification":
        raise ValueError(f"fit trains single_label_classification; this is {classifier.config.problem_type}.")
    options = TrainOptions() if options is None else options
    if options.num_epochs < 1 or options.batch_size < 1:
        raise ValueError(
            f"{options.num_epochs} epochs of batches of {options.batch_size} train nothing; pass 1 or more."
        )
    encodings = classifier.tokenizer.encode(
        train.texts, max_length=min(options.max_length, classifier.tokenizer.max_length)
    )
    labels = np.asarray(train.labels, np.int32)
    num_steps = options.num_epochs * -(-len(labels) // options.batch_size)
    optimizer = make_optimizer(options, num_steps)
    step = jax.jit(
        functools.partial(
            train_step,
            loss=functools.partial(loss, forward=classifier.forward),
            optimizer=optimizer,
            average_decay=options.average_decay,
        ),
        donate_argnums=0,
    )
    params = jax.tree.map(jnp.copy, classifier.params)  # donated, so the classifier's own stay out of it
    state = TrainState(
        params=params,
        average=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        step=jnp.zeros((), jnp.int32),
        # rbg draws dropout masks several times faster than threefry on a CPU.
        key=jax.random.key(options.seed, impl="unsafe_rbg"),
    )
    rng = np.random.default_rng(options.seed)
    trained = classifier
    for epoch in range(options.num_epochs):
        losses = []
        for indices in length_bucketed(encodings, options.batch_size, rng):
            state, value = step(state, _make_batch(classifier, encodings, labels, indices, options))
            losses.append(value)
            if len(losses) % 200 == 0:
                recent = float(np.mean(jax.device_get(losses[-200:])))
                report(f"epoch {epoch + 1} step {int(state.step)} of {num_steps} loss {recent:.4f}")
        trained = dataclasses.replace(
            classifier, params=jax.tree.map(jnp.copy, state.average)
        )  # the next step donates it
        if dev is not None:
            report(f"epoch {epoch + 1} dev accuracy {accuracy(trained, dev):.4f}")
        if on_epoch is not None:
            on_epoch(trained)
    return trained


def length_bucketed(
    encodings: Encodings, batch_size: int, rng: np.random.Generator, *, pool: int = 50
) -> Iterator[list[int]]:
    """One epoch of batches in random order, each of texts of like length: `pool` batches are sorted together."""
    order = rng.permutation(len(encodings.input_ids)).tolist()
    batches = []
    for start in range(0, len(order), pool * batch_size):
        chunk = sorted(order[start : start + pool * batch_size], key=lambda index: len(encodings.input_ids[index]))
        batches += [chunk[first : first + batch_size] for first in range(0, len(chunk), batch_size)]
    for index in rng.permutation(len(batches)).tolist():
        yield batches[index]


def accuracy(classifier: Classifier, data: LabelledTexts) -> float:
    """Share of the texts whose best label is the right one."""
    predictions = classify(data.texts, classifier)
    right = [
        prediction.label == classifier.config.labels[label]
        for prediction, label in zip(predictions, data.labels, strict=True)
    ]
    return float(np.mean(right))


def _make_batch(
    classifier: Classifier,
    encodings: Encodings,
    labels: Int[np.ndarray, " N"],
    indices: list[int],
    options: TrainOptions,
) -> Batch:
    filled = indices + indices[:1] * (options.batch_size - len(indices))
    chosen = select(encodings, filled)
    length = -(-max(map(len, chosen.input_ids)) // _LENGTH_STEP) * _LENGTH_STEP
    chosen_labels = labels[filled]
    chosen_labels[len(indices) :] = -1
    return Batch(classifier.pad(chosen, length=length), chosen_labels)


_LENGTH_STEP = 8
"""Rows are this many tokens long or a multiple: few shapes to compile, little padding."""


def _is_decayed(params: Params) -> Params:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in ("kernel", "embedding"), params)
