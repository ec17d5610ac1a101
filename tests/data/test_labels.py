"""What labels mean: one rule in every format, and what is refused."""

import decimal
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flaxsent.base import FlaxsentError, ProblemType
from flaxsent.data.annotations import Annotations, read_annotations
from flaxsent.data.labels import (
    Examples,
    Task,
    describe,
    read_examples,
    resolve,
    to_examples,
)
from tests.data.tables import content

SINGLE: ProblemType = "single_label_classification"
MULTI: ProblemType = "multi_label_classification"
REGRESSION: ProblemType = "regression"
NAN = math.nan
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def labelled(folder, suffix, values):
    """A file of texts with these labels, as pandas or a JSON writer would write it."""
    path = folder / f"data{suffix}"
    texts = [f"text {index}" for index in range(len(values))]
    match suffix:
        case ".parquet":
            try:
                column = pa.array(values, from_pandas=False)
            except pa.ArrowException:  # a column has one type there
                column = pa.array([value if value is None else str(value) for value in values])
            pq.write_table(pa.table({"text": texts, "label": column}), path)
        case ".jsonl":
            lines = [
                json.dumps({"text": text, "label": value}) + "\n" for text, value in zip(texts, values, strict=True)
            ]
            path.write_text("".join(lines))
        case _:
            cells = ["" if one is None else json.dumps(one) if isinstance(one, list) else str(one) for one in values]
            if suffix == ".csv":
                cells = [
                    '"{}"'.format(cell.replace('"', '""')) if '"' in cell or "," in cell else cell for cell in cells
                ]
            separator = "," if suffix == ".csv" else "\t"
            rows = [("text", "label"), *zip(texts, cells, strict=True)]
            path.write_text("".join(separator.join(row) + "\n" for row in rows))
    return path


def understood(file, **options):
    annotations = read_annotations(file)
    task = resolve(annotations, **options)
    return *task, to_examples(annotations, labels=task.labels, problem_type=task.problem_type).labels


CASES = {
    "names": (["joy", "fear", "joy"], ("fear", "joy"), SINGLE, [1, 0, 1]),
    "names in spaces": ([" joy", "fear ", "joy"], ("fear", "joy"), SINGLE, [1, 0, 1]),
    "booleans": ([True, False, True], ("false", "true"), SINGLE, [1, 0, 1]),
    "spelt booleans": (["TRUE", "false", "True"], ("false", "true"), SINGLE, [1, 0, 1]),
    "integers": ([10, 9, 10], ("9", "10"), SINGLE, [1, 0, 1]),
    "negative integers": ([-1, 0, 1], ("-1", "0", "1"), SINGLE, [0, 1, 2]),
    "integers as floats": ([1.0, 0.0, 1.0], ("0", "1"), SINGLE, [1, 0, 1]),
    "integers as text": (["1.0", "0", "1"], ("0", "1"), SINGLE, [1, 0, 1]),
    "decimals": ([0.5, 2.0, -1.0], ("label",), REGRESSION, [0.5, 2.0, -1.0]),
    "decimals as text": (["+.5", "2", "-1e0"], ("label",), REGRESSION, [0.5, 2.0, -1.0]),
    "numbers and names": ([1, "2.5", "x"], ("1", "2.5", "x"), SINGLE, [0, 1, 2]),
    "codes": (["007", "07", "7"], ("007", "07", "7"), SINGLE, [0, 1, 2]),
    "versions": (["3.10", "3.1", "pypy"], ("3.1", "3.10", "pypy"), SINGLE, [1, 0, 2]),
    "names in brackets": (["[other]", "[joy", "x"], ("[joy", "[other]", "x"), SINGLE, [1, 0, 2]),
    "lists": ([["joy", "fear"], [], ["joy"]], ("fear", "joy"), MULTI, [(0, 1), (), (1,)]),
    "lists of integers": ([[10, 9], [], [9]], ("9", "10"), MULTI, [(0, 1), (), (0,)]),
    "lists of floats": ([[10.0, 9.0], [9.0]], ("9", "10"), MULTI, [(0, 1), (0,)]),
    "vectors": ([[0, 1, 0], [1, 0, 1], [0, 0, 0]], ("0", "1", "2"), MULTI, [(1,), (0, 2), ()]),
    "vectors of floats": ([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]], ("0", "1", "2"), MULTI, [(1,), (0, 2)]),
    "vectors of booleans": ([[False, True, False], [True, False, True]], ("0", "1", "2"), MULTI, [(1,), (0, 2)]),
    "vectors of two": ([[0, 1], [1, 0]], ("0", "1"), MULTI, [(1,), (0,)]),
    "indices of one length": ([[0, 1], [1, 2]], ("0", "1", "2"), MULTI, [(0, 1), (1, 2)]),
    "none": (["none", "NA", "none"], ("NA", "none"), SINGLE, [1, 0, 1]),
}  # fmt: skip


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("values", "labels", "problem_type", "expected"), CASES.values(), ids=CASES)
def test_every_format_gives_the_same_examples(tmp_path, suffix, values, labels, problem_type, expected):
    file = labelled(tmp_path, suffix, values)
    assert understood(file) == (labels, problem_type, expected)
    # a model of these labels and of this type understands the same
    assert understood(file, known=Task(labels, problem_type)) == (labels, problem_type, expected)
    assert read_examples(file, labels=labels, problem_type=problem_type).labels == expected


