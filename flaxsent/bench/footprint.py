"""The time to a new process's first answer, and the memory of a long job: `flaxsent bench --footprint`."""

import concurrent.futures
import functools
import gc
import importlib.util
import itertools
import multiprocessing
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxsent.base import FlaxsentError
from flaxsent.bench.machine import resident_memory, seconds
from flaxsent.bench.texts import numbered_texts, write_model
from flaxsent.checkpoint.folder import load
from flaxsent.engine import Engine, Stats
from flaxsent.jobs.plan import JobOptions, plan
from flaxsent.jobs.run import run as run_job
from flaxsent.placement import num_cores

_TEXT = "I've been waiting for a HuggingFace course my whole life"
_PIPELINE = (
    "import sys; from transformers import pipeline; "
    "print(pipeline('text-classification', model=sys.argv[1], device='cpu')(sys.argv[2]))"
)

WARM, COLD, PIPELINE = "flaxsent, compiled before", "flaxsent, nothing compiled", "transformers' pipeline"
"""The first answers that are timed: with the compilation cache filled by an earlier start, and with an empty one."""


class Memory(NamedTuple):
    """What a process held while it labelled a file."""

    num_texts: list[int]
    """How many were done, about each tenth of them."""
    resident: list[int]
    """Bytes that the process held then, with garbage collected."""

    @property
    def slope(self) -> float:
        """Bytes more for each text, in the second half of the file: all is compiled and every buffer there by then."""
        half = len(self.resident) // 2
        return float(np.polyfit(self.num_texts[half:], self.resident[half:], 1)[0])


class Footprint(NamedTuple):
    """The figures of a run."""

    first_answers: dict[str, list[float]]
    """Seconds of a new process that labels one text, one a round."""
    memory: Memory


def run(*, num_texts: int = 100_000, rounds: int = 5, report: Callable[[str], None] = lambda line: None) -> Footprint:
    """Measures a model of DistilBERT's size for the first answer, and the embedded one on a file of short texts.

    `report` is called with a line on what goes on.

    Raises:
        FlaxsentError: fewer than one round, or too few texts to look at the memory.
    """
    if rounds < 1:
        raise FlaxsentError(f"rounds={rounds}: expected a positive number.")
    with TemporaryDirectory() as folder:
        write_model(Path(folder))
        report(f"starting processes, {rounds + 1} times each")
        answers = first_answers(Path(folder), rounds=rounds)
    report(f"labelling {num_texts:,} texts")
    return Footprint(answers, job_memory(num_texts))


def first_answers(model: Path, *, rounds: int) -> dict[str, list[float]]:
    """Starts each in turn. The first start of each is not counted: it brings the files into memory.

    Raises:
        FlaxsentError: a process fails.
    """
    ours = [sys.executable, "-m", "flaxsent", "classify", "--model", str(model), _TEXT]
    commands = {WARM: ours, COLD: ours, PIPELINE: [sys.executable, "-c", _PIPELINE, str(model), _TEXT]}
    if importlib.util.find_spec("torch") is None:
        del commands[PIPELINE]
    found: dict[str, list[float]] = {name: [] for name in commands}
    with TemporaryDirectory() as kept:
        for number, (name, command) in itertools.product(range(rounds + 1), commands.items()):
            with TemporaryDirectory() as empty:
                start = functools.partial(_start, command, cache=empty if name == COLD else kept)
                taken = seconds(start)
            if not os.listdir(kept):
                raise FlaxsentError(
                    "a start kept nothing of what it compiled, so none is warm; unset JAX_ENABLE_COMPILATION_CACHE."
                )
            if number:
                found[name].append(taken)
    return found


