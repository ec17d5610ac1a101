"""Labelled texts as the batches of a run: ragged ids → steps of a few fixed shapes; `optimizer.py` is next.

Which text stands where in which step is a function of the lengths, the shapes, the seed and the epoch alone: so a run
can go on from any step, and each of several processes can make its own rows of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from flaxsent.base import AnyArray, Encodings, FlaxsentError, Tokens
from flaxsent.data.labels import Examples
from flaxsent.models.config import ModelConfig
from flaxsent.packing import AS_FULL, PACKED_ROW, StepShape, best_fit, fill_of, lay_rows, row_lengths


class Batch(NamedTuple):
    """Rows of tokens with what is to be learned of each text: `*texts` is `R S`, or `B` for padded texts."""

    tokens: Tokens
    labels: Shaped[AnyArray, "*texts_or_C"]
    """One label of several: its index, int32. Regression: the value. Multi-label: 0 or 1 for each label, `*texts C`."""
    weights: Float[AnyArray, "*texts"]
    """1 for a text, 0 where there is none."""
    teacher: Float[AnyArray, "*texts C"] | None = None
    """Another classifier's scores of the texts, to be learned too."""
    is_labelled: Float[AnyArray, "*texts"] | None = None
    """1 for a text with a label, 0 where only the teacher's scores are to be learned; None: all texts have a label."""


class Plan(NamedTuple):
    """A step before it is laid out: its shape, and the texts in each of its rows."""

    shape: StepShape
    rows: list[list[int]]


class Corpus(NamedTuple):
    """Encoded texts with their labels as arrays; texts without labels come last."""

    encodings: Encodings
    labels: Shaped[np.ndarray, "*L_or_C"]
    """Of the first L texts."""
    teacher: Float[np.ndarray, "N C"] | None = None

    def batch(self, plan: Plan, part: slice = slice(None)) -> Batch:
        """The arrays of a step, or of a part of its rows."""
        rows = plan.rows[part]
        tokens, texts, placement = lay_rows(self.encodings, rows, row_length=plan.shape.row_length)

        def lay(values: Shaped[np.ndarray, "B *values"]) -> Shaped[np.ndarray, "R S *values"]:
            laid = np.zeros((len(rows), plan.shape.num_segments, *values.shape[1:]), values.dtype)
            laid[placement.row, placement.segment] = values
            return laid

        is_labelled = texts < len(self.labels)
        labels = self.labels[np.where(is_labelled, texts, 0)]  # a text without a label gets any: it counts for nothing
        batch = Batch(tokens, lay(labels), lay(np.ones(len(texts), np.float32)))
        if self.teacher is None:
            return batch
        return batch._replace(teacher=lay(self.teacher[texts]), is_labelled=lay(is_labelled.astype(np.float32)))


def labels_as_arrays(data: Examples, config: ModelConfig) -> Shaped[np.ndarray, "*N_or_C"]:
    """Checks the labels against the config.

    Raises:
        FlaxsentError: there are no texts, or a label is not of the config's kind; the message says of which text.
    """
    if not data.texts or len(data.texts) != len(data.labels):
        raise FlaxsentError(
            f"{len(data.texts)} texts with {len(data.labels)} labels; expected as many, and at least one."
        )
    match config.problem_type:
        case "single_label_classification":
            expected = f"an index from 0 to {config.num_labels - 1}"
            is_good = [_is_index(label, config) for label in data.labels]
        case "multi_label_classification":
            expected = f"a tuple of indices from 0 to {config.num_labels - 1}"
            is_good = [
                isinstance(label, tuple | list) and all(_is_index(one, config) for one in label)
                for label in data.labels
            ]
        case "regression":
            if config.num_labels > 1:
                raise FlaxsentError(f"regression to {config.num_labels} values is not implemented; expected one label.")
            expected = "a finite number"
            is_good = [isinstance(label, int | float) and bool(np.isfinite(label)) for label in data.labels]
    if not all(is_good):
        text = is_good.index(False)
        raise FlaxsentError(f"the label of text {text} is {data.labels[text]!r}; expected {expected}.")
    if config.problem_type == "multi_label_classification":
        hot_NC = np.zeros((len(data.labels), config.num_labels), np.float32)
        for row, label in zip(hot_NC, data.labels, strict=True):
            row[list(label)] = 1
        return hot_NC
    return np.asarray(data.labels, np.float32 if config.problem_type == "regression" else np.int32)


def _is_index(label: object, config: ModelConfig) -> bool:
    return isinstance(label, int | np.integer) and 0 <= int(label) < config.num_labels


