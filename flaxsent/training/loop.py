"""The steps of a run from where it stopped, with a log and checkpoints in a folder: `trainer.py` → `run.py`."""

from collections.abc import Callable
from pathlib import Path

from flaxsent.training.checkpoints import Checkpoints
from flaxsent.training.log import Log
from flaxsent.training.options import RunOptions
from flaxsent.training.trainer import Snapshot, Trainer
from flaxsent.training.work import CHECKPOINTS, LOG


def make_steps(trainer: Trainer, folder: Path, options: RunOptions, *, report: Callable[[str], None]) -> Snapshot:
    """Makes those that are left.

    Raises:
        FlaxsentError: the last checkpoint cannot be read, or the loss is not finite any more.
        OSError: a checkpoint or the log cannot be written; what is done is kept.
    """
    with Checkpoints(folder / CHECKPOINTS, trainer) as checkpoints:
        snapshot = checkpoints.last() or trainer.start()
        done = int(snapshot.state.step)
        every = (options.log_every, options.checkpoint_every)
        with Log(folder / LOG, trainer, done=done, every=every, report=report) as log:
            for event in trainer.events(snapshot):
                snapshot = event.snapshot
                log.add(event)
                if event.step % options.checkpoint_every == 0 or event.is_epoch_end:
                    checkpoints.save(snapshot, event.step)
    return snapshot
