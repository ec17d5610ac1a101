"""Files in, files out: what `flaxsent classify --input ... --output ...` does, with nothing lost when it is killed.

`plan` finds the files and refuses what cannot work before a model is loaded; `run` does the job. A file is one unit of
work, or several, and a unit is read in chunks: both depend on the file and the model alone. The rows of a chunk, with
their scores, become a part in a hidden folder beside the output; when all parts of a file are there, they are joined
and appear under the output's name. A job that goes on skips the chunks of which there are parts. Nothing is ever
written in place: a file is complete or has another name.

Several processes at one job each take their share of the units. They know of each other by the names in the hidden
folder alone. Whoever finds all parts of a file joins them, and whoever finds all files removes the folder; should two
find so at once, both write the same bytes. No name means that somebody is at work, so the dead stand in no one's way.
"""

import contextlib
import dataclasses
import errno
import glob
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import secrets
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from flaxsent import tokenization
from flaxsent.base import FlaxsentError, Text
from flaxsent.classifier import Classifier
from flaxsent.data import records, writers
from flaxsent.data.records import STDIN, Group, Layout, Record
from flaxsent.data.writers import Writer
from flaxsent.engine import Engine, Stats
from flaxsent.jobs import shards as hosts
from flaxsent.jobs.shards import Place

_CHUNK_ROWS = 16384
"""Most rows in a chunk; it ends where its texts fill a window of the engine, too."""
CHUNK_BYTES = 1 << 26
"""Or where its rows take so much memory."""
_UNIT_BYTES = 1 << 23
"""Record groups of Parquet are put together until they fill a chunk, or have texts of so many bytes: a window on an
accelerator. Less would leave its steps empty, and more would be harder to share."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What the command line says besides the names of the files."""

    text_columns: tuple[str, ...] = ("text",)
    """One, or two for pairs."""
    all_scores: bool = False
    """A column for each label, beside `label` and `score`."""
    prefix: str = ""
    """Stands before the names of the columns that are added."""
    bad_rows: str | None = None
    """The file in which bad rows are set aside; without one, the first of them ends the job."""
    resume: bool = False
    overwrite: bool = False
    is_shared: bool = False
    """Among several processes: they need files, and a folder."""


class Unit(NamedTuple):
    """What one process reads from its beginning to its end."""

    groups: range | None
    """Record groups of Parquet; None for a whole file. Only a reader from the start knows where rows of the others end."""
    size: int
    """In bytes of the file; 0 where nobody knows."""
    work: int
    """In bytes of texts, roughly."""


class JobFile(NamedTuple):
    """A file of a job."""

    name: str
    """`STDIN` is standard input."""
    size: int | None
    layout: Layout
    output: Path
    units: tuple[Unit, ...]


@dataclasses.dataclass(frozen=True)
class Job:
    """What `plan` makes of the names of files."""

    files: tuple[JobFile, ...]
    folder: Path
    """Where the parts are, while there are any."""
    options: JobOptions
    row_column: str | None
    """Of the number of a row in its file, in the files of a folder: those who read them may mix their rows."""

    @property
    def size(self) -> int | None:
        """Of all the files, in bytes; None where nobody knows."""
        sizes = [file.size for file in self.files if file.size is not None]
        return sum(sizes) if len(sizes) == len(self.files) else None


def plan(inputs: Sequence[str], output: str, options: JobOptions) -> Job:
    """Finds the files of a job, none where all is done, and looks at what they hold; writes nothing.

    Args:
        inputs: files, folders of which all files with a known suffix are read, patterns (`*`, `**`), or only `-`.
        output: a file, or a folder for a file of the same name for each input.
        options: which columns, and what to do about what is there already.

    Raises:
        FileNotFoundError: there are no such files, or no folder for the output.
        FileExistsError: the output is there, or the work of a job that did not end.
        PermissionError: the output cannot be written.
        ImportError: Parquet, and pyarrow is not installed; the message has the command.
        FlaxsentError: the files have not the columns, or their names do not go together.
    """
    names = _find(inputs)
    if options.is_shared and names == [STDIN]:
        raise FlaxsentError("--input - is one stream, which several processes cannot share; give files.")
    many = "processes" if options.is_shared else "inputs" if len(names) > 1 or Path(inputs[0]).is_dir() else None
    folder, outputs = _outputs(names, output, many=many)
    made = [*outputs]
    if options.bad_rows is not None:
        made.append(Path(options.bad_rows))
        _check_writable(made[-1].absolute().parent)
    _check_names(names, made)
    if _is_begun(folder):
        if not options.resume:
            raise FileExistsError(
                f"{folder} holds the work of a job that did not end; pass --resume to go on with it, or delete it."
            )
    elif not options.overwrite and (there := [file for file in made if file.exists()]):
        if options.resume and len(there) == len(made):
            _remove(folder, options)  # the job may have been killed when this was all that it had to do
            return Job((), folder, options, None)
        raise FileExistsError(f"{there[0]} is there already; pass --overwrite to replace it.")
    files = tuple(_look(name, output, options) for name, output in zip(names, outputs, strict=True))
    row_column = f"{options.prefix}row" if folder.name == _PARTS else None
    job = Job(files, folder, options, row_column)
    _check_added(job, _added_names(options, labels=()))
    return job


