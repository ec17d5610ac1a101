"""Tables as files in every format, made without flaxsent."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq

TABLE = {
    "id": ["1", "2", "3", "4"],
    "text": ["so good", 'she said "no",\nthen\tleft\r', " ", "이 영화 😀 \u2028é"],
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


def content(path, name, data):
    (path / name).write_bytes(data)
    return path / name
