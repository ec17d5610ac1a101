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


@pytest.mark.parametrize(
    "seconds",
    [
        {1: 2.0, 2: 1.0, 4: 1.5, 8: 1.52, 16: 1.5, 32: 1.51, 64: 1.53},
        {1: 1.0, 2: 1.3, 4: 1.4, 8: 1.3, 16: 1.2, 32: 1.3, 64: 1.4},
        {1: 9.0, 2: 5.0, 4: 3.0, 8: 1.3, 16: 1.1, 32: 1.3, 64: 1.0},
    ],
    ids=["flat, then better", "worse, then better below", "worse, then better above"],
)
def test_a_stretch_or_a_dip_does_not_end_the_search(seconds):
    found = try_batch_sizes(seconds.get, start=16, largest=64)
    assert min(found, key=found.get) == min(seconds, key=seconds.get)


@pytest.mark.parametrize("best", [1, 4, 16, 32, 128])
def test_one_slow_timing_of_any_size_does_not_hide_the_best(best):
    """Each size in turn is disturbed once, as by another process; the best so that its neighbours, 7% slower, win."""
    for disturbed in (2**power for power in range(9)):
        disturbances = {disturbed: 1.2 if disturbed == best else 3.0}

        def time_one(size, disturbances=disturbances):
            return max(size / best, best / size) ** 0.1 * disturbances.pop(size, 1)

        found = try_batch_sizes(time_one, start=16, largest=256)
        assert min(found, key=found.get) == best, f"{disturbed} was disturbed"


def test_sizes_that_do_not_fit_into_memory_are_left_out():
    def time_one(size):
        if size > 4:
            raise MemoryError(f"no room for {size}")
        return 1 / size

    assert try_batch_sizes(time_one, start=16, largest=64) == {4: 0.25, 2: 0.5, 1: 1.0}
    with pytest.raises(ZeroDivisionError):
        try_batch_sizes(lambda size: 1 / 0, start=16, largest=64)


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
    monkeypatch.setattr("flaxsent.bench.rounds.PEERS", PEERS | dict.fromkeys(predictors, Peer(None)))
    skipped, lines = {}, []
    timings = measure(
        Workload("texts", [f"{number}" for number in range(num_texts)]),
        {"ours": lambda texts, batch_size: np.zeros(len(texts), np.int64)} | predictors,
        ours={"ours"},
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
    assert [*timings["single"].tried] == [16, 8, 4, 2, 1, 32]
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


def test_a_sample_of_very_many_texts_is_from_all_over_them(monkeypatch, clock):
    seen = []

    def predict(texts, batch_size):
        seen.append(texts)
        clock(batch_size)
        return np.zeros(len(texts), np.int64)

    monkeypatch.setattr(rounds, "NUM_TEXTS", 30)
    measured(monkeypatch, {"peer": predict}, num_texts=100)
    assert {len(texts) for texts in seen} == {25, 100}, "of at most 30, every fourth"
    assert seen[0] == [f"{number}" for number in range(0, 100, 4)]


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
