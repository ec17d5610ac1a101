"""`flaxsent classify`: texts, lines, or files of them."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxsent.base import FlaxsentError, Prediction, TopK
from flaxsent.classifier import Classifier, Function
from flaxsent.cli.options import (
    FORMAT,
    READING,
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
from flaxsent.cli.rows import Rows
from flaxsent.data import records
from flaxsent.data.records import FORMATS, STDIN
from flaxsent.engine import Engine, classify
from flaxsent.jobs import shards
from flaxsent.jobs.plan import JobOptions, plan
from flaxsent.jobs.progress import Progress
from flaxsent.jobs.run import run as run_job
from flaxsent.jobs.scoring import SAMPLES, Scoring
from flaxsent.placement import on_host
from flaxsent.postprocessing import decode
from flaxsent.sharding import SHARDING
from flaxsent.transforms.ensemble import MEASURES, Uncertainty, columns


def add(commands: Any) -> None:
    command = commands.add_parser("classify", description=_CLASSIFY)
    command.add_argument(
        "texts", nargs="*", metavar="TEXT", help="a text; - alone reads standard input, one text a line"
    )
    add_model(command, action="append", also="; given several times, the mean of their scores counts")
    add_special_tokens_in_text(command)
    add_long_texts(command)
    command.add_argument(
        "--uncertainty",
        action="store_true",
        help="add the predictive entropy (nats), the mutual information (BALD) and the disagreement of several models, "
        "or of one model under draws of dropout; the score is their mean. Where a text may have several labels, they "
        "are those of the best one",
    )
    command.add_argument(
        "--samples", type=int, metavar="N", help=f"draws of dropout for --uncertainty by one model (default {SAMPLES})"
    )
    command.add_argument(
        "--top-k",
        type=int,
        metavar="K",
        help="labels for each text, best first (default: the best one; where a text may have several, each whose score "
        "is above its threshold)",
    )
    command.add_argument(
        "--abstain-below",
        type=float,
        metavar="P",
        help="give no label where the best score is less: an empty cell, null in JSON and Parquet",
    )
    add_labels(command)
    command.add_argument(
        "--format",
        choices=tuple(dict.fromkeys((*_FORMATS, *FORMATS.values()))),
        help=f"how texts are printed: {', '.join(_FORMATS)} (default: table on a terminal, tsv elsewhere). With "
        f"--input, {FORMAT}: {', '.join(FORMATS.values())}",
    )
    _add_files(command)
    command.set_defaults(run=run, keeps_compiled=True, uses_cores=True)


_FORMATS = ("table", "jsonl", "tsv")

_CHUNK = 1024
"""Lines of standard input that are classified together, so that an endless input takes no more memory."""


_CLASSIFY = """Labels texts, or files of them. The suffix of a file says its format: .txt (one text a line), .csv, .tsv,
.jsonl or .parquet. An output has all columns of its input, a label and its score, and appears only when it is complete.
A job that was killed goes on with --resume; on the same machine, its outputs are then the same to the byte. A small
hidden file beside the outputs says how they were made, so that --resume knows whether the job is finished."""


def _add_files(command: argparse.ArgumentParser) -> None:
    files = command.add_argument_group("files")
    files.add_argument(
        "--input",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="files, folders, patterns such as 'data/*.csv', or - for lines of standard input",
    )
    files.add_argument(
        "--output",
        metavar="FILE",
        help="its suffix says the format: .jsonl, .parquet, or (for .txt, .csv and .tsv) one of these three; or a "
        "folder, for files named like the inputs",
    )
    add_reading(files, format=False)
    files.add_argument(
        "--text-column", metavar="NAME", help="column of the texts (default text); for lines, its name in the output"
    )
    files.add_argument("--second-column", metavar="NAME", help="the column of the second texts, for pairs")
    files.add_argument("--all-scores", action="store_true", help="add a column with the score of each label")
    files.add_argument(
        "--embeddings",
        action="store_true",
        help="add a column with the vector that the head of the model reads: a list, in .jsonl and .parquet",
    )
    files.add_argument("--prefix", metavar="TEXT", help="put this before the names of the added columns")
    files.add_argument(
        "--bad-rows",
        metavar="FILE",
        help="write rows that are broken, have no text or get no finite score to this JSONL file; without it, the "
        "first one ends the job",
    )
    files.add_argument("--sharding", metavar="HOW", help=f"{SHARDING} (default data)")
    files.add_argument(
        "--resume", action="store_true", help="go on with the job if it has begun, with the same inputs and options"
    )
    files.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    files.add_argument(
        "--shard",
        metavar="I/N",
        help="do one of N shares of the files, I from 0: start N processes, on any hosts that see the same paths, with "
        "the same command otherwise; the last to finish completes the outputs. auto: take I and N from Open MPI, "
        "MPICH, SLURM or a TPU pod. If some are killed, start them again, or any other number with --resume",
    )


_OF_FILES = (
    "output",
    *READING[1:],
    "text_column",
    "second_column",
    "all_scores",
    "embeddings",
    "prefix",
    "bad_rows",
    "sharding",
    "resume",
    "overwrite",
    "shard",
)


def run(options: argparse.Namespace) -> None:
    _check_form(options)
    if options.input is not None:
        return _classify_files(options)
    classifier, function = _open(options, _scoring(options))
    top_k: TopK = "given" if options.top_k is None else options.top_k
    rows = Rows(
        options.format or ("table" if sys.stdout.isatty() else "tsv"),
        is_list=top_k == "given" and classifier.config.score_thresholds is not None,
        abstain_below=options.abstain_below,
    )
    num_ranks = 1 if options.top_k is None else min(options.top_k, classifier.config.num_labels)
    if rows.form == "tsv":
        names = [
            f"{name}{'' if rank == 1 else f'_{rank}'}"
            for rank in range(1, num_ranks + 1)
            for name in ("label", "score")
        ]
        print("\t".join([*names, *(MEASURES if options.uncertainty else ()), "text"]))
    if options.texts == ["-"]:
        with records.read(STDIN, text_columns=("text",)) as source:
            return _classify_lines(classifier, function, _chunks(source.records), rows, top_k)
    if function is not None:
        return _classify_lines(classifier, function, [options.texts], rows, top_k, told="text")
    _print(rows, options.texts, classify(options.texts, classifier, top_k=top_k), {})


def _scoring(options: argparse.Namespace) -> Scoring:
    models = options.model or [None]
    if options.samples is not None and not (options.uncertainty and len(models) == 1):
        raise FlaxsentError("--samples needs --uncertainty, and one model: several are the members themselves.")
    return Scoring(
        models=(*models,),
        special_tokens_in_text=options.special_tokens_in_text,
        zero_shot=zero_shot_of(options),
        windows=windows_of(options),
        uncertainty=options.uncertainty,
        num_samples=SAMPLES if options.samples is None else options.samples,
        embeddings=options.embeddings,
    )


def _open(options: argparse.Namespace, scoring: Scoring) -> tuple[Classifier, Function | None]:
    """The classifier, and what the engine is to compute if that is not only its scores."""
    found = scoring.open()
    if options.abstain_below is not None:
        check_abstains(found[0].config.problem_type, options.abstain_below)
    return found


def _classify_lines(
    classifier: Classifier,
    function: Function | None,
    chunks: Iterable[list[str]],
    rows: Rows,
    top_k: TopK,
    *,
    told: str = "standard input line",
) -> None:
    counts: Counter[str] = Counter()
    with Engine(classifier, function=function, on_window=lambda stats: counts.update(stats._asdict())) as engine:
        num_lines = 0
        for lines in chunks:
            results = engine(lines)
            is_measured = isinstance(results, Uncertainty)
            scores_BC, measures = (results.scores, columns(results)) if is_measured else (results, {})
            if (is_odd_B := ~np.isfinite(scores_BC).all(axis=-1)).any():
                raise FlaxsentError(
                    f"{told} {num_lines + int(is_odd_B.argmax()) + 1} has a score that is not a finite number; "
                    "`flaxsent info` says whether the weights are."
                )
            config = classifier.config
            found = decode(scores_BC, labels=config.labels, top_k=top_k, thresholds=config.score_thresholds)
            _print(rows, lines, found, measures)
            num_lines += len(lines)
    tell_long(classifier, counts)


def _print(
    rows: Rows, texts: list[str], predictions: list[Prediction], measures: Mapping[str, Float[np.ndarray, " B"]]
) -> None:
    for index, (text, prediction) in enumerate(zip(texts, predictions, strict=True)):
        measured = {name: float(values[index]) for name, values in measures.items()}
        print(rows.row(text, prediction, measured))
    sys.stdout.flush()


def _check_form(options: argparse.Namespace) -> None:
    """Refuses a mixture of what is for texts and what is for files."""
    if options.top_k is not None and options.top_k < 1:
        raise FlaxsentError(f"--top-k {options.top_k} is less than 1; expected a positive number.")
    is_files = options.input is not None
    for name in ("texts",) if is_files else _OF_FILES:
        value = getattr(options, name)
        if value is not None and value is not False and value != []:
            told = "TEXT" if name == "texts" else f"--{name.replace('_', '-')}"
            raise FlaxsentError(f"{told} does not go with --input." if is_files else f"{told} needs --input FILE.")
    formats = (*FORMATS.values(),) if is_files else _FORMATS
    if options.format not in (None, *formats):
        told = "with --input, which says what the files are" if is_files else "of what is printed"
        raise FlaxsentError(f"--format {options.format} {told}: expected {', '.join(formats)}.")
    if not is_files and not options.texts:
        raise FlaxsentError("nothing to classify; give texts, or --input FILE --output FILE.")
    if is_files and options.output is None:
        raise FlaxsentError("--input needs --output, a file or a folder.")


def _classify_files(options: argparse.Namespace) -> None:
    columns = (options.text_column or "text", options.second_column)
    scoring = _scoring(options)
    job_options = JobOptions(
        text_columns=tuple(column for column in columns if column is not None),
        top_k=options.top_k,
        abstain_below=options.abstain_below,
        reading=reading_of(options),
        all_scores=options.all_scores,
        uncertainty=scoring.measured_by,
        embeddings=options.embeddings,
        zero_shot=scoring.zero_shot,
        prefix=options.prefix or "",
        bad_rows=options.bad_rows,
        resume=options.resume,
        overwrite=options.overwrite,
        shard=None if options.shard is None else shards.parse(options.shard),
    )
    job = plan(options.input, options.output, job_options)
    sharding = options.sharding or "data"
    with on_host(sharding):
        classifier, function = _open(options, scoring)
    try:
        with (
            Progress(job) as progress,
            Engine(classifier, function=function, sharding=sharding, on_window=progress.add) as engine,
        ):
            outcome = run_job(job, engine, progress=progress)
    except KeyboardInterrupt:
        if job.folder.exists():
            tell("stopped; --resume goes on with what is done")
        raise
    tell_long(classifier, progress.counts)
    if outcome.was_finished:
        tell(f"{options.output} is finished already")
    elif not outcome.is_complete:
        tell(f"this share is done; the last process to finish completes {options.output}, or --resume does")
    elif outcome.num_bad_rows:
        tell(f"{outcome.num_bad_rows:,} rows were set aside in {options.bad_rows}")


def _chunks(lines: Iterable[records.Record]) -> Iterator[list[str]]:
    """Lists of texts; what comes before a broken line still comes out."""
    chunk: list[str] = []
    for line in lines:
        if line.error is not None:
            if chunk:
                yield chunk
            raise FlaxsentError(f"standard input line {line.number} {line.error}; convert it first.")
        chunk.append(line.raw)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
