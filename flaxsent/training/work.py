"""The folders of a run: its output, and beside it the hidden folder of its work, which lasts until the output is there.

The work holds the facts of the run, the log and the checkpoints. Nothing that flaxsent did not write is ever removed.
"""

import dataclasses
import io
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxsent.base import FlaxsentError
from flaxsent.checkpoint.card import CARD
from flaxsent.checkpoint.folder import OWN_FILES
from flaxsent.files import TEMPORARY, replacing, write
from flaxsent.training import distributed
from flaxsent.training.options import RunOptions

LOG, CURVES, FACTS = "log.jsonl", "curves.png", "training.json"
SWEEP, SWEEP_CURVES = "sweep.json", "sweep.csv"
"""Files that stand beside the checkpoint's own in the output."""
FOLDS, OUT_OF_FOLD = "folds.json", "out-of-fold.jsonl"
"""Those of a cross-validation."""
OUTPUT_NAMES = (*OWN_FILES, CARD, LOG, CURVES, FACTS, SWEEP, SWEEP_CURVES, FOLDS, OUT_OF_FOLD)
TEACHER_SCORES, CHECKPOINTS, VALIDATION = "teacher.npy", "checkpoints", "folds"
WORK_NAMES = (FACTS, LOG, TEACHER_SCORES, CHECKPOINTS, VALIDATION)

Facts = dict[str, Any]
"""All that the parameters depend on, as it stands in training.json."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Where a run writes."""

    output: Path
    """Absolute: no link and no `..` in it, so that it stays true while the folder is replaced."""
    overwrites: bool

    @property
    def folder(self) -> Path:
        return self.output.with_name(f".{self.output.name}.training")

    @property
    def begun(self) -> Facts | None:
        """The facts of the run that was begun and is not complete."""
        return _read(self.folder / FACTS)

    @property
    def complete(self) -> Facts | None:
        """The facts of the run that wrote the output."""
        return _read(self.output / FACTS)

    @property
    def teacher(self) -> Float[np.ndarray, "N C"]:
        """The scores that the run began with."""
        return np.load(self.folder / TEACHER_SCORES)

    def begin(self, facts: Facts, teacher: Float[np.ndarray, "N C"] | None) -> None:
        """Makes the folder; the facts come last: with them, it is a run that can go on.

        Raises:
            OSError: it cannot be written.
        """
        if distributed.is_first() and self.begun is None:
            self.folder.mkdir(exist_ok=True)
            _remove(self.folder, WORK_NAMES)
            if teacher is not None:
                content = io.BytesIO()
                np.save(content, teacher)
                write(self.folder / TEACHER_SCORES, content.getvalue())
            write(self.folder / FACTS, _json(facts))
        distributed.wait("the facts were written")

    def finish(self, facts: Facts, write_into: Callable[[Path], None]) -> None:
        """Replaces the output by what `write_into` writes into a folder, then removes the work.

        Raises:
            FileExistsError: there is something in the way that was not there when the run began.
            OSError: it cannot be written; the work is kept.
        """
        if distributed.is_first():
            self.check_output()
            with replacing(self.output, owned=OUTPUT_NAMES) as unfinished:
                write_into(unfinished)
                write(unfinished / FACTS, _json(facts))
            self.clear()
        distributed.wait("the output was written")

    def clear(self) -> None:
        """Removes the work of a run that is complete."""
        if distributed.is_first() and self.folder.is_dir():
            _remove(self.folder, WORK_NAMES)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()

    def check_output(self) -> None:
        """Refuses to replace anything but what `flaxsent train` wrote, where that is asked for.

        Raises:
            FileExistsError: something is in the way; the message names it.
        """
        entries = [*self.output.iterdir()] if self.output.is_dir() else []
        if not entries or (self.complete is not None and self.complete == self.begun):
            return  # the second: killed between the last two things that it did
        if not self.overwrites:
            raise FileExistsError(f"{self.output} is there already; pass --overwrite to replace it.")
        if FACTS not in (entry.name for entry in entries):
            raise FileExistsError(
                f"--overwrite replaces only what flaxsent train wrote, and {self.output} has no {FACTS}; choose "
                "another one, or move it away."
            )
        strangers = _strangers(self.output, OUTPUT_NAMES)
        strangers += sorted(entry.name for entry in entries if entry.name in OUTPUT_NAMES and not entry.is_file())
        if strangers:
            raise FileExistsError(
                f"--overwrite replaces only what flaxsent train wrote, and {self.output} also has "
                f"{_listed(strangers)}; choose another one, or move that away."
            )


