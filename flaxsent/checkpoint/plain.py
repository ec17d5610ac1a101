"""Whether a tokenizer.json says all of a tokenizer: whether `AutoTokenizer` of transformers 4 and 5 reads it as it is.

transformers 4 opens the file, and has the settings and the class change what they contradict: the normalizer of BERT's
kin, the prefix space of byte-level ones, tokens that are named and not there. transformers 5 takes the vocabulary out
of the file and has the class build the rest anew. So a file is plain if it is what its class would build by its
settings, and if all tokens that are named are in it; a generic class builds nothing. In doubt it is not plain.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken

GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""The class of transformers 4 that reads any tokenizer.json, and that of 5."""

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """Classes that build alike."""

    builds: Callable[[tokenizers.Tokenizer, bytes, Settings, Mapping[str, str]], bool]
    """Whether a backend, read of that content, is what they build by those settings with those named tokens."""
    tokens: Mapping[str, str | AddedToken]
    """The tokens that they name where the settings do not."""
    has_token_types: bool


def state(component: Any) -> dict[str, Any]:
    """What a normalizer, a pre-tokenizer or a post-processor says of itself."""
    return {} if component is None else json.loads(component.__getstate__())


def _is_wordpiece(backend: tokenizers.Tokenizer, content: bytes, settings: Settings, tokens: Mapping[str, str]) -> bool:
    model = backend.model
    if not isinstance(model, tokenizers.models.WordPiece) or model.unk_token != tokens["unk_token"]:
        return False
    return (
        (model.continuing_subword_prefix, model.max_input_chars_per_word) == ("##", 100)
        and state(backend.pre_tokenizer) == {"type": "BertPreTokenizer"}
        and state(backend.normalizer)
        == {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
            "strip_accents": settings.get("strip_accents"),
            "lowercase": settings.get("do_lower_case", True),
        }
    )


def _is_bert(backend: tokenizers.Tokenizer, content: bytes, settings: Settings, tokens: Mapping[str, str]) -> bool:
    frame = _template(backend, "{cls_token} $A {sep_token}", "{cls_token} $A {sep_token} $B:1 {sep_token}:1", tokens)
    return _is_wordpiece(backend, content, settings, tokens) and state(backend.post_processor) == frame


def _is_mpnet(backend: tokenizers.Tokenizer, content: bytes, settings: Settings, tokens: Mapping[str, str]) -> bool:
    return _is_wordpiece(backend, content, settings, tokens) and _is_framed_as_roberta(backend, tokens)


def _is_roberta(backend: tokenizers.Tokenizer, content: bytes, settings: Settings, tokens: Mapping[str, str]) -> bool:
    model = backend.model
    if not isinstance(model, tokenizers.models.BPE) or backend.normalizer is not None:
        return False
    said = (model.dropout, model.unk_token, model.fuse_unk, model.byte_fallback, model.ignore_merges)
    before = state(backend.pre_tokenizer)
    return (
        said == (None, None, False, False, False)
        and not model.continuing_subword_prefix
        and not model.end_of_word_suffix
        and (before.get("type"), before.get("use_regex")) == ("ByteLevel", True)
        and before["add_prefix_space"] is settings.get("add_prefix_space", False)
        and _is_framed_as_roberta(backend, tokens)
    )


def _is_framed_as_roberta(backend: tokenizers.Tokenizer, tokens: Mapping[str, str]) -> bool:
    frame = state(backend.post_processor)  # its other settings are of offsets
    ends = {end: [tokens[f"{end}_token"], backend.token_to_id(tokens[f"{end}_token"])] for end in ("sep", "cls")}
    return frame.get("type") == "RobertaProcessing" and {end: frame[end] for end in ends} == ends


