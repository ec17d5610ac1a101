"""`flaxsent plan`: what a model does on TPUs that are not here."""

import argparse
import json
from typing import Any

from flaxsent.cli.options import DTYPES, positive, tell
from flaxsent.sharding import SHARDING


def add(commands: Any) -> None:
    command = commands.add_parser("plan", description=_PLAN)
    command.add_argument("model", nargs="?", metavar="MODEL", help="Hub id or folder; the embedded model by default")
    command.add_argument(
        "--topology", required=True, metavar="CHIP:AxB", help="such as v5e:1x1, v6e:2x2, v4:2x2x1, v5p:2x2x2"
    )
    command.add_argument("--dtype", choices=DTYPES, help="to compute in (default float32)")
    command.add_argument(
        "--row-lengths", type=_numbers, metavar="A,B,...", help="tokens in a row (default those of the engine)"
    )
    command.add_argument(
        "--tokens-per-step", type=int, metavar="N", help="tokens and padding on each chip (default the engine's)"
    )
    command.add_argument("--sharding", default="data", metavar="HOW", help=f"{SHARDING} (default data)")
    command.add_argument("--train", action="store_true", help="plan a step of flaxsent train instead of the engine's")
    command.add_argument(
        "--no-largest", action="store_true", help="do not look for the largest step, which compiles a few times more"
    )
    command.add_argument(
        "--tokens-per-text", type=positive, default=25.0, metavar="X", help="of the corpus, on average (default 25)"
    )
    command.add_argument("--documents", type=positive, default=1e9, metavar="N", help="how many texts (default 1e9)")
    command.add_argument(
        "--hours", type=positive, default=24.0, metavar="X", help="the time to do them in (default 24)"
    )
    command.add_argument("--cores-per-host", type=positive, metavar="N", help="by default as many as this machine has")
    command.add_argument("--json", action="store_true", help="print one JSON object with every figure")
    command.set_defaults(run=run, plans_for_others=True)


_PLAN = """Compiles the steps of a model for TPUs that are not here, by their own compiler, and says whether they fit,
what memory they take, how fast they are by the compiler's estimate, what bounds them, and how many chips a corpus
takes. What a host's cores do is measured here, on made-up texts. It needs the extra tpu; for a model of BERT's size it
takes minutes."""


def run(options: argparse.Namespace) -> None:
    from flaxsent.bench import chips, host, plan, work
    from flaxsent.checkpoint.folder import load
    from flaxsent.placement import num_cores

    topology = chips.topology(options.topology)
    asked = {
        "row_lengths": options.row_lengths,
        "tokens_per_step": options.tokens_per_step,
        "sharding": options.sharding,
    }
    if options.train:
        from flaxsent.bench import train_work

        classifier = load(options.model)
        per_text = options.tokens_per_text
        planned = train_work.training(
            classifier, topology.devices, dtype=options.dtype, tokens_per_text=per_text, **asked
        )
    else:
        classifier = load(options.model, dtype=options.dtype)
        planned = work.inference(classifier, topology.devices, **asked)
    corpus = host.Corpus(options.documents, options.hours, int(options.cores_per_host or num_cores()))
    measured = host.measure(classifier, planned.shapes, tokens_per_text=options.tokens_per_text)
    found = plan.plan(planned, topology, finds_largest=not options.no_largest, report=tell)
    figures = (found, measured, corpus, plan.outlook(found, measured, corpus))
    print(json.dumps(plan.to_json(*figures)) if options.json else plan.table(*figures))


def _numbers(value: str) -> list[int]:
    try:
        return [int(number) for number in value.split(",")]
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{value!r}: expected whole numbers with commas between them") from err
