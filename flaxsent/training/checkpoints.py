"""Snapshots of a run on disk, by Orbax: the newest one is kept, and appears when it is whole."""

import contextlib
import errno
import gc
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from flaxsent.base import FlaxsentError
from flaxsent.files import quietly, require
from flaxsent.training.choosing import Evaluation
from flaxsent.training.trainer import Snapshot, Trainer


class Checkpoints:
    """The snapshots in a folder; a snapshot that was not written to its end is removed when the folder is opened."""

    def __init__(self, folder: Path, trainer: Trainer) -> None:
        self._ocp: Any = require("orbax.checkpoint", needed_by="flaxsent train", extra="train")
        self._folder, self._trainer = folder, trainer
        options = self._ocp.CheckpointManagerOptions(
            max_to_keep=1,
            cleanup_tmp_directories=True,
            # A step takes over the memory of the state before it: nothing may read that while the run goes on.
            enable_async_checkpointing=False,
        )
        self._manager = self._ocp.CheckpointManager(folder, options=options)

    def save(self, snapshot: Snapshot, step: int) -> None:
        """Writes a snapshot in the place of the one before it.

        Raises:
            OSError: it cannot be written; the one before it is still there.
        """
        leaves = _numbered(_without_key(snapshot))
        evaluations = [evaluation._asdict() for evaluation in snapshot.evaluations]
        arguments = self._ocp.args.Composite(
            arrays=self._ocp.args.StandardSave(leaves),
            evaluations=self._ocp.args.JsonSave({"evaluations": evaluations}),
        )
        size = sum(leaf.nbytes for leaf in leaves.values())
        # Looked at beforehand, a full disk is one error; Orbax makes one of each array, in threads of its own.
        is_full = shutil.disk_usage(self._folder).free < _ROOM * size + _MORE_ROOM
        number = errno.ENOSPC if is_full else self._write(step, arguments)
        if number is not None:
            told = f"{os.strerror(number)}: no checkpoint of step {step}; once it can be written, go on with --resume"
            raise OSError(number, told, str(self._folder))

    def _write(self, step: int, arguments: Any) -> int | None:
        """Writes what `save` was given; returns the system's number of the error, if there is one."""
        number, threads = None, {*threading.enumerate()}
        with _orbax_quiet():
            try:
                self._manager.save(step, args=arguments)
            except Exception as err:  # Orbax raises many kinds
                number = _error_number(err)
                if number is None:
                    raise
            if number is not None:
                for thread in {*threading.enumerate()} - threads:
                    if not thread.daemon:
                        thread.join(timeout=5)
                gc.collect()  # each array that was not written complains when it is collected
        return number

    def last(self) -> Snapshot | None:
        """Where the run stopped, if it was begun.

        Raises:
            FlaxsentError: the snapshot cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        start = self._trainer.start()
        like = _without_key(start)
        arguments = self._ocp.args.Composite(
            arrays=self._ocp.args.StandardRestore(_numbered(like)), evaluations=self._ocp.args.JsonRestore()
        )
        try:
            with _orbax_quiet():
                read: Any = self._manager.restore(step, args=arguments)
        except Exception as err:  # Orbax raises many kinds
            why = " ".join(str(err).split())[:200]
            raise FlaxsentError(
                f"{self._folder / str(step)} cannot be read: {why}; delete {self._folder.parent} to begin anew."
            ) from err
        leaves = [read.arrays[name] for name in _numbered(like)]
        snapshot: Snapshot = jax.tree.unflatten(jax.tree.structure(like), leaves)
        key = jax.random.wrap_key_data(snapshot.state.key, impl=jax.random.key_impl(start.state.key))
        evaluations = tuple(map(_evaluation, read.evaluations["evaluations"]))
        return Snapshot(snapshot.state._replace(key=key), snapshot.best, evaluations)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()


_ROOM, _MORE_ROOM = 1.1, 1 << 19
"""What a snapshot takes on a disk: its arrays and a tenth, and half a megabyte for files that say where they are."""


def _error_number(err: Exception) -> int | None:
    """The system's number of an error, which TensorStore puts into its text."""
    if isinstance(err, OSError):
        return err.errno
    found = re.search(r"os_error_code='(\d+)'", str(err))
    return int(found[1]) if found else None


@contextlib.contextmanager
def _orbax_quiet() -> Iterator[None]:
    """Leaves out what Orbax's threads say of an error, array by array, besides raising it."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook
    try:
        with quietly("absl"), quietly("asyncio"):
            yield
    finally:
        sys.unraisablehook = before


def _without_key(snapshot: Snapshot) -> Snapshot:
    """The arrays of a snapshot: keys are not arrays."""
    state = snapshot.state._replace(key=jax.random.key_data(snapshot.state.key))
    return Snapshot(state, snapshot.best)


def _evaluation(told: dict[str, Any]) -> Evaluation:
    """JSON makes a list of a tuple."""
    found = Evaluation(**told)
    return found._replace(thresholds=None if found.thresholds is None else tuple(found.thresholds))


def _numbered(snapshot: Snapshot) -> dict[str, Any]:
    return {f"{index:05d}": leaf for index, leaf in enumerate(jax.tree.leaves(snapshot))}
