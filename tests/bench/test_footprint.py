"""The first answer and the memory of a job: how they are told, and (slow) that they are measured."""

import pytest

from flaxsent.bench import footprint
from flaxsent.bench.footprint import Footprint

FLAT = Footprint(
    first_answers={"flaxsent": [2.0, 4.0, 3.0], "pipeline": [10.0, 10.0, 10.0]},
    num_texts=[100 * tenth for tenth in range(1, 11)],
    memory=[5_000_000 + 1000 * tenth for tenth in range(1, 6)] + [8_000_000] * 5,
)


def test_the_slope_is_that_of_the_second_half():
    growing = FLAT._replace(memory=[1_000_000 + 7 * count for count in FLAT.num_texts])
    assert abs(FLAT.slope) < 1e-6
    assert growing.slope == pytest.approx(7)


def test_the_table_tells_ratios_round_by_round():
    lines = footprint.table(FLAT).splitlines()
    assert lines[1].split() == ["flaxsent", "3.00", "s"]
    assert lines[3].split()[-1] == "0.30"
    assert lines[-1].endswith("0.0 MB for a million texts")


def test_too_few_texts_are_refused():
    with pytest.raises(ValueError, match="at least 10 texts"):
        footprint.run(num_texts=9)


@pytest.mark.slow
def test_a_job_is_looked_at_ten_times():
    num_texts, memory = footprint._memory(3000)
    assert len(num_texts) == len(memory) <= 10
    assert num_texts[-1] == 3000
    assert memory == sorted(memory)
    assert memory[0] > 10_000_000
