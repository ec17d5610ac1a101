"""`flaxsent bench`: the speed beside other libraries."""

import argparse
import importlib
import inspect
import json
import os
import sys
from typing import Any

from flaxsent.base import FlaxsentError


def add(commands: Any) -> None:
    command = commands.add_parser("bench", description=_BENCH)
    command.add_argument(
        "--model", metavar="ID_OR_FOLDER", help="Hub id or folder; by default DistilBERT's size with random weights"
    )
    command.add_argument(
        "--texts", metavar="FILE", help="one text a line; by default made-up texts as long as SST-2's and as IMDb's"
    )
    command.add_argument(
        "--num-texts",
        type=int,
        metavar="N",
        help="how many short texts, with one seventh as many long texts (default 320, or 16384 on an accelerator)",
    )
    command.add_argument("--peers", metavar="A,B,...", help="the libraries, such as torch-f32,onnx-int8 (default all)")
    command.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help="how often each library is timed (default 5, or fewer when 30 minutes are over)",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object with every figure")
    command.add_argument("--plot", metavar="FILE", help="write a chart, such as bench.png")
    instead = command.add_mutually_exclusive_group()
    for module, text in _INSTEAD.items():
        option = f"--{module.replace('_', '-')}"
        instead.add_argument(option, action=_Instead, const=module, nargs=0, help=f"instead, {text}")
    command.set_defaults(run=run, uses_cores=True, module="speed")


class _Instead(argparse.Action):
    """Another module, whose command has settings of its own."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        is_training = self.const == "training"
        namespace.module, namespace.uses_cores, namespace.keeps_memory = self.const, not is_training, is_training


_BENCH = """Times flaxsent and other libraries on the same texts, each library at its best batch size. On two cores this
takes about half an hour; --peers, --rounds and --num-texts make it shorter. Fewer than 5 rounds, or few texts, are
marked as not enough for a claim."""

_INSTEAD = {
    "profile": "trace flaxsent, and tell the share of each kind of work in the engine's steps",
    "curves": "time all by the number of texts, from 10 to 100,000 or --num-texts, and by their length, as far as 30 "
    "minutes go; --plot draws both",
    "gpu": "on a GPU, time models of BERT-base's and ModernBERT-base's size in bfloat16 beside PyTorch, on texts of "
    "128, 512 and 8,192 tokens and of mixed length",
    "footprint": "measure the time to a new process's first answer, and the memory that a file of 100,000 texts takes, "
    "or of as many as --num-texts says",
    "explain": "time integrated gradients beside Captum's, of 32 short texts or as many as --num-texts says",
    "training": "time an epoch of fine-tuning the embedded model beside PyTorch's, by transformers' Trainer, on 5,000 "
    "short texts or as many as --num-texts says",
    "zero_shot": "time ten labels named at run time beside transformers' zero-shot pipeline, of 64 short texts or as "
    "many as --num-texts says",
}
"""Modules of `bench/`, each with a `run`, a `table` and a `to_json`; their names are the options."""


def run(options: argparse.Namespace) -> None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else JAX leaves a quarter of a GPU to the peers
    module = importlib.import_module(f"flaxsent.bench.{options.module}")

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    asked = {name: getattr(options, name) for name in ("model", "texts", "num_texts", "rounds", "peers")}
    asked = {name: value for name, value in asked.items() if value is not None}
    if "peers" in asked:
        asked["peers"] = asked["peers"].split(",")
    taken = [*inspect.signature(module.run).parameters, *(["plot"] if hasattr(module, "plot") else [])]
    for name in [*asked, *(["plot"] if options.plot else [])]:
        if name not in taken:
            raise FlaxsentError(f"bench --{options.module.replace('_', '-')} takes no --{name.replace('_', '-')}.")
    if options.plot is not None:
        module.check_plot(options.plot)
    figures = module.run(**asked, report=tell)
    print(json.dumps(module.to_json(figures)) if options.json else module.table(figures))
    if options.plot is not None:
        module.plot(figures, options.plot)
