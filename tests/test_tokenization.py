"""Token ids against transformers' fast tokenizer and the tokenizers library's own truncation."""

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import tokenizers

import flaxsent
from flaxsent.checkpoint.tokenizer import read_tokenizer
from flaxsent.files import EMBEDDED
from flaxsent.models.config import read_config
from flaxsent.tokenization import _encode_cut, _shares
from tests.conftest import AWKWARD_TEXTS, config_of

COURSE = ["I've been waiting for a HuggingFace course my whole life", "I hate this so much!"]
COURSE_IDS = [
    [101, 1045, 1005, 2310, 2042, 3403, 2005, 1037, 17662, 12172, 2607, 2026, 2878, 2166, 102],
    [101, 1045, 5223, 2023, 2061, 2172, 999, 102, 0, 0, 0, 0, 0, 0, 0],
]
BERT = read_config((EMBEDDED / "config.json").read_text())
SPECIAL = ("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]")


def awkward_texts(num: int) -> list[str]:
    """Random runs of scripts, emoji, controls, numbers, long words and plain ones."""
    rng = np.random.default_rng(0)
    alphabets = [
        "abcdefghijklmnopqrstuvwxyz",
        "ABCXYZ",
        "0123456789.,%",
        "éüñßøąěİ",
        "привет",
        "你好世界",
        "안녕하세요",
        "هذا",
        "😀👍🏽🇰🇷\u200d",
        "\t\n\r\u00a0\u2028",
        "\x00\x7f\u200b\ufeff\u0301",
        "!?'\"()[]{}<>@#",
    ]
    texts = []
    for _ in range(num):
        words = []
        for _ in range(rng.integers(0, 40)):
            alphabet = list(alphabets[rng.integers(len(alphabets))])
            words.append("".join(rng.choice(alphabet, rng.integers(1, 130 if rng.random() < 0.05 else 9))))
        texts.append(" ".join(words))
    return texts


TEXTS = [text for text in AWKWARD_TEXTS if "[SEP]" not in text] + ["film 😀 " * 300] + awkward_texts(300)
PAIRS = list(zip(TEXTS, TEXTS[7:] + TEXTS[:7], strict=True))


@pytest.fixture(scope="module")
def tokenizer():
    return read_tokenizer(EMBEDDED, BERT)


def test_the_sentences_of_the_course_give_its_ids(embedded):
    tokens = embedded.tokenize(COURSE)
    assert tokens.input_ids.tolist() == COURSE_IDS
    assert tokens.attention_mask.tolist() == [[1] * 15, [1] * 8 + [0] * 7]


def transformers_encodings(texts, max_length):
    """By a fresh tokenizer: transformers' own keep the truncation of the last call."""
    from transformers import AutoTokenizer

    columns = [list(part) for part in zip(*texts, strict=True)] if isinstance(texts[0], tuple) else [texts]
    return AutoTokenizer.from_pretrained(EMBEDDED)(*columns, truncation="longest_first", max_length=max_length)


@pytest.mark.parametrize("max_length", [512, 101, 64, 33, 9, 8, 5, 4])
@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["single", "pair"])
def test_ids_and_types_equal_transformers(tokenizer, texts, max_length):
    if texts is PAIRS and max_length < 64:
        # transformers combines every piece that it cuts off the one with every piece of the other: minutes, if long.
        texts = [(first[:30], second[:25]) for first, second in PAIRS]
    theirs = transformers_encodings(texts, max_length)
    ours = tokenizer.encode(texts, max_length=max_length)
    assert ours.input_ids == theirs["input_ids"]
    assert ours.token_type_ids == theirs["token_type_ids"]
    assert 0 < ours.num_truncated <= sum(len(ids) == max_length for ids in ours.input_ids)


def test_shares_of_a_pair_equal_the_library_for_all_lengths():
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    for room in range(1, 26):
        backend.enable_truncation(room, strategy="longest_first")
        for first in range(13):
            for second in range(13):
                encoding = backend.encode("a " * first, "a " * second)
                theirs = [encoding.sequence_ids.count(part) for part in (0, 1)]
                assert list(_shares([first, second], room)) == theirs, (first, second, room)
            assert list(_shares([first], room)) == [len(backend.encode("a " * first))]


