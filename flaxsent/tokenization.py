"""Texts → ragged token ids, through the `tokenizers` library; `packing.py` lays them out as arrays.

`checkpoint/tokenizer.py` makes the `Tokenizer` of a folder.

The tokenizer keeps no truncation or padding state: each call encodes afresh, so threads can share one. (The fast
tokenizers of transformers set that state on every call and raise "Already borrowed" when shared.)
"""

import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Bool, Float, Int

from flaxsent.base import Encodings, FlaxsentError, Text, Texts, panics_raise
from flaxsent.data.tables import elements
from flaxsent.files import quietly

SPECIAL_TOKENS_IN_TEXT = ("special", "literal")
"""What the letters of a special token ("[SEP]", "</s>", "[E1]") are in a text: that token, or letters."""

POOLINGS = ("mean_logits", "max_logits", "mean_probabilities", "max_probabilities")
"""What is made of the values of a text's windows."""

PAIRS = ("longer", "second")
"""Which text of a pair is cut into windows."""


class Windows(NamedTuple):
    """How texts beyond the limit are read in pieces that overlap; `transforms.windows` says what each field means."""

    stride: int
    pooling: Literal["mean_logits", "max_logits", "mean_probabilities", "max_probabilities"]
    pairs: Literal["longer", "second"]


