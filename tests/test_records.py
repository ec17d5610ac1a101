"""Records from files and back: what each format keeps, and what is said of rows that are broken."""

import csv
import datetime
import decimal
import io
import json
import sys
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flaxsent.data import records
from flaxsent.data.records import Layout, Row, format_of, open_writer, read

TABLE = {
    "id": ["1", "2", "3", "4"],
    "text": ["so good", 'she said "no",\nthen\tleft\r', "", "이 영화 😀 \u2028é"],
}


def write(path, table=TABLE):
    """A file of a table, made without flaxsent."""
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    match path.suffix:
        case ".csv":
            with open(path, "w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, table)
                writer.writeheader()
                writer.writerows(rows)
        case ".tsv":
            path.write_text("".join("\t".join(row) + "\n" for row in [list(table), *(row.values() for row in rows)]))
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".parquet":
            pq.write_table(pa.table(table), path, row_group_size=3)
        case _:
            path.write_text("".join(text + "\n" for text in table["text"]))
    return path


def rows_of(path, *columns):
    with read(path, text_columns=columns or ("text",)) as source:
        return [*source.rows]


def texts_and_errors(path, *columns):
    return [(row.number, row.error or row.text) for row in rows_of(path, *columns)]


def content(path, name, data):
    (path / name).write_bytes(data)
    return path / name


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_texts_come_as_they_are(tmp_path, suffix):
    rows = rows_of(write(tmp_path / f"x{suffix}"))
    assert [row.text for row in rows] == TABLE["text"]
    assert [row.error for row in rows] == [None] * 4


def test_lines_end_at_line_feeds_only(tmp_path):
    path = content(tmp_path, "x.TXT", "\ufeffso good\r\n\nbad\u2028😀\x0bx\nlast".encode())
    assert texts_and_errors(path, "line") == [(1, "so good"), (2, ""), (3, "bad\u2028😀\x0bx"), (4, "last")]
    assert rows_of(path, "line")[0].record == {"line": "so good"}


def test_tsv_has_no_quotation_marks(tmp_path):
    path = content(tmp_path, "x.tsv", b'text\tid\n"so" it is\t1\r\n"open\t2\n')
    assert texts_and_errors(path) == [(2, '"so" it is'), (3, '"open')]


def test_empty_lines_of_tables_are_no_rows(tmp_path):
    assert texts_and_errors(content(tmp_path, "x.csv", b"text\na\n\n\nb\n\n")) == [(2, "a"), (5, "b")]
    assert texts_and_errors(content(tmp_path, "x.jsonl", b'\n{"text": "a"}\r\n\n')) == [(2, "a")]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_two_columns_make_pairs(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix}", {"b": ["so", "ß"], "id": ["1", "2"], "a": ["good", "bad"]})
    assert [row.text for row in rows_of(path, "a", "b")] == [("good", "so"), ("bad", "ß")]


BAD = [
    ("x.txt", b"a\n\xff\xfe\nb\n", [(1, "a"), (2, "is not UTF-8 text"), (3, "b")]),
    ("x.csv", b"text,n\na,1\nb\nc,1,2\nd,1\n", [(2, "a"), (3, "has 1 columns; expected 2"), (4, ...), (5, "d")]),
    ("x.csv", b"text,n\na,1\nb\xe9,1\nc,\xed\xa0\x80\nd,1\n", [(2, "a"), (3, "is not UTF-8 text"), (4, ...), (5, "d")]),
    ("x.csv", b'text,n\n"a"b,1\nc,1\n', [(2, "is not CSV: ',' expected after '\"'"), (3, "c")]),
    ("x.csv", b'text,n\na,1\n"b,1\nc,1\n', [(2, "a"), (3, "is not CSV: unexpected end of data")]),
    ("x.tsv", b"text\tn\na\t1\nb\n\xff\t1\nc\t1\n", [(2, "a"), (3, ...), (4, "is not UTF-8 text"), (5, "c")]),
    ("x.jsonl", b'{"text": "a"}\n{"text": \n{"text": "b"}\n', [(1, "a"), (2, ...), (3, "b")]),
    ("x.jsonl", b'{"text": "a"}\n["b"]\n', [(1, "a"), (2, "is JSON of type list; expected an object")]),
    ("x.jsonl", b'{"text": "a"}\n{"id": 1}\n', [(1, "a"), (2, "has no text in the column 'text'")]),
    ("x.jsonl", b'{"text": "a"}\n{"text": null}\n', [(1, "a"), (2, "has no text in the column 'text'")]),
    ("x.jsonl", b'{"text": 5}\n', [(1, "has a value of type int in the column 'text'; expected text")]),
    ("x.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}\n', [(1, "a"), (2, "has a lone surrogate, which is not ...")]),
    ("x.jsonl", b'{"text": "a", "b": "\xff"}\n{"text": "b"}\n', [(1, "is not UTF-8 text"), (2, "b")]),
    ("x.jsonl", b"[" * 100_000 + b'\n{"text": "b"}\n', [(1, ...), (2, "b")]),
]


@pytest.mark.parametrize(("name", "data", "expected"), BAD)
def test_a_broken_row_says_so_and_the_next_one_comes(tmp_path, name, data, expected):
    found = texts_and_errors(content(tmp_path, name, data))
    assert [number for number, _ in found] == [number for number, _ in expected]
    for (_, text), (_, told) in zip(found, expected, strict=True):
        if told is not ...:
            assert text.startswith(told.removesuffix("..."))


def test_parquet_without_text_or_utf8(tmp_path):
    texts = pa.array([b"a", None, b"\xff", "é".encode()], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "x.parquet")
    assert texts_and_errors(tmp_path / "x.parquet") == [
        (1, "a"),
        (2, "has no text in the column 'text'"),
        (3, "is not UTF-8 text"),
        (4, "é"),
    ]


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()), pa.null()], ids=str
)
def test_parquet_has_many_kinds_of_text(tmp_path, kind):
    values = [None] * 2 if kind == pa.null() else ["a", "é"]
    pq.write_table(pa.table({"text": pa.array(values, kind)}), tmp_path / "x.parquet")
    rows = rows_of(tmp_path / "x.parquet")
    assert [None if row.error else row.text for row in rows] == values


