"""All that `evaluate` finds as one page of HTML: no script, nothing from elsewhere, light and dark.

Texts, labels and names of columns come from files: each is only text here.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from flaxsent.base import FlaxsentError, Text
from flaxsent.classifier import Classifier
from flaxsent.engine import Engine
from flaxsent.evaluation import comparison, metrics
from flaxsent.evaluation.comparison import Comparison, Difference
from flaxsent.evaluation.explanations import STYLE, Explanation, escaped, explain, paragraphs
from flaxsent.evaluation.report import Bucket, Data, Group, Report
from flaxsent.evaluation.suspects import Suspect
from flaxsent.evaluation.tables import number, span, spoken
from flaxsent.files import MissingPackageError
from flaxsent.models.config import ModelConfig
from flaxsent.transforms.explain import integrated_gradients


class Mistake(NamedTuple):
    """A text that the model has wrong, and how sure it is."""

    text_index: int
    record: int
    """Its number in the file."""
    own: str
    said: str
    score: float
    """Of the label that is wrong, or for regression by how much the value is off."""
    label: str | None
    """The label that the text should not have; None for one that it should, or for regression."""
    text: Text


class Compared(NamedTuple):
    """What a comparison with another model found."""

    model: str
    report: Report
    comparison: Comparison
    differences: Sequence[Difference]


class Content(NamedTuple):
    """What a page shows."""

    model: str
    file: str
    report: Report
    intervals: Mapping[str, tuple[float, float]]
    mistakes: Sequence[Mistake]
    explanations: Mapping[int, Explanation]
    """Of mistakes, by their index."""
    unexplained: str | None = None
    """Why there are none."""
    groups: Sequence[Group] = ()
    by: str = ""
    """The column of the groups."""
    suspects: Sequence[Suspect] | None = None
    num_suspects: int = 0
    compared: Compared | None = None


MOST_LISTED = 20
"""Mistakes, suspects and differences that a page lists."""
_WIDEST = 25
"""More labels than this make a confusion matrix too wide; then the most frequent mistakes are listed."""


def mistakes(scores_BC: Float[np.ndarray, "B C"], data: Data, config: ModelConfig) -> list[Mistake]:
    """The surest of the texts that a model has wrong; of regression those that are most off."""
    if config.problem_type == "regression":
        off_B = np.abs(scores_BC[:, 0] - data.targets[:, 0])
        worst = np.argsort(-off_B, kind="stable")[:MOST_LISTED]
        return [
            Mistake(
                index,
                data.records[index],
                f"{data.targets[index, 0]:g}",
                f"{scores_BC[index, 0]:.4g}",
                float(off_B[index]),
                None,
                data.texts[index],
            )
            for index in worst.tolist()
            if off_B[index] > 0
        ]
    given_BC = comparison.given(scores_BC, config)
    own_BC = data.targets > 0 if data.targets.ndim == 2 else np.arange(config.num_labels) == data.targets[:, None]
    # Of one label, what is wrong is the one given; of several, one that is missing may be the surest mistake.
    is_several = data.targets.ndim == 2
    sure_BC = np.where(given_BC & ~own_BC, scores_BC, np.where(own_BC & ~given_BC & is_several, 1 - scores_BC, -1))
    sure_B = sure_BC.max(axis=1)
    found = []
    for index in np.argsort(-sure_B, kind="stable")[:MOST_LISTED].tolist():
        if sure_B[index] < 0:
            break
        label = int(sure_BC[index].argmax())
        own, said = (comparison.named(one[index], config) for one in (own_BC, given_BC))
        wrong = config.labels[label] if given_BC[index, label] else None
        found.append(Mistake(index, data.records[index], own, said, float(sure_B[index]), wrong, data.texts[index]))
    return found


def explained(classifier: Classifier, found: Sequence[Mistake]) -> tuple[dict[int, Explanation], str | None]:
    """Which words decided, of mistakes by their index; or why none of them can be explained.

    Of several labels, only the best one of a text is: a mistake about another one stays without colours.
    """
    if not found:
        return {}, None
    try:
        whole = dataclasses.replace(classifier, windows=None)
        longest = whole.tokenizer.max_length
        # A row a step, and few lengths: each takes seconds to compile, and there are few texts.
        lengths = [*(length for length in (64, 256) if length < longest), longest]
        function = integrated_gradients(whole)
        with Engine(whole, function=function, row_lengths=lengths, tokens_per_step=1) as engine:
            pairs = [*zip(found, explain([one.text for one in found], engine), strict=True)]
    except (FlaxsentError, MissingPackageError) as err:
        return {}, f"Words are not coloured: {err}"
    is_values = classifier.config.problem_type == "regression"
    return {one.text_index: told for one, told in pairs if is_values or told.label == one.label}, None


def check(file: str | Path) -> None:
    """Refuses a file that cannot be written, before anything is computed.

    Raises:
        FileNotFoundError: there is no such folder.
        FlaxsentError: it has not the suffix of a page.
    """
    if Path(file).suffix.lower() not in (".html", ".htm"):
        raise FlaxsentError(f"--report {file}: expected a file name that ends in .html.")
    if not Path(file).absolute().parent.is_dir():
        raise FileNotFoundError(f"--report {file}: there is no folder {Path(file).parent}; make it first.")


def render(content: Content) -> str:
    """The page."""
    report = content.report
    sections = [
        _figures(content),
        _compared(content.compared),
        _confusion(report),
        _by_label(report),
        _reliability(report),
        _buckets("By length in tokens", "tokens", report.by_length or (), span),
        _buckets(f"By {content.by}", content.by, content.groups, lambda group: group.value),
        _mistakes(content),
        _suspects(content),
    ]
    head = f"{escaped(content.model)} on {escaped(content.file)}"
    body = f"<h1>{head}</h1>" + "".join(filter(None, sections))
    before, between, after = re.split("TITLE|BODY", _PAGE.replace("STYLE", STYLE))  # a model may be named BODY
    return f"{before}{head}{between}{body}{after}"


def _figures(content: Content) -> str:
    report = content.report
    rows = []
    for name, value in report.figures.items():
        low, high = content.intervals.get(name, (math.nan, math.nan))
        between = "" if math.isnan(low) or isinstance(value, int) else f"{number(low)} to {number(high)}"
        rows.append([spoken(name), number(value), between])
    told = f"{report.num_texts:,} texts, {report.problem_type.replace('_', ' ')}. The intervals hold 95% of the values "
    told += "that the figure has where the texts are drawn again, with replacement."
    return _section("Figures", f"<p>{told}</p>" + _table(["figure", "value", "95% interval"], rows))


def _compared(found: Compared | None) -> str:
    if found is None:
        return ""
    counts = found.comparison
    rows = [
        ["both right", f"{counts.both:,}"],
        ["only this model right", f"{counts.only_first:,}"],
        [f"only {found.model} right", f"{counts.only_second:,}"],
        ["neither right", f"{counts.neither:,}"],
        ["McNemar's exact test: p", f"{counts.exact_p:.4g}"],
        ["chi-squared, corrected", number(counts.statistic)],
        ["its p", f"{counts.p:.4g}"],
        *([f"its {spoken(name)}", number(value)] for name, value in found.report.figures.items()),
    ]
    listed = [[f"{one.record:,}", one.label, one.first, one.second, _joined(one.text)] for one in found.differences]
    more = len(listed) - MOST_LISTED
    below = _table(["row", "label", "this model", "the other", "text"], listed[:MOST_LISTED], texts=5)
    return _section(
        f"Beside {found.model}",
        _table(["texts", "number"], rows)
        + (f"<p>They differ on these{f' and {more:,} more' if more > 0 else ''}:</p>" if listed else "")
        + (below if listed else ""),
    )


def _confusion(report: Report) -> str:
    if report.confusion is None:
        return ""
    if len(report.labels) > _WIDEST:
        pairs = [
            (count, report.labels[own], report.labels[said])
            for own, row in enumerate(report.confusion)
            for said, count in enumerate(row)
            if own != said and count
        ]
        most = sorted(pairs, key=lambda pair: -pair[0])[:MOST_LISTED]
        rows = [[own, said, f"{count:,}"] for count, own, said in most]
        told = f"<p>Of {len(report.labels)} labels, the most frequent mistakes:</p>"
        return _section("Confusion", told + _table(["label", "predicted", "texts"], rows, texts=2))
    head = "".join(f"<th>{escaped(label)}</th>" for label in report.labels)
    lines = []
    for own, (label, row) in enumerate(zip(report.labels, report.confusion, strict=True)):
        cells = "".join(
            f'<td class="{"for" if own == said else "against"}" style="--share:{count / max(sum(row), 1):.3f}">'
            f"{count:,}</td>"
            for said, count in enumerate(row)
        )
        lines.append(f"<tr><th>{escaped(label)}</th>{cells}</tr>")
    table = f'<div class="wide"><table><tr><th>label \\ predicted</th>{head}</tr>{"".join(lines)}</table></div>'
    return _section("Confusion", table)


def _by_label(report: Report) -> str:
    if report.by_label is None:
        return ""
    names = [*next(iter(report.by_label.values()))]
    rows = [
        [label, *map(number, found.values())]
        for label, found in zip(report.labels, report.by_label.values(), strict=True)
    ]
    return _section("By label", _table(["label", *map(spoken, names)], rows))


def _reliability(report: Report) -> str:
    """Bars of the accuracy over the best score, and a mark where they would be as high as they should."""
    bins = [one for one in report.bins or () if one.num_texts]
    if not bins:
        return ""
    most = max(one.num_texts for one in bins)
    width, parts = 300 / metrics.NUM_BINS, []
    for one in bins:
        left = 300 * one.low
        told = (
            f"scores {one.low:.2f} to {one.high:.2f}: {one.num_texts:,}, mean {one.score:.3f}, right {one.accuracy:.3f}"
        )
        height = 300 * one.accuracy
        parts.append(
            f'<g><title>{told}</title><rect class="bar" x="{left + 1:.1f}" y="{300 - height:.1f}" '
            f'width="{width - 2:.1f}" height="{height:.1f}"/>'
            f'<circle class="mark" cx="{300 * one.score:.1f}" cy="{300 - height:.1f}" r="3"/>'
            f'<rect class="count" x="{left + 1:.1f}" y="{360 - 50 * one.num_texts / most:.1f}" '
            f'width="{width - 2:.1f}" height="{50 * one.num_texts / most:.1f}"/></g>'
        )
    what = "texts" if report.confusion is not None else "decisions on labels"
    picture = (
        f'<svg viewBox="-5 -5 310 370" role="img" aria-label="Reliability diagram">'
        f'<path class="line" d="M0 300 L300 0"/><path class="line" d="M0 300 H300"/>{"".join(parts)}</svg>'
    )
    told = (
        "<p>Above, the share that is right over how sure the model is, both from 0 to 1; they are equal on the dashed "
        "line. "
        f"Below, how many {what} have such a score. The calibration error is "
        f"{number(report.figures['calibration_error'])}.</p>"
    )
    return _section("Reliability", picture + told)


def _buckets(title: str, column: str, buckets: Sequence[Bucket] | Sequence[Group], name: Callable[..., str]) -> str:
    if not buckets:
        return ""
    rows = [[name(one), f"{one.num_texts:,}", *map(number, one.figures.values())] for one in buckets]
    return _section(title, _table([column, "texts", *map(spoken, buckets[0].figures)], rows))


def _mistakes(content: Content) -> str:
    if not content.mistakes:
        return ""
    is_values = content.report.problem_type == "regression"
    parts = []
    for one in content.mistakes:
        found = content.explanations.get(one.text_index)
        body = paragraphs(found) if found is not None else f'<p dir="auto">{escaped(_joined(one.text))}</p>'
        told = f"off by {one.score:.4g}" if is_values else f"{one.score:.4f} sure"
        head = f"row {one.record:,}: <b>{escaped(one.said)}</b>, {told}; the label is <b>{escaped(one.own)}</b>"
        parts.append(f"<section><h3>{head}</h3>{body}</section>")
    legend = (
        '<p><span class="for" style="--share:1">Blue</span> words speak for what the model says, '
        '<span class="against" style="--share:1">orange</span> ones against it.</p>'
        if content.explanations
        else ""
    )
    note = f"<p>{escaped(content.unexplained)}</p>" if content.unexplained else ""
    title = "Furthest off" if is_values else "Surest mistakes"
    return _section(title, legend + note + "".join(parts))


def _suspects(content: Content) -> str:
    if content.suspects is None:
        return ""
    told = (
        f"<p>{content.num_suspects:,} labels are suspect, by confident learning; a model that was trained on these "
        "labels finds few.</p>"
    )
    rows = [
        [f"{one.record:,}", one.label, one.suggested, number(one.margin), _joined(one.text)]
        for one in content.suspects[:MOST_LISTED]
    ]
    table = _table(["row", "label", "suggested", "margin", "text"], rows, texts=5) if rows else ""
    return _section("Labels that may be wrong", told + table)


def _joined(text: Text) -> str:
    return text if isinstance(text, str) else " | ".join(text)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escaped(title)}</h2>{body}</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """Of cells that are text yet; `texts`: how many of the columns are to the left, numbers are to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        sides = ["" if index < texts else ' class="number"' for index in range(len(cells))]
        return "".join(f"<{tag}{side}>{escaped(cell)}</{tag}>" for cell, side in zip(cells, sides, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{line(head, "th")}</tr>{body}</table></div>'


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>TITLE</title>
<style>
STYLE
body { max-width: 60rem }
h1 { font-size: 1.3rem; color: var(--ink); overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--faint) }
h3 { font-size: .9rem; font-weight: normal; margin: 0; color: var(--faint); overflow-wrap: anywhere }
h3 b { color: var(--ink) }
section section { margin: 1rem 0 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .1rem .6rem; text-align: left; vertical-align: top; unicode-bidi: isolate; overflow-wrap: anywhere }
th { color: var(--faint); font-weight: normal }
.number, td.for, td.against { text-align: right; white-space: nowrap }
svg { width: 22rem; max-width: 100% }
.bar { fill: rgb(var(--for) / .6) }
.count { fill: rgb(var(--for) / .3) }
.mark { fill: rgb(var(--against)) }
.line { stroke: var(--faint); stroke-dasharray: 4; fill: none }
</style>
BODY
</html>
"""
