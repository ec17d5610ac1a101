"""What several commands share."""

import argparse

DTYPES = ("float32", "bfloat16", "float16")


def add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", metavar="ID_OR_FOLDER", help="Hub id or folder; the embedded model by default")


def positive(value: str) -> float:
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


def printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
