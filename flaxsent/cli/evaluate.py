"""`flaxsent evaluate`: how good a model is on a labelled file."""

import argparse
import dataclasses
import functools
import json
import sys
import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from flaxsent.base import FlaxsentError
from flaxsent.checkpoint.folder import load
from flaxsent.classifier import Classifier
from flaxsent.cli.options import (
    add_labels,
    add_long_texts,
    add_model,
    add_reading,
    add_special_tokens_in_text,
    check_abstains,
    reading_of,
    tell,
    tell_long,
    windows_of,
    zero_shot_of,
)
from flaxsent.data.annotations import read_annotations
from flaxsent.data.bad_rows import ADVICE, BadRows
from flaxsent.data.labels import resolve
from flaxsent.engine import Stats
from flaxsent.evaluation import (
    calibration,
    comparison,
    intervals,
    page,
    pictures,
    predictions,
    report,
    suspects,
    tables,
    thresholds,
)
from flaxsent.evaluation.scores import read_scores
from flaxsent.files import write
from flaxsent.models.config import ModelConfig
from flaxsent.transforms.windows import windows
from flaxsent.transforms.zero_shot import zero_shot


def add(commands: Any) -> None:
    command = commands.add_parser("evaluate", description=_EVALUATE)
    add_model(command)
    add_special_tokens_in_text(command)
    add_long_texts(command)
    add_labels(command)
    command.add_argument("--data", required=True, metavar="FILE", help="CSV, TSV, JSONL or Parquet")
    add_reading(command)
    command.add_argument("--text-column", default="text", metavar="NAME", help="default text")
    command.add_argument("--second-column", metavar="NAME", help="column of the second texts, for pairs")
    command.add_argument(
        "--label-column",
        metavar="NAME",
        help="column of the labels: names, indices or values (default label)",
    )
    command.add_argument(
        "--label-columns",
        metavar="A,B,...",
        help="instead of it, a column for each label, which holds 0 and 1, or true and false",
    )
    command.add_argument(
        "--label-separator", metavar="TEXT", help="separates several labels of a text; by default they are a JSON list"
    )
    command.add_argument(
        "--bad-rows",
        metavar="FILE",
        help="write rows that are broken, have no text or no label of the model's to this JSONL file, and measure the "
        "others; without it, they are an error",
    )
    command.add_argument("--by-length", action="store_true", help="also measure texts of similar length in tokens")
    command.add_argument("--plot", metavar="FILE", help="draw a reliability diagram, such as reliability.png")
    command.add_argument(
        "--calibrate",
        action="store_true",
        help="fit a temperature and divide the model's last layer by it, in its folder",
    )
    command.add_argument(
        "--suspects",
        type=int,
        metavar="N",
        help="list the N records whose labels are most likely wrong, by confident learning (Northcutt et al. 2021); a "
        "model that was trained on these labels finds few: give it others, or --scores out of fold",
    )
    command.add_argument(
        "--scores",
        metavar="FILE",
        help="take the scores from this file, not from a model: the same texts in the same order, and a column of "
        "scores for each label, as classify --all-scores writes them. The labels are those of --model, or without it "
        "those of the label column",
    )
    command.add_argument(
        "--tune-thresholds",
        action="store_true",
        help="where a text may have several labels: find for each the threshold with the best F1, and store it in the "
        "model's config.json; the figures on these texts are then better than those on others will be",
    )
    command.add_argument(
        "--abstain-below",
        type=float,
        metavar="P",
        help="tell, too, how many texts have a best score of at least this (coverage), and the accuracy on them",
    )
    command.add_argument(
        "--predictions", metavar="FILE", help="write texts, labels, what the model says and its scores to this table"
    )
    command.add_argument("--by", metavar="NAME", help="also measure the texts of each value of this column")
    command.add_argument(
        "--compare",
        metavar="ID_OR_FOLDER",
        help="another model of the same labels: tell where they differ, and by McNemar's test whether that is chance",
    )
    command.add_argument(
        "--report",
        metavar="FILE.html",
        help="write all of this as one page, with 95%% intervals, the surest mistakes with their words coloured, and "
        "labels that may be wrong",
    )
    command.add_argument("--json", action="store_true", help="print every figure as one JSON object")
    command.set_defaults(run=run, keeps_compiled=True, uses_cores=True)


