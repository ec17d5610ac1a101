"""How parameters move: `TrainOptions`, and the optimizer that they describe (optax); `train.py` is next."""

import dataclasses
import fnmatch
import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import optax

from flaxsent.base import FlaxsentError, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How `fit` trains; the defaults fine-tune a small encoder on some ten thousand sentences.

    Raises:
        FlaxsentError: a number that is out of its range, by name.
    """

    learning_rate: float = 1e-4
    """Peak of a schedule that rises over `warmup` and falls to 0 as `schedule` says."""
    schedule: Literal["linear", "cosine"] = "linear"
    warmup: float = 0.06
    """Share of the steps."""
    batch_size: int = 64
    """Texts in a step: on average where rows are packed, exactly where they are padded."""
    tokens_per_step: int | None = None
    """Places for tokens in a step, in the place of `batch_size`."""
    accumulation: int = 1
    """Parts in which a step is computed, one after the other; the step stays the same."""
    num_epochs: int = 3
    weight_decay: float = 0.01
    """Of kernels and embeddings; biases and LayerNorms have none, as Devlin et al. (2018) train."""
    max_grad_norm: float = 1.0
    """Longer gradients are cut to this; 0 cuts none."""
    layer_decay: float = 1.0
    """Each layer learns so many times as fast as the one above it, and the embeddings slowest (Clark et al. 2020)."""
    freeze: tuple[str, ...] = ()
    """Patterns of parameters that stay as they are: "bert.embeddings.*"."""
    label_smoothing: float = 0.0
    """Share of the target that all labels have alike (Szegedy et al. 2016)."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the computation, the classifier's own by default; parameters, gradients and the optimizer are float32."""
    average_decay: float = 0.999
    """Of the moving average of the parameters, which is what is evaluated and returned; 0 is no average."""
    early_stopping: int = 0
    """Epochs without a better score on dev after which a run ends, with the best epoch's parameters; 0: all epochs."""
    teacher_weight: float = 0.5
    """Share of the loss that is the distance to a teacher's scores, if there is one (Hinton et al. 2015)."""
    teacher_temperature: float = 2.0
    """By which the logits of both are divided for that."""
    max_length: int = 128
    """Tokens after which texts are cut."""
    seed: int = 0

    def __post_init__(self) -> None:
        for names, (expected, is_good) in _RANGES.items():
            for name in names.split():
                value = getattr(self, name)
                if not (isinstance(value, int | float) and not isinstance(value, bool) and is_good(value)):
                    raise FlaxsentError(f"{name}={value!r}; expected {expected}.")
        if self.tokens_per_step is not None and not _RANGES[_WHOLE][1](self.tokens_per_step):
            raise FlaxsentError(f"tokens_per_step={self.tokens_per_step!r}; expected {_RANGES[_WHOLE][0]}.")
        if self.schedule not in ("linear", "cosine"):
            raise FlaxsentError(f"schedule={self.schedule!r}; expected linear or cosine.")
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise FlaxsentError(f"dtype={self.dtype!r}; expected float32, bfloat16 or float16.")
        if isinstance(self.freeze, str):
            raise FlaxsentError(f"freeze={self.freeze!r} is a text; expected a tuple of patterns.")


_WHOLE = "batch_size accumulation num_epochs max_length"
_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    _WHOLE: ("a whole number of 1 or more", lambda value: isinstance(value, int) and value >= 1),
    "early_stopping seed": (
        "a whole number of 0 or more",
        lambda value: isinstance(value, int) and 0 <= value < 2**32,
    ),
    "warmup label_smoothing average_decay": ("a number in [0, 1)", lambda value: 0 <= value < 1),
    "teacher_weight": ("a number in [0, 1]", lambda value: 0 <= value <= 1),
    "layer_decay": ("a number in (0, 1]", lambda value: 0 < value <= 1),
    "learning_rate teacher_temperature": ("a positive number", lambda value: 0 < value < float("inf")),
    "weight_decay max_grad_norm": ("a number of 0 or more", lambda value: 0 <= value < float("inf")),
}


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


def make_optimizer(options: TrainOptions, num_steps: int, params: Params) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2017) with all that the options say.

    Raises:
        FlaxsentError: a pattern of `freeze` that no parameter has, or none is left to train.
    """
    parts = [
        optax.clip_by_global_norm(options.max_grad_norm) if options.max_grad_norm else optax.identity(),
        optax.adamw(make_schedule(options, num_steps), weight_decay=options.weight_decay, mask=_is_decayed),
    ]
    if options.layer_decay != 1:
        depths = dict(jax.tree_util.tree_leaves_with_path(depths_below_top(params)))
        # The whole update is scaled, weight decay included, as a smaller learning rate would.
        parts.append(optax.stateless(lambda updates, _: _scaled(updates, depths, options.layer_decay)))
    optimizer = optax.chain(*parts)
    if not options.freeze:
        return optimizer
    frozen = is_frozen(params, options.freeze)
    labels = jax.tree.map(lambda is_held: "frozen" if is_held else "trained", frozen)
    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def _is_decayed(params: Params) -> Params:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in ("kernel", "embedding"), params)


def _scaled(updates: optax.Updates, depths: Mapping[Any, int], decay: float) -> optax.Updates:
    """Of updates some may be masked, because their parameters are frozen."""
    return jax.tree_util.tree_map_with_path(lambda path, update: update * decay ** depths[path], updates)


def depths_below_top(params: Params) -> Params:
    """How far below the head each parameter stands: the head 0, the last layer 1, the embeddings one more than all.

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
    """Which parameters match one of the patterns of `freeze`.

    Raises:
        FlaxsentError: a pattern that no parameter has, or none is left to train.
    """
    names = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="."), params
    )
    for pattern in patterns:
        if not fnmatch.filter(jax.tree.leaves(names), pattern):
            raise FlaxsentError(
                f"freeze: no parameter matches {pattern!r}; they are called {jax.tree.leaves(names)[0]} and alike."
            )
    frozen = jax.tree.map(lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns), names)
    if all(jax.tree.leaves(frozen)):
        raise FlaxsentError(f"freeze={', '.join(patterns)} leaves nothing to train.")
    return frozen
