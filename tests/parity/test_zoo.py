"""`flaxsent parity --zoo`: what it compares, what passes, and that a wrong id, logit or score is seen.

All of the zoo takes minutes: `.ci/run` has the command itself do it, beside both versions of transformers.
"""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from flaxsent.base import FlaxsentError
from flaxsent.cli import main
from flaxsent.models.config import FAMILIES
from flaxsent.parity.zoo import compare as zoo
from flaxsent.parity.zoo.rebuild import rebuild

TWITTER = "cardiffnlp/twitter-roberta-base-sentiment-latest"
RIGHT = zoo.Row("m", "bert", 76, 76, 3.0, 2e-5, 2e-5)


def test_it_has_thirty_of_most_families():
    assert len(zoo.ZOO) >= 30
    native = {name for name, family in FAMILIES.items() if family.is_native}
    assert native - {known.family for known in zoo.ZOO.values()} == {"mbart"}, "of which nobody knows a classifier"


def test_a_row_passes_with_the_same_ids_logits_and_scores():
    assert RIGHT.passes
    for wrong in ({"num_same_ids": 75}, {"difference": 3e-5}, {"score_difference": 3e-5}):
        assert not RIGHT._replace(**wrong).passes
    assert not RIGHT._replace(difference=float("nan")).passes
    refused = RIGHT._replace(num_same_ids=0, refused="it is not")
    *_, line, total = zoo.table([RIGHT, refused]).splitlines()
    assert line.endswith("FAIL  it is not")
    assert total.startswith("1 of 2 checkpoints have the ids")


@pytest.mark.slow
@pytest.mark.torch
def test_a_checkpoint_with_all_that_it_carries_is_rebuilt_and_compared(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    rebuild(tmp_path, zoo.ZOO[TWITTER])
    import torch

    tensors = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert {"roberta.pooler.dense.weight", "roberta.embeddings.position_ids"} <= tensors.keys()
    row = zoo.compare(tmp_path, name=TWITTER)
    assert row.passes, row
    assert row.size > 1

    load = zoo.load

    def another(folder: Path):
        """Of other numbers, texts and scores."""
        classifier = load(folder)
        params = jax.tree.map(lambda leaf: leaf * 1.001, classifier.params)
        tokenizer = dataclasses.replace(classifier.tokenizer, max_length=30)
        return dataclasses.replace(classifier, params=params, tokenizer=tokenizer)

    monkeypatch.setattr(zoo, "load", another)
    wrong = zoo.compare(tmp_path, name=TWITTER)
    assert wrong.difference > 1e-4
    assert wrong.score_difference > 1e-5

    def refuses(folder: Path):
        raise FlaxsentError("no")

    monkeypatch.setattr(zoo, "load", refuses)
    assert zoo.compare(tmp_path, name=TWITTER).refused == "no"


@pytest.mark.slow
@pytest.mark.torch
def test_the_command_prints_a_row_for_each_that_is_named(capsys):
    pytest.importorskip("torch")
    assert main(["parity", "--zoo", "--json", "yiyanghkust/finbert-tone"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert told["passes"]
    assert told["num_same_ids"] == told["num_texts"] == len(zoo.TEXTS)


def test_what_is_not_in_the_zoo_is_refused(capsys):
    assert main(["parity", "--zoo", "acme/none"]) == 2
    assert "the zoo has no acme/none; it has " in capsys.readouterr().err
    assert main(["parity", "--real"]) == 2
    assert "pass --zoo, too" in capsys.readouterr().err
