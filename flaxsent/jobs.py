"""Files in, files out: what `flaxsent classify --input ... --output ...` does, with nothing lost when it is killed.

`plan` finds the files and refuses what cannot work before a model is loaded; `run` does the job. A file is read in
chunks that depend on the file and the model alone. The rows of a chunk, with their scores, become a part in a hidden
folder beside the output; at the end the parts are joined there and appear under the output's name. A job that goes on
skips the chunks of which there are parts. Nothing is ever written in place: a file is complete or has another name.
"""

import contextlib
import dataclasses
import glob
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from flaxsent import records, tokenization
from flaxsent.classifier import AnyClassifier
from flaxsent.engine import Engine, Stats
from flaxsent.records import STDIN, Layout, Row, Writer
from flaxsent.types import Text

_CHUNK_ROWS = 16384
"""Most rows in a chunk; it ends where its texts fill a window of the engine, too."""
_CHUNK_BYTES = 1 << 26
"""Or where its rows take so much memory."""


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


class JobFile(NamedTuple):
    """A file of a job."""

    name: str
    """`STDIN` is standard input."""
    size: int | None
    layout: Layout
    output: Path


@dataclasses.dataclass(frozen=True)
class Job:
    """What `plan` makes of the names of files."""

    files: tuple[JobFile, ...]
    folder: Path
    """Where the parts are, while there are any."""
    options: JobOptions

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
        ValueError: the files have not the columns, or their names do not go together.
    """
    names = _find(inputs)
    folder, outputs = _outputs(names, output, is_many=len(names) > 1 or Path(inputs[0]).is_dir())
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
            _remove(folder)  # the job may have been killed when this was all that it had to do
            return Job((), folder, options)
        raise FileExistsError(f"{there[0]} is there already; pass --overwrite to replace it.")
    files = tuple(_look(name, output, options) for name, output in zip(names, outputs, strict=True))
    _check_added(files, _added_names(options, labels=()))
    return Job(files, folder, options)


def run(job: Job, engine: Engine, *, model: str | None = None, progress: "Progress | None" = None) -> int:
    """Does a job, or the rest of it, and tells how many bad rows it has set aside; `model` is the name of the engine's.

    Raises:
        OSError: a file cannot be written, or the disk is full; what is done is kept.
        ValueError: a bad row; what is done is kept. Or the job that is to go on is another one.
    """
    if not job.files:
        return 0
    added = _added_names(job.options, engine.classifier.config.labels)
    _check_added(job.files, added)
    facts = _facts(job, engine.classifier, model, engine.characters_per_window)
    if _is_begun(job.folder):
        _check_facts(job.folder, facts)
    else:
        _remove(job.folder)
        job.folder.mkdir(parents=True, exist_ok=True)
    try:
        _write(job.folder / _FACTS, json.dumps(facts, indent=1).encode())
        with Progress(job, is_silent=True) if progress is None else contextlib.nullcontext(progress) as bar:
            for index, file in enumerate(job.files):
                if (job.folder / _done(index)).exists():
                    bar.skip(file.size or 0)
                else:
                    _classify_file(job, index, engine, added, bar)
        num_bad = 0 if job.options.bad_rows is None else _join_bad_rows(job.folder, Path(job.options.bad_rows))
    except BaseException:
        if not _is_begun(job.folder):
            _remove(job.folder)
        raise
    _remove(job.folder)
    return num_bad


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


_FACTS = "job.json"
"""Written first, removed first: without it, there is no job."""
_WORK = re.compile(r"\d{6,}(\.done|-\d{6,}\.(csv|tsv|jsonl|txt|parquet|bad))")
_TEMPORARY = re.compile(r"\.\d+\.tmp$")
_SUFFIXES = {form: suffix for suffix, form in records.FORMATS.items()}


def _done(index: int) -> str:
    """The name of the empty file that says that the output of a file is in its place."""
    return f"{index:06d}.done"


def _part(job: Job, index: int, number: int, suffix: str | None = None) -> Path:
    suffix = suffix or _SUFFIXES[records.format_of(job.files[index].output)]
    return job.folder / f"{index:06d}-{number:06d}{suffix}"


def _is_begun(folder: Path) -> bool:
    """Whether a job has left something in it to go on with."""
    return (folder / _FACTS).exists() and any(_WORK.fullmatch(file.name) for file in folder.iterdir())


def _remove(folder: Path) -> None:
    """Removes the folder of the parts, unless it holds something of another's."""
    if not folder.is_dir():
        return
    (folder / _FACTS).unlink(missing_ok=True)
    for file in [*folder.iterdir()]:
        if _WORK.fullmatch(file.name) or _TEMPORARY.search(file.name):
            file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _find(inputs: Sequence[str]) -> list[str]:
    if STDIN in inputs:
        if len(inputs) > 1:
            raise ValueError("--input - is standard input, which cannot be read along with files.")
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


