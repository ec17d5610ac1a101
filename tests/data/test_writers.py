"""Records back into files: what each format keeps, and what is refused."""

import base64
import csv
import datetime
import decimal
import functools
import io
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flaxsent.base import FlaxsentError
from flaxsent.data.records import Layout, Record, format_of, read
from flaxsent.data.writers import ESCAPES, open_writer
from tests.data.tables import TABLE, content, write

SCORES = np.array([0.1, 1e-9, 1, 0.33333334], np.float32)


def written(path, output):
    """The rows of a file and one more column, in the format of another, in parts of two."""
    with read(path, text_columns=("text",)) as source:
        rows = [*source.records]
    writer = open_writer(format_of(output), source.layout, ("label", "score"))
    rows = [row._replace(error=row.error or writer.error(row)) for row in rows]
    assert [row.error for row in rows] == [None] * len(rows)
    parts = []
    for start in range(0, len(rows), 2):
        part = rows[start : start + 2]
        added = {"label": ["é,\n"] * len(part), "score": np.resize(SCORES, 99)[start : start + len(part)]}
        parts.append(output.with_name(f"part{start}"))
        parts[-1].write_bytes(writer.encode(part, added))
    with open(output, "wb") as stream:
        writer.join(parts, stream)
    return output


def table_of(path):
    """What others read in a file."""
    match path.suffix:
        case ".csv":
            return [*csv.DictReader(io.StringIO(path.read_bytes().decode(), newline=""))]
        case ".jsonl":
            return [json.loads(line) for line in path.read_bytes().decode().removesuffix("\n").split("\n")]
        case ".parquet":
            return pq.read_table(path).to_pylist()
        case ".tsv":
            header, *rows = path.read_bytes().decode().removesuffix("\n").split("\n")
            return [dict(zip(header.split("\t"), row.split("\t"), strict=True)) for row in rows]
        case _:
            rows = path.read_bytes().decode().removesuffix("\n").split("\n")
            return [dict(zip(["text", "label", "score"], row.split("\t")[-3:], strict=True)) for row in rows]


ANY, TEXT = [".jsonl", ".parquet"], [".txt", ".csv", ".tsv"]
PAIRS = [(suffix, output) for suffix in TEXT for output in TEXT + ANY] + [(s, output) for s in ANY for output in ANY]


@pytest.mark.parametrize(("suffix", "output"), PAIRS)
def test_an_output_has_all_columns_of_its_input(tmp_path, suffix, output):
    table = TABLE if suffix not in (".txt", ".tsv") else {"id": ["1", "2"], "text": ['"so" \\n é\u2028', " "]}
    out = written(write(tmp_path / f"in{suffix}", table), tmp_path / f"out{output}")
    found = table_of(out)
    is_escaped, is_own = (name in (".txt", ".tsv") for name in (output, suffix))
    expected = [text.translate(ESCAPES) if is_escaped and not is_own else text for text in table["text"]]
    assert [row["text"] for row in found] == expected, "backslashes of a .tsv stay in a .tsv"
    assert [row["label"] for row in found] == ["é,\\n" if is_escaped else "é,\n"] * len(found)
    np.testing.assert_array_equal(np.array([row["score"] for row in found], np.float32), SCORES[: len(found)])
    if ".txt" not in (suffix, output):
        assert [row["id"] for row in found] == table["id"]
        assert [*found[0]] == ["id", "text", "label", "score"]


def test_jsonl_stays_as_it_is_to_the_byte(tmp_path):
    lines = ['{"text":"\\u00e9", "n" : 1.10, "n": 12345678901234567890123, "deep": {"a": [1e5]} }', '{"text": "b"}']
    path = content(tmp_path, "x.jsonl", "\r\n".join(lines).encode())
    first, second = written(path, tmp_path / "y.jsonl").read_text().splitlines()
    assert first == lines[0][:-2] + ', "label": "é,\\n", "score": 0.1}'
    assert second == '{"text": "b", "label": "é,\\n", "score": 1e-09}'


MANY_TYPES = pa.table(
    {
        "text": pa.array(["a", "b", "c"]),
        "time": pa.array([1, None, 3], pa.timestamp("ns", "UTC")),
        "price": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("2.25")]),
        "day": pa.array([datetime.date(2020, 1, 2)] * 3),
        "tags": pa.array([["x"], [], None]),
        "more": pa.array([{"a": 1}, None, {"a": None}]),
        "code": pa.array(["u", "v", "u"]).dictionary_encode(),
        "bytes": pa.array([b"\xff", None, b""]),
        "yes": pa.array([True, None, False]),
        "n": pa.array([1, None, 3], pa.uint8()),
    }
).replace_schema_metadata({"kept": "yes"})


