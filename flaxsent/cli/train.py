"""`flaxsent train`: files in, a checkpoint folder out."""

import argparse
import dataclasses
import sys
from typing import Any

import jax

from flaxsent.cli.options import DTYPES, add_model


def add(commands: Any) -> None:
    command = commands.add_parser("train", help="fine-tune an encoder or a classifier", description=_TRAIN)
    add_model(command)
    add_train(command)
    command.set_defaults(run=run)


_TRAIN = """Fine-tunes an encoder or a classifier on a file of texts with labels: .csv, .tsv, .jsonl or .parquet. Labels
are names or numbers; several of a text are a list (in a text column a JSON list, or see --label-separator); decimal
numbers are values to be predicted. The checkpoint keeps its labels if the file has no others, else it gets a new head.
The output is an ordinary checkpoint folder with log.jsonl and curves.png, and appears when it is complete. A run that
was killed goes on with --resume, to the same parameters, to the bit."""


def add_train(command: argparse.ArgumentParser) -> None:
    files = command.add_argument_group("files")
    files.add_argument("--train", required=True, metavar="FILE", help="texts to learn from")
    files.add_argument("--dev", metavar="FILE", help="texts to evaluate on after each epoch")
    files.add_argument("--unlabelled", metavar="FILE", help="texts of which only the teacher's scores are learnt")
    files.add_argument("--output", required=True, metavar="FOLDER")
    files.add_argument("--text-column", default="text", metavar="NAME", help="default text")
    files.add_argument("--second-column", metavar="NAME", help="of the second texts, for pairs")
    files.add_argument("--label-column", default="label", metavar="NAME", help="default label")
    files.add_argument("--label-separator", metavar="TEXT", help="what stands between several labels of a text")
    files.add_argument("--labels", metavar="A,B,...", help="in this order; by default the checkpoint's or the file's")
    files.add_argument(
        "--problem-type",
        choices=("single_label_classification", "multi_label_classification", "regression"),
        help="by default what the labels look like: lists, decimal numbers, or else one label of several",
    )
    files.add_argument("--save-dtype", choices=DTYPES, default="float32", help="of the weights that are written")
    files.add_argument("--checkpoint-every", type=int, default=500, metavar="STEPS", help="default 500, and each epoch")
    files.add_argument("--log-every", type=int, default=20, metavar="STEPS", help="default 20, and each epoch")
    files.add_argument(
        "--resume", action="store_true", help="go on with the run if it was begun, with the same options"
    )
    files.add_argument("--overwrite", action="store_true", help="replace an output that is there already")

    how = command.add_argument_group("training")
    how.add_argument("--backend", choices=("native", "flax"), help="default native, where it has the family")
    how.add_argument("--learning-rate", type=float, default=1e-4, metavar="X", help="peak (default 1e-4)")
    how.add_argument("--schedule", choices=("linear", "cosine"), default="linear", help="of the decay (default linear)")
    how.add_argument("--warmup", type=float, default=0.06, metavar="X", help="share of the steps (default 0.06)")
    how.add_argument("--epochs", type=int, default=3, metavar="N", help="default 3")
    how.add_argument("--batch-size", type=int, default=64, metavar="N", help="texts in a step, on average (default 64)")
    how.add_argument("--tokens-per-step", type=int, metavar="N", help="in the place of --batch-size")
    how.add_argument("--accumulation", type=int, default=1, metavar="N", help="parts in which to compute a step")
    how.add_argument("--max-length", type=int, default=128, metavar="N", help="tokens to cut texts at (default 128)")
    how.add_argument("--dtype", choices=DTYPES, help="of the computation (default float32); parameters are float32")
    how.add_argument("--weight-decay", type=float, default=0.01, metavar="X", help="default 0.01")
    how.add_argument("--layer-decay", type=float, default=1.0, metavar="X", help="learning rate by layer (default 1)")
    how.add_argument("--max-grad-norm", type=float, default=1.0, metavar="X", help="default 1; 0 cuts no gradient")
    how.add_argument("--average-decay", type=float, default=0.999, metavar="X", help="of the weights (default 0.999)")
    how.add_argument("--label-smoothing", type=float, default=0.0, metavar="X", help="default 0")
    how.add_argument(
        "--early-stopping", type=int, default=0, metavar="N", help="end after N epochs that are not better"
    )
    how.add_argument(
        "--freeze", nargs="+", action="extend", default=[], metavar="PATTERN", help="such as 'bert.embeddings.*'"
    )
    how.add_argument("--teacher", metavar="ID_OR_FOLDER", help="a classifier with the same labels to learn from too")
    how.add_argument(
        "--teacher-weight", type=float, default=0.5, metavar="X", help="its share of the loss (default 0.5)"
    )
    how.add_argument("--teacher-temperature", type=float, default=2.0, metavar="X", help="default 2")
    how.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")

    hosts = command.add_argument_group(
        "several processes", "each with the same command, on a disk that all of them see"
    )
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    hosts.add_argument("--num-processes", type=int, metavar="N")
    hosts.add_argument("--process-id", type=int, metavar="I")


def run(options: argparse.Namespace) -> None:
    from flaxsent.training import run as training_run
    from flaxsent.training.trainer import TrainOptions

    given = vars(options) | {"num_epochs": options.epochs, "freeze": tuple(options.freeze)}
    train_options = TrainOptions(**{field.name: given[field.name] for field in dataclasses.fields(TrainOptions)})
    columns = (options.text_column, options.second_column)
    run_options = training_run.RunOptions(
        train=options.train,
        dev=options.dev,
        output=options.output,
        model=options.model,
        teacher=options.teacher,
        unlabelled=options.unlabelled,
        text_columns=tuple(column for column in columns if column is not None),
        label_column=options.label_column,
        label_separator=options.label_separator,
        labels=None if options.labels is None else tuple(options.labels.split(",")),
        problem_type=options.problem_type,
        backend=options.backend,
        save_dtype=options.save_dtype,
        checkpoint_every=options.checkpoint_every,
        log_every=options.log_every,
        resume=options.resume,
        overwrite=options.overwrite,
    )
    places = (options.coordinator, options.num_processes, options.process_id)
    if places != (None, None, None):
        from flaxsent.jobs import shards as hosts

        hosts.check(*places)
        jax.distributed.initialize(*places)
    try:
        training_run.run(run_options, train_options, report=lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print("flaxsent: stopped; --resume goes on from the last checkpoint", file=sys.stderr)
        raise
