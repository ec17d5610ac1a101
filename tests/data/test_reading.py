"""How files are read that are not as their suffixes say: delimiters, quotes, headers, encodings, compression."""

import bz2
import gzip
import sys
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flaxsent.base import FlaxsentError
from flaxsent.data.base import Reading
from flaxsent.data.records import read, read_texts
from flaxsent.data.writers import open_writer
from flaxsent.files import MissingPackageError
from tests.data.tables import TABLE, content, write


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstd}


def records_of(path, *columns, **reading):
    with read(path, text_columns=columns or ("text",), reading=Reading(**reading)) as source:
        return [*source.records]


def texts_and_errors(path, *columns, **reading):
    return [(row.number, row.error or row.text) for row in records_of(path, *columns, **reading)]


def written(path, form, **reading):
    """What the writer of a format makes of a file with a column more."""
    with read(
        path, text_columns=("text",) if reading.get("has_header", True) else ("1",), reading=Reading(**reading)
    ) as source:
        rows = [*source.records]
        writer = open_writer(form, source.layout, ("label",))
    output = path.with_name("out")
    part = path.with_name("part")
    part.write_bytes(writer.encode(rows, {"label": ["x"] * len(rows)}))
    with open(output, "wb") as stream:
        writer.join([part], stream)
    return output.read_bytes()


# columns


def test_names_of_columns_that_nobody_asks_for_may_be_the_same_or_empty(tmp_path):
    path = content(tmp_path, "x.csv", b"id,text,,id,\n1,so good,a,2,b\n")
    (record,) = records_of(path)
    assert (record.text, record.columns) == ("so good", {"id": "1", "text": "so good", "": "a", "id.1": "2", ".1": "b"})
    assert written(path, "csv") == b"id,text,,id,,label\n1,so good,a,2,b,x\n", "as they stand in the file"
    assert written(path, "jsonl") == b'{"id": "1", "text": "so good", "": "a", "id.1": "2", ".1": "b", "label": "x"}\n'
    with pytest.raises(FlaxsentError, match=r"x.csv has the column 'id' twice"):
        records_of(path, "id")
    with pytest.raises(FlaxsentError, match=r"x.csv has the column '' twice"):
        records_of(path, "text", "")


def test_a_parquet_file_with_a_name_twice_keeps_both_columns(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array([1]), pa.array([2])], ["text", "n", "n"]), path)
    assert [record.text for record in records_of(path)] == ["a"]
    assert written(path, "jsonl") == b'{"text": "a", "n": 1, "n.1": 2, "label": "x"}\n'
    with pytest.raises(FlaxsentError, match=r"x.parquet has the column 'n' twice"):
        records_of(path, "n")


def test_many_columns_of_one_name_take_no_time_that_grows_with_their_square(tmp_path):
    path = content(tmp_path, "x.csv", b"text" + b",a" * 50_000 + b"\nso good" + b",1" * 50_000 + b"\n")
    (record,) = records_of(path)
    assert len(record.columns) == 50_001


def test_a_file_without_a_header_has_numbers_for_names(tmp_path):
    path = content(tmp_path, "x.csv", b"\n\nso good,1\nbad,0\n")
    assert texts_and_errors(path, "1", has_header=False) == [(3, "so good"), (4, "bad")]
    assert records_of(path, "1", has_header=False)[1].columns == {"1": "bad", "2": "0"}
    assert written(path, "csv", has_header=False) == b"so good,1,x\nbad,0,x\n", "nor has its output one"
    assert written(path, "jsonl", has_header=False).startswith(b'{"1": "so good", "2": "1", "label": "x"}\n')
    with pytest.raises(FlaxsentError, match=r"x.csv has no header, and the columns 1 to 2; expected text"):
        records_of(path, has_header=False)
    with pytest.raises(FlaxsentError, match=r"x.csv has no rows; expected 1"):
        records_of(content(tmp_path, "x.csv", b"\n"), "1", has_header=False)


