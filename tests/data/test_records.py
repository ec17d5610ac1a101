"""Files as records: what each format gives, and what is said of records that are broken."""

import csv
import sys
import threading
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flaxsent.base import FlaxsentError
from flaxsent.data import streams
from flaxsent.data.records import open_parquet, read, read_texts
from flaxsent.files import MissingPackageError
from tests.data.tables import TABLE, content, write


def records_of(path, *columns):
    with read(path, text_columns=columns or ("text",)) as source:
        return [*source.records]


def texts_and_errors(path, *columns):
    return [(row.number, row.error or row.text) for row in records_of(path, *columns)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_texts_come_as_they_are(tmp_path, suffix):
    rows = records_of(write(tmp_path / f"x{suffix}"))
    assert [row.text for row in rows] == TABLE["text"]
    assert [row.error for row in rows] == [None] * 4


def test_lines_end_at_line_feeds_only(tmp_path):
    path = content(tmp_path, "x.TXT", "\ufeffso good\r\n\nbad\u2028😀\x0bx\nlast".encode())
    assert texts_and_errors(path, "line") == [(1, "so good"), (2, ""), (3, "bad\u2028😀\x0bx"), (4, "last")]
    assert records_of(path, "line")[0].columns == {"line": "so good"}


def test_tsv_has_no_quotation_marks(tmp_path):
    path = content(tmp_path, "x.tsv", b'text\tid\n"so" it is\t1\r\n"open\t2\n')
    assert texts_and_errors(path) == [(2, '"so" it is'), (3, '"open')]


def test_empty_lines_of_tables_are_no_rows(tmp_path):
    assert texts_and_errors(content(tmp_path, "x.csv", b"text\na\n\n\nb\n\n")) == [(2, "a"), (5, "b")]
    assert texts_and_errors(content(tmp_path, "x.jsonl", b'\n{"text": "a"}\r\n\n')) == [(2, "a")]


@pytest.mark.parametrize(
    ("name", "data", "errors"),
    [
        ("x.txt", b"a\n\n", [None, None]),
        ("x.csv", b"text,id\na,1\n,2\n\"\",3\n", [None, *["has no text in the column 'text'"] * 2]),
        ("x.tsv", b"text\tid\na\t1\n\t2\n", [None, "has no text in the column 'text'"]),
        ("x.jsonl", b'{"text": "a"}\n{"text": ""}\n{"text": null}\n', [None, None, "has no text in the column 'text'"]),
    ],
)  # fmt: skip
def test_an_empty_cell_is_a_missing_text_and_an_empty_line_is_a_text(tmp_path, name, data, errors):
    assert [record.error for record in records_of(content(tmp_path, name, data))] == errors


def test_an_empty_second_text_of_a_pair_is_missing_too(tmp_path):
    found = texts_and_errors(content(tmp_path, "x.csv", b"a,b\nx,\n,y\nx,y\n"), "a", "b")
    assert found == [(2, "has no text in the column 'b'"), (3, "has no text in the column 'a'"), (4, ("x", "y"))]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_two_columns_make_pairs(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix}", {"b": ["so", "ß"], "id": ["1", "2"], "a": ["good", "bad"]})
    assert [row.text for row in records_of(path, "a", "b")] == [("good", "so"), ("bad", "ß")]


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
            assert str(text).startswith(told.removesuffix("..."))


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
    rows = records_of(tmp_path / "x.parquet")
    assert [None if row.error else row.text for row in rows] == values


def test_a_line_longer_than_memory_is_one_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "_LONGEST", 1000)
    long = "long " * 10_000
    for name, head, begin in (("x.txt", "", 1), ("x.csv", "text\n", 2)):
        found = texts_and_errors(content(tmp_path, name, f"{head}a\n{long}\nb\n".encode()))
        assert found == [(begin, "a"), (begin + 1, "has a line of more than 1,000 characters"), (begin + 2, "b")]


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl", ".parquet"])
def test_memory_is_flat(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix}", {"text": ["good " * 2000] * 2000})  # 20 MB
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": [f"{i} " * 2500 for i in range(6000)]}), path, row_group_size=6000)
    tracemalloc.start()
    allocated = pa.total_allocated_bytes()
    with read(path, text_columns=("text",)) as source:
        most = 0
        for row in source.records:
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
    with pytest.raises(FlaxsentError, match=message):
        records_of(content(tmp_path, name, data))


def test_parquet_without_a_column_of_text_and_damaged_parquet_are_named(tmp_path):
    pq.write_table(pa.table({"text": [1, 2], "body": ["a", "b"]}), tmp_path / "x.parquet")
    with pytest.raises(FlaxsentError, match="has values of type int64 in the column 'text'; expected text"):
        records_of(tmp_path / "x.parquet")
    pq.write_table(pa.table({"text": [f"{i}" * 50 for i in range(500)]}), tmp_path / "y.parquet")
    data = bytearray((tmp_path / "y.parquet").read_bytes())
    data[4:1000] = bytes(996)
    (tmp_path / "y.parquet").write_bytes(data)
    with pytest.raises(FlaxsentError, match=r"(?s)y.parquet is damaged after row 0: .*; fetch it again"):
        records_of(tmp_path / "y.parquet")


