"""The made-up texts and the random model: of the lengths, and with the labels, that a comparison needs."""

import numpy as np
import pytest

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.bench.texts import numbered_texts, read_texts, workloads


def made_up(num_texts):
    return {workload.name: workload.texts for workload in workloads(None, num_texts)}


def test_made_up_texts_have_the_lengths_of_their_models(embedded):
    texts = made_up(350)
    assert texts == made_up(350), "the same at each call"
    encodings = {name: embedded.tokenizer.encode(some) for name, some in texts.items()}
    assert [encoded.num_truncated for encoded in encodings.values()] == [0, 0]
    lengths = {name: np.array(encoded.lengths) for name, encoded in encodings.items()}
    assert {name: len({*some}) for name, some in texts.items()} == {"sst2-like": 350, "imdb-like": 50}, "all different"
    assert lengths["sst2-like"].mean() == pytest.approx(25.2, abs=0.5)
    assert lengths["imdb-like"].mean() == pytest.approx(230, abs=5)
    assert (lengths["sst2-like"].min() >= 4, lengths["sst2-like"].max() <= 60) == (True, True)
    assert lengths["imdb-like"].max() == 512


def test_both_labels_of_the_random_model_are_frequent(small_model):
    """Or the comparison of labels would not see a peer that computes nothing."""
    with flaxsent.Engine(flaxsent.load(small_model)) as scores:
        labels = scores([text for texts in made_up(96).values() for text in texts]).argmax(axis=-1)
    assert 0.2 < labels.mean() < 0.8


def test_numbered_texts_are_different_and_short():
    texts = [*numbered_texts(500)]
    assert len({*texts}) == 500
    assert {len(text.split()) for text in texts} == {*range(5, 13)}


def test_texts_of_a_file_are_taken_once(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("so good\nso bad\n\nso good\r\nfine\nmore\n", encoding="utf-8")
    assert read_texts(file, 3) == ["so good", "so bad", "fine"]
    file.write_text("\n \n")
    with pytest.raises(FlaxsentError, match="has no text"):
        read_texts(file, 3)
    file.write_bytes(b"\xff")
    with pytest.raises(FlaxsentError, match=r"texts\.txt is not UTF-8"):
        read_texts(file, 3)
    with pytest.raises(FlaxsentError, match="num_texts=0"):
        workloads(file, 0)
