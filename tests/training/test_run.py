"""`flaxsent train`: from files to a folder; killed and resumed; over processes; what it refuses, and when."""

import json
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
import safetensors.numpy

import flaxsent
from flaxsent import files as flaxsent_files
from flaxsent.checkpoint.exported import export
from flaxsent.data.labels import Examples, read_examples
from flaxsent.training import loop, reading
from flaxsent.training import run as training
from flaxsent.training.log import Log
from flaxsent.training.options import RunOptions
from tests.conftest import accuracy
from tests.training.runs import (
    COMMAND,
    ENVIRONMENT,
    ONE_LAYER,
    ROWS,
    arguments_of,
    refused,
    run,
    without_speed,
    write_tsv,
)


def stop_at(monkeypatch, step):
    """Ctrl-C after a step."""
    add = Log.add

    def stop(log, event):
        if event.step == step:
            raise KeyboardInterrupt
        add(log, event)

    monkeypatch.setattr(Log, "add", stop)


@pytest.mark.slow
def test_a_run_leaves_a_whole_folder_with_its_log_and_curves_and_nothing_else(capsys, tmp_path, files, tiny_folder):
    output = tmp_path / "out"
    code, out, err = run(capsys, *arguments_of(tiny_folder("bert", **ONE_LAYER), files, output))
    assert (code, err) == (0, "")
    understood, *epochs = [line for line in out.splitlines() if not line.startswith("of the 12 texts of dev all")]
    assert understood == f"{files[0]}: 60 texts, 2 labels: NEGATIVE 40, POSITIVE 20; one label per text, on a new head"
    assert [line.split()[:3] for line in epochs] == [["epoch", "1", "dev"], ["epoch", "2", "dev"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev.tsv", "out", "train.tsv"]
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    log = without_speed(output / "log.jsonl")
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, log[-1]["step"] + 1))
    assert {entry["is"] for entry in log if "dev_loss" in entry} == {"accuracy"}
    trained = flaxsent.load(output, backend="native")
    assert trained.config.labels == ("NEGATIVE", "POSITIVE")
    dev = read_examples(files[1], labels=["NEGATIVE", "POSITIVE"], problem_type="single_label_classification")
    assert f"{accuracy(trained, dev):.4f}" == epochs[-1].split()[-3]
    again = arguments_of(tiny_folder("bert", **ONE_LAYER), files, output)
    assert refused(capsys, *again) == f"{output} is there already; pass --overwrite to replace it.\n"
    code, out, _ = run(capsys, *again, "--resume")
    assert (code, out) == (0, f"{output} is complete; nothing to resume\n")
    weights = (output / "model.safetensors").read_bytes()
    assert run(capsys, *again, "--overwrite", "--seed", "3")[0] == 0
    assert (output / "model.safetensors").read_bytes() != weights
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev.tsv", "out", "train.tsv"]


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(capsys, monkeypatch, tmp_path, files, tiny_folder):
    model, whole, stopped = tiny_folder("bert", **ONE_LAYER), tmp_path / "whole", tmp_path / "stopped"
    assert run(capsys, *arguments_of(model, files, whole, "--early-stopping", "5"))[0] == 0
    again = arguments_of(model, files, stopped, "--early-stopping", "5")
    stop_at(monkeypatch, 5)
    assert run(capsys, *again)[0] == 130
    monkeypatch.undo()
    assert not stopped.exists()
    work = tmp_path / ".stopped.training"
    assert refused(capsys, *again).startswith(f"{work} holds a run that is not complete; pass --resume to go on")
    assert refused(capsys, *again, "--resume", "--seed", "7") == (
        f'--resume: {work} is of another run: its options were {{"seed": 0}}, and now are {{"seed": 7}}; delete it to '
        "begin anew.\n"
    )
    assert run(capsys, *again, "--resume")[0] == 0
    assert not work.exists()
    assert (stopped / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert without_speed(stopped / "log.jsonl") == without_speed(whole / "log.jsonl")


@pytest.mark.slow
def test_a_run_with_a_teacher_goes_on_without_asking_it_again(capsys, monkeypatch, tmp_path, files, tiny_folder):
    flaxsent.save(
        flaxsent.load(
            tiny_folder("bert", **ONE_LAYER), backend="native", labels=["NEGATIVE", "POSITIVE"], new_head=True, seed=5
        ),
        tmp_path / "teacher",
    )
    (tmp_path / "more.txt").write_text("good film\nbad film\nno film\n")
    more = ("--teacher", str(tmp_path / "teacher"), "--unlabelled", str(tmp_path / "more.txt"))
    whole, stopped = (
        arguments_of(tiny_folder("bert", **ONE_LAYER), files, tmp_path / name, *more) for name in ("whole", "stopped")
    )
    assert run(capsys, *whole)[0] == 0
    stop_at(monkeypatch, 3)
    assert run(capsys, *stopped)[0] == 130
    monkeypatch.undo()
    monkeypatch.setattr(training, "Engine", None)
    assert run(capsys, *stopped, "--resume")[0] == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]
    monkeypatch.undo()
    assert run(capsys, *arguments_of(tiny_folder("bert", **ONE_LAYER), files, tmp_path / "fewer", *more[:2]))[0] == 0
    assert (tmp_path / "fewer" / "model.safetensors").read_bytes() != weights[0]


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "more.txt has no rows"), (b"so good\n\xff\n", "more.txt row 2 is not UTF-8 text")]
)
def test_unlabelled_texts_that_cannot_be_read_are_told(capsys, tmp_path, files, tiny_folder, content, message):
    (tmp_path / "more.txt").write_bytes(content)
    more = ("--teacher", str(tiny_folder("bert", **ONE_LAYER)), "--unlabelled", str(tmp_path / "more.txt"))
    assert message in refused(capsys, *arguments_of(tiny_folder("bert", **ONE_LAYER), files, tmp_path / "out", *more))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev.tsv", "more.txt", "train.tsv"]


