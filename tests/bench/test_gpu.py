"""`flaxsent bench --gpu`: refused where there is none; what it would measure is made small and measured here."""

import pytest

import flaxsent
from flaxsent.bench import gpu, machine, peers, texts
from flaxsent.bench.peers import PEERS
from flaxsent.cli import main

_SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "max_position_embeddings": 64}
SMALL = {"BERT-base": _SMALL | {"num_hidden_layers": 1}, "ModernBERT-base": _SMALL | {"num_hidden_layers": 2}}


def test_without_a_gpu_it_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(gpu, "is_on_gpu", lambda: False)
    assert main(["bench", "--gpu"]) == 2
    assert capsys.readouterr().err.startswith("flaxsent: error: bench --gpu needs a GPU, and JAX is on ")


def test_each_size_is_measured_on_texts_of_mixed_lengths(monkeypatch):
    monkeypatch.setattr(gpu, "is_on_gpu", lambda: True)
    monkeypatch.setattr(machine, "_SIZES", (64,))
    monkeypatch.setattr(gpu, "LENGTHS", {"ModernBERT-base": (64,)})
    monkeypatch.setattr(texts, "SIZES", {size: texts.SIZES[size] | changes for size, changes in SMALL.items()})
    reports = gpu.run(peers=[], rounds=1)
    (report,) = reports
    assert report.model == "ModernBERT-base's size, random weights"
    assert [result.workload for result in report.results] == ["up to 64 tokens"]
    for result in report.results:
        assert all(one.operations_per_second > 0 for one in result.efficiencies.values())
    assert gpu.table(reports).count("of the matrix peak") == 1
    assert [one["model"] for one in gpu.to_json(reports)["reports"]] == [report.model]


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("size", SMALL)
def test_the_models_are_those_of_transformers(size, tmp_path):
    """The labels of PyTorch in float32: 12 texts, of which about half have each."""
    pytest.importorskip("torch")
    texts.write_model(tmp_path, size=size, **SMALL[size])
    source = peers.Source(tmp_path, flaxsent.load(tmp_path), tmp_path)
    some = texts.make_texts(texts.like_sst2, 12)
    expected = peers.engine_predictor(tmp_path, "float32", [])(some, 0)
    assert len({*expected}) == 2
    assert (peers.make(PEERS["torch-f32"], source)(some, 4) == expected).all()


@pytest.mark.torch
def test_flash_attention_says_what_it_needs(small_model):
    pytest.importorskip("torch")
    source = peers.Source(small_model, flaxsent.load(small_model), small_model)
    with pytest.raises(RuntimeError, match="runs on a GPU"):
        peers.make(PEERS["torch-flash-bf16"], source)
    assert {*gpu.PEERS_ON_GPU} <= {*PEERS}
