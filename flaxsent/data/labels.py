"""Labelled files → `Examples`, by one rule in every format: what `train` and `evaluate` read.

`read_annotations` makes text of the cells of a label column, `resolve` decides on the labels and the problem type,
`to_examples` makes indices or values of the labels, and `describe` says in one line what was understood.

1. A cell becomes text (`_name`). true and false, however they are capitalised, are `true` and `false`. A whole number
   has no fraction: 1, 1.0 and "1.0" are `1`. Other numbers and texts stay as they are: `2.5`, `007`, `[other]`. An
   empty cell, null and NaN are a missing label, which is an error.
2. A JSON list in any format is several labels (so is a Python list, which pandas writes into a CSV); each becomes text
   in the same way. With a separator, a cell is the labels between separators. `[]` is none of them.
3. The problem type, if it is not given (`resolve`): multi-label if there is a list in the column; regression if all
   cells are numbers and one of them is not whole; otherwise one label per text.
4. The labels, if they are not given (`resolve`): those of the model if the file has no others; otherwise the file's,
   sorted as numbers if all are whole numbers, else as text.
5. A column holds names of labels or their indices, never both (`_indices`). Indices count only where no label's name is
   a number: a model with the labels 1 to 4 has no label `0`.
6. Lists of one length that hold only 0 and 1, or true and false, are vectors with an entry for each label, if there are
   as many labels (`to_examples`). If the labels are not given, nor the model's as many, vectors have the labels `0`,
   `1`, … (`resolve`). In any other list, a label that comes twice is an error.
"""

import ast
import contextlib
import decimal
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flaxsent.base import FlaxsentError, ProblemType, Text
from flaxsent.data.base import Record, check_columns
from flaxsent.data.records import read


class Examples(NamedTuple):
    """Texts with what is to be learnt of each."""

    texts: list[Text]
    labels: list[Any]
    """The index of the label; for multi-label a tuple of indices; for regression the value."""


class Annotations(NamedTuple):
    """A labelled file, before it is decided what its labels mean."""

    file: str
    column: str
    """The label column."""
    texts: list[Text]
    labels: list[str | tuple[str, ...]]
    """The text of each cell; a tuple is a list of labels."""
    numbers: list[int]
    """The number of each record in the file, for messages."""


class Task(NamedTuple):
    """What a classifier is for."""

    labels: tuple[str, ...]
    problem_type: ProblemType


def read_examples(
    file: str | Path,
    *,
    labels: Sequence[str],
    problem_type: ProblemType,
    text_columns: Sequence[str] = ("text",),
    label_column: str = "label",
    label_separator: str | None = None,
) -> Examples:
    """Reads a labelled file for a model whose labels are known.

    Raises: as `read_annotations` and `to_examples`.
    """
    annotations = read_annotations(
        file, text_columns=text_columns, label_column=label_column, label_separator=label_separator
    )
    return to_examples(annotations, labels=labels, problem_type=problem_type)


def read_annotations(
    file: str | Path,
    *,
    text_columns: Sequence[str] = ("text",),
    label_column: str = "label",
    label_separator: str | None = None,
) -> Annotations:
    """Reads the texts, or pairs of two columns, and the labels of a CSV, TSV, JSONL or Parquet file.

    Raises: as `records.read`, and
        FlaxsentError: a record is broken or has no label (the message has its number), or there are none.
    """
    found = Annotations(str(file), label_column, [], [], [])
    with read(file, text_columns=text_columns) as source:
        check_columns(str(file), source.layout.columns, (label_column,))
        for record in source.records:
            label, error = (), record.error
            if error is None:
                label, error = _read_label(record, label_column, label_separator)
            if error is not None:
                raise FlaxsentError(f"{file} row {record.number} {error}.")
            found.texts.append(record.text)
            found.labels.append(label)
            found.numbers.append(record.number)
    if not found.texts:
        raise FlaxsentError(f"{file} has no rows; expected at least one.")
    return found