MISSING = {
    "null": ["x", None],
    "NaN": ["x", NAN],
    "NaN among numbers": [1.0, NAN],
    "spelt NaN": ["x", "NaN"],
    "spelt null": ["x", "null"],
    "empty": ["x", ""],
    "space": ["x", " "],
    "null in a list": [["x"], [None]],
    "NaN in a list": [[1.0], [NAN]],
    "empty in a list": [["x"], [""]],
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("values", MISSING.values(), ids=MISSING)
def test_a_missing_label_is_an_error_with_its_row_in_every_format(tmp_path, suffix, values):
    row = 3 if suffix in (".csv", ".tsv") else 2
    with pytest.raises(FlaxsentError, match=rf"data{suffix} row {row} has no label in the column 'label'"):
        read_annotations(labelled(tmp_path, suffix, values))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_problem_type_can_be_said(tmp_path, suffix):
    integers = labelled(tmp_path, suffix, [1, 3, 2])
    assert understood(integers, problem_type=REGRESSION) == (("label",), REGRESSION, [1.0, 3.0, 2.0])
    decimals = labelled(tmp_path, suffix, [0.5, 1.0, 0.5])
    assert understood(decimals, problem_type=SINGLE) == (("0.5", "1"), SINGLE, [0, 1, 0])


def test_lists_of_python_are_lists_too(tmp_path):
    file = content(tmp_path, "x.tsv", b"text\tlabel\na\t['joy', 'fear']\nb\t[]\nc\t[1], [2]\n")
    assert read_annotations(file).labels == [("joy", "fear"), (), "[1], [2]"]


def test_labels_between_separators(tmp_path):
    file = content(tmp_path, "x.tsv", b"text\tlabel\na\tjoy | [other]\nb\t[]\nc\tjoy\nd\t1.0\n")
    labels = [("joy", "[other]"), (), ("joy",), ("1",)]
    assert read_annotations(file, label_separator="|").labels == labels
    lines = [{"text": "a", "label": 1}, {"text": "b", "label": True}, {"text": "c", "label": ["x|y"]}]
    file = content(tmp_path, "x.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    assert read_annotations(file, label_separator="|").labels == [("1",), ("true",), ("x|y",)]


def test_parquet_has_many_kinds_of_numbers(tmp_path):
    columns = {
        "half": pa.array([0.1, 1.0], pa.float32()),
        "price": pa.array([decimal.Decimal("0.10"), decimal.Decimal("1.00")]),
        "code": pa.array(["0.1", "1"]).dictionary_encode(),
        "small": pa.array([7, 1], pa.uint8()),
    }
    pq.write_table(pa.table({"text": ["a", "b"]} | columns), tmp_path / "x.parquet")
    found = {name: read_annotations(tmp_path / "x.parquet", label_column=name).labels for name in columns}
    assert found == {"half": ["0.1", "1"], "price": ["0.10", "1"], "code": ["0.1", "1"], "small": ["7", "1"]}


# the labels of a model


def annotated(values):
    return Annotations("x.csv", "label", [""] * len(values), values, [*range(2, 2 + len(values))])


def examples_for(labels, values, problem_type: ProblemType = SINGLE):
    values = [tuple(value) if isinstance(value, list) else value for value in values]
    annotations = annotated(values)
    return to_examples(annotations, labels=labels, problem_type=problem_type).labels


def test_labels_are_names_or_everywhere_indices():
    assert examples_for(("neg", "pos"), ["pos", "neg"]) == [1, 0]
    assert examples_for(("neg", "pos"), ["1", "0"]) == [1, 0]
    assert examples_for(("neg", "pos"), [["1"], []], MULTI) == [(1,), ()]
    with pytest.raises(FlaxsentError, match=r"row 3 has the label '0': '0' is unknown; expected neg, pos \(or their"):
        examples_for(("neg", "pos"), ["pos", "0"])
    with pytest.raises(
        FlaxsentError, match=r"row 3 has the label '2': '2' is unknown; .* indices, 0 to 1, in every row"
    ):
        examples_for(("neg", "pos"), ["1", "2"])


def test_indices_do_not_count_where_a_name_is_a_number():
    stars = ("1", "2", "3", "4")
    assert examples_for(stars, ["1", "4"]) == [0, 3]
    for labels in (stars, ("1.0", "2.0", "x", "y")):
        with pytest.raises(FlaxsentError, match=r"row 2 has the label '0': '0' is unknown; expected [^()]*\.$"):
            examples_for(labels, ["0", "1"])
    assert resolve(annotated(["0", "1"]), known=Task(stars, SINGLE)).labels == ("0", "1")


def test_names_are_compared_as_the_file_writes_them():
    assert examples_for(("1.0", "2.0"), ["2", "1"]) == [1, 0]
    assert examples_for(("False", "True"), ["true", "false"]) == [1, 0]
    with pytest.raises(FlaxsentError, match=r"of the labels 1, 1\.0, a file cannot tell two apart"):
        examples_for(("1", "1.0"), ["1"])


def test_vectors_are_as_long_as_there_are_labels():
    names = ("joy", "fear", "love")
    assert examples_for(names, [["0", "1", "0"], ["1", "0", "1"]], MULTI) == [(1,), (0, 2)]
    assert examples_for(names, [["true", "false", "false"]], MULTI) == [(0,)]
    assert examples_for(names, [["0", "1"], ["1", "0"]], MULTI) == [(0, 1), (0, 1)], "two indices each"
    for values in ([["0", "1", "0"], ["1"]], [["joy", "joy"]]):
        with pytest.raises(
            FlaxsentError, match=r"row 2 has the label .* twice; expected .* or 3 zeros and ones in every"
        ):
            examples_for(names, values, MULTI)


def test_a_model_keeps_its_labels_if_the_file_has_no_others():
    own = Task(("NEGATIVE", "POSITIVE"), SINGLE)
    for values in (["POSITIVE", "NEGATIVE"], ["POSITIVE", "POSITIVE"]):
        assert resolve(annotated(values), known=own) == own
    assert resolve(annotated(["1", "0"]), known=own).labels == ("0", "1"), "numbers are not the model's names"
    assert resolve(annotated(["POSITIVE", "NEUTRAL"]), known=own).labels == ("NEUTRAL", "POSITIVE")
    assert resolve(annotated(["true", "false"]), known=own).labels == ("false", "true")
    assert resolve(annotated(["1", "2"]), known=own).labels == ("1", "2")
    assert resolve(annotated([("POSITIVE",), ()]), known=own) == Task(("POSITIVE",), MULTI)
    assert resolve(annotated(["0.5", "1"]), known=own) == Task(("label",), REGRESSION)
    assert resolve(annotated(["0.5", "1"]), known=Task(("stars",), REGRESSION)) == Task(("stars",), REGRESSION)


def test_a_model_of_as_many_labels_keeps_them_for_vectors():
    vectors = annotated([("0", "1", "1"), ("1", "0", "0")])
    own = Task(("joy", "fear", "love"), MULTI)
    assert resolve(vectors, known=own) == own
    assert resolve(vectors, known=Task(("joy", "fear"), MULTI)).labels == ("0", "1", "2")
    assert resolve(vectors, labels=["a", "b", "c"]) == Task(("a", "b", "c"), MULTI)


# what is refused


@pytest.mark.parametrize(
    ("values", "labels", "problem_type", "message"),
    [
        (["x", ["y"]], ("x", "y"), MULTI, r"row 2 has the label 'x'; expected a list of labels"),
        (["x", ["y"]], ("x", "y"), SINGLE, r"row 3 has the label \['y'\]; expected one label"),
        (["1", "x"], ("label",), REGRESSION, r"row 3 has the label 'x'; expected a finite number"),
        (["1", "1e39"], ("label",), REGRESSION, r"row 3 has the label '1e39'; expected a finite number of float32"),
        (["1", "inf"], ("label",), REGRESSION, r"row 3 has the label 'inf'; expected a finite number"),
        (["1", "true"], ("label",), REGRESSION, r"row 3 has the label 'true'; expected a finite number"),
        (["1", ["1"]], ("label",), REGRESSION, r"row 3 has the label \['1'\]; expected a finite number"),
        (["x" * 99, "y"], ("y", "z"), SINGLE, r"row 2 has the label 'x{38}…: '(x{99})' is unknown; expected y, z"),
    ],
)
def test_labels_that_do_not_fit_are_named_with_their_row(values, labels, problem_type, message):
    with pytest.raises(FlaxsentError, match=rf"^x.csv {message}"):
        examples_for(labels, values, problem_type)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (["x", "x"], {}, "x.csv has only the label x; expected two or more"),
        ([(), ()], {}, "x.csv has only empty lists of labels"),
        (["0.5", "1"], {"labels": ["a", "b"]}, "regression has one label, the name of the value; a, b are 2"),
    ],
)
def test_labels_that_make_no_classifier_are_refused(values, options, message):
    with pytest.raises(FlaxsentError, match=message):
        resolve(annotated(values), **options)