_EVALUATE = """Prints accuracy, F1, Matthews correlation, log loss, calibration error and the confusion matrix. A model
that gives several labels to a text is measured by micro and macro F1 and average precision, a regression model by
Pearson and Spearman correlation. Figures are defined as in scikit-learn and SciPy; the calibration error has 15 bins of
equal width."""


def run(options: argparse.Namespace) -> None:
    _check(options)
    columns = _columns(options)
    classifier = _load(options, options.model)
    config = classifier.config
    if options.scores is not None and not options.model:  # of any model: the labels are those of the file
        task = resolve(read_annotations(options.data, **columns))
        config = dataclasses.replace(config, labels=task.labels, problem_type=task.problem_type)
    _check_task(options, classifier, config, columns["text_columns"])
    other = None
    if options.compare is not None:
        other = _load(options, options.compare, keeps_own=True)
        comparison.check(config, other.config)
    data = _read(options, config, columns)
    if options.scores is not None:
        logits = read_scores(options.scores, data, config, text_columns=columns["text_columns"])
    else:
        logits = _logits_of(classifier, data)
    where = {name: columns[name] for name in ("text_columns", "reading")}
    values = [] if options.by is None else report.values_of(data, options.by, **where)
    is_long = options.by_length or (options.report is not None and options.scores is None)
    lengths = report.lengths_of(classifier, data.texts) if is_long else None
    measured = functools.partial(
        report.measure, targets=data.targets, lengths=lengths, abstain_below=options.abstain_below
    )
    found = _Found(logits, config, measured(logits, config=config))
    if options.calibrate:
        found = _calibrated(found, options, classifier, data, measured)
    if options.tune_thresholds:
        found = _with_thresholds(found, options, data, measured)
    config, scores_BC = found.config, report.scores_of(found.logits, found.config)
    groups = (
        []
        if options.by is None
        else report.by_value(*(scores_BC, data.targets, config, values), abstain_below=options.abstain_below)
    )
    compared = None if other is None else _compared(other, options, data, scores_BC, config)
    listed, facts = _listed(options, data, found, scores_BC, groups, len({*values}), compared)
    if options.json:
        print(json.dumps(tables.without_nan(tables.to_json(found.figures) | facts)))
    else:
        print("\n\n".join([*found.headings, tables.table(found.figures), *listed]))
    if options.report is not None:
        _write_report(options, classifier, data, found, scores_BC, groups, compared)
    if options.predictions is not None:
        predictions.write(options.predictions, data, scores_BC, config, text_columns=columns["text_columns"])
    if options.plot is not None:
        is_new = found.before is not None
        drawn = {"before": found.before, "calibrated": found.figures} if is_new else {"reliability": found.figures}
        pictures.plot({title: one for title, one in drawn.items() if one is not None}, options.plot)


def _load(options: argparse.Namespace, model: str | None, *, keeps_own: bool = False) -> Classifier:
    """A model, by the labels and the windows that are asked for; `keeps_own`: unless these labels are its own."""
    asked, read = zero_shot_of(options), windows_of(options)
    found = load(model, special_tokens_in_text=options.special_tokens_in_text)
    if asked is not None and not (keeps_own and {*found.config.labels} == {*asked["labels"]}):
        found = zero_shot(found, **asked)
    return found if read is None else windows(found, **read)


