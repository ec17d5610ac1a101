"""The tokenizer files of a folder → `Tokenizer`, whose ids are those of transformers' `AutoTokenizer`.

Most folders hold a tokenizer.json that says all of it: `plain.py` tells them, and they are read without transformers.
Of the others, whose settings have a class of transformers change what the file says, or that hold a vocabulary only,
`AutoTokenizer` itself makes the tokenizer.json, once: it is kept in the cache, and `save` writes it.

Where transformers 4 and 5 differ, the one that is installed is followed: the folder gives what it gives in PyTorch
there. What was saved, exported or begun with one stays as it was made.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import tokenizers

from flaxsent import models
from flaxsent.base import FlaxsentError, panics_raise
from flaxsent.checkpoint import plain
from flaxsent.files import quietly, require, write
from flaxsent.models.config import ModelConfig
from flaxsent.tokenization import SPECIAL_TOKENS_IN_TEXT, PythonTokenizer, Tokenizer

logger = logging.getLogger(__name__)

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
    "bpe.codes",
)
"""What a checkpoint may hold for its tokenizer: the whole, settings and names of tokens, vocabularies."""

NAMES = TOKENIZER_FILES[:4]
"""Those that are read beside the vocabularies, or instead of them."""


def needs_vocabulary(folder: Path, names: Collection[str]) -> bool:
    """Whether more than `NAMES`, of which these are there, may be read: a class in Python reads no tokenizer.json."""
    if "tokenizer.json" not in names:
        return True
    for name in ("tokenizer_config.json", "config.json"):
        with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError):
            if isinstance(found := json.loads((folder / name).read_bytes()).get("tokenizer_class"), str):
                return not plain.reads_file(found)
    return False


def read_tokenizer(
    folder: Path, config: ModelConfig, *, special_tokens_in_text: Literal["special", "literal"] = "special"
) -> Tokenizer:
    """Reads the tokenizer files of a checkpoint folder.

    A text's limit is that of the position table, or `model_max_length` where that is smaller: 1e30 there is
    transformers' way of saying that nobody knows. Where there is no table, it is `model_max_length` alone; and where
    that is not known, max_position_embeddings is what texts are cut to unless more is asked for.

    Raises:
        FlaxsentError: there are none, or they cannot be read, or nothing but code of their own reads them.
        MissingPackageError: what converts them is not installed.
    """
    if special_tokens_in_text not in SPECIAL_TOKENS_IN_TEXT:
        raise FlaxsentError(
            f"special_tokens_in_text={special_tokens_in_text!r}: expected one of {', '.join(SPECIAL_TOKENS_IN_TEXT)}."
        )
    files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    settings = _object("tokenizer_config.json", files)
    backend = _backend(folder, files["tokenizer.json"]) if "tokenizer.json" in files else None
    name = _class_name(settings, config)
    maps = {name: _object(name, files) for name in ("special_tokens_map.json", "added_tokens.json")}
    if backend is None or not plain.is_plain(
        backend, files["tokenizer.json"], settings, *maps.values(), name=name, family=config.family
    ):
        files, settings, backend = _resolved(folder, files, settings, config, name)
        name = plain.GENERIC[0]
    is_literal = special_tokens_in_text == "literal"
    side = settings.get("truncation_side")
    if isinstance(backend, PythonTokenizer):
        backend.tokenizer.split_special_tokens = is_literal or settings["split_special_tokens"]
    else:
        side = side or (backend.truncation or {}).get("direction")
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = is_literal or settings.get("split_special_tokens") is True
        if is_literal:
            _split_spelt(backend)
    max_length, longest = _limits(folder, backend, settings, config)
    inputs = settings.get("model_input_names")
    if not isinstance(inputs, list):
        inputs = plain.input_names(name, config.family, major=_major())
        if plain.names_differ(name, config.family):  # whatever reads what is saved must give the same token types
            files["tokenizer_config.json"] = _bytes(settings | {"model_input_names": inputs})
    has_more = max(backend.get_vocab().values(), default=0) >= config.vocab_size
    saved = TOKENIZER_FILES if isinstance(backend, PythonTokenizer) else _SAVED_FILES
    return Tokenizer(
        backend=backend,
        max_length=max_length,
        longest=longest,
        cut_side="left" if side == "left" else "right",
        num_embeddings=config.vocab_size if has_more else None,
        has_token_types=config.type_vocab_size > 1 and "token_type_ids" in inputs,
        first_position=config.first_position,
        pad_token_id=config.pad_token_id,
        special_tokens_in_text=special_tokens_in_text,
        files={name: files[name] for name in saved if name in files},
    )


_SAVED_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""All that a fast tokenizer is opened from; vocabularies besides would say the same twice."""


