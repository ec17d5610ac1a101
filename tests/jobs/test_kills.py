"""Jobs whose processes are killed at any moment come to the same bytes."""

import random
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import texts_of_lengths
from tests.jobs.conftest import COMMAND, names, write_csv

FORKS = """
import itertools, multiprocessing, os, random, shutil, signal, sys, time, warnings
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from flaxsent.jobs import chunks, plan
from flaxsent.jobs.run import run
from flaxsent.jobs.shards import Shard

class Engine:
    '''Scores of nothing, but at once: a killed process with JAX in it takes seconds.'''
    classifier = SimpleNamespace(
        config=SimpleNamespace(labels=("A", "B"), score_thresholds=None),
        params={},
        tokenizer=SimpleNamespace(files={}, special_tokens_in_text="special"),
        windows=None,
        backend="native",
    )
    characters_per_window = 30
    def batches(self, lists):
        for texts in lists:
            yield np.array([[len(text) % 7 / 7, 0.5] for text in texts], np.float32).reshape(-1, 2)

warnings.filterwarnings("ignore", category=DeprecationWarning)
warnings.filterwarnings("ignore", category=RuntimeWarning)  # JAX on os.fork
folder = Path(sys.argv[1])
(folder / "in").mkdir(exist_ok=True)
rows = [f"{'x' * (n % 11 + 1)},{n}\\n" for n in range(12)]
(folder / "in" / "a.csv").write_text("".join(["text,n\\n", *rows, "bad\\n"]))
(folder / "in" / "b.jsonl").write_text("".join('{"text": "%s"}\\n' % ("y" * n) for n in range(9)) + "{}\\n")

def start(name, kill_at, pause=0, shard=None, barrier=None):
    '''A job in a process that kills itself before it changes the disk for the n-th time.'''
    process = os.fork()
    if process:
        return process
    count, rng = itertools.count(1), random.Random(os.getpid())
    def killing(function):
        def killed(*arguments, **options):
            time.sleep(rng.random() * pause)
            if next(count) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return killed
    os.fsync = lambda descriptor: None  # slow, and for a computer that fails, not for a process
    for function in ("replace", "fsync", "link", "unlink", "rmdir", "mkdir"):
        setattr(os, function, killing(getattr(os, function)))
    options = plan.JobOptions(resume=True, bad_rows=str(folder / name / "bad.jsonl"), shard=shard)
    job = plan.plan([str(folder / "in")], str(folder / name), options)
    if barrier is not None:
        barrier.wait(60)
    run(job, Engine())
    os._exit(0)

def ended(process):
    '''Whether it came to its end.'''
    _, status = os.waitpid(process, 0)
    assert status in (0, signal.SIGKILL), status
    return status == 0

def begin(name):
    (folder / name).mkdir(exist_ok=True)

def content(name):
    files = [file for file in (folder / name).iterdir() if file.name != ".flaxsent.json"]
    return {file.name: file.read_bytes() if file.is_file() else None for file in files}

begin("whole")
assert ended(start("whole", None))
whole = content("whole")
assert whole["bad.jsonl"].count(b"reason") == 2

def check(name):
    for file, data in content(name).items():
        assert file.startswith(".") or data == whole[file], file
"""

KILLS = (
    FORKS
    + """
assert sorted(whole) == ["a.csv", "b.jsonl", "bad.jsonl"]
for kill_at in itertools.count(1):
    begin("out")
    has_ended = ended(start("out", kill_at))
    check("out")
    begin("out")
    ended(start("out", kill_at * 7 % 31)) or ended(start("out", None))  # some are killed again while they go on
    assert content("out") == whole, (kill_at, sorted(content("out")))
    shutil.rmtree(folder / "out")
    if has_ended:
        break
print(kill_at)
"""
)


def test_a_job_killed_before_any_change_of_the_disk_goes_on_to_the_same_bytes(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


SEVERAL = (
    FORKS
    + """
import pyarrow.parquet  # once, and not in each process

def run_all(num_processes, kills, pause):
    barrier = multiprocessing.Barrier(num_processes)
    processes = [
        start("out", kill_at, pause, Shard(index, num_processes), barrier) for index, kill_at in enumerate(kills)
    ]
    return all([ended(process) for process in processes])

assert sorted(whole) == ["a.csv", "b.jsonl", "bad.jsonl", "c.parquet", "d.parquet"]
rng, num_killed = random.Random(0), 0
for number in range(int(sys.argv[2])):
    begin("out")
    num_processes, are_killed = rng.randint(1, 4), number % 3
    while True:
        kills = [rng.randint(5, 60) if are_killed and rng.random() < 0.7 else None for _ in range(num_processes)]
        if run_all(num_processes, kills, rng.choice([0, 0.004])):
            break
        num_killed += 1
        check("out")
        num_processes, are_killed = rng.randint(1, 4), rng.random() < 0.5
    assert content("out") == whole, (number, sorted(content("out")))
    shutil.rmtree(folder / "out")
print(num_killed)
"""
)


def several(tmp_path, num_jobs):
    (tmp_path / "in").mkdir()
    for name, num_rows in (("c", 23), ("d", 8)):
        table = pa.table({"n": range(num_rows), "text": ["z" * (n % 13) for n in range(num_rows)]})
        pq.write_table(table, tmp_path / "in" / f"{name}.parquet", row_group_size=2)
    script = SEVERAL.replace("class Engine", "chunks.CHUNK_ROWS = plan.CHUNK_ROWS = 4\n\nclass Engine")
    return subprocess.run([sys.executable, "-c", script, str(tmp_path), str(num_jobs)], capture_output=True, text=True)


def test_several_processes_of_which_some_are_killed_come_to_the_same_bytes(tmp_path):
    done = several(tmp_path, 3)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1


@pytest.mark.slow
def test_several_processes_come_to_the_same_bytes_in_forty_jobs(tmp_path):
    done = several(tmp_path, 40)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


@pytest.mark.slow
def test_kill_9_at_ten_random_moments(tmp_path, tiny_folder):
    texts = texts_of_lengths(np.random.default_rng(1).integers(1, 40, 34_000).tolist())
    write_csv(tmp_path / "in.csv", {"id": range(len(texts)), "text": texts})
    options = ["--model", str(tiny_folder("bert")), "--input", str(tmp_path / "in.csv"), "--all-scores", "--output"]
    began = time.monotonic()
    subprocess.run([*COMMAND, *options, str(tmp_path / "whole.csv")], check=True)
    seconds = time.monotonic() - began
    output, rng, num_killed = tmp_path / "out.csv", random.Random(0), 0
    while not output.exists() or num_killed < 10:
        if output.exists():
            assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()
            output.unlink()
        process = subprocess.Popen([*COMMAND, *options, str(output), "--resume"])
        try:
            assert process.wait(rng.uniform(0, seconds) if num_killed < 10 else None) == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            num_killed += 1
    subprocess.run([*COMMAND, *options, str(output), "--resume"], check=True)
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert names(tmp_path) == ["in.csv", "out.csv", "whole.csv"]
