"""What several commands share."""

import argparse

from flaxsent.tokenization import SPECIAL_TOKENS_IN_TEXT

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


def positive(value: str) -> float:
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


def printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