def run(
    job: Job,
    engine: Engine,
    *,
    model: str | None = None,
    progress: "Progress | None" = None,
    meet: Callable[[str], Place] | None = None,
) -> int | None:
    """Does a job, or the rest of it, or a share of that, and tells how many bad rows have been set aside.

    Args:
        job: what `plan` gave.
        engine: what scores the texts.
        model: the name of the engine's, by which another job is told from this one.
        progress: moves along.
        meet: among several processes, waits for them all and tells the place of this one; what it is called with must
            be the same for all. Nothing is written before.

    Returns:
        None where the other processes have not finished their shares: the last of them completes the output.

    Raises:
        OSError: a file cannot be written, or the disk is full; what is done is kept.
        FlaxsentError: a bad row; what is done is kept. Or the job that is to go on is another one.
    """
    if not job.files:
        return 0
    added = _added_names(job.options, engine.classifier.config.labels)
    _check_added(job, added)
    facts = _facts(job, engine.classifier, model, engine.characters_per_window)
    is_begun = _is_begun(job.folder)
    if is_begun:
        _check_facts(job.folder, facts)
    else:
        _remove(job.folder, job.options)
    content = json.dumps(facts, indent=1).encode()
    place = Place() if meet is None else meet(hashlib.blake2b(content, digest_size=16).hexdigest())
    share = _share(job, place)
    todo = [piece for piece in share if not _is_ended(job, piece)]
    try:
        if todo:  # else the job may be over, and must not begin anew
            job.folder.mkdir(parents=True, exist_ok=True)
            _write(job.folder / _FACTS, content)
        with Progress(job, is_silent=True) if progress is None else contextlib.nullcontext(progress) as bar:
            bar.take(_sizes(job, share), _sizes(job, set(share) - set(todo)))
            for piece in share if is_begun else ():
                if piece.unit == 0:  # all the others of the file may be done, too
                    _join(job, piece.file, added)
            _classify(job, todo, engine, added, bar)
        return _finish(job) if todo or is_begun else None
    except BaseException:
        if place.num_processes == 1 and not _is_begun(job.folder):
            _remove(job.folder, job.options)
        raise


class Progress:
    """A bar on standard error, where that is a terminal: speed, share of real tokens, time left; and the sums of it."""

    def __init__(self, job: Job, *, is_silent: bool = False) -> None:
        self.num_texts = self.num_tokens = self.num_places = self.num_truncated = 0
        bar = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self._bar = tqdm(
            total=job.size,
            disable=True if is_silent else None,
            file=sys.stderr,
            bar_format="{elapsed}{postfix}" if job.size is None else bar,
            dynamic_ncols=True,
            miniters=1,
            smoothing=0,
        )

    def add(self, stats: Stats) -> None:
        """A window of texts has been scored."""
        self.num_texts += stats.num_texts
        self.num_tokens += stats.num_tokens
        self.num_places += stats.num_places
        self.num_truncated += stats.num_truncated
        seconds = max(self._bar.format_dict["elapsed"], 1e-3)
        self._bar.set_postfix_str(
            f"{self.num_texts / seconds:,.0f} texts/s, {self.num_tokens / seconds:,.0f} tokens/s, "
            f"{self.num_tokens / max(self.num_places, 1):.0%} real tokens",
            refresh=False,
        )

    def take(self, num_bytes: int, num_done: int) -> None:
        """So much of the input is this process's share, and so much of that was done before."""
        if self._bar.total is not None:
            self._bar.total = num_bytes
        self.skip(num_done)

    def move(self, num_bytes: int) -> None:
        """So much of the input is done."""
        self._bar.update(num_bytes)

    def skip(self, num_bytes: int) -> None:
        """So much of the input was done before, and says nothing of the time that is left."""
        if not self._bar.disable:
            self._bar.initial += num_bytes
            self._bar.n += num_bytes
            self._bar.refresh()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