def _object(name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        settings = json.loads(files[name])
    except (ValueError, RecursionError) as err:
        raise FlaxsentError(f"{name} is not JSON: {err}; fetch it again.") from err
    if not isinstance(settings, dict):
        raise FlaxsentError(f"{name} holds a {type(settings).__name__}; expected an object.")
    return settings


def _backend(folder: Path, content: bytes) -> tokenizers.Tokenizer:
    try:
        with panics_raise():
            return tokenizers.Tokenizer.from_buffer(content)
    except Exception as err:  # the library raises plain Exception
        raise FlaxsentError(f"{folder / 'tokenizer.json'} is not a tokenizer: {err}; fetch it again.") from err


def _class_name(settings: Mapping[str, Any], config: ModelConfig) -> str | None:
    """The class that the folder names, without "Fast": tokenizer_config.json's, else config.json's, else none."""
    for name in (settings.get("tokenizer_class"), config.get("tokenizer_class")):
        if isinstance(name, str):
            return name.removesuffix("Fast") if name not in plain.GENERIC else name
    return None


def _limits(
    folder: Path, backend: tokenizers.Tokenizer | PythonTokenizer, settings: Mapping[str, Any], config: ModelConfig
) -> tuple[int, int | None]:
    """To how many tokens a text is cut, and the most that can be asked for."""
    named = settings.get("model_max_length", settings.get("max_len"))
    tokenizers_own = named if type(named) is int and named < _NOBODY_KNOWS else None
    table = config.max_length if models.limits_positions(config) else None
    known = [limit for limit in (tokenizers_own, table) if limit is not None]
    longest = min(known) if known else None
    max_length = config.max_length if longest is None else longest
    if max_length <= (special := backend.num_special_tokens_to_add(True)):
        raise FlaxsentError(
            f"{folder} has model_max_length={named} and {config.max_length} positions; expected more than the "
            f"{special} special tokens of a pair."
        )
    return max_length, longest


_NOBODY_KNOWS = 10**20
"""transformers' LARGE_INTEGER: a limit from there on is none."""


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
        with panics_raise():
            return index in backend.encode(token, add_special_tokens=False).ids
    except Exception:  # plain, from the library: letters that the model does not have, and no token for unknown ones
        return False


# What AutoTokenizer makes of a folder that does not say all of it.


class _Resolved(NamedTuple):
    files: dict[str, bytes]
    """Those to save: tokenizer.json with its settings, or the folder's own where there can be no tokenizer.json."""
    settings: dict[str, Any]
    backend: tokenizers.Tokenizer | PythonTokenizer


def _resolved(
    folder: Path, files: Mapping[str, bytes], settings: Mapping[str, Any], config: ModelConfig, name: str | None
) -> _Resolved:
    """What `AutoTokenizer` makes of a folder: from the cache, or now."""
    vetted = _vetted(folder, files, settings, config)
    digest = hashlib.sha256(f"{_RECIPE} {importlib.metadata.version('transformers')} {config.family} {name}".encode())
    for file, content in sorted(vetted.items()):
        digest.update(f"\n{file} {hashlib.sha256(content).hexdigest()}".encode())
    cached = None if (place := cache()) is None else place / f"{digest.hexdigest()}.json"
    if cached is not None and (found := _read_cached(cached)) is not None:
        return _Resolved(found, _object("tokenizer_config.json", found), _backend(folder, found["tokenizer.json"]))
    tokenizer = _auto_tokenizer(folder, vetted, settings, name)
    if (content := _content(tokenizer)) is None:
        backend = tokenizer.backend_tokenizer if tokenizer.is_fast else PythonTokenizer(tokenizer)
        return _Resolved(dict(files), _generic_settings(tokenizer, None), backend)
    backend = _backend(folder, content)
    generic = _generic_settings(tokenizer, backend.pre_tokenizer)
    made = {"tokenizer.json": content, "tokenizer_config.json": _bytes(generic)}
    if cached is not None:
        with contextlib.suppress(OSError):  # the next load does without, as this one
            cached.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            entry = {name: content.decode() for name, content in made.items()}
            write(cached, json.dumps(entry | {"sha256": _sum(made)}).encode())
    return _Resolved(made, generic, backend)


_RECIPE = 1
"""Another number where what is kept is made otherwise."""


def cache() -> Path | None:
    """Where resolved tokenizers are kept: beside what JAX compiled; nowhere if `FLAXSENT_CACHE` is empty."""
    place = os.environ.get("FLAXSENT_CACHE")
    if place is None:
        place = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "flaxsent")
    return Path(place).expanduser() / "tokenizers" if place else None


