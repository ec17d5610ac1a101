"""`flaxsent bench --zero-shot` on a tiny random model: the figures, not the speed."""

import json

import pytest

from flaxsent.cli import main


@pytest.mark.slow
@pytest.mark.torch
def test_both_give_the_same_scores(tiny_folder, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("so good\nnot so bad, is it\nfine\nI hate it\n")
    names = {"0": "entailment", "1": "neutral", "2": "contradiction"}
    model = tiny_folder("bert", id2label=names, label2id={name: int(index) for index, name in names.items()})
    command = ["bench", "--zero-shot", "--model", str(model), "--texts", str(tmp_path / "texts.txt")]
    assert main([*command, "--rounds", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["num_texts"], len(told["theirs"]), len(told["flaxsent"])) == (4, 2, 2)
    assert told["difference"] <= 1e-5  # probabilities of float32 on both sides
    assert main([*command, "--rounds", "0"]) == 2
