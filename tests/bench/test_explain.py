"""`flaxsent bench --explain` on a tiny random model: the figures, not the speed."""

import json

import pytest

from flaxsent.bench.explain import Figures, table
from flaxsent.cli import main

FIGURES = Figures("m", "cpu", {"jax": "1"}, 10, 200, 50, [2.0, 1.0, 1.0], [6.0, 4.0, 3.0], 4, 1e-5)


def test_the_ratio_is_the_median_of_the_rounds():
    assert FIGURES.ratio == 3.0
    assert table(FIGURES).splitlines()[-3:] == [
        "captum        2.50 explanations/s, 4 texts at a time",
        "flaxsent     10.00 explanations/s",
        "flaxsent is 3.00 times as fast; no score differs by more than 1e-05",
    ]


@pytest.mark.slow
@pytest.mark.torch
def test_both_give_the_same_scores(small_model, tmp_path, capsys):
    pytest.importorskip("captum")
    (tmp_path / "texts.txt").write_text("so good\nnot so bad, is it\nfine\nI hate it\n")
    command = ["bench", "--explain", "--model", str(small_model), "--texts", str(tmp_path / "texts.txt")]
    assert main([*command, "--rounds", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["num_texts"], told["steps"], len(told["captum"]), len(told["flaxsent"])) == (4, 50, 2, 2)
    assert told["difference"] <= 1e-4  # float32 on both sides, for scores of size 1
    assert main([*command, "--rounds", "0"]) == 2
