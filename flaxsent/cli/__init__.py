"""The command line: parse, call one function, print. A user's mistake is one line on standard error and exit code 2."""

import argparse
import contextlib
import errno
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NoReturn

import flaxsent

COMMANDS = {
    "classify": "label texts, or files of them",
    "explain": "tell which words of a text decided",
    "info": "show what a checkpoint is and what it runs on",
    "train": "fine-tune an encoder or a classifier",
    "evaluate": "measure a model on a labelled file",
    "push": "upload a folder to the Hugging Face Hub",
    "export": "write a folder that runs without the encoders",
    "parity": "compare the logits with PyTorch's",
    "bench": "compare the speed with that of other libraries",
    "plan": "compile for TPUs that are not here, and say what they would do",
}
"""Each is a module of this folder with `add(commands)`; only that of the command that runs is imported."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code; without `arguments` the process, and its settings, are its own.

    0: done. 1: the numbers of parity differ, or flaxsent has a bug: one line, or the traceback under FLAXSENT_DEBUG=1.
    2: the user's mistake, or a file, the network or the memory fails: one line says what to do. 130: Ctrl-C.
    """
    is_own = arguments is None
    closed = _fill_closed() if is_own else []
    if is_own and not _is_debugging() and os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        # XLA prints pages about the processor when it reads what it has compiled itself; it asks as it is imported.
        # JAX says 1 to whatever its own process starts.
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments, is_own=is_own)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has gone: nobody is left to tell
        code = 0
    except KeyboardInterrupt:
        code = 130
    except Exception as err:
        code = _tell(err, closed)
    if is_own:  # Python flushes once more at exit, which must not fail and change the exit code
        for stream in (sys.stdout, sys.stderr):
            _give_up_if_broken(stream)
    return code


_STREAMS = (
    ("stdin", "standard input", os.O_WRONLY, "r"),
    ("stdout", "standard output", os.O_RDONLY, "w"),
    ("stderr", "standard error", os.O_WRONLY, "w"),
)


def _fill_closed() -> list[str]:
    """Opens the streams that the shell closed (`<&-`, `>&-`, `2>&-`), and gives their names.

    Files that are opened later would take their numbers, and get what C++ prints. Reading standard input and writing
    standard output fail as before; what goes to standard error is dropped.
    """
    closed = []
    for name, told, flags, mode in _STREAMS:
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, flags)  # the lowest free number, which is the stream's own
            setattr(sys, name, open(descriptor, mode, encoding="utf-8"))  # noqa: SIM115  # until the process ends
            closed.append(told)
    return closed


def _give_up_if_broken(stream: IO[str]) -> None:
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: Sequence[str], *, is_own: bool) -> int:
    options = _parser(arguments).parse_args(arguments)
    if is_own:
        if options.keeps_compiled:
            _keep_compiled()
        if options.uses_cores:
            _use_cores()
        if options.keeps_memory:
            _keep_memory()
        if options.plans_for_others:
            _look_for_no_chips()
    return options.run(options) or 0


def _is_debugging() -> bool:
    return os.environ.get("FLAXSENT_DEBUG", "") not in ("", "0")


