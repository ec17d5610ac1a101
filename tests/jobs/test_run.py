"""Files in, files out: what comes out of a job."""

import dataclasses
import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import flaxsent
from flaxsent.data.writers import ESCAPES
from flaxsent.engine import Engine
from flaxsent.jobs.plan import JobOptions, plan
from flaxsent.jobs.progress import Progress
from flaxsent.jobs.run import run
from tests.jobs.conftest import TEXTS, do, make_engine, names, read_csv, write_csv
from tests.test_engine import TOLERANCE, obvious


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
    for suffix in ("csv", "jsonl", "parquet", "tsv"):
        do(engine, folder / "in.csv", folder / f"out.{suffix}")
    rows = read_csv(folder / "out.csv")
    assert [row["text"] for row in rows] == TEXTS
    jsonl = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [{name: str(value) for name, value in row.items()} for row in jsonl] == rows
    table = pq.read_table(folder / "out.parquet").to_pylist()
    assert [{name: value for name, value in row.items() if name != "score"} for row in table] == [
        {name: value for name, value in row.items() if name != "score"} for row in rows
    ]
    assert [row["score"] for row in table] == [np.float32(row["score"]) for row in rows]
    lines = (folder / "out.tsv").read_text().splitlines()[1:]
    assert lines == ["\t".join(cell.translate(ESCAPES) for cell in row.values()) for row in rows]
    assert pq.ParquetFile(folder / "out.parquet").num_row_groups > 5


def test_pairs_are_scored_as_pairs(tmp_path, engine):
    pairs = [("so good", "bad"), ("b", "a"), ("ß", "x" * 90)]
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
    with pytest.raises(ValueError, match=r"in.csv row 75 has 1 columns; .* --bad-rows FILE .*; --resume goes on"):
        do(engine, folder / "in.csv", folder / "out.csv")
    assert names(folder) == [".out.csv.parts", "in.csv"]
    parts = len(names(folder / ".out.csv.parts"))
    assert parts > 5
    with pytest.raises(FileExistsError, match=r"belongs to a job that is running or was stopped; pass --resume"):
        do(engine, folder / "in.csv", folder / "out.csv")
    with pytest.raises(ValueError, match="row 75"):
        do(engine, folder / "in.csv", folder / "out.csv", resume=True)
    assert (
        do(engine, folder / "in.csv", folder / "out.csv", resume=True, bad_rows=str(folder / "bad.jsonl")).num_bad_rows
        == 1
    )
    assert do(engine, folder / "in.csv", folder / "again.csv", bad_rows=str(folder / "again.jsonl")).num_bad_rows == 1
    assert (folder / "out.csv").read_bytes() == (folder / "again.csv").read_bytes()
    assert (folder / "bad.jsonl").read_bytes() == (folder / "again.jsonl").read_bytes()
    assert names(folder) == ["again.csv", "again.jsonl", "bad.jsonl", "in.csv", "out.csv"]


def test_a_job_that_ends_before_anything_is_done_leaves_nothing(tmp_path, engine):
    (tmp_path / "in.csv").write_bytes(MIXED)
    with pytest.raises(
        ValueError,
        match=r"in.csv row 3 is not UTF-8 text; .* --encoding .*; pass --bad-rows FILE .* aside.$",
    ):
        do(engine, tmp_path / "in.csv", tmp_path / "out.csv")
    assert names(tmp_path) == ["in.csv"]


