"""`flaxsent parity`: the logits beside PyTorch's."""

import argparse
import json
import sys
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser("parity", help="compare the logits with PyTorch's")
    command.add_argument(
        "models", nargs="*", metavar="MODEL", help="Hub ids or folders; by default a tiny one a family"
    )
    command.add_argument("--json", action="store_true", help="one JSON object for each comparison, one a line")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from flaxsent.parity import compare as parity

    parity.check_installed()
    cells = []
    for cell in parity.run(options.models):
        cells.append(cell)
        if options.json:
            print(json.dumps(cell._asdict() | {"passes": cell.passes}), flush=True)
    if not options.json:
        print(parity.table(cells))
    if left_out := [] if options.models else sorted({*parity.CONFIGS} - {*parity.families()}):
        print(f"flaxsent: not compared, for want of Flax: {', '.join(left_out)}", file=sys.stderr)
    return 0 if all(cell.passes for cell in cells) else 1