def _start(command: list[str], *, cache: str) -> None:
    environment = {**os.environ, "FLAXSENT_CACHE": cache, "HF_HUB_OFFLINE": "1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # it would take the place of the cache
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["nothing"]
        raise FlaxsentError(f"{' '.join(command[:4])} gave no answer: {lines[-1]}")


def job_memory(
    num_texts: int,
    *,
    model: str | os.PathLike | None = None,
    steps_per_window: int | None = None,
    on_window: Callable[[Stats], None] | None = None,
) -> Memory:
    """Labels a made-up file in a process of its own, and looks at that process's memory after each tenth of the texts.

    Args:
        num_texts: in the file.
        model: folder or Hub id; the embedded checkpoint by default.
        steps_per_window: as the engine's; memory is looked at between windows.
        on_window: called there in the process, as the engine's; it must be picklable.

    Raises:
        FlaxsentError: the file has too few windows to look at the memory between them.
        Whatever `load` raises.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "texts.txt"
        with file.open("w") as stream:
            stream.writelines(f"{text}\n" for text in numbered_texts(num_texts))
        spawn = multiprocessing.get_context("spawn")  # not a fork, which would begin with this process's memory
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as process:
            memory = process.submit(_watch_job, file, num_texts, model, steps_per_window, on_window).result()
    if len(memory.resident) < _LEAST_LOOKS:
        raise FlaxsentError(
            f"num_texts={num_texts}: the job was over after {len(memory.resident)} looks at its memory, of at least "
            f"{_LEAST_LOOKS}; pass more texts."
        )
    return memory


_LEAST_LOOKS = 4


def _watch_job(
    file: Path,
    num_texts: int,
    model: str | os.PathLike | None,
    steps_per_window: int | None,
    on_window: Callable[[Stats], None] | None,
) -> Memory:
    jax.config.update("jax_num_cpu_devices", num_cores())  # as the command line does
    memory = Memory([], [])
    num_done = 0

    def look(stats: Stats) -> None:
        nonlocal num_done
        num_done += stats.num_texts
        if on_window is not None:
            on_window(stats)
        if num_done >= (len(memory.resident) + 1) * num_texts / 10:
            gc.collect()
            memory.num_texts.append(num_done)
            memory.resident.append(resident_memory())

    job = plan([str(file)], str(file.with_name("labelled.csv")), JobOptions())
    with Engine(load(model), steps_per_window=steps_per_window, on_window=look) as engine:
        run_job(job, engine)
    return memory


def table(footprint: Footprint) -> str:
    """The first answers, beside the pipeline's, and the memory, line by line."""
    answers, memory = footprint.first_answers, footprint.memory
    lines = [f"first answer of a new process, a model of DistilBERT's size, median of {len(answers[WARM])} starts"]
    for name, taken in answers.items():
        beside = "" if name == PIPELINE else _beside_pipeline(name, answers)
        lines.append(f"{name:<28}{statistics.median(taken):8.2f} s{beside}")
    if PIPELINE not in answers:
        lines.append(f"{PIPELINE:<28}{'–':>8}    PyTorch is not installed")
    lines += ["", f"{'texts of a file done':<28}{'memory held':>15}"]
    for num_texts, resident in zip(memory.num_texts, memory.resident, strict=True):
        lines.append(f"{num_texts:<28,}{resident / 1e6:12,.0f} MB")
    # A byte for each text is a megabyte for a million of them.
    return "\n".join([*lines, f"growth in the second half: {round(memory.slope):+,} MB for a million texts"])


def _beside_pipeline(name: str, answers: Mapping[str, list[float]]) -> str:
    """The median of what each round says."""
    if PIPELINE not in answers:
        return ""
    ratios = [ours / theirs for ours, theirs in zip(answers[name], answers[PIPELINE], strict=True)]
    return f"    {statistics.median(ratios):.2f} of the pipeline's"


def to_json(footprint: Footprint) -> dict[str, Any]:
    """All the figures as plain dicts and lists."""
    memory = footprint.memory._asdict() | {"slope": footprint.memory.slope}
    return {"first_answers": footprint.first_answers, "memory": memory}