def resolve(
    annotations: Annotations,
    *,
    known: Task | None = None,
    labels: Sequence[str] | None = None,
    problem_type: ProblemType | None = None,
) -> Task:
    """Decides what a file's labels mean: rules 3, 4 and 6 above.

    >>> resolve(Annotations("x.csv", "label", ["a", "b"], ["10", "9"], [2, 3]))
    Task(labels=('9', '10'), problem_type='single_label_classification')

    Args:
        annotations: the labelled file.
        known: the task of a model that is to be trained further.
        labels: the labels, if the user says which.
        problem_type: the problem type, if the user says which.

    Raises:
        FlaxsentError: the labels do not go with the problem type.
    """
    problem_type = problem_type or _problem_type(annotations)
    if labels is None:
        labels = _labels(annotations, problem_type, known if known and known.problem_type == problem_type else None)
    if problem_type == "single_label_classification" and len(labels) < 2:
        raise FlaxsentError(f"{annotations.file} has only the label {', '.join(labels)}; expected two or more.")
    if problem_type == "multi_label_classification" and not labels:
        raise FlaxsentError(f"{annotations.file} has only empty lists of labels; expected a label in one of them.")
    if problem_type == "regression" and len(labels) != 1:
        raise FlaxsentError(f"regression has one label, the name of the value; {', '.join(labels)} are {len(labels)}.")
    return Task(tuple(labels), problem_type)


def to_examples(annotations: Annotations, *, labels: Sequence[str], problem_type: ProblemType) -> Examples:
    """Makes indices of labels, or values for regression: rules 5 and 6 above.

    Raises:
        FlaxsentError: a label is unknown or does not go with the problem type; the message has its row.
    """
    is_several, found = problem_type == "multi_label_classification", []
    is_vectors = is_several and _vector_length(annotations) == len(labels)
    index_of = {} if problem_type == "regression" or is_vectors else _indices(labels, _names(annotations))
    for number, label in zip(annotations.numbers, annotations.labels, strict=True):
        at = f"{annotations.file} row {number} has the label {_shown(label)}"
        names = label if isinstance(label, tuple) else (label,)
        if problem_type == "regression":
            value = None if isinstance(label, tuple) else _number(label)
            if value is None or not math.isfinite(value):
                raise FlaxsentError(f"{at}; expected a finite number.")
            found.append(value)
        elif isinstance(label, tuple) != is_several:
            raise FlaxsentError(f"{at}; expected {'a list of labels' if is_several else 'one label'}.")
        elif is_vectors:
            found.append(tuple(index for index, entry in enumerate(names) if entry in ("1", "true")))
        elif unknown := [name for name in names if name not in index_of]:
            also = "" if any(map(_is_number, labels)) else f" (or their indices, 0 to {len(labels) - 1}, in every row)"
            raise FlaxsentError(f"{at}: {unknown[0]!r} is unknown; expected {_listed(labels)}{also}.")
        elif len({*names}) < len(names):
            raise FlaxsentError(
                f"{at}, which has a label twice; expected each once, or {len(labels)} zeros and ones in every row."
            )
        else:
            indices = sorted(index_of[name] for name in names)
            found.append(tuple(indices) if is_several else indices[0])
    return Examples(annotations.texts, found)


def describe(examples: Examples, labels: Sequence[str], problem_type: ProblemType) -> str:
    """What was understood of a file, in one line.

    >>> describe(Examples(["a", "b", "c"], [0, 1, 1]), ("neg", "pos"), "single_label_classification")
    '3 texts, 2 labels: neg 1, pos 2; one label per text'
    """
    start = f"{len(examples.texts):,} texts"
    if problem_type == "regression":
        return f"{start}, values from {min(examples.labels):g} to {max(examples.labels):g}; regression"
    several = examples.labels if problem_type == "multi_label_classification" else [(one,) for one in examples.labels]
    counts = Counter(index for indices in several for index in indices)
    told = [f"{_printable(label)} {counts[index]:,}" for index, label in enumerate(labels)]
    if len(told) > _MOST_TOLD:
        least, *_, most = sorted(range(len(labels)), key=lambda index: counts[index])
        told = [f"from {told[least]} to {told[most]}"]
    kind = "one label per text"
    if problem_type == "multi_label_classification":
        kind = f"{counts.total() / max(len(several), 1):.2g} labels per text on average"
    return f"{start}, {len(labels)} label{'s' * (len(labels) > 1)}: {', '.join(told)}; {kind}"


_MOST_TOLD = 10
"""Labels that are told one by one."""


def _read_label(record: Record, column: str, separator: str | None) -> tuple[str | tuple[str, ...], str | None]:
    """The label of a record, and what is wrong with it."""
    try:
        value = record.columns.get(column)
    except UnicodeDecodeError:
        return "", f"is not UTF-8 text in the column {column!r}"
    except ValueError as err:  # Arrow's times have values that Python's have not
        return "", f"has a label that cannot be read: {err}"
    if isinstance(value, str):
        value = _parse_list(value.strip())
    cells = value if isinstance(value, list) else [value]
    if not all(one is None or isinstance(one, str | int | float | decimal.Decimal) for one in cells):
        return "", f"has the label {_shown(value)}; expected names or numbers"
    if separator is not None and not isinstance(value, list) and _name(value) is not None:
        value = cells = str(value).split(separator)
    names = []
    for cell in cells:
        if (name := _name(cell)) is None:
            return "", f"has no label in the column {column!r}" + (f", but {cell!r}" if cell else "")
        names.append(name)
    return tuple(names) if isinstance(value, list) else names[0], None


