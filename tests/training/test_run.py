"""`flaxsent train`: from files to a folder; killed and resumed; over processes; what it refuses, and when."""

import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import flaxsent
from flaxsent import cli
from flaxsent.data import records
from flaxsent.training import run as training_run
from flaxsent.training.run import RunOptions
from tests.conftest import accuracy, texts_of_lengths

ROWS = [
    (f"{word} {text}", name)
    for (word, name), text in zip(
        [("good good", "POSITIVE"), ("bad bad", "NEGATIVE"), ("hate", "NEGATIVE")] * 20,
        texts_of_lengths(np.random.default_rng(0).integers(1, 20, 60).tolist()),
        strict=True,
    )
]


@pytest.fixture
def files(tmp_path):
    """A training file and a dev file."""
    made = []
    for name, rows in (("train.tsv", ROWS), ("dev.tsv", ROWS[:12])):
        (tmp_path / name).write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
        made.append(str(tmp_path / name))
    return made


def arguments_of(model, files, output, *more):
    train_file, dev_file = files
    return [
        *("train", "--model", str(model), "--train", train_file, "--dev", dev_file, "--output", str(output)),
        *("--tokens-per-step", "256", "--epochs", "2", "--learning-rate", "1e-3", "--average-decay", "0.9"),
        *("--checkpoint-every", "2", "--log-every", "1", *more),
    ]


def run(capsys, *arguments):
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def without_speed(log: Path) -> list[dict]:
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name != "texts_per_second"} for entry in entries]


@pytest.mark.slow
def test_a_run_leaves_a_whole_folder_with_its_log_and_curves_and_nothing_else(capsys, tmp_path, files, tiny_folder):
    output = tmp_path / "out"
    code, out, err = run(capsys, *arguments_of(tiny_folder("bert"), files, output))
    assert (code, err) == (0, "")
    assert [line.split()[:3] for line in out.splitlines()] == [["epoch", "1", "dev"], ["epoch", "2", "dev"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev.tsv", "out", "train.tsv"]
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    log = without_speed(output / "log.jsonl")
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, log[-1]["step"] + 1))
    assert {entry["is"] for entry in log if "dev_loss" in entry} == {"accuracy"}
    trained = flaxsent.load(output, backend="native")
    assert trained.config.labels == ("NEGATIVE", "POSITIVE")
    dev = records.read_labelled(files[1], label2id={"NEGATIVE": 0, "POSITIVE": 1})
    assert f"{accuracy(trained, dev):.4f}" == out.split()[-3]
    code, _, err = run(capsys, *arguments_of(tiny_folder("bert"), files, output))
    assert code == 2
    assert err == f"flaxsent: error: {output} is there already; pass --overwrite to replace it.\n"
    code, out, _ = run(capsys, *arguments_of(tiny_folder("bert"), files, output, "--resume"))
    assert (code, out) == (0, f"{output} is there already; nothing to resume\n")


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(capsys, monkeypatch, tmp_path, files, tiny_folder):
    model, whole, stopped = tiny_folder("bert"), tmp_path / "whole", tmp_path / "stopped"
    assert run(capsys, *arguments_of(model, files, whole, "--early-stopping", "5"))[0] == 0
    add = training_run._Log.add

    def stop(log, moment):
        if moment.step == 5:
            raise KeyboardInterrupt
        add(log, moment)

    again = arguments_of(model, files, stopped, "--early-stopping", "5")
    monkeypatch.setattr(training_run._Log, "add", stop)
    assert run(capsys, *again)[0] == 130
    monkeypatch.undo()
    assert not stopped.exists()
    work = tmp_path / ".stopped.training"
    code, _, err = run(capsys, *again)
    assert code == 2
    assert err.startswith(f"flaxsent: error: {work} holds the work of a run that did not end; pass --resume")
    code, _, err = run(capsys, *again, "--resume", "--seed", "7")
    assert code == 2
    assert err.startswith('flaxsent: error: --resume would go on with another run, whose options were {"seed": 0}')
    assert run(capsys, *again, "--resume")[0] == 0
    assert not work.exists()
    assert (stopped / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert without_speed(stopped / "log.jsonl") == without_speed(whole / "log.jsonl")


@pytest.mark.slow
def test_a_run_with_a_teacher_goes_on_without_asking_it_again(capsys, monkeypatch, tmp_path, files, tiny_folder):
    flaxsent.save(
        flaxsent.load(tiny_folder("bert"), backend="native", labels=["NEGATIVE", "POSITIVE"], new_head=True, seed=5),
        tmp_path / "teacher",
    )
    (tmp_path / "more.txt").write_text("good film\nbad film\nno film\n")
    more = ("--teacher", str(tmp_path / "teacher"), "--unlabelled", str(tmp_path / "more.txt"))
    whole, stopped = (arguments_of(tiny_folder("bert"), files, tmp_path / name, *more) for name in ("whole", "stopped"))
    assert run(capsys, *whole)[0] == 0
    add = training_run._Log.add

    def stop(log, moment):
        if moment.step == 3:
            raise KeyboardInterrupt
        add(log, moment)

    monkeypatch.setattr(training_run._Log, "add", stop)
    assert run(capsys, *stopped)[0] == 130
    monkeypatch.undo()
    monkeypatch.setattr(training_run, "Engine", None)
    assert run(capsys, *stopped, "--resume")[0] == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]
    monkeypatch.undo()
    assert run(capsys, *arguments_of(tiny_folder("bert"), files, tmp_path / "fewer", *more[:2]))[0] == 0
    assert (tmp_path / "fewer" / "model.safetensors").read_bytes() != weights[0]


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "more.txt has no rows"), (b"so good\n\xff\n", "more.txt row 2 is not UTF-8 text")]
)
def test_unlabelled_texts_that_cannot_be_read_are_told(capsys, tmp_path, files, tiny_folder, content, message):
    (tmp_path / "more.txt").write_bytes(content)
    more = ("--teacher", str(tiny_folder("bert")), "--unlabelled", str(tmp_path / "more.txt"))
    code, _, err = run(capsys, *arguments_of(tiny_folder("bert"), files, tmp_path / "out", *more))
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev.tsv", "more.txt", "train.tsv"]