# formats, delimiters, quotes


def test_a_table_is_read_by_the_format_that_is_said(tmp_path):
    """NSMC's .txt files: a TSV with a header, whose quotation marks are characters."""
    path = content(tmp_path, "ratings.txt", 'id\tdocument\tlabel\n1\t"굿\t1\n2\t""\t0\n'.encode())
    assert texts_and_errors(path, "document", format="tsv") == [(2, '"굿'), (3, '""')]
    assert texts_and_errors(path, "document", format="tsv", quoting="minimal")[0][1].startswith("is not CSV")
    with read(path, text_columns=("text",)) as source:
        assert source.layout.hint == "every line of it has a tab: if it is a table, pass --format tsv"
        assert len([*source.records]) == 3
    with (
        pytest.raises(FlaxsentError, match=r"has the columns text; expected label; every .* pass --format tsv"),
        read(path, text_columns=("text",), other_columns=("label",)),
    ):
        pass
    for data in (b"a\tb\nc\n", b"a\tb\n", b"a b\nc d\n"):  # no table, or too little to tell
        with read(content(tmp_path, "x.txt", data), text_columns=("text",)) as source:
            assert source.layout.hint is None


def test_delimiters_and_quotes_are_those_that_are_said(tmp_path):
    path = content(tmp_path, "x.csv", b'text;n\n"a; b";1\nsay "no";2\n')
    with pytest.raises(
        FlaxsentError, match=r"the columns text;n; expected text; it has ';' in .*: pass --delimiter ';'"
    ):
        records_of(path)
    assert texts_and_errors(path, delimiter=";") == [(2, "a; b"), (3, 'say "no"')]
    assert texts_and_errors(path, delimiter=";", quoting="none")[0] == (2, "has 3 columns; expected 2")
    path = content(tmp_path, "x.tsv", b'text\tn\n"a\tb"\t1\n')
    assert texts_and_errors(path, quoting="minimal") == [(2, "a\tb")]
    with pytest.raises(FlaxsentError, match="expected text; it has tabs in its header: pass --format tsv"):
        records_of(content(tmp_path, "x.csv", b"text\tn\n"))


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ({"format": "xlsx"}, "format='xlsx'; expected one of lines, csv, tsv, jsonl, parquet"),
        ({"delimiter": ";;"}, "delimiter=';;'; expected one character"),
        ({"delimiter": "\n"}, "expected one character, which ends no line"),
        ({"encoding": "latin-99"}, "encoding='latin-99' is none that Python knows; expected such as cp1252"),
        ({"encoding": "rot13"}, "encoding='rot13' is none"),
        ({"encoding": "a\0"}, "is none that Python knows"),
    ],
)
def test_what_no_file_can_be_read_by_is_refused(reading, message):
    with pytest.raises(FlaxsentError, match=message):
        Reading(**reading)


@pytest.mark.parametrize(
    ("name", "reading", "message"),
    [
        ("x.jsonl", {"delimiter": ";"}, "x.jsonl is read as jsonl, and --delimiter is for CSV and TSV only"),
        ("x.txt", {"has_header": False}, "x.txt is read as lines, and --no-header is for CSV and TSV only"),
        ("x.parquet", {"quoting": "none"}, "and --quoting is for CSV and TSV only"),
        ("x.parquet", {"encoding": "cp1252"}, "x.parquet is read as parquet, and --encoding is for text only"),
        ("x.parquet.gz", {}, "x.parquet.gz: Parquet is compressed within; decompress it first"),
        ("x.gz", {}, r"x.gz: expected a file that ends in .txt, .*, or in one of these and .gz, .zst, .bz2"),
    ],
)
def test_what_a_format_has_not_is_refused(tmp_path, name, reading, message):
    with pytest.raises(FlaxsentError, match=message):
        records_of(tmp_path / name, **reading)


