"""What is trained on: tables in memory, a column for each label, numbers without names, rows that are set aside."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.data.labels import Examples
from flaxsent.training import run as training
from flaxsent.training import trainer
from tests.training.runs import refused, run


@pytest.fixture
def started(monkeypatch):
    """What trainers are given, none of which makes a step."""
    started = []

    def stop(*arguments, **_):
        started.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "Trainer", stop)
    monkeypatch.setattr(training, "Trainer", stop)
    return started


def test_fit_takes_tables_and_files_with_the_names_of_their_columns(tiny_folder, tmp_path, started):
    classifier = flaxsent.load(tiny_folder("bert", num_hidden_layers=1), labels=("bad", "good", "none"), new_head=True)
    examples = Examples(["good", "bad", "so"], [1, 0, 2])
    table = pa.table({"review": examples.texts, "mood": ["good", "bad", "none"]})
    pq.write_table(table, tmp_path / "x.parquet")
    columns = {"text_columns": ("review",), "label_column": "mood"}
    for train, dev, more in (
        (examples, None, {}),
        (table, examples, columns),
        (tmp_path / "x.parquet", table, columns),
        (str(tmp_path / "x.parquet"), None, columns),
    ):
        with pytest.raises(KeyboardInterrupt):
            flaxsent.fit(classifier, train, dev, **more)
        assert started[-1] == (classifier, examples, None if dev is None else examples)
    with pytest.raises(FlaxsentError, match="the table has the columns review, mood; expected text and label"):
        flaxsent.fit(classifier, table)
    with pytest.raises(FlaxsentError, match="the table row 1 has the label 'awful': 'awful' is unknown"):
        flaxsent.fit(classifier, pa.table({"text": ["a"], "label": ["awful"]}))


def test_a_run_on_a_column_for_each_label_sets_bad_rows_aside(capsys, tmp_path, tiny_folder, started):
    lines = ["id;text;joy;fear", *(f"{index};café {word};{bits}" for index, (word, bits) in enumerate(ROWS))]
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode("cp1252")))
    (tmp_path / "dev.csv").write_text("id;text;joy;fear\n1;good;1;0\n2;;1;0\n", encoding="cp1252")
    arguments = (
        *("train", "--model", tiny_folder("bert", num_hidden_layers=1), "--output", tmp_path / "out"),
        *("--train", tmp_path / "train.csv.gz", "--dev", tmp_path / "dev.csv", "--label-columns", "joy,fear"),
        *("--encoding", "cp1252", "--delimiter", ";"),
    )
    line = refused(capsys, *map(str, arguments))
    assert "train.csv.gz row 5 has 'x' in the label column 'fear'; expected 0 or 1, or true or false; 3 rows" in line
    assert "train.csv.gz rows 5, 6 and " in line
    assert line.endswith("dev.csv row 3; pass --bad-rows FILE to set such rows aside.\n")
    assert not started
    aside = ("--bad-rows", str(tmp_path / "bad.jsonl"))
    code, out, err = run(capsys, *map(str, arguments), *aside)
    assert (code, err) == (130, "flaxsent: stopped; --resume goes on from the last checkpoint\n")
    assert f"3 rows were set aside in {tmp_path / 'bad.jsonl'}\n" in out
    assert "4 texts, 2 labels: joy 2, fear 2; 1 labels per text on average, on a new head\n" in out
    bad = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [(row["file"].rpartition("/")[2], row["row"]) for row in bad] == [
        ("train.csv.gz", 5),
        ("train.csv.gz", 6),
        ("dev.csv", 3),
    ]
    classifier, train, dev = started[0]
    assert (classifier.config.labels, classifier.config.problem_type) == (("joy", "fear"), "multi_label_classification")
    assert train == Examples([f"café {word}" for word in ("good", "good", "bad", "bad")], [(0,), (0,), (1,), (1,)])
    assert dev == Examples(["good"], [(0,)])
    assert "bad.jsonl exists already" in refused(capsys, *map(str, arguments), *aside)


ROWS = [("good", "1;0"), ("good", "1;0"), ("bad", "0;1"), ("odd", "0;x"), ("odd", ";1"), ("bad", "0;1")]


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ("text,a,b\nx,1,0\n", ("--label-columns", "a,c"), "x.csv has the columns text, a, b; expected c"),
        (
            "text,a,b\nx,,\ny,,\n",
            ("--label-columns", "a,b"),
            "x.csv row 2 has no label in the column 'a'; 2 rows are bad",
        ),
        ("text,a,a\nx,1,0\n", ("--label-columns", "a"), "x.csv has the column 'a' twice"),
        ("text,a,b\nx,1,0\n", ("--label-columns", "a,text"), "'text' is the column of the texts, too"),
        (
            "text,a,b\nx,1,0\n",
            ("--label-columns", "a,b", "--labels", "a,b,c"),
            "expected one for each of the labels a, b, c",
        ),
        (
            "text,a\nx,1\n",
            ("--label-columns", "a", "--label-column", "b"),
            "label_column and label_columns: expected one",
        ),
    ],
)
def test_label_columns_that_cannot_be_are_one_line_before_a_step(capsys, tmp_path, tiny_folder, content, more, message):
    (tmp_path / "x.csv").write_text(content)
    model = ("--model", str(tiny_folder("bert")), "--output", str(tmp_path / "out"))
    assert message in refused(capsys, "train", *model, "--train", str(tmp_path / "x.csv"), *more)


@pytest.mark.parametrize(("more", "names"), [((), ("0", "1")), (("--labels", "ham,spam"), ("ham", "spam"))])
def test_a_file_of_0_and_1_answers_these_or_the_names_that_are_given(
    capsys, tmp_path, tiny_folder, started, more, names
):
    (tmp_path / "x.csv").write_text("text,label\na,0\nb,1\n")
    folder = tiny_folder("bert", num_hidden_layers=1, id2label={"0": "NEGATIVE", "1": "POSITIVE"})
    arguments = ("--model", folder, "--train", tmp_path / "x.csv", "--output", tmp_path / "out")
    code, out, _ = run(capsys, "train", *map(str, arguments), *more)
    assert (code, started[0][0].config.labels) == (130, names)
    assert out.endswith("on the checkpoint's head\n" if not more else "on a new head\n")
