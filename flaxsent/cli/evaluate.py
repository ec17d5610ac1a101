"""`flaxsent evaluate`: how good a model is on a labelled file."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flaxsent.checkpoint.folder import load
from flaxsent.cli.options import add_model


def add(commands: Any) -> None:
    command = commands.add_parser("evaluate", help="tell how good a model is on a labelled file", description=_EVALUATE)
    add_model(command)
    command.add_argument("--data", required=True, metavar="FILE", help="CSV, TSV, JSONL or Parquet")
    command.add_argument("--text-column", default="text", metavar="NAME", help="default text")
    command.add_argument("--second-column", metavar="NAME", help="of the second texts, for pairs")
    command.add_argument(
        "--label-column",
        default="label",
        metavar="NAME",
        help="default label; of names, indices or values",
    )
    command.add_argument(
        "--label-separator", metavar="TEXT", help="between several labels of a text; by default they are a JSON list"
    )
    command.add_argument("--by-length", action="store_true", help="add the figures of texts of like length, in tokens")
    command.add_argument("--plot", metavar="FILE", help="draw a reliability diagram, such as reliability.png")
    command.add_argument(
        "--calibrate",
        action="store_true",
        help="fit a temperature and store it in the folder's config.json: scores are divided by it from then on",
    )
    command.add_argument("--json", action="store_true", help="one JSON object with every figure")
    command.set_defaults(run=run, keeps_compiled=True, uses_cores=True)


_EVALUATE = """Tells accuracy, F1, Matthews correlation, log loss, calibration error and the confusion matrix; for
several labels at once micro and macro F1 and average precision; for regression Pearson and Spearman correlation. All
are as scikit-learn and SciPy define them; the calibration error is that of 15 bins of equal width."""


def run(options: argparse.Namespace) -> None:
    from flaxsent.evaluation import report as evaluate

    if options.calibrate:
        evaluate.check_writable(options.model)
    classifier = load(options.model)
    config = classifier.config
    if options.calibrate:
        evaluate.check_calibrates(config.problem_type)
    if options.plot is not None:
        evaluate.check_plot(options.plot, config)
    columns = (options.text_column, options.second_column)
    data = evaluate.read_data(
        options.data,
        config,
        text_columns=[column for column in columns if column is not None],
        label_column=options.label_column,
        label_separator=options.label_separator,
    )
    with tqdm(total=len(data.texts), disable=None, unit=" texts", file=sys.stderr) as bar:
        logits = evaluate.logits_of(classifier, data.texts, on_scored=bar.update)
    lengths = evaluate.lengths_of(classifier, data.texts) if options.by_length else None
    reports = [evaluate.measure(logits, data.targets, config, lengths=lengths)]
    if options.calibrate:
        temperature = evaluate.fit_temperature(logits, data.targets, config.problem_type)
        calibrated = dataclasses.replace(config, temperature=temperature)
        reports.append(evaluate.measure(logits, data.targets, calibrated, lengths=lengths))
        evaluate.store_temperature(options.model, temperature)
    if options.json:
        before = {"before": evaluate.to_json(reports[0])} if options.calibrate else {}
        print(json.dumps(evaluate.to_json(reports[-1]) | before))
    else:
        if options.calibrate:
            print(f"{evaluate.changes(*reports)}; stored in {Path(options.model, 'config.json')}\n")
        print(evaluate.table(reports[-1]))
    if options.plot is not None:
        evaluate.plot(reports, options.plot)
