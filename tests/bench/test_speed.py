"""`flaxsent bench` on a tiny random model, beside the peers that are installed: the figures, not the speed."""

import json
import sys

import numpy as np
import pytest

import flaxsent
from flaxsent.bench import speed as bench
from flaxsent.cli import main
from flaxsent.engine import Engine

SIZES = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    bench.write_model(folder, **SIZES)
    return folder


@pytest.fixture(autouse=True)
def _little_to_try(monkeypatch):
    monkeypatch.setattr(bench, "_SIZES", (64,))
    monkeypatch.setattr(bench, "_BATCH_SIZES", (8, 16))


def made_up(num_texts):
    return {workload.name: workload.texts for workload in bench._workloads(None, num_texts)}


def test_made_up_texts_have_the_lengths_of_their_models(embedded):
    texts = made_up(350)
    assert texts == made_up(350), "the same at each call"
    encodings = {name: embedded.tokenizer.encode(some) for name, some in texts.items()}
    assert [encoded.num_truncated for encoded in encodings.values()] == [0, 0]
    lengths = {name: np.array([*map(len, encoded.input_ids)]) for name, encoded in encodings.items()}
    assert {name: len({*some}) for name, some in texts.items()} == {"sst2-like": 350, "imdb-like": 50}, "all different"
    assert lengths["sst2-like"].mean() == pytest.approx(25.2, abs=0.5)
    assert lengths["imdb-like"].mean() == pytest.approx(230, abs=5)
    assert (lengths["sst2-like"].min() >= 4, lengths["sst2-like"].max() <= 60) == (True, True)
    assert lengths["imdb-like"].max() == 512


def test_both_labels_of_the_random_model_are_frequent(folder):
    """Or the comparison of labels would not see a peer that computes nothing."""
    with Engine(flaxsent.load(folder, backend="native")) as scores:
        labels = scores([text for texts in made_up(96).values() for text in texts]).argmax(axis=-1)
    assert 0.2 < labels.mean() < 0.8


def test_texts_of_a_file_are_taken_once(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("so good\nso bad\n\nso good\r\nfine\nmore\n", encoding="utf-8")
    assert bench.read_texts(file, 3) == ["so good", "so bad", "fine"]
    file.write_text("\n \n")
    with pytest.raises(ValueError, match="has no text"):
        bench.read_texts(file, 3)
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"texts\.txt is not UTF-8"):
        bench.read_texts(file, 3)


TIMINGS = {
    "flaxsent-f32": bench.Timing(None, [2.0, 1.0, 4.0], 1.0),
    "flaxsent-bf16": bench.Timing(None, [1.0, 0.5, 1.0], 0.98),
    "a": bench.Timing(16, [6.0, 4.0, 8.0], 0.95),
    "b": bench.Timing(8, [0.1, 0.1, 0.1], 0.5),
}
RESULT = bench.Result("like", 100, 2500, 3, TIMINGS, {"flaxsent-f32": bench.Efficiency(1250.0, 0.99, 1e11)})
REPORT = bench.Report("m", "a machine", {"jax": "1"}, {"float32": 2e11}, {"c": "is not there"}, [RESULT])


def test_medians_and_ratios():
    assert bench.texts_per_second(RESULT, "flaxsent-f32") == 50.0
    assert bench.texts_per_second(RESULT, "a") == 100 / 6
    assert bench.ratio(RESULT, "flaxsent-f32", "a") == 3.0, "the median of 3, 4 and 2: of the rounds, not of the times"
    assert bench.ratio(RESULT, "flaxsent-bf16", "a") == 8.0


def test_the_table_says_what_is_no_peer_and_what_is_skipped():
    lines = bench.table(REPORT).splitlines()
    row = {line.split()[0]: line.split() for line in lines if line}
    assert "like: 100 texts of 25.0 tokens on average (3 cut), medians of 3 rounds" in lines
    assert row["a"] == ["a", "16.7", "67%", "16", "95.0%", "3.00", "×", "8.00", "×"]
    assert " ".join(row["b"]) == "b 1,000.0 0% 8 50.0% no peer: computes something else"
    assert "flaxsent-bf16 is 8.00 × as fast as a, the fastest peer" in lines
    assert row["flaxsent-f32"] == ["flaxsent-f32", "1,250", "99.0%", "50.0%"]
    assert lines[-1] == "skipped c: is not there"


