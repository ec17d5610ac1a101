"""Files in, files out: what comes out, what is refused, and that nothing is lost or done twice when a job is killed."""

import csv
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import flaxsent
from flaxsent.jobs import run as jobs
from flaxsent.data import records
from flaxsent.cli import main
from flaxsent.engine import Engine
from flaxsent.jobs.shards import Place
from flaxsent.jobs.run import JobOptions, Progress, plan, run
from tests.conftest import AWKWARD_TEXTS, texts_of_lengths
from tests.test_engine import TOLERANCE, obvious

TEXTS = [text.replace("\x00", "") for text in AWKWARD_TEXTS] + texts_of_lengths(
    np.random.default_rng(0).integers(1, 30, 60).tolist()
)


@pytest.fixture(scope="module")
def engine(tiny_folder):
    """Small windows: a file of `TEXTS` is read in a dozen chunks."""
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    with Engine(classifier, row_lengths=[64], tokens_per_step=128, steps_per_window=1) as engine:
        yield engine


@pytest.fixture
def folder(tmp_path):
    """With a CSV of `TEXTS`."""
    write_csv(tmp_path / "in.csv", {"id": range(len(TEXTS)), "text": TEXTS})
    return tmp_path


def write_csv(path, table):
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return path


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return [*csv.DictReader(stream)]


def do(engine, inputs, output, **options):
    inputs = [str(name) for name in (inputs if isinstance(inputs, list) else [inputs])]
    return run(plan(inputs, str(output), JobOptions(**options)), engine)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_the_output_has_all_columns_and_the_scores_of_each_text_alone(folder, engine):
    do(engine, folder / "in.csv", folder / "out.csv", all_scores=True)
    rows = read_csv(folder / "out.csv")
    assert [*rows[0]] == ["id", "text", "label", "score", "LABEL_0", "LABEL_1", "LABEL_2"]
    assert [row["text"] for row in rows] == TEXTS
    assert [row["id"] for row in rows] == [str(index) for index in range(len(TEXTS))]
    expected = obvious(engine.classifier, TEXTS)
    scores = np.array([[float(row[f"LABEL_{index}"]) for index in range(3)] for row in rows])
    assert np.abs(scores - expected).max() <= TOLERANCE
    assert [row["label"] for row in rows] == [f"LABEL_{index}" for index in scores.argmax(-1)]
    assert [float(row["score"]) for row in rows] == scores.max(-1).tolist()
    assert names(folder) == ["in.csv", "out.csv"]


def test_every_format_has_the_same_rows_in_several_chunks(folder, engine):
    for suffix in ("jsonl", "parquet", "tsv"):
        do(engine, folder / "in.csv", folder / f"out.{suffix}")
        do(engine, folder / f"out.{suffix}", folder / f"again-{suffix}.csv", prefix="new_")
    columns = ["id", "text", "label", "score"]
    first = [[row[name] for name in columns] for row in read_csv(folder / "again-jsonl.csv")]
    assert first == [[row[name] for name in columns] for row in read_csv(folder / "again-parquet.csv")]
    escape = str.maketrans({"\n": "\\n", "\t": "\\t", "\r": "\\r"})
    third = [[row[name] for name in columns] for row in read_csv(folder / "again-tsv.csv")]
    assert third == [[cell.translate(escape) for cell in row] for row in first]
    assert pq.ParquetFile(folder / "out.parquet").num_row_groups > 5


def test_pairs_are_scored_as_pairs(tmp_path, engine):
    pairs = [("so good", "bad"), ("", "a"), ("ß", "x" * 90)]
    write_csv(tmp_path / "in.csv", {"b": [b for _, b in pairs], "a": [a for a, _ in pairs]})
    do(engine, tmp_path / "in.csv", tmp_path / "out.jsonl", text_columns=("a", "b"))
    scores = [json.loads(line)["score"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert np.abs(np.array(scores) - obvious(engine.classifier, pairs).max(-1)).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.flax_auto
def test_the_flax_backend_does_jobs_too(tmp_path, tiny_folder):
    (tmp_path / "in.txt").write_text("so good\nso bad\n")
    with Engine(flaxsent.load(tiny_folder("distilbert"), backend="flax"), tokens_per_step=256) as flax_engine:
        do(flax_engine, tmp_path / "in.txt", tmp_path / "out.csv")
    assert [row["text"] for row in read_csv(tmp_path / "out.csv")] == ["so good", "so bad"]


def test_files_without_rows_give_files_without_rows(tmp_path, engine):
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "c.csv").write_text("text\n")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "d.parquet")
    do(engine, tmp_path, tmp_path / "out")
    assert names(tmp_path / "out") == ["a.txt", "b.jsonl", "c.csv", "d.parquet"]
    assert (tmp_path / "out" / "c.csv").read_text() == "text,label,score,row\n"
    assert pq.read_table(tmp_path / "out" / "d.parquet").num_rows == 0


