"""`flaxsent explain`: what it prints and writes, and that mistakes are one line."""

import json
import sys

import pytest

from flaxsent.cli import explain, main
from flaxsent.evaluation.explanations import Explanation, Word
from flaxsent.tokenization import Span


def command(capsys, *arguments):
    code = main(["explain", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def model(tiny_folder):
    return ["--model", str(tiny_folder("bert")), "--method", "occlusion"]


def test_texts_are_explained_as_json_and_on_a_page(model, tmp_path, capsys):
    texts = ["so <b>good</b>", "", "word " * 99]
    page = tmp_path / "page.html"
    code, out, err = command(capsys, *texts, *model, "--label", "LABEL_1", "--json", "--html", page)
    assert (code, err) == (0, "flaxsent: 1 texts were truncated to 40 tokens\n")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["text"] for line in lines] == texts
    assert {line["label"] for line in lines} == {"LABEL_1"}
    assert [word["word"] for word in lines[0]["words"]] == ["so", "<", "b", ">", "good", "<", "/", "b", ">"]
    assert lines[0]["words"][4].items() >= {"start": 6, "end": 10}.items()
    assert lines[1]["words"] == []
    assert page.read_text().count("<section>") == 3
    assert "&lt;</span>" in page.read_text()


def test_a_file_gives_its_columns_and_the_explanations(model, tmp_path, capsys):
    table, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    table.write_text('{"a": "so good", "b": "bad", "id":  7}\n{"a": "x", "b": "y"}\n')
    columns = ["--text-column", "a", "--second-column", "b"]
    assert command(capsys, *model, "--input", table, "--output", output, *columns) == (0, "", "")
    first, second = output.read_text().splitlines()
    assert first.startswith('{"a": "so good", "b": "bad", "id":  7, "label": "LABEL_')
    assert [(word["word"], word["part"]) for word in json.loads(first)["words"]] == [("so", 0), ("good", 0), ("bad", 1)]
    assert json.loads(second)["words"][1]["word"] == "y"
    code, out, err = command(capsys, *model, "--input", table, "--output", output, *columns)
    assert (code, out) == (2, "")
    assert "out.jsonl exists; pass --overwrite" in err
    before = output.read_bytes()
    table.write_text('{"a": "so good", "b": "bad"}\n{"a": "x"}\n')
    code, _, err = command(capsys, *model, "--input", table, "--output", output, *columns, "--overwrite")
    assert code == 2
    assert "in.jsonl row 2 has no text in the column 'b'; correct it, or leave it out." in err
    assert output.read_bytes() == before, "whole or not at all"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_label_given_at_run_time_is_explained(tiny_folder, capsys):
    """By the words of the text; the hypothesis belongs to no word."""
    folder = tiny_folder("bert", num_hidden_layers=1, id2label={"0": "entailment", "1": "contradiction"})
    model = ["--model", str(folder), "--labels", "film,so bad", "--template", "it is {}"]
    code, out, err = command(capsys, "so good!", *model, "--label", "so bad", "--json", "--steps", "9")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["label"], [word["word"] for word in found["words"]]) == ("so bad", ["so", "good", "!"])
    assert found["special_tokens"] == 0
    assert sum(word["score"] for word in found["words"]) == pytest.approx(found["difference"] + found["gap"], abs=1e-5)
    assert command(capsys, "so", *model, "--label", "good")[2].count(
        "there is no label 'good'; this checkpoint has film"
    )
    assert "--template needs --labels" in command(capsys, "so", "--template", "it is {}")[2]


WORDS = [Word(Span(0, 0, 2), "so", 0.5), Word(Span(0, 3, 7), "good", 2.0), Word(Span(0, 8, 9), "\x1b", -2.0)]
EXPLANATION = Explanation("so good \x1b[0m", "GO\x1bOD", 0.75, WORDS, 0.0, 0.5, 0.0)


def test_words_are_coloured_by_score_and_control_characters_do_not_come_through():
    head, text, told = explain._coloured(EXPLANATION).split("\n")
    assert head == "GO OD 0.7500"
    assert text == "\x1b[38;5;16;48;5;195mso\x1b[0m \x1b[38;5;16;48;5;75mgood\x1b[0m \x1b[38;5;16;48;5;208m \x1b[0m[0m"
    assert told.endswith("a gap of +0")


def test_words_are_listed_elsewhere():
    assert explain._listed(EXPLANATION).split("\n")[:-1] == [
        "GO OD 0.7500",
        "+0.5000\tso",
        "+2.0000\tgood",
        "-2.0000\t ",
    ]


@pytest.mark.parametrize(
    ("is_terminal", "environment", "expected"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": ""}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
    ],
)
def test_colours_are_for_terminals_that_are_not_told_to_be_plain(monkeypatch, is_terminal, environment, expected):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    assert explain._has_colours() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to explain"),
        (["so", "--label", "HAPPY"], "there is no label 'HAPPY'; this checkpoint has LABEL_0"),
        (["so", "--method", "integrated-gradients", "--steps", "0"], "steps=0: expected 1 or more"),
        (["so", "--steps", "5"], "--steps is for --method integrated-gradients"),
        (["so", "--baseline", "zeros"], "zeros are none"),
        (["so", "--method", "gradient-x-input", "--baseline", "pad"], "whose baseline is zeros"),
        (["so", "--output", "out.jsonl"], "--output needs --input FILE"),
        (["so", "--input", "in.txt", "--output", "out.jsonl"], "TEXT does not go with --input"),
        (["--input", "in.txt", "--output", "out.jsonl", "--html", "x"], "--html does not go with --input"),
        (["--input", "in.txt"], "--input needs --output FILE.jsonl"),
        (["--input", "in.txt", "--output", "out.csv"], "--input needs --output FILE.jsonl"),
        (["--input", "none.txt", "--output", "out.jsonl"], "none.txt"),
        (["--input", "in.txt", "--output", "none/out.jsonl"], "none/out.jsonl"),
        (["--input", "in.csv", "--output", "out.jsonl"], "in.csv has the columns line; expected text"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(model, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("so good\n")
    (tmp_path / "in.csv").write_text("line\nso good\n")
    code, out, err = command(capsys, *model, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("flaxsent: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "in.txt"]