def _listed(
    options: argparse.Namespace,
    data: report.Data,
    found: "_Found",
    scores_BC: Float[np.ndarray, "B C"],
    groups: Sequence[report.Group],
    num_values: int,
    compared: page.Compared | None,
) -> tuple[list[str], dict[str, Any]]:
    """What is told below the figures: as tables, and for JSON."""
    listed, facts = [], dict(found.facts)
    if options.suspects is not None:
        indices = suspects.find(scores_BC, data.targets)
        named = suspects.name(data, scores_BC, found.config.labels, indices[: options.suspects])
        listed.append(tables.suspects_table(named, num_found=len(indices)))
        facts |= {"num_suspects": len(indices), "suspects": [one._asdict() for one in named]}
    if options.by is not None:
        listed.append(tables.groups_table(options.by, groups, num_values=num_values))
        facts["by"] = {"column": options.by, "groups": [one._asdict() for one in groups]}
    if compared is not None:
        shown = compared.differences[:_MOST_SHOWN]
        listed.append(tables.comparison_table(compared.comparison, shown, other=compared.model))
        told = {"model": compared.model, **compared.comparison._asdict(), "figures": compared.report.figures}
        facts["compare"] = told | {"differences": [one._asdict() for one in compared.differences]}
    return listed, facts


_MOST_SHOWN = 10
"""Texts on which models differ; --json and --report have more."""


def _compared(
    other: Classifier,
    options: argparse.Namespace,
    data: report.Data,
    scores_BC: Float[np.ndarray, "B C"],
    config: ModelConfig,
) -> page.Compared:
    order = comparison.check(config, other.config)
    logits_BC = _logits_of(other, data)[:, order]
    thresholds = other.config.label_thresholds
    other_config = dataclasses.replace(
        config, label_thresholds=None if thresholds is None else tuple(thresholds[index] for index in order)
    )
    first_BC = comparison.given(scores_BC, config)
    second_BC = comparison.given(report.scores_of(logits_BC, other_config), other_config)
    return page.Compared(
        options.compare,
        report.measure(logits_BC, data.targets, other_config, abstain_below=options.abstain_below),
        comparison.compare(comparison.right(first_BC, data.targets), comparison.right(second_BC, data.targets)),
        comparison.differences(data, config, first_BC, second_BC),
    )


def _write_report(
    options: argparse.Namespace,
    classifier: Classifier,
    data: report.Data,
    found: "_Found",
    scores_BC: Float[np.ndarray, "B C"],
    groups: Sequence[report.Group],
    compared: page.Compared | None,
) -> None:
    config = found.config
    mistakes = page.mistakes(scores_BC, data, config)
    explanations, why = ({}, None) if options.scores is not None else page.explained(classifier, mistakes)
    indices = suspects.find(scores_BC, data.targets) if data.targets.ndim == 1 else None
    listed = None if indices is None else indices[: page.MOST_LISTED]
    named = None if listed is None else suspects.name(data, scores_BC, config.labels, listed)
    content = page.Content(
        model=options.scores or options.model or "the embedded model",
        file=options.data,
        report=found.figures,
        intervals=intervals.intervals(scores_BC, data.targets, config, abstain_below=options.abstain_below),
        mistakes=mistakes,
        explanations=explanations,
        unexplained=why,
        groups=groups,
        by=options.by or "",
        suspects=named,
        num_suspects=0 if indices is None else len(indices),
        compared=compared,
    )
    write(Path(options.report), page.render(content).encode())


class _Found(NamedTuple):
    """Logits and their figures, after what has been fitted to them."""

    logits: Float[np.ndarray, "B C"]
    config: ModelConfig
    figures: report.Report
    before: report.Report | None = None
    facts: Mapping[str, Any] = types.MappingProxyType({})
    """That --json tells besides."""
    headings: tuple[str, ...] = ()


def _calibrated(
    found: _Found,
    options: argparse.Namespace,
    classifier: Classifier,
    data: report.Data,
    measured: Callable[..., report.Report],
) -> _Found:
    temperature = calibration.fit_temperature(found.logits, data.targets, found.config.problem_type)
    logits, config = found.logits / temperature, calibration.calibrated_config(found.config, temperature)
    after = measured(logits, config=config)
    file = calibration.calibrate(classifier, options.model, temperature)
    facts = {"temperature": temperature, "stored_in": str(file), "before": tables.to_json(found.figures)}
    heading = f"temperature {temperature:.4g}: {tables.changes(found.figures, after)}; stored in {file}"
    return _Found(logits, config, after, found.figures, facts, (heading,))


