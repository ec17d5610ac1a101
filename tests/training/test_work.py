"""Where a run writes: only what flaxsent wrote is replaced, full disks lose nothing, and a run knows its own work."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import flaxsent
from flaxsent import cli
from flaxsent.base import FlaxsentError
from flaxsent.cli import train as command
from flaxsent.data.labels import Examples
from flaxsent.files import write
from flaxsent.training import reading
from flaxsent.training import run as training
from flaxsent.training.checkpoints import Checkpoints
from flaxsent.training.options import RunOptions, TrainOptions
from flaxsent.training.trainer import Trainer
from flaxsent.training.work import plan
from tests.training.runs import COMMAND, ENVIRONMENT, ROWS, arguments_of, refused, run, told, without_speed, write_tsv

OLD = {"training.json": "{}", "config.json": "{}", "model.safetensors": "weights", "log.jsonl": "", "curves.png": ""}


def folder_of(path: Path, content: dict[str, str]) -> Path:
    for name, text in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def content_of(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


# what is replaced


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (OLD | {"notes.txt": "mine"}, "also has notes.txt; choose another one"),
        (OLD | {"older/model.safetensors": "mine"}, "also has older; choose another one"),
        (OLD | {"NOTES.md": "mine", "a": "", "b": ""}, "also has NOTES.md, a, b; choose"),
        ({"config.json": "{}", "model.safetensors": "mine"}, "has no training.json; choose another one"),
        ({"train.tsv": "mine"}, "has no training.json; choose another one"),
        (OLD | {"log.jsonl/x": "mine"}, "also has log.jsonl; choose another one"),
    ],
)
def test_overwrite_replaces_only_what_flaxsent_wrote(
    capsys, monkeypatch, tmp_path, files, tiny_folder, content, message
):
    monkeypatch.setattr(reading, "read_annotations", None)  # refused before anything is read
    if "log.jsonl/x" in content:
        content = {name: text for name, text in content.items() if name != "log.jsonl"}
    output = folder_of(tmp_path / "out", content)
    arguments = arguments_of(tiny_folder("bert"), files, output, "--overwrite")
    assert message in refused(capsys, *arguments)
    assert content_of(output) == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev.tsv", "out", "train.tsv"]


@pytest.mark.parametrize("output", ["../proj", ".", "sub/../../proj", "sub/.."])
def test_the_folder_that_one_is_in_is_not_replaced(capsys, monkeypatch, tmp_path, files, tiny_folder, output):
    proj = folder_of(tmp_path / "proj", OLD | {"sub/x": "mine"})
    before = content_of(proj)
    monkeypatch.chdir(proj)
    arguments = arguments_of(tiny_folder("bert"), files, output, "--overwrite")
    assert refused(capsys, *arguments).startswith(f"{proj} is the folder you are in")
    assert content_of(proj) == before


def test_a_link_is_followed_to_the_folder_that_would_be_replaced(tmp_path):
    (tmp_path / "link").symlink_to(folder_of(tmp_path / "real", OLD), target_is_directory=True)
    work = plan(RunOptions(train=("x",), output=str(tmp_path / "link"), overwrite=True))
    assert work.output == tmp_path / "real"


def test_an_output_that_came_while_the_run_lasted_is_not_replaced(tmp_path):
    work = plan(RunOptions(train=("x",), output=str(tmp_path / "out")))
    work.begin({"seed": 1}, None)
    folder_of(tmp_path / "out", OLD)
    with pytest.raises(FileExistsError, match="is there already; pass --overwrite"):
        work.finish({"seed": 1}, lambda folder: None)
    assert content_of(tmp_path / "out") == OLD
    assert work.begun == {"seed": 1}


def test_finishing_replaces_own_names_and_leaves_no_work(tmp_path):
    output = folder_of(tmp_path / "out", OLD)
    work = plan(RunOptions(train=("x",), output=str(output), overwrite=True))
    work.begin({"seed": 1}, np.zeros((2, 2), np.float32))
    assert work.teacher.shape == (2, 2)
    folder_of(output, {"notes.txt": "written meanwhile"})
    with pytest.raises(FileExistsError, match=r"also has notes\.txt"):
        work.finish({"seed": 1}, lambda folder: None)
    (output / "notes.txt").unlink()
    work.finish({"seed": 1}, lambda folder: (folder / "config.json").write_text("new"))
    assert content_of(output) == {"config.json": "new", "training.json": '{\n "seed": 1\n}\n'}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_that_was_killed_after_its_last_step_can_finish_again(tmp_path):
    options = RunOptions(train=("x",), output=str(tmp_path / "out"), resume=True)
    work = plan(options)
    work.begin({"seed": 1}, None)
    folder_of(tmp_path / "out", {"training.json": '{"seed": 1}', "config.json": "new"})  # its own
    assert plan(options).begun == {"seed": 1}


@pytest.mark.parametrize("name", ["notes.txt", "sub/notes.txt"])
def test_a_folder_of_the_name_of_the_work_is_not_removed(capsys, tmp_path, files, tiny_folder, name):
    work = folder_of(tmp_path / ".out.training", {name: "mine"})
    line = refused(capsys, *arguments_of(tiny_folder("bert"), files, tmp_path / "out"))
    assert line.startswith(f"{work} is in the way: it has {name.partition('/')[0]}; move it away")
    assert content_of(work) == {name: "mine"}


def test_what_a_killed_start_left_in_the_work_is_cleared_away(tmp_path):
    left = {"teacher.npy": "old", "training.json.0123456789abcdef.tmp": "half", "checkpoints/1/x": "old"}
    folder_of(tmp_path / ".out.training", left)
    work = plan(RunOptions(train=("x",), output=str(tmp_path / "out")))
    work.begin({"seed": 1}, None)
    assert [*content_of(work.folder)] == ["training.json"]


# whose work it is


@pytest.fixture
def complete(tmp_path, files, tiny_folder):
    """An output as a run leaves it, without the run, with the command that made it."""
    model, output = tiny_folder("bert"), tmp_path / "out"
    arguments = cli._parser(["train"]).parse_args(arguments_of(model, files, output))
    options, train_options = (command._read(kind, arguments) for kind in (RunOptions, TrainOptions))
    data = reading.read_data(options, seed=0)
    classifier, _ = training._load(options, data, seed=0)
    facts = training._facts(options, train_options, data, classifier, None) | {"shapes": [[2, 128, 32]]}
    facts["versions"]["jax"] = "0.1"  # other packages make no other run of one that is complete
    folder_of(output, OLD | {"training.json": json.dumps(facts)})
    return arguments_of(model, files, output, "--resume")


def test_resuming_a_complete_run_does_nothing(capsys, monkeypatch, tmp_path, complete):
    before = content_of(tmp_path / "out")
    monkeypatch.setattr(training, "Trainer", None)
    for more in ([], ["--overwrite"], ["--log-every", "3"]):
        assert run(capsys, *complete, *more) == (0, f"{tmp_path / 'out'} is complete; nothing to resume\n", "")
    assert content_of(tmp_path / "out") == before


def test_resuming_a_complete_run_of_other_options_model_or_data_is_refused(
    capsys, monkeypatch, tmp_path, complete, tiny_folder
):
    before = content_of(tmp_path / "out")
    monkeypatch.setattr(training, "Trainer", None)
    start = f"--resume: {tmp_path / 'out'} is of another run: its "
    end = "; pass --overwrite to replace it.\n"
    line = refused(capsys, *complete, "--seed", "7", "--epochs", "3")
    assert (
        line == f'{start}options were {{"num_epochs": 2, "seed": 0}}, and now are {{"num_epochs": 3, "seed": 7}}{end}'
    )
    line = refused(capsys, *complete, "--save-dtype", "float16")
    assert line == f'{start}save_dtype was "float32", and now is "float16"{end}'
    other = tiny_folder("bert", hidden_dropout_prob=0.2)
    line = refused(capsys, *complete, "--model", str(other))
    assert line.startswith(f'{start}model was {{"name": "{tiny_folder("bert")}", "digest": ')
    assert f'and now is {{"name": "{other}", "digest": ' in line
    write_tsv(tmp_path / "train.tsv", [*ROWS[:-1], ("hatE", "NEGATIVE")])  # as many bytes, and more likely
    assert refused(capsys, *complete).startswith(f"{start}train was")
    assert content_of(tmp_path / "out") == before


def test_the_same_files_under_other_names_are_the_same_run(capsys, monkeypatch, tmp_path, complete, tiny_folder):
    (tmp_path / "train.tsv").rename(tmp_path / "renamed.tsv")
    (tmp_path / "model").symlink_to(tiny_folder("bert"), target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    renamed = [one.replace(str(tmp_path / "train.tsv"), "renamed.tsv") for one in complete]
    assert run(capsys, *renamed, "--model", "model") == (0, f"{tmp_path / 'out'} is complete; nothing to resume\n", "")


# full disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB; whoever may not mount one skips the test."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, *, leaving: int) -> Path:
    """A file that takes up what the disk has, but so many bytes."""
    there = os.statvfs(disk)
    (disk / "full").write_bytes(bytes(there.f_bavail * there.f_frsize - leaving))
    return disk / "full"


def test_a_checkpoint_for_which_there_is_no_room_is_one_error_and_keeps_the_last_one(capfd, small_disk, tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    trainer = Trainer(classifier, Examples(["good", "bad"], [0, 1]), options=TrainOptions())
    snapshot = trainer.start()
    with Checkpoints(small_disk / "checkpoints", trainer) as checkpoints:
        checkpoints.save(snapshot, 1)
        for room in (0, 50_000, 300_000, 900_000):
            full = fill(small_disk, leaving=room)
            with pytest.raises(OSError, match="No space left on device: no checkpoint of step 2; once it can"):
                checkpoints.save(snapshot, 2)
            full.unlink()
    assert told(capfd.readouterr().err) == []
    with Checkpoints(small_disk / "checkpoints", trainer) as checkpoints:
        last = checkpoints.last()
        assert last is not None
        jax.tree.map(np.testing.assert_array_equal, last.state.params, snapshot.state.params)
        checkpoints.save(snapshot, 2)


def test_an_output_for_which_there_is_no_room_leaves_the_old_one_and_the_work(small_disk):
    output = folder_of(small_disk / "out", OLD)
    work = plan(RunOptions(train=("x",), output=str(output), overwrite=True))
    work.begin({"seed": 1}, None)
    full = fill(small_disk, leaving=50_000)
    with pytest.raises(OSError, match=r"No space left on device: '.*config\.json'"):
        work.finish({"seed": 1}, lambda folder: write(folder / "config.json", bytes(100_000)))
    assert content_of(output) == OLD
    full.unlink()
    work.finish({"seed": 1}, lambda folder: write(folder / "config.json", b"new"))
    assert content_of(output) == {"config.json": "new", "training.json": '{\n "seed": 1\n}\n'}
    assert [path.name for path in small_disk.iterdir()] == ["out"]


@pytest.mark.parametrize("content", [b"", b"damaged"])
def test_a_checkpoint_that_cannot_be_read_is_one_error(tmp_path, tiny_folder, content):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    trainer = Trainer(classifier, Examples(["good", "bad"], [0, 1]), options=TrainOptions())
    with Checkpoints(tmp_path / "checkpoints", trainer) as checkpoints:
        checkpoints.save(trainer.start(), 1)
    for file in (tmp_path / "checkpoints" / "1" / "arrays").rglob("*"):
        if file.is_file():
            file.write_bytes(content)
    with Checkpoints(tmp_path / "checkpoints", trainer) as checkpoints, pytest.raises(FlaxsentError) as info:
        checkpoints.last()
    assert str(info.value).startswith(f"{tmp_path / 'checkpoints' / '1'} cannot be read: ")
    assert str(info.value).count("\n") == 0


FILLING = """
import os, sys
from flaxsent import cli
from flaxsent.training.log import Log
add = Log.add
def fill(log, event):
    if event.step == 5:  # a checkpoint comes after the steps 2, 4 and 6
        {how}
    add(log, event)
