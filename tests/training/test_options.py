"""The options of training: said once, checked by name, all in `--help` with their defaults."""

import dataclasses
import re

import jaxtyping
import pytest

from flaxsent import cli
from flaxsent.base import FlaxsentError
from flaxsent.cli import train
from flaxsent.data.base import Reading
from flaxsent.training.options import ON_PAIRS, RunOptions, TrainOptions

FIELDS = [
    field
    for field in (*dataclasses.fields(RunOptions), *dataclasses.fields(TrainOptions))
    if field.name != "reading"  # whose options are those of every command
]


@pytest.fixture
def help_text(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_help_tells_each_option_with_its_default(help_text, field):
    flag = "--epochs" if field.name == "num_epochs" else f"--{field.name.replace('_', '-')}"
    options = [" ".join(option.split()) for option in re.split(r"\n(?=  -)", help_text)]
    (line,) = (option for option in options if option.startswith(f"{flag} ") or option == flag)
    assert field.metadata["help"] in line
    line = line.partition(" several processes:")[0].partition(" training:")[0]
    if type(field.default) in (int, float, str):
        assert line.endswith(f"(default {field.default:g})" if field.type is float else f"(default {field.default})")


def parse(*more):
    return cli._parser(["train"]).parse_args(["train", "--train", "a", "--output", "b", *more])


def test_the_command_line_has_the_defaults_of_the_dataclasses():
    assert train._options(parse()) == (RunOptions(train=("a",), output="b"), TrainOptions())


def test_pairs_have_defaults_of_their_own_which_yield_to_what_is_given():
    found = [train._options(parse("--contrastive", *more))[1] for more in ((), ("--learning-rate", "0.0001"))]
    assert found[0] == TrainOptions(**ON_PAIRS) != TrainOptions()
    assert found[1] == TrainOptions(**(ON_PAIRS | {"learning_rate": 1e-4}))


def test_how_files_are_read_is_said_as_to_every_command():
    options = ("--format", "csv", "--delimiter", r"\t", "--quoting", "none", "--encoding", "cp1252", "--no-header")
    expected = Reading(format="csv", delimiter="\t", quoting="none", encoding="cp1252", has_header=False)
    assert train._read(RunOptions, parse(*options)).reading == expected
    assert train._read(RunOptions, parse()).reading == Reading()


def test_freeze_may_be_given_several_times_and_labels_are_split():
    assert parse("--freeze", "x", "y", "--freeze", "z").freeze == ["x", "y", "z"]
    assert parse("--labels", "a,b").labels == ("a", "b")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0; expected a positive number"),
        ({"learning_rate": float("nan")}, "learning_rate=nan; expected"),
        ({"learning_rate": True}, "learning_rate=True; expected a positive number"),
        ({"num_epochs": 0}, "num_epochs=0; expected a whole number of 1 or more"),
        ({"batch_size": 2.5}, "batch_size=2.5; expected a whole number"),
        ({"batch_size": None}, "batch_size=None; expected a whole number"),
        ({"tokens_per_step": 0}, "tokens_per_step=0; expected a whole number"),
        ({"warmup": 1.0}, r"warmup=1.0; expected a number in \[0, 1\)"),
        ({"schedule": "square"}, "schedule='square'; expected one of linear, cosine"),
        ({"dtype": "int8"}, "dtype='int8'; expected one of float32"),
        ({"freeze": "head"}, "freeze='head'; expected a tuple"),
        ({"seed": -1}, "seed=-1; expected"),
    ],
)
def test_options_out_of_their_range_are_refused_by_name(monkeypatch, option, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # or conftest's type checks would speak first
    with pytest.raises(FlaxsentError, match=message):
        TrainOptions(**option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"log_every": 0}, "log_every=0; expected a whole number of 1 or more"),
        ({"problem_type": "ranking"}, "problem_type='ranking'; expected one of single_label_classification, multi"),
        ({"backend": "torch"}, "backend='torch'; expected one of native, flax"),
        ({"text_column": ""}, "text_column=''; expected a name"),
        ({"labels": "a,b"}, "labels='a,b'; expected a tuple"),
        ({"labels": ("a", "a")}, "labels=a,a: expected labels that differ"),
        ({"label_columns": ("a",), "label_column": "b"}, "label_column and label_columns: expected one of the two"),
        ({"train": "a"}, "train='a'; expected a tuple"),
        ({"train": ()}, "train is empty; expected a file or more"),
        ({"dev_fraction": 1.0}, r"dev_fraction=1.0; expected a number in \(0, 1\)"),
        ({"dev_fraction": 0.1, "dev": "d"}, "dev_fraction is for where there is no dev file; pass one of the two"),
        ({"folds": 1}, "folds=1; expected a whole number of 2 or more"),
        ({"folds": 2, "dev": "d"}, "folds are scored on the texts to learn from; they do not go with dev"),
        ({"unlabelled": "more.txt"}, "unlabelled texts need a teacher"),
    ],
)
def test_options_of_a_run_are_checked_alike(monkeypatch, option, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(FlaxsentError, match=message):
        RunOptions(**{"train": ("a",), "output": "b"} | option)