def _outputs(names: Sequence[str], output: str, *, is_many: bool) -> tuple[Path, list[Path]]:
    """The folder of the parts, on the same disk so that renaming is all, and the output of each file."""
    path = Path(output)
    if path.is_dir() or not path.suffix:
        if names == [STDIN]:
            raise ValueError(f"--output {output} is a folder; standard input needs a file.")
        _check_writable(path if path.exists() else path.absolute().parent)
        return path / ".flaxsent.parts", [path / Path(name).name for name in names]
    records.format_of(output)
    if is_many:
        raise ValueError(f"--output {output} is a file; several inputs need a folder.")
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
            raise ValueError(f"{file} is an input, and would be written to; choose another output.")
        if path in seen:
            raise ValueError(f"{file} would be written twice; choose inputs with different names.")
        if path.is_dir():
            raise ValueError(f"{file} is a folder; expected the name of a file.")
        seen.add(path)


def _look(name: str, output: Path, options: JobOptions) -> JobFile:
    with records.read(name, text_columns=options.text_columns) as source:
        layout = source.layout
    records.open_writer(records.format_of(output), layout, ())  # to hear at once that pyarrow is missing
    return JobFile(name, None if name == STDIN else Path(name).stat().st_size, layout, output)


def _added_names(options: JobOptions, labels: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{options.prefix}{name}" for name in ("label", "score", *(labels if options.all_scores else ())))


def _check_added(files: Sequence[JobFile], added: Sequence[str]) -> None:
    if len(set(added)) < len(added):
        raise ValueError(
            f"the columns {', '.join(added)} would be added; expected different names: leave out --all-scores."
        )
    for file in files:
        if taken := [name for name in added if name in file.layout.columns]:
            raise ValueError(
                f"{file.name} has a column {taken[0]!r} already; pass --prefix TEXT to put it before the names of the "
                "columns that are added."
            )


def _facts(job: Job, classifier: AnyClassifier, model: str | None, characters: int) -> dict[str, Any]:
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
        "chunk": [_CHUNK_ROWS, characters, _CHUNK_BYTES],
        "versions": {name: importlib.metadata.version(name) for name in ("flaxsent", "jax", "jaxlib", "tokenizers")},
    }
    return json.loads(json.dumps(facts))


def _fingerprint(classifier: AnyClassifier) -> str:
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
            raise ValueError(
                f"--resume would go on with another job, whose {name} were {json.dumps(before)}, and not "
                f"{json.dumps(now)}; delete {folder} to begin anew."
            )


class _Chunk(NamedTuple):
    rows: list[Row]
    bad_rows: list[Row]
    num_bytes: int
    """Of the file."""


