"""Texts → ragged token ids, through the `tokenizers` library; `packing.py` lays them out as arrays.

The tokenizer keeps no truncation or padding state: each call encodes afresh, so threads can share one. (The fast
tokenizers of transformers set that state on every call and raise "Already borrowed" when shared.)
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import tokenizers

from flaxsent.base import Encodings, FlaxsentError, Text, Texts
from flaxsent.files import quietly, require

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
)
"""What a checkpoint may hold for its tokenizer; the first, or else the vocabularies, are read."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and its rules, with the limits of the checkpoint; safe to share between threads."""

    backend: tokenizers.Tokenizer
    max_length: int
    """Longest text in tokens, special tokens included."""
    has_token_types: bool
    """Whether the model tells the two texts of a pair apart; if not, `token_type_ids` are all 0."""
    first_position: int
    """The position of a text's first token: 0, or `padding_idx + 1` for RoBERTa families."""
    pad_token_id: int
    files: Mapping[str, bytes]
    """The files to save beside the weights, `tokenizer.json` among them."""

    def encode(self, texts: Texts, *, max_length: int | None = None) -> Encodings:
        """Token ids with special tokens, cut to `max_length` tokens (the checkpoint's limit by default).

        Pairs are cut at the end of the longer text first. A text that spells a special token ("[SEP]") stays text.

        Raises:
            TypeError: a bare str, or an element that is neither a str nor a pair of them.
            FlaxsentError: `max_length` is beyond the checkpoint's limit, or a text is not Unicode or has no tokens.
        """
        limit = self._limit(max_length)
        batch = [*checked(texts)]
        encodings = self._encode_batch(batch)
        too_long = [index for index, encoding in enumerate(encodings) if len(encoding.ids) > limit]
        for index in too_long:
            encodings[index] = _encode_cut(self.backend, batch[index], limit)
        for index, encoding in enumerate(encodings):
            if not encoding.ids:
                raise FlaxsentError(
                    f"text {index}, {batch[index]!r}, has no tokens, and this checkpoint adds none: leave it out."
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

    def _encode_batch(self, batch: list[Text]) -> list[tokenizers.Encoding]:
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
        if type(max_length) is not int or not special < max_length <= self.max_length:
            raise FlaxsentError(
                f"a length of {max_length!r} tokens was asked for; this checkpoint takes {special + 1} to "
                f"{self.max_length}: pass one of these."
            )
        return max_length


def read_tokenizer(
    folder: Path,
    *,
    family: str,
    max_positions: int,
    type_vocab_size: int,
    first_position: int = 0,
    pad_token_id: int = 0,
) -> Tokenizer:
    """Reads the tokenizer files of a checkpoint folder.

    The limit is that of the positions, or of `model_max_length` where that is smaller: 1e30 there is transformers'
    way of saying that nobody knows.

    Raises:
        FlaxsentError: there are none, or they cannot be read.
        ImportError: only SentencePiece's file is there, and what converts it is not installed.
    """
    files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    settings = _settings(files.get("tokenizer_config.json"))
    if "tokenizer.json" not in files:
        files["tokenizer.json"] = _convert(folder, files, settings, family=family)
    try:
        backend = tokenizers.Tokenizer.from_buffer(files["tokenizer.json"])
    except Exception as err:  # the library raises plain Exception
        raise FlaxsentError(f"{folder / 'tokenizer.json'} is not a tokenizer: {err}; fetch it again.") from err
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    _split_spelt(backend)
    model_max_length = settings.get("model_max_length")
    max_length = min(max_positions, model_max_length) if type(model_max_length) is int else max_positions
    if max_length <= (special := backend.num_special_tokens_to_add(True)):
        raise FlaxsentError(
            f"{folder} has model_max_length={model_max_length} and {max_positions} positions; expected more than the "
            f"{special} special tokens of a pair."
        )
    return Tokenizer(
        backend=backend,
        max_length=max_length,
        has_token_types=type_vocab_size > 1,
        first_position=first_position,
        pad_token_id=pad_token_id,
        files={name: files[name] for name in _SAVED_FILES if name in files},
    )


def _split_spelt(backend: tokenizers.Tokenizer) -> None:
    """Has a special token that a text spells cut after its first character, if the model would read it as one.

    `encode_special_tokens` only stops the library from looking for them itself. Unigram's pieces have "<s>" among them,
    as the likeliest of all; SentencePiece, which trained them, never reads a control symbol out of a text.
    """
    spelt = [
        token.content
        for index, token in backend.get_added_tokens_decoder().items()
        if token.special and len(token.content) > 1 and _reads(backend, token.content, index)
    ]
    if not spelt:
        return
    pattern = "|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in spelt)
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "merged_with_previous")
    before = [] if backend.pre_tokenizer is None else [backend.pre_tokenizer]
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([*before, split])


