"""Several processes at one job: the rule by which they share it, which of them a process is, and real ones here."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flaxsent.cli import main
from flaxsent.jobs import chunks, parts
from flaxsent.jobs import plan as plans
from flaxsent.jobs.plan import JobOptions, plan
from flaxsent.jobs.run import run
from flaxsent.jobs.shards import Shard, assign, parse, spread
from tests.conftest import texts_of_lengths
from tests.jobs.conftest import TEXTS, do, names

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


# Which of them a process is.


def test_a_shard_is_told_from_0():
    assert [parse(value) for value in ("0/1", "0/4", "3/4", "09/10")] == [
        Shard(0, 1),
        Shard(0, 4),
        Shard(3, 4),
        Shard(9, 10),
    ]


@pytest.mark.parametrize("value", ["", "4", "4/4", "-1/4", "0/0", "1/", "a/b", "0/4/1", "0.5/2", "Auto", "٣/٤"])
def test_what_is_no_shard_is_refused(value):
    with pytest.raises(ValueError, match=r"expected I/N with I from 0 to N-1, such as 0/4 and 3/4, or auto.$"):
        parse(value)


SLURM = {"SLURM_PROCID": "1", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        (SLURM, Shard(1, 8)),
        (SLURM | {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}, Shard(2, 3)),
        (SLURM | {"OMPI_COMM_WORLD_RANK": "2"}, Shard(1, 8)),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, Shard(0, 2)),
        ({"TPU_WORKER_ID": "3", "TPU_WORKER_HOSTNAMES": "a,b,c,d"}, Shard(3, 4)),
        ({"CLOUD_TPU_TASK_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}, Shard(0, 1)),
        (
            {
                "TPU_WORKER_ID": "1",
                "TPU_WORKER_HOSTNAMES": "a,b",
                "MEGASCALE_SLICE_ID": "2",
                "MEGASCALE_NUM_SLICES": "3",
            },
            Shard(5, 6),
        ),
    ],
)
def test_launchers_tell_the_shard(environment, shard):
    assert parse("auto", environment) == shard


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "no variables of Open MPI, MPICH, SLURM or a TPU pod are set; pass --shard I/N"),
        ({"SLURM_PROCID": "1"}, "no variables of"),
        ({"SLURM_PROCID": "8", "SLURM_NTASKS": "8"}, "SLURM_PROCID and SLURM_NTASKS say process '8' of '8'"),
        ({"PMI_RANK": "x", "PMI_SIZE": "8"}, "PMI_RANK and PMI_SIZE say process 'x' of '8'"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "CLOUD_TPU_TASK_ID and TPU_WORKER_HOSTNAMES say process '' of '2'"),
    ],
)
def test_what_launchers_do_not_tell_is_refused(environment, message):
    with pytest.raises(ValueError, match=f"^--shard auto: {message}"):
        parse("auto", environment)


# Shares.


@pytest.fixture
def many(folder, monkeypatch):
    """A folder of inputs, with bad rows, that is many units."""
    for module in (plans, chunks):
        monkeypatch.setattr(module, "CHUNK_ROWS", 8)
    (folder / "in").mkdir()
    (folder / "in.csv").rename(folder / "in" / "a.csv")
    (folder / "in" / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS) + "{}\n")
    pq.write_table(pa.table({"text": [*TEXTS, None]}), folder / "in" / "c.parquet", row_group_size=5)
    return folder


def take(engine, folder, name, index, count, **options):
    """One process's share."""
    job_options = JobOptions(bad_rows=str(folder / f"{name}.jsonl"), shard=Shard(index, count), **options)
    return run(plan([str(folder / "in")], str(folder / name), job_options), engine)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_the_last_of_several_processes_completes_the_folder(many, engine, monkeypatch, order):
    """None is told to resume: to find the job begun is no error."""
    assert do(engine, many / "in", many / "one", bad_rows=str(many / "one.jsonl")).num_bad_rows == 2
    scored = []
    monkeypatch.setattr(engine, "_on_window", lambda stats: scored.append(stats.num_texts))
    for index in order:
        assert not (many / "out.jsonl").exists()
        outcome = take(engine, many, "out", index, 3)
        assert outcome.is_complete == (index == order[2])
    assert outcome.num_bad_rows == 2
    assert sum(scored) == 3 * len(TEXTS), "nothing is done twice"
    for name in names(many / "one"):
        assert (many / "out" / name).read_bytes() == (many / "one" / name).read_bytes()
    assert (many / "out.jsonl").read_bytes() == (many / "one.jsonl").read_bytes()
    assert names(many / "out") == names(many / "one") == ["a.csv", "b.jsonl", "c.parquet"]
    assert pq.read_table(many / "out" / "c.parquet")["row"].to_pylist() == [*range(1, len(TEXTS) + 1)]
    assert take(engine, many, "out", 0, 3).was_finished