def _parse_list(text: str) -> str | list[Any]:
    """The list that a text spells as JSON or, as pandas writes it, as Python; else the text."""
    for parse in (json.loads, ast.literal_eval) if text.startswith("[") and text.endswith("]") else ():
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            if isinstance(found := parse(text), list):  # [1], [2] is a tuple of Python
                return found
    return text


def _name(value: object) -> str | None:
    """A cell, or an entry of a list, as text; None where a label is missing.

    >>> [_name(value) for value in (True, "TRUE", 1, 1.0, "1.0", 2.5, "007", None, float("nan"), "NaN", " ")]
    ['true', 'true', '1', '1', '1', '2.5', '007', None, None, None, None]
    """
    text = str(value).strip()
    folded = text.casefold()
    if value is None or folded in ("", "nan", "null"):
        return None
    if folded in ("true", "false"):
        return folded
    whole = re.fullmatch(r"(-?(?:0|[1-9]\d{0,99}))(?:\.0*)?", text, re.ASCII)
    return str(int(whole[1])) if whole else text


def _number(name: str) -> float | None:
    """The number that a name spells."""
    spelt = re.fullmatch(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity)", name, re.ASCII | re.IGNORECASE)
    return float(name) if spelt else None


def _is_number(name: str) -> bool:
    return _number(name) is not None


def _is_whole(name: str) -> bool:
    return re.fullmatch(r"[+-]?\d{1,100}", name, re.ASCII) is not None


def _names(annotations: Annotations) -> set[str]:
    """All that the label column has, those in lists too."""
    labels = {*annotations.labels}
    return {name for label in labels for name in (label if isinstance(label, tuple) else (label,))}


def _problem_type(annotations: Annotations) -> ProblemType:
    if any(isinstance(label, tuple) for label in annotations.labels):
        return "multi_label_classification"
    names = _names(annotations)
    is_values = all(map(_is_number, names)) and not all(map(_is_whole, names))
    return "regression" if is_values else "single_label_classification"


def _labels(annotations: Annotations, problem_type: ProblemType, known: Task | None) -> tuple[str, ...]:
    """Those of the model, `known` if it is of this problem type, if the file has no others; otherwise the file's."""
    if problem_type == "regression":
        return (annotations.column,) if known is None else known.labels
    length = _vector_length(annotations) or 0
    if problem_type == "multi_label_classification" and length > 1:
        return known.labels if known and len(known.labels) == length else tuple(map(str, range(length)))
    names = _names(annotations)
    if known is not None and names <= _indices(known.labels, names).keys():
        return known.labels
    is_whole = all(map(_is_whole, names))
    return tuple(sorted(names, key=lambda name: (int(name), name) if is_whole else name))


def _vector_length(annotations: Annotations) -> int | None:
    """The one length of the column's lists, if they hold nothing but 0 and 1, or true and false."""
    lengths = {len(label) if isinstance(label, tuple) else -1 for label in annotations.labels}
    is_bits = any(_names(annotations) <= bits for bits in ({"0", "1"}, {"false", "true"}))
    return lengths.pop() if is_bits and len(lengths) == 1 else None


def _indices(labels: Sequence[str], names: set[str]) -> Mapping[str, int]:
    """The index of each label by the names that the file uses: the labels', or else the indices themselves."""
    index_of = {_name(label) or label: index for index, label in enumerate(labels)}
    if len(index_of) < len(labels):
        raise FlaxsentError(f"of the labels {_listed(labels)}, a file cannot tell two apart; rename one.")
    if names <= index_of.keys() or any(map(_is_number, labels)) or not all(map(_is_whole, names)):
        return index_of
    return {str(index): index for index in range(len(labels))}


def _shown(label: object) -> str:
    shown = repr([*label] if isinstance(label, tuple) else label)
    return shown if len(shown) <= 40 else f"{shown[:39]}…"


def _printable(label: str) -> str:
    return label if label.isprintable() else repr(label)


def _listed(names: Iterable[str]) -> str:
    listed = [*names]
    return ", ".join(listed if len(listed) <= 20 else [*listed[:20], "…"])