def _classify_file(job: Job, index: int, engine: Engine, added: Sequence[str], progress: Progress) -> None:
    file, options = job.files[index], job.options
    writer = records.open_writer(records.format_of(file.output), file.layout, added)
    chunks = _chunks(file, writer, options.text_columns, engine.characters_per_window)
    number = 0
    while _part(job, index, number).exists():
        chunk = next(chunks, None)
        if chunk is None:
            raise ValueError(f"--resume: {_spoken(file.name)} ends before what was read of it; delete {job.folder}.")
        progress.skip(chunk.num_bytes)
        number += 1
    waiting: deque[_Chunk] = deque()
    refused: list[Row] = []

    def texts() -> Iterator[list[Text]]:
        for chunk in chunks:
            if chunk.bad_rows and options.bad_rows is None:
                return refused.append(chunk.bad_rows[0])  # once the chunks before it are written
            waiting.append(chunk)
            yield [row.text for row in chunk.rows]

    with _without_warnings(tokenization.logger), contextlib.closing(engine.batches(texts())) as batches:
        for scores_BC in batches:
            chunk = waiting.popleft()
            if chunk.bad_rows:
                _write(_part(job, index, number, ".bad"), _bad_lines(file.name, chunk.bad_rows))
            columns = _columns(scores_BC, engine.classifier.config.labels, added)
            _write(_part(job, index, number), writer.encode(chunk.rows, columns))
            progress.move(chunk.num_bytes)
            number += 1
    if refused:
        kept = "; --resume goes on from there" if _is_begun(job.folder) else ""
        raise ValueError(
            f"{_spoken(file.name)} row {refused[0].number} {refused[0].error}; pass --bad-rows FILE to set such rows "
            f"aside{kept}."
        )
    parts = [_part(job, index, earlier) for earlier in range(number)]
    with _appearing(file.output, job.folder) as stream:
        writer.join(parts, stream)
    _write(job.folder / _done(index), b"")
    for part in parts:
        part.unlink(missing_ok=True)


def _chunks(file: JobFile, writer: Writer, text_columns: Sequence[str], max_characters: int) -> Iterator[_Chunk]:
    with records.read(file.name, text_columns=text_columns) as source:
        start = 0
        for rows in _cut(source.rows, max_characters):
            good, bad = [], []
            for row in rows:
                error = writer.error(row) if row.error is None else row.error
                good.append(row) if error is None else bad.append(row._replace(error=error))
            end = source.position()
            yield _Chunk(good, bad, end - start)
            start = end


def _cut(rows: Iterator[Row], max_characters: int) -> Iterator[list[Row]]:
    chunk, num_characters, num_bytes = [], 0, 0
    for row in rows:
        chunk.append(row)
        num_characters += len(row.text) if isinstance(row.text, str) else sum(map(len, row.text))
        num_bytes += row.size
        if len(chunk) >= _CHUNK_ROWS or num_characters >= max_characters or num_bytes >= _CHUNK_BYTES:
            yield chunk
            chunk, num_characters, num_bytes = [], 0, 0
    if chunk:
        yield chunk


def _columns(scores_BC: Float[np.ndarray, "B C"], labels: Sequence[str], added: Sequence[str]) -> dict[str, Any]:
    """The columns that are added: the best label, its score, and the score of each label if they are asked for."""
    best_B = scores_BC.argmax(axis=-1)
    columns = [[labels[index] for index in best_B], scores_BC[np.arange(len(best_B)), best_B], *scores_BC.T]
    return dict(zip(added, columns, strict=False))


def _bad_lines(name: str, rows: Sequence[Row]) -> bytes:
    r"""Bytes that are not UTF-8 are written as `\xff`."""
    lines = []
    for row in rows:
        line = {"file": name, "row": row.number, "reason": row.error}
        if row.raw:
            line["raw"] = row.raw.encode(errors="surrogateescape").decode(errors="backslashreplace")
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def _join_bad_rows(folder: Path, output: Path) -> int:
    parts = sorted(folder.glob("*.bad"), key=lambda part: [int(number) for number in part.stem.split("-")])
    num_rows = 0
    with _appearing(output, output.parent, f".{output.name}.tmp") as stream:
        for part in parts:
            content = part.read_bytes()
            stream.write(content)
            num_rows += content.count(b"\n")
    return num_rows


def _spoken(name: str) -> str:
    return "standard input" if name == STDIN else name


def _write(file: Path, content: bytes) -> None:
    with _appearing(file, file.parent) as stream:
        stream.write(content)


@contextlib.contextmanager
def _appearing(file: Path, folder: Path, temporary_name: str | None = None) -> Iterator[BinaryIO]:
    """A stream in a folder of the same disk; its content appears as `file` when it is whole, and on the disk."""
    # Two processes at the same job write the same bytes, but must not into the same temporary file.
    temporary = folder / (temporary_name or f"{file.name}.{os.getpid()}.tmp")
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
