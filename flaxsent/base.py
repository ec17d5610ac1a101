"""The words used in every signature; start reading here, then `tokenization.py`.

Dimension key, the same letters in einsum, in jaxtyping axes and in name suffixes:

    B texts · L positions of one padded text · R rows · T tokens in a row · S texts (segments) in a row · D hidden ·
    N heads · H head size · F feed-forward · V vocabulary · P positions · C labels
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

AnyArray = jax.Array | np.ndarray
"""NumPy on the host, jax on the device; strings never leave the host."""

Params = Mapping[str, Any]
"""Nested dict of arrays with the names and shapes of the Hugging Face Flax model of the family."""

Text = str | tuple[str, str]
"""A text, or a `(first, second)` pair of texts."""

Texts = Iterable[Text]
"""A list, a column of a table, a generator: read once, in order."""

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

ScoreFunction = Literal["softmax", "sigmoid", "none"]
"""What makes scores of logits, by the names of transformers' `function_to_apply`."""

Backend = Literal["flax", "native", "exported", "zero-shot", "adapters"]


TopK = int | Literal["given"] | None
"""How many labels to name: so many, those that a text is given, or (None) all."""


class FlaxsentError(ValueError):
    """A mistake that the user can put right: a file, an option or a checkpoint that does not fit.

    Its message is one line: what was expected, what came, what to do. The command line prints it and exits with code 2;
    any other exception but an OSError is a fault of flaxsent's own.
    """


@contextlib.contextmanager
def panics_raise() -> Iterator[None]:
    """Within it, the panic of a library in Rust, which no `except Exception` sees, is a RuntimeError."""
    try:
        yield
    except BaseException as err:
        if type(err).__name__ != "PanicException":
            raise
        raise RuntimeError(str(err)) from err


class Tokens(NamedTuple):
    """Rows of tokens, ready for `forward`.

    A model function reads one row `[T]`; `vmap` puts B or R in front. A row holds one padded text or several texts end
    to end: `segment_ids` tells them apart.
    """

    input_ids: Int[AnyArray, "*batch T"]
    """Vocabulary indices."""
    token_type_ids: Int[AnyArray, "*batch T"]
    """0 in the first text, 1 in the second text of a pair."""
    position_ids: Int[AnyArray, "*batch T"]
    """Restart in each text. RoBERTa families count from `padding_idx + 1`, and a token whose id is `padding_idx`, as
    [UNK] may be, has that position and is not counted."""
    segment_ids: Int[AnyArray, "*batch T"]
    """Which text of the row a token belongs to: 1..S; 0 is padding."""

    @property
    def attention_mask(self) -> Int[AnyArray, "*batch T"]:
        """1 where there is a token, 0 on padding: Hugging Face's mask when a row holds one text."""
        return (self.segment_ids > 0).astype(np.int32)


class Encodings(NamedTuple):
    """Ragged token ids, one list a text: what `encode` gives and `pad` and `pack` lay out."""

    input_ids: list[list[int]]
    token_type_ids: list[list[int]]
    num_truncated: int = 0
    """How many of the texts were longer than the limit and lost their end."""
    first_position: int = 0
    """The position of a text's first token: 0, or `padding_idx + 1` for RoBERTa families."""
    pad_token_id: int = 0

    @property
    def lengths(self) -> list[int]:
        """Tokens in each text."""
        return [len(ids) for ids in self.input_ids]


class Prediction(NamedTuple):
    """What `decode` makes of one text: labels with their scores, best first; none where no label is given."""

    labels: tuple[str, ...]
    scores: tuple[float, ...]

    @property
    def label(self) -> str | None:
        """The best label; None where there is none."""
        return self.labels[0] if self.labels else None

    @property
    def score(self) -> float | None:
        """Its score: a probability, or the value itself for regression."""
        return self.scores[0] if self.scores else None
