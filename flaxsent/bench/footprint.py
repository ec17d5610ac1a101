"""What stands beside the speed of `bench.py`: the time to a new process's first answer, and the memory of a large job.

`flaxsent bench --footprint` prints both.
"""

import itertools
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from flaxsent.base import FlaxsentError
from flaxsent.bench import speed as bench
from flaxsent.checkpoint.folder import load
from flaxsent.engine import Engine, Stats
from flaxsent.jobs import run as jobs
from flaxsent.jobs.run import JobOptions

_TEXT = "I've been waiting for a HuggingFace course my whole life"
_OURS = "import sys; from flaxsent.cli import main; sys.exit(main())"
_PIPELINE = (
    "import sys; from transformers import pipeline; "
    "print(pipeline('text-classification', model=sys.argv[1], device='cpu')(sys.argv[2]))"
)


class Footprint(NamedTuple):
    """The figures of a run."""

    first_answers: dict[str, list[float]]
    """Seconds of a process that labels one text, one a round; what JAX had compiled was kept from a start before."""
    num_texts: list[int]
    """Of the file, after which the memory was looked at."""
    memory: list[int]
    """Bytes that the process had held at most by then."""

    @property
    def slope(self) -> float:
        """Bytes more for each text, by the second half of the file, when all is compiled and every buffer there."""
        half = len(self.memory) // 2
        return float(np.polyfit(self.num_texts[half:], self.memory[half:], 1)[0])


def run(*, num_texts: int = 100_000, rounds: int = 3) -> Footprint:
    """Measures a model of DistilBERT's size for the first answer, and the embedded one on a file of short texts.

    Raises:
        FlaxsentError: there are too few texts to look at the memory ten times.
    """
    if num_texts < 10 or rounds < 1:
        raise FlaxsentError(f"num_texts={num_texts}, rounds={rounds}: expected at least 10 texts and 1 round.")
    with TemporaryDirectory() as folder:
        bench.write_model(Path(folder))
        answers = _first_answers(Path(folder), rounds)
    return Footprint(answers, *_memory(num_texts))


def _first_answers(folder: Path, rounds: int) -> dict[str, list[float]]:
    """In turn, after a start of each that is not counted: it fills the caches of files and of what is compiled."""
    commands = {
        "flaxsent": [sys.executable, "-c", _OURS, "classify", "--model", str(folder), _TEXT],
        "pipeline": [sys.executable, "-c", _PIPELINE, str(folder), _TEXT],
    }
    environment = os.environ | {"FLAXSENT_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number, (name, command) in itertools.product(range(rounds + 1), commands.items()):
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FlaxsentError(f"{name} gave no answer: {(done.stderr.strip().splitlines() or ['nothing'])[-1]}")
        if number:
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _memory(num_texts: int) -> tuple[list[int], list[int]]:
    """What the process holds at most while it labels a file, looked at after each tenth of its texts."""
    seen: tuple[list[int], list[int]] = ([], [])
    done = 0

    def look(stats: Stats) -> None:
        nonlocal done
        done += stats.num_texts
        if done >= (len(seen[0]) + 1) * num_texts / 10:
            seen[0].append(done)
            seen[1].append(peak_memory())

    with TemporaryDirectory() as folder:
        file = Path(folder) / "texts.txt"
        with file.open("w") as stream:
            stream.writelines(f"{text}\n" for text in _short_texts(num_texts))
        job = jobs.plan([str(file)], str(Path(folder) / "labelled.csv"), JobOptions())
        with Engine(load(), on_window=look) as engine:
            jobs.run(job, engine)
    return seen


def _short_texts(num_texts: int) -> Iterator[str]:
    """Different texts of 5 to 12 words."""
    vocabulary = load().tokenizer.backend.get_vocab()
    words = np.array(sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2))
    rng = np.random.default_rng(0)
    for number in range(num_texts):
        yield f"{number} {' '.join(rng.choice(words, rng.integers(4, 12)))}"


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def table(footprint: Footprint) -> str:
    """The first answers with their ratio, and the memory, line by line."""
    answers = {name: statistics.median(seconds) for name, seconds in footprint.first_answers.items()}
    ratios = [ours / theirs for ours, theirs in zip(*footprint.first_answers.values(), strict=True)]
    lines = [f"first answer of a new process, medians of {len(ratios)}, DistilBERT's size"]
    lines += [f"{name:<20}{seconds:8.2f} s" for name, seconds in answers.items()]
    lines += [f"{'flaxsent / pipeline':<20}{statistics.median(ratios):8.2f}", ""]
    lines += [f"{'texts of a file done':<22}{'memory at most':>16}"]
    for num_texts, memory in zip(footprint.num_texts, footprint.memory, strict=True):
        lines.append(f"{num_texts:<22,}{memory / 1e6:13,.0f} MB")
    return "\n".join([*lines, f"slope of the second half: {footprint.slope:.1f} MB for a million texts"])


def to_json(footprint: Footprint) -> dict[str, Any]:
    """All the figures as plain dicts and lists."""
    return footprint._asdict() | {"slope": footprint.slope}
