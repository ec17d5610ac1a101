"""Which files a job reads and writes, and what is refused before anything is written."""

import pytest

from flaxsent.jobs.plan import JobOptions, plan
from flaxsent.jobs.shards import Shard
from tests.jobs.conftest import do, names


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
        (["*.parquet"], "out.csv", {}, "no such file"),
        (["in.csv"], "out.xlsx", {}, "out.xlsx: expected a file that ends in .txt, .csv"),
        (
            ["in.jsonl"],
            "out.csv",
            {},
            "a .jsonl input cannot be written as .csv; name an output that ends in .jsonl or",
        ),
        (["in.md"], "out.csv", {}, "in.md: expected a file that ends in"),
        (["in.csv"], "none/out.csv", {}, "none is not a folder; make it first"),
        (["in.csv"], "none/out", {}, "none is not a folder; make it first"),
        (["in.csv"], "in.csv", {"overwrite": True}, "in.csv is an input, and would be overwritten"),
        (["in.csv", "*.txt"], "out.csv", {}, "several inputs need a folder"),
        (["in.csv", "in.csv"], "out", {}, "in.csv would be written twice"),
        (["-"], "out", {}, "standard input needs a file"),
        (["-", "in.csv"], "out.csv", {}, "cannot be read together with files"),
        (["in.csv"], "there.csv", {}, "there.csv exists already; pass --overwrite"),
        (["in.csv"], "out.csv", {"bad_rows": "there.csv"}, "there.csv exists already; pass --overwrite"),
        (["in.csv"], "out.csv", {"bad_rows": "out.csv"}, "out.csv would be written twice"),
        (["in.csv"], "there.csv", {"resume": True}, "there.csv exists already; pass --overwrite"),
        (["in.csv"], "out.csv", {"shard": Shard(0, 2)}, "several processes need a folder"),
        (["-"], "out.csv", {"shard": Shard(0, 2)}, "one stream, which several processes cannot share"),
        (["rows.csv"], "out", {"shard": Shard(0, 2)}, "has a column 'row' already; pass --prefix TEXT"),
        (["in.csv"], "out.csv", {"text_columns": ("body",)}, "in.csv has the columns id, text; expected body"),
        (["in.txt"], "out.csv", {"text_columns": ("a", "b")}, "in.txt has the columns a; expected b"),
        (["there.csv"], "out.csv", {}, "there.csv has a column 'label' already; pass --prefix TEXT"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(folder, monkeypatch, inputs, output, options, message):
    monkeypatch.chdir(folder)
    (folder / "in.txt").write_text("a\n")
    (folder / "in.jsonl").write_text('{"text": "a"}\n')
    (folder / "rows.csv").write_text("text,row\na,1\n")
    (folder / "in.md").write_text("a\n")
    (folder / "there.csv").write_text("text,label\na,b\n")
    before = names(folder)
    with pytest.raises((ValueError, OSError), match=message):
        plan(inputs, output, JobOptions(**options))
    assert names(folder) == before
