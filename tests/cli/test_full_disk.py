"""A disk that becomes full while a folder is written: one line, exit code 2, and nothing of it left behind."""

import errno
import os
import resource
import subprocess

import pytest

import flaxsent
from flaxsent.cli import main


@pytest.fixture
def limit_files():
    """`limit_files(size)`: what this process writes into one file from then on; Python ignores the signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(size)`: a folder with a disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def sizes_of(folder):
    return {file.name: file.stat().st_size for file in folder.iterdir()}


@pytest.mark.slow
def test_export_to_a_full_disk(capsys, small_disk, tmp_path, tiny_folder, symbolic_sizes):
    model = str(tiny_folder("bert"))
    assert main(["export", model, str(tmp_path / "whole"), "--platforms", "cpu"]) == 0
    sizes = sizes_of(tmp_path / "whole")
    # Full at the function; after the functions and the tokenizer, so at the parameters, which safetensors writes.
    room = sum(sizes.values()) - sizes["params.safetensors"] + sizes["params.safetensors"] // 2
    for size in (sizes["forward.jax_export"] // 2, room):
        folder = small_disk(size)
        capsys.readouterr()
        assert main(["export", model, str(folder / "exported"), "--platforms", "cpu"]) == 2
        line = f"flaxsent: error: [Errno 28] No space left on device: '{folder / 'exported'}'\n"
        assert capsys.readouterr() == ("", line)
        assert [*folder.iterdir()] == []
        subprocess.run(["umount", str(folder)], check=True)


def test_export_of_a_file_that_is_too_large(capsys, limit_files, tmp_path, tiny_folder, symbolic_sizes):
    limit_files(50_000)
    code = main(["export", str(tiny_folder("bert")), str(tmp_path / "exported"), "--platforms", "cpu"])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err == f"flaxsent: error: [Errno 27] File too large: '{tmp_path / 'exported'}'\n"
    assert [*tmp_path.iterdir()] == []


def test_save_over_a_folder_keeps_what_was_there(limit_files, tmp_path, tiny_folder):
    """The weights are what does not fit."""
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    folder = tmp_path / "model"
    flaxsent.save(classifier, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    limit_files(len(before["model.safetensors"]) // 2)
    with pytest.raises(OSError, match="File too large") as told:
        flaxsent.save(classifier, folder, dtype="float32")
    assert (told.value.errno, told.value.filename) == (errno.EFBIG, str(folder))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
