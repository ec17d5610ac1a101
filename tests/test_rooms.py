"""The house: each room imports only rooms below it, and importing flaxsent leaves no trace."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flaxsent

PACKAGE = Path(flaxsent.__file__).parent
FLOORS = [
    {"types"},
    {"config", "records", "hosts"},
    {"tokenization", "packing", "encoders", "flax_auto", "postprocess", "checkpoint", "metrics"},
    {"exported"},
    {"classifier"},
    {"engine", "exporter", "training_data", "optimization"},
    {"train", "parity"},
    {"bench", "evaluate", "jobs", "ray", "training_run"},
    {"footprint"},
    {"scale"},
    {"cli"},
]
"""From the ground up, as design has it."""
TOP = {"__init__"}  # the table of contents: imports what it re-exports
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def rooms_imported(file: Path) -> set[str]:
    """The rooms that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("flaxsent.") and name.count(".")}
    return found & FLOOR_OF.keys()


def test_every_room_stands_on_a_floor():
    modules = {file.stem for file in PACKAGE.glob("*.py")} | {"encoders"}
    assert modules - TOP == FLOOR_OF.keys()


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_below_it(file):
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room in TOP:
        return
    for other in rooms_imported(file) - {room}:
        assert FLOOR_OF[other] < FLOOR_OF[room], f"{room} imports {other}"


def in_a_fresh_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_and_classify_bring_neither_torch_nor_transformers():
    assert in_a_fresh_process(
        "import sys, flaxsent, flaxsent.cli\n"
        "flaxsent.cli.main(['classify', 'so good'])\n"
        "print(sorted({'torch', 'transformers', 'flax'} & sys.modules.keys()))"
    ).endswith("[]\n")


def test_import_sets_nothing():
    assert (
        in_a_fresh_process(
            "import jax, jax.numpy, numpy, tokenizers, safetensors.numpy, jaxtyping\n"
            "import logging, os, warnings\n"
            "def state():\n"
            "    return dict(os.environ), list(warnings.filters), logging.root.level, list(logging.root.handlers), "
            "dict(jax.config.values)\n"
            "before = state()\n"
            "import flaxsent, flaxsent.cli, flaxsent.train\n"
            "print(before == state())"
        )
        == "True\n"
    )
