"""The command line: parse, call one function, print. A user's mistake is one line on standard error and exit code 2."""

import argparse
import importlib.metadata
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flaxsent
from flaxsent.classifier import Classifier, classify, load, save
from flaxsent.types import Prediction

_CHUNK = 1024
"""Lines of standard input that are classified together: the memory that an endless input takes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit code is 0, 1 for a parity that fails, 2 for a mistake of the user's, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flaxsent", description="Text classification in JAX as pure functions.")
    parser.add_argument("--version", action="version", version=f"flaxsent {flaxsent.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("classify", help="label texts")
    command.add_argument(
        "texts", nargs="+", metavar="TEXT", help="a text; - alone reads standard input, one text a line"
    )
    _add_model(command)
    command.add_argument(
        "--top-k", type=int, default=1, metavar="K", help="labels for each text, best first (default 1)"
    )
    command.add_argument("--format", choices=_FORMATS, help="default: table on a terminal, tsv elsewhere")
    command.set_defaults(run=_classify)

    command = commands.add_parser("info", help="tell what a checkpoint is and what it runs on")
    command.add_argument("model", nargs="?", metavar="MODEL", help="Hub id or folder; the embedded model by default")
    command.set_defaults(run=_info)

    command = commands.add_parser("train", help="fine-tune an encoder or a classifier")
    _add_model(command)
    command.add_argument("--train", required=True, metavar="FILE", help="TSV or CSV with the columns text and label")
    command.add_argument("--dev", metavar="FILE", help="as --train; its accuracy is told after each epoch")
    command.add_argument("--output", required=True, metavar="FOLDER", help="written after each epoch")
    command.add_argument("--labels", metavar="A,B,...", help="put a new head with these labels on the encoder")
    command.add_argument("--learning-rate", type=float, default=1e-4, metavar="X", help="peak (default 1e-4)")
    command.add_argument("--batch-size", type=int, default=64, metavar="N", help="texts in a step (default 64)")
    command.add_argument("--epochs", type=int, default=3, metavar="N", help="default 3")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    command.add_argument("--save-dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    command.set_defaults(run=_train)

    command = commands.add_parser("evaluate", help="tell the accuracy on a labelled file")
    _add_model(command)
    command.add_argument("--data", required=True, metavar="FILE", help="TSV or CSV with the columns text and label")
    command.set_defaults(run=_evaluate)

    command = commands.add_parser("parity", help="compare the logits with PyTorch's")
    command.add_argument(
        "models", nargs="*", metavar="MODEL", help="Hub ids or folders; by default a tiny one a family"
    )
    command.add_argument("--json", action="store_true", help="one JSON object for each comparison, one a line")
    command.set_defaults(run=_parity)
    return parser


_FORMATS = ("table", "jsonl", "tsv")


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", metavar="ID_OR_FOLDER", help="Hub id or folder; the embedded model by default")


def _classify(options: argparse.Namespace) -> None:
    if options.top_k < 1:
        raise ValueError(f"--top-k {options.top_k} is less than 1; expected a positive number.")
    form = options.format or ("table" if sys.stdout.isatty() else "tsv")
    classifier = _load(options.model)
    num_labels = min(options.top_k, classifier.config.num_labels)
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


def _load(model: str | None, **arguments: Any) -> Classifier:
    """Natively where it can be: faster, and imports neither transformers nor torch."""
    try:
        return load(model, backend="native", **arguments)
    except NotImplementedError:
        return load(model, backend="flax", **arguments)


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
    import jax
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
        "problem type": config.problem_type,
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
    from flaxsent.records import read_labelled
    from flaxsent.train import TrainOptions, fit

    labels = None if options.labels is None else options.labels.split(",")
    classifier = _load(options.model, labels=labels, seed=options.seed)
    label2id = {label: index for index, label in enumerate(classifier.config.labels)}
    train_options = TrainOptions(
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        num_epochs=options.epochs,
        seed=options.seed,
    )
    Path(options.output).mkdir(parents=True, exist_ok=True)  # to fail before the first step, if it must
    fit(
        classifier,
        read_labelled(options.train, label2id=label2id),
        None if options.dev is None else read_labelled(options.dev, label2id=label2id),
        options=train_options,
        report=lambda line: print(line, flush=True),
        on_epoch=lambda trained: save(trained, options.output, dtype=options.save_dtype),
    )


def _evaluate(options: argparse.Namespace) -> None:
    from flaxsent.records import read_labelled
    from flaxsent.train import accuracy

    classifier = _load(options.model)
    data = read_labelled(options.data, label2id={label: index for index, label in enumerate(classifier.config.labels)})
    print(f"accuracy {accuracy(classifier, data):.4f} on {len(data.texts)} texts of {options.data}")


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
    return 0 if all(cell.passes for cell in cells) else 1