def test_options_that_do_not_fit_leave_no_work_behind(capsys, tmp_path, files, tiny_folder):
    code, _, err = run(capsys, *arguments_of(tiny_folder("bert"), files, tmp_path / "out", "--freeze", "no.such"))
    assert code == 2
    assert "no parameter matches 'no.such'" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev.tsv", "train.tsv"]


def test_freeze_may_be_given_several_times():
    options = cli._parser().parse_args(
        ["train", "--train", "a", "--output", "b", "--freeze", "x", "y", "--freeze", "z"]
    )
    assert options.freeze == ["x", "y", "z"]


COMMAND = [sys.executable, "-c", "import sys; from flaxsent.cli import main; sys.exit(main())"]
ENVIRONMENT = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_to_the_same_bytes(tmp_path, files, tiny_folder):
    model = tiny_folder("bert")
    whole = [*COMMAND, *arguments_of(model, files, tmp_path / "whole", "--epochs", "20")]
    subprocess.run(whole, env=ENVIRONMENT, check=True, capture_output=True)
    killed = [*COMMAND, *arguments_of(model, files, tmp_path / "killed", "--epochs", "20", "--resume")]
    num_kills = 0
    for _ in range(3):
        newest = last_checkpoint(tmp_path)
        process = subprocess.Popen(killed, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and last_checkpoint(tmp_path) == newest:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        num_kills += process.wait() == -signal.SIGKILL
    assert num_kills
    subprocess.run(killed, env=ENVIRONMENT, check=True, capture_output=True)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert without_speed(tmp_path / "killed" / "log.jsonl") == without_speed(tmp_path / "whole" / "log.jsonl")


def last_checkpoint(folder: Path) -> int:
    """The step of the newest one that is whole: its name is a number."""
    there = folder / ".killed.training" / "checkpoints"
    return max((int(path.name) for path in there.glob("*") if path.name.isdigit()), default=0)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path, files, tiny_folder):
    """Over loopback, with the same global batch: each process has a device and half of the rows."""
    model = tiny_folder("bert")
    one = [*COMMAND, *arguments_of(model, files, tmp_path / "one")]
    subprocess.run(one, env=ENVIRONMENT, check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    places = ("--coordinator", coordinator, "--num-processes", "2")
    two = [*COMMAND, *arguments_of(model, files, tmp_path / "two", *places)]
    processes = [
        subprocess.Popen([*two, "--process-id", str(index)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        for index in range(2)
    ]
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    logs = [without_speed(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    for entry, other in zip(*logs, strict=True):
        assert entry.keys() == other.keys()
        for name in entry.keys() & {"loss", "dev_loss", "learning_rate"}:
            # Sums over the rows in another order, from step to step.
            assert abs(entry[name] - other[name]) <= 1e-4 * abs(entry[name]), (entry, other)


# what the labels are


def written(folder: Path, name: str, rows: list[dict]) -> str:
    file = folder / name
    if file.suffix == ".jsonl":
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif file.suffix == ".parquet":
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist(rows), file)
    else:
        with file.open("w", newline="") as stream:
            quoting = csv.QUOTE_MINIMAL if file.suffix == ".csv" else csv.QUOTE_NONE
            separator = "," if file.suffix == ".csv" else "\t"
            writer = csv.writer(stream, delimiter=separator, quoting=quoting, quotechar=None if quoting else '"')
            writer.writerows([[*rows[0]], *(row.values() for row in rows)])
    return str(file)


def data_of(file, model, **options):
    return training_run._read(RunOptions(train=file, output="x", model=str(model), **options))


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl", "x.parquet"])
@pytest.mark.parametrize(
    ("values", "problem_type", "labels", "expected"),
    [
        (["joy", "fear", "joy"], "single_label_classification", ("fear", "joy"), [1, 0, 1]),
        ([10, 9, 10], "single_label_classification", ("9", "10"), [1, 0, 1]),
        ([0.5, 2.0, -1.0], "regression", ("label",), [0.5, 2.0, -1.0]),
        ([["joy", "fear"], [], ["joy"]], "multi_label_classification", ("fear", "joy"), [(0, 1), (), (1,)]),
    ],
    ids=["names", "integers", "values", "lists"],
)
def test_every_format_gives_the_same_labels(tmp_path, tiny_folder, name, values, problem_type, labels, expected):
    in_text = name.endswith((".csv", ".tsv"))
    values = [json.dumps(value) if in_text and isinstance(value, list) else value for value in values]
    file = written(tmp_path, name, [{"text": "a b", "label": value} for value in values])
    data = data_of(file, tiny_folder("bert"))
    assert (data.problem_type, data.labels, data.train.labels) == (problem_type, labels, expected)
    assert data.is_new


def test_labels_between_separators_and_pairs_of_texts(tmp_path, tiny_folder):
    file = written(tmp_path, "x.tsv", [{"a": "x", "b": "y", "y": "joy|fear"}, {"a": "x", "b": "y", "y": "[]"}])
    data = data_of(file, tiny_folder("bert"), text_columns=("a", "b"), label_column="y", label_separator="|")
    assert data.train == records.Examples([("x", "y")] * 2, [(0, 1), ()])


def test_the_head_is_drawn_only_for_labels_that_the_checkpoint_has_not(tmp_path, tiny_folder):
    own = flaxsent.load(tiny_folder("bert"), backend="native")
    heads = []
    for values in (["LABEL_2", "LABEL_0"], ["2", "0"], ["a", "b", "c"], ["a", "b"]):
        file = written(tmp_path, "x.tsv", [{"text": "x", "label": value} for value in values])
        options = RunOptions(train=file, output="x", model=str(tiny_folder("bert")))
        classifier = training_run._load(options, training_run._read(options), seed=0)
        heads.append(classifier.params["classifier"]["kernel"])
        encoders = (classifier.params["bert"], own.params["bert"])
        jax.tree.map(np.testing.assert_array_equal, *encoders)
    kernel = own.params["classifier"]["kernel"]
    assert (heads[0] == kernel).all()
    assert (heads[1] == kernel).all()
    assert heads[2].shape == kernel.shape
    assert (heads[2] != kernel).any()
    assert heads[3].shape == (36, 2)


# what is refused


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("x.tsv", "text\tlabel\na\tx\nb\t\n", [], "x.tsv row 3 has no label in the column 'label'"),
        ("x.jsonl", '{"text": "a", "label": "x"}\n{"text": "b"}\n', [], "x.jsonl row 2 has no label"),
        ("x.jsonl", '{"text": "a", "label": {"x": 1}}\n', [], "has the label {'x': 1}; expected names"),
        ("x.jsonl", '{"text": "a", "label": "x"}\n{"label": "x"}\n', [], "row 2 has no text in the column 'text'"),
        ("x.csv", "text,label\na,1\nb,x\n", ["--problem-type", "regression"], "row 3 has the label 'x'; expected a"),
        ("x.csv", "text,label\na,1.5\nb,nan\n", ["--problem-type", "regression"], "the label 'nan'; expected a finite"),
        ("x.jsonl", '{"text": "a", "label": ["x"]}\n{"text": "b", "label": "y"}\n', [], "'y'; expected a list"),
        ("x.tsv", "text\tlabel\na\t[x\n", [], "row 2 has the label '[x'; expected a JSON list"),
        ("x.tsv", "text\tlabel\na\tx\nb\tx\n", [], "has only the label x; expected two or more"),
        ("x.tsv", "text\tlabel\na\tx\nb\tz\n", ["--labels", "x,y"], "'z' is unknown; expected x, y"),
        ("x.tsv", "text\tkind\na\tx\n", [], "has the columns text, kind; expected label"),
        ("x.txt", "a\n", [], "has the columns text; expected label"),
        ("x.tsv", "text\tlabel\na\tx\nb\ty\nc\n", [], "row 4 has 1 columns; expected 2"),
    ],
)  # fmt: skip
def test_bad_rows_end_the_run_before_a_step_with_file_row_and_reason(
    capsys, monkeypatch, tmp_path, tiny_folder, name, content, options, message
):
    monkeypatch.setattr(training_run, "load", None)  # nor is the model loaded
    (tmp_path / name).write_text(content)
    arguments = ("--model", str(tiny_folder("bert")), "--output", str(tmp_path / "out"))
    code, _, err = run(capsys, "train", "--train", str(tmp_path / name), *arguments, *options)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_label_that_only_dev_has_is_told_with_its_row(capsys, tmp_path, files, tiny_folder):
    Path(files[1]).write_text("text\tlabel\na\tPOSITIVE\nb\tNEUTRAL\n")
    code, _, err = run(capsys, *arguments_of(tiny_folder("bert"), files, tmp_path / "out"))
    assert code == 2
    assert "dev.tsv row 3 has the label 'NEUTRAL': 'NEUTRAL' is unknown; expected NEGATIVE, POSITIVE" in err


def test_text_that_is_not_utf8_is_told_with_its_row(capsys, tmp_path, files, tiny_folder):
    Path(files[0]).write_bytes(b"text\tlabel\ngood\tx\n\xff\ty\n")
    code, _, err = run(capsys, *arguments_of(tiny_folder("bert"), files, tmp_path / "out"))
    assert code == 2
    assert "train.tsv row 3 is not UTF-8 text" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--learning-rate", "-1"], "learning_rate=-1.0; expected a positive number"),
        (["--epochs", "0"], "num_epochs=0; expected a whole number of 1 or more"),
        (["--checkpoint-every", "0"], "checkpoint_every=0; expected a number of steps"),
        (["--label-smoothing", "1"], "label_smoothing=1.0; expected a number in [0, 1)"),
        (["--labels", "a,a"], "expected labels that differ"),
        (["--output", "/dev/null/x"], "/dev/null is no folder to write in"),
        (["--train", "/nowhere.tsv"], "/nowhere.tsv: no such file"),
        (["--unlabelled", "/nowhere.tsv", "--teacher", "x"], "/nowhere.tsv: no such file"),
        (["--unlabelled", "/nowhere.tsv"], "unlabelled texts need a teacher"),
        (["--process-id", "1"], "go together; pass all three"),
    ],
)
def test_arguments_are_checked_before_anything_is_read(capsys, monkeypatch, tmp_path, files, more, message):
    monkeypatch.setattr(records, "read_annotations", None)
    code, _, err = run(capsys, *arguments_of("/no/model", files, tmp_path / "out", *more))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_teacher_with_other_labels_is_refused(capsys, tmp_path, files, tiny_folder):
    arguments = arguments_of(tiny_folder("bert"), files, tmp_path / "out", "--teacher", str(tiny_folder("roberta")))
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "has the labels LABEL_0, LABEL_1, LABEL_2 (single_label_classification); expected NEGATIVE, POSITIVE" in err


