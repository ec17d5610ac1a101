"""Ragged ids ↔ rows of arrays, on the host (NumPy only): comes after `tokenization.py`, before `encoders/`.

Two layouts of the same `Tokens`: `pad` puts one text in a row, `pack` puts as many as fit. Nothing to the right of this
file knows which was used.
"""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from flaxsent.types import Encodings, Tokens


class Placement(NamedTuple):
    """Where `pack` put each text."""

    row: Int[np.ndarray, " B"]
    segment: Int[np.ndarray, " B"]
    """Index of the text within its row, from 0: its `segment_ids` less one."""


def pad(encodings: Encodings, *, length: int | None = None, first_position: int = 0, pad_token_id: int = 0) -> Tokens:
    """Lays one text in each row, `[B, L]`; L is `length`, or the longest text.

    `first_position` is the position of a text's first token: 0, or `padding_idx + 1` for RoBERTa families.

    Raises:
        ValueError: a text is longer than `length`.

    >>> pad(Encodings([[7, 8], [9]], [[0, 0], [0]], 0)).input_ids.tolist()
    [[7, 8], [9, 0]]
    """
    longest = max(map(len, encodings.input_ids), default=1)
    if length is not None and longest > length:
        raise ValueError(f"length={length} is less than the {longest} tokens of a text; truncate it in encode first.")
    return _lay_out(
        encodings,
        Placement(np.arange(len(encodings.input_ids)), np.zeros(len(encodings.input_ids), np.int64)),
        shape=(len(encodings.input_ids), longest if length is None else length),
        first_position=first_position,
        pad_token_id=pad_token_id,
    )


def select(encodings: Encodings, indices: Sequence[int]) -> Encodings:
    """The texts at `indices`, in that order."""
    return Encodings(
        input_ids=[encodings.input_ids[index] for index in indices],
        token_type_ids=[encodings.token_type_ids[index] for index in indices],
        num_truncated=0,
    )


def pack(
    encodings: Encodings,
    *,
    row_length: int,
    max_segments: int | None = None,
    first_position: int = 0,
    pad_token_id: int = 0,
) -> tuple[Tokens, Placement]:
    """Lays texts end to end in few rows: longest first, into the fullest row that has room (best fit decreasing).

    `max_segments` bounds the number of texts in a row.

    Raises:
        ValueError: a text is longer than a row, or `max_segments` is less than 1.

    >>> tokens, placement = pack(Encodings([[7], [8, 9], [5]], [[0], [0, 0], [0]], 0), row_length=4)
    >>> tokens.input_ids.tolist(), tokens.segment_ids.tolist(), placement.segment.tolist()
    ([[8, 9, 7, 5]], [[1, 1, 2, 3]], [1, 0, 2])
    """
    if max_segments is not None and max_segments < 1:
        raise ValueError(f"max_segments={max_segments} leaves no room for a text; pass 1 or more.")
    lengths = [len(ids) for ids in encodings.input_ids]
    if max(lengths, default=0) > row_length:
        raise ValueError(f"row_length={row_length} is less than the {max(lengths)} tokens of a text; use longer rows.")
    placement = Placement(np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64))
    num_rows = 0
    open_rows: list[tuple[int, int, int]] = []  # (free tokens, row, texts so far), sorted
    for text in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        best = bisect.bisect_left(open_rows, (lengths[text],))
        if best < len(open_rows):
            free, row, segment = open_rows.pop(best)
        else:
            free, row, segment = row_length, num_rows, 0
            num_rows += 1
        placement.row[text], placement.segment[text] = row, segment
        if max_segments is None or segment + 1 < max_segments:
            bisect.insort(open_rows, (free - lengths[text], row, segment + 1))
    shape = (num_rows, row_length)
    tokens = _lay_out(encodings, placement, shape=shape, first_position=first_position, pad_token_id=pad_token_id)
    return tokens, placement


def unpack(values_RSC: Float[np.ndarray, "R S C"], placement: Placement) -> Float[np.ndarray, "B C"]:
    """The texts' values in the order in which `pack` was given them."""
    return values_RSC[placement.row, placement.segment]


def _lay_out(
    encodings: Encodings, placement: Placement, *, shape: tuple[int, int], first_position: int, pad_token_id: int
) -> Tokens:
    tokens = Tokens(
        input_ids=np.full(shape, pad_token_id, np.int32),
        token_type_ids=np.zeros(shape, np.int32),
        position_ids=np.zeros(shape, np.int32),
        segment_ids=np.zeros(shape, np.int32),
    )
    filled = [0] * shape[0]
    for text in np.argsort(placement.segment, kind="stable").tolist():
        ids, row = encodings.input_ids[text], int(placement.row[text])
        cells = (row, slice(filled[row], filled[row] + len(ids)))
        tokens.input_ids[cells] = ids
        tokens.token_type_ids[cells] = encodings.token_type_ids[text]
        tokens.position_ids[cells] = np.arange(first_position, first_position + len(ids))
        tokens.segment_ids[cells] = placement.segment[text] + 1
        filled[row] += len(ids)
    return tokens
