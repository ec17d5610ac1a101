"""The ids and token types of AutoTokenizer, whatever the settings of a folder say; of the transformers installed."""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jaxtyping
import numpy as np
import pytest
import tokenizers
from tokenizers import normalizers

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.checkpoint import tokenizer as module
from flaxsent.checkpoint.tokenizer import read_tokenizer
from tests import test_vocabularies as vocabularies
from tests.conftest import AWKWARD_TEXTS, config_of

SPELT = [
    "[CLS] a film [SEP] not bad[SEP] [MASK]  [PAD] [UNK]",
    "<s>good</s></s>  so <mask> bad <pad> <unk> <mask>",
    "[E1] film [/E1] and  [E1]film[/E1] [e1] <e1>",
    "en_XX good de_DE </s> [sep] [Sep] [ SEP ]",
]
TEXTS = [
    *(text for text in AWKWARD_TEXTS if len(text) < 600),
    *SPELT,
    *["Ünïcödé ÀÉÎ straße", "你好世界 film 中文", "ÉCOLE école", "it's  3,5% (no!)  ", "don't ... U.S.A."],
    *vocabularies.TEXTS[:180],
]
PAIRS = [*zip(TEXTS, TEXTS[5:] + TEXTS[:5], strict=True)]

SHORT_PAIRS = [(first[:40], second[:30]) for first, second in PAIRS[::4]]
"""transformers combines every piece that it cuts off the one with every piece of the other."""


class Folder(NamedTuple):
    family: str
    make: Callable[..., vocabularies.Vocabulary]
    settings: Mapping[str, Any] | None = {}
    """What tokenizer_config.json has instead, or besides; None: there is no such file."""
    files: Mapping[str, Any] = {}
    """Other files of JSON."""
    is_plain: bool | None = None
    """Whether the folder is read without transformers; None: either."""
    change: Callable[[dict], None] | None = None
    """Of tokenizer.json."""
    num_types: int = 2


def wordpiece(family: str = "bert", *, lowercase: bool = True, file: str = "tokenizer.json"):
    return partial(vocabularies.wordpiece, family=family, lowercase=lowercase, file=file)


def roberta(family: str = "roberta", file: str = "tokenizer.json"):
    return partial(vocabularies.byte_level, family=family, file=file)


def unigram(name: str | None = "XLMRobertaTokenizer", **more):
    return partial(vocabularies.unigram, tokenizer_class=name, **more)


def sentencepiece(kind: str):
    return vocabularies.KINDS[kind]


