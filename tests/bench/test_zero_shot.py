"""`flaxsent bench --zero-shot` on a tiny random model: the figures, not the speed."""

import json

import pytest

from flaxsent.bench.zero_shot import Figures, table
from flaxsent.cli import main

FIGURES = Figures("m", "cpu", {"jax": "1"}, 10, [2.0, 1.0, 1.0], [6.0, 4.0, 3.0], 4, 1e-6)


def test_the_ratio_is_the_median_of_the_rounds():
    assert FIGURES.ratio == 3.0
    assert table(FIGURES).splitlines()[-3:] == [
        "transformers     2.50 texts/s, 4 pairs at a time",
        "flaxsent        10.00 texts/s",
        "flaxsent is 3.00 times as fast; no score differs by more than 1e-06",
    ]


@pytest.mark.slow
@pytest.mark.torch
def test_both_give_the_same_scores(tiny_folder, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("so good\nnot so bad, is it\nfine\nI hate it\n")
    names = {"0": "entailment", "1": "neutral", "2": "contradiction"}
    model = tiny_folder("bert", id2label=names, label2id={name: int(index) for index, name in names.items()})
    command = ["bench", "--zero-shot", "--model", str(model), "--texts", str(tmp_path / "texts.txt")]
    assert main([*command, "--rounds", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["num_texts"], len(told["transformers"]), len(told["flaxsent"])) == (4, 2, 2)
    assert told["difference"] <= 1e-5  # probabilities of float32 on both sides
    assert main([*command, "--rounds", "0"]) == 2
