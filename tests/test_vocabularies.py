"""Vocabularies of every kind, trained here on the text of this repository, against transformers' fast tokenizers.

The folders have the files, the special tokens and the settings of each family's published checkpoints. transformers
converts vocabularies for both sides of that comparison, so the ids are also compared with what the library that trained
the vocabulary says of it.
"""

import functools
import io
import json
import random
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from flaxsent.checkpoint.tokenizer import read_tokenizer
from flaxsent.tokenization import Tokenizer
from tests.conftest import config_of

ROOT = Path(__file__).parent.parent
LIMIT = 512

CLS_SEP = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
BOS_EOS = ("<s> $A </s>", "<s> $A </s> </s> $B </s>")
BOS_NAMES = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
CLS_NAMES = {"cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "pad": "[PAD]", "mask": "[MASK]"}
BOS_FIRST = ["<s>", "<pad>", "</s>", "<unk>"]


def repository_lines() -> list[str]:
    patterns = ("LICENSE", "*.md", "flaxsent/**/*.py", "tests/*.py", "notebooks/*.ipynb")
    files = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    lines = [line.strip() for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    # Of a notebook's picture, a word of 200,000 letters, tokenizers' trainer of Unigram overflows the stack.
    return sorted({line for line in lines if 0 < len(line) < 1000})


LINES = repository_lines()
TRAINING_LINES = LINES[::5]
PLAIN_LINES = [line for line in LINES if re.fullmatch("[A-Za-z ,;:]+", line)]

SPELT = re.compile(
    r"\[(pad|unk|cls|sep|mask|unused)|</?s>|<(pad|unk|mask)>|<\|padding|[a-z]{2}_[A-Z]{2}", re.IGNORECASE
)
"""What transformers takes for special tokens, and the libraries that train vocabularies do not."""

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFXYZ",
    "0123456789.,%-",
    "éüñßøąěİıſŁǅ",
    "приветΩσςάѢ",
    "你好世界。、",
    "こんにちはカタカナガｶﾞ",
    "안녕하세요한글",
    "هذارائعﷺ\u0640\u064b",
    "שלוםעולם\u05b0\u200f\u202e\u202c",
    "नमस्ते\u094dไทย",
    "😀👍🏽🇰🇷👩\u200d❤️\u200d👩🏴\U000e0067\U000e007f𝔘𝟙",
    "\u0301\u0327\u030a\u0308\u0345ea",
    "\x00\x01\x1b\x7f\x85\x9f\u200b\u2060\ufeff\ufffd\ufffe\U0010ffff",
    "½①Ⅳ²ﬁ㎏℃ＡＢ１２…™",
    "!?'\"`()[]{}<>@#&*_~^|\\/$€–—“”«»▁Ġ",
]
"""Latin, digits, scripts, right-to-left, emoji in parts, combining marks, controls, what NFKC changes, punctuation."""
GAPS = [" "] * 12 + ["", "", "  ", "     ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u2028", "\u3000"]


def awkward_texts(num: int) -> list[str]:
    """Words of the license among runs of letters of one alphabet, some of them long, in up to 160 bytes of UTF-8."""
    rng = random.Random(0)
    words = (ROOT / "LICENSE").read_text(encoding="utf-8").split()
    texts = []
    while len(texts) < num:
        parts = [rng.choice(GAPS)]
        for _ in range(rng.randrange(1, 13)):
            size = rng.randrange(90, 140) if rng.random() < 0.04 else rng.randrange(1, 9)
            run = "".join(rng.choices(rng.choice(ALPHABETS), k=size))
            parts += [rng.choice([run, rng.choice(words)]), rng.choice(GAPS)]
        text = "".join(parts).encode()[:160].decode(errors="ignore")
        if not SPELT.search(text):
            texts.append(text)
    return texts


TEXTS = awkward_texts(1000)
PAIRS = list(zip(TEXTS, TEXTS[3:] + TEXTS[:3], strict=True))
# transformers combines every piece that it cuts off the one with every piece of the other: minutes, if both are long.
SHORT_PAIRS = [(first[:30], second[:22]) for first, second in PAIRS]


class Vocabulary(NamedTuple):
    """A checkpoint folder without its weights, and what was trained for it."""

    folder: Path
    family: str
    num_types: int
    """How many token types the family's models have."""
    trained: Callable[[str], list[int]]
    """Ids of a text, special tokens left out, from the library that trained the vocabulary."""
    texts: Sequence[str] = TEXTS[::3]
    """Those that `trained` reads by the checkpoint's rules."""


def write_settings(folder: Path, family: str, **settings) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def special_settings(names: dict[str, str]) -> dict[str, str]:
    return {f"{name}_token": token for name, token in names.items()}


def template(tokenizer: tokenizers.Tokenizer, single: str, pair: str) -> processors.TemplateProcessing:
    special = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(single.replace("$A", "").split())]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