def test_infinity_among_numbers_is_no_class():
    assert resolve(annotated(["0.5", "inf"])).problem_type == REGRESSION
    assert resolve(annotated(["inf", "form"])) == Task(("form", "inf"), SINGLE)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "x.jsonl",
            b'{"text": "a", "label": {"x": 1}}\n',
            r"row 1 has the label \{'x': 1\}; expected names or numbers",
        ),
        (
            "x.jsonl",
            b'{"text": "a", "label": [["x"]]}\n',
            r"row 1 has the label \[\['x'\]\]; expected names or numbers",
        ),
        ("x.jsonl", b'{"text": "a", "label": "x"}\n{"text": "b"}\n', "row 2 has no label in the column 'label'"),
        ("x.csv", b"text,label\na,x\n,y\n", "row 3 has no text in the column 'text'"),
        ("x.csv", b"text,label\n", "has no rows; expected at least one"),
        ("x.csv", b"text,kind\na,x\n", "has the columns text, kind; expected label"),
    ],
)
def test_files_that_have_no_labels_are_named(tmp_path, name, data, message):
    for separator in (None, "|"):
        with pytest.raises(FlaxsentError, match=f"{name} {message}"):
            read_annotations(content(tmp_path, name, data), label_separator=separator)


def test_an_empty_separator_is_refused(tmp_path):
    with pytest.raises(FlaxsentError, match="label_separator is empty; expected a character or more"):
        read_annotations(content(tmp_path, "x.csv", b"text,label\na,x\n"), label_separator="")


