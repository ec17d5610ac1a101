"""The README is true: its code runs, its commands are what the command line takes, its tables say what the code has."""

import re
import shlex
from pathlib import Path

import pytest

from flaxsent import cli
from flaxsent import models as encoders
from flaxsent.models import flax_auto
from tests.conftest import HAS_FLAX
from tests.test_rooms import ROOMS

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_two_commands_come_first():
    commands = re.findall(r"^\d\. `(.*)`$", README, re.MULTILINE)
    assert commands == [
        'pip install -e ".[flax-auto]" && flaxsent classify '
        '"I\'ve been waiting for a HuggingFace course my whole life" "I hate this so much!"',
        'pip install -e ".[flax-auto,test]" && pytest',
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("symbolic_sizes")
def test_python_runs(tmp_path, monkeypatch):
    """All blocks in their order, as one program."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("python"):
        if HAS_FLAX or "flaxsent.flax" not in block:
            exec(block, names)
    assert names["probs"].shape == (2, 2)
    assert names["hidden"].shape == (2, 15, 384)
    assert (tmp_path / "my-model" / "model.safetensors").is_file()


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines()])
def test_commands_are_what_the_command_line_takes(line):
    program, *arguments = shlex.split(line.split("<")[0], comments=True)
    assert program == "flaxsent"
    cli._parser(arguments).parse_args(arguments)


def test_family_table_is_what_the_code_has():
    rows = re.findall(r"^\| ([\w, -]+) \| (yes|no) \| (yes|no) \|$", README, re.MULTILINE)
    told = {family: (native, flax) for names, native, flax in rows for family in names.split(", ")}
    native = [name for name, family in encoders.FAMILIES.items() if family.is_native]
    has = {
        family: tuple("yes" if family in families else "no" for families in (native, flax_auto.FAMILIES))
        for family in encoders.FAMILIES
    }
    assert told == has


def test_rooms_are_listed_in_the_order_in_which_they_are_read():
    assert re.findall(r"^\| `(\w+)(?:\.py|/)` \|", README, re.MULTILINE) == [*ROOMS]
