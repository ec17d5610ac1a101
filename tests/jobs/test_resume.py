"""Jobs that go on, jobs that are finished already, and other jobs, which must not go on with the same work."""

import json
import os
import shutil
import sys

import numpy as np
import pytest

import flaxsent
from flaxsent import files
from flaxsent.jobs import manifest as manifests
from flaxsent.jobs import plan as plans
from tests.jobs.conftest import TEXTS, KilledError, do, make_engine, names, read_csv
from tests.test_engine import TOLERANCE


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_job_that_failed_between_parts_goes_on_to_the_same_bytes(folder, engine, monkeypatch, suffix):
    do(engine, folder / "in.csv", folder / f"whole.{suffix}")
    write, count, scored = files.write, [0], []

    def write_some(file, content):
        count[0] += 1
        if count[0] % 5 == 0:
            raise KilledError
        write(file, content)

    output = folder / f"out.{suffix}"
    monkeypatch.setattr(files, "write", write_some)
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


@pytest.fixture
def interrupt(folder, engine, monkeypatch):
    """Runs the job of `in.csv` until some of its parts are there."""

    def interrupt(inputs="in.csv", **options):
        write = files.write

        def write_some(file, content):
            if file.name.endswith("3.csv"):
                raise KilledError
            write(file, content)

        with monkeypatch.context() as patch:
            patch.setattr(files, "write", write_some)
            with pytest.raises(KilledError):
                do(engine, inputs if inputs == "-" else folder / inputs, folder / "out.csv", **options)

    return interrupt


CHANGES = [
    ({"all_scores": True}, "its all scores: false then, true now"),
    ({"prefix": "x"}, 'its prefix: "" then, "x" now'),
    ({"text_columns": ("id",)}, r'its text columns: \["text"\] then, \["id"\] now'),
    ({"bad_rows": "other.jsonl"}, "its bad rows: "),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_another_job_does_not_go_on_with_the_work(folder, engine, interrupt, change, message):
    bad = {"bad_rows": str(folder / "bad.jsonl")}
    interrupt(**bad)
    with pytest.raises(ValueError, match=f"out.csv.parts holds the work of another job: {message}"):
        do(engine, folder / "in.csv", folder / "out.csv", resume=True, **(bad | change))
    do(engine, folder / "in.csv", folder / "out.csv", resume=True, **bad)
    assert len(read_csv(folder / "out.csv")) == len(TEXTS)


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_finished_output_is_not_another_jobs(folder, engine, change, message):
    do(engine, folder / "in.csv", folder / "out.csv", bad_rows=str(folder / "bad.jsonl"))
    before = (folder / "out.csv").read_bytes()
    (folder / "other.jsonl").touch()
    if "bad_rows" in change:
        change = {"bad_rows": str(folder / "other.jsonl")}
    with pytest.raises(ValueError, match=f"out.csv was made by another job: {message}.* Pass --overwrite") as refusal:
        do(
            engine,
            folder / "in.csv",
            folder / "out.csv",
            resume=True,
            **({"bad_rows": str(folder / "bad.jsonl")} | change),
        )
    assert "\n" not in str(refusal.value)
    assert (folder / "out.csv").read_bytes() == before


def test_another_model_does_not_go_on_with_the_work_nor_take_the_output_for_its_own(
    folder, engine, interrupt, tiny_folder
):
    interrupt()
    other = make_engine(flaxsent.load(tiny_folder("bert", initializer_range=0.5), backend="native"))
    with pytest.raises(ValueError, match="holds the work of another job: it used another model"):
        do(other, folder / "in.csv", folder / "out.csv", resume=True)
    do(engine, folder / "in.csv", folder / "out.csv", resume=True)
    with pytest.raises(ValueError, match="was made by another job: it used another model"):
        do(other, folder / "in.csv", folder / "out.csv", resume=True)


def test_another_version_does_not_go_on_with_the_work(folder, engine, interrupt, monkeypatch):
    interrupt()
    monkeypatch.setattr(manifests.importlib.metadata, "version", lambda name: f"{name} 99")
    with pytest.raises(ValueError, match=r'its version of flaxsent: ".*" then, "flaxsent 99" now'):
        do(engine, folder / "in.csv", folder / "out.csv", resume=True)


@pytest.mark.parametrize("is_finished", [False, True])
def test_an_input_that_was_edited_to_the_same_size_is_noticed(folder, engine, interrupt, is_finished):
    do(engine, folder / "in.csv", folder / "out.csv") if is_finished else interrupt()
    path = folder / "in.csv"
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(content.replace(b"hate", b"love", 1))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    with pytest.raises(ValueError, match=r"another job: its input .*in\.csv has changed since"):
        do(engine, path, folder / "out.csv", resume=True)
    path.write_bytes(content)  # at another time, but the same
    do(engine, path, folder / "out.csv", resume=True)
    assert len(read_csv(folder / "out.csv")) == len(TEXTS)


def test_a_long_input_is_digested_in_blocks_and_by_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "_WHOLE", 1 << 10)
    path, content = tmp_path / "x", bytearray(5000)
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    seen = {manifests._input(str(path))}
    for place in (0, 2310, 4999):  # in the first, the eighth and the last of 16 blocks of 64
        path.write_bytes(content[:place] + b"x" + content[place + 1 :])
        os.utime(path, ns=(1, 1))
        seen.add(manifests._input(str(path)))
    assert len(seen) == 4
    path.write_bytes(content)
    assert manifests._input(str(path)) not in seen, "written again, at another time"
    os.utime(path, ns=(1, 1))
    assert manifests._input(str(path)) in seen


