"""Which files a job reads and writes, and in which pieces: what can be said before a model is loaded."""

import dataclasses
import glob
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flaxsent.base import FlaxsentError
from flaxsent.data import records, writers
from flaxsent.data.records import STDIN, Group, Layout, Reading
from flaxsent.data.writers import Kind
from flaxsent.jobs.shards import Shard
from flaxsent.models.config import ModelConfig
from flaxsent.transforms.ensemble import MEASURES

logger = logging.getLogger(__name__)

CHUNK_ROWS = 16384
"""Most records in a chunk."""
CHUNK_BYTES = 1 << 26
"""A chunk ends, too, where its records take so much memory."""
UNIT_BYTES = 1 << 23
"""Row groups of Parquet are put together until they fill a chunk, or have texts of so many bytes: a window of the
engine on an accelerator. Smaller units would leave its steps empty, larger ones would be harder to share."""

EMBEDDING = ("embedding",)
"""The columns that embeddings add."""

MANIFEST = "manifest.json"
"""In the folder of the parts; a job has begun while it is there."""
_FOLDER_PARTS, _FOLDER_RECORD = ".flaxsent.parts", ".flaxsent.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What the command line says besides the names of the files."""

    text_columns: tuple[str, ...] = ("text",)
    """One, or two for pairs."""
    top_k: int | None = None
    """So many labels of each text, in columns of their own; None: those that a text is given."""
    abstain_below: float | None = None
    """A text whose best score is less has no label."""
    reading: Reading = dataclasses.field(default_factory=Reading)
    """How the files are read, where their suffixes do not say it right."""
    all_scores: bool = False
    """A column for each label, beside `label` and `score`."""
    uncertainty: str | None = None
    """What it is measured by, "20 draws of dropout": adds the columns of `transforms.ensemble.MEASURES`."""
    embeddings: bool = False
    """A column with the vector of each text, a list; the engine's function is then `transforms.with_embeddings`."""
    zero_shot: Mapping[str, Any] | None = None
    """The arguments of `transforms.zero_shot`, where that gave the classifier its labels."""
    prefix: str = ""
    """Put before the names of the columns that are added."""
    bad_rows: str | None = None
    """The file in which bad rows are set aside; without one, the first of them ends the job."""
    resume: bool = False
    overwrite: bool = False
    shard: Shard | None = None
    """The share of this process, if there are several. They need files, and a folder for the outputs."""

    @property
    def lists(self) -> tuple[str, ...]:
        """The names of the added columns that hold lists of numbers."""
        return tuple(f"{self.prefix}{name}" for name in EMBEDDING) if self.embeddings else ()

    def added_names(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The columns that scores add."""
        measures = MEASURES if self.uncertainty is not None else ()
        embedding = EMBEDDING if self.embeddings else ()
        more = range(2, min(self.top_k or 1, len(labels)) + 1)
        ranks = [f"{name}_{rank}" for rank in more for name in ("label", "score")]
        names = ("label", "score", *ranks, *embedding, *measures, *(labels if self.all_scores else ()))
        return tuple(f"{self.prefix}{name}" for name in names)

    @property
    def joins(self) -> bool:
        """Whether to go on with a job that has begun: several processes do without being told to."""
        return self.resume or self.shard is not None


class Unit(NamedTuple):
    """What one process reads from its beginning to its end."""

    groups: range | None
    """Row groups of Parquet; None for a whole file: other formats can only be read from the start."""
    size: int
    """In bytes of the file; 0 if unknown."""
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

    @property
    def spoken(self) -> str:
        """The name in a message."""
        return "standard input" if self.name == STDIN else self.name


class Piece(NamedTuple):
    """Which unit of which file."""

    file: int
    unit: int


@dataclasses.dataclass(frozen=True)
class Job:
    """What `plan` makes of the names of files."""

    files: tuple[JobFile, ...]
    folder: Path
    """Where the parts are, while there are any."""
    record: Path
    """The small hidden file that says which job made the outputs, when it is finished."""
    options: JobOptions
    row_column: str | None
    """A column with the number of the row in its file, for outputs in a folder: their readers may mix the rows."""

    @property
    def size(self) -> int | None:
        """Of all the files, in bytes; None if unknown."""
        sizes = [file.size for file in self.files if file.size is not None]
        return sum(sizes) if len(sizes) == len(self.files) else None

    @property
    def pieces(self) -> list[Piece]:
        """All of them, in the order of the files."""
        return [Piece(index, unit) for index, file in enumerate(self.files) for unit in range(len(file.units))]

    def unit(self, piece: Piece) -> Unit:
        return self.files[piece.file].units[piece.unit]

    @property
    def made(self) -> list[Path]:
        """All files to be written."""
        return _made([file.output for file in self.files], self.options)

    def added_kinds(self, config: ModelConfig | None = None) -> dict[str, Kind]:
        """What the columns of labels hold, by name; without a config as far as it is known."""
        options = self.options
        is_several = config is not None and options.top_k is None and config.score_thresholds is not None
        if is_several:
            return {f"{options.prefix}label": "texts", f"{options.prefix}score": "numbers"}
        num_labels = 1 if options.top_k is None else options.top_k
        names = ["label", *(f"label_{rank}" for rank in range(2, num_labels + 1))]
        return dict.fromkeys([f"{options.prefix}{name}" for name in names], "text")

    def added_names(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The columns that scores add.

        Raises:
            FlaxsentError: two of them have the same name, or an input has one of them already.
        """
        added = self.options.added_names(labels)
        columns = added if self.row_column is None else (*added, self.row_column)
        if len(set(columns)) < len(columns):
            raise FlaxsentError(
                f"the added columns would be {', '.join(columns)}; expected different names: leave out --all-scores."
            )
        for file in self.files:
            if taken := [name for name in columns if name in file.layout.columns]:
                raise FlaxsentError(
                    f"{file.name} has a column {taken[0]!r} already; pass --prefix TEXT, which is put before the names "
                    "of the added columns."
                )
        return added


def plan(inputs: Sequence[str], output: str, options: JobOptions) -> Job:
    """Finds the files of a job and looks at what they hold; writes nothing.

    Args:
        inputs: files, folders of which all files with a known suffix are read, patterns (`*`, `**`), or only `-`.
        output: a file, or a folder for a file of the same name for each input.
        options: which columns, and what to do about files that exist.

    Raises:
        FileNotFoundError: there are no such files, or no folder for the output.
        FileExistsError: the output exists, or a job that writes it has begun.
        PermissionError: the output cannot be written.
        MissingPackageError: Parquet, and pyarrow is not installed.
        FlaxsentError: a file lacks a column, or the names do not go together.
    """
    names = _find(inputs, options.reading)
    if names == [STDIN]:
        if options.shard is not None:
            raise FlaxsentError("--input - is one stream, which several processes cannot share; give files.")
        if options.reading.format_of(STDIN) != "lines":  # it can only be read once, and not looked at before
            raise FlaxsentError(f"--input - is read as lines; save a table as a file: {options.reading.format}.")
    many = "processes" if options.shard else "inputs" if len(names) > 1 or Path(inputs[0]).is_dir() else None
    is_folder, outputs = _outputs(names, output, options.reading, many=many)
    path = Path(output)
    folder = path / _FOLDER_PARTS if is_folder else path.with_name(f".{path.name}.parts")
    record = path / _FOLDER_RECORD if is_folder else path.with_name(f".{path.name}{_FOLDER_RECORD}")
    if options.bad_rows is not None:
        _check_writable(Path(options.bad_rows).absolute().parent)
    made = _made(outputs, options)
    _check_names(names, made)
    there = [file for file in made if file.exists()]
    is_begun = (folder / MANIFEST).exists()
    if is_begun and not options.joins:
        raise begun_error(folder)
    if there and not (is_begun or options.overwrite or (options.joins and record.exists())):  # which `run` looks into
        raise exists_error(there[0])
    files = tuple(_look(name, output, options) for name, output in zip(names, outputs, strict=True))
    job = Job(files, folder, record, options, f"{options.prefix}row" if is_folder else None)
    job.added_names(labels=())
    return job


def begun_error(folder: Path) -> FileExistsError:
    return FileExistsError(
        f"{folder} belongs to a job that is running or was stopped; pass --resume to go on with it, or delete the "
        "folder to start over."
    )


def exists_error(file: Path) -> FileExistsError:
    return FileExistsError(f"{file} exists already; pass --overwrite to replace it.")


def _find(inputs: Sequence[str], reading: Reading) -> list[str]:
    if STDIN in inputs:
        if len(inputs) > 1:
            raise FlaxsentError("--input - is standard input, which cannot be read together with files.")
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
        reading.format_of(file)
    return found


def _is_readable(file: Path) -> bool:
    plain = file.with_suffix("") if records.compression_of(file) is not None else file
    return file.is_file() and not file.name.startswith(".") and plain.suffix.lower() in records.FORMATS


def _outputs(names: Sequence[str], output: str, reading: Reading, *, many: str | None) -> tuple[bool, list[Path]]:
    """Whether the output is a folder, and the output of each file: without compression, of the format that was read."""
    path = Path(output)
    if path.is_dir() or not path.suffix:
        if names == [STDIN]:
            raise FlaxsentError(f"--output {output} is a folder; standard input needs a file.")
        _check_writable(path if path.exists() else path.absolute().parent)
        return True, [path / _named(Path(name), reading) for name in names]
    if records.compression_of(output) is not None:
        raise FlaxsentError(f"--output {output}: outputs are not compressed; leave out {path.suffix}.")
    records.format_of(output)
    if many is not None:
        raise FlaxsentError(f"--output {output} is a file; several {many} need a folder.")
    _check_writable(path.absolute().parent)
    return False, [path]


def _named(file: Path, reading: Reading) -> str:
    """The name of the output of a file, in a folder.

    >>> _named(Path("a/x.txt.gz"), Reading()), _named(Path("x.txt"), Reading(format="tsv"))
    ('x.txt', 'x.tsv')
    """
    plain = Path(file.stem if records.compression_of(file) is not None else file.name)
    form = reading.format_of(file)
    is_said = records.FORMATS.get(plain.suffix.lower()) == form
    return plain.name if is_said else plain.with_suffix(records.SUFFIXES[form]).name


def _made(outputs: Sequence[Path], options: JobOptions) -> list[Path]:
    return [*outputs, *([] if options.bad_rows is None else [Path(options.bad_rows)])]


def _check_writable(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; make it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} is a folder that you may not write to; choose another.")


def _check_names(names: Sequence[str], made: Sequence[Path]) -> None:
    inputs = {Path(name).resolve() for name in names}
    seen: set[Path] = set()
    for file in made:
        path = file.resolve()
        if path in inputs:
            raise FlaxsentError(f"{file} is an input, and would be overwritten; choose another output.")
        if path in seen:
            raise FlaxsentError(f"{file} would be written twice; choose inputs with different names.")
        if path.is_dir():
            raise FlaxsentError(f"{file} is a folder; expected the name of a file.")
        seen.add(path)


def _look(name: str, output: Path, options: JobOptions) -> JobFile:
    with records.read(name, text_columns=options.text_columns, reading=options.reading) as source:
        layout, groups = source.layout, source.groups
    if layout.hint is not None:
        logger.warning("%s: %s", name, layout.hint)
    # Says now if pyarrow is missing, or lists have no place in the output.
    writers.open_writer(records.format_of(output), layout, (), lists=options.lists)
    size = None if name == STDIN else Path(name).stat().st_size
    units = (Unit(None, size or 0, size or 0),) if groups is None else _units(groups, size or 0)
    return JobFile(name, size, layout, output, units)


def _units(groups: Sequence[Group], size: int) -> tuple[Unit, ...]:
    """What a Parquet file of a size is read in: neighbouring row groups, one or as many as fill a chunk.

    >>> _units([Group(9000, 99)] * 3, 54)
    (Unit(groups=range(0, 2), size=36, work=198), Unit(groups=range(2, 3), size=18, work=99))
    """
    all_rows = max(sum(group.num_rows for group in groups), 1)
    units, start, num_rows, work = [], 0, 0, 0
    for end, group in enumerate(groups, start=1):
        num_rows, work = num_rows + group.num_rows, work + group.num_bytes
        if num_rows >= CHUNK_ROWS or work >= UNIT_BYTES or end == len(groups):
            units.append(Unit(range(start, end), size * num_rows // all_rows, work))
            start, num_rows, work = end, 0, 0
    return tuple(units) or (Unit(range(0), size, 0),)