def test_parquet_labels_that_are_no_text_are_named(tmp_path):
    columns = {
        "bad": pa.array([b"\xff"], pa.binary()).view(pa.string()),
        "time": pa.array([1], pa.timestamp("ns")),
        "bytes": pa.array([b"x"]),
    }
    pq.write_table(pa.table({"text": ["a"]} | columns), tmp_path / "x.parquet")
    for column, message in {
        "bad": "is not UTF-8 text in the column 'bad'",
        "time": "has a label that cannot be read|expected names or numbers",
        "bytes": r"has the label b'x'; expected names or numbers",
    }.items():
        with pytest.raises(FlaxsentError, match=rf"x.parquet row 1 .*({message})"):
            read_annotations(tmp_path / "x.parquet", label_column=column)


# what is told


def test_what_was_understood_is_told_in_a_line():
    examples = Examples(["a"] * 4000, [0] * 1990 + [1] * 2010)
    told = "4,000 texts, 2 labels: neg 1,990, pos 2,010; one label per text"
    assert describe(examples, ("neg", "pos"), SINGLE) == told
    several = Examples(["a"] * 4, [(0, 1), (), (1,), (1,)])
    assert (
        describe(several, ("a\n", "b", "c"), MULTI)
        == "4 texts, 3 labels: 'a\\n' 1, b 3, c 0; 1 labels per text on average"
    )
    values = Examples(["a"] * 2, [0.5, 4.0])
    assert describe(values, ("stars",), REGRESSION) == "2 texts, values from 0.5 to 4; regression"


def test_many_labels_are_told_by_the_rarest_and_the_most_frequent():
    labels = tuple(f"l{index}" for index in range(77))
    examples = Examples(["a"] * 79, [*range(77), 3, 3])
    assert describe(examples, labels, SINGLE) == "79 texts, 77 labels: from l0 1 to l3 3; one label per text"