def test_parquet_keeps_its_types(tmp_path):
    pq.write_table(MANY_TYPES, tmp_path / "x.parquet", row_group_size=2)
    found = pq.read_table(written(tmp_path / "x.parquet", tmp_path / "y.parquet"))
    assert found.drop_columns(["label", "score"]).equals(MANY_TYPES)
    assert found.schema.metadata[b"kept"] == b"yes"
    assert found.schema.field("score").type == pa.float32()


FLOAT, FAR = pa.float32(), [2**38 * 1000]  # milliseconds; Python's dates end before
NESTED = {
    "list": (pa.list_(FLOAT), [[0.1, None], None], [[0.1, None], None]),
    "struct": (pa.struct([("x", FLOAT), ("n", pa.int8())]), [{"x": 0.1, "n": 1}] * 2, [{"x": 0.1, "n": 1}] * 2),
    "map": (pa.map_(pa.string(), FLOAT), [[("k", 0.1)]] * 2, [[["k", 0.1]]] * 2),
    "pair": (pa.list_(FLOAT, 2), [[0.1, 0.2]] * 2, [[0.1, 0.2]] * 2),
    "times": (pa.list_(pa.timestamp("ms")), [FAR, []], [["10680-07-14 06:09:04.000"], []]),
    "days": (pa.list_(pa.struct([("day", pa.date32())])), [[{"day": datetime.date(2020, 1, 2)}], None], None),
}


@pytest.mark.parametrize(("kind", "values", "expected"), NESTED.values(), ids=NESTED)
def test_what_lies_in_columns_of_parquet_is_written_as_the_columns_are(tmp_path, kind, values, expected):
    pq.write_table(pa.table({"text": ["a", "b"], "value": pa.array(values, kind)}), tmp_path / "x.parquet")
    found = [row["value"] for row in table_of(written(tmp_path / "x.parquet", tmp_path / "y.jsonl"))]
    assert found == ([[{"day": "2020-01-02"}], None] if expected is None else expected)


def test_text_of_parquet_that_is_not_utf8_stays_in_parquet_and_is_refused_in_json(tmp_path):
    other = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xe9t\xe9"]).buffers())
    pq.write_table(pa.table({"text": ["a"], "other": other}), tmp_path / "x.parquet")
    found = pq.read_table(written(tmp_path / "x.parquet", tmp_path / "y.parquet"))
    assert found["other"].cast(pa.binary()).to_pylist() == [b"\xe9t\xe9"]
    with pytest.raises(FlaxsentError, match=r"text that is not UTF-8 \(b'\\xe9t\\xe9'\).* ends in .parquet"):
        written(tmp_path / "x.parquet", tmp_path / "y.jsonl")


VIEW = pa.string_view()
VIEWS = {
    "text": (VIEW, ["a", "é" * 99, None]),
    "bytes": (pa.binary_view(), [b"a", None, b"\xff" * 99]),
    "list": (pa.list_(VIEW), [["a", None], [], None]),
    "large list": (pa.large_list(VIEW), [["a"], [], None]),
    "pair": (pa.list_(VIEW, 2), [["a", "b"], ["c", None], None]),
    "struct": (pa.struct([("x", VIEW), ("n", pa.int8())]), [{"x": "a", "n": 1}, {"x": None, "n": 2}, None]),
    "map": (pa.map_(pa.string(), VIEW), [[("k", "a")], [("k", None)], None]),
}


@pytest.mark.parametrize("output", ANY)
@pytest.mark.parametrize(("kind", "values"), VIEWS.values(), ids=VIEWS)
def test_views_of_parquet_keep_their_values(tmp_path, output, kind, values):
    """polars and others write them; pyarrow cannot take some rows of them."""
    table = pa.table({"text": ["a", "b", "c"], "value": pa.array(values, kind)})
    pq.write_table(table, tmp_path / "x.parquet")
    found = [row["value"] for row in table_of(written(tmp_path / "x.parquet", tmp_path / f"y{output}"))]
    as_json = functools.partial(json.dumps, default=lambda value: base64.b64encode(value).decode())
    assert as_json(found) == as_json(values)


def test_parquet_as_json_is_what_json_has_or_else_arrows_text(tmp_path):
    pq.write_table(MANY_TYPES, tmp_path / "x.parquet")
    record = table_of(written(tmp_path / "x.parquet", tmp_path / "y.jsonl"))[0]
    assert record == {
        "text": "a",
        "time": "1970-01-01 00:00:00.000000001Z",
        "price": "1.50",
        "day": "2020-01-02",
        "tags": ["x"],
        "more": {"a": 1},
        "code": "u",
        "bytes": "/w==",
        "yes": True,
        "n": 1,
        "label": "é,\n",
        "score": 0.1,
    }


