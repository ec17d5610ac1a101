"""`flaxsent train`: files in, a checkpoint folder out. Its options are the fields of `flaxsent.training.options`."""

import argparse
import dataclasses
import sys
import typing
from typing import Any, TypeVar

from flaxsent.cli.options import add_reading, reading_of
from flaxsent.data.base import Reading
from flaxsent.training.options import ON_PAIRS, RunOptions, TrainOptions, choices

_Options = TypeVar("_Options", RunOptions, TrainOptions)


def add(commands: Any) -> None:
    command = commands.add_parser("train", description=_TRAIN)
    for title, options in (("files", RunOptions), ("training", TrainOptions)):
        group = command.add_argument_group(title)
        for field in dataclasses.fields(options):
            if field.type is Reading:
                add_reading(group)
                continue
            flag = field.metadata["flag"] or f"--{field.name.replace('_', '-')}"
            group.add_argument(flag, dest=field.name, **_argument(field))
    hosts = command.add_argument_group(
        "several processes", "Start each with the same command, on a disk that all of them see."
    )
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 runs, with a free port")
    hosts.add_argument("--num-processes", type=int, metavar="N", help="how many there are")
    hosts.add_argument("--process-id", type=int, metavar="I", help="which of them this is, from 0")
    command.set_defaults(run=run, keeps_memory=True)


_TRAIN = """Fine-tunes an encoder or a classifier on a .csv, .tsv, .jsonl or .parquet file of texts with labels. A label
is a name or a number; several labels of a text are a list: in a text column a JSON list, or see --label-separator and
--label-columns; decimal numbers are values to predict. The checkpoint keeps its head if it has the labels of the file,
or as many and the file only has their numbers, 0 and 1; else it gets a new one. The output is an ordinary checkpoint
folder with log.jsonl and curves.png. A run that was killed goes on with --resume; on as many devices as before, it ends
with the same parameters, bit for bit."""


def _argument(field: dataclasses.Field) -> dict[str, Any]:
    """What argparse is told of a field."""
    told, default = field.metadata, field.default
    # What is not given is not in the namespace: its default is the dataclass's, or that of --contrastive.
    argument: dict[str, Any] = {"help": told["help"], "default": argparse.SUPPRESS}
    if field.type is bool:
        return argument | {"action": "store_true"}
    if default is dataclasses.MISSING:
        argument["required"] = True
    elif default not in (None, ()):
        argument["help"] += f" (default {default:g})" if isinstance(default, float) else f" (default {default})"
    if told["range"] is not None:
        return argument | {"type": told["range"].kind, "metavar": "N" if told["range"].kind is int else "X"}
    if choices(field):
        return argument | {"choices": choices(field)}
    if told["split"] is not None:
        return argument | {"type": lambda text: tuple(text.split(told["split"])), "metavar": told["metavar"]}
    if typing.get_origin(field.type) is tuple:
        return argument | {"nargs": "+", "action": "extend", "metavar": told["metavar"] or "PATTERN"}
    return argument | {"metavar": told["metavar"]}


def _read(options: type[_Options], arguments: argparse.Namespace, **values: Any) -> _Options:
    for field in dataclasses.fields(options):
        if field.type is Reading:
            values[field.name] = reading_of(arguments)
        elif field.name in arguments:
            value = getattr(arguments, field.name)
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return options(**values)


def _options(arguments: argparse.Namespace) -> tuple[RunOptions, TrainOptions]:
    options = _read(RunOptions, arguments)
    return options, _read(TrainOptions, arguments, **(ON_PAIRS if options.contrastive else {}))


def run(arguments: argparse.Namespace) -> None:
    run_options, train_options = _options(arguments)
    from flaxsent.training import distributed
    from flaxsent.training import run as training

    distributed.join(arguments.coordinator, arguments.num_processes, arguments.process_id)
    try:
        training.run(run_options, train_options, report=lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print("flaxsent: stopped; --resume goes on from the last checkpoint", file=sys.stderr)
        raise
