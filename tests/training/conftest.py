"""What the tests of training share."""

import jax
import pytest

from tests.training.runs import ROWS, write_tsv


@pytest.fixture
def files(tmp_path):
    """A training file and a dev file."""
    return [write_tsv(tmp_path / name, rows) for name, rows in (("train.tsv", ROWS), ("dev.tsv", ROWS[:12]))]


@pytest.fixture
def compiles_fast():
    """Tests of small models spend their time compiling; the slow tests of whole runs compile as users do."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