@pytest.mark.slow
def test_the_work_for_a_file_grows_as_its_units_do(tmp_path, engine, monkeypatch):
    for module in (plans, chunks):
        monkeypatch.setattr(module, "CHUNK_ROWS", 1)
    pq.write_table(pa.table({"text": ["so good"] * 200}), tmp_path / "in.parquet", row_group_size=1)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow, and beside the point
    looked, piece = [], parts.Piece
    monkeypatch.setattr(parts, "Piece", lambda *where: looked.append(where) or piece(*where))
    do(engine, tmp_path / "in.parquet", tmp_path / "out.jsonl")
    assert 200 < len(looked) < 2000, "looks for all units after each would be 40,000"


def test_a_process_without_a_share_leaves_nothing_behind(many, engine):
    assert not take(engine, many, "out", 99, 100).is_complete
    assert names(many) == ["in"]


def test_another_number_of_processes_goes_on(many, engine, monkeypatch):
    take(engine, many, "out", 0, 3)
    scored = []
    monkeypatch.setattr(engine, "_on_window", lambda stats: scored.append(stats.num_texts))
    assert not take(engine, many, "out", 0, 2).is_complete
    assert take(engine, many, "out", 1, 2).is_complete
    assert 0 < sum(scored) < 3 * len(TEXTS), "what is done is not done again"


def test_a_process_with_other_options_is_refused_and_changes_nothing(many, engine):
    take(engine, many, "out", 0, 2)
    parts = {path.name: path.read_bytes() for path in (many / "out" / ".flaxsent.parts").iterdir()}
    with pytest.raises(ValueError, match="holds the work of another job: its all scores: false then, true now"):
        take(engine, many, "out", 1, 2, all_scores=True)
    assert {path.name: path.read_bytes() for path in (many / "out" / ".flaxsent.parts").iterdir()} == parts
    assert take(engine, many, "out", 1, 2).is_complete


# Real processes.

COMMAND = """
import os, signal, sys
from flaxsent.jobs import chunks, parts, plan
from flaxsent.cli import main

chunks.CHUNK_ROWS = plan.CHUNK_ROWS = 64  # so that few rows are many units
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


def shards(count):
    """The flags of each of several processes."""
    return [["--shard", f"{index}/{count}"] for index in range(count)]


def content(folder):
    return {name: (folder / name).read_bytes() if (folder / name).is_file() else None for name in names(folder)}


MANY_TEXTS = texts_of_lengths(np.random.default_rng(0).integers(1, 30, 700).tolist())


@pytest.fixture
def large_folder(tmp_path):
    """With the folder `in`: lines, CSV with a bad row, JSONL, and Parquet in row groups of which some are large."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("\n".join(MANY_TEXTS[:99]) + "\n")
    with open(tmp_path / "in" / "b.csv", "w", newline="") as stream:
        csv.writer(stream).writerows(
            [["n", "text"], *([n, f"{text}\n"] for n, text in enumerate(MANY_TEXTS[:90])), [0]]
        )
    (tmp_path / "in" / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in MANY_TEXTS[:60]))
    pq.write_table(pa.table({"n": range(700), "text": MANY_TEXTS}), tmp_path / "in" / "d.parquet", row_group_size=24)
    pq.write_table(pa.table({"text": MANY_TEXTS[300:]}), tmp_path / "in" / "e.parquet", row_group_size=200)
    return tmp_path