def test_inputs_that_were_added_removed_or_reordered_are_named(tmp_path, engine, monkeypatch):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("so good\n")
    a, b, c = (tmp_path / f"{name}.txt" for name in "abc")
    write = files.write

    def write_some(file, content):
        write(file, content)
        if file.name.endswith(".end"):
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", write_some)
        with pytest.raises(KilledError):
            do(engine, [a, b], tmp_path / "out")
    for inputs, message in [
        ([a], r"b.txt was one of its inputs"),
        ([a, b, c], r"c.txt was none of its inputs"),
        ([b, a], "its inputs were given in another order"),
    ]:
        with pytest.raises(ValueError, match=message):
            do(engine, inputs, tmp_path / "out", resume=True)


def test_work_goes_on_with_another_step_shape_to_scores_that_agree(folder, engine, interrupt, monkeypatch):
    """As on a machine with other devices: the chunks stay those of the machine that began."""
    do(engine, folder / "in.csv", folder / "whole.csv")
    interrupt()
    scored = []
    other = make_engine(engine.classifier, tokens_per_step=512)
    assert other.characters_per_window != engine.characters_per_window
    monkeypatch.setattr(other, "_on_window", lambda stats: scored.append(stats.num_texts))
    do(other, folder / "in.csv", folder / "out.csv", resume=True)
    assert sum(scored) < len(TEXTS), "what is done is not done again"
    found, whole = read_csv(folder / "out.csv"), read_csv(folder / "whole.csv")
    assert [row["text"] for row in found] == [row["text"] for row in whole]
    scores = np.array([[float(row["score"]) for row in rows] for rows in (found, whole)])
    assert np.abs(scores[0] - scores[1]).max() <= TOLERANCE


def test_the_same_checkpoint_in_another_folder_goes_on(folder, engine, interrupt, tiny_folder, tmp_path):
    interrupt()
    shutil.copytree(tiny_folder("bert"), tmp_path / "copy")
    other = make_engine(flaxsent.load(tmp_path / "copy", backend="native"))
    assert do(other, folder / "in.csv", folder / "out.csv", resume=True).is_complete


def test_resume_begins_what_was_not_begun_and_leaves_what_is_done(folder, engine):
    assert not do(engine, folder / "in.csv", folder / "out.csv", resume=True).was_finished
    (folder / "out.csv").write_text("mine")
    assert do(engine, folder / "in.csv", folder / "out.csv", resume=True).was_finished
    assert (folder / "out.csv").read_text() == "mine"
    do(engine, folder / "in.csv", folder / "out.csv", overwrite=True)
    assert len(read_csv(folder / "out.csv")) == len(TEXTS)


def test_an_output_of_which_nothing_is_known_is_not_taken_for_finished(folder, engine):
    do(engine, folder / "in.csv", folder / "out.csv")
    for content in ("", "{}", "[1]", "[{}]", None):
        if content is None:
            (folder / ".out.csv.flaxsent.json").unlink()
        else:
            (folder / ".out.csv.flaxsent.json").write_text(content)
        with pytest.raises(FileExistsError, match=r"out.csv exists already; pass --overwrite"):
            do(engine, folder / "in.csv", folder / "out.csv", resume=True)


def test_one_small_hidden_file_is_left_beside_the_outputs(folder, engine):
    do(engine, folder / "in.csv", folder / "out.csv")
    assert sorted(os.listdir(folder)) == [".out.csv.flaxsent.json", "in.csv", "out.csv"]
    assert (folder / ".out.csv.flaxsent.json").stat().st_size < 2000
    do(engine, folder / "out.csv", folder / "in.jsonl", prefix="x")
    for _ in range(2):
        do(engine, folder / "in.csv", folder / "all", overwrite=True)
        do(engine, folder / "in.jsonl", folder / "all", prefix="y", overwrite=True)
    assert sorted(os.listdir(folder / "all")) == [".flaxsent.json", "in.csv", "in.jsonl"]
    assert len(json.loads((folder / "all" / ".flaxsent.json").read_text())) == 2
    assert do(engine, folder / "in.csv", folder / "all", resume=True).was_finished, "both jobs are known"
    do(engine, folder / "in.csv", folder / "all", prefix="z", overwrite=True)
    with pytest.raises(ValueError, match='its prefix: "z" then, "" now'):
        do(engine, folder / "in.csv", folder / "all", resume=True)