def test_folders_and_patterns_give_a_file_for_each(tmp_path, engine):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.txt", "a.csv", "deep/c.jsonl", ".hidden.txt", "README.md"):
        (tmp_path / "in" / name).write_text('{"text": "so good"}\n' if name.endswith("jsonl") else "text\nso good\n")
    do(engine, tmp_path / "in", tmp_path / "folder")
    assert names(tmp_path / "folder") == ["a.csv", "b.txt"]
    do(engine, tmp_path / "in" / "**" / "[ac].*", tmp_path / "pattern")
    assert names(tmp_path / "pattern") == ["a.csv", "c.jsonl"]
    do(engine, [tmp_path / "in" / "a.csv", tmp_path / "in" / "b.txt"], tmp_path / "pattern", overwrite=True)
    assert names(tmp_path / "pattern") == ["a.csv", "b.txt", "c.jsonl"]
    assert (tmp_path / "folder" / "b.txt").read_bytes() == (tmp_path / "pattern" / "b.txt").read_bytes()


@pytest.mark.parametrize(
    ("inputs", "output", "options", "message"),
    [
        (["none.csv"], "out.csv", {}, "none.csv: no such file"),
        (["*.jsonl"], "out.csv", {}, "no such file"),
        (["in.csv"], "out.xlsx", {}, "out.xlsx: expected a file that ends in .txt, .csv"),
        (["in.md"], "out.csv", {}, "in.md: expected a file that ends in"),
        (["in.csv"], "none/out.csv", {}, "none is no folder to write in"),
        (["in.csv"], "none/out", {}, "none is no folder to write in"),
        (["in.csv"], "in.csv", {"overwrite": True}, "in.csv is an input"),
        (["in.csv", "*.txt"], "out.csv", {}, "several inputs need a folder"),
        (["in.csv", "in.csv"], "out", {}, "in.csv would be written twice"),
        (["-"], "out", {}, "standard input needs a file"),
        (["-", "in.csv"], "out.csv", {}, "cannot be read along with files"),
        (["in.csv"], "there.csv", {}, "there.csv is there already; pass --overwrite"),
        (["in.csv"], "out.csv", {"bad_rows": "there.csv"}, "there.csv is there already; pass --overwrite"),
        (["in.csv"], "out.csv", {"bad_rows": "out.csv"}, "out.csv would be written twice"),
        (["in.csv"], "out.csv", {"text_columns": ("body",)}, "in.csv has the columns id, text; expected body"),
        (["in.txt"], "out.csv", {"text_columns": ("a", "b")}, "in.txt has the columns a; expected a and b"),
        (["there.csv"], "out.csv", {}, "there.csv has a column 'label' already; pass --prefix TEXT"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(folder, monkeypatch, inputs, output, options, message):
    monkeypatch.chdir(folder)
    (folder / "in.txt").write_text("a\n")
    (folder / "in.md").write_text("a\n")
    (folder / "there.csv").write_text("text,label\na,b\n")
    before = names(folder)
    with pytest.raises((ValueError, OSError), match=message):
        plan(inputs, output, JobOptions(**options))
    assert names(folder) == before


def test_labels_that_would_be_columns_twice_are_refused(tmp_path, tiny_folder, folder):
    classifier = flaxsent.load(tiny_folder("bert", id2label={"0": "score", "1": "label"}), backend="native")
    with pytest.raises(ValueError, match="leave out --all-scores"), Engine(classifier) as engine:
        do(engine, folder / "in.csv", folder / "out.csv", all_scores=True)
    assert names(folder) == ["in.csv"]


# Bad rows.

MIXED = b"id,text\n0,good\n1,\xff\n2,bad\n3\n4,\xe9\xa9\n5,so\n"


def test_a_bad_row_ends_the_job_and_what_was_done_is_kept(folder, engine):
    with open(folder / "in.csv", "ab") as stream:
        stream.write(b"bad\n")
    with pytest.raises(ValueError, match=r"in.csv row 76 has 1 columns; .* --bad-rows FILE .*; --resume goes on"):
        do(engine, folder / "in.csv", folder / "out.csv")
    assert names(folder) == [".out.csv.parts", "in.csv"]
    parts = len(names(folder / ".out.csv.parts"))
    assert parts > 5
    with pytest.raises(FileExistsError, match=r"holds the work of a job that did not end; pass --resume"):
        do(engine, folder / "in.csv", folder / "out.csv")
    with pytest.raises(ValueError, match="row 76"):
        do(engine, folder / "in.csv", folder / "out.csv", resume=True)
    assert do(engine, folder / "in.csv", folder / "out.csv", resume=True, bad_rows=str(folder / "bad.jsonl")) == 1
    assert do(engine, folder / "in.csv", folder / "again.csv", bad_rows=str(folder / "again.jsonl")) == 1
    assert (folder / "out.csv").read_bytes() == (folder / "again.csv").read_bytes()
    assert (folder / "bad.jsonl").read_bytes() == (folder / "again.jsonl").read_bytes()
    assert names(folder) == ["again.csv", "again.jsonl", "bad.jsonl", "in.csv", "out.csv"]


def test_a_job_that_ends_before_anything_is_done_leaves_nothing(tmp_path, engine):
    (tmp_path / "in.csv").write_bytes(MIXED)
    with pytest.raises(ValueError, match=r"in.csv row 3 is not UTF-8 text; pass --bad-rows FILE .* aside.$"):
        do(engine, tmp_path / "in.csv", tmp_path / "out.csv")
    assert names(tmp_path) == ["in.csv"]


def test_bad_rows_are_set_aside_with_their_place_and_reason(tmp_path, engine, monkeypatch):
    (tmp_path / "in.csv").write_bytes(MIXED)
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": null}\n{"text":\n')
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "in.parquet")
    monkeypatch.chdir(tmp_path)
    inputs = ["in.csv", "in.jsonl", "in.parquet"]
    assert do(engine, inputs, "out", bad_rows="bad.jsonl") == 6
    bad = [json.loads(line) for line in Path("bad.jsonl").read_text().splitlines()]
    assert [(row["file"], row["row"], row.get("raw")) for row in bad] == [
        ("in.csv", 3, "1,\\xff"),
        ("in.csv", 5, "3"),
        ("in.csv", 6, "4,\\xe9\\xa9"),
        ("in.jsonl", 2, '{"text": null}'),
        ("in.jsonl", 3, '{"text":'),
        ("in.parquet", 2, None),
    ]
    assert bad[1]["reason"] == "has 1 columns; expected 2"
    assert [row["id"] for row in read_csv("out/in.csv")] == ["0", "2", "5"]
    assert pq.read_table("out/in.parquet").num_rows == 1


def test_a_file_of_bad_rows_only_gives_no_rows(tmp_path, engine):
    for suffix in ("csv", "parquet", "jsonl"):
        (tmp_path / "in.jsonl").write_text("[]\n" * 3)
        output, bad = tmp_path / f"out.{suffix}", tmp_path / f"bad-{suffix}.jsonl"
        assert do(engine, tmp_path / "in.jsonl", output, bad_rows=str(bad)) == 3
    assert (tmp_path / "out.csv").read_text() == "text,label,score\n"
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0
    assert (tmp_path / "out.jsonl").read_text() == ""


# Going on.


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_job_that_failed_between_parts_goes_on_to_the_same_bytes(folder, engine, monkeypatch, suffix):
    do(engine, folder / "in.csv", folder / f"whole.{suffix}")
    write, count, scored = jobs._write, [0], []

    def write_some(file, content):
        count[0] += 1
        if count[0] % 5 == 0:
            raise KilledError
        write(file, content)

    output = folder / f"out.{suffix}"
    monkeypatch.setattr(jobs, "_write", write_some)
    monkeypatch.setattr(engine, "_on_window", lambda stats: scored.append(stats.num_texts))
    for _ in range(20):
        try:
            do(engine, folder / "in.csv", output, resume=True)
        except KilledError:
            assert not output.exists() or output.read_bytes() == (folder / f"whole.{suffix}").read_bytes()
        else:
            break
    assert output.read_bytes() == (folder / f"whole.{suffix}").read_bytes()
    assert names(folder) == ["in.csv", f"out.{suffix}", f"whole.{suffix}"]
    assert count[0] > 10
    assert sum(scored) < 2 * len(TEXTS), "what is done is not done again"


def interrupted(folder, engine, monkeypatch, **options):
    write = jobs._write

    def write_some(file, content):
        if file.name.endswith("3.csv"):
            raise KilledError
        write(file, content)

    monkeypatch.setattr(jobs, "_write", write_some)
    with pytest.raises(KilledError):
        do(engine, folder / "in.csv", folder / "out.csv", **options)
    monkeypatch.setattr(jobs, "_write", write)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"all_scores": True}, "whose all_scores were false, and not true"),
        ({"prefix": "x"}, 'whose prefix were "", and not "x"'),
        ({"text_columns": ("id",)}, "whose text_columns were"),
        ({"bad_rows": "other.jsonl"}, "whose bad_rows were"),
    ],
)
def test_another_job_does_not_go_on_with_the_work(folder, engine, monkeypatch, change, message):
    bad = {"bad_rows": str(folder / "bad.jsonl")}
    interrupted(folder, engine, monkeypatch, **bad)
    with pytest.raises(ValueError, match=message):
        do(engine, folder / "in.csv", folder / "out.csv", resume=True, **(bad | change))
    do(engine, folder / "in.csv", folder / "out.csv", resume=True, **bad)
    assert len(read_csv(folder / "out.csv")) == len(TEXTS)