def _read_cached(file: Path) -> dict[str, bytes] | None:
    """What was kept, if it is whole; whatever else lies there is made anew."""
    try:
        entry = json.loads(file.read_bytes())
        made = {name: entry[name].encode() for name in ("tokenizer.json", "tokenizer_config.json")}
        _backend(file, made["tokenizer.json"])
        is_whole = entry["sha256"] == _sum(made) and _object("tokenizer_config.json", made)["tokenizer_class"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return made if is_whole in plain.GENERIC else None


def _sum(made: Mapping[str, bytes]) -> str:
    return hashlib.sha256(b"\n".join(made.values())).hexdigest()


def _vetted(
    folder: Path, files: Mapping[str, bytes], settings: Mapping[str, Any], config: ModelConfig
) -> dict[str, bytes]:
    """The files that `AutoTokenizer` gets to see: nothing in them can name code, another repository or a file."""
    if not files.keys() - set(NAMES[1:]):
        raise FlaxsentError(
            f"{folder} has no tokenizer; expected tokenizer.json, or one of {', '.join(TOKENIZER_FILES[len(NAMES) :])}."
        )
    kept = {name: value for name, value in settings.items() if not _NAMES_CODE_OR_FILE.fullmatch(name)}
    # transformers 4 takes whatever stands here for an argument of the class.
    tokens = _object("special_tokens_map.json", files)
    tokens = {name: value for name, value in tokens.items() if re.fullmatch(r"[a-z]\w*_tokens?", name)}
    raw: dict[str, Any] = {"model_type": config.family}
    if isinstance(name := config.get("tokenizer_class"), str):
        raw["tokenizer_class"] = name
    vetted = dict(files) | {"tokenizer_config.json": _bytes(kept), "config.json": _bytes(raw)}
    return vetted | ({"special_tokens_map.json": _bytes(tokens)} if "special_tokens_map.json" in files else {})


def _bytes(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()


# Settings that name code, another repository, or a file: transformers 4 reads a `vocab_file` from wherever it points.
_NAMES_CODE_OR_FILE = re.compile(
    r"_.*|auto_map|trust_remote_code|name_or_path|vocab|merges|.*_(files?|spm|object)|init_inputs|sp_model_kwargs|"
    r"chat_template|response_.*"
)


def _auto_tokenizer(folder: Path, vetted: Mapping[str, bytes], settings: Mapping[str, Any], name: str | None) -> Any:
    """Of a copy of the vetted files."""
    if "tokenizer.json" not in vetted and not vetted.keys() & {"vocab.txt", "vocab.json"}:
        _check_sentencepiece(folder, vetted)
    if name == "BertweetTokenizer" and settings.get("normalization"):  # it only warns, and gives other ids
        require("emoji", needed_by=f"the tokenizer in {folder}", install="emoji")
    with quietly("transformers"):
        import transformers
    _check_code(folder, settings, name, transformers)
    with TemporaryDirectory() as copy:
        for file, content in vetted.items():
            (Path(copy) / file).write_bytes(content)
        try:
            with quietly("transformers"), panics_raise():
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    copy, use_fast=True, local_files_only=True, trust_remote_code=False
                )
        except Exception as err:
            raise FlaxsentError(f"the vocabulary in {folder} could not be converted: {err}".splitlines()[0]) from err
    # Without them, transformers 5 gives a fast one with a vocabulary of the special tokens only.
    expected = [file for kind, file in tokenizer.vocab_files_names.items() if kind != "tokenizer_file"]
    missing = [file for file in expected if file not in vetted]
    if missing and tokenizer.is_fast and "tokenizer.json" not in vetted:
        raise FlaxsentError(
            f"{folder} has no {' and no '.join(missing)}, which {type(tokenizer).__name__} is read from; fetch it."
        )
    return tokenizer


def _content(tokenizer: Any) -> bytes | None:
    """The tokenizer.json of a tokenizer of transformers; None for one that is, in part or whole, Python's."""
    if not tokenizer.is_fast:
        return None
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    try:
        with panics_raise():
            return backend.to_str().encode()
    except Exception:  # plain, from the library: RoFormer's words are cut by jieba
        return None


def _generic_settings(tokenizer: Any, pre_tokenizer: Any) -> dict[str, Any]:
    """Settings under which both transformers 4 and 5 read the tokenizer.json as it is."""
    limit = tokenizer.model_max_length
    kept = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": limit if type(limit) is int else 10**30,
        "model_input_names": [*tokenizer.model_input_names],
        "truncation_side": tokenizer.truncation_side,
        "padding_side": tokenizer.padding_side,
        "split_special_tokens": tokenizer.split_special_tokens,
    }
    if (prefix := plain.state(pre_tokenizer).get("add_prefix_space")) is not None:
        kept["add_prefix_space"] = prefix
    tokens = {name: getattr(tokenizer, name, None) for name in plain.NAMED_TOKENS}
    return kept | {name: str(token) for name, token in tokens.items() if token is not None}


def _check_sentencepiece(folder: Path, vocabularies: Mapping[str, bytes]) -> None:
    """Without them transformers fails on an attribute of None, or asks for tiktoken."""
    for name in vocabularies:
        if name.endswith(".model"):
            for module in ("sentencepiece", "google.protobuf"):
                require(module, needed_by=f"converting {folder / name}", install="sentencepiece protobuf")


def _check_code(folder: Path, settings: Mapping[str, Any], name: str | None, transformers: Any) -> None:
    """Refuses a tokenizer that only code of the checkpoint's own makes; transformers refuses it without trust, too."""
    auto_map = settings.get("auto_map")
    is_code = isinstance(auto_map, list) or (isinstance(auto_map, dict) and "AutoTokenizer" in auto_map)
    if is_code and name is not None and not (hasattr(transformers, name) or hasattr(transformers, f"{name}Fast")):
        raise FlaxsentError(
            f"{folder} has a tokenizer of its own code ({name} by auto_map), of which flaxsent runs none; save it with "
            "a tokenizer_class of transformers."
        )


@functools.cache
def _major() -> int:
    """Of the transformers that is installed; it is not imported."""
    return int(importlib.metadata.version("transformers").partition(".")[0])