@pytest.mark.hosts
def test_three_processes_are_one_and_so_are_two_that_go_on_after_one_was_killed(large_folder, tiny_folder, compiled):
    folder = large_folder
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

    codes, told = ended([start(compiled, *arguments("three"), *shard) for shard in shards(3)])
    assert codes == [0, 0, 0], told
    assert content(folder / "three") == one
    assert (folder / "three.jsonl").read_bytes() == (folder / "one.jsonl").read_bytes()
    assert sum("this share is done; the last process to finish completes" in line for line in told) == 2

    killed = [start(compiled, *arguments("out"), *shard, kill_at=4 * (shard[1] == "1/3")) for shard in shards(3)]
    codes, told = ended(killed)
    assert codes == [0, -9, 0], told
    assert [line.count("this share is done") for line in told] == [1, 0, 1]
    work = {name for name in names(folder / "out" / ".flaxsent.parts") if not name.endswith(".tmp")}
    assert len(work) > 5
    for name, data in content(folder / "out").items():
        assert name.startswith(".") or data == one[name]
    assert not (folder / "out.jsonl").exists()

    codes, told = ended([start(compiled, *arguments("out"), *shard) for shard in shards(2)])
    assert codes == [0, 0], told
    assert content(folder / "out") == one
    assert (folder / "out.jsonl").read_bytes() == (folder / "one.jsonl").read_bytes()
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
    assert sorted(os.listdir(folder / "out")) == [".flaxsent.json", *sorted(one)]


@pytest.mark.hosts
def test_tasks_of_slurm_share_a_job_and_one_that_means_another_is_refused(large_folder, tiny_folder, compiled):
    options = [
        "--input",
        large_folder / "in",
        "--output",
        large_folder / "out",
        "--bad-rows",
        large_folder / "bad.jsonl",
    ]
    model, other = (["--model", tiny_folder("bert", **changes)] for changes in ({}, {"initializer_range": 0.5}))
    tasks = [compiled | {"SLURM_PROCID": str(index), "SLURM_NTASKS": "2"} for index in range(2)]
    codes, told = ended([start(tasks[0], *options, *model, "--shard", "auto")])
    assert codes == [0], told
    codes, told = ended([start(task, *options, *more, "--shard", "auto") for task in tasks for more in (other, model)])
    assert codes == [2, 0, 2, 0], told
    for lines in (told[0], told[2]):
        assert "another job: it used another model" in lines
        assert lines.count("\n") == 1
    assert names(large_folder / "out") == ["a.txt", "b.csv", "c.jsonl", "d.parquet", "e.parquet"]


# What is refused at once.


def test_what_cannot_be_shared_is_one_line(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for launcher in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(launcher, raising=False)
    for arguments, message in [
        (["--input", "in.csv", "--output", "out", "--shard", "3/3"], "--shard 3/3: expected I/N with I from 0 to N-1"),
        (["--input", "in.csv", "--output", "out", "--shard", "auto"], "--shard auto: no variables of Open MPI"),
        (["--input", "in.csv", "--output", "out.csv", "--shard", "0/2"], "several processes need a folder"),
        (["--input", "-", "--output", "out", "--shard", "0/2"], "one stream, which several processes cannot share"),
        (["so good", "--shard", "0/2"], "--shard needs --input FILE"),
    ]:
        assert main(["classify", *arguments]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.startswith("flaxsent: error: ")
        assert told.count("\n") == 1
    assert names(folder) == ["in.csv"]