def _is_xlm_roberta(
    backend: tokenizers.Tokenizer, content: bytes, settings: Settings, tokens: Mapping[str, str]
) -> bool:
    if not isinstance(backend.model, tokenizers.models.Unigram):
        return False
    model = json.loads(content)["model"]
    words = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    pair = "{bos_token} $A {eos_token} {eos_token} $B {eos_token}"
    return (
        model.get("unk_id") == 3
        and not model.get("byte_fallback")
        and state(backend.normalizer).get("type") in (None, "Precompiled")
        and state(backend.pre_tokenizer) == {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, words]}
        and settings.get("add_prefix_space", True) is True
        and state(backend.post_processor) == _template(backend, "{bos_token} $A {eos_token}", pair, tokens)
    )


def _template(backend: tokenizers.Tokenizer, single: str, pair: str, tokens: Mapping[str, str]) -> dict[str, Any]:
    """The state of a post-processor; an empty one if a token of it is not in the vocabulary."""
    ids = {token: backend.token_to_id(token) for name, token in tokens.items() if f"{{{name}}}" in pair}
    if None in ids.values() or any(" " in token or ":" in token or token.startswith("$") for token in ids):
        return {"type": None}
    return state(
        tokenizers.processors.TemplateProcessing(
            single=single.format(**tokens), pair=pair.format(**tokens), special_tokens=[*ids.items()]
        )
    )


def _mask(content: str, *, normalized: bool) -> AddedToken:
    """The mask of most classes takes the space before it along."""
    return AddedToken(content, lstrip=True, normalized=normalized, special=True)


_BERT_TOKENS = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
_ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}
_MPNET_TOKENS = {
    name: AddedToken(content, normalized=True, special=True)
    for name, content in (_ROBERTA_TOKENS | {"unk_token": "[UNK]"}).items()
}

_BERT = _Kind(_is_bert, _BERT_TOKENS, has_token_types=True)
_CLASSES = {
    "BertTokenizer": _BERT,
    "ElectraTokenizer": _BERT,
    "DistilBertTokenizer": dataclasses.replace(_BERT, has_token_types=False),
    "RobertaTokenizer": _Kind(
        _is_roberta, {**_ROBERTA_TOKENS, "mask_token": _mask("<mask>", normalized=False)}, has_token_types=False
    ),
    "BartTokenizer": _Kind(
        _is_roberta, {**_ROBERTA_TOKENS, "mask_token": _mask("<mask>", normalized=True)}, has_token_types=False
    ),
    "MPNetTokenizer": _Kind(
        _is_mpnet, {**_MPNET_TOKENS, "mask_token": _mask("<mask>", normalized=True)}, has_token_types=False
    ),
    "XLMRobertaTokenizer": _Kind(
        _is_xlm_roberta, {**_ROBERTA_TOKENS, "mask_token": _mask("<mask>", normalized=True)}, has_token_types=False
    ),
}
"""The classes of which both versions build the same; others are left to transformers."""

_DEFAULT_CLASSES = {
    "bert": "BertTokenizer",
    "electra": "ElectraTokenizer",
    "distilbert": "DistilBertTokenizer",
    "roberta": "RobertaTokenizer",
    "roberta-prelayernorm": "RobertaTokenizer",
    "bart": "BartTokenizer",
    "mpnet": "MPNetTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "modernbert": GENERIC[0],
}
"""By family, where a folder names no class."""