def _tell(err: Exception, closed: Sequence[str]) -> int:
    """Writes the line that says what happened, and gives the exit code."""
    # These modules import jax; while they are not imported, nobody has raised their errors.
    named = (("flaxsent.base", "FlaxsentError"), ("flaxsent.files", "MissingPackageError"))
    mistakes = (OSError, *(getattr(sys.modules[module], name) for module, name in named if module in sys.modules))
    code, line = 2, str(err)
    closed = [name for name in closed if name != "standard error"]
    if isinstance(err, OSError) and err.errno == errno.EBADF and closed:
        line = f"{' and '.join(closed)} {'is' if len(closed) == 1 else 'are'} closed; open it, or give files."
    elif isinstance(err, MemoryError) or "RESOURCE_EXHAUSTED" in line:  # NumPy's, and JAX's of devices and compilers
        told = line.partition("\n")[0] or type(err).__name__  # XLA adds pages of what is in its memory
        line = (
            f"there is not enough memory ({told}): choose a smaller model or a machine with more memory; for train, a "
            "smaller --batch-size too."
        )
    elif line.startswith("Unable to initialize backend"):  # JAX's, of JAX_PLATFORMS
        line = f"JAX cannot use the device that was asked for: {line}"
    elif not isinstance(err, mistakes):
        if _is_debugging():
            traceback.print_exception(err)
            return 1
        code = 1
        told = f"{type(err).__name__}: {line}" if line else type(err).__name__
        line = f"this is a bug in flaxsent: {told}; run again with FLAXSENT_DEBUG=1 and report it"
    with contextlib.suppress(OSError):  # standard error is on a full disk
        print(f"flaxsent: error: {' '.join(line.split())}", file=sys.stderr)
    return code


def _keep_compiled() -> None:
    """Switches JAX's compilation cache on, unless it is on: what was compiled once is read at the next start.

    It lies in `FLAXSENT_CACHE` (empty: no cache) or in the user's cache folder; where that cannot be written, nowhere.
    It takes a gigabyte (or `JAX_COMPILATION_CACHE_MAX_SIZE` bytes); what was used least recently goes first.
    """
    place = os.environ.get("FLAXSENT_CACHE")
    if place is None:
        place = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "flaxsent", "jax")
    if not place or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = Path(place).expanduser()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Entries without a time of use are torn, or older than the limit: JAX 0.10 would not evict past them.
        for entry in folder.glob("*-cache"):
            if not entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists():
                entry.unlink(missing_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if getattr(jax.config, "jax_compilation_cache_max_size", None) == -1:
        jax.config.update("jax_compilation_cache_max_size", 1 << 30)
    # An entry that cannot be read is compiled again, and one that cannot be written is done without.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")


def _use_cores() -> None:
    """Makes a device of each core, unless it is set otherwise: the engine then gives each its own rows to compute."""
    import jax

    from flaxsent.placement import num_cores

    is_set = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not is_set and getattr(jax.config, "jax_num_cpu_devices", 1) < 0:
        jax.config.update("jax_num_cpu_devices", num_cores())


def _keep_memory() -> None:
    """Makes glibc keep what a step of training frees for the next one, where it is the C library.

    Else it gives large blocks back, and the kernel clears their pages anew: an epoch takes a fifth longer.
    """
    import ctypes

    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for setting, value in _KEPT.items():
            mallopt(setting, value)


_KEPT = {-8: 1, -4: 0, -1: 2**31 - 1, -2: 2**28}
"""malloc.h: M_ARENA_MAX, as only the first arena is not made of blocks that go back, M_MMAP_MAX, M_TRIM_THRESHOLD and
M_TOP_PAD."""


def _look_for_no_chips() -> None:
    """Tells libtpu, which compiles for chips that are elsewhere, not to look for any here; JAX uses the CPU.

    What is compiled for them is not kept: JAX cannot read it again without a chip.
    """
    import jax

    from flaxsent.bench.chips import ENVIRONMENT

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, and not the usage too, which has a dozen."""
        self.exit(2, f"flaxsent: error: {message}; see {self.prog} --help\n")


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Knows the options of the command that is among the arguments, and the names of the others."""
    parser = _Parser(prog="flaxsent", description="Text classification in JAX as pure functions.")
    parser.set_defaults(keeps_compiled=False, uses_cores=False, keeps_memory=False, plans_for_others=False)
    parser.add_argument("--version", action="version", version=f"flaxsent {flaxsent.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    wanted = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, help_line in COMMANDS.items():
        if name == wanted:
            importlib.import_module(f"flaxsent.cli.{name}").add(commands)
        else:
            commands.add_parser(name, help=help_line)
    return parser
