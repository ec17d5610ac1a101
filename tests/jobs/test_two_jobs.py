"""Two different jobs on one output, started together: it is one job's alone, and the other one is told."""

import json
import os
import subprocess
import sys

import pytest

from flaxsent import files
from flaxsent.jobs.plan import MANIFEST
from tests.conftest import others_slow
from tests.jobs.conftest import COMMAND, TEXTS, do, names, read_csv, write_csv
from tests.jobs.test_kills import FORKS

TWO = (
    FORKS
    + """
mode, num_tries, num_refused = sys.argv[2], int(sys.argv[3]), 0
for letter in "ab":
    (folder / f"{letter}.csv").write_text("text\\n" + "".join(f"{letter * (1 + n % 9)}\\n" for n in range(60)))
modes = {"plain": (False, False), "resume": (True, False), "overwrite": (False, True), "both": (True, True)}
options = plan.JobOptions(resume=modes[mode][0], overwrite=modes[mode][1])

def job(letter, barrier, pause):
    process = os.fork()
    if process:
        return process
    rng = random.Random(os.getpid())
    for name in ("replace", "link", "unlink", "rmdir", "mkdir"):
        def slowly(*arguments, function=getattr(os, name), **options):
            time.sleep(rng.random() * pause)
            return function(*arguments, **options)
        setattr(os, name, slowly)
    os.fsync = lambda descriptor: None
    code = 2
    try:
        barrier.wait(60)
        planned = plan.plan([str(folder / f"{letter}.csv")], str(folder / "two.csv"), options)
        time.sleep(rng.random() * 4 * pause)  # the model is loaded
        run(planned, Engine())
        code = 0
    except (FlaxsentError, OSError) as err:
        assert "\\n" not in str(err) and "two.csv" in str(err), err
    finally:
        sys.stderr.flush()
        os._exit(code)

for number in range(num_tries):
    barrier = multiprocessing.Barrier(2)
    processes = [job(letter, barrier, random.Random(number).choice([0, 0, 0.002])) for letter in "ab"]
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    assert 0 in codes and {0, 2} >= {*codes}, codes
    if not options.overwrite:
        assert sorted(codes) == [0, 2], codes
    num_refused += 2 in codes
    rows = (folder / "two.csv").read_text().splitlines()[1:]
    letters = {row.split(",")[0][:1] for row in rows}
    assert len(rows) == 60 and letters in ({"a"}, {"b"}), (len(rows), letters)
    if 2 in codes:
        assert letters == {"ab"[codes.index(0)]}
    left = sorted(os.listdir(folder))
    assert left == [".two.csv.flaxsent.json", "a.csv", "b.csv", "in", "two.csv", "whole"], left
    if not options.overwrite or number % 2:
        (folder / "two.csv").unlink()
        (folder / ".two.csv.flaxsent.json").unlink()
print(num_refused)
"""
)


@pytest.mark.parametrize("mode", others_slow(["plain"], ["resume", "overwrite", "both"]))
def test_two_jobs_that_start_together_give_the_output_of_one(tmp_path, mode):
    script = TWO.replace(
        "from flaxsent.jobs import", "from flaxsent.base import FlaxsentError\nfrom flaxsent.jobs import"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), mode, "30"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 5


@pytest.mark.hosts
def test_two_commands_that_start_together_give_the_output_of_one(tmp_path, tiny_folder):
    for name in ("one", "two"):
        write_csv(tmp_path / f"{name}.csv", {"text": [f"{name} {number}" for number in range(6000)]})
    for _ in range(3):
        processes = {
            name: subprocess.Popen(
                [
                    *COMMAND,
                    "--model",
                    tiny_folder("bert"),
                    "--input",
                    tmp_path / f"{name}.csv",
                    "--output",
                    tmp_path / "o.csv",
                ],
                stderr=subprocess.PIPE,
                text=True,
            )
            for name in ("one", "two")
        }
        told = {name: process.communicate(timeout=300)[1] for name, process in processes.items()}
        codes = {name: process.returncode for name, process in processes.items()}
        assert sorted(codes.values()) == [0, 2], told
        winner, loser = sorted(codes, key=codes.__getitem__)
        lines = {name: [line for line in text.splitlines() if "flaxsent" in line] for name, text in told.items()}
        assert (len(lines[winner]), len(lines[loser])) == (0, 1)
        assert lines[loser][0].startswith("flaxsent: error: ")
        assert [row["text"] for row in read_csv(tmp_path / "o.csv")] == [f"{winner} {number}" for number in range(6000)]
        for name in ("o.csv", ".o.csv.flaxsent.json"):
            (tmp_path / name).unlink()


