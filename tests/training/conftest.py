"""What the tests of training share."""

import pytest

from tests.training.runs import ROWS, write_tsv


@pytest.fixture
def files(tmp_path):
    """A training file and a dev file."""
    return [write_tsv(tmp_path / name, rows) for name, rows in (("train.tsv", ROWS), ("dev.tsv", ROWS[:12]))]
