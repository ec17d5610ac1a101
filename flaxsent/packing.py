"""Ragged ids ↔ rows of arrays, on the host (NumPy only): comes after `tokenization.py`, before `models/`.

Two layouts of the same `Tokens`: `pad` puts one text in a row, `pack` puts as many as fit. Nothing to the right of this
file knows which was used. `pack_steps` lays out a stream in batches of a few fixed shapes, `list_steps` a list at once.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from flaxsent.base import Encodings, FlaxsentError, Tokens

SEGMENT_TOKENS = 8
"""Packed rows of fixed shapes have room for a text for every so many tokens."""

PACKED_ROW = 128
"""The shortest packed row of a stream (`placement.shortest_row`): it can be filled well, and is a tile of a TPU."""

AS_FULL = 0.97
"""The share of their tokens that makes shorter rows the better ones."""


def row_lengths(longest: int, *, shortest: int = 16) -> list[int]:
    """The lengths that rows may have, few enough to compile each: doubled, and once between; `longest` is the last.

    >>> row_lengths(100)
    [16, 24, 32, 48, 64, 96, 100]
    """
    table = (length for power in range(32) for length in (2 << power, 3 << power))
    return [*itertools.takewhile(lambda length: length < longest, (n for n in table if n >= shortest)), longest]


def num_segments(row_length: int) -> int:
    """Most texts in a packed row of a fixed shape."""
    return -(-row_length // SEGMENT_TOKENS)


class Placement(NamedTuple):
    """Where `pack` put each text."""

    row: Int[np.ndarray, " B"]
    segment: Int[np.ndarray, " B"]
    """Index of the text within its row, from 0: its `segment_ids` less one."""


class StepShape(NamedTuple):
    """The fixed shape of a batch of rows: what compiles once."""

    num_rows: int
    row_length: int
    """In tokens."""
    num_segments: int
    """Most texts in a row."""


class Step(NamedTuple):
    """A batch of rows of a fixed shape, and which texts lie where in it."""

    shape: StepShape
    tokens: Tokens
    texts: Int[np.ndarray, " B"]
    """Index of each text among those that were packed."""
    placement: Placement


def stream_shapes(
    lengths: Sequence[int] | None,
    *,
    is_packed: bool,
    longest: int,
    tokens_per_step: int,
    num_devices: int,
    shortest: int = PACKED_ROW,
) -> tuple[StepShape, ...]:
    """The shapes of the steps of a stream, the shortest rows first: of these lengths, or of the fewest that do.

    Of packed rows without `lengths`, none is shorter than `shortest`, a power of two.

    Raises:
        FlaxsentError: there are no lengths, or no row takes the longest text.
    """
    if lengths is None:
        lengths = row_lengths(longest)
        if is_packed:  # full rows need no lengths between
            doubled = [length for length in lengths if length >= shortest and length & (length - 1) == 0]
            lengths = [*(length for length in doubled if length < longest), max(longest, shortest)]
    if not lengths or min(lengths) < 1 or max(lengths) < longest:
        raise FlaxsentError(f"row_lengths={lengths}: expected numbers of which one is at least {longest}, the limit.")
    return tuple(
        StepShape(
            num_rows=max(tokens_per_step // length, 1) * num_devices,
            row_length=length,
            num_segments=num_segments(length) if is_packed else 1,
        )
        for length in sorted(set(lengths))
    )


def pad(encodings: Encodings, *, length: int | None = None) -> Tokens:
    """Lays one text in each row, `[B, L]`; L is `length`, or the longest text.

    Raises:
        FlaxsentError: a text is longer than `length`.

    >>> pad(Encodings([[7, 8], [9]], [[0, 0], [0]])).input_ids.tolist()
    [[7, 8], [9, 0]]
    """
    longest = max(encodings.lengths, default=1)
    if length is not None and longest > length:
        raise FlaxsentError(
            f"length={length} is less than the {longest} tokens of a text; truncate it in encode first."
        )
    return _lay_out(
        encodings,
        Placement(np.arange(len(encodings.input_ids)), np.zeros(len(encodings.input_ids), np.int64)),
        shape=(len(encodings.input_ids), longest if length is None else length),
    )


def check_padded(tokens: Tokens) -> None:
    """Refuses packed rows, of which only the first text would count, where they can be seen: on the host.

    Raises:
        FlaxsentError: a row holds more than one text.
    """
    if isinstance(tokens.segment_ids, np.ndarray) and tokens.segment_ids.max(initial=0) > 1:
        raise FlaxsentError(
            "these rows hold more than one text; this function takes padded ones: pass packed rows to "
            "forward_packed with num_segments."
        )


def select(encodings: Encodings, indices: Sequence[int]) -> Encodings:
    """The texts at `indices`, in that order."""
    return encodings._replace(
        input_ids=[encodings.input_ids[index] for index in indices],
        token_type_ids=[encodings.token_type_ids[index] for index in indices],
        num_truncated=0,
    )


def pack(encodings: Encodings, *, row_length: int, max_segments: int | None = None) -> tuple[Tokens, Placement]:
    """Lays texts end to end in few rows: longest first, into the fullest row that has room (best fit decreasing).

    `max_segments` bounds the number of texts in a row.

    Raises:
        FlaxsentError: a text is longer than a row, or `max_segments` is less than 1.

    >>> tokens, placement = pack(Encodings([[7], [8, 9], [5]], [[0], [0, 0], [0]]), row_length=4)
    >>> tokens.input_ids.tolist(), tokens.segment_ids.tolist(), placement.segment.tolist()
    ([[8, 9, 7, 5]], [[1, 1, 2, 3]], [1, 0, 2])
    """
    if max_segments is not None and max_segments < 1:
        raise FlaxsentError(f"max_segments={max_segments} leaves no room for a text; pass 1 or more.")
    lengths = encodings.lengths
    if max(lengths, default=0) > row_length:
        raise FlaxsentError(
            f"row_length={row_length} is less than the {max(lengths)} tokens of a text; use longer rows."
        )
    shape = StepShape(0, row_length, len(lengths) if max_segments is None else max_segments)
    rows = best_fit(sorted(range(len(lengths)), key=lambda text: -lengths[text]), lengths, shape)
    texts, placement = _place(rows)
    placement = Placement(*(array[np.argsort(texts)] for array in placement))
    return _lay_out(encodings, placement, shape=(len(rows), row_length)), placement


def pack_steps(encodings: Encodings, shapes: Sequence[StepShape]) -> list[Step]:
    """Packs texts into steps of the given shapes, the shortest rows last.

    Texts that need long rows open them; shorter texts fill what is left of these rows and of their last step. So rows
    that are not full stand in the last step of the shortest shape at most, unless short texts run out. Packed rows
    shorter than `PACKED_ROW` are left out where they would be filled less well.

    Raises:
        FlaxsentError: a text is longer than the longest row.
    """
    lengths = encodings.lengths
    shapes = sorted(shapes, key=lambda shape: shape.row_length)
    if max(lengths, default=0) > shapes[-1].row_length:
        raise FlaxsentError(f"a text of {max(lengths)} tokens is longer than the rows of {shapes[-1].row_length}.")
    left = sorted(range(len(lengths)), key=lengths.__getitem__)
    steps = []
    for index, shape in reversed([*enumerate(shapes)]):
        shorter = _longest_text(shapes[index - 1], shape, left, lengths) if index else -1
        first = bisect.bisect_right(left, shorter, key=lengths.__getitem__)
        rows = best_fit(left[first:][::-1], lengths, shape)
        left = left[:first]
        rows += [[] for _ in range(-len(rows) % shape.num_rows)]
        _fill(rows, left, lengths, shape)
        for start in range(0, len(rows), shape.num_rows):
            chosen = rows[start : start + shape.num_rows]
            if any(chosen):
                steps.append(Step(shape, *lay_rows(encodings, chosen, row_length=shape.row_length)))
    return steps


def _longest_text(shape: StepShape, longer: StepShape, texts: Sequence[int], lengths: Sequence[int]) -> int:
    """That opens a row of this shape rather than of the longer one; `texts` are sorted by length."""
    if shape.num_segments == 1 or shape.row_length >= PACKED_ROW:
        return shape.row_length
    fitting = texts[: bisect.bisect_right(texts, shape.row_length, key=lengths.__getitem__)][::-1]
    is_as_full = fill_of(fitting, lengths, shape) >= AS_FULL * fill_of(fitting, lengths, longer)
    return shape.row_length if is_as_full else -1


def fill_of(texts: Sequence[int], lengths: Sequence[int], shape: StepShape) -> float:
    """The share of the places of packed rows that have a token; 0 of no texts."""
    rows = best_fit(texts, lengths, shape)
    return sum(lengths[text] for text in texts) / max(len(rows) * shape.row_length, 1)


def list_steps(encodings: Encodings, *, longest: int, is_packed: bool) -> Iterator[Step]:
    """Lays out a list at once: steps of texts of like length, with a number of rows that is a power of two.

    `longest` is the limit of the checkpoint. A step has no more than `_MOST_TOKENS` places, or one row.

    >>> encodings = Encodings([[7] * 9, [8] * 30], [[0] * 9, [0] * 30])
    >>> [step.shape for step in list_steps(encodings, longest=64, is_packed=True)]
    [StepShape(num_rows=2, row_length=32, num_segments=4)]
    """
    lengths = encodings.lengths
    table = row_lengths(longest)
    left = sorted(range(len(lengths)), key=lengths.__getitem__)
    while left:
        row_length = table[bisect.bisect_left(table, lengths[left[-1]])]
        shape = StepShape(
            1 << max(_MOST_TOKENS // row_length, 1).bit_length() - 1,
            row_length,
            num_segments(row_length) if is_packed else 1,
        )
        if is_packed:
            candidates = left[: -shape.num_rows * shape.num_segments - 1 : -1]  # as many as may fill the step
            rows = best_fit(candidates, lengths, shape)[: shape.num_rows]
        else:
            rows = [[text] for text in left[: -shape.num_rows - 1 : -1]]
        taken = {text for row in rows for text in row}
        left = [text for text in left if text not in taken]
        num_rows = 1 << (len(rows) - 1).bit_length()
        rows += [[] for _ in range(num_rows - len(rows))]
        yield Step(shape._replace(num_rows=num_rows), *lay_rows(encodings, rows, row_length=row_length))


_MOST_TOKENS = 8192
"""Places of a step of `list_steps`: what its attention takes is bounded, whatever the length of the texts."""


def lay_rows(
    encodings: Encodings, rows: Sequence[Sequence[int]], *, row_length: int
) -> tuple[Tokens, Int[np.ndarray, " B"], Placement]:
    """The tokens of rows that were chosen before, with the index of each text and where it stands.

    >>> tokens, texts, placement = lay_rows(Encodings([[7], [8, 9]], [[0], [0, 0]]), [[1, 0], []], row_length=4)
    >>> tokens.input_ids.tolist(), texts.tolist(), placement.segment.tolist()
    ([[8, 9, 7, 0], [0, 0, 0, 0]], [1, 0], [0, 1])
    """
    texts, placement = _place(rows)
    return _lay_out(select(encodings, texts.tolist()), placement, shape=(len(rows), row_length)), texts, placement


def best_fit(texts: Sequence[int], lengths: Sequence[int], shape: StepShape) -> list[list[int]]:
    """Rows of texts: each text goes into the fullest row that has room. Few rows are needed if the longest come first.

    >>> best_fit([0, 1, 2], [3, 2, 1], StepShape(1, 4, 2))
    [[0, 2], [1]]
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for text in texts:
        best = bisect.bisect_left(open_rows, (lengths[text],))
        if best < len(open_rows):
            free, row = open_rows.pop(best)
        else:
            free, row = shape.row_length, len(rows)
            rows.append([])
        rows[row].append(text)
        if len(rows[row]) < shape.num_segments:
            bisect.insort(open_rows, (free - lengths[text], row))
    return rows