def test_options_that_do_not_fit_leave_no_work_behind(capsys, tmp_path, files, tiny_folder):
    code, _, err = run(
        capsys, *arguments_of(tiny_folder("bert", **ONE_LAYER), files, tmp_path / "out", "--freeze", "no.such")
    )
    assert code == 2
    assert "no parameter matches 'no.such'" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev.tsv", "train.tsv"]


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_to_the_same_bytes(tmp_path, files, tiny_folder):
    model = tiny_folder("bert", **ONE_LAYER)
    whole = [*COMMAND, *arguments_of(model, files, tmp_path / "whole", "--epochs", "10")]
    subprocess.run(whole, env=ENVIRONMENT, check=True, capture_output=True)
    killed = [*COMMAND, *arguments_of(model, files, tmp_path / "killed", "--epochs", "10", "--resume")]
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
    model, more = tiny_folder("bert", **ONE_LAYER), ("--tokens-per-step", "384")  # 4 rows of 96
    one = [*COMMAND, *arguments_of(model, files, tmp_path / "one", *more)]
    subprocess.run(one, env=ENVIRONMENT, check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    places = ("--coordinator", coordinator, "--num-processes", "2")
    two = [*COMMAND, *arguments_of(model, files, tmp_path / "two", *more, *places)]
    processes = [
        subprocess.Popen([*two, "--process-id", str(index)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        for index in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    logs = [without_speed(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    for entry, other in zip(*logs, strict=True):
        assert entry.keys() == other.keys()
        for name in entry.keys() & {"loss", "dev_loss", "learning_rate"}:
            # Sums over the rows in another order, from step to step.
            assert abs(entry[name] - other[name]) <= 1e-4 * abs(entry[name]), (entry, other)


STOPPED = """
import sys
from flaxsent import cli
from flaxsent.training.log import Log
add = Log.add
def stop(log, event):
    if event.step == 4:
        raise KeyboardInterrupt
    add(log, event)
Log.add = stop
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices_up_to_rounding(tmp_path, files, tiny_folder):
    """Begun on 2 devices with steps of 4 rows, it goes on with 8 of them, of which 4 have a row each."""
    more = ("--tokens-per-step", "384", "--epochs", "4")  # rows of 96
    whole, moved = (
        arguments_of(tiny_folder("bert", **ONE_LAYER), files, tmp_path / name, *more) for name in ("whole", "moved")
    )
    assert start(2, *COMMAND, *whole).returncode == 0
    assert start(2, sys.executable, "-c", STOPPED, *moved).returncode == 130
    resumed = start(8, *COMMAND, *moved, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    logs = check_logs(tmp_path)
    assert logs[0][:2] == logs[1][:2]  # made by 2 devices in both runs
    facts = json.loads((tmp_path / "moved" / "training.json").read_bytes())
    assert facts["shapes"][0][0] == 4


def start(num_devices, *command):
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}"}
    return subprocess.run(command, env=ENVIRONMENT | flags, capture_output=True, text=True, check=False)


def check_logs(folder):
    """Those of a whole run and of one that was moved, which are the same up to rounding."""
    logs = [without_speed(folder / name / "log.jsonl") for name in ("whole", "moved")]
    assert [entry["step"] for entry in logs[0]] == [entry["step"] for entry in logs[1]]
    for entry, other in zip(*logs, strict=True):
        for name in entry.keys() & {"loss", "dev_loss", "learning_rate"}:
            # Sums over the rows in another order, from step to step.
            assert abs(entry[name] - other[name]) <= 1e-4 * abs(entry[name]), (entry, other)
    return logs


@pytest.mark.slow
def test_a_run_goes_on_under_another_sharding_up_to_rounding(tmp_path, files, tiny_folder):
    """Begun with params in eight parts, it goes on with heads in two; what it writes is whole, as PyTorch reads it."""
    model = tiny_folder("bert", hidden_size=64, num_attention_heads=4, intermediate_size=128, vocab_size=64)
    names = ("whole", "moved")
    whole, moved = (
        arguments_of(model, files, tmp_path / name, "--epochs", "6", "--early-stopping", "5") for name in names
    )
    assert start(8, *COMMAND, *whole).returncode == 0
    assert start(8, sys.executable, "-c", STOPPED, *moved, "--sharding", "fsdp").returncode == 130
    resumed = start(8, *COMMAND, *moved, "--resume", "--sharding", "fsdp,tensor=2")
    assert resumed.returncode == 0, resumed.stderr
    check_logs(tmp_path)
    one, other = (safetensors.numpy.load_file(tmp_path / name / "model.safetensors") for name in names)
    assert {name: tensor.shape for name, tensor in one.items()} == {name: t.shape for name, t in other.items()}
    # Adam makes steps of size 1e-3 of gradients near 0.
    assert max(np.abs(one[name] - other[name]).max() for name in one) <= 1e-2
    again = start(8, *COMMAND, *moved, "--overwrite", "--sharding", "tensor=3")
    assert (again.returncode, again.stderr.splitlines()[-1]) == (
        2,
        "flaxsent: error: tensor=3: expected a divisor of the number of devices, which is 8.",
    )


# what is made of the checkpoint


def changed(folder: Path, new: Path, *, tensors=lambda tensors: tensors, **config) -> Path:
    """A copy of a checkpoint with other tensors, and other keys in config.json; None removes one."""
    new.mkdir()
    for file in folder.iterdir():
        (new / file.name).write_bytes(file.read_bytes())
    raw = json.loads((folder / "config.json").read_bytes()) | config
    (new / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
    held = tensors(safetensors.numpy.load_file(folder / "model.safetensors"))
    safetensors.numpy.save_file(held, new / "model.safetensors", metadata={"format": "pt"})
    return new


def of_bert_alone(tensors):
    """As `BertModel.save_pretrained` writes them."""
    return {name.removeprefix("bert."): one for name, one in tensors.items() if name.startswith("bert.")}


BARE = {"tensors": of_bert_alone, "id2label": None}


@pytest.fixture
def starts(monkeypatch):
    """The classifiers that runs start from; each run ends there."""
    found = []

    def end(classifier, *data, **more):
        found.append(classifier)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "Trainer", end)
    return found


@pytest.mark.slow
def test_a_bare_encoder_is_fine_tuned_on_numbers(capsys, tmp_path, tiny_folder):
    model = changed(tiny_folder("bert", num_hidden_layers=1), tmp_path / "model", **BARE, architectures=["BertModel"])
    rows = [(text, int(label == "POSITIVE")) for text, label in ROWS]
    files = [write_tsv(tmp_path / name, rows) for name in ("train.tsv", "dev.tsv")]
    code, out, err = run(capsys, *arguments_of(model, files, tmp_path / "out", "--epochs", "1"))
    assert (code, err) == (0, "")
    assert out.startswith(f"{files[0]}: 60 texts, 2 labels: 0 40, 1 20; one label per text, on a new head\n")
    trained = flaxsent.load(tmp_path / "out", backend="native")
    assert trained.config.labels == ("0", "1")
    assert trained.config.is_classifier


def test_an_encoder_whose_config_does_not_name_its_class_gets_a_head(capsys, tmp_path, tiny_folder, starts):
    model = changed(tiny_folder("bert"), tmp_path / "model", **BARE)
    files = [write_tsv(tmp_path / name, [("a", "LABEL_0"), ("b", "LABEL_1")]) for name in ("train.tsv", "dev.tsv")]
    code, out, _ = run(capsys, *arguments_of(model, files, tmp_path / "out"))
    assert (code, out) == (
        130,
        f"{files[0]}: 2 texts, 2 labels: LABEL_0 1, LABEL_1 1; one label per text, on a new head\n",
    )
    assert starts[0].config.num_labels == 2


@pytest.mark.parametrize("labels", ["POSITIVE,NEGATIVE", "LABEL_0,LABEL_1,LABEL_2"])
@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (lambda held: {k: v for k, v in held.items() if ".layer.1." not in k}, {}, "- bert.encoder.layer.1."),
        (lambda held: held, {"num_hidden_layers": 2}, "+ bert.encoder.layer.2."),
        (lambda held: held | {"bert.encoder.adapter.weight": np.ones(2, "f")}, {}, "+ bert.encoder.adapter.weight"),
        (
            lambda held: held | {"bert.embeddings.word_embeddings.weight": np.ones((9, 36), "f")},
            {},
            "bert.embeddings.word_embeddings.weight: expected (61, 36), got (9, 36)",
        ),
    ],
    ids=["missing layer", "fewer layers in the config", "left-over tensor", "another shape"],
)
def test_an_encoder_that_is_not_whole_is_refused_with_a_new_head_too(
    capsys, tmp_path, tiny_folder, labels, tensors, config, message
):
    model = changed(tiny_folder("bert"), tmp_path / "model", tensors=tensors, **config)
    names = labels.split(",")
    files = [write_tsv(tmp_path / name, [("a", names[0]), ("b", names[1])]) for name in ("train.tsv", "dev.tsv")]
    line = refused(capsys, *arguments_of(model, files, tmp_path / "out", "--labels", labels))
    assert "model.safetensors does not fit its config.json" in line
    assert message in line
    assert not (tmp_path / ".out.training").exists()


def test_a_classifier_that_has_lost_its_head_is_refused(capsys, tmp_path, tiny_folder):
    def headless(held):
        return {name: one for name, one in held.items() if not name.startswith("classifier")}

    model = changed(
        *(tiny_folder("bert"), tmp_path / "model"),
        tensors=headless,
        architectures=["BertForSequenceClassification"],
    )
    files = [write_tsv(tmp_path / name, [("a", "LABEL_0"), ("b", "LABEL_1")]) for name in ("train.tsv", "dev.tsv")]
    line = refused(capsys, *arguments_of(model, files, tmp_path / "out"))
    assert "- classifier.weight; - classifier.bias" in line


def test_the_head_is_kept_for_the_labels_of_the_checkpoint_and_drawn_for_others(capsys, tmp_path, tiny_folder, starts):
    own = flaxsent.load(tiny_folder("bert"), backend="native")
    kernel = own.params["classifier"]["kernel"]
    for labels, more, is_kept in [
        (["LABEL_2", "LABEL_0"], (), True),
        (["2", "0"], (), True),
        (["a", "b", "c"], (), False),
        (["a", "b"], (), False),
        (["LABEL_2", "LABEL_0"], ("--labels", "LABEL_0,LABEL_1,LABEL_2"), True),  # which has learned LABEL_1 before
        (['["LABEL_1", "LABEL_2"]', '["LABEL_0"]'], ("--labels", "LABEL_0,LABEL_1,LABEL_2"), False),  # several labels
    ]:
        files = [write_tsv(tmp_path / name, [("x", label) for label in labels]) for name in ("train.tsv", "dev.tsv")]
        code, out, _ = run(capsys, *arguments_of(tiny_folder("bert"), files, tmp_path / "out", *more))
        assert (code, out.endswith("the checkpoint's head\n" if is_kept else "a new head\n")) == (130, True)
        classifier = starts[-1]
        jax.tree.map(np.testing.assert_array_equal, classifier.params["bert"], own.params["bert"])
        drawn = classifier.params["classifier"]["kernel"]
        assert (drawn.shape == kernel.shape and bool((drawn == kernel).all())) == is_kept


def test_pairs_and_labels_between_separators(tmp_path, tiny_folder):
    file = tmp_path / "x.tsv"
    file.write_text("a\tb\ty\nx\ty\tjoy|fear\nx\ty\t[]\n")
    options = {"text_column": "a", "second_column": "b", "label_column": "y", "label_separator": "|"}
    data = reading.read_data(
        RunOptions(train=(str(file),), output="x", model=str(tiny_folder("bert")), **options), seed=0
    )
    assert data.train == Examples([("x", "y")] * 2, [(0, 1), ()])
    assert data.task == (("fear", "joy"), "multi_label_classification")


def test_texts_that_are_cut_are_counted(capsys, monkeypatch, tmp_path, files, tiny_folder):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "Checkpoints", stop)
    code, out, err = run(capsys, *arguments_of(tiny_folder("bert"), files, tmp_path / "out", "--max-length", "12"))
    assert code == 130
    cut = sum(len(text.split()) > 10 for text, _ in [*ROWS, *ROWS[:12]])  # 2 are special tokens
    assert out.splitlines()[1] == f"{cut} of 72 texts are cut to 12 tokens"
    assert err == "flaxsent: stopped; --resume goes on from the last checkpoint\n"


# what is refused


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("x.tsv", "text\tlabel\na\tx\nb\t\n", [], "x.tsv row 3 has no label in the column 'label'"),
        ("x.jsonl", '{"text": "a", "label": "x"}\n{"text": "b"}\n', [], "x.jsonl row 2 has no label"),
        ("x.jsonl", '{"text": "a", "label": {"x": 1}}\n', [], "has the label {'x': 1}; expected names"),
        ("x.jsonl", '{"text": "a", "label": "x"}\n{"label": "x"}\n', [], "row 2 has no text in the column 'text'"),
        ("x.csv", "text,label\na,1\nb,x\n", ["--problem-type", "regression"], "row 3 has the label 'x'; expected a"),
        ("x.csv", "text,label\na,1.5\nb,inf\n", ["--problem-type", "regression"], "the label 'inf'; expected a finite"),
        ("x.jsonl", '{"text": "a", "label": ["x"]}\n{"text": "b", "label": "y"}\n', [], "'y'; expected a list"),
        ("x.tsv", "text\tlabel\na\tx\nb\tx\n", [], "has only the label x; expected two or more"),
        ("x.tsv", "text\tlabel\na\tx\nb\tz\n", ["--labels", "x,y"], "'z' is unknown; expected x, y"),
        ("x.tsv", "text\tlabel\na\tx\nb\ty\n", ["--labels", "x,no,y,z"], "no text to learn from has the label no, z"),
        ("x.csv", "text,p,q\na,1,0\nb,0,0\n", ["--label-columns", "p,q"], "no text to learn from has the label q"),
        ("x.tsv", "text\tkind\na\tx\n", [], "has the columns text, kind; expected label"),
        ("x.txt", "a\n", [], "has the columns text; expected label"),
        ("x.tsv", "text\tlabel\na\tx\nb\ty\nc\n", [], "row 4 has 1 columns; expected 2"),
    ],
)  # fmt: skip
def test_bad_rows_end_the_run_before_a_step_with_file_row_and_reason(
    capsys, monkeypatch, tmp_path, tiny_folder, name, content, options, message
):
    monkeypatch.setattr(training, "load", None)  # nor is the model loaded
    (tmp_path / name).write_text(content)
    arguments = ("--model", str(tiny_folder("bert")), "--output", str(tmp_path / "out"))
    assert message in refused(capsys, "train", "--train", str(tmp_path / name), *arguments, *options)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_label_that_only_dev_has_is_told_with_its_row(capsys, tmp_path, files, tiny_folder):
    Path(files[1]).write_text("text\tlabel\na\tPOSITIVE\nb\tNEUTRAL\n")
    line = refused(capsys, *arguments_of(tiny_folder("bert"), files, tmp_path / "out"))
    assert "dev.tsv row 3 has the label 'NEUTRAL': 'NEUTRAL' is unknown; expected NEGATIVE, POSITIVE" in line


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--learning-rate", "-1"], "learning_rate=-1.0; expected a positive number"),
        (["--epochs", "0"], "num_epochs=0; expected a whole number of 1 or more"),
        (["--checkpoint-every", "0"], "checkpoint_every=0; expected a whole number of 1 or more"),
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
    monkeypatch.setattr(reading, "read_annotations", None)
    assert message in refused(capsys, *arguments_of("/no/model", files, tmp_path / "out", *more))


def test_a_family_without_a_native_encoder_is_one_line(capsys, tmp_path, files, tiny_folder):
    arguments = arguments_of(tiny_folder("big_bird"), files, tmp_path / "out", "--backend", "native")
    assert refused(capsys, *arguments) == "flaxsent has no native encoder for big_bird; pass backend='flax'.\n"


def test_an_exported_folder_cannot_be_trained(capsys, tmp_path, files, tiny_folder, symbolic_sizes):
    export(flaxsent.load(tiny_folder("bert"), backend="native"), tmp_path / "exported", platforms=["cpu"])
    line = refused(capsys, *arguments_of(tmp_path / "exported", files, tmp_path / "out"))
    assert line.endswith("exported was exported and cannot be trained; pass the checkpoint itself.\n")


def test_a_teacher_with_other_labels_is_refused(capsys, tmp_path, files, tiny_folder):
    arguments = arguments_of(tiny_folder("bert"), files, tmp_path / "out", "--teacher", str(tiny_folder("roberta")))
    assert "has the labels LABEL_0, LABEL_1, LABEL_2 (single_label_classification); expected NEGATIVE, POSITIVE" in (
        refused(capsys, *arguments)
    )


@pytest.mark.parametrize("function", [{}, {"function_to_apply": "none"}])
def test_a_teachers_probabilities_come_in_the_order_of_the_students_labels(tmp_path, files, tiny_folder, function):
    teacher = flaxsent.load(tiny_folder("bert"), backend="native", labels=["POSITIVE", "NEGATIVE"], new_head=True)
    flaxsent.save(teacher, tmp_path / "teacher")
    raw = json.loads((tmp_path / "teacher" / "config.json").read_text())
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(raw | function))
    model, of = str(tiny_folder("bert")), str(tmp_path / "teacher")
    options = RunOptions(train=(files[0],), output="x", model=model, teacher=of)
    data = reading.read_data(options, seed=0)
    student, _ = training._load(options, data, seed=0)
    scores_NC = training._scores(training._load_teacher(of, student), data, student.config)
    expected = flaxsent.classify(data.train.texts, teacher, top_k=2)
    for row, prediction in zip(scores_NC, expected, strict=True):
        by_label = dict(zip(*prediction, strict=True))
        np.testing.assert_allclose(row, [by_label["NEGATIVE"], by_label["POSITIVE"]], atol=1e-5)


@pytest.mark.parametrize("package", ["orbax", "matplotlib"])
def test_a_missing_extra_is_told_with_its_install_command(capsys, monkeypatch, tmp_path, files, package):
    import_module = flaxsent_files.importlib.import_module

    def without(name):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(name=package)
        return import_module(name)

    monkeypatch.setattr(flaxsent_files.importlib, "import_module", without)
    assert refused(capsys, *arguments_of("/no/model", files, tmp_path / "out")) == (
        f'flaxsent train needs {package}, which is not installed: pip install "flaxsent[train]"\n'
    )
