"""The records of a unit in chunks, and the columns that their scores become.

Where a chunk ends depends on the unit, the options and the manifest alone, so whoever goes on with a job cuts the same.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from flaxsent import files
from flaxsent.base import FlaxsentError
from flaxsent.data import records
from flaxsent.data.bad_rows import to_lines
from flaxsent.data.base import remedy
from flaxsent.data.records import STDIN, Record
from flaxsent.jobs.manifest import digest_rows
from flaxsent.jobs.parts import Parts
from flaxsent.jobs.plan import CHUNK_BYTES, CHUNK_ROWS, JobOptions, Piece
from flaxsent.jobs.progress import Progress
from flaxsent.models.config import ModelConfig
from flaxsent.postprocessing import decode
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


def write_chunk(parts: Parts, chunk: Chunk, results: Results, config: ModelConfig) -> None:
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
    columns = columns_of(results, config, parts.added, job.options)
    if job.row_column is not None:
        columns[job.row_column] = [row.number for row in chunk.rows]
    content = parts.writer(chunk.piece.file).encode(chunk.rows, columns)
    files.write(parts.part(chunk.piece, chunk.number), content)


def _without_bad_scores(chunk: Chunk, results: Results) -> tuple[Chunk, Results]:
    """A chunk with the rows whose scores are not finite numbers among its bad ones, and the results of the others."""
    is_good_B = is_finite(results)
    if is_good_B.all():
        return chunk, results
    pairs = [*zip(chunk.rows, is_good_B.tolist(), strict=True)]
    bad = [row._replace(error=why_bad(results, index)) for index, (row, is_good) in enumerate(pairs) if not is_good]
    bad = sorted([*chunk.bad_rows, *bad], key=lambda row: row.number)
    chunk = chunk._replace(rows=[row for row, is_good in pairs if is_good], bad_rows=bad)
    return chunk, jax.tree.map(lambda leaf: leaf[is_good_B], results)


def is_finite(results: Results) -> Bool[np.ndarray, " B"]:
    """Of which texts all scores, and the vector if there is one, are finite numbers."""
    values = [_scores(results), *([results.embedding] if isinstance(results, Embedded) else [])]
    return np.logical_and.reduce([np.isfinite(one).all(axis=-1) for one in values])


def why_bad(results: Results, index: int) -> str:
    """What is not finite of a text."""
    scores_C = _scores(results)[index]
    if np.isfinite(scores_C).all():
        return "has a vector of numbers that are not all finite"
    return f"has a score that is not a finite number: {scores_C.tolist()}"


def columns_of(results: Results, config: ModelConfig, added: Sequence[str], options: JobOptions) -> dict[str, Any]:
    """The columns that are added: labels and their scores, what else is asked for, the score of each label."""
    scores_BC = _scores(results)
    measures = columns(results).values() if isinstance(results, Uncertainty) else ()
    vectors = [results.embedding] if isinstance(results, Embedded) else []
    named = answers(scores_BC, config, top_k=options.top_k, abstain_below=options.abstain_below)
    return dict(zip(added, [*named, *vectors, *measures, *scores_BC.T], strict=False))


def answers(
    scores_BC: Float[np.ndarray, "B C"],
    config: ModelConfig,
    *,
    top_k: int | None = None,
    abstain_below: float | None = None,
) -> list[Any]:
    """Columns of labels and scores by turns: of the best, the second best, … of `top_k`.

    Where a text may have several labels and `top_k` is None, they are lists: of those that it is given, best first. The
    best label is None where its score is below `abstain_below`.
    """
    if top_k is None and config.score_thresholds is not None:
        found = decode(scores_BC, labels=config.labels, thresholds=config.score_thresholds)
        # As few digits as tell apart in float32.
        scores = [np.array(one.scores, np.float32).astype(str).astype(np.float64).tolist() for one in found]
        return [[[*one.labels] for one in found], scores]
    order_BK = np.argsort(-scores_BC, axis=-1, kind="stable")[:, : top_k or 1]
    found = []
    for best_B in order_BK.T:
        found += [[config.labels[index] for index in best_B], scores_BC[np.arange(len(best_B)), best_B]]
    if abstain_below is not None:
        pairs = zip(found[0], found[1] < abstain_below, strict=True)
        found[0] = [None if abstains else label for label, abstains in pairs]
    return found


def _scores(results: Results) -> Float[np.ndarray, "_ C"]:
    return np.asarray(results.scores if isinstance(results, Embedded | Uncertainty) else results)