def is_plain(
    backend: tokenizers.Tokenizer,
    content: bytes,
    settings: Settings,
    special_tokens_map: Settings,
    added_tokens: Settings,
    *,
    name: str | None,
    family: str,
) -> bool:
    """Whether a tokenizer.json says all; `name` is the class that the folder names, without "Fast"."""
    name = _DEFAULT_CLASSES.get(family) if name is None else name
    kind = None if name is None else _CLASSES.get(name)
    if kind is None and name not in GENERIC:
        return False
    decoder = settings.get("added_tokens_decoder")
    named: dict[str, Any] = {} if kind is None else {**kind.tokens}
    named |= {key: value for key, value in settings.items() if key.endswith("_token")}
    listed = [settings.get(key) for key in ("additional_special_tokens", "extra_special_tokens")]
    if decoder is None:  # else both files are ignored
        named |= {key: value for key, value in special_tokens_map.items() if key.endswith("_token")}
        listed += [value for key, value in special_tokens_map.items() if key.endswith("_tokens")]
    there = {token.content: (index, token) for index, token in backend.get_added_tokens_decoder().items()}
    if not (
        _are_named_in(named, listed, decoder, there)
        and _is_decoder_of(decoder, there, is_whole=kind is not None)
        and (decoder is not None or all(there.get(text, (None,))[0] == index for text, index in added_tokens.items()))
    ):
        return False
    if kind is None:
        # transformers 4 has the settings decide, and says no where they are silent.
        before = state(backend.pre_tokenizer).get("add_prefix_space")
        return before is None or before is settings.get("add_prefix_space", False)
    contents = {key: _content(value) for key, value in named.items() if value is not None}
    tokens = {key: content for key, content in contents.items() if content is not None}
    return (
        _are_counted_on(backend, there)
        and kind.tokens.keys() <= tokens.keys()
        and kind.builds(backend, content, settings, tokens)
    )


def reads_file(name: str) -> bool:
    """Whether a class is known to be read from a tokenizer.json alone."""
    return name in GENERIC or name.removesuffix("Fast") in _CLASSES


def input_names(name: str | None, family: str, *, major: int) -> list[str]:
    """The `model_input_names` of a plain class where the settings name none."""
    name = _DEFAULT_CLASSES.get(family) if name is None else name
    has_types = major < 5 if name in GENERIC else _CLASSES[str(name)].has_token_types
    return ["input_ids", *(["token_type_ids"] if has_types else []), "attention_mask"]


def names_differ(name: str | None, family: str) -> bool:
    """Whether transformers 4 and 5 have other ones: the generic class of 4 has token types, that of 5 has not."""
    return (_DEFAULT_CLASSES.get(family) if name is None else name) in GENERIC


def _content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content.content if isinstance(content, AddedToken) else content if isinstance(content, str) else None


def _are_named_in(
    named: Settings, listed: Collection[Any], decoder: Any, there: Mapping[str, tuple[int, AddedToken]]
) -> bool:
    """Whether each token that is named is a special one of the file, with the flags with which it would be added."""
    for tokens in listed:
        if tokens and not (isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)):
            return False
    if isinstance(decoder, dict):
        known = {_content(token) for token in decoder.values()}
        if any(_content(token) not in known for token in named.values() if token is not None):
            return False
    every = [token for tokens in listed for token in tokens or []]
    for token in named.values():
        if token is None:
            continue
        if (content := _content(token)) is None:
            return False
        every.append(content)
    return all(content in there and there[content][1].special for content in every) and all(
        _flags(there[token.content][1]) == _flags(token) for token in named.values() if isinstance(token, AddedToken)
    )


def _is_decoder_of(decoder: Any, there: Mapping[str, tuple[int, AddedToken]], *, is_whole: bool) -> bool:
    """Whether `added_tokens_decoder` says of the added tokens what the file says: of all of them if `is_whole`."""
    if decoder is None:
        return True
    if not isinstance(decoder, dict):
        return False
    said = {}
    for index, token in decoder.items():
        if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not index.isdecimal():
            return False
        said[token["content"]] = (int(index), tuple(token.get(flag) for flag in _FLAGS))
    found = {content: (index, _flags(token)) for content, (index, token) in there.items()}
    return said == found if is_whole else said.items() <= found.items()


_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


def _flags(token: AddedToken) -> tuple[bool, ...]:
    return tuple(getattr(token, flag) for flag in _FLAGS)


def _are_counted_on(backend: tokenizers.Tokenizer, there: Mapping[str, tuple[int, AddedToken]]) -> bool:
    """Whether added tokens have the ids that they get when they are added to the vocabulary one by one."""
    size = backend.get_vocab_size(with_added_tokens=False)
    new = []
    for content, (index, _) in there.items():
        if (own := backend.model.token_to_id(content)) is None:
            new.append(index)
        elif own != index:
            return False
    return sorted(new) == [*range(size, size + len(new))]