def test_another_file_or_another_model_does_not_go_on_with_the_work(folder, engine, monkeypatch, tiny_folder):
    interrupted(folder, engine, monkeypatch)
    classifier = flaxsent.load(tiny_folder("bert", initializer_range=0.5), backend="native")
    other = Engine(classifier, row_lengths=[64], tokens_per_step=128, steps_per_window=1)
    with pytest.raises(ValueError, match="whose weights were"):
        do(other, folder / "in.csv", folder / "out.csv", resume=True)
    with pytest.raises(ValueError, match=r"whose chunk were \[16384, 512, .*\], and not \[16384, 2048"):
        do(Engine(engine.classifier, row_lengths=[64], tokens_per_step=512, steps_per_window=1),
           folder / "in.csv", folder / "out.csv", resume=True)  # fmt: skip
    with open(folder / "in.csv", "a") as stream:
        stream.write("99,more\n")
    with pytest.raises(ValueError, match="whose inputs were"):
        do(engine, folder / "in.csv", folder / "out.csv", resume=True)


def test_resume_begins_what_was_not_begun_and_leaves_what_is_done(folder, engine):
    do(engine, folder / "in.csv", folder / "out.csv", resume=True)
    (folder / "out.csv").write_text("mine")
    do(engine, folder / "in.csv", folder / "out.csv", resume=True)
    assert (folder / "out.csv").read_text() == "mine"
    do(engine, folder / "in.csv", folder / "out.csv", overwrite=True)
    assert len(read_csv(folder / "out.csv")) == len(TEXTS)


