"""What surrounds every command: which errors are whose, closed streams, full disks, the compile cache, the start."""

import importlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import flaxsent
from flaxsent import cli
from flaxsent.base import FlaxsentError
from flaxsent.cli import info
from flaxsent.files import require


def raises(err):
    def run(options):
        raise err

    return run


MISTAKES = {
    "FlaxsentError": (raises(FlaxsentError("x is 5;\nexpected 6.")), "x is 5; expected 6."),
    "OSError": (
        lambda options: Path("/nowhere/at/all").read_text(),
        "[Errno 2] No such file or directory: '/nowhere/at/all'",
    ),
    "ConnectionError": (raises(ConnectionError("no answer")), "no answer"),
    "MissingPackageError": (
        lambda options: require("no_such_module.part", needed_by="--x", extra="data"),
        '--x needs no_such_module, which is not installed: pip install "flaxsent[data]"',
    ),
    "memory of the host": (lambda options: np.zeros(1 << 48).copy(), "there is not enough memory (Unable to allocate"),
    "memory of a device": (
        lambda options: jnp.zeros(1 << 46),
        "there is not enough memory (RESOURCE_EXHAUSTED: Out of",
    ),
    "MemoryError": (raises(MemoryError()), "there is not enough memory (MemoryError): choose a smaller model"),
    "no such device": (
        raises(RuntimeError("Unable to initialize backend 'tpu': no libtpu\n(set JAX_PLATFORMS='')")),
        "JAX cannot use the device that was asked for: Unable to initialize backend 'tpu': no libtpu (set JAX_P",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("debug", ["", "1"])
def test_what_the_user_can_put_right_is_one_line_and_exit_code_2(monkeypatch, capsys, name, debug):
    run, part = MISTAKES[name]
    monkeypatch.setenv("FLAXSENT_DEBUG", debug)
    monkeypatch.setattr(info, "run", run)
    assert cli.main(["info"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"flaxsent: error: {part}")


BUGS = [
    TypeError("no 'x'\nin 'y'"),
    ValueError("a library's"),
    NotImplementedError(),
    KeyError("x"),
    RuntimeError("INTERNAL"),
    AssertionError(),
    RecursionError("too deep"),
    Exception("plain"),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: type(bug).__name__)
def test_all_else_is_a_bug_in_one_line_with_exit_code_1_and_a_traceback_when_asked_for(monkeypatch, capsys, bug):
    monkeypatch.setattr(info, "run", raises(bug))
    monkeypatch.delenv("FLAXSENT_DEBUG", raising=False)
    assert cli.main(["info"]) == 1
    told = " ".join(f"{type(bug).__name__}: {bug}".split()).removesuffix(":")
    line = f"flaxsent: error: this is a bug in flaxsent: {told}; run again with FLAXSENT_DEBUG=1 and report it\n"
    assert capsys.readouterr() == ("", line)
    monkeypatch.setenv("FLAXSENT_DEBUG", "1")
    assert cli.main(["info"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):\n")
    assert "test_main.py" in err
    assert type(bug).__name__ in err.splitlines()[-1] or str(bug).splitlines()[-1] in err.splitlines()[-1]


def test_ctrl_c_is_130_and_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr(info, "run", raises(KeyboardInterrupt()))
    assert cli.main(["info"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "arguments", ["frobnicate", "classify --frobnicate", "info a b", "", "plan --topology v5e:1x1 --hours -1"]
)
def test_what_cannot_be_parsed_is_one_line_and_exit_code_2(sh, arguments):
    code, out, err = sh(arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("flaxsent: error: ")
    assert err.endswith("--help\n")


# the streams

LINES = "good\nbad\n"
COMMANDS = {
    "text": "classify good",
    "lines": "classify - --format jsonl",
    "files": "classify --input {folder}/in.csv --output {folder}/out.csv",
    "info": "info",
    "help": "--help",
}
CLOSINGS = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"]
DEFAULT = {
    *(("text", closing) for closing in (">&-", "2>&-")),
    ("lines", "<&-"),
    ("files", "<&- >&- 2>&-"),
    ("info", ">&-"),
    ("help", ">&-"),
}
CASES = [
    pytest.param(name, closing, marks=() if (name, closing) in DEFAULT else pytest.mark.slow)
    for name in COMMANDS
    for closing in CLOSINGS
]


@pytest.mark.parametrize(("name", "closing"), CASES)
def test_a_closed_stream_is_told_where_it_is_missed_and_else_does_not_matter(sh, tmp_path, name, closing):
    (tmp_path / "in.csv").write_text("text\ngood\nbad\n")
    (tmp_path / "lines").write_text(LINES)
    closed = closing.split()
    line = f"{COMMANDS[name].format(folder=tmp_path)} {closing}"
    code, out, err = sh(line if "<&-" in closed else f"{line} <{tmp_path}/lines")
    missed = [
        *(["standard input"] if name == "lines" and "<&-" in closed else []),
        *(["standard output"] if name != "files" and ">&-" in closed else []),
    ]
    if missed:
        assert code == 2
        assert "2>&-" in closed or (err.startswith("flaxsent: error: standard ") and err.count("\n") == 1), err
        assert "2>&-" in closed or missed[0] in err or missed[-1] in err
    else:
        assert (code, err) == (0, "")
        assert {"text": "POSITIVE", "lines": '"NEGATIVE"', "files": "", "info": "all finite", "help": "usage:"}[
            name
        ] in out
        assert (out == "") == (name == "files")
    assert "2>&-" not in closed or err == ""
    if name == "files":  # not a byte of what libraries print is in it
        header, *rows = (tmp_path / "out.csv").read_text().splitlines()
        assert header == "text,label,score"
        assert [row.split(",")[:2] for row in rows] == [["good", "POSITIVE"], ["bad", "NEGATIVE"]]
        assert {path.name for path in tmp_path.glob("[!.]*")} == {"in.csv", "lines", "out.csv"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("line", ["info", "classify good"])
def test_output_to_a_full_disk_is_one_line_and_exit_code_2(sh, line, unbuffered):
    code, _, err = sh(f"{line} >/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (code, err) == (2, "flaxsent: error: [Errno 28] No space left on device\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_errors_to_a_full_disk_leave_the_exit_code_and_the_output(sh):
    assert sh("info ./nowhere 2>/dev/full")[:2] == (2, "")
    assert sh("--help >/dev/full") == (2, "", "flaxsent: error: [Errno 28] No space left on device\n")
    code, out, _ = sh("classify good 2>/dev/full")
    assert (code, out.count("POSITIVE")) == (0, 1)


# the compile cache


def compiled(folder):
    return {file.name: file.stat().st_size for file in folder.glob("*-cache")}


def test_a_second_start_compiles_nothing(sh, tmp_path):
    folder = tmp_path / "cache"
    assert sh("info", FLAXSENT_CACHE=str(folder)).err == ""
    first = compiled(folder)
    assert first
    assert sh("info", FLAXSENT_CACHE=str(folder)).err == ""
    child = sh("info", FLAXSENT_CACHE=str(folder), TF_CPP_MIN_LOG_LEVEL="1")  # as JAX says to what its process starts
    assert child.err == ""
    assert compiled(folder) == first


@pytest.mark.slow
def test_a_cache_that_cannot_be_made_is_done_without(sh, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = sh("info", FLAXSENT_CACHE=str(tmp_path / "file" / "cache"))
    assert (code, err) == (0, "")
    assert sh("info", FLAXSENT_CACHE="").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_cache_is_bounded(sh, tmp_path):
    assert sh("info", FLAXSENT_CACHE=str(tmp_path / "whole")).err == ""
    sizes = compiled(tmp_path / "whole")
    limit = sum(sizes.values()) // 2
    assert limit > max(sizes.values())
    settings = {"FLAXSENT_CACHE": str(tmp_path / "bounded"), "JAX_COMPILATION_CACHE_MAX_SIZE": str(limit)}
    code, _, err = sh("info", **settings)
    assert (code, err) == (0, "")
    kept = compiled(tmp_path / "bounded")
    assert len(kept) < len(sizes)
    assert limit // 2 < sum(kept.values()) <= limit


def test_the_bound_is_a_gigabyte(monkeypatch, tmp_path):
    """JAX's default is none."""
    import jax

    names = ("dir", "max_size")
    before = {name: getattr(jax.config, f"jax_compilation_cache_{name}") for name in names}
    monkeypatch.setenv("FLAXSENT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    least = jax.config.jax_persistent_cache_min_compile_time_secs, jax.config.jax_persistent_cache_min_entry_size_bytes
    try:
        cli._keep_compiled()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache")
        assert jax.config.jax_compilation_cache_max_size == 2**30
    finally:
        for name in names:
            jax.config.update(f"jax_compilation_cache_{name}", before[name])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least[0])
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", least[1])


def test_a_damaged_cache_is_no_error(sh, tmp_path):
    first = sh("info", FLAXSENT_CACHE=str(tmp_path))
    assert (first.code, first.err) == (0, "")
    torn = set()
    for number, entry in enumerate(sorted(tmp_path.glob("*-cache"))):
        content = entry.read_bytes()
        entry.write_bytes((content[: len(content) // 2], b"?" * 99, b"", content)[number % 4])
        if number % 8 > 3:  # killed between the two files, or written before there was a limit
            entry.with_name(entry.name.replace("-cache", "-atime")).unlink()
            torn.add(entry.name)
    assert len(torn) > 4
    assert sh("info", FLAXSENT_CACHE=str(tmp_path)) == first
    sizes = compiled(tmp_path)
    assert all((tmp_path / name.replace("-cache", "-atime")).exists() for name in sizes)
    assert all(sizes[name] > 99 for name in torn), "what had no time of use was compiled anew"


# the start


def test_help_and_version_import_neither_jax_nor_transformers(sh):
    for line in ("--help", "--version", "frobnicate"):
        err = sh(line, PYTHONPROFILEIMPORTTIME="1").err
        imported = {line.rpartition("|")[2].strip() for line in err.splitlines() if line.startswith("import time:")}
        assert "flaxsent.cli" in imported
        assert not imported & {"jax", "jaxlib", "numpy", "transformers", "torch", "flaxsent.base"}


def test_help_lists_every_command_and_each_has_its_own(sh):
    code, out, err = sh("--help")
    assert (code, err) == (0, "")
    for name, help_line in cli.COMMANDS.items():
        assert f"    {name}" in out
        assert help_line in out
        parser = cli._parser([name])
        module = importlib.import_module(f"flaxsent.cli.{name}")
        options = parser._subparsers._group_actions[0].choices[name].format_help()
        assert options.startswith(f"usage: flaxsent {name}")
        assert options.count("\n") > 5
        assert module.run
    assert {path.stem for path in Path(cli.__file__).parent.glob("*.py")} == {
        *cli.COMMANDS,
        "__init__",
        "options",
        "rows",
    }


def test_the_module_is_the_program(sh):
    assert sh("--version") == (0, f"flaxsent {flaxsent.__version__}\n", "")
    code, out, err = sh("classify 'so good'")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "label\tscore\ttext"


@pytest.mark.slow
@pytest.mark.flax_auto
def test_the_flax_classes_say_nothing_of_their_end(sh, tiny_folder):
    """transformers' line "TensorFlow and JAX classes are deprecated"; BigBird is one that only they compute."""
    code, out, err = sh(f"classify --model {tiny_folder('big_bird')} good")
    assert (code, err) == (0, "")
    assert out.count("\n") == 2


FAULTS = """
import resource, sys
import numpy as np
from flaxsent import cli
if sys.argv[1] == "kept":
    cli._keep_memory()
for _ in range(9):
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.full(1 << 23, 1.0)  # 64 MiB: 16,384 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told so")
def test_memory_that_a_step_frees_is_there_for_the_next_one():
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True).stdout)
        for how in ("given back", "kept")
    )
    assert given_back > 1000  # with pages of 2 MiB, 32 a block
    assert kept < 100


def test_training_keeps_memory_and_runs_on_one_device_in_the_bench_too():
    settings = ("uses_cores", "keeps_memory")
    commands = [("train", "--train", "a", "--output", "b"), ("bench", "--training"), ("bench",)]
    parsed = [vars(cli._parser(command).parse_args(command)) for command in commands]
    train, training, speed = ([one[name] for name in settings] for one in parsed)
    assert train == training == [False, True]
    assert speed == [True, False]