class Windowed(NamedTuple):
    """Windows of texts, in the order of the texts; a text that fits is one window."""

    encodings: Encodings
    """Of the windows. `num_truncated` counts pairs of which the text that is not in windows lost tokens."""
    texts: Int[np.ndarray, " W"]
    """Which text each window is of."""
    weights: Float[np.ndarray, " W"]
    """How many tokens of the text are in it: special tokens and the other text of a pair are not counted. 1 where
    there is only one window."""

    @property
    def num_texts(self) -> int:
        return int(self.texts[-1]) + 1 if len(self.texts) else 0

    @property
    def is_long(self) -> Bool[np.ndarray, " B"]:
        """Which texts are more than one window."""
        return np.bincount(self.texts, minlength=self.num_texts) > 1

    @property
    def num_long(self) -> int:
        """Texts that are more than one window."""
        return int(self.is_long.sum())

    @property
    def num_windows(self) -> int:
        """That these are."""
        return int(self.is_long[self.texts].sum())


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

    def encode_part(self, part: str) -> list[int]:
        return self.tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]

    def join(self, *parts: list[int]) -> Encoded:
        return Encoded(
            self.tokenizer.build_inputs_with_special_tokens(*parts),
            self.tokenizer.create_token_type_ids_from_sequences(*parts),
        )

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

    backend: tokenizers.Tokenizer | PythonTokenizer = dataclasses.field(repr=False)
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
    files: Mapping[str, bytes] = dataclasses.field(repr=False)
    """The files to save beside the weights, `tokenizer.json` among them."""

    @property
    def text_limit(self) -> int:
        """Tokens of the longest text that is read whole, and of a window of a longer one; `max_length`, here."""
        return self.max_length

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
        return self._checked(batch, [*enumerate(encodings)], num_truncated=len(too_long))

    def encode_windows(self, texts: Texts, windows: Windows | None) -> Windowed:
        """Token ids of texts, of which those beyond `text_limit` are cut into overlapping windows.

        A window is what transformers' `return_overflowing_tokens` gives with this `stride`. Of a pair one text is in
        windows, and each has the other text whole, or half of the room if it is longer than that. `None` cuts texts
        as `encode` does: each is one window.

        Raises: as `encode`.
        """
        if windows is None:
            encodings = self.encode(texts)
            num_texts = len(encodings.input_ids)
            return Windowed(encodings, np.arange(num_texts), np.ones(num_texts, np.float32))
        batch = [*checked(texts)]
        found: list[tuple[int, tokenizers.Encoding | Encoded]] = []
        weights, num_truncated = [], 0
        for index, encoding in enumerate(self._encode_batch(batch)):
            pieces, lengths, is_truncated = [encoding], [1], False
            if len(encoding.ids) > self.text_limit:
                pieces, lengths, is_truncated = self._encode_long(batch[index], windows)
            found += [(index, piece) for piece in pieces]
            weights += lengths
            num_truncated += is_truncated
        encodings = self._checked(batch, found, num_truncated=num_truncated)
        return Windowed(encodings, np.array([index for index, _ in found], np.int64), np.array(weights, np.float32))

    def _checked(
        self, batch: list[Text], found: Sequence[tuple[int, tokenizers.Encoding | Encoded]], *, num_truncated: int
    ) -> Encodings:
        """What was found for the texts at these indices."""
        ids = [encoding.ids for _, encoding in found]  # each look makes a list
        for (index, _), row in zip(found, ids, strict=True):
            if not row:
                raise FlaxsentError(
                    f"text {index}, {batch[index]!r}, has no tokens, and this checkpoint adds none: leave it out."
                )
            if self.num_embeddings is not None and (highest := max(row)) >= self.num_embeddings:
                raise FlaxsentError(
                    f"text {index}, {_start(batch[index])}, has the token {self.backend.id_to_token(highest)!r}, whose "
                    f"id is {highest}; this checkpoint has {self.num_embeddings} embeddings: leave the token out, or "
                    "fetch the tokenizer that belongs to the weights."
                )
        has_types = self.has_token_types
        kinds = [e.type_ids if has_types else [0] * len(row) for (_, e), row in zip(found, ids, strict=True)]
        return Encodings(
            input_ids=ids,
            token_type_ids=kinds,
            num_truncated=num_truncated,
            first_position=self.first_position,
            pad_token_id=self.pad_token_id,
        )

    def _encode_long(
        self, text: Text, windows: Windows
    ) -> tuple[Sequence[tokenizers.Encoding | Encoded], list[int], bool]:
        """The windows of a text, how many of its tokens are in each, and whether the other text of a pair was cut."""
        parts: Sequence[str] = text if isinstance(text, tuple) else (text,)
        room = self.text_limit - self.backend.num_special_tokens_to_add(len(parts) == 2)
        if isinstance(self.backend, PythonTokenizer):
            return _cut_by_python(self.backend, parts, room, windows, side=self.cut_side)
        return _cut_by_library(self.backend, parts, room, windows, side=self.cut_side)

    def spans(self, texts: Texts, *, max_length: int | None = None) -> list[list[Span | None]]:
        """Where in its text each token of `encode` stands; None for special tokens that the tokenizer adds.

        Raises: as `encode`, but for texts without tokens, and
            FlaxsentError: a tokenizer that is written in Python, which does not know.
        """
        encodings, _ = self._encode_to([*checked(texts)], self._limit(max_length), has_offsets=True)
        if isinstance(self.backend, PythonTokenizer):
            raise FlaxsentError("this checkpoint's tokenizer, of Python, does not tell where in a text a token stands.")
        return [
            [
                None if is_added else Span(int(part == 1), *offsets)  # of a pair, a first text that was cut has None
                for part, is_added, offsets in zip(
                    encoding.sequence_ids, encoding.special_tokens_mask, encoding.offsets, strict=True
                )
            ]
            for encoding in encodings
            if isinstance(encoding, tokenizers.Encoding)
        ]

    def _encode_to(
        self, batch: list[Text], limit: int, **kind: bool
    ) -> tuple[list[tokenizers.Encoding | Encoded], list[int]]:
        """Encodings of no more than `limit` tokens, and which texts were longer."""
        encodings = [*self._encode_batch(batch, **kind)]
        too_long = [index for index, encoding in enumerate(encodings) if len(encoding.ids) > limit]
        for index in too_long:
            encodings[index] = self._encode_cut(batch[index], limit)
        return encodings, too_long

    def _encode_cut(self, text: Text, limit: int) -> tokenizers.Encoding | Encoded:
        if isinstance(self.backend, PythonTokenizer):
            return self.backend.encode_cut(text, limit)
        return _encode_cut(self.backend, text, limit, side=self.cut_side)

    def _encode_batch(self, batch: list[Text], *, has_offsets: bool = False) -> Sequence[tokenizers.Encoding | Encoded]:
        try:
            with panics_raise():
                if has_offsets or isinstance(self.backend, PythonTokenizer):
                    return self.backend.encode_batch(batch)
                return self.backend.encode_batch_fast(batch)
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
        TypeError: a bare str, a table, or an element that is neither a str nor a pair of them.
        FlaxsentError: a text is not valid Unicode.
    """
    if isinstance(texts, str):
        raise TypeError(f"expected a sequence of texts, got one str: {texts[:40]!r}; pass a list, [text].")
    for index, text in enumerate(elements(texts)):
        parts = text if isinstance(text, tuple) else (text,)
        if not all(isinstance(part, str) for part in parts) or (isinstance(text, tuple) and len(text) != 2):
            told = f"a tuple of {len(text)}" if isinstance(text, tuple) else f"of type {type(text).__name__}"
            raise TypeError(f"text {index} is {told}; expected a str or a (first, second) tuple of two.")
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


def _cut_by_library(
    backend: tokenizers.Tokenizer, parts: Sequence[str], room: int, windows: Windows, *, side: str
) -> tuple[list[tokenizers.Encoding], list[int], bool]:
    encodings = [backend.encode(part, add_special_tokens=False) for part in parts]
    lengths = [len(encoding) for encoding in encodings]
    which, kept = _window(lengths, room, windows)
    for index, encoding in enumerate(encodings):
        if index != which:  # cut twice, as above
            encoding.truncate(kept + 1, direction=side)
            encoding.truncate(kept, direction=side)
    cut = encodings[which]
    if len(cut) > room - kept:
        cut.truncate(room - kept, stride=windows.stride, direction=side)
    # Each by itself: of pieces that hang together, all but the first would get the token types of a first text.
    pieces = [cut, *cut.overflowing]
    found = []
    for piece in pieces:
        encodings[which] = piece
        found.append(backend.post_process(*encodings, add_special_tokens=True))
    return found, [max(len(piece), 1) for piece in pieces], kept < sum(lengths) - lengths[which]


def _cut_by_python(
    backend: PythonTokenizer, parts: Sequence[str], room: int, windows: Windows, *, side: str
) -> tuple[list[Encoded], list[int], bool]:
    ids = [backend.encode_part(part) for part in parts]
    lengths = [len(part) for part in ids]
    which, kept = _window(lengths, room, windows)
    is_left = side == "left"
    others = [part[len(part) - kept :] if is_left else part[:kept] for part in ids]
    pieces = [
        ids[which][start:stop] for start, stop in _spans(lengths[which], room - kept, windows.stride, is_left=is_left)
    ]
    found = [backend.join(*others[:which], piece, *others[which + 1 :]) for piece in pieces]
    return found, [max(len(piece), 1) for piece in pieces], kept < sum(lengths) - lengths[which]


def _window(lengths: Sequence[int], room: int, windows: Windows) -> tuple[int, int]:
    """Which part is cut into windows, and how many tokens of the other are in each of them.

    The other keeps what the one leaves free, or at most half of the room, so that windows stay few.

    >>> windows = Windows(stride=2, pooling="mean_logits", pairs="longer")
    >>> _window([9], 8, windows), _window([3, 9], 8, windows), _window([9, 6], 8, windows), _window([9, 1], 8, windows)
    ((0, 0), (1, 3), (0, 4), (0, 1))
    """
    if len(lengths) == 1:
        return 0, 0
    which = 1 if windows.pairs == "second" or lengths[1] >= lengths[0] else 0
    most = max(room - lengths[which], min(room // 2, room - windows.stride - 1))
    return which, min(lengths[1 - which], most)


def _spans(length: int, window: int, stride: int, *, is_left: bool) -> list[tuple[int, int]]:
    """The starts and ends of windows, of which each has `stride` tokens of the one before; the library's own.

    >>> _spans(10, 4, 1, is_left=False), _spans(9, 4, 1, is_left=True), _spans(0, 4, 1, is_left=False)
    ([(0, 4), (3, 7), (6, 10)], [(5, 9), (2, 6), (0, 3)], [(0, 0)])
    """
    num = max(-(-(length - stride) // (window - stride)), 1) if length > window else 1
    spans = [(index * (window - stride), min(index * (window - stride) + window, length)) for index in range(num)]
    return [(length - end, length - start) for start, end in spans] if is_left else spans


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