def test_what_was_left_behind_by_another_is_not_deleted(folder, engine):
    (folder / ".out.csv.parts").mkdir()
    (folder / ".out.csv.parts" / "mine").touch()
    do(engine, folder / "in.csv", folder / "out.csv")
    assert names(folder / ".out.csv.parts") == ["mine"]


FORKS = """
import itertools, multiprocessing, os, random, shutil, signal, sys, time, warnings
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from flaxsent.jobs import run as jobs

class Engine:
    '''Scores of nothing, but at once: a killed process with JAX in it takes seconds.'''
    classifier = SimpleNamespace(
        config=SimpleNamespace(labels=("A", "B")), params={}, tokenizer=SimpleNamespace(files={}), backend="native"
    )
    characters_per_window = 30
    def batches(self, lists):
        for texts in lists:
            yield np.array([[len(text) % 7 / 7, 0.5] for text in texts], np.float32).reshape(-1, 2)

jobs.jax = SimpleNamespace(
    local_devices=lambda: [SimpleNamespace(device_kind="cpu")], tree=SimpleNamespace(leaves=lambda tree: [])
)
warnings.filterwarnings("ignore", category=DeprecationWarning)
warnings.filterwarnings("ignore", category=RuntimeWarning)  # JAX on os.fork
folder = Path(sys.argv[1])
(folder / "in").mkdir(exist_ok=True)
(folder / "in" / "a.csv").write_text("text,n\\n" + "".join(f"{'x' * (n % 11)},{n}\\n" for n in range(12)) + "bad\\n")
(folder / "in" / "b.jsonl").write_text("".join('{"text": "%s"}\\n' % ("y" * n) for n in range(9)) + "{}\\n")

def start(name, kill_at, pause=0, meet=None):
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
    for function in ("replace", "fsync", "unlink", "rmdir", "mkdir"):
        setattr(os, function, killing(getattr(os, function)))
    options = jobs.JobOptions(resume=True, bad_rows=str(folder / name / "bad.jsonl"))
    jobs.run(jobs.plan([str(folder / "in")], str(folder / name), options), Engine(), meet=meet)
    os._exit(0)

def ended(process):
    '''Whether it came to its end.'''
    _, status = os.waitpid(process, 0)
    assert status in (0, signal.SIGKILL), status
    return status == 0

def begin(name):
    (folder / name).mkdir(exist_ok=True)

def content(name):
    return {file.name: file.read_bytes() if file.is_file() else None for file in (folder / name).iterdir()}

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


# Several processes.


def test_row_groups_are_read_by_themselves_with_the_numbers_of_their_rows(tmp_path):
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in.parquet", row_group_size=10)
    with records.read(tmp_path / "in.parquet", text_columns=("text",)) as source:
        expected = [(row.number, row.text) for row in source.rows]
        groups = source.groups
    assert [group.num_rows for group in groups] == [10] * 7 + [4]
    found, position = [], 0
    for part in (range(3), range(3, 4), range(4, 8)):
        with records.read(tmp_path / "in.parquet", text_columns=("text",), groups=part) as source:
            found += [(row.number, row.text) for row in source.rows]
            position += source.position()
    assert found == expected
    # Each of three is rounded down.
    assert 0 <= (tmp_path / "in.parquet").stat().st_size - position < 3


@pytest.fixture
def many(folder, monkeypatch):
    """A folder of inputs, with bad rows, that is many units."""
    monkeypatch.setattr(jobs, "_CHUNK_ROWS", 8)
    (folder / "in").mkdir()
    (folder / "in.csv").rename(folder / "in" / "a.csv")
    (folder / "in" / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS) + "{}\n")
    pq.write_table(pa.table({"text": [*TEXTS, None]}), folder / "in" / "c.parquet", row_group_size=5)
    return folder


def take(engine, folder, name, place, **options):
    """One process's share."""
    job_options = JobOptions(bad_rows=str(folder / f"{name}.jsonl"), is_shared=True, **options)
    return run(plan([str(folder / "in")], str(folder / name), job_options), engine, meet=lambda _: place)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_the_last_of_several_processes_completes_the_folder(many, engine, monkeypatch, order):
    assert do(engine, many / "in", many / "one", bad_rows=str(many / "one.jsonl")) == 2
    scored = []
    monkeypatch.setattr(engine, "_on_window", lambda stats: scored.append(stats.num_texts))
    for index in order:
        assert not (many / "out.jsonl").exists()
        assert take(engine, many, "out", Place(index, 3), resume=index != order[0]) == (
            2 if index == order[2] else None
        )
    assert sum(scored) == 3 * len(TEXTS), "nothing is done twice"
    for name in names(many / "one"):
        assert (many / "out" / name).read_bytes() == (many / "one" / name).read_bytes()
    assert (many / "out.jsonl").read_bytes() == (many / "one.jsonl").read_bytes()
    assert names(many / "out") == names(many / "one") == ["a.csv", "b.jsonl", "c.parquet"]
    assert pq.read_table(many / "out" / "c.parquet")["row"].to_pylist() == [*range(1, len(TEXTS) + 1)]
    assert take(engine, many, "out", Place(0, 3), resume=True) == 0


