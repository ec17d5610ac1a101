"""The command line: parse, call one function, print. A user's mistake is one line on standard error and exit code 2."""

import argparse
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.cli import bench, classify, evaluate, export, info, parity, scale, train
from flaxsent.files import MissingPackageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit code is 0, 1 for a parity that fails, 2 for a mistake of the user's, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    if arguments is None:  # else the process, and its settings, are another's
        if options.keeps_compiled:
            _keep_compiled()
        if options.uses_cores:
            _use_cores()
    code = 0
    try:
        code = options.run(options) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has gone: nobody is left to tell. Python's own flush at exit must not fail on it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (FlaxsentError, OSError, MissingPackageError) as err:
        print(f"flaxsent: error: {' '.join(str(err).split())}", file=sys.stderr)
        return 2
    return code


def _keep_compiled() -> None:
    """Switches JAX's compilation cache on, unless it is on: what was compiled once is read at the next start.

    It lies in `FLAXSENT_CACHE` (empty: no cache) or in the user's cache folder; where that cannot be written, nowhere.
    """
    folder = os.environ.get("FLAXSENT_CACHE")
    if folder is None:
        folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "flaxsent", "jax")
    folder = os.path.expanduser(folder)
    if not folder or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _use_cores() -> None:
    """Makes a device of each core, unless it is set otherwise: the engine then gives each its own rows to compute."""
    from flaxsent.engine import num_cores

    is_set = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not is_set and getattr(jax.config, "jax_num_cpu_devices", 1) < 0:
        jax.config.update("jax_num_cpu_devices", num_cores())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flaxsent", description="Text classification in JAX as pure functions.")
    parser.set_defaults(keeps_compiled=False, uses_cores=False)
    parser.add_argument("--version", action="version", version=f"flaxsent {flaxsent.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (classify, info, train, evaluate, export, parity, bench, scale):
        command.add(commands)
    return parser
