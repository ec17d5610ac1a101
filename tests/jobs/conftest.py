"""What the tests of jobs share: a small engine, a folder with a CSV, and a run in one line."""

import csv
import sys

import numpy as np
import pytest

import flaxsent
from flaxsent.engine import Engine
from flaxsent.jobs.plan import JobOptions, plan
from flaxsent.jobs.run import run
from tests.conftest import AWKWARD_TEXTS, texts_of_lengths

TEXTS = [text.replace("\x00", "") for text in AWKWARD_TEXTS if text] + texts_of_lengths(
    np.random.default_rng(0).integers(1, 30, 60).tolist()
)
COMMAND = [sys.executable, "-c", "import sys; from flaxsent.cli import main; sys.exit(main())", "classify"]


def make_engine(classifier, tokens_per_step=128):
    """Small windows: a file of `TEXTS` is read in a dozen chunks."""
    return Engine(classifier, row_lengths=[64], tokens_per_step=tokens_per_step, steps_per_window=1)


@pytest.fixture(scope="package")
def engine(tiny_folder):
    with make_engine(flaxsent.load(tiny_folder("bert"), backend="native")) as engine:
        yield engine


@pytest.fixture
def folder(tmp_path):
    """With a CSV of `TEXTS`: none is empty, which a CSV does not tell from a missing text."""
    write_csv(tmp_path / "in.csv", {"id": range(len(TEXTS)), "text": TEXTS})
    return tmp_path


def write_csv(path, table):
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return path


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return [*csv.DictReader(stream)]


def do(engine, inputs, output, **options):
    """Plans and runs a job."""
    inputs = [str(name) for name in (inputs if isinstance(inputs, list) else [inputs])]
    return run(plan(inputs, str(output), JobOptions(**options)), engine)


def names(folder):
    """What is in a folder, but for the record of the finished jobs: `test_manifest.py` looks at that."""
    return sorted(file.name for file in folder.iterdir() if not file.name.endswith(".flaxsent.json"))


class KilledError(BaseException):
    """Instead of a signal, within a test's own process."""