def test_cutting_two_long_texts_leaves_few_pieces_behind(tokenizer):
    """The library keeps what it cuts off, for a pair in every combination: gigabytes, from texts of a book's length."""
    cut = _encode_cut(tokenizer.backend, ("word " * 2000, "film " * 2000), 64, side="right")
    assert len(cut) == 64
    assert len(cut.overflowing) < 10


def test_special_tokens_spelt_out_stay_text_where_that_is_asked_for():
    tokenizer = read_tokenizer(EMBEDDED, BERT, special_tokens_in_text="literal")
    text = "a [SEP] b [CLS] [MASK] [PAD] [UNK]"
    special = {tokenizer.backend.token_to_id(token) for token in SPECIAL}
    assert len(special) == len(SPECIAL)
    single, pair, cut = tokenizer.encode([text, (text, text), text * 100]).input_ids
    assert not special & {*single[1:-1], *cut[1:-1]}
    assert [token for token in pair if token in special] == [101, 102, 102]
    plain = tokenizer.encode(["a [ sep ] b [ cls ] [ mask ] [ pad ] [ unk ]"]).input_ids[0]
    assert single == plain, "as the same characters spelt apart"


def test_truncation_and_padding_baked_into_the_file_are_overridden(tiny_folder):
    folder = tiny_folder("bert")
    baked = json.loads((folder / "tokenizer.json").read_text())
    assert baked["truncation"]["max_length"] == 5
    assert baked["padding"] is not None
    classifier = flaxsent.load(folder, backend="native")
    assert [len(ids) for ids in classifier.tokenizer.encode(["good " * 20, "a"]).input_ids] == [22, 3]


@pytest.mark.parametrize(
    ("model_max_length", "limit"), [(10**30, 40), (1e30, 40), (None, 40), (512, 40), (17, 17)], ids=str
)
def test_the_limit_is_the_true_one(tiny_folder, tmp_path, model_max_length, limit):
    folder = shutil.copytree(tiny_folder("bert"), tmp_path / "x")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": model_max_length}))
    classifier = flaxsent.load(folder, backend="native")
    assert classifier.tokenizer.max_length == limit
    assert classifier.tokenize(["good " * 100]).input_ids.shape == (1, limit)


def test_roberta_loses_the_positions_before_its_first(tiny_folder):
    folder = tiny_folder("roberta")
    config = read_config((folder / "config.json").read_text())
    assert (config.num_positions, config.first_position) == (42, 2)
    tokenizer = read_tokenizer(folder, config)
    encodings = tokenizer.encode(["good " * 100, ("good", "bad")])
    assert [len(ids) for ids in encodings.input_ids] == [40, 5]
    assert encodings.token_type_ids == [[0] * 40, [0] * 5], "a model with one type has no second"
    tokens = flaxsent.load(folder, backend="native").tokenize(["good " * 100])
    assert (tokens.position_ids.min(), tokens.position_ids.max()) == (2, config.num_positions - 1)


def test_an_empty_second_text_is_still_a_pair(tokenizer):
    encodings = tokenizer.encode([("good", ""), ("", ""), ("", "good")])
    assert encodings.input_ids == [[101, 2204, 102, 102], [101, 102, 102], [101, 102, 2204, 102]]
    assert encodings.token_type_ids == [[0, 0, 0, 1], [0, 0, 1], [0, 0, 1, 1]]


def test_how_many_texts_were_truncated_is_said_once(tokenizer, embedded, caplog):
    texts = ["good " * 600, "good", ("a " * 300, "b " * 300)]
    with caplog.at_level(logging.WARNING):
        encodings = tokenizer.encode(texts)
        assert encodings.num_truncated == 2
        assert not caplog.records, "who encodes says it"
        embedded.tokenize(texts)
    assert [record.getMessage() for record in caplog.records] == ["2 of 3 texts were truncated to 512 tokens"]
    assert [len(ids) for ids in encodings.input_ids] == [512, 3, 512]


