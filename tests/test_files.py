"""Files and folders that are whole or not there: links, full disks, errors of others; and loggers kept quiet."""

import errno
import logging
import os
from pathlib import Path

import pytest

from flaxsent import files


def content_of(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def replace(target):
    with files.replacing(target, owned=["a"]) as unfinished:
        (unfinished / "a").write_text("new")


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_stays_and_the_folder_that_it_leads_to_is_replaced(tmp_path, is_there):
    real = tmp_path / "disk" / "real"
    (tmp_path / "link").symlink_to(real)
    if is_there:
        real.mkdir(parents=True)
        (real / "a").write_text("old")
        (real / "b").write_text("mine")
    replace(tmp_path / "link")
    assert content_of(real) == {"a": "new"} | ({"b": "mine"} if is_there else {})
    assert [path.name for path in real.parent.iterdir()] == ["real"]
    assert (tmp_path / "link").readlink() == real
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "link"}


def test_links_that_lead_nowhere_and_pipes_stay_in_a_folder(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    descriptor = os.open(folder / "pipe", os.O_RDWR)  # or who opens it would wait for this for ever
    replace(folder)
    os.close(descriptor)
    assert (folder / "dangling").readlink() == Path("nowhere")
    assert (folder / "pipe").is_fifo()
    assert (folder / "a").read_text() == "new"


def test_an_interrupt_between_the_two_renames_leaves_the_old_folder(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("old")
    rename, renamed = Path.rename, []

    def interrupted(path, target):
        renamed.append(path)
        if len(renamed) == 2:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace(tmp_path / "folder")
    assert content_of(tmp_path / "folder") == {"a": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


FULL = OSError(errno.ENOSPC, "No space left on device")
OF_OTHERS = [FileNotFoundError(errno.ENOENT, "No such file", "input.csv"), ConnectionError("the line was cut")]
"""Errors of what is read while something is written."""


@pytest.mark.parametrize("writer", [files.appearing, files.replacing])
@pytest.mark.parametrize("error", [FULL, *OF_OTHERS], ids=str)
def test_errors_name_what_is_written_unless_they_are_of_something_else(tmp_path, writer, error):
    with pytest.raises(OSError, match=error.strerror or str(error)) as told, writer(tmp_path / "out"):
        raise error
    if error is FULL:
        assert (told.value.errno, told.value.filename) == (errno.ENOSPC, str(tmp_path / "out"))
    else:
        assert told.value is error
    assert [*tmp_path.iterdir()] == []


def test_a_file_in_no_folder_is_named_itself(tmp_path):
    with pytest.raises(FileNotFoundError) as told, files.appearing(tmp_path / "no" / "out"):
        pass
    assert told.value.filename == str(tmp_path / "no" / "out")


@pytest.mark.parametrize("is_full", [False, True])
def test_a_lock_on_a_disk_without_second_names_is_whole_or_not_there(tmp_path, monkeypatch, is_full):
    def full(_):
        raise FULL

    def refuse(*_):
        if is_full:
            monkeypatch.setattr(os, "fsync", full)
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    if is_full:
        with pytest.raises(OSError, match="No space left"):
            files.create(tmp_path / "lock", b"whole")
        assert [*tmp_path.iterdir()] == []
        return
    files.create(tmp_path / "lock", b"whole")
    with pytest.raises(FileExistsError):
        files.create(tmp_path / "lock", b"another")
    assert content_of(tmp_path) == {"lock": "whole"}


def test_a_logger_is_quiet_until_the_last_who_asks_for_it_ends():
    logger, told = logging.getLogger("theirs.of_test_files"), []

    class Told(logging.Handler):
        def emit(self, record):
            told.append(record.getMessage())

    early, late, third = Told(), Told(), Told()
    logger.addHandler(early)
    first, second = files.quietly(logger.name), files.quietly(logger.name)
    with first:
        second.__enter__()  # as two threads may: the first to begin is the first to end
        logger.addHandler(late)
    logger.warning("while the second is there")
    logging.getLogger(f"{logger.name}.below").warning("so is what is below")
    second.__exit__(None, None, None)
    logger.addHandler(third)
    assert told == []
    assert [one.filters for one in (logger, early, late, third)] == [[], [], [], []]
    assert "addHandler" not in vars(logger)
    logger.warning("then")
    assert told == 3 * ["then"]
