"""`flaxsent parity`: the logits beside PyTorch's, of tiny models, of checkpoints, or of the zoo."""

import argparse
import json
import sys
from typing import Any

from flaxsent.base import FlaxsentError


def add(commands: Any) -> None:
    command = commands.add_parser(
        "parity",
        help="compare the logits with PyTorch's",
        description="Compares the logits with PyTorch's; the exit code is 1 if they differ by more than rounding.",
    )
    command.add_argument(
        "models", nargs="*", metavar="MODEL", help="Hub ids or folders; by default a tiny random model of each family"
    )
    command.add_argument(
        "--zoo",
        action="store_true",
        help="compare ids, logits and scores of much-used checkpoints, rebuilt small with random weights; MODEL names "
        "some of them",
    )
    command.add_argument("--real", action="store_true", help="with --zoo: the checkpoints themselves, from the Hub")
    command.add_argument("--json", action="store_true", help="print each comparison as a JSON object on its own line")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from flaxsent.parity import compare
    from flaxsent.parity.zoo import compare as zoo

    if options.real and not options.zoo:
        raise FlaxsentError("--real fetches the checkpoints of the zoo; pass --zoo, too.")
    found = []
    for one in zoo.run(options.models, real=options.real) if options.zoo else compare.run(options.models):
        found.append(one)
        if options.json:
            print(json.dumps(one._asdict() | {"passes": one.passes}), flush=True)
    if not options.json:
        print(zoo.table(found) if options.zoo else compare.table(found))
    if left_out := [] if options.models or options.zoo else compare.left_out():
        print(f"flaxsent: not compared, because Flax is not installed: {', '.join(left_out)}", file=sys.stderr)
    return 0 if all(one.passes for one in found) else 1
