"""`flaxsent parity`: the logits beside PyTorch's."""

import argparse
import json
import sys
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser(
        "parity",
        help="compare the logits with PyTorch's",
        description="Compares the logits with PyTorch's; the exit code is 1 if they differ by more than rounding.",
    )
    command.add_argument(
        "models", nargs="*", metavar="MODEL", help="Hub ids or folders; by default a tiny random model of each family"
    )
    command.add_argument("--json", action="store_true", help="print each comparison as a JSON object on its own line")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from flaxsent.parity import compare

    cells = []
    for cell in compare.run(options.models):
        cells.append(cell)
        if options.json:
            print(json.dumps(cell._asdict() | {"passes": cell.passes}), flush=True)
    if not options.json:
        print(compare.table(cells))
    if left_out := [] if options.models else compare.left_out():
        print(f"flaxsent: not compared, because Flax is not installed: {', '.join(left_out)}", file=sys.stderr)
    return 0 if all(cell.passes for cell in cells) else 1