def _reads(backend: tokenizers.Tokenizer, token: str, index: int) -> bool:
    try:
        return index in backend.encode(token, add_special_tokens=False).ids
    except Exception:  # plain, from the library: letters that the model does not have, and no token for unknown ones
        return False


# All that a fast tokenizer is opened from; vocabularies besides would say the same twice.
_SAVED_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def _settings(content: bytes | None) -> dict:
    if content is None:
        return {}
    try:
        settings = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise FlaxsentError(f"tokenizer_config.json is not JSON: {err}; fetch it again.") from err
    if not isinstance(settings, dict):
        raise FlaxsentError(f"tokenizer_config.json holds a {type(settings).__name__}; expected an object.")
    return settings


def _convert(folder: Path, files: Mapping[str, bytes], settings: Mapping[str, object], *, family: str) -> bytes:
    """The tokenizer.json that `AutoTokenizer` makes of a vocabulary.

    `AutoTokenizer` sees a copy of the folder with plain files and settings only: nothing in it can name code.
    """
    vocabularies = {name: content for name, content in files.items() if not name.endswith("_config.json")}
    if not vocabularies.keys() - {"special_tokens_map.json", "added_tokens.json"}:
        raise FlaxsentError(
            f"{folder} has no tokenizer; expected tokenizer.json, or one of {', '.join(TOKENIZER_FILES[4:])}."
        )
    if not vocabularies.keys() & {"vocab.txt", "vocab.json"}:
        _check_sentencepiece(folder, vocabularies)
    plain = {name: value for name, value in settings.items() if not _NAMES_CODE_OR_FILE.fullmatch(name)}
    with quietly("transformers"):
        from transformers import AutoTokenizer

    with TemporaryDirectory() as copy:
        for name, content in vocabularies.items():
            (Path(copy) / name).write_bytes(content)
        (Path(copy) / "tokenizer_config.json").write_text(json.dumps(plain))
        (Path(copy) / "config.json").write_text(json.dumps({"model_type": family} | _tokenizer_class(folder)))
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                copy, use_fast=True, local_files_only=True, trust_remote_code=False
            )
            converted = tokenizer.backend_tokenizer.to_str()
        except Exception as err:
            raise FlaxsentError(f"the vocabulary in {folder} could not be converted: {err}".splitlines()[0]) from err
    # Without them, transformers 5 gives a vocabulary of the special tokens only.
    expected = [name for kind, name in tokenizer.vocab_files_names.items() if kind != "tokenizer_file"]
    if missing := [name for name in expected if name not in vocabularies]:
        raise FlaxsentError(
            f"{folder} has no {' and no '.join(missing)}, which {type(tokenizer).__name__} is read from; fetch it."
        )
    return converted.encode()


def _check_sentencepiece(folder: Path, vocabularies: Iterable[str]) -> None:
    """Without them transformers fails on an attribute of None, or asks for tiktoken."""
    for name in vocabularies:
        if name.endswith(".model"):
            for module in ("sentencepiece", "google.protobuf"):
                require(module, needed_by=f"converting {folder / name}", install="sentencepiece protobuf")


def _tokenizer_class(folder: Path) -> dict[str, object]:
    """Where tokenizer_config.json names no class, `AutoTokenizer` takes the one that config.json names, if any."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    name = config.get("tokenizer_class") if isinstance(config, dict) else None
    return {"tokenizer_class": name} if isinstance(name, str) else {}


# Settings that name code, another repository, or a file: transformers 4 reads a `vocab_file` from wherever it points.
_NAMES_CODE_OR_FILE = re.compile(r"_.*|auto_map|trust_remote_code|name_or_path|vocab|merges|.*_(files?|spm)")


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


def _describe(text: object) -> str:
    return f"a tuple of {len(text)}" if isinstance(text, tuple) else f"of type {type(text).__name__}"


def _encode_cut(backend: tokenizers.Tokenizer, text: Text, limit: int) -> tokenizers.Encoding:
    """Encodes the parts alone, cuts each to its share, then adds the special tokens."""
    parts: Sequence[str] = text if isinstance(text, tuple) else (text,)
    encodings = [backend.encode(part, add_special_tokens=False) for part in parts]
    room = limit - backend.num_special_tokens_to_add(len(parts) == 2)
    for encoding, length in zip(encodings, _shares([len(encoding) for encoding in encodings], room), strict=True):
        # A cut leaves the rest as pieces, and post_process combines each piece of the one part with each of the other:
        # gigabytes, from long texts. Cut twice, the rest is one token.
        encoding.truncate(length + 1)
        encoding.truncate(length)
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