_PARTS = ".flaxsent.parts"
_FACTS = "job.json"
"""Written first, removed first: without it, there is no job."""
_WORK = re.compile(r"\d{6,}(\.done|-\d{6,}(\.end|-\d{6,}\.(csv|tsv|jsonl|txt|parquet|bad)))")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp$")
_SUFFIXES = {form: suffix for suffix, form in records.FORMATS.items()}


class _Piece(NamedTuple):
    """Which unit of which file."""

    file: int
    unit: int


def _done(job: Job, index: int) -> Path:
    """The empty file that says that the output of a file is in its place."""
    return job.folder / f"{index:06d}.done"


def _end(job: Job, piece: _Piece) -> Path:
    """The file that says how many parts a unit has, when all are there; it goes when they do."""
    return job.folder / f"{piece.file:06d}-{piece.unit:06d}.end"


def _part(job: Job, piece: _Piece, number: int, suffix: str | None = None) -> Path:
    suffix = suffix or _SUFFIXES[records.format_of(job.files[piece.file].output)]
    return job.folder / f"{piece.file:06d}-{piece.unit:06d}-{number:06d}{suffix}"


def _is_ended(job: Job, piece: _Piece) -> bool:
    # The one name appears before the other is removed.
    return _end(job, piece).exists() or _done(job, piece.file).exists()


def _is_over(job: Job) -> bool:
    """Whether a job that was begun has come to its end, by another process."""
    return not (job.folder / _FACTS).exists()


def _is_begun(folder: Path) -> bool:
    """Whether a job has left something in it to go on with."""
    return (folder / _FACTS).exists() and any(map(_WORK.fullmatch, _names(folder)))


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(folder)
    return []


