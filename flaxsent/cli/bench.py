"""`flaxsent bench`: the speed beside other libraries."""

import argparse
import json
import sys
from typing import Any


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
    command.add_argument("--plot", metavar="FILE", help="write a bar chart, such as bench.png")
    command.add_argument(
        "--footprint",
        action="store_true",
        help="instead, measure the time to a new process's first answer, and the memory that a file of 100,000 texts "
        "takes",
    )
    command.add_argument(
        "--explain",
        action="store_true",
        help="instead, time integrated gradients beside Captum's, of 32 short texts or as many as --num-texts says",
    )
    command.add_argument(
        "--zero-shot",
        action="store_true",
        help="instead, time ten labels named at run time beside transformers' zero-shot pipeline, of 64 short texts or "
        "as many as --num-texts says",
    )
    command.set_defaults(run=run, uses_cores=True)


_BENCH = """Times flaxsent and other libraries on the same texts, each library at its best batch size. On two cores this
takes about half an hour; --peers, --rounds and --num-texts make it shorter. Fewer than 5 rounds, or few texts, are
marked as not enough for a claim."""


def run(options: argparse.Namespace) -> None:
    from flaxsent.bench import explain, footprint, report, speed, zero_shot

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if options.footprint:
        figures = footprint.run(report=tell)
        return print(json.dumps(footprint.to_json(figures)) if options.json else footprint.table(figures))
    if options.explain:
        explained = explain.run(
            options.model, texts=options.texts, num_texts=options.num_texts, rounds=options.rounds, report=tell
        )
        return print(json.dumps(explain.to_json(explained)) if options.json else explain.table(explained))
    if options.zero_shot:
        timed = zero_shot.run(
            options.model, texts=options.texts, num_texts=options.num_texts, rounds=options.rounds, report=tell
        )
        return print(json.dumps(zero_shot.to_json(timed)) if options.json else zero_shot.table(timed))
    if options.plot is not None:
        report.check_plot(options.plot)
    figures = speed.run(
        options.model,
        names=None if options.peers is None else options.peers.split(","),
        texts=options.texts,
        num_texts=options.num_texts,
        rounds=options.rounds,
        report=tell,
    )
    print(json.dumps(report.to_json(figures)) if options.json else report.table(figures))
    if options.plot is not None:
        report.plot(figures, options.plot)