def test_a_line_longer_than_memory_is_one_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_LONGEST", 1000)
    long = "long " * 10_000
    for name, head, begin in (("x.txt", "", 1), ("x.csv", "text\n", 2)):
        found = texts_and_errors(content(tmp_path, name, f"{head}a\n{long}\nb\n".encode()))
        assert found == [(begin, "a"), (begin + 1, "has a line of more than 1,000 bytes"), (begin + 2, "b")]


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl", ".parquet"])
def test_memory_is_flat(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix}", {"text": ["good " * 2000] * 2000})  # 20 MB
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": [f"{i} " * 2500 for i in range(6000)]}), path, row_group_size=6000)
    tracemalloc.start()
    allocated = pa.total_allocated_bytes()
    with read(path, text_columns=("text",)) as source:
        most = 0
        for row in source.rows:
            assert row.error is None
            most = max(most, pa.total_allocated_bytes() - allocated)
        assert source.position() == path.stat().st_size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6  # 256 rows of Parquet; the first rows of JSONL
    assert most < 32e6  # of 75 MB in one row group: two of its pages, which are of 1,024 rows


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.csv", b"id,body\n1,a\n", "x.csv has the columns id, body; expected text"),
        ("x.csv", b"", "has the columns \\(none\\); expected text"),
        ("x.csv", b"text,a,text\n", "has the column 'text' twice"),
        ("x.csv", b"text,\xff\n", "has a header that is not UTF-8 text"),
        ("x.csv", b'"text', "has no header that can be read"),
        ("x.jsonl", b'{"body": "a"}\n', "has the columns body; expected text"),
        ("x.parquet", b"PAR1", "x.parquet is not a Parquet file"),
        ("x.xlsx", b"", "expected a file that ends in .txt, .csv, .tsv, .jsonl, .parquet"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, data, message):
    with pytest.raises(ValueError, match=message):
        rows_of(content(tmp_path, name, data))


def test_parquet_without_a_column_of_text_and_damaged_parquet_are_named(tmp_path):
    pq.write_table(pa.table({"text": [1, 2], "body": ["a", "b"]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="has values of type int64 in the column 'text'; expected text"):
        rows_of(tmp_path / "x.parquet")
    pq.write_table(pa.table({"text": [f"{i}" * 50 for i in range(500)]}), tmp_path / "y.parquet")
    data = bytearray((tmp_path / "y.parquet").read_bytes())
    data[4:1000] = bytes(996)
    (tmp_path / "y.parquet").write_bytes(data)
    with pytest.raises(ValueError, match=r"(?s)y.parquet is damaged after row 0: .*; fetch it again"):
        rows_of(tmp_path / "y.parquet")


def test_without_pyarrow_the_command_that_installs_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'pip install "flaxsent\[data\]"'):
        rows_of(content(tmp_path, "x.parquet", b""))


SCORES = np.array([0.1, 1e-9, 1, 0.33333334], np.float32)


def written(path, output):
    """The rows of a file and one more column, in the format of another, in parts of two."""
    with read(path, text_columns=("text",)) as source:
        rows = [*source.rows]
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


@pytest.mark.parametrize("output", [".txt", ".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_becomes_every_other_with_all_columns(tmp_path, suffix, output):
    table = TABLE if suffix not in (".txt", ".tsv") else {"id": ["1", "2"], "text": ['"so" \\n é\u2028', ""]}
    out = written(write(tmp_path / f"in{suffix}", table), tmp_path / f"out{output}")
    found = table_of(out)
    escape = str.maketrans({"\n": "\\n", "\t": "\\t", "\r": "\\r"} if output in (".txt", ".tsv") else {})
    assert [row["text"] for row in found] == [text.translate(escape) for text in table["text"]]
    assert [row["label"] for row in found] == ["é,\n".translate(escape)] * len(found)
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


def test_parquet_as_text_is_what_json_says_or_else_arrow(tmp_path):
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
    cells = table_of(written(tmp_path / "x.parquet", tmp_path / "y.csv"))
    assert (cells[0]["tags"], cells[0]["more"], cells[0]["yes"], cells[1]["n"]) == ('["x"]', '{"a": 1}', "true", "")


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
        ("csv", {"more": 1}, "has a column 'more', which none of the first rows has"),
        ("csv", {"n": "one"}, None),
        ("jsonl", {"more": 1}, None),
        ("jsonl", {"label": 1}, "has a column 'label' already"),
    ],
)
def test_later_json_that_does_not_go_with_the_first_is_a_bad_row(form, record, error):
    layout = Layout("jsonl", ("text", "n"), {"text": "string", "n": "int64"})
    found = open_writer(form, layout, ("label", "score")).error(Row(1, "a", {"text": "a"} | record))
    assert (found or "").startswith(error or "")
    assert (found is None) == (error is None)


@pytest.mark.parametrize("output", [".txt", ".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl", ".parquet"])
def test_no_rows_give_no_rows(tmp_path, suffix, output):
    path = write(tmp_path / f"x{suffix}", {"text": pa.array([], pa.string()) if suffix == ".parquet" else []})
    out = written(path, tmp_path / f"y{output}")
    if output == ".parquet":
        assert pq.read_table(out).column_names == ["text", "label", "score"]
    else:
        assert out.read_text() == ("text,label,score\n" if output == ".csv" else "")