def step_shapes(
    lengths: Sequence[int],
    *,
    longest: int,
    is_packed: bool,
    batch_size: int,
    tokens_per_step: int | None,
    multiple_of: int,
    shortest: int = PACKED_ROW,
) -> tuple[StepShape, ...]:
    """The shapes of a run's steps: one where texts are packed, one for each row length where they are padded.

    A packed step holds `tokens_per_step`, or as many tokens as `batch_size` texts have on average; a padded one holds
    `tokens_per_step`, or `batch_size` texts. The number of rows is a multiple of `multiple_of`. Packed rows are as
    short as they can be filled, and not shorter than `shortest`.

    >>> step_shapes([20] * 100, longest=30, is_packed=True, batch_size=64, tokens_per_step=None, multiple_of=1)
    (StepShape(num_rows=10, row_length=128, num_segments=16),)
    """

    def num_rows(number: int | float) -> int:
        return max(round(number / multiple_of), 1) * multiple_of

    if is_packed:
        shapes = [_packed_row(lengths, row_length) for row_length in _packed_rows(longest, shortest)]
        sample = np.random.default_rng(0).permutation(len(lengths))[:_SAMPLE].tolist()
        fills = [fill_of(sample, lengths, shape) for shape in shapes]
        shape = next(shape for shape, fill in zip(shapes, fills, strict=True) if fill >= AS_FULL * max(fills))
        tokens = tokens_per_step or batch_size * float(np.mean(lengths))
        return (shape._replace(num_rows=num_rows(tokens / shape.row_length)),)
    return tuple(
        StepShape(num_rows(batch_size if tokens_per_step is None else tokens_per_step / length), length, 1)
        for length in row_lengths(longest, shortest=_SHORTEST_PADDED_ROW)
    )


def _packed_rows(longest: int, shortest: int) -> list[int]:
    """Lengths of packed rows that take the longest text.

    >>> _packed_rows(50, 64), _packed_rows(50, 128), _packed_rows(130, 64)
    ([64, 96, 128], [128], [192])
    """
    least = max(shortest, -(-longest // 32) * 32)
    return [*range(least, PACKED_ROW + 1, 32)] or [-(-longest // 64) * 64]


def _packed_row(lengths: Sequence[int], row_length: int) -> StepShape:
    """One row, with room for as many texts as may be in it."""
    most = -(-round(_SEGMENTS_BY_MEDIAN * row_length / float(np.median(lengths))) // 8) * 8
    return StepShape(1, row_length, min(most, row_length // _SEGMENT_TOKENS))


_SAMPLE = 4096
"""Texts by which it is seen how well rows can be filled."""
_SEGMENTS_BY_MEDIAN = 2
"""Packed rows have room for so many times the texts of median length that fill one: the last layer is computed for
each. (By the mean, a few long texts among many short ones would leave rows of short ones half empty.)"""
_SEGMENT_TOKENS = 4
"""They have no more room than for a text for every so many tokens: a phrase has few."""
_SHORTEST_PADDED_ROW = 8
_POOL = 50
"""Padded steps whose texts are sorted by length together."""
_CHUNK = 1 << 16
"""Texts that are packed together: for more of them, the time that packing takes grows with their square."""


def plan_epoch(
    lengths: Sequence[int], shapes: Sequence[StepShape], *, is_packed: bool, seed: int, epoch: int
) -> list[Plan]:
    """The steps of an epoch, each text in one of them; depends on nothing but its arguments."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths)).tolist()
    plans = _packed(order, lengths, shapes[0], rng) if is_packed else _padded(order, lengths, shapes, rng)
    return [Plan(shape, rows + [[] for _ in range(shape.num_rows - len(rows))]) for shape, rows in plans]


def _packed(order: list[int], lengths: Sequence[int], shape: StepShape, rng: np.random.Generator) -> list[Plan]:
    """Texts are packed in random order, not longest first: so each step has about as many of them."""
    rows = []
    for start in range(0, len(order), _CHUNK):
        rows += best_fit(order[start : start + _CHUNK], lengths, shape)
    num_steps = -(-len(rows) // shape.num_rows)
    # Rows are spread over the steps: a small last step would give its texts more weight.
    steps = np.array_split(rng.permutation(len(rows)), num_steps)
    return [Plan(shape, [rows[row] for row in step]) for step in steps]


def _padded(
    order: list[int], lengths: Sequence[int], shapes: Sequence[StepShape], rng: np.random.Generator
) -> list[Plan]:
    """Each step has texts of similar length."""
    plans, pool = [], _POOL * max(shape.num_rows for shape in shapes)
    for start in range(0, len(order), pool):
        texts = sorted(order[start : start + pool], key=lengths.__getitem__)
        while texts:
            shape = next(shape for shape in shapes if shape.row_length >= lengths[texts[-1]])
            plans.append(Plan(shape, [[text] for text in texts[-shape.num_rows :]]))
            del texts[-shape.num_rows :]
    return [plans[index] for index in rng.permutation(len(plans))]
