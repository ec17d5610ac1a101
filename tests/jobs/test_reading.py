"""Jobs on files that are not as their suffixes say: the same outputs, and nothing lost when a job is killed."""

import bz2
import csv
import gzip
import io

import pytest

from flaxsent import files
from flaxsent.base import FlaxsentError
from flaxsent.data.base import Reading
from tests.data.test_reading import zstd
from tests.jobs.conftest import TEXTS, KilledError, do, names, read_csv

ROWS = [(number, text) for number, text in enumerate(TEXTS) if text.isprintable()]


def table(delimiter=",", header=True, **quoting):
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n", **quoting)
    writer.writerows([("id", "text"), *ROWS] if header else ROWS)
    return stream.getvalue()


CASES = {
    "gzip": ("x.csv.gz", gzip.compress(table().encode()), {}, "text"),
    "bzip2": ("x.csv.bz2", bz2.compress(table().encode()), {}, "text"),
    "Zstandard": ("x.csv.zst", zstd(table().encode()), {}, "text"),
    "UTF-16": ("x.csv", table().encode("utf-16"), {"encoding": "utf-16"}, "text"),
    "a delimiter": ("x.csv", table("|").encode(), {"delimiter": "|"}, "text"),
    "no header": ("x.csv", table(header=False).encode(), {"has_header": False}, "2"),
    "another format": ("x.txt", table("\t").encode(), {"format": "tsv", "quoting": "minimal"}, "text"),
    "all at once": (
        "x.dat.gz",
        gzip.compress(table(";", header=False).encode("gb18030")),
        {"format": "csv", "delimiter": ";", "encoding": "gb18030", "has_header": False},
        "2",
    ),
}


@pytest.mark.parametrize(("name", "data", "reading", "column"), CASES.values(), ids=CASES)
def test_a_job_that_is_killed_goes_on_to_what_a_plain_file_gives(
    tmp_path, engine, monkeypatch, name, data, reading, column
):
    (tmp_path / "plain.csv").write_bytes(table().encode())
    do(engine, tmp_path / "plain.csv", tmp_path / "plain.jsonl")
    expected = (tmp_path / "plain.jsonl").read_text()
    if column == "2":
        expected = expected.replace('{"id": ', '{"1": ').replace(', "text": ', ', "2": ')
    (tmp_path / name).write_bytes(data)
    write, count = files.write, [0]

    def write_some(file, content):
        count[0] += 1
        if count[0] % 4 == 0:
            raise KilledError
        write(file, content)

    monkeypatch.setattr(files, "write", write_some)
    options = {"text_columns": (column,), "reading": Reading(**reading), "resume": True}
    for _ in range(20):
        try:
            do(engine, tmp_path / name, tmp_path / "out.jsonl", **options)
        except KilledError:
            assert not (tmp_path / "out.jsonl").exists()
        else:
            break
    assert count[0] > 4, "it was killed"
    assert (tmp_path / "out.jsonl").read_text() == expected
    assert do(engine, tmp_path / name, tmp_path / "out.jsonl", **options).was_finished


def test_a_job_goes_on_only_as_its_files_were_read(tmp_path, engine, monkeypatch):
    (tmp_path / "x.csv").write_bytes(table().encode())
    write = files.write

    def write_some(file, content):
        if file.name.endswith("3.csv"):
            raise KilledError
        write(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", write_some)
        with pytest.raises(KilledError):
            do(engine, tmp_path / "x.csv", tmp_path / "out.csv")
    with pytest.raises(
        FlaxsentError, match=r"its reading of files: .*\"encoding\": null.* then, .*\"encoding\": \"cp1252\""
    ):
        do(engine, tmp_path / "x.csv", tmp_path / "out.csv", resume=True, reading=Reading(encoding="cp1252"))
    do(engine, tmp_path / "x.csv", tmp_path / "out.csv", resume=True)
    assert [row["text"] for row in read_csv(tmp_path / "out.csv")] == [text for _, text in ROWS]


def test_a_file_that_is_cut_off_ends_the_job_and_what_was_done_is_kept(tmp_path, engine):
    data = gzip.compress(table().encode(), compresslevel=0)  # so that what is before the cut can be read
    (tmp_path / "x.csv.gz").write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(FlaxsentError, match=r"x.csv.gz is not gzip, or is damaged or cut off: .*; fetch it again"):
        do(engine, tmp_path / "x.csv.gz", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_outputs_in_a_folder_have_the_names_of_what_was_read(tmp_path, engine, caplog):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "a.csv.gz").write_bytes(gzip.compress(b"text\nso good\n"))
    (tmp_path / "in" / "b.csv").write_bytes(b"text\nso good\n")
    (tmp_path / "in" / "notes.gz").write_bytes(b"")  # of no known kind
    do(engine, tmp_path / "in", tmp_path / "out")
    assert names(tmp_path / "out") == ["a.csv", "b.csv"]
    assert [(row["text"], row["row"]) for row in read_csv(tmp_path / "out" / "a.csv")] == [("so good", "2")]
    (tmp_path / "ratings.txt").write_bytes(b"text\tid\nso good\t1\n")
    do(engine, tmp_path / "ratings.txt", tmp_path / "out", reading=Reading(format="tsv"))
    assert (tmp_path / "out" / "ratings.tsv").read_text().startswith("text\tid\tlabel\tscore\trow\n")
    assert not caplog.records
    do(engine, tmp_path / "ratings.txt", tmp_path / "lines.txt")
    assert "ratings.txt: every line of it has a tab: if it is a table, pass --format tsv" in caplog.text


@pytest.mark.parametrize(
    ("inputs", "output", "reading", "message"),
    [
        (["a.csv", "a.csv.gz"], "out", {}, "a.csv would be written twice"),
        (["a.csv"], "out.csv.gz", {}, "outputs are not compressed; leave out .gz"),
        (
            ["a.csv", "a.jsonl"],
            "out",
            {"delimiter": ";"},
            "a.jsonl is read as jsonl, and --delimiter is for CSV and TSV",
        ),
        (["-"], "out.csv", {"format": "csv"}, "--input - is read as lines; save a table as a file: csv"),
        (["a.dat"], "out.csv", {}, "a.dat: expected a file that ends in .txt, .*; or pass --format"),
    ],
)
def test_what_cannot_be_read_or_written_is_refused_before_anything_is_written(
    tmp_path, engine, monkeypatch, inputs, output, reading, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    for name, data in {
        "a.csv": b"text\na\n",
        "a.csv.gz": gzip.compress(b"text\na\n"),
        "a.jsonl": b'{"text": "a"}\n',
        "a.dat": b"text\na\n",
    }.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(FlaxsentError, match=message):
        do(engine, inputs, output, reading=Reading(**reading))
    assert names(tmp_path) == ["a.csv", "a.csv.gz", "a.dat", "a.jsonl", "out"]