def test_a_teachers_scores_come_in_the_order_of_the_students_labels(tmp_path, files, tiny_folder):
    teacher = flaxsent.load(tiny_folder("bert"), backend="native", labels=["POSITIVE", "NEGATIVE"], new_head=True)
    flaxsent.save(teacher, tmp_path / "teacher")
    options = RunOptions(train=files[0], output="x", model=str(tiny_folder("bert")), teacher=str(tmp_path / "teacher"))
    data = training_run._read(options)
    student = training_run._load(options, data, seed=0)
    scores_NC = training_run._teacher_scores(str(tmp_path / "teacher"), data, student.config, tmp_path / "no work")
    expected = flaxsent.classify(data.train.texts, teacher, top_k=2)
    for row, prediction in zip(scores_NC, expected, strict=True):
        by_label = dict(zip(*prediction, strict=True))
        np.testing.assert_allclose(row, [by_label["NEGATIVE"], by_label["POSITIVE"]], atol=1e-5)


@pytest.mark.parametrize("package", ["orbax", "matplotlib"])
def test_a_missing_extra_is_told_with_its_install_command(monkeypatch, tmp_path, files, package):
    find_spec = training_run.importlib.util.find_spec
    monkeypatch.setattr(
        training_run.importlib.util, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    with pytest.raises(ImportError, match=rf'needs {package}.*: pip install "flaxsent\[train\]"'):
        training_run.plan(RunOptions(train=files[0], output=str(tmp_path / "out")))
