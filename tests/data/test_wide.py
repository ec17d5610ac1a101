"""A column for each label, classes that a file names itself, and rows that are set aside."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flaxsent.base import FlaxsentError, ProblemType
from flaxsent.data.annotations import read_annotations
from flaxsent.data.bad_rows import BadRows
from flaxsent.data.base import Reading
from flaxsent.data.labels import Task, keeps_head, read_examples, resolve, set_aside, to_examples
from flaxsent.data.records import read_texts
from tests.data.tables import content

SINGLE: ProblemType = "single_label_classification"
MULTI: ProblemType = "multi_label_classification"
NAMES = ("joy", "fear", "anger")


def wide(folder, suffix, values, names=NAMES):
    """A table with a column for each name."""
    rows = [{"text": f"text {index}"} | dict(zip(names, row, strict=True)) for index, row in enumerate(values)]
    path = folder / f"x{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        delimiter = "," if suffix == ".csv" else "\t"
        path.write_text(
            "".join(delimiter.join(map(str, row)) + "\n" for row in [rows[0], *(row.values() for row in rows)])
        )
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("kind", [int, bool, float])
def test_a_column_for_each_label_is_several_labels(tmp_path, suffix, kind):
    path = wide(tmp_path, suffix, [[*map(kind, row)] for row in ([0, 1, 1], [0, 0, 0], [1, 0, 0])])
    found = read_annotations(path, label_columns=NAMES)
    task = resolve(found)
    assert task == (NAMES, MULTI)
    assert to_examples(found, **task._asdict()).labels == [(1, 2), (), (0,)]
    # By name, whatever the order: of the columns that are asked for, of a model's labels, of labels that are given.
    turned = read_annotations(path, label_columns=("anger", "joy", "fear"))
    assert resolve(turned, known=Task(NAMES, MULTI)).labels == NAMES
    assert to_examples(turned, labels=NAMES, problem_type=MULTI).labels == [(1, 2), (), (0,)]
    assert resolve(turned, labels=("fear", "anger", "joy")).labels == ("fear", "anger", "joy")
    assert to_examples(found, labels=("fear", "anger", "joy"), problem_type=MULTI).labels == [(0, 1), (), (2,)]
    assert resolve(found, known=Task(("joy", "fear", "love"), MULTI)).labels == NAMES, "a model of others"


def test_numbers_of_columns_are_named_by_the_labels_in_their_order(tmp_path):
    path = content(tmp_path, "x.csv", b"so good,1,0\nbad,0,1\n")
    reading = Reading(has_header=False)
    found = read_annotations(path, text_columns=("1",), label_columns=("3", "2"), reading=reading)
    assert resolve(found).labels == ("3", "2")
    assert resolve(found, labels=("fear", "joy")).labels == ("fear", "joy")
    assert to_examples(found, labels=("fear", "joy"), problem_type=MULTI).labels == [(1,), (0,)]


def test_true_and_1_are_labels_that_columns_may_be_named(tmp_path):
    path = wide(tmp_path, ".csv", [[0, 1, 1]], names=("TRUE", "1.0", "x"))
    assert read_examples(
        path, label_columns=("TRUE", "1.0", "x"), labels=("x", "TRUE", "1.0"), problem_type=MULTI
    ).labels == [(0, 2)]


@pytest.mark.parametrize(
    ("columns", "more", "message"),
    [
        (("joy", "love"), {}, r"x.csv has the columns text, joy, fear, anger; expected love"),
        (("joy", "joy"), {}, "the label columns joy, joy: expected one or more, whose names differ"),
        (("1", "1.0"), {}, r"the label columns 1, 1\.0: expected one or more, whose names differ"),
        ((), {}, r"the label columns \(none\): expected one or more"),
        (("text", "joy"), {}, "the label columns text, joy: 'text' is the column of the texts, too"),
        (("joy",), {"label_separator": "|"}, "have one label each; a label separator is for one column of several"),
    ],
)
def test_label_columns_that_cannot_be_are_refused(tmp_path, columns, more, message):
    with pytest.raises(FlaxsentError, match=message):
        read_annotations(wide(tmp_path, ".csv", [[0, 1, 1]]), label_columns=columns, **more)


def test_label_columns_that_are_not_the_labels_are_refused(tmp_path):
    found = read_annotations(wide(tmp_path, ".csv", [[0, 1, 1], [1, 0, 0]]), label_columns=NAMES)
    for labels in (("joy", "fear", "love"), ("joy", "fear"), (*NAMES, "love")):
        with pytest.raises(
            FlaxsentError, match=r"x.csv has the label columns joy, fear, anger; expected one for each of"
        ):
            resolve(found, labels=labels)
        with pytest.raises(FlaxsentError, match=r"expected one for each of the labels joy, fear.*, named like it"):
            to_examples(found, labels=labels, problem_type=MULTI)
    with pytest.raises(FlaxsentError, match=f"a column for each label is for {MULTI}; got {SINGLE}"):
        resolve(found, problem_type=SINGLE)
    with pytest.raises(FlaxsentError, match=r"x.csv row 2 has several labels; expected one, for single_label"):
        to_examples(found, labels=NAMES, problem_type=SINGLE)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("maybe", "has 'maybe' in the label column 'fear'; expected 0 or 1, or true or false"),
        ("2", "has '2' in the label column 'fear'; expected 0 or 1"),
        ("0.5", "has '0.5' in the label column 'fear'; expected 0 or 1"),
        ("", "has no label in the column 'fear'"),
        ("NaN", "has no label in the column 'fear', but 'NaN'"),
        ("[1]", r"has \('1',\) in the label column 'fear'|has \['1'\] in the label column 'fear'"),
    ],
)
def test_cells_of_label_columns_that_are_no_bit_are_told(tmp_path, cell, message):
    path = content(tmp_path, "x.tsv", f"text\tjoy\tfear\na\t1\t0\nb\t0\t{cell}\n".encode())
    with pytest.raises(FlaxsentError, match=rf"x.tsv row 3 ({message})"):
        read_annotations(path, label_columns=("joy", "fear"))


# numbers without names


@pytest.mark.parametrize(
    ("values", "known", "labels", "is_kept"),
    [
        ([0, 1], ("NEGATIVE", "POSITIVE"), ("0", "1"), True),
        ([1.0, 0.0], ("LABEL_0", "LABEL_1"), ("0", "1"), True),
        ([0, 2], ("a", "b", "c"), ("0", "1", "2"), True),
        ([0, 1], ("a", "b", "c"), ("0", "1"), False),
        ([0, 1, 2], ("NEGATIVE", "POSITIVE"), ("0", "1", "2"), False),
        ([1, 2], ("NEGATIVE", "POSITIVE"), ("1", "2"), False),
        ([0, 1, 2, 3], ("1", "2", "3", "4"), ("0", "1", "2", "3"), False),
        (["negative", "positive"], ("NEGATIVE", "POSITIVE"), ("negative", "positive"), True),
        (["positive", "negative"], ("POSITIVE", "NEGATIVE"), ("negative", "positive"), False),
    ],
)
def test_a_file_of_numbers_has_these_as_its_labels_and_keeps_a_head_of_as_many(
    tmp_path, values, known, labels, is_kept
):
    path = content(
        tmp_path, "x.csv", "".join(f"{row}\n" for row in ["text,label", *(f"a,{one}" for one in values)]).encode()
    )
    task = resolve(read_annotations(path), known=Task(known, SINGLE))
    assert task == (labels, SINGLE)
    assert keeps_head(Task(known, SINGLE), task) == is_kept
    assert not keeps_head(Task(known, MULTI), task)
    assert read_examples(path, **task._asdict()).labels == [labels.index(str(one).removesuffix(".0")) for one in values]


def test_names_that_are_given_are_those_of_the_numbers(tmp_path):
    path = content(tmp_path, "x.csv", b"text,label\na,0\nb,1\n")
    found = read_annotations(path)
    assert resolve(found, known=Task(("NEGATIVE", "POSITIVE"), SINGLE), labels=("ham", "spam")).labels == (
        "ham",
        "spam",
    )
    assert to_examples(found, labels=("ham", "spam"), problem_type=SINGLE).labels == [0, 1]


# bad rows


def test_all_bad_rows_are_told_at_once(tmp_path):
    data = b"text,label\na,x\n,x\nb\nc,\nd,y\n" + b"e,\n" * 30
    path = content(tmp_path, "x.csv", data)
    with pytest.raises(FlaxsentError) as caught:
        read_annotations(path)
    told = str(caught.value)
    assert "\n" not in told
    assert "x.csv row 3 has no text in the column 'text'; 33 rows are bad: " in told
    assert told.endswith("x.csv rows 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, ….")
    bad_rows = BadRows()
    read_annotations(path, bad_rows=bad_rows)
    with pytest.raises(FlaxsentError, match=r"^.*x.txt has no rows"):
        read_texts(content(tmp_path, "x.txt", b""), bad_rows=bad_rows)
    with pytest.raises(FlaxsentError, match=r"; pass --bad-rows FILE to set such rows aside\.$"):
        bad_rows.check("; pass --bad-rows FILE to set such rows aside")


def test_bad_rows_are_set_aside_as_classify_does_it(tmp_path):
    train = content(tmp_path, "train.csv", b"text,label\na,x\n\xff,x\nb,y\nc,\n")
    dev = content(tmp_path, "dev.csv", b"text,label\na,x\nb,z\n")
    bad_rows = BadRows(tmp_path / "bad.jsonl", inputs=[train, dev])
    found = read_annotations(train, bad_rows=bad_rows)
    task = resolve(found)
    assert task.labels == ("x", "y")
    kept = set_aside(read_annotations(dev, bad_rows=bad_rows), **task._asdict(), bad_rows=bad_rows)
    assert (kept.texts, kept.labels, kept.numbers) == (["a"], ["x"], [2])
    bad_rows.check()
    bad_rows.write()
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [(line["file"], line["row"], line["reason"], line.get("raw")) for line in lines] == [
        (str(train), 3, "is not UTF-8 text", "\\xff,x"),
        (str(train), 5, "has no label in the column 'label'", "c,"),
        (
            str(dev),
            3,
            "has the label 'z': 'z' is unknown; expected x, y (or their indices, 0 to 1, in every row)",
            None,
        ),
    ]
    assert bad_rows.num_rows == 3


def test_bad_rows_name_a_file_whose_name_is_not_utf8(tmp_path):
    bad_rows = BadRows(tmp_path / "bad.jsonl")
    read_annotations(content(tmp_path, os.fsdecode(b"x\xff.csv"), b"text,label\na,x\nb,\n"), bad_rows=bad_rows)
    bad_rows.write()
    (line,) = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert json.loads(line)["file"] == str(tmp_path / r"x\xff.csv")


def test_a_file_without_a_row_that_can_be_used_is_named(tmp_path):
    path = content(tmp_path, "x.csv", b"text,label\na,\nb,\n")
    for bad_rows in (None, BadRows(tmp_path / "bad.jsonl")):
        with pytest.raises(FlaxsentError, match=r"x.csv row 2 has no label in the column 'label'; 2 rows are bad"):
            read_annotations(path, bad_rows=bad_rows)
    bad_rows = BadRows(tmp_path / "bad.jsonl")
    found = read_annotations(content(tmp_path, "y.csv", b"text,label\na,z\n"))
    with pytest.raises(FlaxsentError, match=r"y.csv has no row that can be used: .*y.csv row 2 has the label 'z'"):
        set_aside(found, labels=("a", "b"), problem_type=SINGLE, bad_rows=bad_rows)


def test_bad_rows_must_not_overwrite_an_input(tmp_path):
    with pytest.raises(FlaxsentError, match=r"x.csv is an input, and would be overwritten"):
        BadRows(tmp_path / "x.csv", inputs=[tmp_path / "y" / ".." / "x.csv"])
