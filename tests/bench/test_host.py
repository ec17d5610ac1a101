"""What a host does, and what a corpus takes: the arithmetic, and that it is measured."""

import pytest

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.bench.host import Corpus, Host, job, limits, measure, simulate
from flaxsent.packing import StepShape

HOST = Host(
    tokens_per_text=25.0,
    bytes_per_text=200.0,
    tokenized_per_second=1000.0,
    handled_per_second=50_000.0,
    memory=10**9,
)
CORPUS = Corpus(documents=1e9, hours=10.0, cores_per_host=8, num_groups=1000)


def test_the_least_of_the_limits_sets_the_speed():
    found = job(CORPUS, HOST, {"chips": 4000.0} | limits(HOST, 8), devices_per_host=4)
    assert found.texts_per_second == 4000
    # 1e9 / 4,000 texts/s are 69.4 hours of one host
    assert (found.num_hosts, found.num_devices) == (7, 28)
    assert found.hours == pytest.approx(69.444 / 7, rel=1e-4)
    assert found.input_bytes == 800_000
    assert found.network_bytes == 4 * 800_000
    assert found.memory == 10**9 + 7 * 2**26
    assert found.spread == simulate(7, 1000)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ({"tokenized_per_second": 100.0}, "tokenizing, all cores"),
        ({"handled_per_second": 800.0}, "reading, packing, writing, one core"),
    ],
)
def test_what_is_full_before_the_chips_sets_the_speed(host, name):
    found = limits(HOST._replace(**host), 8)
    assert found[name] == min(found.values()) == 800
    assert job(CORPUS, HOST, found | {"chips": 4000.0}, devices_per_host=4).num_hosts == 35


def test_the_simulation_is_that_of_the_rule():
    one, most = simulate(1, 1000), simulate(300, 1000)
    assert (one.equal, one.lognormal) == (1, 1)
    assert most.equal == 4 / (1000 / 300)
    assert most.lognormal >= most.largest


def test_a_host_is_measured(tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    shapes = (StepShape(8, 128, 16),)
    short, long = (measure(classifier, shapes, tokens_per_text=number, num_texts=200) for number in (8.0, 30.0))
    assert long.bytes_per_text > 2 * short.bytes_per_text
    assert short.tokenized_per_second > long.tokenized_per_second > 0
    assert long.handled_per_second > 0
    assert long.memory > 10**7
    for number in (2.0, 41.0):
        with pytest.raises(FlaxsentError, match=rf"tokens_per_text={number:g}: expected 8 to 40"):
            measure(classifier, shapes, tokens_per_text=number)
    with pytest.raises(FlaxsentError, match="expected 8 to 16"):
        measure(classifier, (StepShape(8, 16, 1),), tokens_per_text=20.0)
