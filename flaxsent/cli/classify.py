"""`flaxsent classify`: texts, lines, or files of them."""

import argparse
import functools
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flaxsent.base import FlaxsentError, Prediction
from flaxsent.checkpoint.folder import load
from flaxsent.cli.options import add_model, printable
from flaxsent.data.writers import ESCAPES
from flaxsent.engine import classify


def add(commands: Any) -> None:
    command = commands.add_parser("classify", help="label texts, or files of them", description=_CLASSIFY)
    command.add_argument(
        "texts", nargs="*", metavar="TEXT", help="a text; - alone reads standard input, one text a line"
    )
    add_model(command)
    command.add_argument("--top-k", type=int, metavar="K", help="labels for each text, best first (default 1)")
    command.add_argument("--format", choices=_FORMATS, help="default: table on a terminal, tsv elsewhere")
    _add_files(command)
    command.set_defaults(run=run, keeps_compiled=True, uses_cores=True)


_FORMATS = ("table", "jsonl", "tsv")


_CHUNK = 1024
"""Lines of standard input that are classified together: the memory that an endless input takes."""


_CLASSIFY = """Labels texts, or files of them. The format of a file is what its name ends in: .txt (one text a line),
.csv, .tsv, .jsonl or .parquet. Outputs have all columns of their inputs, a label and its score, and appear only when
they are complete. A job that was killed goes on with --resume, and its outputs are what they would have been, to the
byte."""


def _add_files(command: argparse.ArgumentParser) -> None:
    files = command.add_argument_group("files")
    files.add_argument(
        "--input",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="files, folders, patterns such as 'data/*.csv', or - for lines",
    )
    files.add_argument(
        "--output", metavar="FILE", help="in the format of its name; a folder for files named as the inputs are"
    )
    files.add_argument("--text-column", metavar="NAME", help="default text; what lines are named in the output")
    files.add_argument("--second-column", metavar="NAME", help="of the second texts, for pairs")
    files.add_argument("--all-scores", action="store_true", help="add the score of each label, in a column of its name")
    files.add_argument("--prefix", metavar="TEXT", help="to put before the names of the columns that are added")
    files.add_argument(
        "--bad-rows",
        metavar="FILE",
        help="set rows aside here (JSONL) that are broken or have no text; by default the first of them ends the job",
    )
    files.add_argument(
        "--resume", action="store_true", help="go on with the job if it was begun, with the same inputs and options"
    )
    files.add_argument("--overwrite", action="store_true", help="replace outputs that are there already")
    several = command.add_argument_group(
        "several processes", "One on each host, all with the same command and the same paths, share the files."
    )
    several.add_argument(
        "--distributed", action="store_true", help="find the others by what a TPU pod or SLURM says; or else by these:"
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="of the process 0, and free there")
    several.add_argument("--num-processes", type=int, metavar="N", help="how many there are")
    several.add_argument("--process-id", type=int, metavar="I", help="which of them this is, from 0")
    several.add_argument(
        "--wait", type=int, metavar="SECONDS", help="for the others to come with their models loaded (default 300)"
    )


_OF_FILES = (
    *("output", "text_column", "second_column", "all_scores", "prefix", "bad_rows", "resume", "overwrite"),
    *("distributed", "coordinator", "num_processes", "process_id", "wait"),
)


def run(options: argparse.Namespace) -> None:
    _check_form(options)
    if options.input is not None:
        return _classify_files(options)
    top_k = 1 if options.top_k is None else options.top_k
    if top_k < 1:
        raise FlaxsentError(f"--top-k {top_k} is less than 1; expected a positive number.")
    form = options.format or ("table" if sys.stdout.isatty() else "tsv")
    classifier = load(options.model)
    num_labels = min(top_k, classifier.config.num_labels)
    if form == "tsv":
        columns = [
            f"{name}{'' if rank == 1 else f'_{rank}'}"
            for rank in range(1, num_labels + 1)
            for name in ("label", "score")
        ]
        print("\t".join([*columns, "text"]))
    is_stdin = options.texts == ["-"]
    for chunk in _chunks(_lines(sys.stdin.buffer) if is_stdin else options.texts):
        for text, prediction in zip(chunk, classify(chunk, classifier, top_k=num_labels), strict=True):
            print(_WRITERS[form](text, prediction))
        sys.stdout.flush()


