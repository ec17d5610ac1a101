"""`flaxsent bench --explain` on a tiny random model: the figures, not the speed."""

import json

import pytest

from flaxsent.cli import main


@pytest.mark.slow
@pytest.mark.torch
def test_both_give_the_same_scores(small_model, tmp_path, capsys):
    pytest.importorskip("captum")
    (tmp_path / "texts.txt").write_text("so good\nnot so bad, is it\nfine\nI hate it\n")
    command = ["bench", "--explain", "--model", str(small_model), "--texts", str(tmp_path / "texts.txt")]
    assert main([*command, "--rounds", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["num_texts"], len(told["theirs"]), len(told["flaxsent"])) == (4, 2, 2)
    assert told["setting"].startswith("integrated gradients with 50 steps of 4 texts, ")
    assert told["difference"] <= 1e-4  # float32 on both sides, for scores of size 1
    assert main([*command, "--rounds", "0"]) == 2