# encodings


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".txt"])
@pytest.mark.parametrize("encoding", ["cp949", "utf-16", "utf-16-be", "utf-32", "utf-8-sig", "gb18030"])
def test_every_text_format_is_read_in_the_encoding_that_is_said(tmp_path, suffix, encoding):
    texts = ["so good", "이 영화 좋다", "café"] if encoding != "cp949" else ["so good", "이 영화 좋다", "굿"]
    path = write(tmp_path / f"x{suffix}", {"id": ["1", "2", "3"], "text": texts})
    expected = texts_and_errors(path)
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    assert texts_and_errors(path, encoding=encoding) == expected


def test_the_error_of_an_encoding_says_which_option_to_pass(tmp_path):
    western = content(tmp_path, "x.csv", "text\nso good\nthe café’s best\n".encode("cp1252"))
    with pytest.raises(FlaxsentError, match=r"x.csv row 3 is not UTF-8 text; .* pass it, such as --encoding cp1252 or"):
        read_texts(western)
    assert read_texts(western, reading=Reading(encoding="cp1252")) == ["so good", "the café’s best"]
    korean = content(tmp_path, "y.csv", "text\n재미있다\n".encode("cp949"))
    with pytest.raises(FlaxsentError, match=r"y.csv row 2 is not UTF-8 text; .* --encoding .*cp949"):
        read_texts(korean)
    header = content(tmp_path, "z.csv", "text,étoiles\na,1\n".encode("latin-1"))
    with pytest.raises(FlaxsentError, match=r"z.csv has a header that is not UTF-8 text; .* --encoding cp1252"):
        read_texts(header)


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-16", "x.csv is UTF-16, by the mark at its beginning; pass --encoding utf-16"),
        ("utf-32", "x.csv is UTF-32, by the mark at its beginning; pass --encoding utf-32"),
        ("utf-16-le", "x.csv looks like UTF-16 without a mark; pass --encoding utf-16-le"),
        ("utf-16-be", "x.csv looks like UTF-16 without a mark; pass --encoding utf-16-be"),
    ],
)
def test_utf_16_is_named(tmp_path, encoding, message):
    path = content(tmp_path, "x.csv", "text,n\nso good,1\n".encode(encoding))
    with pytest.raises(FlaxsentError, match=f"{message}\\.$"):
        records_of(path)
    assert texts_and_errors(path, encoding=encoding) == [(2, "so good")]


def test_bytes_that_are_not_of_the_encoding_are_one_bad_row(tmp_path):
    data = "text\na\n".encode("utf-16-le") + b"b\0\x00\xd8\n\0" + "c\n".encode("utf-16-le") + b"d\0\n\0x"
    found = texts_and_errors(content(tmp_path, "x.csv", data), encoding="utf-16-le")
    assert found == [(2, "a"), (3, "is not utf-16-le text"), (4, "c"), (5, "d"), (6, "is not utf-16-le text")]
    data = b"text\na\n\x81\x81\x00\nc\n"
    found = texts_and_errors(content(tmp_path, "y.csv", data), encoding="euc-kr")
    assert found == [(2, "a"), (3, "is not euc_kr text"), (4, "c")]
    for encoding, bad in (("utf-16", b"text\n\0a\n"), ("punycode", b"\xff\n")):
        with pytest.raises(FlaxsentError, match=f"z.csv cannot be read as {encoding}: .*; pass the --encoding"):
            records_of(content(tmp_path, "z.csv", bad), encoding=encoding)


def test_nul_characters_are_characters(tmp_path):
    assert texts_and_errors(content(tmp_path, "x.csv", b"text,n\na\0b,1\n\0\0\0\0,2\n")) == [(2, "a\0b"), (3, "\0" * 4)]