def _remove(folder: Path, options: JobOptions) -> None:
    """Removes the folder of the parts, unless it holds something of another's; others may be doing the same."""
    (folder / _FACTS).unlink(missing_ok=True)
    if options.bad_rows is not None:  # which are joined beside their output, on a disk that may be another
        output = Path(options.bad_rows).absolute()
        for name in _names(output.parent):
            if name.startswith(f".{output.name}.") and _TEMPORARY.fullmatch(name, len(output.name) + 1):
                output.with_name(name).unlink(missing_ok=True)
    for name in _names(folder):
        if _WORK.fullmatch(name) or _TEMPORARY.search(name):
            (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _share(job: Job, place: Place) -> list[_Piece]:
    """The pieces that fall to a process, in the order of the files."""
    pieces = [_Piece(index, unit) for index, file in enumerate(job.files) for unit in range(len(file.units))]
    process_of = hosts.assign([job.files[index].units[unit].work for index, unit in pieces], place.num_processes)
    return [piece for piece, process in zip(pieces, process_of, strict=True) if process == place.process_id]


def _sizes(job: Job, pieces: Iterable[_Piece]) -> int:
    return sum(job.files[index].units[unit].size for index, unit in pieces)


def _find(inputs: Sequence[str]) -> list[str]:
    if STDIN in inputs:
        if len(inputs) > 1:
            raise FlaxsentError("--input - is standard input, which cannot be read along with files.")
        return [STDIN]
    found: list[str] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files = [str(file) for file in sorted(path.iterdir()) if _is_readable(file)]
        elif path.is_file():
            files = [name]
        else:
            files = [file for file in sorted(glob.glob(name, recursive=True)) if Path(file).is_file()]
        if not files:
            raise FileNotFoundError(
                f"--input {name}: no such file, folder of {', '.join(records.FORMATS)} files, or pattern of names."
            )
        found += files
    for file in found:
        records.format_of(file)
    return found


def _is_readable(file: Path) -> bool:
    return file.is_file() and not file.name.startswith(".") and file.suffix.lower() in records.FORMATS


def _outputs(names: Sequence[str], output: str, *, many: str | None) -> tuple[Path, list[Path]]:
    """The folder of the parts, on the same disk so that renaming is all, and the output of each file."""
    path = Path(output)
    if path.is_dir() or not path.suffix:
        if names == [STDIN]:
            raise FlaxsentError(f"--output {output} is a folder; standard input needs a file.")
        _check_writable(path if path.exists() else path.absolute().parent)
        return path / _PARTS, [path / Path(name).name for name in names]
    records.format_of(output)
    if many is not None:
        raise FlaxsentError(f"--output {output} is a file; several {many} need a folder.")
    _check_writable(path.absolute().parent)
    return path.with_name(f".{path.name}.parts"), [path]


def _check_writable(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder to write in; make it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} is a folder that cannot be written in; choose another.")


def _check_names(names: Sequence[str], made: Sequence[Path]) -> None:
    inputs = {Path(name).resolve() for name in names}
    seen: set[Path] = set()
    for file in made:
        path = file.resolve()
        if path in inputs:
            raise FlaxsentError(f"{file} is an input, and would be written to; choose another output.")
        if path in seen:
            raise FlaxsentError(f"{file} would be written twice; choose inputs with different names.")
        if path.is_dir():
            raise FlaxsentError(f"{file} is a folder; expected the name of a file.")
        seen.add(path)


def _look(name: str, output: Path, options: JobOptions) -> JobFile:
    with records.read(name, text_columns=options.text_columns) as source:
        layout, groups = source.layout, source.groups
    writers.open_writer(records.format_of(output), layout, ())  # to hear at once that pyarrow is missing
    size = None if name == STDIN else Path(name).stat().st_size
    units = (Unit(None, size or 0, size or 0),) if groups is None else _units(groups, size or 0)
    return JobFile(name, size, layout, output, units)


def _units(groups: Sequence[Group], size: int) -> tuple[Unit, ...]:
    """What a Parquet file of a size is read in: row groups that follow each other, one or as many as fill a chunk.

    >>> _units([Group(9000, 99)] * 3, 54)
    (Unit(groups=range(0, 2), size=36, work=198), Unit(groups=range(2, 3), size=18, work=99))
    """
    all_rows = max(sum(group.num_rows for group in groups), 1)
    units, start, num_rows, work = [], 0, 0, 0
    for end, group in enumerate(groups, start=1):
        num_rows, work = num_rows + group.num_rows, work + group.num_bytes
        if num_rows >= _CHUNK_ROWS or work >= _UNIT_BYTES or end == len(groups):
            units.append(Unit(range(start, end), size * num_rows // all_rows, work))
            start, num_rows, work = end, 0, 0
    return tuple(units) or (Unit(range(0), size, 0),)


def _added_names(options: JobOptions, labels: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{options.prefix}{name}" for name in ("label", "score", *(labels if options.all_scores else ())))


def _check_added(job: Job, added: Sequence[str]) -> None:
    added = added if job.row_column is None else (*added, job.row_column)
    if len(set(added)) < len(added):
        raise FlaxsentError(
            f"the columns {', '.join(added)} would be added; expected different names: leave out --all-scores."
        )
    for file in job.files:
        if taken := [name for name in added if name in file.layout.columns]:
            raise FlaxsentError(
                f"{file.name} has a column {taken[0]!r} already; pass --prefix TEXT to put it before the names of the "
                "columns that are added."
            )


def _facts(job: Job, classifier: Classifier, model: str | None, characters: int) -> dict[str, Any]:
    """All that the bytes of the outputs depend on."""
    options = job.options
    devices = jax.local_devices()
    facts = {
        "inputs": [
            [file.name if file.name == STDIN else str(Path(file.name).resolve()), file.size] for file in job.files
        ],
        "outputs": [str(file.output.resolve()) for file in job.files],
        "bad_rows": options.bad_rows and str(Path(options.bad_rows).resolve()),
        "text_columns": options.text_columns,
        "all_scores": options.all_scores,
        "prefix": options.prefix,
        "model": model,
        "weights": _fingerprint(classifier),
        "backend": classifier.backend,
        "devices": f"{len(devices)} × {devices[0].device_kind}",
        "chunk": [_CHUNK_ROWS, characters, CHUNK_BYTES, _UNIT_BYTES],
        "versions": {name: importlib.metadata.version(name) for name in ("flaxsent", "jax", "jaxlib", "tokenizers")},
    }
    return json.loads(json.dumps(facts))


def _fingerprint(classifier: Classifier) -> str:
    digest = hashlib.blake2b(repr(classifier.config).encode(), digest_size=16)
    for content in classifier.tokenizer.files.values():
        digest.update(content)
    for leaf in jax.tree.leaves(classifier.params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _check_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Raises ValueError if the work in the folder is another job's; bad rows may begin to be set aside."""
    then = json.loads((folder / _FACTS).read_bytes())
    for name, now in facts.items():
        before = then.get(name)
        if before != now and not (name == "bad_rows" and before is None):
            raise FlaxsentError(
                f"--resume would go on with another job, whose {name} were {json.dumps(before)}, and not "
                f"{json.dumps(now)}; delete {folder} to begin anew."
            )


class _Chunk(NamedTuple):
    piece: _Piece
    number: int
    """In its unit."""
    rows: list[Record]
    bad_rows: list[Record]
    num_bytes: int
    """Of the file."""
    is_end: bool = False
    """There are no rows, and none will come."""


def _classify(job: Job, pieces: Sequence[_Piece], engine: Engine, added: Sequence[str], progress: Progress) -> None:
    """One stream of all the chunks: the devices do not wait where a unit ends."""
    waiting: deque[_Chunk] = deque()
    refused: list[_Chunk] = []

    def texts() -> Iterator[list[Text]]:
        for piece in pieces:
            for chunk in _chunks(job, piece, _writer(job, piece.file, added), engine, progress):
                if chunk.bad_rows and job.options.bad_rows is None:
                    return refused.append(chunk)  # once the chunks before it are written
                waiting.append(chunk)
                yield [row.text for row in chunk.rows]

    with _without_warnings(tokenization.logger), contextlib.closing(engine.batches(texts())) as batches:
        for scores_BC in batches:
            chunk = waiting.popleft()
            piece, name = chunk.piece, job.files[chunk.piece.file].name
            if chunk.is_end:
                _write(_end(job, piece), b"%d" % chunk.number)
                _join(job, piece.file, added)
                continue
            if chunk.bad_rows:
                _write(_part(job, piece, chunk.number, ".bad"), _bad_lines(name, chunk.bad_rows))
            columns = _columns(scores_BC, engine.classifier.config.labels, added)
            if job.row_column is not None:
                columns[job.row_column] = [row.number for row in chunk.rows]
            _write(_part(job, piece, chunk.number), _writer(job, piece.file, added).encode(chunk.rows, columns))
            progress.move(chunk.num_bytes)
    if refused:
        name, row = job.files[refused[0].piece.file].name, refused[0].bad_rows[0]
        kept = "; --resume goes on from there" if _is_begun(job.folder) else ""
        raise FlaxsentError(
            f"{_spoken(name)} row {row.number} {row.error}; pass --bad-rows FILE to set such rows aside{kept}."
        )


def _writer(job: Job, index: int, added: Sequence[str]) -> Writer:
    file = job.files[index]
    return writers.open_writer(records.format_of(file.output), file.layout, added, row_column=job.row_column)


def _chunks(job: Job, piece: _Piece, writer: Writer, engine: Engine, progress: Progress) -> Iterator[_Chunk]:
    """The chunks of a unit of which there are no parts, and its end."""
    file = job.files[piece.file]
    number = start = 0
    groups = file.units[piece.unit].groups
    with records.read(file.name, text_columns=job.options.text_columns, groups=groups) as source:
        for rows in _cut(source.records, engine.characters_per_window):
            end = source.position()
            if _part(job, piece, number).exists():
                progress.skip(end - start)
            else:
                good, bad = [], []
                for row in rows:
                    error = writer.error(row) if row.error is None else row.error
                    good.append(row) if error is None else bad.append(row._replace(error=error))
                yield _Chunk(piece, number, good, bad, end - start)
            number, start = number + 1, end
    if _part(job, piece, number).exists():
        raise FlaxsentError(f"--resume: {_spoken(file.name)} ends before what was read of it; delete {job.folder}.")
    yield _Chunk(piece, number, [], [], 0, is_end=True)


def _join(job: Job, index: int, added: Sequence[str]) -> None:
    """Puts the output of a file in its place, if all its parts are there."""
    file, done = job.files[index], _done(job, index)
    pieces = [_Piece(index, unit) for unit in range(len(file.units))]
    if done.exists():
        return
    try:
        # From the last: it is the last to be done, and says soonest that one is missing.
        counts = [int(_end(job, piece).read_bytes()) for piece in reversed(pieces)]
    except FileNotFoundError:
        return
    parts = [
        _part(job, piece, number)
        for piece, count in zip(pieces, reversed(counts), strict=True)
        for number in range(count)
    ]
    try:
        with _appearing(file.output, job.folder) as stream:
            _writer(job, index, added).join(parts, stream)
        _write(done, b"")
    except FileNotFoundError:
        if not done.exists() and not _is_over(job):
            raise
    for made in (*parts, *(_end(job, piece) for piece in pieces)):
        made.unlink(missing_ok=True)


def _finish(job: Job) -> int | None:
    """Ends the job, if all its files are in their places, and tells how many bad rows there are."""
    names, num_bad = {*_names(job.folder)}, 0
    if all(_done(job, index).name in names for index in range(len(job.files))):
        if job.options.bad_rows is not None:
            num_bad = _join_bad_rows(job, Path(job.options.bad_rows))
    elif not _is_over(job):
        return None
    else:
        num_bad = None
    _remove(job.folder, job.options)
    return num_bad


def _cut(rows: Iterator[Record], max_characters: int) -> Iterator[list[Record]]:
    chunk, num_characters, num_bytes = [], 0, 0
    for row in rows:
        chunk.append(row)
        num_characters += len(row.text) if isinstance(row.text, str) else sum(map(len, row.text))
        num_bytes += row.size
        if len(chunk) >= _CHUNK_ROWS or num_characters >= max_characters or num_bytes >= CHUNK_BYTES:
            yield chunk
            chunk, num_characters, num_bytes = [], 0, 0
    if chunk:
        yield chunk


def _columns(scores_BC: Float[np.ndarray, "B C"], labels: Sequence[str], added: Sequence[str]) -> dict[str, Any]:
    """The columns that are added: the best label, its score, and the score of each label if they are asked for."""
    best_B = scores_BC.argmax(axis=-1)
    columns = [[labels[index] for index in best_B], scores_BC[np.arange(len(best_B)), best_B], *scores_BC.T]
    return dict(zip(added, columns, strict=False))


def _bad_lines(name: str, rows: Sequence[Record]) -> bytes:
    r"""Bytes that are not UTF-8 are written as `\xff`."""
    lines = []
    for row in rows:
        line = {"file": name, "row": row.number, "reason": row.error}
        if row.raw:
            line["raw"] = row.raw.encode(errors="surrogateescape").decode(errors="backslashreplace")
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def _join_bad_rows(job: Job, output: Path) -> int | None:
    """Puts the bad rows in their place, and tells how many there are; None if another process has."""
    names = [name for name in _names(job.folder) if name.endswith(".bad")]
    num_rows = 0
    try:
        with _appearing(output, output.absolute().parent, f".{output.name}") as stream:
            for name in sorted(names, key=lambda name: [int(number) for number in Path(name).stem.split("-")]):
                content = (job.folder / name).read_bytes()
                stream.write(content)
                num_rows += content.count(b"\n")
            if _is_over(job):  # and some of them may be gone already
                raise FileNotFoundError(errno.ENOENT, "another process ended the job", str(job.folder))
    except FileNotFoundError:
        if not _is_over(job):
            raise
        return None
    return num_rows


def _spoken(name: str) -> str:
    return "standard input" if name == STDIN else name


def _write(file: Path, content: bytes) -> None:
    with _appearing(file, file.parent) as stream:
        stream.write(content)


@contextlib.contextmanager
def _appearing(file: Path, folder: Path, name: str | None = None) -> Iterator[BinaryIO]:
    """A stream in a folder of the same disk; its content appears as `file` when it is whole, and on the disk."""
    # Two processes at the same job write the same bytes, but must not into the same temporary file.
    temporary = folder / f"{name or file.name}.{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
        _sync(file.absolute().parent)
    except OSError as err:
        raise OSError(err.errno, err.strerror or str(err), str(file)) from err
    finally:
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Names of files, too, are on the disk only when they are told to be."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _without_warnings(logger: logging.Logger) -> Iterator[None]:
    """`Progress` has the sum of what would be said of each chunk."""

    def says_nothing(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(says_nothing)
    try:
        yield
    finally:
        logger.removeFilter(says_nothing)
