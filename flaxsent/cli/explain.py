"""`flaxsent explain`: which words of a text decided."""

import argparse
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from flaxsent.base import FlaxsentError, Text
from flaxsent.checkpoint.folder import load
from flaxsent.classifier import Classifier
from flaxsent.cli.options import READING, add_labels, add_model, add_reading, printable, reading_of, tell, zero_shot_of
from flaxsent.data import records
from flaxsent.data.base import remedy
from flaxsent.data.records import STDIN, Record, format_of
from flaxsent.data.writers import TextWriter
from flaxsent.engine import Engine, Stats
from flaxsent.evaluation.explanations import COLUMNS, Explanation, Piece, explain, page, pieces, summary, to_columns
from flaxsent.files import appearing, write
from flaxsent.packing import PACKED_ROW, row_lengths
from flaxsent.placement import tokens_at_once
from flaxsent.transforms.explain import Function, gradient_x_input, integrated_gradients, occlusion
from flaxsent.transforms.zero_shot import zero_shot

_METHODS = ("integrated-gradients", "gradient-x-input", "occlusion")


def add(commands: Any) -> None:
    command = commands.add_parser("explain", description=_EXPLAIN)
    command.add_argument("texts", nargs="*", metavar="TEXT")
    add_model(command)
    command.add_argument("--label", metavar="NAME", help="the label to explain (default: the best one of each text)")
    add_labels(command)
    command.add_argument("--method", choices=_METHODS, default=_METHODS[0], help=f"default {_METHODS[0]}")
    command.add_argument("--steps", type=int, metavar="N", help="points of integrated gradients (default 50)")
    command.add_argument(
        "--baseline",
        choices=("pad", "mask", "zeros"),
        help="what a text is compared with: its tokens replaced by [PAD] (default of integrated-gradients) or by "
        "[MASK] (default of occlusion), or embeddings of 0",
    )
    command.add_argument("--html", metavar="FILE", help="write a page with the words coloured by score, too")
    command.add_argument("--json", action="store_true", help="print one JSON object a text")
    files = command.add_argument_group("files")
    files.add_argument("--input", metavar="FILE", help=".txt, .csv, .tsv, .jsonl or .parquet, or - for standard input")
    files.add_argument(
        "--output", metavar="FILE", help="a .jsonl file with the columns of the input and the explanation"
    )
    add_reading(files)
    files.add_argument("--text-column", metavar="NAME", help="column of the texts (default text)")
    files.add_argument("--second-column", metavar="NAME", help="the column of the second texts, for pairs")
    files.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    command.set_defaults(run=run, keeps_compiled=True, uses_cores=True)


_EXPLAIN = """Tells which words decided: how much each adds to the logit of a label, beside a text without words. The
words of a text are coloured on a terminal (NO_COLOR is obeyed), and listed with their scores elsewhere. The scores of
integrated gradients add up to the difference between the text's logit and the baseline's; what is missing is told as
the gap, which more steps make smaller. With --labels, the hypothesis of a label stands in the baseline, too. The output
of --input appears when it is complete; there is no --resume."""


def run(options: argparse.Namespace) -> None:
    _check_form(options)
    asked = zero_shot_of(options)
    classifier = load(options.model)
    if asked is not None:
        classifier = zero_shot(classifier, **asked)
    function = _function(classifier, options)
    if options.input is not None:
        return _explain_file(options, classifier, function)
    # A row a step, as short as the text: there are few texts.
    shapes = {"row_lengths": row_lengths(classifier.tokenizer.max_length), "tokens_per_step": 1}
    found = [*_explained(options.texts, classifier, function, **shapes)]
    if options.html is not None:
        write(Path(options.html), page(found).encode())
    show: Callable[[Explanation], str] = _json if options.json else _coloured if _has_colours() else _listed
    print(*map(show, found), sep="\n" if options.json else "\n\n")


def _check_form(options: argparse.Namespace) -> None:
    is_files = options.input is not None
    of_files = ("output", "text_column", "second_column", "overwrite", *READING)
    for name in ("texts", "html", "json") if is_files else of_files:
        if getattr(options, name) not in (None, False, []):
            told = "TEXT" if name == "texts" else f"--{name.replace('_', '-')}"
            raise FlaxsentError(f"{told} does not go with --input." if is_files else f"{told} needs --input FILE.")
    if options.steps is not None and options.method != "integrated-gradients":
        raise FlaxsentError("--steps is for --method integrated-gradients.")
    if options.baseline is not None and options.method == "gradient-x-input":
        raise FlaxsentError("--baseline is not for --method gradient-x-input, whose baseline is zeros.")
    if not is_files and not options.texts:
        raise FlaxsentError("nothing to explain; give texts, or --input FILE --output FILE.jsonl.")
    if is_files:
        if options.output is None or format_of(options.output) != "jsonl":
            raise FlaxsentError("--input needs --output FILE.jsonl.")
        if Path(options.output).exists() and not options.overwrite:
            raise FileExistsError(f"{options.output} exists; pass --overwrite to replace it, or another output.")