def test_a_process_without_a_share_leaves_nothing_behind(many, engine):
    assert take(engine, many, "out", Place(99, 100)) is None
    assert names(many) == ["in"]


def test_all_processes_must_mean_the_same_job(many, engine):
    meant = set()

    def meet(job):
        meant.add(job)
        raise ConnectionError

    for options in ({}, {}, {"all_scores": True}):
        with pytest.raises(ConnectionError):
            run(plan([str(many / "in")], str(many / "out"), JobOptions(**options)), engine, meet=meet)
    assert len(meant) == 2
    assert names(many) == ["in"]


SEVERAL = (
    FORKS
    + """
import pyarrow.parquet  # once, and not in each process
from flaxsent.jobs.shards import Place

def run(num_processes, kills, pause):
    barrier = multiprocessing.Barrier(num_processes)
    def process(index, kill_at):
        def meet(job):
            barrier.wait(60)
            return Place(index, num_processes)
        return start("out", kill_at, pause, meet)
    processes = [process(index, kill_at) for index, kill_at in enumerate(kills)]
    return all([ended(process) for process in processes])

assert sorted(whole) == ["a.csv", "b.jsonl", "bad.jsonl", "c.parquet", "d.parquet"]
rng, num_killed = random.Random(0), 0
for number in range(int(sys.argv[2])):
    begin("out")
    num_processes, are_killed = rng.randint(1, 4), number % 3
    while True:
        kills = [rng.randint(5, 60) if are_killed and rng.random() < 0.7 else None for _ in range(num_processes)]
        if run(num_processes, kills, rng.choice([0, 0.004])):
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
    script = SEVERAL.replace("jobs.jax =", "jobs._CHUNK_ROWS = 4; jobs.jax =")
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


COMMAND = [sys.executable, "-c", "import sys; from flaxsent.cli import main; sys.exit(main())", "classify"]


@pytest.mark.slow
def test_kill_9_at_ten_random_moments(tmp_path, tiny_folder):
    texts = texts_of_lengths(np.random.default_rng(1).integers(1, 40, 60_000).tolist())
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


# What can go wrong with the disk.


def test_a_full_disk_is_told_by_the_file_and_what_is_done_is_kept(folder, engine, monkeypatch):
    fsync, count = os.fsync, [0]

    def full(descriptor):
        count[0] += 1
        if count[0] > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/.out.csv.parts/000000-000000-000003.csv'"):
        do(engine, folder / "in.csv", folder / "out.csv")
    monkeypatch.setattr(os, "fsync", fsync)
    assert not [name for name in names(folder / ".out.csv.parts") if name.endswith(".tmp")]
    do(engine, folder / "in.csv", folder / "out.csv", resume=True)
    assert len(read_csv(folder / "out.csv")) == len(TEXTS)


# The command.


def command(capsys, *arguments):
    code = main(["classify", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_writes_the_file_and_is_quiet(folder, capsys, tiny_folder):
    (folder / "in.txt").write_text("so good\n" + "word " * 99 + "\n")
    options = ["--model", tiny_folder("bert"), "--input", folder / "in.txt", "--text-column", "line"]
    code, out, err = command(capsys, *options, "--output", folder / "out.csv")
    assert (code, out, err) == (0, "", "flaxsent: 1 texts were truncated to 40 tokens\n")
    assert [*read_csv(folder / "out.csv")[0]] == ["line", "label", "score"]
    code, out, err = command(capsys, *options, "--output", folder / "out.csv", "--resume")
    assert (code, out) == (0, "")
    assert err.endswith("out.csv is there already; nothing to resume\n")


def test_standard_input_is_read_as_lines(tmp_path, tiny_folder):
    options = ["--model", str(tiny_folder("bert")), "--input", "-", "--output", str(tmp_path / "out.jsonl")]
    done = subprocess.run(
        [*COMMAND, *options, "--bad-rows", str(tmp_path / "bad.jsonl")],
        input=b"so good\n\xff\nbad",
        capture_output=True,
    )
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.decode() == f"flaxsent: 1 rows were set aside in {tmp_path / 'bad.jsonl'}\n"
    assert [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        "so good",
        "bad",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["so good", "--output", "out.csv"],
        ["so good", "--resume"],
        ["--input", "in.csv"],
        ["--input", "in.csv", "--output", "out.csv", "--top-k", "0"],
        ["--input", "in.csv", "--output", "out.csv", "--format", "tsv"],
        ["so good", "--input", "in.csv", "--output", "out.csv"],
        ["--input", "none.csv", "--output", "out.csv"],
        ["--input", "in.csv", "--output", "/proc/out.csv"],
        ["--input", "in.csv", "--output", "none/out.csv"],
        ["--input", "in.csv", "--output", "out.csv", "--text-column", "none"],
        ["--input", "in.csv", "--output", "out.csv", "--model", "/nowhere"],
    ],
    ids=" ".join,
)
def test_mistakes_are_one_line_and_exit_code_2(folder, capsys, monkeypatch, arguments):
    monkeypatch.chdir(folder)
    code, out, err = command(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("flaxsent: error: ")
    assert err.count("\n") == 1
    assert names(folder) == ["in.csv"]


def test_a_terminal_has_a_bar_with_the_speed(folder, engine, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    job = plan([str(folder / "in.csv")], str(folder / "out.csv"), JobOptions())
    with Progress(job) as progress:
        monkeypatch.setattr(engine, "_on_window", progress.add)
        run(job, engine, progress=progress)
    told = capsys.readouterr().err
    assert "100%|" in told
    for figure in ("texts/s", "tokens/s", "% real tokens"):
        assert figure in told
    assert progress.num_texts == len(TEXTS)