def unpack(values: Shaped[np.ndarray, "R S *values"], placement: Placement) -> Shaped[np.ndarray, "B *values"]:
    """The texts' values in the order in which `pack` was given them."""
    return values[placement.row, placement.segment]


def _fill(rows: list[list[int]], left: list[int], lengths: Sequence[int], shape: StepShape) -> None:
    """Moves texts from `left`, which is sorted, to rows that have room: the longest that fits, again and again."""
    for row in rows:
        free = shape.row_length - sum(lengths[text] for text in row)
        while len(row) < shape.num_segments:
            fitting = bisect.bisect_right(left, free, key=lengths.__getitem__)
            if not fitting:
                break
            row.append(left.pop(fitting - 1))
            free -= lengths[row[-1]]


def _place(rows: Sequence[Sequence[int]]) -> tuple[Int[np.ndarray, " B"], Placement]:
    """The texts of the rows, row by row, and where each stands."""
    counts = np.array([len(row) for row in rows], np.int64)
    texts = np.array([*itertools.chain.from_iterable(rows)], np.int64)
    return texts, Placement(np.repeat(np.arange(len(rows)), counts), _within(counts))


def _within(counts: Int[np.ndarray, " N"]) -> Int[np.ndarray, " M"]:
    """0 to one less than each count, end to end.

    >>> _within(np.array([2, 0, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _lay_out(encodings: Encodings, placement: Placement, *, shape: tuple[int, int]) -> Tokens:
    lengths = np.array(encodings.lengths, np.int64)
    # A text begins where the texts before it in its row end.
    order = np.lexsort((placement.segment, placement.row))
    ends = np.cumsum(lengths[order])
    row_starts = np.concatenate([[0], ends])[np.searchsorted(placement.row[order], np.arange(shape[0]))]
    starts = np.zeros_like(lengths)
    starts[order] = ends - lengths[order] - row_starts[placement.row[order]]
    position, input_ids = _within(lengths), _flat(encodings.input_ids)
    cells = np.repeat(placement.row * shape[1] + starts, lengths) + position
    if encodings.first_position:  # transformers' create_position_ids_from_input_ids
        padding_idx = encodings.first_position - 1
        counts = np.cumsum(input_ids != padding_idx)
        before = np.concatenate([[0], counts])[np.cumsum(lengths) - lengths]
        position = np.where(input_ids == padding_idx, 0, counts - np.repeat(before, lengths)) + padding_idx

    def rows(fill: int, values: Int[np.ndarray, " M"]) -> Int[np.ndarray, "R T"]:
        array = np.full(shape[0] * shape[1], fill, np.int32)
        array[cells] = values
        return array.reshape(shape)

    return Tokens(
        input_ids=rows(encodings.pad_token_id, input_ids),
        token_type_ids=rows(0, _flat(encodings.token_type_ids)),
        position_ids=rows(0, position),
        segment_ids=rows(0, np.repeat(placement.segment + 1, lengths)),
    )


def _flat(ids: Sequence[Sequence[int]]) -> Int[np.ndarray, " M"]:
    return np.fromiter(itertools.chain.from_iterable(ids), np.int32)