def test_an_output_that_was_partly_replaced_is_not_finished(folder, engine, interrupt, monkeypatch):
    do(engine, folder / "in.csv", folder / "out.csv")
    interrupt(prefix="x", overwrite=True)
    for name in os.listdir(folder / ".out.csv.parts"):
        (folder / ".out.csv.parts" / name).unlink()  # as the message for another job says
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        do(engine, folder / "in.csv", folder / "out.csv", resume=True)


def test_overwriting_is_remembered_by_a_job_that_goes_on(folder, engine, interrupt):
    (folder / "out.csv").write_text("old")
    interrupt(overwrite=True)
    do(engine, folder / "in.csv", folder / "out.csv", resume=True)
    assert len(read_csv(folder / "out.csv")) == len(TEXTS)


def test_bad_rows_may_begin_to_be_set_aside(folder, engine):
    with open(folder / "in.csv", "ab") as stream:
        stream.write(b"bad\n")
    with pytest.raises(ValueError, match="row 75"):
        do(engine, folder / "in.csv", folder / "out.csv")
    bad = str(folder / "bad.jsonl")
    assert do(engine, folder / "in.csv", folder / "out.csv", resume=True, bad_rows=bad).num_bad_rows == 1
    assert do(engine, folder / "in.csv", folder / "out.csv", resume=True, bad_rows=bad).was_finished


def test_what_was_left_behind_by_another_is_not_deleted(folder, engine):
    (folder / ".out.csv.parts").mkdir()
    (folder / ".out.csv.parts" / "mine").touch()
    do(engine, folder / "in.csv", folder / "out.csv")
    assert names(folder / ".out.csv.parts") == ["mine"]


def test_work_of_a_run_that_has_ended_is_cleared_and_never_used(folder, engine):
    """It was killed while it removed its parts: the manifest goes first."""
    (folder / ".out.csv.parts").mkdir()
    for name in ("99999999-000000.done", "99999999-000000-000000-000000.csv", "x.0123456789abcdef.tmp"):
        (folder / ".out.csv.parts" / name).write_text("old")
    do(engine, folder / "in.csv", folder / "out.csv")
    assert len(read_csv(folder / "out.csv")) == len(TEXTS)
    assert names(folder) == ["in.csv", "out.csv"]


def test_a_damaged_manifest_is_one_line(folder, engine, interrupt):
    interrupt()
    for content in ("", "[]", "{}", '{"run": 1', "[" * 100_000):
        (folder / ".out.csv.parts" / plans.MANIFEST).write_text(content)
        with pytest.raises(ValueError, match=r"manifest.json is damaged; delete .*out.csv.parts to start over.$"):
            do(engine, folder / "in.csv", folder / "out.csv", resume=True)


# Standard input, of which nothing is known but what is read.


@pytest.fixture
def stdin(folder, monkeypatch):
    """Puts texts on standard input."""

    def put(texts):
        (folder / "stdin").write_text("".join(f"{text}\n" for text in texts))
        stream = (folder / "stdin").open()
        monkeypatch.setattr(sys, "stdin", stream)
        return stream

    return put


LINES = [text for text in TEXTS if "\n" not in text and "\r" not in text]


def test_standard_input_that_is_another_is_noticed(folder, engine, interrupt, stdin):
    def resume():
        return do(engine, "-", folder / "out.csv", resume=True)

    other = [*LINES[:3], "something else", *LINES[4:]]
    with stdin(LINES):
        interrupt("-")
    with stdin(other), pytest.raises(ValueError, match="standard input has changed since the job began; delete"):
        resume()
    with stdin(LINES[:4]), pytest.raises(ValueError, match="standard input has changed since the job began; delete"):
        resume()
    with stdin(LINES):
        assert not resume().was_finished
    assert [row["text"] for row in read_csv(folder / "out.csv")] == LINES
    with stdin(LINES):
        assert resume().was_finished
    for lines in (other, LINES[:-1], [*LINES, ""]):
        with stdin(lines), pytest.raises(ValueError, match="was made by another job: its standard input was another"):
            resume()


def test_no_lines_are_compared_too(folder, engine, stdin):
    for _ in range(2):
        with stdin([]):
            do(engine, "-", folder / "out.csv", resume=True)
    with stdin(["a"]), pytest.raises(ValueError, match="its standard input was another"):
        do(engine, "-", folder / "out.csv", resume=True)
