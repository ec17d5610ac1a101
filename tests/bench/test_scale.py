"""What a large job takes: the arithmetic, and that the command prints it."""

import json

import numpy as np
import pytest

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.bench import scale
from flaxsent.bench.scale import Host, Scale, answer, measure, simulate, table
from flaxsent.cli import main

ASKED = Scale(1000.0, 30_000.0, documents=1e9, hours=10.0, devices_per_host=4, cores_per_host=8)
HOST = Host(bytes_per_text=200.0, tokenized_per_second=1000.0, handled_per_second=50_000.0, memory=10**9)


def test_the_devices_are_full_first():
    job = answer(ASKED, HOST)
    assert job.texts_per_second == 4000
    # 1e9 / 4,000 texts/s are 69.4 hours of one host
    assert (job.num_hosts, job.num_devices) == (7, 28)
    assert job.hours == pytest.approx(69.444 / 7, rel=1e-4)
    assert job.input_bytes == 800_000
    assert job.network_bytes == 4 * 800_000
    assert job.memory == 10**9 + 7 * 2**26


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ({"tokenized_per_second": 100.0}, "tokenizing, all cores"),
        ({"handled_per_second": 800.0}, "reading, packing, writing, one core"),
    ],
)
def test_what_is_full_before_the_devices_sets_the_speed(host, name):
    job = answer(ASKED, HOST._replace(**host))
    assert job.texts_per_second == job.limits[name] == 800
    assert job.num_hosts == 35


def test_matrix_units_that_are_half_used_would_do_twice_as_much():
    job = answer(ASKED._replace(matrix_use=0.5), HOST)
    assert job.limits["matrix units, fully used"] == 8000
    assert job.texts_per_second == 4000


def test_the_simulation_is_that_of_the_rule():
    (one, most) = simulate(num_groups=1000, processes=(1, 300))
    assert (one.equal, one.lognormal) == (1, 1)
    assert most.equal == 4 / (1000 / 300)
    assert most.lognormal >= most.largest


def test_a_host_is_measured(tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    short, long = (measure(classifier, tokens_per_text=number, num_texts=200) for number in (8.0, 30.0))
    assert long.bytes_per_text > 2 * short.bytes_per_text
    assert short.tokenized_per_second > long.tokenized_per_second > 0
    assert long.handled_per_second > 0
    assert long.memory > 10**7
    for number in (2.0, 41.0):
        with pytest.raises(FlaxsentError, match=f"{number} tokens a text; expected 8 to 40"):
            measure(classifier, tokens_per_text=number)


def test_the_command_prints_it(capsys, monkeypatch):
    spreads = simulate(num_groups=100, processes=(1, 10))
    monkeypatch.setattr(scale, "simulate", lambda: spreads)
    monkeypatch.setattr(scale, "measure", lambda classifier, *, tokens_per_text: HOST)
    options = ["scale", "--texts-per-second", "1000", "--tokens-per-second", "3e4", "--hours", "10"]
    host = ["--devices-per-host", "4", "--cores-per-host", "8"]
    assert main([*options, *host]) == 0
    assert capsys.readouterr().out == table(ASKED, HOST, answer(ASKED, HOST), spreads) + "\n"
    assert main([*options, *host, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["answer"]["num_devices"] == 28
    assert np.isclose(printed["spread"][1]["equal"], 1)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "many"])
def test_figures_that_are_none_are_refused(capsys, value):
    with pytest.raises(SystemExit) as ended:
        main(["scale", "--texts-per-second", value, "--tokens-per-second", "1"])
    assert ended.value.code == 2
    assert "--texts-per-second" in capsys.readouterr().err


def test_more_use_than_there_is_is_refused(capsys):
    options = ["scale", "--texts-per-second", "1", "--tokens-per-second", "9", "--matrix-use"]
    assert main([*options, "40"]) == 2
    assert "--matrix-use 40: expected a share, 0 to 1" in capsys.readouterr().err
