"""Labelled texts from files: what `train` and `evaluate` read."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class LabelledTexts(NamedTuple):
    """Texts with the index of their label."""

    texts: list[str]
    labels: list[int]


def read_labelled(file: str | Path, *, label2id: Mapping[str, int]) -> LabelledTexts:
    """Reads a TSV or CSV with the columns `text` and `label`; a label is a name of `label2id` or an index.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing, or a row is broken; the message has its number, the header being row 1.
    """
    delimiter = {".tsv": "\t", ".csv": ","}.get(Path(file).suffix)
    if delimiter is None:
        raise ValueError(f"{file}: expected a .tsv or .csv file with the columns text and label.")
    # TSV as GLUE has it: a quotation mark is a character like any other.
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    data = LabelledTexts([], [])
    indices = {str(index): index for index in label2id.values()} | dict(label2id)
    with open(file, encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter=delimiter, quoting=quoting)
        try:
            header = next(rows, [])
            if not {"text", "label"} <= set(header):
                raise ValueError(f"{file} has the columns {', '.join(header)}; expected text and label.")
            text_column, label_column = header.index("text"), header.index("label")
            for number, row in enumerate(rows, start=2):
                if len(row) != len(header):
                    raise ValueError(f"{file} row {number} has {len(row)} columns; expected {len(header)}.")
                if row[label_column] not in indices:
                    raise ValueError(
                        f"{file} row {number} has the label {row[label_column]!r}; expected {', '.join(indices)}."
                    )
                data.texts.append(row[text_column])
                data.labels.append(indices[row[label_column]])
        except (UnicodeDecodeError, csv.Error) as err:
            raise ValueError(f"{file} after row {len(data.texts) + 1} is not UTF-8 text in columns: {err}") from err
    if not data.texts:
        raise ValueError(f"{file} has no rows; expected a header and at least one row.")
    return data
