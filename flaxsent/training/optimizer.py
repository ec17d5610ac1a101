"""How parameters move: the optimizer that `TrainOptions` describes (optax); `step.py` is next."""

import fnmatch
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flaxsent.base import FlaxsentError, Params
from flaxsent.files import require
from flaxsent.models.adapters import has_adapters, is_trained
from flaxsent.training.options import TrainOptions

if TYPE_CHECKING:
    import optax
else:
    optax = require("optax", needed_by="training", extra="train")


def make_schedule(options: TrainOptions, num_steps: int) -> optax.Schedule:
    """The learning rate by step: linear warm-up, then linear or cosine decay to 0."""
    num_warmup = round(options.warmup * num_steps)
    num_decay = max(num_steps - num_warmup, 1)
    decays = {
        "linear": optax.schedules.linear_schedule(options.learning_rate, 0.0, num_decay),
        "cosine": optax.schedules.cosine_decay_schedule(options.learning_rate, num_decay),
    }
    warmup = optax.schedules.linear_schedule(0.0, options.learning_rate, num_warmup)
    return optax.schedules.join_schedules([warmup, decays[options.schedule]], [num_warmup])


def make_optimizer(
    options: TrainOptions, num_steps: int, params: Params, *, schedule: optax.Schedule | None = None
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2017) as the options say: clipped, with its schedule, by layer, without frozen ones.

    Raises:
        FlaxsentError: a pattern of `freeze` that no parameter has, or none is left to train.
    """
    parts = [
        optax.stateless(lambda gradient, _: clipped(gradient, options.max_grad_norm))
        if options.max_grad_norm
        else optax.identity(),
        optax.adamw(schedule or make_schedule(options, num_steps), weight_decay=options.weight_decay, mask=_is_decayed),
    ]
    if not isinstance(options.layer_decay, int | float) or options.layer_decay != 1:  # an array, of a sweep
        depths = dict(jax.tree_util.tree_leaves_with_path(depths_below_top(params)))
        # The whole update is scaled, weight decay included, as a smaller learning rate would.
        parts.append(optax.stateless(lambda updates, _: _scaled(updates, depths, options.layer_decay)))
    optimizer = optax.chain(*parts)
    if not options.freeze and not has_adapters(params):
        return optimizer
    frozen = is_frozen(params, options.freeze)
    labels = jax.tree.map(lambda is_held: "frozen" if is_held else "trained", frozen)
    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def clipped(gradient: optax.Updates, max_norm: float | Array) -> optax.Updates:
    """`optax.clip_by_global_norm` by one factor: its division of every number is a pass of its own on a CPU."""
    factor = jnp.minimum(1.0, max_norm / optax.tree.norm(gradient))
    return jax.tree.map(lambda leaf: leaf * factor, gradient)


def _is_decayed(params: Params) -> Params:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in _DECAYED, params)


_DECAYED = ("kernel", "embedding", "lora_a", "lora_b")


def _scaled(updates: optax.Updates, depths: Mapping[Any, int], decay: float | Array) -> optax.Updates:
    """Updates of frozen parameters are masked: these are not in the tree."""
    return jax.tree_util.tree_map_with_path(lambda path, update: update * decay ** depths[path], updates)


def depths_below_top(params: Params) -> Params:
    """How far each parameter is below the head: the head is 0, the last layer 1, the embeddings come after all layers.

    >>> layers = {"0": {"kernel": 0.0}, "1": {"kernel": 0.0}}
    >>> depths_below_top({"embeddings": {"bias": 0.0}, "layer": layers, "classifier": {"kernel": 0.0}})
    {'classifier': {'kernel': 0}, 'embeddings': {'bias': 3}, 'layer': {'0': {'kernel': 2}, '1': {'kernel': 1}}}
    """
    names = [tuple(str(key.key) for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    # A decoder stands on its encoder.
    blocks = sorted({block for path in names if (block := _block(path))}, key=lambda b: ("decoder" in b[0], b))

    def depth(path: tuple[str, ...]) -> int:
        block = _block(path)
        if block is not None:
            return len(blocks) - blocks.index(block)
        return len(blocks) + 1 if any("embed" in name or name == "shared" for name in path) else 0

    return jax.tree.unflatten(jax.tree.structure(params), [depth(path) for path in names])


def _block(path: tuple[str, ...]) -> tuple[tuple[str, ...], int] | None:
    """The layer that a parameter belongs to: the names before it and its number."""
    for place, (name, number) in enumerate(itertools.pairwise(path)):
        if name.endswith(("layer", "layers")) and number.isdigit():
            return path[:place], int(number)
    return None


def is_frozen(params: Params, patterns: tuple[str, ...]) -> Params:
    """Which parameters match one of the patterns of `freeze`; where there are adapters, those of the encoder are, too.

    Raises:
        FlaxsentError: a pattern that no parameter has, or none is left to train.
    """
    names = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="."), params
    )
    for pattern in patterns:
        if not fnmatch.filter(jax.tree.leaves(names), pattern):
            raise FlaxsentError(
                f"freeze: no parameter matches {pattern!r}; they have names such as {jax.tree.leaves(names)[0]}."
            )
    frozen = jax.tree.map(lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns), names)
    if has_adapters(params):
        frozen = jax.tree.map(lambda is_held, is_used: is_held or not is_used, frozen, is_trained(params))
    if all(jax.tree.leaves(frozen)):
        raise FlaxsentError(f"freeze={', '.join(patterns)} leaves nothing to train.")
    return frozen