def plan(options: RunOptions) -> Work:
    """Where the run writes. Refuses what is in its way, and writes nothing.

    Raises:
        FileExistsError: the output is there, or the work of a run that is not complete.
        FileNotFoundError, PermissionError: there is no folder for the output, or it cannot be written in.
    """
    output = Path(os.path.realpath(options.output))
    work = Work(output, options.overwrite)
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{options.output} is a file; expected the name of a folder.")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output.parent} is no folder to write in; make it first.")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{output.parent} cannot be written in; choose another output.")
    if output.exists() and Path.cwd().is_relative_to(output):
        raise FileExistsError(f"{output} is the folder you are in, which cannot be replaced; choose another --output.")
    if work.begun is not None:
        if not options.resume:
            raise FileExistsError(
                f"{work.folder} holds a run that is not complete; pass --resume to go on with it, or delete it."
            )
    elif work.folder.exists() and (strangers := _strangers(work.folder, WORK_NAMES)):
        raise FileExistsError(f"{work.folder} is in the way: it has {_listed(strangers)}; move it away.")
    if not (options.resume and work.begun is None and work.complete is not None):
        work.check_output()
    return work


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What tells two runs apart, in words. Models and files may have other names if they hold the same.

    >>> difference({"train": {"name": "a.csv", "digest": "1"}}, {"train": {"name": "b.csv", "digest": "1"}})
    >>> difference({"options": {"seed": 0, "warmup": 0}}, {"options": {"seed": 1, "warmup": 0}})
    'its options were {"seed": 0}, and now are {"seed": 1}'
    """
    for name, value in now.items():
        if _without_name(then.get(name)) != _without_name(value):
            was, is_now = (json.dumps(one) for one in _differing(then.get(name), value))
            verbs = ("were", "are") if name.endswith("s") else ("was", "is")
            return f"its {name} {verbs[0]} {was}, and now {verbs[1]} {is_now}"
    return None


def _without_name(value: Any) -> Any:
    return {key: one for key, one in value.items() if key != "name"} if isinstance(value, dict) else value


def _differing(then: Any, now: Any) -> tuple[Any, Any]:
    """Two values; of two objects, what differs."""
    if not isinstance(then, dict) or not isinstance(now, dict):
        return then, now
    keys = [key for key in {**then, **now} if key == "name" or then.get(key) != now.get(key)]
    return {key: then.get(key) for key in keys}, {key: now.get(key) for key in keys}


def _read(file: Path) -> Facts | None:
    try:
        facts = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as err:
        raise FlaxsentError(f"{file} is not JSON: {err}; it is not as flaxsent train wrote it.") from err
    return facts if isinstance(facts, dict) else {}


def _json(facts: Facts) -> bytes:
    return f"{json.dumps(facts, indent=1)}\n".encode()


def _strangers(folder: Path, own: Collection[str]) -> list[str]:
    """What somebody else put into a folder."""
    names = {entry.name for entry in folder.iterdir()} - {*own}
    return sorted(name for name in names if not TEMPORARY.search(name))


def _remove(folder: Path, own: Collection[str]) -> None:
    """Removes what is flaxsent's own; the facts first, so that what is left is not taken for a run."""
    (folder / FACTS).unlink(missing_ok=True)
    for entry in folder.iterdir():
        if entry.name not in own and not TEMPORARY.search(entry.name):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 5 else [*names[:5], f"and {len(names) - 5} more"])
