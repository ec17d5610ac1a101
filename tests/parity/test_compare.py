"""`flaxsent parity`: what it compares, what passes, and that a wrong logit is seen."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from flaxsent import models
from flaxsent.cli import main
from flaxsent.models import flax_auto
from flaxsent.parity import compare
from flaxsent.parity.compare import TOLERANCES, Cell
from tests.conftest import HAS_FLAX_AUTO, NATIVE


@pytest.fixture
def fewer(monkeypatch):
    """Compiled and in float32 only: a tenth of the time."""
    monkeypatch.setattr(compare, "_MODES", {mode: compare._MODES[mode] for mode in ("jit", "packed")})
    monkeypatch.setattr(compare, "TOLERANCES", {"float32": TOLERANCES["float32"]})


GOOD = Cell("m", "native", "float32", "jit", "single", 3.0, TOLERANCES["float32"], True)


def test_a_cell_passes_within_the_tolerance_and_with_the_same_labels():
    assert GOOD.passes
    assert not GOOD._replace(difference=1.1 * TOLERANCES["float32"]).passes
    assert not GOOD._replace(same_labels=False).passes
    assert GOOD._replace(dtype="bfloat16", difference=0.04).passes


def test_labels_must_agree_where_rounding_cannot_swap_them():
    theirs = np.array([[1.0, 1.05, 0.0], [2.0, 1.0, 0.0]], np.float32)
    close, clear = (theirs[:, [1, 0, 2]][index] for index in (0, 1))
    ours = np.stack([close, theirs[1]])
    assert compare.has_labels_of(ours, theirs, tolerance=0.05)
    assert not compare.has_labels_of(ours, theirs, tolerance=0.01)
    assert not compare.has_labels_of(np.stack([theirs[0], clear]), theirs, tolerance=0.05)
    assert compare.has_labels_of(ours[:, :1], theirs[:, :1], tolerance=0.05), "one number has no rival"


def test_the_table_marks_what_fails_and_leaves_out_what_does_not_exist():
    flax = GOOD._replace(backend="flax", difference=1e-3)
    lines = compare.table([GOOD, GOOD._replace(mode="packed", size=4.0), flax]).splitlines()
    assert " ".join(lines[1].split()) == "m native float32 4.0 – – 2.0e-05 ok – 2.0e-05 ok –"
    assert " ".join(lines[2].split()) == "m flax float32 3.0 – – 1.0e-03 FAIL – – –"
    assert lines[3].startswith("2 of 3 comparisons pass: float32 within 2e-05, bfloat16 within 5e-02")
    assert "(bfloat16 within 8e-02 for transformers' Flax classes)" in lines[3]


def test_every_family_is_compared_where_flax_is_installed(monkeypatch):
    assert {*NATIVE} <= {*compare.families()}
    assert {*compare.families()} | {*compare.left_out()} == {*models.FAMILIES}
    assert (compare.left_out() == []) == HAS_FLAX_AUTO
    monkeypatch.setattr(flax_auto, "is_installed", lambda: False)
    assert compare.left_out() == ["big_bird", "roberta-prelayernorm", "roformer"]


@pytest.mark.slow
@pytest.mark.torch
def test_a_family_passes_on_both_backends_and_packed_rows_are_native(tiny_folder):
    cells = [*compare.check(tiny_folder("bert"), name="tiny")]
    backends = ["flax", "native"] if HAS_FLAX_AUTO else ["native"]
    assert [*dict.fromkeys(cell.backend for cell in cells)] == backends
    assert {cell.backend for cell in cells if cell.mode == "packed"} == {"native"}
    of_each = {"native": 3 * 3, "flax": 2 * 2}  # dtypes, of which int8 is native, and modes
    assert len(cells) == 2 * sum(of_each[backend] for backend in backends), "kinds of texts"
    assert [cell for cell in cells if not cell.passes] == []
    assert 1 < max(cell.size for cell in cells) < 20, "logits of the size of trained models'"


@pytest.mark.torch
def test_one_wrong_weight_fails(tiny_folder, capsys, monkeypatch, fewer):
    """PyTorch reads the folder; flaxsent gets a bias that is off by a thousandth."""
    folder = tiny_folder("mpnet")
    load = compare.load

    def load_wrong(*arguments, **options):
        classifier = load(*arguments, **options)
        last = models.last_layer(classifier.params)
        wrong = models.with_last_layer(classifier.params, {**last, "bias": last["bias"] + 1e-3})
        return dataclasses.replace(classifier, params=wrong)

    monkeypatch.setattr(compare, "load", load_wrong)
    assert main(["parity", str(folder), "--json"]) == 1
    cells = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not any(cell["passes"] for cell in cells)


@pytest.mark.torch
def test_the_command_prints_a_table_for_a_folder(tiny_folder, capsys, fewer):
    folder = str(tiny_folder("mpnet"))
    assert main(["parity", folder]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].startswith(folder)
    assert "4 of 4 comparisons pass" in out


def test_without_pytorch_one_line_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["parity"]) == 2
    assert capsys.readouterr().err == "flaxsent: error: parity needs torch, which is not installed: pip install torch\n"
