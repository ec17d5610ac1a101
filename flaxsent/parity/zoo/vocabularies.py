"""Tokenizer folders of every kind, as published checkpoints have them, with vocabularies trained in a second.

`FILES` gives, by kind, the function that writes the vocabulary. What the checkpoint's tokenizer_config.json says is the
zoo's matter.
"""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from flaxsent.files import require

_SENTENCES = """
I've been waiting for a HuggingFace course my whole life, and it was worth every minute of it.
I hate this so much! The second half drags, nobody laughs, and the ending makes no sense at all.
The company said on Tuesday that its profit fell by 12.5 percent to $3,400 million in the third quarter.
How do I reset my password? Click on "Forgot password" below the form; a message is sent within 10 minutes.
A man inspects the uniform of a figure in some East Asian country. The man is sleeping under a tree.
You are the worst person in this game, shut up & go home :-( <3 #fail @user http://example.com
Berlin is the capital of Germany; 3,520,031 registered inhabitants live in an area of 891.82 square kilometers.
Ce film est très réussi : les acteurs jouent à merveille, même si l'histoire manque d'éclat.
Das Buch gefällt mir überhaupt nicht, schöne Grüße aus Köln. Straße, größer, Übung.
El servicio fue pésimo, pero la habitación estaba limpia. ¡Qué lástima! ¿Por qué?
Этот фильм мне очень понравился, спасибо большое. Очень плохо работает приложение.
이 영화는 정말 재미있었어요 배우들의 연기도 좋았습니다. 회사의 매출이 크게 늘었다고 밝혔다.
这部电影非常好看，我很喜欢。服务太差了，再也不来了。
この映画はとても面白かったです。もう二度と行きません。
هذا المنتج رائع جدا، أنصح به. यह फिल्म बहुत अच्छी थी।
"""
CORPUS = [line.strip() for line in _SENTENCES.splitlines() if line.strip()]

_SIZE = 500
"""Pieces, about: words of the corpus stay whole, others are cut."""

_BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_KLUE_SPECIAL = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
_FAIRSEQ_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


def _wordpiece(folder: Path, *, special: tuple[str, ...] = _BERT_SPECIAL, lowercase: bool) -> None:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    unused = [f"[unused{index}]" for index in range(3)]
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.WordPieceTrainer(vocab_size=_SIZE, special_tokens=[*special, *unused], show_progress=False),
    )
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda piece: piece[1])
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece, _ in pieces), encoding="utf-8")


def _byte_level(folder: Path) -> None:
    tokenizer = _train_byte_level([*_FAIRSEQ_SPECIAL])
    vocabulary = tokenizer.get_vocab()
    vocabulary["<mask>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def _train_byte_level(special: list[str]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_SIZE + 256,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _modernbert(folder: Path) -> None:
    """A tokenizer.json alone; runs of spaces are added tokens, special ones come last."""
    tokenizer = _train_byte_level(["<|padding|>", "<|endoftext|>"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([tokenizers.AddedToken(" " * num, normalized=True) for num in range(24, 1, -1)])
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    tokenizer.add_special_tokens([*special, tokenizers.AddedToken("[MASK]", lstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def _bertweet(folder: Path) -> None:
    """The files of fastBPE: pieces with their counts, "@@" where a word goes on."""
    tokenizer = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=_SIZE, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    (folder / "bpe.codes").write_text("".join(f"{merge} 1\n" for merge in merges), encoding="utf-8")
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda piece: piece[1])
    written = [piece.removesuffix("</w>") if piece.endswith("</w>") else f"{piece}@@" for piece, _ in pieces]
    (folder / "vocab.txt").write_text("".join(f"{piece} 1\n" for piece in written), encoding="utf-8")


def _sentencepiece(folder: Path, *, file: str, **options: object) -> None:
    trainer = require("sentencepiece", needed_by="a SentencePiece vocabulary", install="sentencepiece protobuf")
    written = io.BytesIO()
    trainer.SentencePieceTrainer.train(
        sentence_iterator=_repeated(),
        model_writer=written,
        model_type="unigram",
        vocab_size=_SIZE,
        minloglevel=2,
        hard_vocab_limit=False,
        **options,
    )
    (folder / file).write_bytes(written.getvalue())


def _repeated() -> Iterator[str]:
    """The corpus, cut anew each time: the trainer wants more sentences than there are."""
    for size in range(1, 6):
        for line in CORPUS:
            words = line.split()
            yield from (" ".join(words[start : start + size]) for start in range(0, len(words), size))


FILES: dict[str, Callable[[Path], None]] = {
    "wordpiece": lambda folder: _wordpiece(folder, lowercase=False),
    "wordpiece-uncased": lambda folder: _wordpiece(folder, lowercase=True),
    "wordpiece-mpnet": lambda folder: _wordpiece(
        folder, special=("<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"), lowercase=True
    ),
    "wordpiece-klue": lambda folder: _wordpiece(folder, special=_KLUE_SPECIAL, lowercase=False),
    "byte-level": _byte_level,
    "modernbert": _modernbert,
    "bertweet": _bertweet,
    "xlm-roberta": lambda folder: _sentencepiece(folder, file="sentencepiece.bpe.model"),
    "camembert": lambda folder: _sentencepiece(folder, file="sentencepiece.bpe.model"),
    "albert": lambda folder: _sentencepiece(
        folder,
        file="spiece.model",
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
    ),
    "deberta-v3": lambda folder: _sentencepiece(
        folder,
        file="spm.model",
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
"""By the kind of vocabulary: what writes its files into a folder."""
