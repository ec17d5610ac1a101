"""The notebooks run from top to bottom, offline; they are committed without outputs, with Korean under each heading."""

import json
import re
import shutil
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
HANGUL = re.compile("[가-힣]")
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells_of(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`run(path)`: the executed copy of a notebook, made once."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    made = {}

    def execute(path: Path):
        if path not in made:
            folder = tmp_path_factory.mktemp(path.stem)
            notebook = nbformat.read(shutil.copy(path, folder), as_version=4)
            nbformat.validate(notebook)
            client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
            with pytest.MonkeyPatch.context() as environment:
                environment.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
                environment.setenv("IPYTHONDIR", str(folder / "ipython"))  # no start-up files of the user's
                environment.setenv("HF_HUB_OFFLINE", "1")
                environment.setenv("FLAXSENT_NOTEBOOK_TEXTS", "60")  # trains on so many
                made[path] = client.execute()
        return made[path]

    return execute


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize(
    "path",
    # What trains spends a minute compiling.
    [pytest.param(path, marks=pytest.mark.slow if path.stem.startswith("02_") else ()) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_notebook_runs(run, path):
    outputs = [output for cell in run(path).cells for output in cell.get("outputs", [])]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]


def test_01_ends_in_a_figure(run):
    (path,) = [path for path in NOTEBOOKS if path.stem.startswith("01_")]
    *_, last = [cell for cell in run(path).cells if cell.cell_type == "code"]
    assert [output for output in last.outputs if "image/png" in output.get("data", {})]


@each_notebook
def test_committed_without_outputs(path):
    for cell in cells_of(path, "code"):
        assert not cell["outputs"]
        assert cell["execution_count"] is None


@each_notebook
def test_every_heading_has_korean_under_it(path):
    headings = [text for cell in cells_of(path, "markdown") if re.search("^#", text := "".join(cell["source"]), re.M)]
    assert headings
    assert [text for text in headings if not HANGUL.search(text)] == []
