"""`flaxsent bench` on a tiny random model, beside the peers that are installed: the figures, not the speed."""

import json
import logging
import sys
import warnings

import numpy as np
import pytest

from flaxsent.base import FlaxsentError
from flaxsent.bench import machine, peers, rounds, speed
from flaxsent.bench.peers import OURS, PEERS, Peer
from flaxsent.bench.report import AGREEMENT
from flaxsent.bench.texts import workloads
from flaxsent.cli import main


@pytest.fixture(autouse=True)
def _little_to_try(monkeypatch):
    monkeypatch.setattr(machine, "_SIZES", (64,))


@pytest.fixture
def add_peers(monkeypatch):
    """`add_peers(name=make)`: more libraries for the table."""

    def add(**makes):
        for module in (peers, rounds, speed):
            monkeypatch.setattr(module, "PEERS", PEERS | {name: Peer(make) for name, make in makes.items()})

    return add


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.flax_auto
def test_installed_peers_give_the_same_labels(small_model, tmp_path, capsys):
    (short, _) = workloads(None, 30)
    (tmp_path / "texts.txt").write_text("\n".join(short.texts))
    names = ["pipeline", "pipeline-sorted", "torch-f32", "flax-auto"]
    lines = []
    report = speed.run(small_model, peers=names, texts=tmp_path / "texts.txt", rounds=2, report=lines.append)
    assert report.skipped == {}
    (result,) = report.results
    assert [*result.timings] == [*OURS, *names]
    for name, timing in result.timings.items():
        assert len(timing.seconds) == 2
        assert timing.agreement == 1 or (name == "flaxsent-bf16" and timing.agreement >= AGREEMENT), name
        assert (timing.batch_size is None) == (name in OURS)
    assert (result.num_texts, result.num_truncated, result.is_claim) == (30, 0, False)
    for efficiency in result.efficiencies.values():
        assert 0 < efficiency.real_share <= 1
    assert any("round 2 of 2" in line for line in lines)
    assert capsys.readouterr().out == "", "what the peers print does not reach standard output"


def test_a_peer_that_is_missing_fails_or_computes_something_else_does_not_end_the_run(
    small_model, monkeypatch, add_peers
):
    def breaks(source):
        raise RuntimeError("out of\norder")

    def breaks_late(source):
        return lambda texts, batch_size: np.zeros(2, np.int64) if len(texts) == 2 else 1 / 0

    def guesses(source):
        return lambda texts, batch_size: np.zeros(len(texts), np.int64)

    add_peers(breaks=breaks, breaks_late=breaks_late, guesses=guesses)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(speed, "BUDGET", 0)
    lines = []
    names = ["onnx-int8", "breaks", "breaks_late", "guesses"]
    report = speed.run(small_model, peers=names, num_texts=30, report=lines.append)
    assert [len(result.timings["guesses"].seconds) for result in report.results] == [1, 1], "no time for another round"
    assert any("up to 5 rounds, or as many as fit into 0 minutes" in line for line in lines)
    assert report.skipped.keys() == {"onnx-int8", "breaks", "breaks_late"}
    assert 'needs onnxruntime, which is not installed: pip install "flaxsent[bench]"' in report.skipped["onnx-int8"]
    assert report.skipped["breaks"] == "out of order"
    assert any(result.timings["guesses"].agreement < AGREEMENT for result in report.results)


def test_the_default_is_five_rounds_of_several_hundred_texts(small_model, monkeypatch):
    asked = []

    def measure(workload, predictors, *, rounds, until, **_):
        asked.append((workload.name, len(workload.texts), rounds))
        raise FlaxsentError("enough")

    monkeypatch.setattr(speed, "measure", measure)
    with pytest.raises(FlaxsentError, match="enough"):
        speed.run(small_model, peers=[])
    assert asked == [("sst2-like", 320, 5)]


def test_a_peer_is_silent_and_the_process_is_as_before(small_model, capsys, caplog, add_peers):
    """Others' loggers, warnings and prints are silenced while they are called; flaxsent's own lines come through."""

    def loud(source):
        def predict(texts, batch_size):
            logging.getLogger("transformers").warning("theirs")
            logging.getLogger("flaxsent.engine").warning("ours")
            warnings.warn("theirs", UserWarning, stacklevel=1)
            sys.stdout.write("theirs")
            return np.zeros(len(texts), np.int64)

        return predict

    before = list(warnings.filters), logging.root.manager.disable, sys.stdout
    add_peers(loud=loud)
    predict = peers.make(Peer(loud), None)
    predict(["a"], 1)
    assert (list(warnings.filters), logging.root.manager.disable, sys.stdout) == before
    assert capsys.readouterr().out == ""
    assert {record.getMessage() for record in caplog.records} == {"ours"}
    with pytest.warns(UserWarning, match="after"):
        warnings.warn("after", UserWarning, stacklevel=1)


def test_command_line(small_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    texts, chart = tmp_path / "texts.txt", tmp_path / "bench.png"
    texts.write_text("so good\nso bad\nfine\n")
    command = ["bench", "--model", str(small_model), "--texts", str(texts), "--peers", "onnx-f32", "--rounds", "1"]
    assert main([*command, "--json", "--plot", str(chart)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [result["workload"] for result in told["results"]] == ["texts.txt"]
    assert [result["is_claim"] for result in told["results"]] == [False]
    assert told["skipped"].keys() == {"onnx-f32"}
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert main([*command[:-1], "0"]) == 2
    assert main([*command, "--plot", str(tmp_path / "bench.doc")]) == 2
    assert main([*command[:-4], "--peers", "onnx"]) == 2
    assert "there is no peer onnx; expected some of pipeline, " in capsys.readouterr().err