def test_an_output_that_another_job_has_made_meanwhile_is_not_replaced(folder, engine, monkeypatch):
    """By another way: as one of a folder, with parts of its own."""
    write = files.write

    def write_and_more(file, content):
        write(file, content)
        if file.name.endswith(".end"):
            (folder / "out.csv").write_text("of another job")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", write_and_more)
        with pytest.raises(ValueError, match=r"out.csv was written by another job meanwhile"):
            do(engine, folder / "in.csv", folder / "out.csv")
    assert (folder / "out.csv").read_text() == "of another job"
    (folder / "out.csv").unlink()
    do(engine, folder / "in.csv", folder / "out.csv", resume=True)
    assert len(read_csv(folder / "out.csv")) == len(TEXTS)


def test_two_jobs_do_not_lose_each_others_bad_rows(folder, engine):
    with open(folder / "in.csv", "ab") as stream:
        stream.write(b"bad\n")
    do(engine, folder / "in.csv", folder / "whole.csv", bad_rows=str(folder / "bad.jsonl"))
    batches = engine.batches

    def meanwhile(lists):
        yield from batches(lists)
        (folder / "bad.jsonl").write_text("of another job\n")

    (folder / "bad.jsonl").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "batches", meanwhile)
        with pytest.raises(
            ValueError, match=r"bad.jsonl was written by another job meanwhile; move it, then pass --resume"
        ):
            do(engine, folder / "in.csv", folder / "out.csv", bad_rows=str(folder / "bad.jsonl"))
    assert (folder / "bad.jsonl").read_text() == "of another job\n"
    (folder / "bad.jsonl").unlink()
    again = do(engine, folder / "in.csv", folder / "out.csv", bad_rows=str(folder / "bad.jsonl"), resume=True)
    assert again.num_bad_rows == 1
    assert (folder / "out.csv").read_bytes() == (folder / "whole.csv").read_bytes()


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_job_whose_folder_is_deleted_while_it_runs_says_so(folder, engine, monkeypatch, is_replaced):
    parts = folder / ".out.csv.parts"

    def delete(stats):
        for name in names(parts):
            (parts / name).unlink()
        if is_replaced:  # by another job
            (parts / MANIFEST).write_text(
                json.dumps({"run": "0", "facts": {}, "chunk_characters": 1, "replaces": False})
            )

    batches = engine.batches

    def deleting(lists):
        for number, scores_BC in enumerate(batches(lists)):
            if number == 3:
                delete(None)
            yield scores_BC

    monkeypatch.setattr(engine, "batches", deleting)
    with pytest.raises((ValueError, OSError)) as refusal:
        do(engine, folder / "in.csv", folder / "out.csv")
    assert ".out.csv.parts" in str(refusal.value)
    assert not (folder / "out.csv").exists()
    assert not is_replaced or (parts / MANIFEST).exists()


def test_a_disk_without_second_names_has_one_manifest_too(folder, engine, monkeypatch):
    def refuse(source, target):
        raise PermissionError(1, "Operation not permitted", str(target))

    monkeypatch.setattr(os, "link", refuse)
    do(engine, folder / "in.csv", folder / "out.csv")
    assert len(read_csv(folder / "out.csv")) == len(TEXTS)
    with pytest.raises(FileExistsError):
        files.create(folder / "out.csv", b"")
    assert len(read_csv(folder / "out.csv")) == len(TEXTS)
