"""The trainer's step, as functions of its shape that compile for devices which are not here."""

from collections.abc import Sequence
from typing import Any, Literal

import jax

from flaxsent import placement
from flaxsent.base import Encodings, FlaxsentError
from flaxsent.bench import products
from flaxsent.bench.work import Work, abstract, check, dtype_of
from flaxsent.classifier import Classifier
from flaxsent.data.labels import Examples
from flaxsent.packing import StepShape
from flaxsent.sharding import check_heads
from flaxsent.training.batches import Corpus, Plan, labels_as_arrays, step_shapes
from flaxsent.training.optimizer import make_optimizer
from flaxsent.training.options import TrainOptions
from flaxsent.training.trainer import first_state, forward_of_rows, key_of, step_of


def training(
    classifier: Classifier,
    devices: Sequence[Any],
    *,
    row_lengths: Sequence[int] | None = None,
    tokens_per_step: int | None = None,
    tokens_per_text: float = 25.0,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    sharding: str = "data",
) -> Work:
    """The trainer's step: loss, gradient and update of a batch, with its default options and the whole table of words.

    Args: as `inference`; without `tokens_per_step`, a step has as many texts as those of `flaxsent train`, of
    `tokens_per_text` tokens each.

    Raises:
        FlaxsentError: an exported folder, or a number that is not positive.
        MissingPackageError: the packages of the extra `train` are not installed.
    """
    if classifier.backend == "exported":
        raise FlaxsentError("an exported folder cannot be trained; plan for the checkpoint that it was exported from.")
    check(row_lengths, tokens_per_step)
    options = TrainOptions(dtype=dtype, sharding=sharding)
    placed = placement.over(devices, sharding)
    check_heads(classifier.config, placed.sharding)
    lengths = [min(options.max_length, classifier.tokenizer.max_length)] if row_lengths is None else row_lengths
    shapes = [
        step_shapes(
            [max(round(tokens_per_text), 1)],
            longest=length,
            is_packed=classifier.packs,
            batch_size=options.batch_size,
            tokens_per_step=tokens_per_step and tokens_per_step * placed.num_groups,
            multiple_of=placed.num_groups * options.accumulation,
            shortest=placement.shortest_row(devices),
        )[-1]
        for length in lengths
    ]
    params = abstract(classifier.params)
    optimizer = make_optimizer(options, _STEPS, params)
    state = jax.eval_shape(lambda params: first_state(params, optimizer, key_of(0)), params)
    config = classifier.config
    no_label = {"single_label_classification": 0, "multi_label_classification": (0,), "regression": 0.0}
    labels = labels_as_arrays(Examples([""], [no_label[config.problem_type]]), config)

    def batch(shape: StepShape) -> Any:
        """Of one text, of one token."""
        return Corpus(Encodings([[0]], [[0]]), labels).batch(Plan(shape, [[0], *[[]] * (shape.num_rows - 1)]))

    def step(shape: StepShape) -> Any:
        forward = forward_of_rows(classifier, options, shape.num_segments, call=placed.call)
        return step_of(classifier, options, optimizer, forward)

    def lower(shape: StepShape) -> jax.stages.Lowered:
        of_state = placed.of(state)
        shardings: dict[str, Any] = {
            "in_shardings": (of_state, placed.by_row),
            "out_shardings": (of_state, placed.replicated),
        }
        return jax.jit(step(shape), donate_argnums=0, **shardings).lower(state, batch(shape))

    def counted(shape: StepShape) -> products.Products | None:
        return products.count(step(shape), state, batch(shape))

    shapes = tuple(sorted({*shapes}, key=lambda shape: shape.row_length))
    multiple_of = placed.num_groups * options.accumulation
    return Work("training", dtype or dtype_of(classifier), shapes, len(devices), multiple_of, lower, counted)


_STEPS = 1000
"""Of a run; its schedule is in the step, and costs nothing."""
