"""The notebooks run from top to bottom, offline, and give the outputs that they are committed with, up to figures.

`python -m tests.test_notebook` executes them and writes their outputs into the files.
"""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.conftest import HAS_FLAX, HAS_TORCH

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
HANGUL = re.compile("[가-힣]")
FIGURE = re.compile(r" *[-+]?(?<![\w.])(?:\d+\.\d*(?:e[-+]?\d+)?|\d+e[-+]?\d+)(?!\w) *")
"""A decimal number and the spaces around it, with which columns are aligned; whole numbers are shapes, ids, counts."""
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/(?:[\w.-]+/)+[\w.-]+|\b[A-Z]:\\")
MOST_BYTES = 400_000

PRINTS_ANOTHER_LINE = {
    ("01_behind_the_pipeline", "load"): not HAS_FLAX,  # the name of the backend
    ("02_train_your_own", "torch"): not HAS_TORCH,
}
"""Cells whose output is that of a package, and whether it is missing here."""

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def cells_of(notebook: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def execute(notebook: dict[str, Any], folder: Path, **environment: str) -> dict[str, Any]:
    """A copy with the outputs of a run in `folder`; raises at the first cell that does."""
    import nbclient
    import nbformat

    node = nbformat.reads(json.dumps(notebook), as_version=4)
    nbformat.validate(node)
    always = {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "IPYTHONDIR": str(folder / "ipython"),  # no start-up files of the user's
        "HF_HUB_OFFLINE": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    client = nbclient.NotebookClient(
        node, timeout=600, record_timing=False, resources={"metadata": {"path": str(folder)}}
    )
    with mock.patch.dict(os.environ, always | environment):
        return json.loads(nbformat.writes(client.execute()))


def printed(cell: dict[str, Any]) -> str:
    """All that the cell wrote to stdout, however many messages it came in."""
    streams = [output for output in cell["outputs"] if output["output_type"] == "stream"]
    return "".join("".join(output["text"]) for output in streams if output["name"] == "stdout")


def shown(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """Results and pictures, by MIME type."""
    return [output["data"] for output in cell["outputs"] if "data" in output]


def without_figures(text: str) -> list[str]:
    return [FIGURE.sub("#", line) for line in text.splitlines()]


def outline(cell: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in every run; warnings on stderr are those of the versions that are installed."""
    return {
        "printed": without_figures(printed(cell)),
        "shown": [without_figures("".join(data.get("text/plain", ""))) for data in shown(cell)],
        "pictures": ["image/png" in data for data in shown(cell)],
    }


@pytest.mark.parametrize(
    ("line", "agrees"),
    [
        ("epoch 1 [ 0.51 -1.25] of (2, 15): loss 0.693 \nend", True),
        ("epoch 1 [-0.5   1.  ] of (2, 15): loss 12.5\nend", True),
        ("epoch 1 [-5e-01 1.2e-3] of (2, 15): loss 7.\nend", True),
        ("epoch 1 [ 0.51 -1.25] of (2, 15): score 0.693 \nend", False),
        ("epoch 2 [ 0.51 -1.25] of (2, 15): loss 0.693 \nend", False),
        ("epoch 1 [ 0.51 -1.25] of (2, 16): loss 0.693 \nend", False),
        ("epoch 1 [ 0.51] of (2, 15): loss 0.693 \nend", False),
        ("epoch 1 [ 0.51 -1.25] of (2, 15): loss nan \nend", False),
        ("epoch 1 [ 0.51 -1.25] of (2, 15): loss 0.693 ", False),
        ("epoch 1 [ 0.51 -1.25] of (2, 15): loss 0.693 \n\nend", False),
    ],
)
def test_only_figures_may_differ(line, agrees):
    def cell(text):
        return {"outputs": [{"output_type": "stream", "name": "stdout", "text": [text]}]}

    committed = cell("epoch 1 [ 0.25 -0.75] of (2, 15): loss 0.125 \nend")
    assert (outline(cell(line)) == outline(committed)) is agrees


def test_a_picture_must_be_where_one_is_committed():
    def cell(**data):
        return {"outputs": [{"output_type": "display_data", "data": {"text/plain": "<Figure>", **data}}]}

    picture = cell(**{"image/png": "iVBORw0KGgo="})
    assert outline(cell(**{"image/png": "another"})) == outline(picture)
    assert outline(cell()) != outline(picture)
    assert outline({"outputs": []}) != outline(picture)


def test_there_are_notebooks():
    assert NOTEBOOKS
    by_id = {(path.stem, cell["id"]) for path in NOTEBOOKS for cell in cells_of(read(path), "code")}
    assert by_id >= PRINTS_ANOTHER_LINE.keys()


@pytest.mark.slow
@pytest.mark.compiled_as_for_users  # they compute for longer than they compile
@each_notebook
def test_prints_what_it_is_committed_with(path, tmp_path):
    for package in ("nbclient", "nbformat", "ipykernel", "matplotlib"):
        pytest.importorskip(package)
    committed = read(path)
    executed = execute(committed, tmp_path, FLAXSENT_NOTEBOOK_TEXTS="60")  # trains on so many
    for before, after in zip(cells_of(committed, "code"), cells_of(executed, "code"), strict=True):
        assert [output for output in after["outputs"] if output["output_type"] == "error"] == []
        if not PRINTS_ANOTHER_LINE.get((path.stem, before["id"])):
            assert outline(after) == outline(before), before["id"]


@each_notebook
def test_committed_with_outputs(path):
    cells = cells_of(read(path), "code")
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    for cell in cells:
        assert printed(cell) or shown(cell), cell["id"]
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "display_data", "execute_result")
            assert output.get("name") != "stderr", output
    assert path.stat().st_size < MOST_BYTES


@each_notebook
def test_committed_without_traces_of_the_machine(path):
    notebook = read(path)
    assert notebook["metadata"].keys() == {"kernelspec", "language_info"}
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        for output in cell.get("outputs", []):
            texts = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k != "image/png")]
            assert not ABSOLUTE_PATH.search("".join(map("".join, texts))), cell["id"]


@pytest.mark.parametrize(
    "stem", ["01_behind_the_pipeline", "02_train_your_own", "03_why_this_label", "04_functions_of_functions"]
)
def test_committed_with_a_picture(stem):
    (path,) = [path for path in NOTEBOOKS if path.stem == stem]
    assert [cell["id"] for cell in cells_of(read(path), "code") if any("image/png" in data for data in shown(cell))]


@each_notebook
def test_every_heading_has_korean_under_it(path):
    markdown = ["".join(cell["source"]) for cell in cells_of(read(path), "markdown")]
    headings = [text for text in markdown if re.search("^#", text, re.MULTILINE)]
    assert headings
    assert [text for text in headings if not HANGUL.search(text)] == []


def write_outputs(path: Path) -> None:
    """Executes a notebook on all its texts and writes it with its outputs, and with nothing of this machine."""
    committed = read(path)
    with tempfile.TemporaryDirectory() as folder:
        executed = execute(committed, Path(folder))
    for before, after in zip(cells_of(committed, "code"), cells_of(executed, "code"), strict=True):
        text = printed(after)
        streams = [{"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}] if text else []
        before["execution_count"] = after["execution_count"]
        before["outputs"] = streams + [output for output in after["outputs"] if "data" in output]
    path.write_text(json.dumps(committed, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for one in NOTEBOOKS:
        write_outputs(one)
