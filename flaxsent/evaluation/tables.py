"""A `Report` as a table for people and as JSON for programs."""

import math
from collections.abc import Sequence
from typing import Any

from flaxsent.evaluation.comparison import Comparison, Difference
from flaxsent.evaluation.report import Bucket, Group, Report
from flaxsent.evaluation.suspects import Suspect


def table(report: Report) -> str:
    """The figures, then those of each label, the confusion matrix, and those of each length."""
    width = max(map(len, report.figures))
    parts = [
        [f"{report.num_texts:,} texts, {report.problem_type.replace('_', ' ')}"],
        [f"{spoken(figure):<{width}}  {number(value)}" for figure, value in report.figures.items()],
    ]
    names = [_cell(label) for label in report.labels]
    if report.by_label is not None:
        figures = [*next(iter(report.by_label.values()))]
        rows = [
            [name, *map(number, found.values())] for name, found in zip(names, report.by_label.values(), strict=True)
        ]
        parts.append(_columns([["label", *map(spoken, figures)], *rows]))
    if report.confusion is not None and len(names) <= _WIDEST:
        rows = [[name, *map(number, row)] for name, row in zip(names, report.confusion, strict=True)]
        parts.append(_columns([["true label \\ predicted", *names], *rows]))
    elif report.confusion is not None:
        parts.append([f"The confusion matrix of {len(names)} labels is too wide for a table; --json has it."])
    if report.by_length is not None:
        rows = [[span(one), *map(number, (one.num_texts, *one.figures.values()))] for one in report.by_length]
        parts.append(_columns([["tokens", "texts", *map(spoken, report.figures)], *rows]))
    return "\n\n".join("\n".join(lines) for lines in parts)


def suspects_table(suspects: Sequence[Suspect], *, num_found: int) -> str:
    """The records whose labels are most likely wrong."""
    heading = f"{num_found:,} labels are suspect" + (f"; the first {len(suspects):,}:" if suspects else ".")
    rows = [[number(one.record), _cell(one.label), _cell(one.suggested), number(one.margin)] for one in suspects]
    lines = _columns([["row", "label", "suggested", "margin"], *rows]) if suspects else []
    texts = ["text", *(one.text if isinstance(one.text, str) else " | ".join(one.text) for one in suspects)]
    return "\n".join([heading, *(f"{line}  {_cell(text, 79)}" for line, text in zip(lines, texts, strict=False))])


def groups_table(column: str, groups: Sequence[Group], *, num_values: int) -> str:
    """The figures of the texts of each value of a column."""
    rows = [[_cell(one.value), *map(number, (one.num_texts, *one.figures.values()))] for one in groups]
    lines = _columns([[_cell(column), "texts", *map(spoken, groups[0].figures)], *rows])
    more = num_values - len(groups)
    return "\n".join([*lines, *([f"and {more:,} more values of fewer texts"] if more else [])])


def comparison_table(found: Comparison, differences: Sequence[Difference], *, other: str) -> str:
    """How many texts each of two models has right, the tests, and the first texts on which they differ."""
    counts = f"both right {found.both:,}, only this model {found.only_first:,}, only {other} {found.only_second:,}"
    lines = [
        f"Beside {other}: {counts}, neither {found.neither:,}",
        f"McNemar: exact p {found.exact_p:.4g}; chi-squared {number(found.statistic)}, p {found.p:.4g}",
    ]
    if differences:
        head = ["row", "label", "this model", "the other"]
        rows = [[number(one.record), *map(_cell, (one.label, one.first, one.second))] for one in differences]
        texts = ["text", *(one.text if isinstance(one.text, str) else " | ".join(one.text) for one in differences)]
        table = zip(_columns([head, *rows]), texts, strict=True)
        lines += [f"{line}  {_cell(text, 79)}" for line, text in table]
    return "\n".join(lines)


def changes(before: Report, after: Report, names: Sequence[str] = ("log_loss", "calibration_error")) -> str:
    """What a temperature, or thresholds, do to the figures that depend on them, on one line."""
    return ", ".join(f"{spoken(name)} {number(before.figures[name])} → {number(after.figures[name])}" for name in names)


_WIDEST = 20
"""More labels than this make no matrix that a terminal can show."""


def span(bucket: Bucket) -> str:
    return f"{bucket.shortest} or more" if bucket.longest is None else f"{bucket.shortest} to {bucket.longest}"


def spoken(figure: str) -> str:
    return figure.removeprefix("num_").replace("_", " ").replace("f1", "F1").replace("matthews", "Matthews")


def number(value: int | float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "–" if math.isnan(value) else f"{value:.4f}"


def _cell(text: str, width: int = 24) -> str:
    """A label or a text on one line and not too wide, whatever it holds; control characters would move the cursor."""
    cell = "".join(char if char.isprintable() else " " for char in text[: width + 1])
    return cell if len(cell) <= width else cell[: width - 1] + "…"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def to_json(report: Report) -> dict[str, Any]:
    """The same as `table`, and the bins of the reliability diagram; null for what has no meaning."""
    found: dict[str, Any] = {"problem_type": report.problem_type, "num_texts": report.num_texts, **report.figures}
    if report.by_label is not None:
        found |= {"by_label": report.by_label, "labels": report.labels, "confusion": report.confusion}
    if report.bins is not None:
        found["bins"] = [one._asdict() for one in report.bins]
    if report.by_length is not None:
        found["by_length"] = [
            {"shortest": one.shortest, "longest": one.longest, "num_texts": one.num_texts, **one.figures}
            for one in report.by_length
        ]
    return without_nan(found)


def without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
