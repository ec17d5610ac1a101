"""What a function gives for a step of rows → an entry for each text: an array, or one for each token."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree, Shaped

from flaxsent.base import FlaxsentError
from flaxsent.packing import Step, StepShape, unpack


class PerToken(list[np.ndarray]):
    """An array `[tokens, ...]` for each text. To `jax.tree` it is a leaf, unlike a list."""


def is_by_text(result_shape: tuple[int, ...], shape: StepShape) -> bool:
    """Whether a result of a step has one entry a text; if not, it has one a token.

    Raises:
        FlaxsentError: it has neither.
    """
    by_text, by_token = (shape.num_rows, shape.num_segments), (shape.num_rows, shape.row_length)
    if result_shape[:2] not in (by_text, by_token):
        raise FlaxsentError(
            f"the function of the engine gives an array of shape {result_shape} for {shape.num_rows} rows of "
            f"{shape.row_length} tokens; expected {by_text} first, one entry a text, or {by_token}, one a token."
        )
    return result_shape[:2] == by_text


def by_text(step: Step, results: PyTree[np.ndarray]) -> Any:
    """The results of a step, by the texts in it."""
    row_N, segment_N = step.placement

    def select(leaf: np.ndarray) -> Shaped[np.ndarray, "N *values"] | PerToken:
        if is_by_text(leaf.shape, step.shape):
            return unpack(leaf, step.placement)
        is_of_text_NT = step.tokens.segment_ids[row_N] == segment_N[:, None] + 1
        return PerToken(leaf[row, is_of_T] for row, is_of_T in zip(row_N, is_of_text_NT, strict=True))

    return jax.tree.map(select, results)


def concatenate(*parts: Any) -> Any:
    """Results of several steps, end to end."""
    return PerToken(itertools.chain(*parts)) if isinstance(parts[0], PerToken) else np.concatenate(parts)


def take(leaf: Any, indices: Sequence[int] | Shaped[np.ndarray, " B"]) -> Any:
    """The results of the texts at these indices."""
    return PerToken(leaf[index] for index in indices) if isinstance(leaf, PerToken) else leaf[np.asarray(indices, int)]
