"""`flaxsent export`: a folder that runs without the encoders."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from flaxsent.base import FlaxsentError
from flaxsent.cli.options import DTYPES


def add(commands: Any) -> None:
    command = commands.add_parser("export", description=_EXPORT)
    command.add_argument("model", nargs="?", metavar="MODEL", help="Hub id or folder; the embedded model by default")
    command.add_argument("folder", metavar="FOLDER", help="the folder to write: a new one, or an empty one")
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="of the parameters and the computation")
    command.add_argument(
        "--quantize",
        choices=("weights", "dynamic"),
        help="store the parameters as int8: 'weights' computes with floats, 'dynamic' with integers where it can",
    )
    command.add_argument(
        "--platforms",
        default="cpu,cuda,tpu",
        metavar="A,B,...",
        help="where it will run: cpu, cuda, rocm, tpu (default %(default)s)",
    )
    command.set_defaults(run=run)


_EXPORT = """Writes a folder with the forward functions as StableHLO, the parameters as safetensors, the tokenizer,
and a manifest with the hash of each file. flaxsent.load reads the folder, and so do the commands that take --model."""


def run(options: argparse.Namespace) -> None:
    from flaxsent import models
    from flaxsent.checkpoint import hub
    from flaxsent.checkpoint.exported import export
    from flaxsent.checkpoint.folder import config_of, load
    from flaxsent.transforms.quantize import quantize

    # Natively where that can be: nothing of transformers is imported, and the function is smaller.
    backend = "native" if models.is_native(config_of(hub.find(options.model))) else None
    classifier = load(options.model, backend=backend, dtype=options.dtype)
    if options.quantize is not None:
        if not classifier.packs:
            raise FlaxsentError(f"--quantize needs a native encoder, which {classifier.config.family} has not.")
        classifier = dataclasses.replace(classifier, params=quantize(classifier.params, mode=options.quantize))
    export(classifier, options.folder, platforms=options.platforms.split(","))
    size = sum(file.stat().st_size for file in Path(options.folder).iterdir())
    print(f"{options.folder}: {size / 1e6:,.1f} MB, for {options.platforms.replace(',', ', ')}")