def ids_of(tokenizer: tokenizers.Tokenizer) -> Callable[[str], list[int]]:
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


# WordPiece: BERT's vocab.txt, or tokenizer.json.


@functools.cache
def train_wordpiece(*, lowercase: bool) -> tokenizers.Tokenizer:
    """[PAD] is 0, [UNK] to [MASK] are 100 to 103, and unused ones lie around them, as in Google's."""
    special, unused = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"], [f"[unused{index}]" for index in range(120)]
    trained = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first = ["[PAD]", *unused[:99], *special, *unused[99:]]
    trainer = trainers.WordPieceTrainer(vocab_size=1200, special_tokens=first, show_progress=False)
    trained.train_from_iterator(TRAINING_LINES, trainer)
    tokenizer = tokenizers.Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", *special])
    tokenizer.post_processor = template(tokenizer, *CLS_SEP)
    return tokenizer


def wordpiece(folder: Path, *, family: str, lowercase: bool, file: str) -> Vocabulary:
    tokenizer = train_wordpiece(lowercase=lowercase)
    if file == "vocab.txt":
        pieces = tokenizer.get_vocab()
        (folder / file).write_text("".join(f"{piece}\n" for piece in sorted(pieces, key=pieces.get)), encoding="utf-8")
    else:
        tokenizer.save(str(folder / file))
    write_settings(folder, family, do_lower_case=lowercase, model_max_length=LIMIT)
    return Vocabulary(folder, family, 0 if family == "distilbert" else 2, ids_of(tokenizer))


# Byte-level BPE: RoBERTa's vocab.json and merges.txt, or tokenizer.json; ModernBERT's tokenizer.json.


def train_byte_level(vocab_size: int, first: list[str], normalizer=None) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=first,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_LINES, trainer)
    return tokenizer


@functools.cache
def train_roberta() -> tokenizers.Tokenizer:
    raw = json.loads(train_byte_level(1200, BOS_FIRST).to_str())
    raw["model"]["vocab"]["<mask>"] = len(raw["model"]["vocab"])
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(raw))
    tokenizer.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def byte_level(folder: Path, *, family: str, file: str) -> Vocabulary:
    tokenizer = train_roberta()
    if file == "merges.txt":
        (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()), encoding="utf-8")
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
        (folder / file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    else:
        tokenizer.save(str(folder / file))
    write_settings(folder, family, model_max_length=LIMIT)
    return Vocabulary(folder, family, 0 if family == "bart" else 1, ids_of(tokenizer))


def modernbert(folder: Path) -> Vocabulary:
    """Special tokens come last, and runs of spaces are ordinary added tokens."""
    tokenizer = train_byte_level(1200, ["<|padding|>", "<|endoftext|>"], normalizers.NFC())
    tokenizer.add_tokens([tokenizers.AddedToken(" " * num, normalized=True) for num in range(24, 1, -1)])
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", tokenizers.AddedToken("[MASK]", lstrip=True)])
    tokenizer.post_processor = template(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]")
    tokenizer.save(str(folder / "tokenizer.json"))
    names = special_settings(CLS_NAMES)
    write_settings(folder, "modernbert", model_max_length=LIMIT, tokenizer_class="PreTrainedTokenizerFast", **names)
    return Vocabulary(folder, "modernbert", 0, ids_of(tokenizer))


# Unigram: XLM-R's tokenizer.json.


@functools.cache
def train_unigram() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=1000, special_tokens=BOS_FIRST, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TRAINING_LINES, trainer)
    raw = json.loads(tokenizer.to_str())
    raw["model"]["vocab"].append(["<mask>", 0.0])
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(raw))
    tokenizer.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = template(tokenizer, *BOS_EOS)
    return tokenizer


def unigram(folder: Path, *, tokenizer_class: str | None, normalizer=None) -> Vocabulary:
    tokenizer = tokenizers.Tokenizer.from_str(train_unigram().to_str())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.save(str(folder / "tokenizer.json"))
    names = special_settings(BOS_NAMES)
    if tokenizer_class is not None:
        names["tokenizer_class"] = tokenizer_class
    write_settings(folder, "xlm-roberta", model_max_length=LIMIT, **names)
    return Vocabulary(folder, "xlm-roberta", 1, ids_of(tokenizer))


# SentencePiece's own file, with no tokenizer.json.