def test_without_pyarrow_the_command_that_installs_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r'a Parquet file needs pyarrow, .*: pip install "flaxsent\[data\]"'):
        records_of(content(tmp_path, "x.parquet", b""))


LONG = "long, " * 50_000  # 300,000 characters; the csv module takes 131,072


def test_long_cells_are_read_and_the_limit_of_the_csv_module_stays(tmp_path):
    limit = csv.field_size_limit()
    path = content(tmp_path, "x.csv", f'text\n"{LONG}\n{LONG}"\nb\n"{LONG}"\n'.encode())
    with read(path, text_columns=("text",)) as source:
        for record, text in zip(source.records, (f"{LONG}\n{LONG}", "b", LONG), strict=True):
            assert record.text == text
            assert csv.field_size_limit() == limit
            with pytest.raises(csv.Error, match="field limit"):
                next(csv.reader([f'"{LONG}"']))
    assert csv.field_size_limit() == limit


def test_the_limit_of_the_csv_module_comes_back_after_a_broken_record(tmp_path):
    limit = csv.field_size_limit()
    path = content(tmp_path, "x.csv", f'text\n"{LONG}"x\nb\n'.encode())
    assert texts_and_errors(path) == [(2, "is not CSV: ',' expected after '\"'"), (3, "b")]
    assert csv.field_size_limit() == limit


def test_two_threads_read_long_cells_at_once(tmp_path):
    limit = csv.field_size_limit()
    path = content(tmp_path, "x.csv", ("text\n" + f'"{LONG}"\n' * 20).encode())
    found = []
    threads = [threading.Thread(target=lambda: found.append(texts_and_errors(path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[(number, LONG) for number in range(2, 22)]] * 4
    assert csv.field_size_limit() == limit


def test_row_groups_are_read_one_by_one_from_one_open_file(tmp_path, monkeypatch):
    pq.write_table(pa.table({"text": [f"{index}" for index in range(1000)]}), tmp_path / "x.parquet", row_group_size=3)
    opened, footers, read_metadata, parquet_file = [], [], pq.read_metadata, pq.ParquetFile
    monkeypatch.setattr(pq, "read_metadata", lambda path: footers.append(path) or read_metadata(path))
    monkeypatch.setattr(
        pq, "ParquetFile", lambda stream, **options: opened.append(stream) or parquet_file(stream, **options)
    )
    with open_parquet(tmp_path / "x.parquet", ("text",)) as reader:
        assert reader.layout.columns == ("text",)
        assert [group.num_rows for group in reader.groups] == [3] * 333 + [1]
        units = [[*reader.records(range(index, index + 1))] for index in reversed(range(334))]
        assert [record.number for record in units[0]] == [1000]
        assert [record.text for unit in reversed(units) for record in unit] == [f"{index}" for index in range(1000)]
        source = reader.source(range(10, 334))
        assert next(source.records).number == 31
        assert [record.number for record in source.records] == [*range(32, 1001)]
        assert source.position() == (tmp_path / "x.parquet").stat().st_size * 970 // 1000
    assert (len(opened), len(footers)) == (1, 1)


def test_the_footer_of_a_parquet_file_is_read_once_until_the_file_changes(tmp_path, monkeypatch):
    path, footers, read_metadata = tmp_path / "x.parquet", [], pq.read_metadata
    monkeypatch.setattr(pq, "read_metadata", lambda path: footers.append(path) or read_metadata(path))
    for num_groups in (20, 30):
        pq.write_table(pa.table({"text": [f"{index}" for index in range(num_groups)]}), path, row_group_size=1)
        for index in range(num_groups):
            with read(path, text_columns=("text",), groups=range(index, index + 1)) as source:
                assert [(record.number, record.text) for record in source.records] == [(index + 1, f"{index}")]
    assert len(footers) == 2


def test_cells_of_parquet_are_python_values(tmp_path):
    table = pa.table({"text": ["a"], "x": pa.array([0.1], pa.float32()), "none": pa.array([None], pa.float32())})
    pq.write_table(table, tmp_path / "x.parquet")
    (record,) = records_of(tmp_path / "x.parquet")
    assert [record.columns.get(name) for name in table.column_names] == ["a", 0.1, None]


def test_read_texts_names_the_row_that_is_broken(tmp_path):
    assert read_texts(content(tmp_path, "x.txt", b"a\n\n")) == ["a", ""]
    with pytest.raises(FlaxsentError, match=r"x.csv row 3 has no text in the column 'text'\.$"):
        read_texts(content(tmp_path, "x.csv", b"text,id\na,1\n,2\n"))
    with pytest.raises(FlaxsentError, match=r"x.txt has no rows; expected at least one"):
        read_texts(content(tmp_path, "x.txt", b""))
