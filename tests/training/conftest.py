"""A training file and a dev file for the tests of runs."""

import pytest

from tests.training.runs import ROWS, write_tsv


@pytest.fixture
def files(tmp_path):
    return [write_tsv(tmp_path / name, rows) for name, rows in (("train.tsv", ROWS), ("dev.tsv", ROWS[:12]))]