# compression


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".txt"])
@pytest.mark.parametrize("ending", COMPRESS)
def test_compressed_files_are_what_they_hold(tmp_path, suffix, ending):
    plain = write(tmp_path / f"x{suffix}", TABLE if suffix != ".tsv" else {"text": ["a", "b"]})
    path = content(tmp_path, f"x{suffix}{ending}", COMPRESS[ending](plain.read_bytes()))
    assert texts_and_errors(path) == texts_and_errors(plain)
    twice = content(tmp_path, f"y{suffix}{ending.upper()}", COMPRESS[ending](plain.read_bytes()) * 2)
    if suffix in (".jsonl", ".txt"):  # parts end to end, as bgzip and pigz write them
        assert [text for _, text in texts_and_errors(twice)] == [text for _, text in texts_and_errors(plain)] * 2
    with read(path, text_columns=("text",)) as source:
        assert [*source.records]
        assert source.position() == path.stat().st_size, "bytes as they are stored"


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("damage", ["another format", "cut off", "one byte"])
def test_damaged_compressed_files_are_one_line(tmp_path, ending, damage):
    rows = "".join(f"{number * 7919 % 10007} is good\n" for number in range(5_000))
    data = COMPRESS[ending](f"text\n{rows}".encode())
    data = {
        "another format": b"text\nso good\n" * 9,
        "cut off": data[: len(data) // 2],
        "one byte": data[:-9] + bytes([data[-9] ^ 255]) + data[-8:],
    }[damage]
    path = content(tmp_path, f"x.csv{ending}", data)
    with pytest.raises(FlaxsentError, match=rf"x.csv{ending} is not \w+, or is damaged or cut off: .*; fetch it again"):
        records_of(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.csv", gzip.compress(b"text\n"), "x.csv is compressed by gzip; name it so that it ends in .gz"),
        ("x.csv", bz2.compress(b"text\n"), "x.csv is compressed by bzip2; .* ends in .bz2"),
        ("x.txt", zstd(b"text\n"), "x.txt is compressed by Zstandard; .* ends in .zst"),
        ("x.csv.gz", gzip.compress(gzip.compress(b"text\n")), "x.csv.gz is compressed by gzip"),
        ("x.csv", b"PAR1\x15\x04", "x.csv is Parquet; .* or pass --format parquet"),
        ("x.csv", b"PK\x03\x04\x14", "x.csv is a ZIP archive or an Excel workbook; unpack it, or save it as CSV"),
    ],
    ids=["gzip", "bzip2", "zstd", "gzip twice", "parquet", "zip"],  # gzip's bytes have the time in them
)
def test_files_of_another_kind_are_named(tmp_path, name, data, message):
    with pytest.raises(FlaxsentError, match=message):
        records_of(content(tmp_path, name, data))


@pytest.mark.parametrize(
    ("ending", "unit"),
    [(".gz", b"x"), (".bz2", b"x"), (".zst", b"x"), (".gz", b"so good\n"), (".zst", b"so good\n")],
)
def test_a_small_file_that_expands_to_much_takes_little_memory(tmp_path, monkeypatch, ending, unit):
    path = content(tmp_path, f"x.txt{ending}", COMPRESS[ending](unit * ((24 << 20) // len(unit))))
    assert path.stat().st_size < 1 << 18
    tracemalloc.start()
    allocated = pa.total_allocated_bytes()
    with read(path, text_columns=("text",)) as source:
        errors = {record.error for _, record in zip(range(5_000), source.records, strict=False)}
        assert pa.total_allocated_bytes() - allocated < 8e6
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A line of the longest kind, and its bytes while they are decoded.
    assert peak < (70e6 if unit == b"x" else 12e6)
    assert errors == ({"has a line of more than 16,777,216 characters"} if unit == b"x" else {None})


def test_without_anything_that_reads_zstandard_the_command_is_told(tmp_path, monkeypatch):
    path = content(tmp_path, "x.csv.zst", zstd(b"text\na\n"))
    assert texts_and_errors(path) == [(2, "a")]
    if sys.version_info < (3, 14):
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(MissingPackageError, match=r'a .zst file needs pyarrow, .*: pip install "flaxsent\[data\]"'):
            records_of(path)
