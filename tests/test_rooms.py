"""The house: each module imports only modules below it, without cycles, and importing flaxsent leaves no trace."""

import ast
import inspect
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import pytest

import flaxsent

PACKAGE = Path(flaxsent.__file__).parent
ROOMS = (
    "base",
    "files",
    "data",
    "tokenization",
    "packing",
    "models",
    "postprocessing",
    "losses",
    "classifier",
    "checkpoint",
    "flax",
    "transforms",
    "sharding",
    "placement",
    "results",
    "engine",
    "jobs",
    "evaluation",
    "training",
    "parity",
    "bench",
    "cli",
)
"""From the ground up: the order in which they are read."""
OUTSIDE = {"__init__", "__main__", "default_model"}
"""The table of contents, the command, and data."""


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(file): file for file in sorted(PACKAGE.rglob("*.py")) if file.parent.name != "default_model"}


def imported_by(module: str) -> set[str]:
    """The modules of flaxsent that a module imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = [name for alias in node.names for name in (node.module, f"{node.module}.{alias.name}")]
        else:
            continue
        found |= {name.removeprefix("flaxsent.") for name in names if name.startswith("flaxsent.")}
    return found & MODULES.keys() - {module}


def room_of(module: str) -> str:
    return module.split(".")[0]


def test_every_module_is_in_a_room():
    assert {room_of(module) for module in MODULES} - OUTSIDE == set(ROOMS)


@pytest.mark.parametrize("module", [module for module in MODULES if module not in OUTSIDE])
def test_a_module_imports_only_rooms_below_its_own(module):
    for other in imported_by(module):
        if room_of(other) != room_of(module):
            assert ROOMS.index(room_of(other)) < ROOMS.index(room_of(module)), f"{module} imports {other}"


def test_no_modules_import_each_other():
    graph = {module: imported_by(module) for module in MODULES if module not in OUTSIDE}
    assert set(TopologicalSorter(graph).static_order()) == graph.keys()


def test_no_module_has_grown_beyond_one_purpose():
    long = {module: len(file.read_text(encoding="utf-8").splitlines()) for module, file in MODULES.items()}
    assert {module: lines for module, lines in long.items() if lines > 420} == {}


def in_a_fresh_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_and_classify_bring_neither_torch_nor_transformers():
    assert in_a_fresh_process(
        "import sys, flaxsent, flaxsent.cli\n"
        "flaxsent.cli.main(['classify', 'so good'])\n"
        "print(sorted({'torch', 'transformers', 'flax'} & sys.modules.keys()))"
    ).endswith("[]\n")


def test_the_command_is_a_module_too():
    done = subprocess.run([sys.executable, "-m", "flaxsent", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"flaxsent {flaxsent.__version__}\n"


@pytest.mark.parametrize("name", sorted(flaxsent._MODULES))
def test_every_name_of_the_table_of_contents_is_there(name):
    assert getattr(flaxsent, name).__doc__
    assert name in dir(flaxsent)


def test_without_an_extra_all_that_is_listed_can_be_looked_up(monkeypatch):
    monkeypatch.setattr(flaxsent, "find_spec", lambda name: None)
    assert "fit" not in dir(flaxsent)
    assert dict(inspect.getmembers(flaxsent)).keys() > {"classify", "load"}


def test_the_three_functions_can_be_imported_and_are_those_of_the_record(embedded):
    from flaxsent import forward, postprocess, tokenize

    texts = ["so good", ("so", "bad")]
    tokens = tokenize(texts, tokenizer=embedded.tokenizer)
    logits = forward(embedded.params, tokens, config=embedded.config)
    expected = embedded.predict(embedded.params, embedded.tokenize(texts))
    # Probabilities, with jit and without.
    np.testing.assert_allclose(postprocess(logits, config=embedded.config), expected, atol=1e-6)


def test_import_sets_nothing():
    assert (
        in_a_fresh_process(
            "import jax, jax.extend.core, jax.numpy, numpy, tokenizers, safetensors.numpy, jaxtyping\n"
            "import logging, os, warnings\n"
            "def state():\n"
            "    return dict(os.environ), list(warnings.filters), logging.root.level, list(logging.root.handlers), "
            "dict(jax.config.values)\n"
            "before = state()\n"
            "import flaxsent, flaxsent.cli, flaxsent.training.trainer\n"
            "print(before == state())"
        )
        == "True\n"
    )
