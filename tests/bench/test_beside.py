"""How a transform is timed beside another library's: ratios by rounds, and the figures of a run."""

import numpy as np
import pytest

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.bench.beside import Figures, compare, table, to_json
from flaxsent.bench.texts import Opened

OURS, THEIRS = [2.0, 1.0, 1.0], [6.0, 4.0, 3.0]
FIGURES = Figures(
    "m", "cpu", {"jax": "1"}, "50 steps", "explanations", 10, OURS, "captum", THEIRS, 4, "texts", difference=1e-5
)


def test_the_ratio_is_the_median_of_the_rounds():
    assert FIGURES.ratio == 3.0
    assert table(FIGURES).splitlines()[-3:] == [
        "captum           2.50 explanations/s, 4 texts at a time",
        "flaxsent        10.00 explanations/s",
        "flaxsent is 3.00 times as fast; no score differs by more than 1e-05",
    ]
    assert to_json(FIGURES)["ratio_by_default"] is None


def test_the_peer_as_it_is_called_by_default_is_told_besides():
    figures = FIGURES._replace(default_batch_size=1, by_default=[16.0, 8.0, 9.0])
    assert table(figures).splitlines()[-4:] == [
        "captum           2.50 explanations/s, 4 texts at a time",
        "captum           1.11 explanations/s, 1 at a time, as by default",
        "flaxsent        10.00 explanations/s",
        "flaxsent is 3.00 times as fast (8.00 times as by default); no score differs by more than 1e-05",
    ]


def test_both_see_the_same_texts_and_what_differs_is_told(small_model):
    classifier = flaxsent.load(small_model)
    seen, lines = [], []

    def theirs(texts, batch_size):
        seen.append((len(texts), batch_size))
        return np.zeros((len(texts), 2))

    asked = {"peer": "theirs", "start": 2, "setting": "scores", "unit": "texts", "batch_unit": "texts"}
    asked |= {"difference": lambda ours, found: float(np.abs(ours - found).max()), "report": lines.append}
    texts = [f"text {number}" for number in range(8)]
    figures = compare(Opened("m", small_model, classifier), theirs, texts, rounds=2, **asked)
    assert {size for count, size in seen if count == 2} == {1, 2}, "a quarter of the texts"
    assert seen[-3:] == [(8, figures.batch_size)] * 3, "once to see them, and two rounds"
    assert (len(figures.flaxsent), len(figures.theirs)) == (2, 2)
    assert 0.5 <= figures.difference <= 1, "probabilities of two labels beside zeros"
    assert to_json(figures)["ratio"] == figures.ratio
    assert lines[-1] == "round 2 of 2"
    figures = compare(Opened("m", small_model, classifier), theirs, texts, rounds=1, default_batch_size=3, **asked)
    assert (seen[-1], len(figures.by_default)) == ((8, 3), 1)
    with pytest.raises(FlaxsentError, match="rounds=0"):
        compare(Opened("m", small_model, classifier), theirs, texts, rounds=0, **asked)
