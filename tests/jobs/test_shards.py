"""Several processes at one job: the rule by which they share it, real ones on this machine, and what is refused."""

import csv
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flaxsent.jobs import shards as hosts
from flaxsent.jobs import run as jobs
from flaxsent.cli import main
from flaxsent.jobs.shards import Place, assign, spread
from tests.conftest import texts_of_lengths

# The rule.


def test_the_rule_is_the_obvious_one():
    rng = np.random.default_rng(0)
    for _ in range(30):
        sizes = rng.integers(0, 9, rng.integers(0, 40)).tolist()
        loads = [0] * rng.integers(1, 9)
        expected = {}
        for index in sorted(range(len(sizes)), key=lambda index: (-max(sizes[index], 1), index)):
            expected[index] = loads.index(min(loads))
            loads[expected[index]] += max(sizes[index], 1)
        assert assign(sizes, len(loads)).tolist() == [expected[index] for index in range(len(sizes))]


@pytest.mark.parametrize("num_processes", [1, 7000, 9999])
def test_a_million_equal_row_groups_are_shared_evenly(num_processes):
    # One group more than the mean of 100 is 1.01.
    assert spread([1 << 20] * 10**6, num_processes) <= 1.02


def test_a_million_unequal_row_groups_are_shared_evenly():
    sizes = np.random.default_rng(0).lognormal(14, 1, 10**6).astype(int).tolist()
    assert max(sizes) / np.median(sizes) > 50
    # There are small ones enough to fill every gap that large ones leave.
    assert spread(sizes, 10_000) <= 1.001


def test_nobody_waits_for_more_than_the_largest_piece():
    assert spread([7, 1, 1], 2) == 7 / 4.5
    assert spread([5], 3) == 3


# What is refused at once.

SEVERAL = ["--coordinator", "localhost:1", "--num-processes", "3", "--process-id", "0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--coordinator", "localhost:1"], "go together; pass all three"),
        (["--num-processes", "2", "--process-id", "0"], "go together; pass all three"),
        (["--process-id", "0"], "go together; pass all three"),
        ([*SEVERAL, "--process-id", "3"], "--process-id 3: expected 0 to 2, for 3 processes"),
        ([*SEVERAL, "--process-id", "-1"], "--process-id -1: expected 0 to 2"),
        ([*SEVERAL, "--num-processes", "0"], "--num-processes 0: expected at least 1"),
        ([*SEVERAL, "--coordinator", "localhost"], "--coordinator localhost: expected HOST:PORT"),
        ([*SEVERAL, "--coordinator", "localhost:http"], "--coordinator localhost:http: expected HOST:PORT"),
        ([*SEVERAL, "--coordinator", ":99999"], "--coordinator :99999: expected HOST:PORT"),
        ([*SEVERAL, "--distributed"], "pass one or the other"),
        ([*SEVERAL, "--wait", "0"], "--wait 0: expected at least 1 second"),
        (["--wait", "9"], "--wait needs --distributed, or --coordinator"),
        ([*SEVERAL, "--output", "out.csv"], "--output out.csv is a file; several processes need a folder"),
        (["--distributed", "--output", "out.csv"], "--output out.csv is a file; several processes need a folder"),
        ([*SEVERAL, "--input", "-"], "--input - is one stream, which several processes cannot share"),
        ([*SEVERAL, "--input", "rows.csv"], "has a column 'row' already; pass --prefix TEXT"),
    ],
)
def test_what_cannot_be_a_place_or_be_shared_is_refused(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text("text\nso good\n")
    (tmp_path / "rows.csv").write_text("text,row\nso good,1\n")
    inputs = [] if "--input" in arguments else ["--input", "in.csv"]
    assert main(["classify", *inputs, "--output", "out", *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.startswith("flaxsent: error: ")
    assert told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "rows.csv"]


def test_the_work_of_another_job_is_refused_before_anyone_is_waited_for(tmp_path, monkeypatch, capsys, tiny_folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "_CHUNK_ROWS", 2)
    (tmp_path / "in.csv").write_text("text\nso good\nso bad\nso\n,\n")
    command = ["classify", "--input", "in.csv", "--output", "out", "--model", str(tiny_folder("bert"))]
    assert main(command) == 2  # in the second chunk
    parts = {path.name: path.read_bytes() for path in (tmp_path / "out" / ".flaxsent.parts").iterdir()}
    capsys.readouterr()
    for options, message in [
        ([], "holds the work of a job that did not end; pass --resume"),
        (["--resume", "--all-scores"], "whose all_scores were false, and not true"),
        (["--resume", "--model", str(tiny_folder("bert", initializer_range=0.5))], "whose model were"),
    ]:
        assert main([*command, *options, *SEVERAL]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / ".flaxsent.parts").iterdir()} == parts


# Real processes.

COMMAND = """
import os, signal, sys
from flaxsent.jobs import run as jobs
from flaxsent.cli import main

jobs._CHUNK_ROWS = 64  # so that few rows are many units
kill_at, replace, count = int(sys.argv.pop(1)), os.replace, [0]

def killing(source, target):
    count[0] += ".parts" in str(target)
    if count[0] == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = killing
sys.exit(main())
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The environment of processes that need not all compile the same."""
    return {"FLAXSENT_CACHE": str(tmp_path_factory.mktemp("compiled"))}


def start(environment, *arguments, kill_at=0):
    """`flaxsent classify` in a process that kills itself before its part of that number is there."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(kill_at), "classify", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def ended(processes):
    """The exit code and the standard error of each."""
    told = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], told


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def places(num_processes, wait=100):
    """The flags of each of several processes."""
    coordinator = f"localhost:{free_port()}"
    return [
        ["--coordinator", coordinator, "--num-processes", num_processes, "--process-id", index, "--wait", wait]
        for index in range(num_processes)
    ]


def content(folder):
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}


TEXTS = texts_of_lengths(np.random.default_rng(0).integers(1, 30, 700).tolist())


@pytest.fixture
def folder(tmp_path):
    """With the folder `in`: lines, CSV with a bad row, JSONL, and Parquet in row groups of which some are large."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("\n".join(TEXTS[:99]) + "\n")
    with open(tmp_path / "in" / "b.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([["n", "text"], *([n, f"{text}\n"] for n, text in enumerate(TEXTS[:90])), [0]])
    (tmp_path / "in" / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:60]))
    pq.write_table(pa.table({"n": range(700), "text": TEXTS}), tmp_path / "in" / "d.parquet", row_group_size=24)
    pq.write_table(pa.table({"text": TEXTS[300:]}), tmp_path / "in" / "e.parquet", row_group_size=200)
    return tmp_path