def _with_thresholds(
    found: _Found, options: argparse.Namespace, data: report.Data, measured: Callable[..., report.Report]
) -> _Found:
    config = thresholds.tuned(found.logits, data.targets, found.config)
    after = measured(found.logits, config=config)
    file = thresholds.store(options.model, config.thresholds or ())
    facts = {"before": tables.to_json(found.figures), **found.facts, "thresholds_stored_in": str(file)}
    changes = tables.changes(found.figures, after, ("accuracy", "micro_f1", "macro_f1"))
    headings = (*found.headings, f"thresholds: {changes}; stored in {file}")
    return found._replace(config=config, figures=after, facts=facts, headings=headings)


def _check_task(
    options: argparse.Namespace, classifier: Classifier, config: ModelConfig, text_columns: Sequence[str]
) -> None:
    """Refuses, before the data is read, what does not go with such a model."""
    if options.calibrate:
        calibration.check_has_probabilities(config.problem_type)
        calibration.check_windows(classifier.windows)
    if options.tune_thresholds:
        thresholds.check(config.problem_type)
    if options.abstain_below is not None:
        check_abstains(config.problem_type, options.abstain_below)
    if options.predictions is not None:
        inputs = [file for file in (options.data, options.scores) if file is not None]
        predictions.check(options.predictions, config, text_columns=text_columns, inputs=inputs)
    if options.suspects is not None:
        suspects.check(config.problem_type, options.suspects)
    if options.report is not None:
        page.check(options.report)
    if options.plot is not None:
        pictures.check_plot(options.plot, config)


def _check(options: argparse.Namespace) -> None:
    """Refuses, before anything is read, what does not go together."""
    for name in ("calibrate", "tune_thresholds"):
        if getattr(options, name) and options.labels is not None:
            raise FlaxsentError(f"--{name.replace('_', '-')} writes into a model, which knows nothing of --labels.")
    if options.calibrate:
        calibration.check_folder(options.model)
    if options.tune_thresholds:
        calibration.check_folder(options.model, "--tune-thresholds", "config.json")
    if options.scores is not None:
        for name in ("calibrate", "tune_thresholds", "by_length"):
            if getattr(options, name):
                raise FlaxsentError(f"--{name.replace('_', '-')} needs a model; it does not go with --scores.")
        if options.bad_rows is not None:
            raise FlaxsentError("--bad-rows does not go with --scores, which has a row for each row of the data.")
    if options.label_columns is not None and options.label_column is not None:
        raise FlaxsentError("--label-column and --label-columns: expected one of the two.")


def _columns(options: argparse.Namespace) -> dict[str, Any]:
    """How the data is read."""
    return {
        "text_columns": [name for name in (options.text_column, options.second_column) if name is not None],
        "label_column": "label" if options.label_column is None else options.label_column,
        "label_columns": None if options.label_columns is None else options.label_columns.split(","),
        "label_separator": options.label_separator,
        "reading": reading_of(options),
    }


def _read(options: argparse.Namespace, config: ModelConfig, columns: dict[str, Any]) -> report.Data:
    bad_rows = BadRows(options.bad_rows, inputs=[options.data])
    data = report.read_data(options.data, config, bad_rows=bad_rows, **columns)
    bad_rows.check(ADVICE)
    bad_rows.write()
    if bad_rows.num_rows:
        tell(f"{bad_rows.num_rows:,} rows were set aside in {options.bad_rows}")
    return data


def _logits_of(classifier: Classifier, data: report.Data) -> Float[np.ndarray, "B C"]:
    counts: Counter[str] = Counter()
    with tqdm(total=len(data.texts), disable=None, unit=" texts", file=sys.stderr) as bar:

        def move(stats: Stats) -> None:
            counts.update(stats._asdict())
            bar.update(stats.num_texts)

        logits = report.logits_of(classifier, data, on_window=move)
    tell_long(classifier, counts)
    return logits
