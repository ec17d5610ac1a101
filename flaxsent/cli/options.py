"""What several commands share."""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from flaxsent.base import FlaxsentError, ProblemType
from flaxsent.classifier import Classifier
from flaxsent.data.base import FORMATS, Reading
from flaxsent.tokenization import PAIRS, POOLINGS, SPECIAL_TOKENS_IN_TEXT
from flaxsent.transforms.zero_shot import TEMPLATE, hypotheses

DTYPES = ("float32", "bfloat16", "float16")


def add_model(command: argparse.ArgumentParser, *, action: str = "store", also: str = "") -> None:
    told = f"Hub id or folder; the embedded model by default{also}"
    command.add_argument("--model", action=action, metavar="ID_OR_FOLDER", help=told)


def add_special_tokens_in_text(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--special-tokens-in-text",
        choices=SPECIAL_TOKENS_IN_TEXT,
        default=SPECIAL_TOKENS_IN_TEXT[0],
        help="what [SEP], </s> or a marker is that a text spells: that token, as for transformers, or its letters, for "
        "texts that you do not trust (default %(default)s)",
    )


def add_long_texts(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--long-texts",
        choices=("cut", "windows"),
        default="cut",
        help="cut texts of more tokens than the model takes, or read all of them in overlapping windows (default cut)",
    )
    command.add_argument(
        "--window-length", type=int, metavar="N", help="tokens of a window (default: as many as the model takes)"
    )
    command.add_argument(
        "--stride", type=int, metavar="N", help="tokens that a window shares with the one before (default 64)"
    )
    command.add_argument("--pooling", choices=POOLINGS, help=f"what a text has of its windows (default {POOLINGS[0]})")
    command.add_argument(
        "--window-pairs", choices=PAIRS, help=f"which text of a pair is in windows (default {PAIRS[0]})"
    )


def windows_of(options: argparse.Namespace) -> dict[str, Any] | None:
    """The arguments of `windows`, where the options of `add_long_texts` ask for some.

    Raises:
        FlaxsentError: they say how, and not that.
    """
    names = {"window_length": "length", "stride": "stride", "pooling": "pooling", "window_pairs": "pairs"}
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.long_texts == "windows":
        return {names[name]: value for name, value in given.items()}
    if given:
        raise FlaxsentError(f"--{next(iter(given)).replace('_', '-')} needs --long-texts windows.")
    return None


def add_labels(command: argparse.ArgumentParser) -> None:
    labels = command.add_argument_group("labels of your own, by an NLI model")
    labels.add_argument("--labels", metavar="A,B,...", help="the labels, for a --model of natural language inference")
    labels.add_argument(
        "--template", metavar="TEXT", help=f"what a label says of a text, with {{}} for the label (default: {TEMPLATE})"
    )
    labels.add_argument("--multi-label", action="store_true", help="several of the labels may be true, or none")
    labels.add_argument(
        "--entailment", metavar="LABEL", help="the model's own label for it (default: the one that begins so)"
    )


def zero_shot_of(options: argparse.Namespace) -> dict[str, Any] | None:
    """The arguments of `zero_shot`, where the options of `add_labels` are given.

    Raises:
        FlaxsentError: they are for no labels, or for some that no model could have.
    """
    if options.labels is None:
        for name in ("template", "multi_label", "entailment"):
            if getattr(options, name) not in (None, False):
                raise FlaxsentError(f"--{name.replace('_', '-')} needs --labels.")
        return None
    if options.second_column is not None:
        raise FlaxsentError("--second-column does not go with --labels, which make a pair of each text.")
    found = {
        "labels": [label.strip() for label in options.labels.split(",")],
        "template": TEMPLATE if options.template is None else options.template,
        "multi_label": options.multi_label,
        "entailment": options.entailment,
    }
    hypotheses(found["labels"], found["template"])
    return found


READING = ("format", "delimiter", "quoting", "encoding", "no_header")
"""The options of `add_reading`."""


def add_reading(command: Any, *, format: bool = True) -> None:
    """How files are read: the same options for every command that reads some; `format`: that one, too."""
    if format:
        command.add_argument("--format", choices=(*FORMATS.values(),), help=FORMAT)
    command.add_argument(
        "--delimiter", metavar="CHAR", help=r"what separates the columns of a CSV or TSV, such as ';' or '\t'"
    )
    command.add_argument(
        "--quoting",
        choices=("minimal", "none"),
        help="whether a cell may be quoted (default for CSV), or a quotation mark is a character like any other "
        "(default for TSV, as NSMC and GLUE are)",
    )
    command.add_argument("--encoding", metavar="NAME", help="such as cp1252, utf-16 or gb18030 (default UTF-8)")
    command.add_argument(
        "--no-header",
        action="store_true",
        help="the first line of a CSV or TSV is a row, too; columns are named by their numbers: --text-column 2",
    )


FORMAT = "what the files are, whatever their names say, which may end in .gz, .bz2 or .zst, too"


def reading_of(options: argparse.Namespace) -> Reading:
    """What the options of `add_reading` say.

    Raises: as `Reading`.
    """
    return Reading(
        format=options.format,
        delimiter="\t" if options.delimiter == r"\t" else options.delimiter,
        quoting=options.quoting,
        encoding=options.encoding,
        has_header=not options.no_header,
    )


def tell(line: str) -> None:
    print(f"flaxsent: {line}", file=sys.stderr)


def tell_long(classifier: Classifier, counts: Mapping[str, int]) -> None:
    """Says what has become of texts beyond the limit, by sums of the engine's `Stats`."""
    if counts["num_truncated"]:
        tell(f"{counts['num_truncated']:,} texts were truncated to {classifier.tokenizer.max_length} tokens")
    if counts["num_long"]:
        limit = classifier.tokenizer.text_limit
        tell(f"{counts['num_long']:,} texts of more than {limit} tokens were read in {counts['num_windows']:,} windows")


def positive(value: str) -> float:
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


def printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def check_abstains(problem_type: ProblemType, abstain_below: float) -> None:
    """Raises FlaxsentError for a model that has no one best label, or what is no probability."""
    if problem_type != "single_label_classification":
        raise FlaxsentError(
            "--abstain-below is for a model that gives a text one label; where it may have several, thresholds decide "
            "(evaluate --tune-thresholds)."
        )
    if not 0 <= abstain_below <= 1:
        raise FlaxsentError(f"--abstain-below {abstain_below:g}: expected a probability, from 0 to 1.")
