"""`flaxsent export`: a folder that runs without the encoders."""

import argparse
from pathlib import Path
from typing import Any

from flaxsent.checkpoint.folder import load


def add(commands: Any) -> None:
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
    command.set_defaults(run=run)


_EXPORT = """Writes the function from tokens to scores as StableHLO, the parameters as safetensors, the tokenizer, and a
manifest with their hashes. flaxsent.load_exported opens the folder; so does classify --model."""


def run(options: argparse.Namespace) -> None:
    from flaxsent.checkpoint.exported import export

    export(load(options.model, dtype=options.dtype), options.folder, platforms=options.platforms.split(","))
    size = sum(file.stat().st_size for file in Path(options.folder).iterdir())
    print(f"{options.folder}: {size / 1e6:,.1f} MB, for {options.platforms.replace(',', ', ')}")
