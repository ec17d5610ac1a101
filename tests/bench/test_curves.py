"""`flaxsent bench --curves` on a tiny random model: which points there are, and what is left out."""

import json

import numpy as np
import pytest

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.bench import curves, machine, speed
from flaxsent.bench.texts import of_length
from flaxsent.cli import main


@pytest.fixture(autouse=True)
def _little_to_try(monkeypatch):
    monkeypatch.setattr(machine, "_SIZES", (64,))


def test_two_charts_and_their_numbers(small_model, tmp_path, capsys):
    texts, chart = tmp_path / "texts.txt", tmp_path / "curves.png"
    texts.write_text("".join(f"text number {number}\n" for number in range(25)))
    command = ["bench", "--curves", "--model", str(small_model), "--texts", str(texts), "--rounds", "1"]
    assert main([*command, "--peers", "onnx-f16", "--plot", str(chart)]) == 2
    assert main([*command, "--num-texts", "9"]) == 2
    capsys.readouterr()
    report = curves.run(small_model, texts=texts, peers=[], rounds=1)
    by_length = ["16 tokens", "32 tokens", "64 tokens"]
    assert [result.workload for result in report.results] == [*by_length, "10 texts", "25 texts"]
    assert [result.num_texts for result in report.results] == [512, 256, 128, 10, 25]
    assert {result.num_tokens for result in report.results[:3]} == {8192}
    curves.plot(report, chart)
    assert chart.read_bytes().startswith(b"\x89PNG")
    told = json.loads(json.dumps(curves.to_json(report)))
    assert all(one["timings"]["flaxsent-f32"]["texts_per_second"] > 0 for one in told["results"])


def test_a_point_that_would_take_too_long_is_left_out_and_said(small_model, monkeypatch):
    monkeypatch.setattr(speed, "BUDGET", 0)
    lines = []
    report = curves.run(small_model, num_texts=10, peers=[], report=lines.append)
    assert [result.workload for result in report.results] == ["16 tokens"], "the first is measured whatever it takes"
    assert report.skipped == dict.fromkeys(("32 tokens", "64 tokens", "10 texts"), "it would end after 0 minutes")
    assert any("left out 10 texts" in line for line in lines)


def test_a_workload_takes_as_long_as_the_one_before_by_its_tokens():
    timings = {"a": speed.Timing(None, {}, [1.0, 3.0, 2.0], 1.0), "b": speed.Timing(8, {8: 1.0}, [4.0], 1.0)}
    last = speed.Result("w", 10, 100, 0, timings, {})
    assert speed._least_seconds(1000, last) == pytest.approx(2 * (20 + 40)), "once to see them, once to be timed"


def test_texts_have_the_length_that_is_asked_for(small_model):
    classifier = flaxsent.load(small_model)
    assert {*classifier.tokenizer.encode(of_length(32).texts).lengths} == {32}
    mixed = np.array(classifier.tokenizer.encode(of_length(64, is_mixed=True).texts).lengths)
    assert mixed.min() >= 16
    assert mixed.max() == 64
    assert mixed.std() > 5
    assert mixed.sum() == pytest.approx(8192, rel=0.1)


def test_fewer_texts_than_the_curve_begins_with_are_refused(small_model):
    with pytest.raises(FlaxsentError, match="num_texts=9: expected at least 10"):
        curves.run(small_model, num_texts=9)
