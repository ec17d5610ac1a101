"""`flaxsent evaluate`: how good a model is on a labelled file."""

import argparse
import dataclasses
import json
import sys
from collections import Counter
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from flaxsent.base import FlaxsentError
from flaxsent.checkpoint.folder import load
from flaxsent.classifier import Classifier
from flaxsent.cli.options import (
    add_long_texts,
    add_model,
    add_reading,
    add_special_tokens_in_text,
    in_windows,
    reading_of,
    tell,
    tell_long,
)
from flaxsent.data.annotations import read_annotations
from flaxsent.data.bad_rows import ADVICE, BadRows
from flaxsent.data.labels import resolve
from flaxsent.engine import Stats
from flaxsent.evaluation import calibration, pictures, report, suspects, tables
from flaxsent.evaluation.scores import read_scores
from flaxsent.models.config import ModelConfig
from flaxsent.postprocessing import probabilities


def add(commands: Any) -> None:
    command = commands.add_parser("evaluate", description=_EVALUATE)
    add_model(command)
    add_special_tokens_in_text(command)
    add_long_texts(command)
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
    command.add_argument("--json", action="store_true", help="print every figure as one JSON object")
    command.set_defaults(run=run, keeps_compiled=True, uses_cores=True)


_EVALUATE = """Prints accuracy, F1, Matthews correlation, log loss, calibration error and the confusion matrix. A model
that gives several labels to a text is measured by micro and macro F1 and average precision, a regression model by
Pearson and Spearman correlation. Figures are defined as in scikit-learn and SciPy; the calibration error has 15 bins of
equal width."""


def run(options: argparse.Namespace) -> None:
    _check(options)
    columns = _columns(options)
    classifier = in_windows(load(options.model, special_tokens_in_text=options.special_tokens_in_text), options)
    config = classifier.config
    if options.scores is not None and not options.model:  # of any model: the labels are those of the file
        task = resolve(read_annotations(options.data, **columns))
        config = dataclasses.replace(config, labels=task.labels, problem_type=task.problem_type)
    if options.calibrate:
        calibration.check_has_probabilities(config.problem_type)
        calibration.check_windows(classifier.windows)
    if options.suspects is not None:
        suspects.check(config.problem_type, options.suspects)
    if options.plot is not None:
        pictures.check_plot(options.plot, config)
    data = _read(options, config, columns)
    if options.scores is not None:
        logits = read_scores(options.scores, data, config, text_columns=columns["text_columns"])
    else:
        logits = _logits_of(classifier, data)
    lengths = report.lengths_of(classifier, data.texts) if options.by_length else None
    found = report.measure(logits, data.targets, config, lengths=lengths)
    reports, facts, heading = {"reliability": found}, {}, ""
    if options.calibrate:
        temperature = calibration.fit_temperature(logits, data.targets, config.problem_type)
        logits = logits / temperature
        after = report.measure(logits, data.targets, config, lengths=lengths)
        file = calibration.calibrate(classifier, options.model, temperature)
        facts = {"temperature": temperature, "stored_in": str(file), "before": tables.to_json(found)}
        heading = f"temperature {temperature:.4g}: {tables.changes(found, after)}; stored in {file}\n\n"
        reports, found = {"before": found, "calibrated": after}, after
    listed = ""
    if options.suspects is not None:
        scores_BC = np.asarray(probabilities(logits, problem_type=config.problem_type))
        indices = suspects.find(scores_BC, data.targets)
        named = suspects.name(data, scores_BC, config.labels, indices[: options.suspects])
        listed = f"\n\n{tables.suspects_table(named, num_found=len(indices))}"
        facts |= {"num_suspects": len(indices), "suspects": [one._asdict() for one in named]}
    if options.json:
        print(json.dumps(tables.to_json(found) | facts))
    else:
        print(f"{heading}{tables.table(found)}{listed}")
    if options.plot is not None:
        pictures.plot(reports, options.plot)


def _check(options: argparse.Namespace) -> None:
    """Refuses, before anything is read, what does not go together."""
    if options.calibrate:
        calibration.check_folder(options.model)
    if options.scores is not None:
        for name in ("calibrate", "by_length"):
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
