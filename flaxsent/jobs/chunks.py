"""The records of a unit in chunks, and the columns that their scores become.

Where a chunk ends depends on the unit, the options and the manifest alone, so whoever goes on with a job cuts the same.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from flaxsent import files
from flaxsent.base import FlaxsentError
from flaxsent.data import records
from flaxsent.data.bad_rows import to_lines
from flaxsent.data.base import remedy
from flaxsent.data.records import STDIN, Record
from flaxsent.jobs.manifest import digest_rows
from flaxsent.jobs.parts import Parts
from flaxsent.jobs.plan import CHUNK_BYTES, CHUNK_ROWS, Piece
from flaxsent.jobs.progress import Progress
from flaxsent.transforms.embedded import Embedded
from flaxsent.transforms.ensemble import Uncertainty, columns


class Chunk(NamedTuple):
    """What becomes a part."""

    piece: Piece
    number: int
    """In its unit."""
    rows: list[Record]
    bad_rows: list[Record]
    num_bytes: int
    """Of the file."""
    digest: str | None
    """Of standard input up to its end."""
    is_end: bool = False
    """There are no rows, and none will come."""


def read_chunks(parts: Parts, piece: Piece, *, max_characters: int, progress: Progress) -> Iterator[Chunk]:
    """The chunks of a unit of which there are no parts, and its end.

    Raises:
        FlaxsentError: the input is not what it was when the job began.
    """
    job, file, writer = parts.job, parts.job.files[piece.file], parts.writer(piece.file)
    number = start = 0
    digest = digest_rows([]) if file.name == STDIN else None
    columns, reading = job.options.text_columns, job.options.reading
    with records.read(file.name, text_columns=columns, groups=job.unit(piece).groups, reading=reading) as source:
        for rows in _cut(source.records, max_characters):
            end = source.position()
            told = None if digest is None else digest_rows(rows, digest).hexdigest()
            if not parts.part(piece, number).exists():
                good, bad = [], []
                for row in rows:
                    error = writer.error(row) if row.error is None else row.error
                    good.append(row) if error is None else bad.append(row._replace(error=error))
                yield Chunk(piece, number, good, bad, end - start, told)
            elif told is None or parts.digest(piece, number).read_text() == told:
                progress.skip(end - start)
            else:
                raise _changed_error(parts, piece)
            number, start = number + 1, end
    if parts.part(piece, number).exists():
        raise _changed_error(parts, piece)
    yield Chunk(piece, number, [], [], 0, None, is_end=True)


def _changed_error(parts: Parts, piece: Piece) -> FlaxsentError:
    name = parts.job.files[piece.file].spoken
    return FlaxsentError(f"{name} has changed since the job began; delete {parts.job.folder} to start over.")


def _cut(rows: Iterable[Record], max_characters: int) -> Iterator[list[Record]]:
    chunk, num_characters, num_bytes = [], 0, 0
    for row in rows:
        chunk.append(row)
        num_characters += len(row.text) if isinstance(row.text, str) else sum(map(len, row.text))
        num_bytes += row.size
        if len(chunk) >= CHUNK_ROWS or num_characters >= max_characters or num_bytes >= CHUNK_BYTES:
            yield chunk
            chunk, num_characters, num_bytes = [], 0, 0
    if chunk:
        yield chunk


Results = Float[np.ndarray, "_ C"] | Embedded | Uncertainty
"""What the engine gives for the texts of a chunk: scores, with vectors or how certain they are if that is asked for."""


def write_chunk(parts: Parts, chunk: Chunk, results: Results, labels: Sequence[str]) -> None:
    """Writes the part of a chunk.

    Raises:
        FlaxsentError: there is a bad row, or one whose score is not a finite number, and no file to set it aside in.
        OSError: it cannot be written.
    """
    chunk, results = _without_bad_scores(chunk, results)
    job, file = parts.job, parts.job.files[chunk.piece.file]
    if chunk.bad_rows:
        if job.options.bad_rows is None:
            row = chunk.bad_rows[0]
            kept = "; --resume goes on from there" if parts.has_work() else ""
            raise FlaxsentError(
                f"{file.spoken} row {row.number} {row.error}{remedy(row)}; pass --bad-rows FILE to set such rows "
                f"aside{kept}."
            )
        files.write(parts.bad_rows(chunk.piece, chunk.number), to_lines(file.name, chunk.bad_rows))
    if chunk.digest is not None:
        files.write(parts.digest(chunk.piece, chunk.number), chunk.digest.encode())
    columns = _columns(results, labels, parts.added)
    if job.row_column is not None:
        columns[job.row_column] = [row.number for row in chunk.rows]
    content = parts.writer(chunk.piece.file).encode(chunk.rows, columns)
    files.write(parts.part(chunk.piece, chunk.number), content)


def _without_bad_scores(chunk: Chunk, results: Results) -> tuple[Chunk, Results]:
    """A chunk with the rows whose scores are not finite numbers among its bad ones, and the results of the others."""
    scores_BC = _scores(results)
    is_finite = [np.isfinite(scores_BC).all(axis=-1)]
    if isinstance(results, Embedded):
        is_finite.append(np.isfinite(results.embedding).all(axis=-1))
    good = np.flatnonzero(np.logical_and.reduce(is_finite)).tolist()
    if len(good) == len(chunk.rows):
        return chunk, results
    bad = [
        chunk.rows[index]._replace(error=_why_bad(scores_BC[index]))
        for index in sorted({*range(len(chunk.rows))} - {*good})
    ]
    bad = sorted([*chunk.bad_rows, *bad], key=lambda row: row.number)
    chunk = chunk._replace(rows=[chunk.rows[index] for index in good], bad_rows=bad)
    return chunk, jax.tree.map(lambda leaf: leaf[good], results)


def _why_bad(scores_C: Float[np.ndarray, " C"]) -> str:
    if np.isfinite(scores_C).all():
        return "has a vector of numbers that are not all finite"
    return f"has a score that is not a finite number: {scores_C.tolist()}"


def _columns(results: Results, labels: Sequence[str], added: Sequence[str]) -> dict[str, Any]:
    """The columns that are added: the best label, its score, what else is asked for, the score of each label."""
    scores_BC = _scores(results)
    measures = columns(results).values() if isinstance(results, Uncertainty) else ()
    vectors = [results.embedding] if isinstance(results, Embedded) else []
    best_B = scores_BC.argmax(axis=-1)
    best = [[labels[index] for index in best_B], scores_BC[np.arange(len(best_B)), best_B]]
    return dict(zip(added, [*best, *vectors, *measures, *scores_BC.T], strict=False))


def _scores(results: Results) -> Float[np.ndarray, "_ C"]:
    return np.asarray(results.scores if isinstance(results, Embedded | Uncertainty) else results)
