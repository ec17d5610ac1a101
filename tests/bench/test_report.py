"""The table, the JSON and the chart: ratios by rounds, and what is no claim."""

import json

import pytest

from flaxsent.base import FlaxsentError
from flaxsent.bench import report
from flaxsent.bench.report import Efficiency, Report, Result
from flaxsent.bench.rounds import Timing

TIMINGS = {
    "flaxsent-f32": Timing(None, {}, [2.0, 1.0, 4.0], 1.0),
    "flaxsent-bf16": Timing(None, {}, [1.0, 0.5, 1.0], 0.98),
    "a": Timing(16, {8: 3.0, 16: 2.0, 32: 4.0}, [6.0, 4.0, 8.0], 0.95),
    "b": Timing(8, {8: 0.1, 16: 0.2}, [0.1, 0.1, 0.1], 0.5),
}
EFFICIENCIES = {"flaxsent-f32": Efficiency(1250.0, 0.99, 1e11), "flaxsent-bf16": Efficiency(2500.0, 0.99, 2e11)}
RESULT = Result("like", 100, 2500, 3, TIMINGS, EFFICIENCIES)
REPORT = Report("m", "a machine", {"jax": "1"}, {"float32": 2e11, "bfloat16": 4e11}, {"c": "is not there"}, [RESULT])


def with_rounds(number, num_tokens=2500):
    timings = {name: timing._replace(seconds=(timing.seconds * 2)[:number]) for name, timing in TIMINGS.items()}
    return RESULT._replace(timings=timings, num_tokens=num_tokens)


def test_medians_and_ratios():
    assert report.texts_per_second(RESULT, "flaxsent-f32") == 50.0
    assert report.texts_per_second(RESULT, "a") == 100 / 6
    assert report.ratio(RESULT, "flaxsent-f32", "a") == 3.0, "the median of 3, 4 and 2: of the rounds, not of the times"
    assert report.ratio(RESULT, "flaxsent-bf16", "a") == 8.0


def test_the_table_says_what_is_no_peer_and_what_is_skipped():
    lines = report.table(REPORT).splitlines()
    record = {line.split()[0]: line.split() for line in lines if line}
    assert "like: 100 texts of 25.0 tokens on average (3 cut), median of 3 rounds" in lines
    assert record["a"] == ["a", "16.7", "67%", "16", "95.0%", "3.00", "×", "8.00", "×"]
    assert " ".join(record["b"]) == "b 1,000.0 0% 8* 50.0% no peer: computes something else"
    assert "flaxsent-bf16 is 8.00 × as fast as a, the fastest peer" in lines
    assert record["flaxsent-f32"] == ["flaxsent-f32", "1,250", "99.0%", "50.0%"]
    assert lines[-1] == "skipped c: is not there"


def test_a_batch_at_the_edge_of_what_was_tried_is_marked():
    note = "* the smallest or the largest batch that was tried"
    assert note in report.table(REPORT).splitlines()
    inside = {name: timing for name, timing in TIMINGS.items() if name != "b"}
    assert "*" not in report.table(REPORT._replace(results=[RESULT._replace(timings=inside)]))


@pytest.mark.parametrize(
    ("rounds", "num_tokens", "is_claim"), [(5, 5000, True), (6, 9000, True), (4, 5000, False), (5, 4999, False)]
)
def test_fewer_than_five_rounds_or_few_texts_are_no_claim(rounds, num_tokens, is_claim):
    result = with_rounds(rounds, num_tokens)
    told = REPORT._replace(results=[result])
    assert ("not enough for a claim, which takes 5 rounds and 5,000 tokens" in report.table(told)) != is_claim
    assert report.to_json(told)["results"][0]["is_claim"] is is_claim


def test_json_has_every_figure():
    told = json.loads(json.dumps(report.to_json(REPORT)))
    assert told["skipped"] == {"c": "is not there"}
    (result,) = told["results"]
    assert result["timings"]["a"] == {
        "batch_size": 16,
        "tried": {"8": 3.0, "16": 2.0, "32": 4.0},
        "seconds": [6.0, 4.0, 8.0],
        "agreement": 0.95,
        "is_at_edge": False,
        "texts_per_second": 100 / 6,
        "ratio": {"flaxsent-f32": 3.0, "flaxsent-bf16": 8.0},
    }
    assert result["efficiencies"]["flaxsent-f32"]["real_share"] == 0.99


def test_a_chart_is_an_image(tmp_path):
    report.plot(REPORT, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert [*tmp_path.iterdir()] == [tmp_path / "bench.png"]


def test_a_chart_that_cannot_be_is_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(FlaxsentError, match=r"bench\.bmp: expected a name that ends in one of .*\.png"):
        report.check_plot(tmp_path / "bench.bmp")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        report.check_plot(tmp_path / "none" / "bench.png")
