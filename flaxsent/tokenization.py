"""Texts → ragged token ids, through the `tokenizers` library; `packing.py` lays them out as arrays.

`checkpoint/tokenizer.py` makes the `Tokenizer` of a folder.

The tokenizer keeps no truncation or padding state: each call encodes afresh, so threads can share one. (The fast
tokenizers of transformers set that state on every call and raise "Already borrowed" when shared.)
"""

import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import tokenizers

from flaxsent.base import Encodings, FlaxsentError, Text, Texts
from flaxsent.files import quietly

SPECIAL_TOKENS_IN_TEXT = ("special", "literal")
"""What the letters of a special token ("[SEP]", "</s>", "[E1]") are in a text: that token, or letters."""


class Encoded(NamedTuple):
    """What a `PythonTokenizer` makes of a text."""

    ids: list[int]
    type_ids: list[int]


_cutting = threading.Lock()


@dataclasses.dataclass(frozen=True)
class PythonTokenizer:
    """A tokenizer of transformers that is written in Python, such as BERTweet's: no tokenizer.json can hold it."""

    tokenizer: Any

    def encode_batch(self, batch: Sequence[Text]) -> list[Encoded]:
        return [self._encode(text) for text in batch]

    def encode_cut(self, text: Text, limit: int) -> Encoded:
        with _cutting, quietly("transformers"):  # it warns of each pair that is cut
            return self._encode(text, truncation="longest_first", max_length=limit)

    def num_special_tokens_to_add(self, is_pair: bool) -> int:
        return self.tokenizer.num_special_tokens_to_add(is_pair)

    def get_vocab(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()

    def id_to_token(self, index: int) -> str:
        return self.tokenizer.convert_ids_to_tokens(index)

    def _encode(self, text: Text, **cut: Any) -> Encoded:
        parts = text if isinstance(text, tuple) else (text,)
        found = self.tokenizer(*parts, return_token_type_ids=True, verbose=False, **cut)
        return Encoded(found["input_ids"], found["token_type_ids"])


class Span(NamedTuple):
    """A piece of a text."""

    part: int
    """1 in the second text of a pair."""
    start: int
    end: int
    """In characters."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and its rules, with the limits of the checkpoint; safe to share between threads."""

    backend: tokenizers.Tokenizer | PythonTokenizer
    max_length: int
    """Tokens to which a text is cut unless another number is asked for, special tokens included."""
    longest: int | None
    """Most tokens that can be asked for; None where neither the tokenizer nor a table of positions names a limit."""
    cut_side: Literal["left", "right"]
    """Where a text that is too long loses tokens."""
    num_embeddings: int | None
    """Ids from here on are tokens that the model has no embedding for; None if the tokenizer has none of these."""
    has_token_types: bool
    """Whether the model is told the two texts of a pair apart; if not, `token_type_ids` are all 0."""
    first_position: int
    """The position of a text's first token: 0, or `padding_idx + 1` for RoBERTa families."""
    pad_token_id: int
    special_tokens_in_text: Literal["special", "literal"]
    """What the letters of a special token are in a text; `backend` is set so."""
    files: Mapping[str, bytes]
    """The files to save beside the weights, `tokenizer.json` among them."""

    def encode(self, texts: Texts, *, max_length: int | None = None) -> Encodings:
        """Token ids with special tokens, cut to `max_length` tokens (the checkpoint's limit by default).

        Of pairs, the longer text is cut first.

        Raises:
            TypeError: a bare str, or an element that is neither a str nor a pair of them.
            FlaxsentError: `max_length` is beyond the checkpoint's limit, or a text is not Unicode, has no tokens, or
                has one that the model does not know.
        """
        limit = self._limit(max_length)
        batch = [*checked(texts)]
        encodings, too_long = self._encode_to(batch, limit)
        for index, encoding in enumerate(encodings):
            if not encoding.ids:
                raise FlaxsentError(
                    f"text {index}, {batch[index]!r}, has no tokens, and this checkpoint adds none: leave it out."
                )
            if self.num_embeddings is not None and (highest := max(encoding.ids)) >= self.num_embeddings:
                raise FlaxsentError(
                    f"text {index}, {_start(batch[index])}, has the token {self.backend.id_to_token(highest)!r}, whose "
                    f"id is {highest}; this checkpoint has {self.num_embeddings} embeddings: leave the token out, or "
                    "fetch the tokenizer that belongs to the weights."
                )
        return Encodings(
            input_ids=[encoding.ids for encoding in encodings],
            token_type_ids=[
                encoding.type_ids if self.has_token_types else [0] * len(encoding.ids) for encoding in encodings
            ],
            num_truncated=len(too_long),
            first_position=self.first_position,
            pad_token_id=self.pad_token_id,
        )

    def spans(self, texts: Texts, *, max_length: int | None = None) -> list[list[Span | None]]:
        """Where in its text each token of `encode` stands; None for special tokens that the tokenizer adds.

        Raises: as `encode`, but for texts without tokens, and
            FlaxsentError: a tokenizer that is written in Python, which does not know.
        """
        encodings, _ = self._encode_to([*checked(texts)], self._limit(max_length))
        if isinstance(self.backend, PythonTokenizer):
            raise FlaxsentError("this checkpoint's tokenizer, of Python, does not tell where in a text a token stands.")
        return [
            [
                None if part is None else Span(part, *offsets)
                for part, offsets in zip(encoding.sequence_ids, encoding.offsets, strict=True)
            ]
            for encoding in encodings
            if isinstance(encoding, tokenizers.Encoding)
        ]

    def _encode_to(self, batch: list[Text], limit: int) -> tuple[list[tokenizers.Encoding | Encoded], list[int]]:
        """Encodings of no more than `limit` tokens, and which texts were longer."""
        encodings = [*self._encode_batch(batch)]
        too_long = [index for index, encoding in enumerate(encodings) if len(encoding.ids) > limit]
        for index in too_long:
            encodings[index] = self._encode_cut(batch[index], limit)
        return encodings, too_long

    def _encode_cut(self, text: Text, limit: int) -> tokenizers.Encoding | Encoded:
        if isinstance(self.backend, PythonTokenizer):
            return self.backend.encode_cut(text, limit)
        return _encode_cut(self.backend, text, limit, side=self.cut_side)

    def _encode_batch(self, batch: list[Text]) -> Sequence[tokenizers.Encoding | Encoded]:
        try:
            return self.backend.encode_batch(batch)
        except Exception as err:  # plain, from the library
            raise FlaxsentError(
                f"the tokenizer cannot encode one of these {len(batch)} texts: {' '.join(str(err).split())}; its "
                "vocabulary may lack the token for unknown pieces."
            ) from err

    def _limit(self, max_length: int | None) -> int:
        if max_length is None:
            return self.max_length
        special = self.backend.num_special_tokens_to_add(True)
        longest = max_length if self.longest is None else self.longest
        if type(max_length) is not int or not special < max_length <= longest:
            raise FlaxsentError(
                f"a length of {max_length!r} tokens was asked for; this checkpoint takes {special + 1} "
                f"{'or more' if self.longest is None else f'to {longest}'}: pass one of these."
            )
        return max_length


def checked(texts: Texts) -> Iterator[Text]:
    """The texts one by one.

    Raises:
        TypeError: a bare str, or an element that is neither a str nor a pair of them.
        FlaxsentError: a text is not valid Unicode.
    """
    if isinstance(texts, str):
        raise TypeError(f"expected a sequence of texts, got one str: {texts[:40]!r}; pass a list, [text].")
    for index, text in enumerate(texts):
        parts = text if isinstance(text, tuple) else (text,)
        if not all(isinstance(part, str) for part in parts) or (isinstance(text, tuple) and len(text) != 2):
            raise TypeError(f"text {index} is {_describe(text)}; expected a str or a (first, second) tuple of two.")
        for part in parts:
            if not part.isascii():
                _check_unicode(part, index)
        yield text


def _check_unicode(part: str, index: int) -> None:
    try:
        part.encode()
    except UnicodeEncodeError as err:
        raise FlaxsentError(
            f"text {index} has a lone surrogate at character {err.start}, which is not Unicode text; decode it anew, "
            "or replace it by text.encode('utf-8', 'replace').decode()."
        ) from err


def _start(text: Text) -> str:
    return repr(text if len(str(text)) <= _SHOWN else f"{str(text)[:_SHOWN]}…")


_SHOWN = 60


def _describe(text: object) -> str:
    return f"a tuple of {len(text)}" if isinstance(text, tuple) else f"of type {type(text).__name__}"


def _encode_cut(backend: tokenizers.Tokenizer, text: Text, limit: int, *, side: str) -> tokenizers.Encoding:
    """Encodes the parts alone, cuts each to its share, then adds the special tokens."""
    parts: Sequence[str] = text if isinstance(text, tuple) else (text,)
    encodings = [backend.encode(part, add_special_tokens=False) for part in parts]
    room = limit - backend.num_special_tokens_to_add(len(parts) == 2)
    for encoding, length in zip(encodings, _shares([len(encoding) for encoding in encodings], room), strict=True):
        # A cut leaves the rest as pieces, and post_process combines each piece of the one part with each of the other:
        # gigabytes, from long texts. Cut twice, the rest is one token.
        encoding.truncate(length + 1, direction=side)
        encoding.truncate(length, direction=side)
    return backend.post_process(*encodings, add_special_tokens=True)


def _shares(lengths: Sequence[int], room: int) -> Sequence[int]:
    """How many tokens of each part stay: the longer part gives first, then both alike (tokenizers' "longest_first").

    >>> _shares([3, 9], 8), _shares([9, 9], 7), _shares([9], 7)
    ([3, 5], [3, 4], [7])
    """
    if len(lengths) == 1:
        return [min(lengths[0], room)]
    short, long = sorted(lengths)
    if short + long > room:
        long = short if short > room else max(short, room - short)
        if short + long > room:
            short, long = room // 2, room - room // 2
    return [short, long] if lengths[0] <= lengths[1] else [long, short]
