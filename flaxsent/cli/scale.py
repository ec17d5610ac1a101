"""`flaxsent scale`: what a large job would take."""

import argparse
import json
import os
from typing import Any

import jax

from flaxsent.base import FlaxsentError
from flaxsent.checkpoint.folder import load
from flaxsent.cli.options import add_model, positive


def add(commands: Any) -> None:
    command = commands.add_parser("scale", description=_SCALE)
    add_model(command)
    command.add_argument("--texts-per-second", type=positive, required=True, metavar="X", help="speed of one device")
    command.add_argument("--tokens-per-second", type=positive, required=True, metavar="X", help="the same in tokens")
    command.add_argument(
        "--matrix-use", type=positive, metavar="X", help="share of its matrix units' peak that this speed uses, up to 1"
    )
    command.add_argument("--documents", type=positive, default=1e9, metavar="N", help="how many texts (default 1e9)")
    command.add_argument(
        "--hours", type=positive, default=24.0, metavar="X", help="the time to do them in (default 24)"
    )
    command.add_argument(
        "--devices-per-host", type=positive, metavar="N", help="by default as many as this machine has"
    )
    command.add_argument("--cores-per-host", type=positive, metavar="N", help="by default as many as this machine has")
    command.add_argument("--json", action="store_true", help="print one JSON object with every figure")
    command.set_defaults(run=run)


_SCALE = """Estimates how many hosts and devices a job takes, what limits a host first, and how evenly row groups are
shared. The speed of a device comes from `flaxsent bench` or from a job. What a host's cores do is measured here, on
made-up texts of the length that this speed implies; the sharing is simulated."""


def run(options: argparse.Namespace) -> None:
    from flaxsent.bench import scale

    if options.matrix_use is not None and options.matrix_use > 1:
        raise FlaxsentError(f"--matrix-use {options.matrix_use:g}: expected a share, 0 to 1.")
    asked = scale.Scale(
        texts_per_second=options.texts_per_second,
        tokens_per_second=options.tokens_per_second,
        documents=options.documents,
        hours=options.hours,
        devices_per_host=int(options.devices_per_host or jax.local_device_count()),
        cores_per_host=int(options.cores_per_host or os.cpu_count() or 1),
        matrix_use=options.matrix_use,
    )
    host = scale.measure(load(options.model), tokens_per_text=asked.tokens_per_second / asked.texts_per_second)
    figures = (asked, host, scale.answer(asked, host), scale.simulate())
    print(json.dumps(scale.to_json(*figures)) if options.json else scale.table(*figures))