def _function(classifier: Classifier, options: argparse.Namespace) -> Function:
    given = {name: getattr(options, name) for name in ("label", "steps", "baseline")}
    given = {name: value for name, value in given.items() if value is not None}
    if options.method != "gradient-x-input":
        given["tokens_at_once"] = tokens_at_once(jax.local_devices())
    match options.method:
        case "integrated-gradients":
            return integrated_gradients(classifier, **given)
        case "gradient-x-input":
            return gradient_x_input(classifier, **given)
        case _:
            return occlusion(classifier, **given)


def _explained(
    texts: Iterable[Text], classifier: Classifier, function: Function, **engine_options: Any
) -> Iterator[Explanation]:
    stats: list[Stats] = []
    with Engine(classifier, function=function, on_window=stats.append, **engine_options) as engine:
        yield from explain(texts, engine)
    if num_truncated := sum(window.num_truncated for window in stats):
        limit = classifier.tokenizer.max_length
        print(f"flaxsent: {num_truncated:,} texts were truncated to {limit} tokens", file=sys.stderr)


def _explain_file(options: argparse.Namespace, classifier: Classifier, function: Function) -> None:
    """One stream through the engine; the output is whole or not there, and what is broken in the input ends it."""
    columns = [name for name in (options.text_column or "text", options.second_column) if name is not None]
    name = "standard input" if options.input == STDIN else options.input
    reading = records.read(options.input, text_columns=columns, reading=reading_of(options))
    with reading as source, appearing(Path(options.output)) as stream:
        if source.layout.hint is not None:
            tell(f"{name}: {source.layout.hint}")
        writer = TextWriter("jsonl", source.layout, COLUMNS)
        waiting: deque[Record] = deque()
        texts = _texts(source.records, writer, waiting, name)
        # A row is computed many times; at a single time, a step is several rows.
        shapes = {} if options.method == "gradient-x-input" else {"tokens_per_step": PACKED_ROW}
        for explanation in _explained(texts, classifier, function, **shapes):
            added = {column: [value] for column, value in to_columns(explanation).items()}
            stream.write(writer.encode([waiting.popleft()], added))


def _texts(given: Iterable[Record], writer: TextWriter, waiting: deque[Record], name: str) -> Iterator[Text]:
    """The texts of records, which are kept until their explanations are there; runs in the engine's thread."""
    for record in given:
        if (error := record.error or writer.error(record)) is not None:
            raise FlaxsentError(f"{name} row {record.number} {error}{remedy(record)}; correct it, or leave it out.")
        waiting.append(record)
        yield record.text


def _has_colours() -> bool:
    """Of a terminal that is not told to be plain: https://no-color.org."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


# Black on a tint of blue or orange, of xterm's 256 colours: readable on dark terminals as on light ones.
_FOR, _AGAINST = (195, 153, 117, 75), (230, 223, 216, 208)


def _coloured(explanation: Explanation) -> str:
    lines = ["".join(map(_in_colour, part)) for part in pieces(explanation)]
    return "\n".join([_head(explanation), *lines, summary(explanation)])


def _in_colour(piece: Piece) -> str:
    shown, level = printable(piece.text), round(abs(piece.share) * len(_FOR))
    if level == 0:
        return shown
    return f"\x1b[38;5;16;48;5;{(_FOR if piece.share > 0 else _AGAINST)[level - 1]}m{shown}\x1b[0m"


def _listed(explanation: Explanation) -> str:
    words = [f"{word.score:+.4f}\t{printable(word.text)}" for word in explanation.words]
    return "\n".join([_head(explanation), *words, summary(explanation)])


def _head(explanation: Explanation) -> str:
    return f"{printable(explanation.label)} {explanation.score:.4f}"


def _json(explanation: Explanation) -> str:
    return json.dumps({"text": explanation.text, **to_columns(explanation)}, ensure_ascii=False)