def test_json_has_every_figure():
    told = json.loads(json.dumps(bench.to_json(REPORT)))
    assert told["skipped"] == {"c": "is not there"}
    (result,) = told["results"]
    assert result["timings"]["a"] == {
        "batch_size": 16,
        "seconds": [6.0, 4.0, 8.0],
        "agreement": 0.95,
        "texts_per_second": 100 / 6,
        "ratio": {"flaxsent-f32": 3.0, "flaxsent-bf16": 8.0},
    }
    assert result["efficiencies"]["flaxsent-f32"]["real_share"] == 0.99


def test_operations_are_those_of_the_matrices(folder):
    """By hand: 5 tokens, hidden 32, feed-forward 48, the first layer in full, the last for one token."""
    config = flaxsent.load(folder, backend="native").config
    first = 5 * (4 * 32 * 32 + 2 * 32 * 48) + 2 * 5 * 5 * 32
    last = 5 * 2 * 32 * 32 + 2 * 32 * 32 + 2 * 32 * 48 + 2 * 5 * 32
    assert bench._operations([5, 5], config) == 2 * 2 * (first + last)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.flax_auto
def test_installed_peers_give_the_same_labels(folder, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(made_up(30)["sst2-like"]))
    peers = ["pipeline", "pipeline-sorted", "torch-f32", "flax-auto"]
    lines = []
    report = bench.run(folder, peers=peers, texts=tmp_path / "texts.txt", rounds=2, report=lines.append)
    assert report.skipped == {}
    (result,) = report.results
    assert [*result.timings] == [*bench.OURS, *peers]
    for name, timing in result.timings.items():
        assert len(timing.seconds) == 2
        assert timing.agreement == 1 or (name == "flaxsent-bf16" and timing.agreement >= bench.AGREEMENT), name
        assert (timing.batch_size is None) == (name in bench.OURS)
    assert (result.num_texts, result.num_truncated) == (30, 0)
    for efficiency in result.efficiencies.values():
        assert 0 < efficiency.real_share <= 1
    assert any("round 2 of 2" in line for line in lines)
    assert capsys.readouterr().out == "", "what the peers print does not reach standard output"


def test_a_peer_that_is_missing_fails_or_computes_something_else_does_not_end_the_run(folder, monkeypatch):
    def breaks(source):
        raise RuntimeError("out of\norder")

    def breaks_late(source):
        return lambda texts, batch_size: np.zeros(2, np.int64) if len(texts) == 2 else 1 / 0

    def guesses(source):
        return lambda texts, batch_size: np.zeros(len(texts), np.int64)

    fakes = {"breaks": breaks, "breaks-late": breaks_late, "guesses": guesses}
    monkeypatch.setattr(bench, "PEERS", bench.PEERS | {name: bench.Peer(make) for name, make in fakes.items()})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(bench, "_SECONDS", 0)
    report = bench.run(folder, peers=["onnx-int8", *fakes], num_texts=30)
    assert [len(result.timings["guesses"].seconds) for result in report.results] == [1, 1], "no time for another round"
    assert report.skipped.keys() == {"onnx-int8", "breaks", "breaks-late"}
    assert "onnxruntime" in report.skipped["onnx-int8"]
    assert bench.INSTALL in report.skipped["onnx-int8"]
    assert report.skipped["breaks"] == "out of order"
    assert any(result.timings["guesses"].agreement < bench.AGREEMENT for result in report.results)


def test_command_line(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    texts, chart = tmp_path / "texts.txt", tmp_path / "bench.png"
    texts.write_text("so good\nso bad\nfine\n")
    command = ["bench", "--model", str(folder), "--texts", str(texts), "--peers", "onnx-f32", "--rounds", "1"]
    assert main([*command, "--json", "--plot", str(chart)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [result["workload"] for result in told["results"]] == ["texts.txt"]
    assert told["skipped"].keys() == {"onnx-f32"}
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert main([*command[:-1], "0"]) == 2
    assert main([*command[:-4], "--peers", "onnx"]) == 2
    assert "there is no peer onnx; expected some of pipeline, " in capsys.readouterr().err
