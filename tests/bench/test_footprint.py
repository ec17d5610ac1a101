"""The first answer, with and without what was compiled before, and the memory of a job: a leak is seen."""

import json
import subprocess
from pathlib import Path

import pytest

from flaxsent.base import FlaxsentError
from flaxsent.bench import footprint
from flaxsent.bench.footprint import COLD, PIPELINE, WARM, Footprint, Memory, job_memory
from flaxsent.cli import main

FLAT = Memory(
    num_texts=[100 * tenth for tenth in range(1, 11)],
    resident=[5_000_000 + 1000 * tenth for tenth in range(1, 6)] + [8_000_000] * 5,
)
MEASURED = Footprint({WARM: [2.0, 4.0, 3.0], COLD: [6.0, 7.0, 5.0], PIPELINE: [10.0, 10.0, 10.0]}, FLAT)

NUM_TEXTS, LEAK = 10_000, 100 * 10**6
kept = []


def leak(stats):
    """As much in each window as makes 100 MB over the whole file; written to, or it would not be in memory."""
    kept.append(b"x" * (stats.num_texts * LEAK // NUM_TEXTS))


@pytest.mark.slow
def test_a_leak_of_100_megabytes_is_seen_and_without_it_the_memory_is_flat(small_model):
    """A tenth of the leak is allowed for what the job itself does; runs differ by 2 MB, and by more when XLA frees."""
    flat, leaking = (job_memory(NUM_TEXTS, model=small_model, steps_per_window=8, on_window=on) for on in (None, leak))
    for memory in (flat, leaking):
        assert memory.num_texts[-1] == NUM_TEXTS
        assert len(memory.num_texts) == 10
        assert memory.resident[0] > 50 * 10**6
    a_text = LEAK / NUM_TEXTS
    assert flat.slope == pytest.approx(0, abs=a_text / 10)
    assert leaking.slope == pytest.approx(a_text, rel=0.1)
    growth = [memory.resident[-1] - memory.resident[4] for memory in (flat, leaking)]
    assert growth[0] < LEAK / 20
    assert growth[1] == pytest.approx(LEAK / 2, rel=0.15)
    told = footprint.table(MEASURED._replace(memory=leaking)).splitlines()[-1]
    assert float(told.split()[5].replace(",", "")) == pytest.approx(10_000, rel=0.1), "MB for a million texts"
    assert kept == [], "the job ran in a process of its own"


def test_the_slope_is_that_of_the_second_half():
    growing = FLAT._replace(resident=[1_000_000 + 7 * count for count in FLAT.num_texts])
    assert abs(FLAT.slope) < 1e-6
    assert growing.slope == pytest.approx(7)


def test_a_job_too_short_to_look_at_is_refused(small_model):
    with pytest.raises(FlaxsentError, match=r"num_texts=50: .* pass more texts"):
        job_memory(50, model=small_model)


def test_the_table_tells_warm_and_cold_and_ratios_round_by_round():
    lines = footprint.table(MEASURED).splitlines()
    assert lines[0] == "first answer of a new process, a model of DistilBERT's size, median of 3 starts"
    assert lines[1].split() == ["flaxsent,", "compiled", "before", "3.00", "s", "0.30", "of", "the", "pipeline's"]
    assert lines[2].split() == ["flaxsent,", "nothing", "compiled", "6.00", "s", "0.60", "of", "the", "pipeline's"]
    assert lines[3].split() == ["transformers'", "pipeline", "10.00", "s"]
    assert lines[-1] == "growth in the second half: +0 MB for a million texts"


def test_without_pytorch_the_table_says_so():
    lines = footprint.table(MEASURED._replace(first_answers={WARM: [2.0], COLD: [6.0]})).splitlines()
    assert lines[1].split()[-2:] == ["2.00", "s"]
    assert lines[3].split() == ["transformers'", "pipeline", "–", "PyTorch", "is", "not", "installed"]


def test_a_cold_start_has_an_empty_cache_each_time_and_a_warm_one_the_same(small_model, monkeypatch):
    """What each process is given; the caches are filled as processes would."""
    seen = {WARM: [], COLD: []}

    def start(command, *, env, **_):
        assert "JAX_COMPILATION_CACHE_DIR" not in env, "the command line would use it instead"
        cache = Path(env["FLAXSENT_CACHE"])
        if "flaxsent" in command:
            seen[WARM if len(seen[WARM]) == len(seen[COLD]) else COLD].append((cache, [*cache.iterdir()]))
        (cache / f"{len([*cache.iterdir()])}").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    monkeypatch.setattr(footprint.subprocess, "run", start)
    answers = footprint.first_answers(small_model, rounds=2)
    assert {name: len(taken) for name, taken in answers.items() if name != PIPELINE} == {WARM: 2, COLD: 2}
    assert len({cache for cache, _ in seen[WARM]}) == 1
    assert [bool(content) for _, content in seen[WARM]] == [False, True, True]
    assert len({cache for cache, _ in seen[COLD]} | {seen[WARM][0][0]}) == 4
    assert [content for _, content in seen[COLD]] == [[], [], []]


def test_a_process_that_fails_is_told(tmp_path):
    with pytest.raises(FlaxsentError, match="-m flaxsent classify gave no answer: flaxsent: error: "):
        footprint.first_answers(tmp_path / "none", rounds=1)


@pytest.mark.slow
def test_a_cold_start_compiles_and_a_warm_one_reads(small_model):
    answers = footprint.first_answers(small_model, rounds=2)
    assert sum(answers[COLD]) > sum(answers[WARM])


def test_the_command_prints_it(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(footprint, "run", lambda *, report, rounds=5: asked.append(rounds) or MEASURED)
    assert main(["bench", "--footprint"]) == 0
    assert capsys.readouterr().out == footprint.table(MEASURED) + "\n"
    assert main(["bench", "--footprint", "--json", "--rounds", "2"]) == 0
    assert asked == [5, 2]
    told = json.loads(capsys.readouterr().out)
    assert told["first_answers"][COLD] == [6.0, 7.0, 5.0]
    assert told["memory"]["resident"] == FLAT.resident
    assert abs(told["memory"]["slope"]) < 1e-6


def test_what_it_does_not_take_is_refused(capsys):
    assert main(["bench", "--footprint", "--peers", "onnx-f32"]) == 2
    assert main(["bench", "--footprint", "--plot", "bench.png"]) == 2
    assert [line.partition("error: ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "bench --footprint takes no --peers.",
        "bench --footprint takes no --plot.",
    ]


def test_a_start_that_keeps_nothing_makes_no_warm_one(small_model, monkeypatch):
    def start(command, **_):
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(footprint.subprocess, "run", start)
    with pytest.raises(FlaxsentError, match="none is warm"):
        footprint.first_answers(small_model, rounds=1)
