"""Files in, files out: what `flaxsent classify --input ... --output ...` does, with nothing lost when it is killed.

`plan` finds the files and refuses what cannot work before a model is loaded; `run` does the job. A file is one unit of
work, or several, and a unit is read in chunks (`chunks.py`), each of which becomes a part (`parts.py`). A job that goes
on skips the chunks of which there are parts.

Several processes at one job each take their share of the units (`shards.py`). They know of each other only by the files
in the folder of the parts. No file says that a process is at work, so a crashed process blocks nobody: whoever goes on
with the job does its share.
"""

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flaxsent import files
from flaxsent.base import Text
from flaxsent.engine import Engine
from flaxsent.jobs import chunks
from flaxsent.jobs import manifest as manifests
from flaxsent.jobs.chunks import Chunk
from flaxsent.jobs.parts import Parts
from flaxsent.jobs.plan import Job, Piece
from flaxsent.jobs.progress import Progress
from flaxsent.jobs.shards import Shard, assign


class Outcome(NamedTuple):
    """What has become of a job."""

    is_complete: bool
    """If not, other processes have not finished their shares; the last of them completes the outputs."""
    num_bad_rows: int = 0
    """That have been set aside."""
    was_finished: bool = False
    """The outputs were there before."""


def run(job: Job, engine: Engine, *, progress: Progress | None = None) -> Outcome:
    """Does a job, or the rest of it, or this process's share of that.

    Args:
        job: what `plan` gave.
        engine: what scores the texts; its function gives scores, `Embedded` or `Uncertainty`, as the options say.
        progress: moves along.

    Raises:
        FileExistsError: the job has begun, or an output exists, and the options do not say to go on or to replace it.
        OSError: a file cannot be written, or the disk is full; what is done is kept.
        FlaxsentError: a bad row, or a score that is not a finite number; what is done is kept. Or another job has begun
            or finished the outputs.
    """
    config = engine.classifier.config
    added, kinds = job.added_names(config.labels), job.added_kinds(config)
    share = _share(job)
    if not share:
        return Outcome(is_complete=False)
    facts = manifests.gather_facts(job, engine.classifier)
    begun = manifests.begin(job, facts, chunk_characters=engine.characters_per_window)
    if begun is None:
        Parts(
            job, manifests.finished_run(job) or "", added
        ).remove()  # the job may have been killed when only this was left
        return Outcome(is_complete=True, was_finished=True)
    manifest, is_new = begun
    parts = Parts(job, manifest.run, added, kinds=kinds, replaces=manifest.replaces or job.options.overwrite)
    try:
        if is_new:
            parts.clear()
        todo = parts.todo(share)
        with Progress(job, is_silent=True) if progress is None else contextlib.nullcontext(progress) as bar:
            bar.take(_size(job, share), _size(job, set(share) - set(todo)))
            for piece in share:
                if piece.unit == 0:  # all the others of the file may be done, too
                    parts.join(piece.file)
            _score(parts, todo, engine, manifest.chunk_characters, bar)
        num_bad = parts.finish()
    except BaseException as err:
        if isinstance(err, FileNotFoundError) and not manifests.is_current(job, manifest.run):
            parts.check_over()
            return Outcome(is_complete=False)
        if is_new and (job.options.shard or Shard()).count == 1 and not parts.has_work():
            parts.remove()
        raise
    return Outcome(is_complete=num_bad is not None, num_bad_rows=num_bad or 0)


def _share(job: Job) -> list[Piece]:
    """The pieces that fall to this process, in the order of the files."""
    shard = job.options.shard or Shard()
    shard_of = assign([job.unit(piece).work for piece in job.pieces], shard.count)
    return [piece for piece, index in zip(job.pieces, shard_of, strict=True) if index == shard.index]


def _size(job: Job, pieces: Sequence[Piece] | set[Piece]) -> int:
    return sum(job.unit(piece).size for piece in pieces)


def _score(parts: Parts, pieces: Sequence[Piece], engine: Engine, max_characters: int, progress: Progress) -> None:
    """One stream of all the chunks: the devices do not wait where a unit ends."""
    waiting: deque[Chunk] = deque()

    def texts() -> Iterator[list[Text]]:
        for piece in pieces:
            for chunk in chunks.read_chunks(parts, piece, max_characters=max_characters, progress=progress):
                if is_refused := bool(chunk.bad_rows) and parts.job.options.bad_rows is None:
                    chunk = chunk._replace(rows=[])
                waiting.append(chunk)
                yield [row.text for row in chunk.rows]
                if is_refused:  # when the chunks before it are written
                    return

    with contextlib.closing(engine.batches(texts())) as batches:
        for results in batches:
            chunk = waiting.popleft()
            if chunk.is_end:
                files.write(parts.end(chunk.piece), b"%d" % chunk.number)
                parts.join(chunk.piece.file)
            else:
                chunks.write_chunk(parts, chunk, results, engine.classifier.config)
                progress.move(chunk.num_bytes)
