"""`flaxsent bench`: the speed beside other libraries."""

import argparse
import json
import sys
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser("bench", help="compare the speed with that of other libraries")
    command.add_argument(
        "--model", metavar="ID_OR_FOLDER", help="by default one of DistilBERT's size with random weights"
    )
    command.add_argument(
        "--texts", metavar="FILE", help="one text a line; by default made-up ones, as long as SST-2's and IMDb's"
    )
    command.add_argument("--num-texts", type=int, metavar="N", help="of IMDb's length a seventh (default 160 on a CPU)")
    command.add_argument("--peers", metavar="A,B,...", help="names out of the table; all by default")
    command.add_argument("--rounds", type=int, metavar="N", help="default 3, or less where they take too long")
    command.add_argument("--json", action="store_true", help="one JSON object with every figure")
    command.add_argument("--plot", metavar="FILE", help="write a bar chart, such as bench.png")
    command.add_argument(
        "--footprint",
        action="store_true",
        help="instead, the time to the first answer beside HF pipeline's, and the memory of a file of 100,000 texts",
    )
    command.set_defaults(run=run, uses_cores=True)


def run(options: argparse.Namespace) -> None:
    from flaxsent.bench import speed as bench

    if options.footprint:
        from flaxsent.bench import footprint

        figures = footprint.run()
        return print(json.dumps(footprint.to_json(figures)) if options.json else footprint.table(figures))
    if options.plot is not None:
        bench.check_plot()
    report = bench.run(
        options.model,
        peers=None if options.peers is None else options.peers.split(","),
        texts=options.texts,
        num_texts=options.num_texts,
        rounds=options.rounds,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(bench.to_json(report)) if options.json else bench.table(report))
    if options.plot is not None:
        bench.plot(report, options.plot)