@functools.cache
def train_sentencepiece(**special) -> bytes:
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs sentencepiece, which trains the vocabulary")
    pytest.importorskip("google.protobuf", reason="needs protobuf, by which transformers reads SentencePiece's file")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING_LINES),
        model_writer=written,
        model_type="unigram",
        vocab_size=1000,
        num_threads=2,
        minloglevel=2,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in special.items()},
    )
    return written.getvalue()


def sentencepiece_only(folder: Path, *, family: str, num_types: int, moved: int = 0, **special) -> Vocabulary:
    """`moved` is by how much the ids of the checkpoint are above those of SentencePiece."""
    model = train_sentencepiece(**special)
    import sentencepiece

    file = {"albert": "spiece.model", "deberta-v2": "spm.model"}.get(family, "sentencepiece.bpe.model")
    (folder / file).write_bytes(model)
    settings = {"do_lower_case": False, "vocab_type": "spm"} if family == "deberta-v2" else {"model_max_length": LIMIT}
    write_settings(folder, family, **settings)
    if family == "xlm-roberta":
        mask = {"content": "<mask>", "single_word": False, "lstrip": True, "rstrip": False, "normalized": True}
        names = special_settings(BOS_NAMES) | {"mask_token": mask}
        (folder / "special_tokens_map.json").write_text(json.dumps(names))
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    def trained(text: str) -> list[int]:
        return [piece + moved for piece in processor.encode(text.lower() if family == "albert" else text)]

    return Vocabulary(folder, family, num_types, trained, PLAIN_LINES)


KINDS: dict[str, Callable[[Path], Vocabulary]] = {
    "bert-uncased vocab.txt": functools.partial(wordpiece, family="bert", lowercase=True, file="vocab.txt"),
    "bert-cased vocab.txt": functools.partial(wordpiece, family="bert", lowercase=False, file="vocab.txt"),
    "bert-cased tokenizer.json": functools.partial(wordpiece, family="bert", lowercase=False, file="tokenizer.json"),
    "distilbert vocab.txt": functools.partial(wordpiece, family="distilbert", lowercase=True, file="vocab.txt"),
    "roberta merges.txt": functools.partial(byte_level, family="roberta", file="merges.txt"),
    "roberta tokenizer.json": functools.partial(byte_level, family="roberta", file="tokenizer.json"),
    "bart merges.txt": functools.partial(byte_level, family="bart", file="merges.txt"),
    "modernbert tokenizer.json": modernbert,
    "xlm-roberta tokenizer.json": functools.partial(unigram, tokenizer_class="XLMRobertaTokenizer"),
    "xlm-roberta tokenizer.json, NFKC": functools.partial(
        unigram,
        tokenizer_class="PreTrainedTokenizerFast",
        normalizer=normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()]),
    ),
    # Before SentencePiece's <unk>, <s>, </s>, of which it keeps some, fairseq puts its own <s>, <pad>, </s>, <unk>.
    "xlm-roberta sentencepiece.bpe.model": functools.partial(
        sentencepiece_only, family="xlm-roberta", num_types=1, moved=1
    ),
    "mbart sentencepiece.bpe.model": functools.partial(sentencepiece_only, family="mbart", num_types=0, moved=1),
    "camembert sentencepiece.bpe.model": functools.partial(
        sentencepiece_only, family="camembert", num_types=1, moved=4
    ),
    "albert spiece.model": functools.partial(
        sentencepiece_only,
        family="albert",
        num_types=2,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        control_symbols=("[CLS]", "[SEP]", "[MASK]"),
        user_defined_symbols=("(", ")", '"', "-", ".", "–", "£", "€"),
    ),
    "deberta-v2 spm.model": functools.partial(
        sentencepiece_only,
        family="deberta-v2",
        num_types=0,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
    ),
}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """`make(kind)`: what was trained, and transformers' tokenizer of its folder; each is made once."""
    from transformers import AutoTokenizer

    @functools.cache
    def make(kind: str):
        vocabulary = KINDS[kind](tmp_path_factory.mktemp("vocabulary"))
        return vocabulary, AutoTokenizer.from_pretrained(vocabulary.folder, use_fast=True)

    return make


def read(vocabulary: Vocabulary, folder: Path | None = None, **options) -> Tokenizer:
    folder = vocabulary.folder if folder is None else folder
    types = {"type_vocab_size": vocabulary.num_types}
    return read_tokenizer(folder, config_of(vocabulary.folder, vocabulary.family, **types), **options)