def _check_form(options: argparse.Namespace) -> None:
    """Refuses a mixture of what is for texts and what is for files."""
    is_files = options.input is not None
    for name in ("texts", "top_k", "format") if is_files else _OF_FILES:
        value = getattr(options, name)
        if value is not None and value is not False and value != []:
            told = "TEXT" if name == "texts" else f"--{name.replace('_', '-')}"
            raise FlaxsentError(f"{told} does not go with --input." if is_files else f"{told} needs --input FILE.")
    if not is_files and not options.texts:
        raise FlaxsentError("nothing to classify; give texts, or --input FILE --output FILE.")
    if is_files and options.output is None:
        raise FlaxsentError("--input needs --output, a file or a folder.")


def _classify_files(options: argparse.Namespace) -> None:
    from flaxsent.engine import Engine
    from flaxsent.jobs import run as jobs

    meet = _meeting(options)
    columns = (options.text_column or "text", options.second_column)
    job_options = jobs.JobOptions(
        text_columns=tuple(column for column in columns if column is not None),
        all_scores=options.all_scores,
        prefix=options.prefix or "",
        bad_rows=options.bad_rows,
        resume=options.resume,
        overwrite=options.overwrite,
        is_shared=meet is not None,
    )
    job = jobs.plan(options.input, options.output, job_options)
    if not job.files:
        return print(f"flaxsent: {options.output} is there already; nothing to resume", file=sys.stderr)
    classifier = load(options.model)
    try:
        with jobs.Progress(job) as progress, Engine(classifier, on_window=progress.add) as engine:
            num_bad = jobs.run(job, engine, model=options.model, progress=progress, meet=meet)
    except KeyboardInterrupt:
        if job.folder.exists():
            print("flaxsent: stopped; --resume goes on with what is done", file=sys.stderr)
        raise
    if progress.num_truncated:
        limit = classifier.tokenizer.max_length
        print(f"flaxsent: {progress.num_truncated:,} texts were truncated to {limit} tokens", file=sys.stderr)
    if num_bad is None:
        print(
            f"flaxsent: this share is done; the last process to finish completes {options.output}, or --resume does",
            file=sys.stderr,
        )
    elif num_bad:
        print(f"flaxsent: {num_bad:,} rows were set aside in {options.bad_rows}", file=sys.stderr)


def _meeting(options: argparse.Namespace) -> Callable[[str], Any] | None:
    """What finds the other processes, if there are to be any."""
    from flaxsent.jobs import shards as hosts

    place = {name: getattr(options, name) for name in ("coordinator", "num_processes", "process_id")}
    is_told = any(value is not None for value in place.values())
    if is_told and options.distributed:
        raise FlaxsentError(
            "--distributed finds out the place that --coordinator and its like tell; pass one or the other."
        )
    if is_told:
        hosts.check(**place)
    elif not options.distributed:
        if options.wait is not None:
            raise FlaxsentError("--wait needs --distributed, or --coordinator, --num-processes and --process-id.")
        return None
    wait = hosts.WAIT if options.wait is None else options.wait
    if wait < 1:
        raise FlaxsentError(f"--wait {wait}: expected at least 1 second.")
    return functools.partial(hosts.meet, wait=wait, **place)


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of texts; what stands before a broken line still comes out."""
    chunk: list[str] = []
    try:
        for text in texts:
            chunk.append(text)
            if len(chunk) == _CHUNK:
                yield chunk
                chunk = []
    except ValueError:
        yield chunk
        raise
    yield chunk


def _lines(stream: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as err:
            raise FlaxsentError(
                f"standard input line {number} is not UTF-8 text: {err.reason}; convert it first."
            ) from err
        yield text.removesuffix("\n").removesuffix("\r")


def _table_row(text: str, prediction: Prediction) -> str:
    """Scores, then as much of the text as the terminal is wide; control characters would move the cursor."""
    cells = [f"{printable(label):<10} {score:.4f}" for label, score in zip(*prediction, strict=True)]
    row = "  ".join([*cells, printable(text)])
    width = shutil.get_terminal_size().columns
    return row if len(row) <= width else row[: width - 1] + "…"


def _tsv_row(text: str, prediction: Prediction) -> str:
    """Tabs and line ends of texts and labels are written as backslash escapes."""
    cells = [
        cell for label, score in zip(*prediction, strict=True) for cell in (label.translate(ESCAPES), f"{score:.6f}")
    ]
    return "\t".join([*cells, text.translate(ESCAPES)])


def _jsonl_row(text: str, prediction: Prediction) -> str:
    scores = [{"label": label, "score": score} for label, score in zip(*prediction, strict=True)]
    return json.dumps({"text": text, "scores": scores}, ensure_ascii=False)


_WRITERS = {"table": _table_row, "jsonl": _jsonl_row, "tsv": _tsv_row}