def test_length_pads_and_truncates(embedded):
    tokens = embedded.tokenize(["good", "good " * 20], length=9)
    assert tokens.attention_mask.tolist() == [[1] * 3 + [0] * 6, [1] * 9]
    assert tokens.input_ids[:, -1].tolist() == [0, 102]


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("a bare text", TypeError, "got one str"),
        (["fine", 3], TypeError, "text 1 is of type int"),
        (["fine", None], TypeError, "text 1 is of type NoneType"),
        ([("a", "b", "c")], TypeError, "text 0 is a tuple of 3"),
        ([("a", 1)], TypeError, "text 0 is a tuple of 2"),
        ([["a", "b"]], TypeError, "text 0 is of type list"),
        (["fine", b"bytes"], TypeError, "text 1 is of type bytes"),
        (["fine", ("a",)], TypeError, "text 1 is a tuple of 1"),
        (["fine", "ab\ud800"], ValueError, "text 1 has a lone surrogate at character 2"),
        ([("fine", "\udfff")], ValueError, "text 0 has a lone surrogate at character 0"),
    ],
)
def test_what_is_no_text_is_refused_by_its_place(tokenizer, monkeypatch, texts, error, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # or conftest's type checks would speak first
    with pytest.raises(error, match=message):
        tokenizer.encode(texts)


@pytest.mark.parametrize("max_length", [0, 3, 513, -1])
def test_lengths_beyond_the_limits_are_refused(tokenizer, max_length):
    with pytest.raises(ValueError, match="this checkpoint takes 4 to 512"):
        tokenizer.encode(["a"], max_length=max_length)


def test_no_texts_and_a_very_long_one(embedded):
    assert embedded.tokenize([]).input_ids.shape == (0, 1)
    assert embedded.tokenize([], length=7).input_ids.shape == (0, 7)
    assert embedded.tokenize(["z" * 100_000, "word " * 20_000]).input_ids.shape == (2, 512)


def test_threads_sharing_a_tokenizer_get_what_each_would_get_alone(embedded):
    jobs = [(TEXTS[start::8], length) for start in range(8) for length in (None, 7, 40, 512)]
    alone = [embedded.tokenize(texts, length=length) for texts, length in jobs]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda job: embedded.tokenize(job[0], length=job[1]), jobs * 3))
    for ours, expected in zip(together, alone * 3, strict=True):
        for name, value in expected._asdict().items():
            np.testing.assert_array_equal(getattr(ours, name), value, err_msg=name)


def vocabulary_folder(folder: Path, do_lower_case: bool) -> Path:
    vocabulary = json.loads((EMBEDDED / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.get)))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": do_lower_case}))
    return folder


def test_a_vocabulary_alone_is_converted_to_the_same_ids(tokenizer, tmp_path):
    folder = vocabulary_folder(tmp_path, do_lower_case=True)
    converted = read_tokenizer(folder, config_of(folder, "bert", max_position_embeddings=512))
    for texts in (TEXTS, PAIRS, ["[SEP] [MASK]"]):
        assert converted.encode(texts) == tokenizer.encode(texts)
    assert "vocab.txt" not in converted.files
    assert {file.name for file in folder.iterdir()} == {"vocab.txt", "tokenizer_config.json"}, (
        "nothing is written there"
    )


def test_settings_of_a_vocabulary_are_kept(tmp_path):
    folder = vocabulary_folder(tmp_path, do_lower_case=False)
    cased = read_tokenizer(folder, BERT)
    assert cased.encode(["GOOD"]).input_ids != cased.encode(["good"]).input_ids


def test_a_tokenizer_json_needs_no_transformers():
    code = (
        "import sys, flaxsent; flaxsent.load(backend='native').tokenize(['good']); "
        "print({'transformers', 'torch'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("side", ["left", "right"])
def test_spans_tell_the_texts_of_a_pair_apart_whichever_is_cut(embedded, side):
    cut = dataclasses.replace(embedded.tokenizer, max_length=12, cut_side=side)
    long, other = "so good " * 9, "not bad " * 9
    for pair in [(long, "so bad"), ("so bad", long), (long, other), ("so", "bad"), (long, ""), ("", long)]:
        (spans,), (ids,) = cut.spans([pair]), cut.encode([pair]).input_ids
        assert [span is None for span in spans] == [one in (101, 102) for one in ids]
        for part, text in enumerate(pair):
            whole = [span[1:] for span in embedded.tokenizer.spans([text])[0] if span is not None]
            kept = [span[1:] for span in spans if span is not None and span.part == part]
            assert kept == whole[len(whole) - len(kept) :] if side == "left" else kept == whole[: len(kept)]
            assert bool(kept) == bool(text)
