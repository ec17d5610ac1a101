"""`flaxsent classify`: what it prints, and that mistakes are one line."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import flaxsent
from flaxsent.cli import classify, main
from tests.jobs.conftest import COMMAND, names, read_csv


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
    assert err.endswith("out.csv is finished already\n")
    code, out, err = command(capsys, *options, "--output", folder / "out.csv", "--resume", "--all-scores")
    assert (code, out) == (2, "")
    assert "out.csv was made by another job: its all scores: false then, true now" in err
    assert err.count("\n") == 1
    more = ("--resume", "--special-tokens-in-text", "literal")
    code, out, err = command(capsys, *options, "--output", folder / "out.csv", *more)
    assert (code, out) == (2, "")
    assert 'made by another job: its special tokens in text: "special" then, "literal" now' in err


def test_standard_input_is_read_as_lines(tmp_path, tiny_folder):
    options = ["--model", str(tiny_folder("bert")), "--input", "-", "--output", str(tmp_path / "out.jsonl")]
    done = subprocess.run(
        [*COMMAND, *options, "--bad-rows", str(tmp_path / "bad.jsonl")],
        input=b"so good\n\xff\nbad",
        capture_output=True,
    )
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.decode().splitlines()[-1:] == [f"flaxsent: 1 rows were set aside in {tmp_path / 'bad.jsonl'}"]
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


# Texts and lines.


@pytest.fixture
def stdin(tmp_path, monkeypatch):
    """Puts bytes on standard input."""

    def put(content):
        (tmp_path / "stdin").write_bytes(content)
        stream = (tmp_path / "stdin").open()
        monkeypatch.setattr(sys, "stdin", stream)
        return stream

    return put


def test_lines_of_standard_input_come_out_in_their_order(stdin, capsys, tiny_folder, monkeypatch):
    monkeypatch.setattr(classify, "_CHUNK", 2)
    arguments = ["-", "--model", tiny_folder("bert"), "--format", "jsonl"]
    lines = ["so good", "", "bad 😀", "a\tb", "so good"]
    with stdin(("\ufeff" + "\r\n".join(lines)).encode()):
        code, out, err = command(capsys, *arguments)
    assert (code, err) == (0, "")
    found = [json.loads(line) for line in out.splitlines()]
    assert [record["text"] for record in found] == lines
    _, out, _ = command(capsys, *lines, *arguments[1:])
    alone = [json.loads(line)["scores"][0] for line in out.splitlines()]
    assert [record["scores"][0]["label"] for record in found] == [score["label"] for score in alone]
    # Packed in other rows, and the scores are of size 1.
    both = [[score["score"] for score in scores] for scores in ([record["scores"][0] for record in found], alone)]
    np.testing.assert_allclose(*both, rtol=0, atol=2e-6)


def test_lines_before_a_broken_one_still_come_out(stdin, capsys, tiny_folder):
    with stdin(b"so good\nso bad\n\xff\xfe\nlost\n"):
        code, out, err = command(capsys, "-", "--model", tiny_folder("bert"), "--format", "jsonl")
    assert code == 2
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["so good", "so bad"]
    assert err == "flaxsent: error: standard input line 3 is not UTF-8 text; convert it first.\n"


def test_truncated_lines_are_told_once(stdin, capsys, tiny_folder, monkeypatch):
    monkeypatch.setattr(classify, "_CHUNK", 2)
    with stdin(b"".join(b"word " * 99 + b"%d\n" % number for number in range(7))):
        code, _, err = command(capsys, "-", "--model", tiny_folder("bert"))
    assert (code, err) == (0, "flaxsent: 7 texts were truncated to 40 tokens\n")


def test_no_lines_give_no_rows(stdin, capsys, tiny_folder):
    with stdin(b""):
        assert command(capsys, "-", "--model", tiny_folder("bert"), "--format", "jsonl") == (0, "", "")


def test_a_line_whose_score_is_no_number_is_told_by_its_number(stdin, capsys, tiny_folder, monkeypatch):
    monkeypatch.setattr(classify, "_CHUNK", 2)
    score = flaxsent.Engine.__call__

    def with_nan(engine, texts):
        return np.where(np.array([[text == "odd"] for text in texts]), np.float32(np.nan), score(engine, texts))

    monkeypatch.setattr(flaxsent.Engine, "__call__", with_nan)
    with stdin(b"a\nb\nc\nodd\n"):
        code, out, err = command(capsys, "-", "--model", tiny_folder("bert"), "--format", "tsv")
    assert (code, out.count("\n")) == (2, 3), "the header, and the chunk before"
    assert err.startswith("flaxsent: error: standard input line 4 has a score that is not a finite number")


def test_lines_come_out_before_the_input_ends(tiny_folder):
    arguments = ["-", "--model", str(tiny_folder("bert")), "--format", "jsonl"]
    with subprocess.Popen([*COMMAND, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.writelines(f"line {number}\n" for number in range(1030))
        process.stdin.flush()
        found = [json.loads(process.stdout.readline())["text"] for _ in range(1024)]
        assert process.poll() is None
        rest, _ = process.communicate()
    assert found == [f"line {number}" for number in range(1024)]
    assert rest.count("\n") == 6


# Disks.


def test_a_full_disk_is_one_line(folder, capsys, tiny_folder, monkeypatch):
    def full(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    options = ["--model", tiny_folder("bert"), "--input", folder / "in.csv", "--output", folder / "out.csv"]
    code, out, err = command(capsys, *options)
    assert (code, out) == (2, "")
    assert err.startswith("flaxsent: error: [Errno 28] No space left on device: ")
    assert err.count("\n") == 1
    assert names(folder) == ["in.csv"]
    monkeypatch.undo()
    assert command(capsys, *options)[0] == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_ours_is_one_line(folder, capsys, tiny_folder):
    (folder / "theirs").mkdir(mode=0o500)
    options = ["--model", tiny_folder("bert"), "--input", folder / "in.csv", "--output"]
    for output in (folder / "theirs" / "out.csv", folder / "theirs"):
        code, _, err = command(capsys, *options, output)
        assert code == 2
        assert err.endswith("is a folder that you may not write to; choose another.\n")