def test_json_has_types_in_parquet_where_a_column_has_one(tmp_path):
    lines = [
        {"text": "a", "n": 1, "x": 1, "yes": True, "mixed": 1, "deep": {"a": []}},
        {"text": "b", "n": None, "x": 0.5, "mixed": "m", "none": None},
    ]
    path = content(tmp_path, "x.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    table = pq.read_table(written(path, tmp_path / "y.parquet"))
    assert {name: str(table.schema.field(name).type) for name in table.column_names} == {
        "text": "string",
        "n": "int64",
        "x": "double",
        "yes": "bool",
        "mixed": "string",
        "deep": "string",
        "none": "string",
        "label": "string",
        "score": "float",
    }
    assert table.column("deep").to_pylist() == ['{"a": []}', None]
    assert table.column("mixed").to_pylist() == ["1", "m"]


@pytest.mark.parametrize(
    ("form", "record", "error"),
    [
        ("parquet", {"n": "one"}, "has one in the column 'n', which holds int64 in the first rows"),
        ("parquet", {"n": 2**63}, "has 9223372036854775808 in the column 'n'"),
        ("parquet", {"n": True}, "has true in the column 'n'"),
        ("parquet", {"n": 1, "more": 1}, "has a column 'more', which none of the first rows has"),
        ("jsonl", {"more": 1}, None),
        ("jsonl", {"label": 1}, "has a column 'label' already"),
    ],
)
def test_later_json_that_does_not_go_with_the_first_is_a_bad_row(form, record, error):
    layout = Layout("jsonl", ("text", "n"), {"text": "string", "n": "int64"})
    found = open_writer(form, layout, ("label", "score")).error(Record(1, "a", {"text": "a"} | record))
    assert (found or "").startswith(error or "")
    assert (found is None) == (error is None)


@pytest.mark.parametrize(("suffix", "output"), [pair for pair in PAIRS if ".tsv" not in pair])
def test_no_rows_give_no_rows(tmp_path, suffix, output):
    path = write(tmp_path / f"x{suffix}", {"text": pa.array([], pa.string()) if suffix == ".parquet" else []})
    out = written(path, tmp_path / f"y{output}")
    if output == ".parquet":
        assert pq.read_table(out).column_names == ["text", "label", "score"]
    else:
        assert out.read_text() == ("text,label,score\n" if output == ".csv" else "")


@pytest.mark.parametrize("suffix", ANY)
@pytest.mark.parametrize("output", TEXT)
def test_typed_columns_are_not_written_as_text(tmp_path, suffix, output):
    with (
        read(write(tmp_path / f"x{suffix}"), text_columns=("text",)) as source,
        pytest.raises(
            FlaxsentError, match=rf"a {suffix} input cannot be written as {output}; .* in .jsonl or .parquet"
        ),
    ):
        open_writer(format_of(f"y{output}"), source.layout, ("label", "score"))


def test_escaped_cells_can_be_told_apart_and_read_back(tmp_path):
    texts = ["a\tb", "a\\tb", "a\\\tb", "a\nb", "a\\nb", "\\"]
    out = written(write(tmp_path / "x.csv", {"text": texts}), tmp_path / "y.tsv")
    cells = [row["text"] for row in table_of(out)]
    assert len({*cells}) == len(texts)
    back = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}
    assert [re.sub(r"\\[\\tnr]", lambda found: back[found[0]], cell) for cell in cells] == texts


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("output", TEXT + ANY)
def test_a_score_that_is_not_finite_is_never_written(tmp_path, output, number):
    with read(write(tmp_path / "x.txt", {"text": ["a"]}), text_columns=("text",)) as source:
        writer = open_writer(format_of(f"y{output}"), source.layout, ("label", "score"))
        with pytest.raises(ValueError, match="the column 'score' has a number that is not finite"):
            writer.encode([*source.records], {"label": ["x"], "score": np.array([number], np.float32)})


def test_json_has_no_nan_from_a_python_list_of_scores_either(tmp_path):
    with read(write(tmp_path / "x.txt", {"text": ["a"]}), text_columns=("text",)) as source:
        writer = open_writer("jsonl", source.layout, ("label", "score"))
        with pytest.raises(ValueError, match="not JSON compliant"):
            writer.encode([*source.records], {"label": ["x"], "score": [np.nan]})


def test_nan_of_an_input_becomes_null_in_json(tmp_path):
    table = pa.table({"text": ["a", "b"], "x": [np.nan, 1.5], "deep": [[{"y": np.inf}], [{"y": 2.0}]]})
    pq.write_table(table, tmp_path / "x.parquet")
    first, second = table_of(written(tmp_path / "x.parquet", tmp_path / "y.jsonl"))
    assert (first["x"], first["deep"]) == (None, [{"y": None}])
    assert (second["x"], second["deep"]) == (1.5, [{"y": 2.0}])