@pytest.mark.parametrize(
    ("texts", "max_length"),
    [(TEXTS, None), (TEXTS, 23), (PAIRS, None), (SHORT_PAIRS, 19)],
    ids=["single", "single cut", "pair", "pair cut"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_types_equal_transformers(make, kind, texts, max_length):
    vocabulary, reference = make(kind)
    columns = [list(part) for part in zip(*texts, strict=True)] if isinstance(texts[0], tuple) else [texts]
    cut = {} if max_length is None else {"truncation": True, "max_length": max_length}
    theirs = reference(*columns, **cut)
    ours = read(vocabulary).encode(texts, max_length=max_length)
    zeros = [[0] * len(ids) for ids in theirs["input_ids"]]
    types = theirs.get("token_type_ids", zeros) if vocabulary.num_types > 1 else zeros
    for text, *ids_and_types in zip(
        texts, ours.input_ids, theirs["input_ids"], ours.token_type_ids, types, strict=True
    ):
        assert ids_and_types[0] == ids_and_types[1], text
        assert ids_and_types[2] == ids_and_types[3], text
    assert 0 < ours.num_truncated < len(texts) if cut else ours.num_truncated == 0


@pytest.mark.parametrize("kind", KINDS)
def test_ids_equal_those_of_the_library_that_trained_them(make, kind):
    vocabulary, reference = make(kind)
    frame = set(reference("")["input_ids"])
    ours = read(vocabulary).encode(vocabulary.texts).input_ids
    for text, ids in zip(vocabulary.texts, ours, strict=True):
        assert [piece for piece in ids if piece not in frame] == vocabulary.trained(text), text
    assert len({piece for ids in ours for piece in ids}) > 200, "the vocabulary is in use"


@pytest.mark.parametrize("kind", KINDS)
def test_folders_that_were_saved_give_the_same_ids(make, kind, tmp_path):
    """By transformers, then read by flaxsent; and by flaxsent, then read by transformers."""
    from transformers import AutoTokenizer

    vocabulary, reference = make(kind)
    texts = TEXTS[::3]
    ids = reference(texts)["input_ids"]
    reference.save_pretrained(tmp_path / "theirs")
    assert read(vocabulary, tmp_path / "theirs").encode(texts).input_ids == ids
    (tmp_path / "ours").mkdir()
    for name, content in read(vocabulary).files.items():
        (tmp_path / "ours" / name).write_bytes(content)
    shutil.copy(vocabulary.folder / "config.json", tmp_path / "ours")
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")(texts)["input_ids"] == ids


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_spelt_out_stay_text_where_that_is_asked_for(make, kind):
    vocabulary, reference = make(kind)
    special = {token.content for token in reference.added_tokens_decoder.values() if token.special}
    frame = reference.convert_ids_to_tokens(reference("")["input_ids"])
    text = " ".join(f"a {token} b{token}" for token in sorted(special))
    pieces = reference.convert_ids_to_tokens(
        read(vocabulary, special_tokens_in_text="literal").encode([text]).input_ids[0]
    )
    inner = [piece for piece in pieces if piece not in special]
    assert [piece for piece in pieces if piece in special] == frame
    assert re.sub("##|▁|Ġ", "", "".join(inner)).lower() == text.replace(" ", "").lower()


def test_a_tokenizer_class_that_only_the_config_names_is_used(tmp_path):
    """As in the Chinese ALBERTs, which have BERT's vocabulary."""
    from transformers import AutoTokenizer

    wordpiece(tmp_path, family="albert", lowercase=True, file="vocab.txt")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "albert", "tokenizer_class": "BertTokenizer"}))
    ours = read_tokenizer(tmp_path, config_of(tmp_path, "albert")).encode(TEXTS)
    assert ours.input_ids == AutoTokenizer.from_pretrained(tmp_path)(TEXTS)["input_ids"]


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "albert", "deberta-v2"])
def test_the_vocabulary_of_another_family_is_refused(tmp_path, family):
    """transformers 5 says nothing there, and knows the special tokens only."""
    wordpiece(tmp_path, family=family, lowercase=True, file="vocab.txt")
    with pytest.raises(ValueError, match=r"could not be converted|, which \w+ is read from"):
        read_tokenizer(tmp_path, config_of(tmp_path, family))


@pytest.mark.parametrize("package", ["sentencepiece", "google.protobuf"])
def test_what_converts_sentencepiece_is_asked_for_by_name(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "spm.model").write_bytes(b"whatever")
    with pytest.raises(ImportError, match=r"spm\.model needs .*: pip install sentencepiece protobuf"):
        read_tokenizer(tmp_path, config_of(tmp_path, "deberta-v2"))
