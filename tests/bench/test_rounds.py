"""How the best batch size is found, and when rounds end."""

import time

import numpy as np
import pytest

from flaxsent.bench import rounds
from flaxsent.bench.peers import PEERS, Peer
from flaxsent.bench.rounds import Timing, measure, try_batch_sizes
from flaxsent.bench.texts import Workload


@pytest.mark.parametrize("best", [1, 2, 4, 8, 16, 32, 64, 256])
def test_the_best_batch_size_is_found_wherever_it_is(best):
    """With a single best size, as long as it takes twice the time at twice or half of it."""
    found = try_batch_sizes(lambda size: max(size / best, best / size), start=16, largest=256)
    assert min(found, key=found.get) == best
    timing = Timing(best, found, [1.0], 1.0)
    assert timing.is_at_edge == (best in (1, 256)), "else both neighbours were tried, and are worse"


def test_a_flat_stretch_does_not_end_the_search():
    """Sizes that differ by less than the noise: from 16 on nothing changes, but 2 is the best."""
    seconds = {1: 2.0, 2: 1.0, 4: 1.5, 8: 1.52, 16: 1.5, 32: 1.51, 64: 1.53}
    found = try_batch_sizes(seconds.get, start=16, largest=64)
    assert min(found, key=found.get) == 2


@pytest.fixture
def clock(monkeypatch):
    """`clock(seconds)` takes as long by the only clock there is: nothing depends on what else the machine does."""
    now = [0.0]

    def take(seconds):
        now[0] += seconds

    def seconds(call):
        before = now[0]
        call()
        return now[0] - before

    monkeypatch.setattr(rounds, "seconds", seconds)
    return take


def measured(monkeypatch, predictors, *, num_texts=64, rounds=1, until=np.inf):
    """Of predictors that are no peers of the table, and one of flaxsent's."""
    monkeypatch.setattr("flaxsent.bench.rounds.OURS", {"ours": "float32"})
    monkeypatch.setattr("flaxsent.bench.rounds.PEERS", PEERS | dict.fromkeys(predictors, Peer(None)))
    skipped, lines = {}, []
    timings = measure(
        Workload("texts", [f"{number}" for number in range(num_texts)]),
        {"ours": lambda texts, batch_size: np.zeros(len(texts), np.int64)} | predictors,
        rounds=rounds,
        until=until,
        skipped=skipped,
        report=lines.append,
    )
    return timings, skipped, lines


def test_a_peer_that_is_best_at_single_texts_is_timed_at_single_texts(monkeypatch, clock):
    def predict(texts, batch_size):
        clock(batch_size)
        return np.zeros(len(texts), np.int64)

    timings, _, _ = measured(monkeypatch, {"single": predict}, rounds=2)
    assert timings["single"].batch_size == 1
    assert [*timings["single"].tried] == [16, 8, 4, 2, 1]
    assert timings["single"].is_at_edge
    assert timings["single"].seconds == [1, 1]
    assert (timings["ours"].batch_size, timings["ours"].tried, timings["ours"].is_at_edge) == (None, {}, False)


def test_batches_go_up_to_all_texts_of_the_sample(monkeypatch, clock):
    def predict(texts, batch_size):
        clock(1 / batch_size)
        return np.zeros(len(texts), np.int64)

    timings, _, _ = measured(monkeypatch, {"many": predict}, num_texts=100)
    assert timings["many"].batch_size == 64, "the first power of two that takes half the texts at once"
    assert timings["many"].is_at_edge


def test_rounds_end_in_time(monkeypatch):
    predictors = {"peer": lambda texts, batch_size: np.zeros(len(texts), np.int64)}
    timings, _, lines = measured(monkeypatch, predictors, rounds=5, until=time.perf_counter())
    assert [len(timing.seconds) for timing in timings.values()] == [1, 1]
    assert lines[-1] == "texts: no time for round 2 of 5"


def test_a_peer_that_fails_is_left_out_and_flaxsent_must_not(monkeypatch):
    def breaks(texts, batch_size):
        raise RuntimeError("out of\norder")

    timings, skipped, _ = measured(monkeypatch, {"breaks": breaks})
    assert timings.keys() == {"ours"}
    assert skipped == {"breaks": "out of order"}
    with pytest.raises(RuntimeError, match="out of"):
        measured(monkeypatch, {"ours": breaks})


def test_what_compiles_is_timed_at_its_second_call(clock):
    seen = set()

    def predict(texts, batch_size):
        clock(1 if batch_size in seen else 50)
        seen.add(batch_size)
        return np.zeros(len(texts), np.int64)

    found = rounds._try_batch_sizes(predict, [""] * 64, compiles=True)
    assert {*found.values()} == {1}