def bertweet(folder: Path):
    """fastBPE's files: pieces inside a word end in @@."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    trained.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=900, end_of_word_suffix="</w>", show_progress=False)
    trained.train_from_iterator(vocabularies.TRAINING_LINES, trainer)
    pieces = sorted(trained.get_vocab().items(), key=lambda piece: piece[1])
    words = [piece.removesuffix("</w>") if piece.endswith("</w>") else f"{piece}@@" for piece, _ in pieces]
    (folder / "vocab.txt").write_text("".join(f"{word} 1\n" for word in dict.fromkeys(words)), encoding="utf-8")
    merges = json.loads(trained.to_str())["model"]["merges"]
    (folder / "bpe.codes").write_text("".join(f"{' '.join(merge)} 1\n" for merge in merges), encoding="utf-8")
    vocabularies.write_settings(folder, "roberta", tokenizer_class="BertweetTokenizer", model_max_length=512)


def token(content: str, **flags) -> dict[str, Any]:
    base = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    return {"content": content, **base, **flags}


def decoder_of(raw: dict) -> dict[str, Any]:
    return {str(one["id"]): {key: value for key, value in one.items() if key != "id"} for one in raw["added_tokens"]}


def with_markers(raw: dict) -> None:
    size = len(raw["model"]["vocab"])
    raw["added_tokens"] += [{"id": size + place} | token(text) for place, text in enumerate(("[E1]", "[/E1]"))]


def with_changed(path: str, value: Any) -> Callable[[dict], None]:
    def change(raw: dict) -> None:
        *way, last = path.split(".")
        for name in way:
            raw = raw[name]
        raw[last] = value

    return change


def left_truncation(raw: dict) -> None:
    raw["truncation"] = {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}


BERT = "bert"
FOLDERS: dict[str, Folder] = {
    # BERT's kin: the normalizer.
    "bert": Folder(BERT, wordpiece(), is_plain=True),
    "bert, no settings": Folder(BERT, wordpiece(), None, is_plain=True),
    "bert, cased file, no settings": Folder(BERT, wordpiece(lowercase=False), None, is_plain=False),
    "bert, cased": Folder(BERT, wordpiece(lowercase=False), is_plain=True),
    "bert, cased file, lowered": Folder(BERT, wordpiece(lowercase=False), {"do_lower_case": True}, is_plain=False),
    "bert, lowered file, cased": Folder(BERT, wordpiece(), {"do_lower_case": False}, is_plain=False),
    "bert, accents stripped": Folder(
        BERT, wordpiece(lowercase=False), {"do_lower_case": False, "strip_accents": True}, is_plain=False
    ),
    "bert, accents kept": Folder(BERT, wordpiece(), {"strip_accents": False}, is_plain=False),
    "bert, Chinese whole": Folder(BERT, wordpiece(), {"tokenize_chinese_chars": False}, is_plain=False),
    "bert, Chinese whole in the file, too": Folder(
        BERT,
        wordpiece(),
        {"tokenize_chinese_chars": False},
        change=with_changed("normalizer.handle_chinese_chars", False),
        is_plain=True,
    ),
    "bert vocab.txt, all of them": Folder(
        BERT,
        wordpiece(file="vocab.txt"),
        {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False},
    ),
    "bert, another normalizer": Folder(BERT, wordpiece(), change=with_changed("normalizer", {"type": "NFKC"})),
    "bert, longest words": Folder(
        BERT, wordpiece(), change=with_changed("model.max_input_chars_per_word", 5), is_plain=False
    ),
    "bert, other frame": Folder(BERT, wordpiece(), {"cls_token": "[SEP]", "sep_token": "[MASK]"}, is_plain=False),
    "bert, other names": Folder(
        BERT,
        wordpiece(),
        vocabularies.special_settings(vocabularies.CLS_NAMES),
        is_plain=True,
    ),
    "bert, tokens that it lacks": Folder(BERT, wordpiece(), {"mask_token": "<mask>", "pad_token": "<pad>"}),
    # Classes.
    "electra": Folder("electra", wordpiece("electra"), is_plain=True),
    "electra, its class": Folder(
        "electra", wordpiece("electra", lowercase=False), {"tokenizer_class": "ElectraTokenizer"}, is_plain=True
    ),
    "electra, its class, contradicted": Folder(
        "electra", wordpiece("electra"), {"tokenizer_class": "ElectraTokenizer", "do_lower_case": False}
    ),
    "electra of BERT": Folder("electra", wordpiece("electra"), {"tokenizer_class": "BertTokenizerFast"}, is_plain=True),
    "bert of DistilBERT": Folder(BERT, wordpiece(), {"tokenizer_class": "DistilBertTokenizer"}, is_plain=True),
    "distilbert": Folder("distilbert", wordpiece("distilbert"), is_plain=True, num_types=0),
    "roformer of BERT": Folder("roformer", wordpiece("roformer"), {"tokenizer_class": "BertTokenizer"}, is_plain=True),
    "bert of any": Folder(BERT, wordpiece(), {"tokenizer_class": "PreTrainedTokenizerFast"}, is_plain=True),
    "bert of any, contradicted": Folder(
        BERT,
        wordpiece(),
        {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False, "cls_token": "[CLS]"},
        is_plain=True,
    ),
    "bert of any, longest words": Folder(
        BERT,
        wordpiece(),
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        change=with_changed("model.max_input_chars_per_word", 5),
        is_plain=True,
    ),
    "bert of the config's class": Folder(
        BERT, wordpiece(), {}, {"config.json": {"model_type": BERT, "tokenizer_class": "DistilBertTokenizer"}}
    ),
    "bert of RoBERTa's": Folder(BERT, roberta(), {"tokenizer_class": "RobertaTokenizer"}, is_plain=True),
    "bert of none": Folder(BERT, wordpiece(), {"tokenizer_class": "NoSuchTokenizer"}),
    "albert of BERT's": Folder("albert", wordpiece("albert"), {"tokenizer_class": "BertTokenizer"}, is_plain=True),
    "xlm-roberta of BERT's": Folder("xlm-roberta", wordpiece("xlm-roberta"), {"tokenizer_class": "BertTokenizer"}),
    "mpnet": Folder("mpnet", wordpiece("mpnet"), {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}),
    # Tokens.
    "bert, markers in the file": Folder(BERT, wordpiece(), change=with_markers, is_plain=True),
    "bert, markers of the settings": Folder(BERT, wordpiece(), {"additional_special_tokens": ["[E1]", "[/E1]"]}),
    "bert, extra tokens": Folder(BERT, wordpiece(), {"extra_special_tokens": {"marker_token": "[E1]"}}),
    "bert, markers of the map": Folder(
        BERT, wordpiece(), {}, {"special_tokens_map.json": {"additional_special_tokens": ["[E1]", "[/E1]"]}}
    ),
    "bert, added_tokens.json": Folder(
        BERT, wordpiece(), {}, {"added_tokens.json": {"[E1]": 1250, "[/E1]": 1251, "film": 1252}}
    ),
    "bert, map": Folder(
        BERT,
        wordpiece(),
        {},
        {"special_tokens_map.json": {"mask_token": token("[MASK]"), "cls_token": "[CLS]"}},
        is_plain=True,
    ),
    "bert, map of other flags": Folder(
        BERT, wordpiece(), {}, {"special_tokens_map.json": {"mask_token": token("[MASK]", lstrip=True)}}
    ),
    "bert, decoder of some": Folder(BERT, wordpiece(), {"added_tokens_decoder": {"0": token("[PAD]")}}),
    "bert, decoder of other flags": Folder(
        BERT, wordpiece(), {"added_tokens_decoder": {"103": token("[MASK]", lstrip=True), "99": token("[unused98]")}}
    ),
    "bert, decoder of markers": Folder(
        BERT,
        wordpiece(),
        {"added_tokens_decoder": {"1300": token("[E1]"), "1301": token("film", special=False, normalized=True)}},
    ),
    "bert, split": Folder(BERT, wordpiece(), {"split_special_tokens": True}, is_plain=True),
    "bert vocab.txt, markers": Folder(
        BERT,
        wordpiece(file="vocab.txt"),
        {"additional_special_tokens": ["[E1]"]},
        {"added_tokens.json": {"[E1]": 1250}},
    ),
    # What is told of inputs.
    "bert, no types": Folder(BERT, wordpiece(), {"model_input_names": ["input_ids", "attention_mask"]}, is_plain=True),
    "bert, left": Folder(BERT, wordpiece(), {"truncation_side": "left", "padding_side": "left"}, is_plain=True),
    "bert, left in the file": Folder(BERT, wordpiece(), change=left_truncation, is_plain=True),
    "bert of any, left in the file": Folder(
        BERT, wordpiece(), {"tokenizer_class": "PreTrainedTokenizerFast"}, change=left_truncation, is_plain=True
    ),
    "bert, longest words, left": Folder(
        BERT, wordpiece(), {"truncation_side": "left"}, change=with_changed("model.max_input_chars_per_word", 5)
    ),
    "bert, local class and code": Folder(
        BERT,
        wordpiece(),
        {"tokenizer_class": "BertTokenizer", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}},
        is_plain=True,
    ),
    # Byte-level.
    "roberta": Folder("roberta", roberta(), is_plain=None, num_types=1),
    "roberta, space": Folder("roberta", roberta(), {"add_prefix_space": True}, is_plain=False, num_types=1),
    "roberta, space in the file": Folder(
        "roberta", roberta(), change=with_changed("pre_tokenizer.add_prefix_space", True), is_plain=False, num_types=1
    ),
    "roberta, space in both": Folder(
        "roberta",
        roberta(),
        {"add_prefix_space": True, "trim_offsets": False, "mask_token": "<mask>"},
        change=with_changed("pre_tokenizer.add_prefix_space", True),
        is_plain=True,
        num_types=1,
    ),
    "roberta of any, space in the file": Folder(
        "roberta",
        roberta(),
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        change=with_changed("pre_tokenizer.add_prefix_space", True),
        is_plain=False,
        num_types=1,
    ),
    "roberta merges.txt, space": Folder(
        "roberta", roberta(file="merges.txt"), {"add_prefix_space": True, "mask_token": "<pad>"}, num_types=1
    ),
    "roberta, other frame": Folder("roberta", roberta(), {"sep_token": "<unk>", "bos_token": "<pad>"}, num_types=1),
    "roberta, other mask": Folder(
        "roberta", roberta(), {"mask_token": {"__type": "AddedToken", **token("<mask>")}}, num_types=1
    ),
    "roberta, normalized": Folder(
        "roberta", roberta(), change=with_changed("normalizer", {"type": "NFKC"}), num_types=1, is_plain=False
    ),
    "bart": Folder("bart", roberta("bart"), num_types=0),
    "bart, space": Folder("bart", roberta("bart"), {"tokenizer_class": "BartTokenizer", "add_prefix_space": True}),
    "bart merges.txt": Folder("bart", roberta("bart", file="merges.txt"), num_types=0),
    "modernbert": Folder("modernbert", vocabularies.modernbert, is_plain=True, num_types=0),
    "modernbert of none": Folder("modernbert", vocabularies.modernbert, {"tokenizer_class": None}, num_types=0),
    # Unigram.
    "xlm-roberta": Folder("xlm-roberta", unigram(), is_plain=True, num_types=1),
    "xlm-roberta of none": Folder("xlm-roberta", unigram(None), num_types=1),
    "xlm-roberta, other ends": Folder("xlm-roberta", unigram(), {"bos_token": "<pad>"}, num_types=1),
    "xlm-roberta, NFKC": Folder("xlm-roberta", unigram(normalizer=normalizers.NFKC()), is_plain=False, num_types=1),
    "camembert tokenizer.json": Folder("camembert", unigram("CamembertTokenizer"), is_plain=False, num_types=1),
    "mbart tokenizer.json": Folder(
        "mbart", unigram("MBartTokenizer"), {"src_lang": "de_DE", "tgt_lang": "en_XX"}, is_plain=False, num_types=0
    ),
    "mbart": Folder("mbart", sentencepiece("mbart sentencepiece.bpe.model"), {"src_lang": "fr_XX"}, num_types=0),
    "albert": Folder("albert", sentencepiece("albert spiece.model"), {"do_lower_case": False}),
    "albert, accents": Folder("albert", sentencepiece("albert spiece.model"), {"keep_accents": True}),
    "camembert": Folder("camembert", sentencepiece("camembert sentencepiece.bpe.model"), num_types=1),
    "deberta": Folder("deberta-v2", sentencepiece("deberta-v2 spm.model"), num_types=0),
    "deberta, lowered": Folder(
        "deberta-v2",
        sentencepiece("deberta-v2 spm.model"),
        {"do_lower_case": True, "split_by_punct": True},
        num_types=0,
    ),
}


FOLDERS |= {
    # Python's, without a tokenizer.json.
    "bertweet": Folder("roberta", bertweet, is_plain=False, num_types=1),
    "bertweet, split": Folder("roberta", bertweet, {"split_special_tokens": True}, is_plain=False, num_types=1),
    "bertweet, left": Folder("roberta", bertweet, {"truncation_side": "left"}, is_plain=False, num_types=1),
    "bert, Japanese": Folder(
        BERT,
        wordpiece(file="vocab.txt"),
        {},
        {"config.json": {"model_type": BERT, "tokenizer_class": "BertJapaneseTokenizer"}},
        is_plain=False,
    ),
}


_MADE: dict[str, TemporaryDirectory] = {}


def _made(name: str, make: Callable) -> str:
    if name not in _MADE:
        _MADE[name] = TemporaryDirectory()
        make(Path(_MADE[name].name))
    return _MADE[name].name


def write(case: Folder, folder: Path) -> Path:
    shutil.copytree(_made(repr(case.make), case.make), folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": case.family}))
    settings = folder / "tokenizer_config.json"
    changed = {} if case.settings is None else json.loads(settings.read_text()) | case.settings
    settings.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))
    if case.settings is None:
        settings.unlink()
    for name, content in case.files.items():
        (folder / name).write_text(json.dumps(content))
    if case.change is not None:
        raw = json.loads((folder / "tokenizer.json").read_text())
        case.change(raw)
        (folder / "tokenizer.json").write_text(json.dumps(raw))
    return folder


def config(case: Folder, folder: Path):
    return config_of(folder, case.family, **({"type_vocab_size": case.num_types} if case.num_types else {}))


CORE = {
    "bert",
    "bert, no settings",
    "bert, cased",
    "bert, cased file, lowered",
    "bert, accents kept",
    "bert, Chinese whole",
    "bert, other frame",
    "electra, its class, contradicted",
    "bert of any",
    "bert of the config's class",
    "bert of none",
    "mpnet",
    "bert, markers in the file",
    "bert, markers of the settings",
    "bert, added_tokens.json",
    "bert, decoder of markers",
    "bert, split",
    "bert, no types",
    "bert, left",
    "roberta, space",
    "roberta, space in both",
    "bart merges.txt",
    "modernbert",
    "xlm-roberta",
    "mbart tokenizer.json",
    "albert",
    "deberta, lowered",
    "bertweet",
}
"""Those that are tried in every run; the others, and their like, are slow together."""


def transformers_major() -> int:
    import transformers

    return int(transformers.__version__.partition(".")[0])


def reference(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def assert_like(ours, theirs, *, has_types: bool, **cut) -> None:
    """Id by id and type by type; of texts and of pairs."""
    singles, pairs = (TEXTS[::5], SHORT_PAIRS) if cut else (TEXTS, PAIRS)
    for texts, columns in ((singles, [singles]), (pairs, [[*part] for part in zip(*pairs, strict=True)])):
        expected = theirs(*columns, **({"truncation": True, **cut} if cut else {}))
        found = ours.encode(texts, **cut)
        zeros = [[0] * len(ids) for ids in expected["input_ids"]]
        types = expected.get("token_type_ids", zeros) if has_types else zeros
        for place, text in enumerate(texts):
            assert found.input_ids[place] == expected["input_ids"][place], text
            assert found.token_type_ids[place] == types[place], text


@pytest.fixture
def resolutions(monkeypatch):
    """How often transformers was asked; without a cache."""
    monkeypatch.setenv("FLAXSENT_CACHE", "")
    asked = []
    made = module._auto_tokenizer
    monkeypatch.setattr(module, "_auto_tokenizer", lambda *arguments: asked.append(1) or made(*arguments))
    return asked


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in CORE else pytest.mark.slow) for name in FOLDERS]
)
def test_ids_and_types_are_those_of_auto_tokenizer(name, tmp_path, resolutions):
    """And those of what `save` writes, which is plain, read by both."""
    case = FOLDERS[name]
    folder = write(case, tmp_path)
    if name == "bert of none" and transformers_major() == 4:
        with pytest.raises(FlaxsentError, match="NoSuchTokenizer"):
            read_tokenizer(folder, config(case, folder))
        return
    theirs = reference(folder)
    ours = read_tokenizer(folder, config(case, folder))
    has_types = case.num_types > 1
    assert_like(ours, theirs, has_types=has_types)
    if case.is_plain is not None:
        assert case.is_plain == (not resolutions)
    saved = tmp_path / "saved"
    saved.mkdir()
    shutil.copy(folder / "config.json", saved)
    for file, content in ours.files.items():
        (saved / file).write_bytes(content)
    del resolutions[:]
    again = read_tokenizer(saved, config(case, saved))
    assert not resolutions or "tokenizer.json" not in ours.files
    assert again.encode(TEXTS + PAIRS) == ours.encode(TEXTS + PAIRS)
    assert again.max_length == ours.max_length
    from_saved = reference(saved)
    assert_like(again, from_saved, has_types=has_types)
    assert_like(ours, theirs, has_types=has_types, max_length=21)
    assert_like(again, from_saved, has_types=has_types, max_length=10)


# The cache.


@pytest.fixture
def resolved(tmp_path, resolutions, monkeypatch):
    """A folder that needs transformers, its config, and where what transformers made of it is kept."""
    folder = tmp_path / "folder"
    folder.mkdir()
    write(FOLDERS["bert, cased file, lowered"], folder)
    monkeypatch.setenv("FLAXSENT_CACHE", str(tmp_path / "cache"))
    return folder, config_of(folder, "bert"), tmp_path / "cache" / "tokenizers"


def test_transformers_is_asked_once(resolved, resolutions):
    folder, of_model, cache = resolved
    first = read_tokenizer(folder, of_model)
    assert [len(resolutions), len([*cache.iterdir()])] == [1, 1]
    again = read_tokenizer(folder, of_model)
    assert len(resolutions) == 1
    assert again.encode(TEXTS + PAIRS) == first.encode(TEXTS + PAIRS)
    assert again.files == first.files


@pytest.mark.parametrize("changed", ["settings", "vocabulary", "class", "transformers"])
def test_what_is_kept_is_of_these_files_and_this_transformers(resolved, resolutions, monkeypatch, changed):
    folder, of_model, _ = resolved
    read_tokenizer(folder, of_model)
    settings, file = json.loads((folder / "tokenizer_config.json").read_text()), folder / "tokenizer.json"
    if changed == "settings":
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"strip_accents": False}))
    elif changed == "vocabulary":
        file.write_text(file.read_text().replace('"[unused98]"', '"[unused_98]"'))
    elif changed == "class":
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "ElectraTokenizer"}))
    else:
        version = module.importlib.metadata.version
        monkeypatch.setattr(module.importlib.metadata, "version", lambda name: version(name) + ".1")
    read_tokenizer(folder, of_model)
    assert len(resolutions) == 2


DAMAGED = {
    "empty": b"",
    "binary": b"\xff\x00",
    "deep": b"[" * 200_000,
    "list": b"[1]",
    "object": b"{}",
    "no tokenizer": b'{"tokenizer.json": "{}", "tokenizer_config.json": "{}", "sha256": ""}',
    "numbers": b'{"tokenizer.json": 1, "tokenizer_config.json": 2, "sha256": 3}',
}


@pytest.mark.parametrize("name", [*DAMAGED, "torn", "changed"])
def test_a_damaged_entry_is_made_anew(resolved, resolutions, name):
    folder, of_model, cache = resolved
    good = read_tokenizer(folder, of_model).files
    (entry,) = cache.iterdir()
    content = entry.read_bytes()
    entry.write_bytes(
        DAMAGED.get(name, content[:999] if name == "torn" else content.replace(b"[unused98]", b"[unused89]"))
    )
    assert read_tokenizer(folder, of_model).files == good
    assert len(resolutions) == 2
    assert entry.read_bytes() == content


def test_a_cache_that_cannot_be_written_is_done_without(resolved, resolutions):
    folder, of_model, cache = resolved
    cache.parent.write_text("a file where the folder would be")
    for _ in range(2):
        read_tokenizer(folder, of_model)
    assert len(resolutions) == 2


# Limits, tokens beyond the embeddings, special tokens in texts.


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({"max_len": 17}, 17),
        ({"max_len": 17, "model_max_length": 19}, 19),
        ({"max_len": 17, "model_max_length": None}, 600),
        ({"model_max_length": 10**30}, 600),
    ],
    ids=str,
)
def test_the_limit_is_that_of_transformers_or_of_the_positions(tmp_path, settings, limit):
    wordpiece()(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = read_tokenizer(tmp_path, config_of(tmp_path, "bert"))
    assert ours.max_length == ours.longest == limit
    assert min(reference(tmp_path).model_max_length, 600) == limit


@pytest.mark.slow
def test_the_side_of_padding_has_no_influence_on_logits(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("bert"), tmp_path / "left")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}))
    right, left = (flaxsent.load(one, backend="native") for one in (tiny_folder("bert"), folder))
    texts = ["a film", "not so good", "hate this film so much"]
    np.testing.assert_array_equal(*(one.forward(one.params, one.tokenize(texts)) for one in (right, left)))
    alone = np.concatenate([left.forward(left.params, left.tokenize([text])) for text in texts])
    # Float32 in another order of summation, as rows are of another length.
    np.testing.assert_allclose(left.forward(left.params, left.tokenize(texts)), alone, atol=2e-5)


def test_a_saved_classifier_has_the_resolved_tokenizer(tiny_folder, tmp_path, resolutions):
    """AutoTokenizer and flaxsent give the same ids of it, and flaxsent does not ask transformers again."""
    folder = shutil.copytree(tiny_folder("bert"), tmp_path / "before")
    (folder / "tokenizer_config.json").write_text(json.dumps({"strip_accents": False}))
    classifier = flaxsent.load(folder, backend="native")
    assert resolutions
    flaxsent.save(classifier, tmp_path / "after")
    del resolutions[:]
    again = flaxsent.load(tmp_path / "after", backend="native")
    assert not resolutions
    texts = ["É a film", "[SEP] so", "the"]
    assert again.tokenizer.encode(texts) == classifier.tokenizer.encode(texts)
    for one in (folder, tmp_path / "after"):
        assert reference(one)(texts)["input_ids"] == classifier.tokenizer.encode(texts).input_ids


@pytest.mark.parametrize("family", ["modernbert", "deberta-v2"])
def test_a_family_without_a_table_of_positions_has_the_limit_of_its_tokenizer(tmp_path, family):
    wordpiece()(tmp_path)
    generic = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for named, limits in ((8192, (8192, 8192)), (16, (16, 16)), (10**30, (600, None)), (None, (600, None))):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(generic | {"model_max_length": named}))
        ours = read_tokenizer(tmp_path, config_of(tmp_path, family))
        assert (ours.max_length, ours.longest) == limits
    assert len(ours.encode(["good " * 900]).input_ids[0]) == 600
    assert len(ours.encode(["good " * 900], max_length=800).input_ids[0]) == 800


def test_a_token_without_embedding_is_told_when_it_comes_up(tmp_path):
    folder = write(FOLDERS["bert, markers in the file"], tmp_path)
    size = json.loads((folder / "tokenizer.json").read_text())["added_tokens"][-2]["id"]
    ours = read_tokenizer(folder, config_of(folder, "bert", vocab_size=size))
    assert ours.encode(["a film"]).num_truncated == 0
    with pytest.raises(FlaxsentError, match=rf"text 1, 'so \[E1\] good', has the token '\[E1\]', whose id is {size}"):
        ours.encode(["a film", "so [E1] good"])
    literal = read_tokenizer(folder, config_of(folder, "bert", vocab_size=size), special_tokens_in_text="literal")
    assert max(literal.encode(["so [E1] good"]).input_ids[0]) < size


@pytest.mark.parametrize("name", ["bert, markers in the file", "roberta, space in both", "xlm-roberta", "bertweet"])
def test_special_tokens_in_a_text_are_letters_where_that_is_asked_for(name, tmp_path):
    case = FOLDERS[name]
    folder = write(case, tmp_path)
    ours, literal = (
        read_tokenizer(folder, config(case, folder), special_tokens_in_text=choice) for choice in ("special", "literal")
    )
    theirs = reference(folder)
    frame = theirs("")["input_ids"]
    inner = "[E1]" if name.startswith("bert,") else "</s>"
    marker = theirs.convert_tokens_to_ids(inner)
    text = f"good{inner}bad"
    assert ours.encode([text]).input_ids[0].count(marker) == frame.count(marker) + 1
    assert literal.encode([text]).input_ids[0].count(marker) == frame.count(marker)
    plain = ["a good film", ("so", "bad")]
    assert literal.encode(plain) == ours.encode(plain)


def test_another_word_for_special_tokens_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # or conftest's type checks would speak first
    wordpiece()(tmp_path)
    with pytest.raises(FlaxsentError, match=r"special_tokens_in_text='text': expected one of special, literal\."):
        read_tokenizer(tmp_path, config_of(tmp_path, "bert"), special_tokens_in_text="text")
