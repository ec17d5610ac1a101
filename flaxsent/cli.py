"""The command line: parse, call one function, print. A user's mistake is one line on standard error and exit code 2."""

import argparse
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

import flaxsent
from flaxsent.classifier import classify, load, load_fastest, open_model
from flaxsent.types import Prediction

_CHUNK = 1024
"""Lines of standard input that are classified together: the memory that an endless input takes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit code is 0, 1 for a parity that fails, 2 for a mistake of the user's, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    if arguments is None:  # else the process, and its settings, are another's
        if options.keeps_compiled:
            _keep_compiled()
        if options.uses_cores:
            _use_cores()
    code = 0
    try:
        code = options.run(options) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has gone: nobody is left to tell. Python's own flush at exit must not fail on it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, ImportError) as err:
        print(f"flaxsent: error: {' '.join(str(err).split())}", file=sys.stderr)
        return 2
    return code


def _keep_compiled() -> None:
    """Switches JAX's compilation cache on, unless it is on: what was compiled once is read at the next start.

    It lies in `FLAXSENT_CACHE` (empty: no cache) or in the user's cache folder; where that cannot be written, nowhere.
    """
    folder = os.environ.get("FLAXSENT_CACHE")
    if folder is None:
        folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "flaxsent", "jax")
    folder = os.path.expanduser(folder)
    if not folder or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _use_cores() -> None:
    """Makes a device of each core, unless it is set otherwise: the engine then gives each its own rows to compute."""
    from flaxsent.engine import num_cores

    is_set = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not is_set and getattr(jax.config, "jax_num_cpu_devices", 1) < 0:
        jax.config.update("jax_num_cpu_devices", num_cores())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flaxsent", description="Text classification in JAX as pure functions.")
    parser.set_defaults(keeps_compiled=False, uses_cores=False)
    parser.add_argument("--version", action="version", version=f"flaxsent {flaxsent.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("classify", help="label texts, or files of them", description=_CLASSIFY)
    command.add_argument(
        "texts", nargs="*", metavar="TEXT", help="a text; - alone reads standard input, one text a line"
    )
    _add_model(command)
    command.add_argument("--top-k", type=int, metavar="K", help="labels for each text, best first (default 1)")
    command.add_argument("--format", choices=_FORMATS, help="default: table on a terminal, tsv elsewhere")
    _add_files(command)
    command.set_defaults(run=_classify, keeps_compiled=True, uses_cores=True)

    command = commands.add_parser("info", help="tell what a checkpoint is and what it runs on")
    command.add_argument("model", nargs="?", metavar="MODEL", help="Hub id or folder; the embedded model by default")
    command.set_defaults(run=_info, keeps_compiled=True)

    command = commands.add_parser("train", help="fine-tune an encoder or a classifier", description=_TRAIN)
    _add_model(command)
    _add_train(command)
    command.set_defaults(run=_train)

    command = commands.add_parser("evaluate", help="tell how good a model is on a labelled file", description=_EVALUATE)
    _add_model(command)
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
    command.set_defaults(run=_evaluate, keeps_compiled=True, uses_cores=True)

    command = commands.add_parser("export", help="write a folder that runs without the encoders", description=_EXPORT)
    command.add_argument("model", nargs="?", metavar="MODEL", help="Hub id or folder; the embedded model by default")
    command.add_argument("folder", metavar="FOLDER", help="new, or empty; classify --model takes it")
    command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    command.add_argument(
        "--platforms",
        default="cpu,cuda,tpu",
        metavar="A,B,...",
        help="of cpu, cuda, rocm, tpu (default %(default)s)",
    )
    command.set_defaults(run=_export)

    command = commands.add_parser("parity", help="compare the logits with PyTorch's")
    command.add_argument(
        "models", nargs="*", metavar="MODEL", help="Hub ids or folders; by default a tiny one a family"
    )
    command.add_argument("--json", action="store_true", help="one JSON object for each comparison, one a line")
    command.set_defaults(run=_parity)

    command = commands.add_parser("bench", help="compare the speed with that of other libraries")
    command.add_argument(
        "--model", metavar="ID_OR_FOLDER", help="by default one of DistilBERT's size with random weights"
    )
    command.add_argument(
        "--texts", metavar="FILE", help="one text a line; by default made-up ones, as long as SST-2's and IMDb's"
    )
    command.add_argument("--num-texts", type=int, metavar="N", help="of IMDb's length a seventh (default 160 on a CPU)")
    command.add_argument("--peers", metavar="A,B,...", help="names out of the table; all by default")
    command.add_argument("--rounds", type=int, metavar="N", help="default 3, or less where they take too long")
    command.add_argument("--json", action="store_true", help="one JSON object with every figure")
    command.add_argument("--plot", metavar="FILE", help="write a bar chart, such as bench.png")
    command.add_argument(
        "--footprint",
        action="store_true",
        help="instead, the time to the first answer beside HF pipeline's, and the memory of a file of 100,000 texts",
    )
    command.set_defaults(run=_bench, uses_cores=True)

    command = commands.add_parser("scale", help="tell what a large job would take", description=_SCALE)
    _add_model(command)
    command.add_argument("--texts-per-second", type=_positive, required=True, metavar="X", help="of one device")
    command.add_argument("--tokens-per-second", type=_positive, required=True, metavar="X", help="of one device")
    command.add_argument("--matrix-use", type=_positive, metavar="X", help="of its matrix units then, up to 1")
    command.add_argument("--documents", type=_positive, default=1e9, metavar="N", help="texts to do (default 1e9)")
    command.add_argument("--hours", type=_positive, default=24.0, metavar="X", help="to do them in (default 24)")
    command.add_argument("--devices-per-host", type=_positive, metavar="N", help="by default as many as here")
    command.add_argument("--cores-per-host", type=_positive, metavar="N", help="by default as many as here")
    command.add_argument("--json", action="store_true", help="one JSON object with every figure")
    command.set_defaults(run=_scale)
    return parser


_FORMATS = ("table", "jsonl", "tsv")


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", metavar="ID_OR_FOLDER", help="Hub id or folder; the embedded model by default")


_TRAIN = """Fine-tunes an encoder or a classifier on a file of texts with labels: .csv, .tsv, .jsonl or .parquet. Labels
are names or numbers; several of a text are a list (in a text column a JSON list, or see --label-separator); decimal
numbers are values to be predicted. The checkpoint keeps its labels if the file has no others, else it gets a new head.
The output is an ordinary checkpoint folder with log.jsonl and curves.png, and appears when it is complete. A run that
was killed goes on with --resume, to the same parameters, to the bit."""


def _add_train(command: argparse.ArgumentParser) -> None:
    files = command.add_argument_group("files")
    files.add_argument("--train", required=True, metavar="FILE", help="texts to learn from")
    files.add_argument("--dev", metavar="FILE", help="texts to evaluate on after each epoch")
    files.add_argument("--unlabelled", metavar="FILE", help="texts of which only the teacher's scores are learnt")
    files.add_argument("--output", required=True, metavar="FOLDER")
    files.add_argument("--text-column", default="text", metavar="NAME", help="default text")
    files.add_argument("--second-column", metavar="NAME", help="of the second texts, for pairs")
    files.add_argument("--label-column", default="label", metavar="NAME", help="default label")
    files.add_argument("--label-separator", metavar="TEXT", help="what stands between several labels of a text")
    files.add_argument("--labels", metavar="A,B,...", help="in this order; by default the checkpoint's or the file's")
    files.add_argument(
        "--problem-type",
        choices=("single_label_classification", "multi_label_classification", "regression"),
        help="by default what the labels look like: lists, decimal numbers, or else one label of several",
    )
    files.add_argument("--save-dtype", choices=_DTYPES, default="float32", help="of the weights that are written")
    files.add_argument("--checkpoint-every", type=int, default=500, metavar="STEPS", help="default 500, and each epoch")
    files.add_argument("--log-every", type=int, default=20, metavar="STEPS", help="default 20, and each epoch")
    files.add_argument(
        "--resume", action="store_true", help="go on with the run if it was begun, with the same options"
    )
    files.add_argument("--overwrite", action="store_true", help="replace an output that is there already")

    how = command.add_argument_group("training")
    how.add_argument("--backend", choices=("native", "flax"), help="default native, where it has the family")
    how.add_argument("--learning-rate", type=float, default=1e-4, metavar="X", help="peak (default 1e-4)")
    how.add_argument("--schedule", choices=("linear", "cosine"), default="linear", help="of the decay (default linear)")
    how.add_argument("--warmup", type=float, default=0.06, metavar="X", help="share of the steps (default 0.06)")
    how.add_argument("--epochs", type=int, default=3, metavar="N", help="default 3")
    how.add_argument("--batch-size", type=int, default=64, metavar="N", help="texts in a step, on average (default 64)")
    how.add_argument("--tokens-per-step", type=int, metavar="N", help="in the place of --batch-size")
    how.add_argument("--accumulation", type=int, default=1, metavar="N", help="parts in which to compute a step")
    how.add_argument("--max-length", type=int, default=128, metavar="N", help="tokens to cut texts at (default 128)")
    how.add_argument("--dtype", choices=_DTYPES, help="of the computation (default float32); parameters are float32")
    how.add_argument("--weight-decay", type=float, default=0.01, metavar="X", help="default 0.01")
    how.add_argument("--layer-decay", type=float, default=1.0, metavar="X", help="learning rate by layer (default 1)")
    how.add_argument("--max-grad-norm", type=float, default=1.0, metavar="X", help="default 1; 0 cuts no gradient")
    how.add_argument("--average-decay", type=float, default=0.999, metavar="X", help="of the weights (default 0.999)")
    how.add_argument("--label-smoothing", type=float, default=0.0, metavar="X", help="default 0")
    how.add_argument(
        "--early-stopping", type=int, default=0, metavar="N", help="end after N epochs that are not better"
    )
    how.add_argument(
        "--freeze", nargs="+", action="extend", default=[], metavar="PATTERN", help="such as 'bert.embeddings.*'"
    )
    how.add_argument("--teacher", metavar="ID_OR_FOLDER", help="a classifier with the same labels to learn from too")
    how.add_argument(
        "--teacher-weight", type=float, default=0.5, metavar="X", help="its share of the loss (default 0.5)"
    )
    how.add_argument("--teacher-temperature", type=float, default=2.0, metavar="X", help="default 2")
    how.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")

    hosts = command.add_argument_group(
        "several processes", "each with the same command, on a disk that all of them see"
    )
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    hosts.add_argument("--num-processes", type=int, metavar="N")
    hosts.add_argument("--process-id", type=int, metavar="I")


_DTYPES = ("float32", "bfloat16", "float16")

_EXPORT = """Writes the function from tokens to scores as StableHLO, the parameters as safetensors, the tokenizer, and a
manifest with their hashes. flaxsent.load_exported opens the folder; so does classify --model."""

_CLASSIFY = """Labels texts, or files of them. The format of a file is what its name ends in: .txt (one text a line),
.csv, .tsv, .jsonl or .parquet. Outputs have all columns of their inputs, a label and its score, and appear only when
they are complete. A job that was killed goes on with --resume, and its outputs are what they would have been, to the
byte."""


_EVALUATE = """Tells accuracy, F1, Matthews correlation, log loss, calibration error and the confusion matrix; for
several labels at once micro and macro F1 and average precision; for regression Pearson and Spearman correlation. All
are as scikit-learn and SciPy define them; the calibration error is that of 15 bins of equal width."""

_SCALE = """Tells how many hosts and devices a job takes, what is full first on a host, and how evenly row groups are
shared. The speed of a device comes from `flaxsent bench` or from a job; what a host's cores do is measured here, with
texts as long as that speed tells; the sharing is simulated."""


def _positive(value: str) -> float:
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


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


def _classify(options: argparse.Namespace) -> None:
    _check_form(options)
    if options.input is not None:
        return _classify_files(options)
    top_k = 1 if options.top_k is None else options.top_k
    if top_k < 1:
        raise ValueError(f"--top-k {top_k} is less than 1; expected a positive number.")
    form = options.format or ("table" if sys.stdout.isatty() else "tsv")
    classifier = open_model(options.model)
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
            raise ValueError(f"{told} does not go with --input." if is_files else f"{told} needs --input FILE.")
    if not is_files and not options.texts:
        raise ValueError("nothing to classify; give texts, or --input FILE --output FILE.")
    if is_files and options.output is None:
        raise ValueError("--input needs --output, a file or a folder.")


def _classify_files(options: argparse.Namespace) -> None:
    from flaxsent import jobs
    from flaxsent.engine import Engine

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
    classifier = open_model(options.model)
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
    from flaxsent import hosts

    place = {name: getattr(options, name) for name in ("coordinator", "num_processes", "process_id")}
    is_told = any(value is not None for value in place.values())
    if is_told and options.distributed:
        raise ValueError(
            "--distributed finds out the place that --coordinator and its like tell; pass one or the other."
        )
    if is_told:
        hosts.check(**place)
    elif not options.distributed:
        if options.wait is not None:
            raise ValueError("--wait needs --distributed, or --coordinator, --num-processes and --process-id.")
        return None
    wait = hosts.WAIT if options.wait is None else options.wait
    if wait < 1:
        raise ValueError(f"--wait {wait}: expected at least 1 second.")
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
            raise ValueError(
                f"standard input line {number} is not UTF-8 text: {err.reason}; convert it first."
            ) from err
        yield text.removesuffix("\n").removesuffix("\r")


def _table_row(text: str, prediction: Prediction) -> str:
    """Scores, then as much of the text as the terminal is wide; control characters would move the cursor."""
    cells = [f"{_printable(label):<10} {score:.4f}" for label, score in zip(*prediction, strict=True)]
    row = "  ".join([*cells, _printable(text)])
    width = shutil.get_terminal_size().columns
    return row if len(row) <= width else row[: width - 1] + "…"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def _tsv_row(text: str, prediction: Prediction) -> str:
    """Tabs and line ends of texts and labels are written as backslash escapes."""
    cells = [
        cell for label, score in zip(*prediction, strict=True) for cell in (label.translate(_ESCAPES), f"{score:.6f}")
    ]
    return "\t".join([*cells, text.translate(_ESCAPES)])


_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def _jsonl_row(text: str, prediction: Prediction) -> str:
    scores = [{"label": label, "score": score} for label, score in zip(*prediction, strict=True)]
    return json.dumps({"text": text, "scores": scores}, ensure_ascii=False)


_WRITERS = {"table": _table_row, "jsonl": _jsonl_row, "tsv": _tsv_row}


def _info(options: argparse.Namespace) -> None:
    import jax.numpy as jnp

    classifier = load(options.model)
    config = classifier.config
    leaves = jax.tree_util.tree_leaves_with_path(classifier.params)
    broken = [
        jax.tree_util.keystr(path, simple=True, separator=".") for path, leaf in leaves if not jnp.isfinite(leaf).all()
    ]
    packages = ("jax", "jaxlib", "transformers", "tokenizers", "flax", "torch")
    facts = {
        "model": options.model or "embedded",
        "family": config.family,
        "parameters": f"{sum(leaf.size for _, leaf in leaves):,}",
        "sizes": f"{config.num_layers} layers, hidden {config.hidden_size}, {config.num_heads} heads, "
        f"feed-forward {config.intermediate_size}, vocabulary {config.vocab_size:,}",
        "labels": _printable(", ".join(config.labels)),
        "problem type": config.problem_type
        + ("" if config.temperature == 1 else f", at temperature {config.temperature:.4g}"),
        "max length": f"{classifier.tokenizer.max_length} tokens",
        "weights": f"NaN or infinite values in {', '.join(broken)}" if broken else "all finite",
        "backend": classifier.backend,
        "devices": ", ".join(str(device) for device in jax.devices()),
        "versions": ", ".join([f"flaxsent {flaxsent.__version__}", *itertools.chain(*map(_version, packages))]),
    }
    for name, fact in facts.items():
        print(f"{name:<13} {fact}")


def _version(package: str) -> list[str]:
    try:
        return [f"{package} {importlib.metadata.version(package)}"]
    except importlib.metadata.PackageNotFoundError:
        return []


def _train(options: argparse.Namespace) -> None:
    from flaxsent import training_run
    from flaxsent.train import TrainOptions

    given = vars(options) | {"num_epochs": options.epochs, "freeze": tuple(options.freeze)}
    train_options = TrainOptions(**{field.name: given[field.name] for field in dataclasses.fields(TrainOptions)})
    columns = (options.text_column, options.second_column)
    run_options = training_run.RunOptions(
        train=options.train,
        dev=options.dev,
        output=options.output,
        model=options.model,
        teacher=options.teacher,
        unlabelled=options.unlabelled,
        text_columns=tuple(column for column in columns if column is not None),
        label_column=options.label_column,
        label_separator=options.label_separator,
        labels=None if options.labels is None else tuple(options.labels.split(",")),
        problem_type=options.problem_type,
        backend=options.backend,
        save_dtype=options.save_dtype,
        checkpoint_every=options.checkpoint_every,
        log_every=options.log_every,
        resume=options.resume,
        overwrite=options.overwrite,
    )
    places = (options.coordinator, options.num_processes, options.process_id)
    if places != (None, None, None):
        from flaxsent import hosts

        hosts.check(*places)
        jax.distributed.initialize(*places)
    try:
        training_run.run(run_options, train_options, report=lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print("flaxsent: stopped; --resume goes on from the last checkpoint", file=sys.stderr)
        raise


def _evaluate(options: argparse.Namespace) -> None:
    from flaxsent import evaluate

    if options.calibrate:
        evaluate.check_writable(options.model)
    classifier = load_fastest(options.model)
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


def _export(options: argparse.Namespace) -> None:
    from flaxsent.exporter import export

    export(load_fastest(options.model, dtype=options.dtype), options.folder, platforms=options.platforms.split(","))
    size = sum(file.stat().st_size for file in Path(options.folder).iterdir())
    print(f"{options.folder}: {size / 1e6:,.1f} MB, for {options.platforms.replace(',', ', ')}")


def _parity(options: argparse.Namespace) -> int:
    from flaxsent import parity

    parity.check_installed()
    cells = []
    for cell in parity.run(options.models):
        cells.append(cell)
        if options.json:
            print(json.dumps(cell._asdict() | {"passes": cell.passes}), flush=True)
    if not options.json:
        print(parity.table(cells))
    if left_out := [] if options.models else sorted({*parity.CONFIGS} - {*parity.families()}):
        print(f"flaxsent: not compared, for want of Flax: {', '.join(left_out)}", file=sys.stderr)
    return 0 if all(cell.passes for cell in cells) else 1


def _bench(options: argparse.Namespace) -> None:
    from flaxsent import bench

    if options.footprint:
        from flaxsent import footprint

        figures = footprint.run()
        return print(json.dumps(footprint.to_json(figures)) if options.json else footprint.table(figures))
    if options.plot is not None:
        bench.check_plot()
    report = bench.run(
        options.model,
        peers=None if options.peers is None else options.peers.split(","),
        texts=options.texts,
        num_texts=options.num_texts,
        rounds=options.rounds,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(bench.to_json(report)) if options.json else bench.table(report))
    if options.plot is not None:
        bench.plot(report, options.plot)


def _scale(options: argparse.Namespace) -> None:
    from flaxsent import scale

    if options.matrix_use is not None and options.matrix_use > 1:
        raise ValueError(f"--matrix-use {options.matrix_use:g}: expected a share, 0 to 1.")
    asked = scale.Scale(
        texts_per_second=options.texts_per_second,
        tokens_per_second=options.tokens_per_second,
        documents=options.documents,
        hours=options.hours,
        devices_per_host=int(options.devices_per_host or jax.local_device_count()),
        cores_per_host=int(options.cores_per_host or os.cpu_count() or 1),
        matrix_use=options.matrix_use,
    )
    host = scale.measure(load_fastest(options.model), tokens_per_text=asked.tokens_per_second / asked.texts_per_second)
    figures = (asked, host, scale.answer(asked, host), scale.simulate())
    print(json.dumps(scale.to_json(*figures)) if options.json else scale.table(*figures))