Log.add = fill
sys.exit(cli.main(sys.argv[1:]))
"""
FULL_DISK = (
    "there = os.statvfs('{disk}'); open('{disk}/full', 'wb').write(bytes(there.f_bavail * there.f_frsize - 90_000))"
)
LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))"


@pytest.mark.slow
@pytest.mark.parametrize("is_limit", [False, True], ids=["full disk", "limit of a file"])
def test_a_run_on_a_full_disk_ends_in_one_line_and_goes_on_when_there_is_room(
    request, tmp_path, files, tiny_folder, is_limit
):
    disk = tmp_path if is_limit else request.getfixturevalue("small_disk")
    whole = [*COMMAND, *arguments_of(tiny_folder("bert"), files, tmp_path / "whole")]
    subprocess.run(whole, env=ENVIRONMENT, check=True, capture_output=True)
    code = FILLING.format(how=LIMIT if is_limit else FULL_DISK.format(disk=disk))
    arguments = arguments_of(tiny_folder("bert"), files, disk / "out")
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    *before, line = told(done.stderr)
    # A limit shows only when it is reached: then Orbax's threads may say something, too.
    assert is_limit or not before
    reason = "File too large" if is_limit else "No space left on device"
    assert line.startswith("flaxsent: error: ")
    assert f"{reason}: no checkpoint of step 6; once it can be written, go on with --resume" in line
    assert not (disk / "out").exists()
    (disk / "full").unlink(missing_ok=True)
    resumed = subprocess.run([*COMMAND, *arguments, "--resume"], env=ENVIRONMENT, capture_output=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert (disk / "out" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert without_speed(disk / "out" / "log.jsonl") == without_speed(tmp_path / "whole" / "log.jsonl")


def test_a_log_that_cannot_be_written_is_one_error(tmp_path, monkeypatch, tiny_folder):
    from flaxsent.training.log import Log

    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    trainer = Trainer(classifier, Examples(["good", "bad"], [0, 1]), options=TrainOptions())
    log = Log(tmp_path / "log.jsonl", trainer, done=0, every=(1,), report=print)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with log, pytest.raises(OSError, match=r"File too large: '.*log\.jsonl'"):
            log._write({"step": 1, "loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
