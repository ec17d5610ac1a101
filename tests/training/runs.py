"""What the tests of `flaxsent train` start it with, and what they read of it."""

import json
import os
import sys
from pathlib import Path

import numpy as np

from flaxsent import cli
from tests.conftest import texts_of_lengths

ROWS = [
    (f"{word} {text}", name)
    for (word, name), text in zip(
        [("good good", "POSITIVE"), ("bad bad", "NEGATIVE"), ("hate", "NEGATIVE")] * 20,
        texts_of_lengths(np.random.default_rng(0).integers(1, 20, 60).tolist()),
        strict=True,
    )
]

ONE_LAYER = {"num_hidden_layers": 1}
"""Of the tiny checkpoint, where training is not about depth: most of a run is compiling its layers."""

COMMAND = [sys.executable, "-c", "import sys; from flaxsent.cli import main; sys.exit(main())"]
ENVIRONMENT = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}


def write_tsv(file: Path, rows) -> str:
    file.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    return str(file)


def arguments_of(model, files, output, *more):
    train_file, dev_file = files
    return [
        *("train", "--model", str(model), "--train", train_file, "--dev", dev_file, "--output", str(output)),
        *("--tokens-per-step", "256", "--epochs", "2", "--learning-rate", "1e-3", "--average-decay", "0.9"),
        *("--checkpoint-every", "2", "--log-every", "1", *more),
    ]


def run(capsys, *arguments):
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, *arguments) -> str:
    """The one line that a run ends with, which prints nothing else."""
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), (code, out, err)
    return err.removeprefix("flaxsent: error: ")


def told(err: str) -> list[str]:
    """The lines of standard error, without those of XLA about what another kind of machine compiled into the cache."""
    return [line for line in err.splitlines() if "cpu_aot_loader" not in line]


def without_speed(log: Path) -> list[dict]:
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name != "texts_per_second"} for entry in entries]
