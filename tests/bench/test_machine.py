"""What the machine is said to do: counted by hand, and memory that is seen to come and go."""

import sys

import pytest

import flaxsent
from flaxsent.bench import machine
from flaxsent.parity.random_checkpoints import random_checkpoint

MEGABYTES_100 = 100 * 10**6


def test_operations_are_those_of_the_matrices(small_model):
    """By hand: 5 tokens, hidden 32, feed-forward 48, the first layer in full, the last for one token."""
    config = flaxsent.load(small_model).config
    first = 5 * (4 * 32 * 32 + 2 * 32 * 48) + 2 * 5 * 5 * 32
    last = 5 * 2 * 32 * 32 + 2 * 32 * 32 + 2 * 32 * 48 + 2 * 5 * 32
    assert machine.operations([5, 5], config) == 2 * 2 * (first + last)


def test_operations_of_modernbert_are_those_of_its_windows(tmp_path):
    """By hand: 40 tokens, hidden 32, feed-forward 48, gated; the first and the last layer see all, the others 9."""
    changes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "local_attention": 8}
    random_checkpoint(tmp_path, "modernbert", num_attention_heads=2, **changes)
    config = flaxsent.load(tmp_path, backend="native").config
    matrices = 4 * 32 * 32 + 3 * 32 * 48
    first, local = 40 * (matrices + 2 * 40 * 32), 40 * (matrices + 2 * 9 * 32)
    last = 40 * 2 * 32 * 32 + 2 * 32 * 32 + 3 * 32 * 48 + 2 * 40 * 32
    assert machine.operations([40], config) == 2 * (first + 2 * local + last)


def test_operations_of_other_architectures_are_not_told(tiny_folder):
    assert machine.operations([5], flaxsent.load(tiny_folder("deberta-v2")).config) is None


def test_resident_memory_is_what_is_held_now():
    """Unlike the peak, it falls again; 20 MB for what else the test process does meanwhile."""
    before = machine.resident_memory()
    held = b"x" * MEGABYTES_100
    between = machine.resident_memory()
    assert len(held) == MEGABYTES_100
    del held
    assert between - before == pytest.approx(MEGABYTES_100, abs=20 * 10**6)
    assert machine.resident_memory() - before == pytest.approx(0, abs=20 * 10**6)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="compares Linux's file with ps")
def test_ps_tells_the_same_as_proc(monkeypatch):
    """ps is what macOS has; a few megabytes come and go between the two."""
    by_file = machine.resident_memory()
    monkeypatch.setattr(machine.Path, "exists", lambda path: False)
    assert machine.resident_memory() == pytest.approx(by_file, abs=20 * 10**6)


def test_a_matrix_product_has_a_peak(monkeypatch):
    monkeypatch.setattr(machine, "_SIZES", (64,))
    assert machine.matrix_peak("float32") > 10**6