def test_bad_rows_are_set_aside_with_their_place_and_reason(tmp_path, engine, monkeypatch):
    (tmp_path / "in.csv").write_bytes(MIXED)
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": null}\n{"text":\n')
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "in.parquet")
    monkeypatch.chdir(tmp_path)
    inputs = ["in.csv", "in.jsonl", "in.parquet"]
    assert do(engine, inputs, "out", bad_rows="bad.jsonl").num_bad_rows == 6
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
    (tmp_path / "in.jsonl").write_text("[]\n" * 3)
    (tmp_path / "in.csv").write_text("text\n" + "a,b\n" * 3)
    for name, suffix in [("in.csv", "csv"), ("in.jsonl", "parquet"), ("in.jsonl", "jsonl")]:
        output, bad = tmp_path / f"out.{suffix}", tmp_path / f"bad-{suffix}.jsonl"
        assert do(engine, tmp_path / name, output, bad_rows=str(bad)).num_bad_rows == 3
    assert (tmp_path / "out.csv").read_text() == "text,label,score\n"
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_a_full_disk_is_told_by_the_file_and_what_is_done_is_kept(folder, engine, monkeypatch):
    fsync, count = os.fsync, [0]

    def full(descriptor):
        count[0] += 1
        if count[0] > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=r"No space left on device: '.*/.out.csv.parts/[0-9a-f]{8}-000000-000000-000003.csv'"
    ):
        do(engine, folder / "in.csv", folder / "out.csv")
    monkeypatch.setattr(os, "fsync", fsync)
    assert not [name for name in names(folder / ".out.csv.parts") if name.endswith(".tmp")]
    do(engine, folder / "in.csv", folder / "out.csv", resume=True)
    assert len(read_csv(folder / "out.csv")) == len(TEXTS)


# Scores that are no numbers.


@pytest.fixture
def odd_engine(engine, monkeypatch):
    """Gives NaN to texts with the word `hate`."""
    batches = engine.batches

    def with_nan(lists):
        taken = []
        for scores_BC in batches(taken.append(texts) or texts for texts in lists):
            is_odd = np.array(["hate" in text for text in taken.pop(0)], bool)
            yield np.where(is_odd[:, None], np.float32(np.nan), scores_BC)

    monkeypatch.setattr(engine, "batches", with_nan)
    return engine


def test_a_score_that_is_no_number_ends_the_job_with_the_file_and_the_row(folder, odd_engine):
    row = next(number for number, text in enumerate(TEXTS, start=2) if "hate" in text)
    with pytest.raises(ValueError, match=r"in.csv row .* has a score that is not a finite number: \[nan, nan, nan\]"):
        do(odd_engine, folder / "in.csv", folder / "out.jsonl")
    assert not (folder / "out.jsonl").exists()
    assert row  # of the text that has a line end, the record is not the line


def test_rows_whose_score_is_no_number_are_set_aside(folder, odd_engine):
    odd = [index for index, text in enumerate(TEXTS) if "hate" in text]
    for suffix in ("csv", "jsonl", "parquet"):
        bad, output = folder / f"{suffix}.bad", folder / f"out.{suffix}"
        assert do(odd_engine, folder / "in.csv", output, bad_rows=str(bad), all_scores=True).num_bad_rows == len(odd)
        rows = [json.loads(line) for line in bad.read_text().splitlines()]
        assert [row["row"] for row in rows] == [index + 2 for index in odd]
        assert all("not a finite number" in row["reason"] for row in rows)
    assert b"NaN" not in (folder / "out.jsonl").read_bytes()
    found = [json.loads(line)["text"] for line in (folder / "out.jsonl").read_text().splitlines()]
    assert found == [text for text in TEXTS if "hate" not in text]
    assert pq.read_table(folder / "out.parquet")["text"].to_pylist() == found


def test_a_checkpoint_with_nan_in_its_weights_writes_no_label(folder, tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    last = flaxsent.models.last_layer(classifier.params)
    last = {name: leaf.at[..., 0].set(np.nan) for name, leaf in last.items()}
    broken = dataclasses.replace(classifier, params=flaxsent.models.with_last_layer(classifier.params, last))
    with (
        make_engine(broken) as engine,
        pytest.raises(ValueError, match=r"in.csv row 2 has a score that is not a finite"),
    ):
        do(engine, folder / "in.csv", folder / "out.jsonl")
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
    assert progress.counts["num_texts"] == len(TEXTS)