@pytest.mark.hosts
def test_three_processes_are_one_and_so_are_two_that_go_on_after_one_was_killed(folder, tiny_folder, compiled):
    options = ["--model", tiny_folder("bert"), "--input", folder / "in", "--bad-rows"]

    def arguments(name):
        return [*options, folder / f"{name}.jsonl", "--output", folder / name]

    assert ended([start(compiled, *arguments("one"))])[0] == [0]
    one = content(folder / "one")
    assert sorted(one) == ["a.txt", "b.csv", "c.jsonl", "d.parquet", "e.parquet"]
    table = pq.read_table(folder / "one" / "d.parquet")
    assert table["n"].to_pylist() == [*range(700)]
    assert table["row"].to_pylist() == [*range(1, 701)]
    with open(folder / "one" / "b.csv", newline="") as stream:
        assert [row["row"] for row in csv.DictReader(stream)] == [str(n) for n in range(2, 92)]
    assert [json.loads(line)["row"] for line in one["c.jsonl"].splitlines()] == [*range(1, 61)]

    codes, told = ended([start(compiled, *arguments("three"), *place) for place in places(3)])
    assert codes == [0, 0, 0], told
    assert content(folder / "three") == one
    assert (folder / "three.jsonl").read_bytes() == (folder / "one.jsonl").read_bytes()
    assert sum("this share is done; the last process to finish completes" in line for line in told) == 2

    killed = [start(compiled, *arguments("out"), *place, kill_at=4 * (place[5] == 1)) for place in places(3)]
    codes, told = ended(killed)
    assert codes == [0, -9, 0], told
    assert [line.count("this share is done") for line in told] == [1, 0, 1]
    work = {name for name in content(folder / "out" / ".flaxsent.parts") if not name.endswith(".tmp")}
    assert len(work) > 5
    for name, data in content(folder / "out").items():
        assert name.startswith(".") or data == one[name]
    assert not (folder / "out.jsonl").exists()

    codes, told = ended([start(compiled, *arguments("out"), "--resume", *place) for place in places(2)])
    assert codes == [0, 0], told
    assert content(folder / "out") == one
    assert (folder / "out.jsonl").read_bytes() == (folder / "one.jsonl").read_bytes()
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


@pytest.mark.hosts
def test_processes_that_do_not_meet_are_one_line_each_and_write_nothing(folder, tiny_folder, compiled):
    options = ["--input", folder / "in", "--output", folder / "out", "--bad-rows", folder / "bad.jsonl"]
    model, other = (["--model", tiny_folder("bert", **changes)] for changes in ({}, {"initializer_range": 0.5}))
    nobody, (first, second), (third, fourth) = places(2, wait=2), places(2, wait=20), places(2, wait=20)
    more = [*fourth[:3], 3, *fourth[4:]]
    processes = [
        start(compiled, *options, *model, *nobody[1]),
        start(compiled, *options, *model, *first),
        start(compiled, *options, *other, *second),
        start(compiled, *options, *model, *third),
        start(compiled, *options, *model, *more),
    ]
    codes, told = ended(processes)
    assert codes == [2] * 5, told
    assert [lines.count("\n") for lines in told] == [1] * 5
    assert f"no coordinator at {nobody[1][1]}, or all 2 processes did not come to it, within 2 s" in told[0]
    for lines, place in zip(told[1:], (first, second, third, more), strict=True):
        assert f"that met at {place[1]} were not all there for the same job within 20 s" in lines
    assert os.listdir(folder) == ["in"]


MEET = "from flaxsent import hosts; print(tuple(hosts.meet('job', wait=60)))"


@pytest.mark.hosts
def test_slurm_tells_the_places_and_nothing_else_does():
    slurm = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", MEET],
            env=os.environ | slurm | {"SLURM_PROCID": str(index), "SLURM_LOCALID": "0"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    assert [task.communicate(timeout=200)[0] for task in tasks] == ["(0, 2)\n", "(1, 2)\n"]
    with pytest.raises(ConnectionError, match="no TPU pod and no SLURM job that JAX knows; pass --coordinator"):
        hosts.meet("job")


@pytest.mark.hosts
def test_one_process_may_be_all_if_its_port_is_free():
    port = free_port()
    assert hosts.meet("job", coordinator=f"localhost:{port}", num_processes=1, process_id=0) == Place(0, 1)
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", port))
        taken.listen()
        with pytest.raises(ConnectionError, match=f"the port of the coordinator at localhost:{port} is taken"):
            hosts.meet("job", coordinator=f"localhost:{port}", num_processes=1, process_id=0)
