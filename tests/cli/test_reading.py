"""The options that say how files are read: the same for every command, and mistakes are one line and exit code 2."""

import gzip
import json
import re

import pytest

from flaxsent.cli import main

KOREAN = "2;재미있다;1\n1;별로다;0\n3;so good;1\n"
OPTIONS = ("--format", "csv", "--delimiter", ";", "--no-header", "--encoding", "cp949", "--text-column", "2")


def command(capsys, *arguments):
    code = main([*map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def model(tiny_folder):
    return ("--model", tiny_folder("bert", num_hidden_layers=1, id2label={"0": "NEGATIVE", "1": "POSITIVE"}))


@pytest.fixture
def file(tmp_path):
    (tmp_path / "ratings.dat.gz").write_bytes(gzip.compress(KOREAN.encode("cp949")))
    return tmp_path / "ratings.dat.gz"


def test_classify_explain_and_evaluate_read_the_same(capsys, tmp_path, model, file):
    code, _, err = command(capsys, "classify", *model, "--input", file, "--output", tmp_path / "out.csv", *OPTIONS)
    assert (code, err) == (0, "")
    rows = [line.split(",") for line in (tmp_path / "out.csv").read_text().splitlines()]
    assert [row[:3] for row in rows] == [line.split(";") for line in KOREAN.splitlines()], "no header"
    labels = [row[3] for row in rows]
    method = ("--method", "occlusion")
    code, _, err = command(
        capsys, "explain", *model, *method, "--input", file, "--output", tmp_path / "e.jsonl", *OPTIONS
    )
    assert (code, err) == (0, "")
    found = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [(one["2"], one["label"]) for one in found] == [(row[1], row[3]) for row in rows]
    code, out, _ = command(capsys, "evaluate", *model, "--data", file, "--label-column", "3", "--json", *OPTIONS)
    right = sum((label == "POSITIVE") == (row[2] == "1") for label, row in zip(labels, rows, strict=True))
    assert code == 0
    assert json.loads(out)["accuracy"] == pytest.approx(right / 3)


COMMANDS = {
    "classify": ("classify", "--prefix", "my_", "--output", "out.jsonl", "--input"),
    "explain": ("explain", "--method", "occlusion", "--output", "out.jsonl", "--input"),
    "evaluate": ("evaluate", "--data"),
    "train": ("train", "--output", "out", "--train"),
}
BAD = {
    "x.csv": (
        b"text,label\ncaf\xe9 so good,1\n",
        (),
        "row 2 is not UTF-8 text; .* such as --encoding cp1252 or latin-1",
    ),
    "a.csv": (
        "text,label\na,1\n".encode("utf-16"),
        (),
        "is UTF-16, by the mark at its beginning; pass --encoding utf-16",
    ),
    "b.csv.gz": (b"text,label\na,1\n", (), "is not gzip, or is damaged or cut off"),
    "c.csv.gz": (gzip.compress(b"text,label\na,1\n" * 99)[:30], (), "is not gzip, or is damaged or cut off"),
    "d.csv": (b"text;label\na;1\n", (), "expected text.*: pass --delimiter ';'"),
    "e.csv": (b"text,text,label\na,b,1\n", (), "has the column 'text' twice"),
    "f.csv": (b"text,label\na,1\n", ("--encoding", "nope"), "encoding='nope' is none that Python knows"),
    "g.csv": (b"text,label\na,1\n", ("--no-header",), "has no header, and the columns 1 to 2; expected text"),
    "h.jsonl": (b'{"text": "a", "label": 1}\n', ("--quoting", "none"), "--quoting is for CSV and TSV only"),
    "i.csv": (b"\0" * 999, (), "expected text"),
    "j.csv": (gzip.compress(b"text,label\na,1\n"), (), "is compressed by gzip; name it so that it ends in .gz"),
    "k.csv": (b"text,label\na,1\n", ("--delimiter", "ab"), "delimiter='ab'; expected one character"),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(("file", "data", "more", "message"), [(name, *told) for name, told in BAD.items()], ids=BAD)
def test_files_that_cannot_be_read_are_one_line(capsys, monkeypatch, tmp_path, model, name, file, data, more, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).write_bytes(data)
    code, out, err = command(capsys, *COMMANDS[name], file, *model, *more)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert re.search(message, err), err


def test_format_says_what_is_printed_or_with_input_what_the_files_are(capsys, tmp_path, model):
    (tmp_path / "x.txt").write_text("text\nso good\n")
    arguments = ("classify", *model, "--input", tmp_path / "x.txt", "--output", tmp_path / "out.jsonl")
    code, _, err = command(capsys, *arguments, "--format", "table")
    assert (code, "--format table with --input, which says what the files are: expected lines, csv," in err) == (
        2,
        True,
    )
    assert command(capsys, *arguments, "--format", "csv")[0] == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["text"] == "so good"
    code, _, err = command(capsys, "classify", *model, "a", "--format", "csv")
    assert (code, "--format csv of what is printed: expected table, jsonl, tsv." in err) == (2, True)
    for option in (("--encoding", "cp1252"), ("--no-header",)):
        code, _, err = command(capsys, "classify", *model, "a", *option)
        assert (code, f"{option[0]} needs --input FILE." in err) == (2, True)


def test_evaluate_reads_a_column_for_each_label_and_sets_bad_rows_aside(capsys, tmp_path, tiny_folder):
    names = {"0": "joy", "1": "fear"}
    folder = tiny_folder("bert", num_hidden_layers=1, id2label=names, problem_type="multi_label_classification")
    model = ("--model", folder, "--json")
    (tmp_path / "wide.csv").write_text("text,fear,joy\nso good,0,1\nbad,1,0\n,1,0\nx,maybe,0\n")
    (tmp_path / "lists.jsonl").write_text('{"text": "so good", "label": ["joy"]}\n{"text": "bad", "label": ["fear"]}\n')
    arguments = ("evaluate", *model, "--data", tmp_path / "wide.csv", "--label-columns", "joy,fear")
    code, out, err = command(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "wide.csv row 4 has no text in the column 'text'; 2 rows are bad: " in err
    assert err.endswith("wide.csv rows 4, 5; pass --bad-rows FILE to set such rows aside.\n")
    code, wide, err = command(capsys, *arguments, "--bad-rows", tmp_path / "bad.jsonl")
    assert (code, err) == (0, f"flaxsent: 2 rows were set aside in {tmp_path / 'bad.jsonl'}\n")
    assert [json.loads(line)["row"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()] == [4, 5]
    code, lists, _ = command(capsys, "evaluate", *model, "--data", tmp_path / "lists.jsonl")
    assert json.loads(wide) == json.loads(lists)
    for more, message in {
        ("--label-column", "a"): "--label-column and --label-columns: expected one of the two",
        ("--label-separator", ";"): "a label separator is for one column of several",
        ("--bad-rows", tmp_path / "wide.csv"): "wide.csv is an input, and would be overwritten",
    }.items():
        code, _, err = command(capsys, *arguments, *more)
        assert (code, err.count("\n"), message in err) == (2, 1, True)
    code, _, err = command(capsys, *arguments[:-1], "fear")
    assert (code, "has the label columns fear; expected one for each of the labels joy, fear" in err) == (2, True)
