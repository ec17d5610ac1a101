"""The parts of a job on the disk, and how they become its outputs.

The records of a chunk, with their scores, become a part in a hidden folder beside the output. When all parts of a file
are there, they are joined and appear under the output's name. Nothing is ever written in place: a file is complete or
has another name. Whoever finds all parts of a file joins them, and whoever finds all files joined ends the job; if two
processes do so at once, both write the same bytes.
"""

import contextlib
import errno
import filecmp
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from flaxsent import files
from flaxsent.base import FlaxsentError
from flaxsent.data import records, writers
from flaxsent.data.records import STDIN
from flaxsent.data.writers import Kind, Writer
from flaxsent.jobs import manifest as manifests
from flaxsent.jobs.plan import MANIFEST, Job, Piece

_WORK = re.compile(r"[0-9a-f]{8}-\d{6,}(\.done|-\d{6,}(\.end|-\d{6,}\.(csv|tsv|jsonl|txt|parquet|bad|digest)))")


class Parts:
    """The files of a job under way in its folder."""

    def __init__(
        self,
        job: Job,
        run: str,
        added: Sequence[str],
        *,
        kinds: Mapping[str, Kind] | None = None,
        replaces: bool = False,
    ) -> None:
        """`added` are the names of the added columns; `replaces`: outputs that were there before may be replaced."""
        self.job, self.run, self.added, self._kinds = job, run, added, kinds
        self._replaces = replaces

    def writer(self, index: int) -> Writer:
        """Of the parts of a file, and of its output."""
        file, form = self.job.files[index], records.format_of(self.job.files[index].output)
        return writers.open_writer(
            *(form, file.layout, self.added),
            row_column=self.job.row_column,
            lists=self.job.options.lists,
            kinds=self._kinds,
        )

    def part(self, piece: Piece, number: int) -> Path:
        """The records of a chunk with their scores."""
        return self._of_chunk(piece, number, records.SUFFIXES[records.format_of(self.job.files[piece.file].output)])

    def bad_rows(self, piece: Piece, number: int) -> Path:
        """Those of a chunk; written before its part."""
        return self._of_chunk(piece, number, ".bad")

    def digest(self, piece: Piece, number: int) -> Path:
        """Of standard input up to the end of a chunk; written before its part."""
        return self._of_chunk(piece, number, ".digest")

    def end(self, piece: Piece) -> Path:
        """Says how many parts a unit has, when all are there; it goes when they do."""
        return self.job.folder / f"{self.run}-{piece.file:06d}-{piece.unit:06d}.end"

    def done(self, index: int) -> Path:
        """Says that the output of a file is in its place; of standard input, it holds the digest."""
        return self.job.folder / f"{self.run}-{index:06d}.done"

    def _of_chunk(self, piece: Piece, number: int, suffix: str) -> Path:
        return self.job.folder / f"{self.run}-{piece.file:06d}-{piece.unit:06d}-{number:06d}{suffix}"

    def todo(self, share: list[Piece]) -> list[Piece]:
        """Those of the pieces that are not done."""
        # The two in this order: of the one name, the other appears before it is removed.
        ends = {*_names(self.job.folder)}
        names = {*_names(self.job.folder)} | ends
        return [piece for piece in share if not {self.end(piece).name, self.done(piece.file).name} & names]

    def has_work(self) -> bool:
        """Whether there is anything to go on with."""
        return any(self._is_work(name) for name in _names(self.job.folder))

    def is_over(self) -> bool:
        """Whether another process has finished the job."""
        return not manifests.is_current(self.job, self.run) and manifests.finished_run(self.job) == self.run

    def join(self, index: int) -> None:
        """Puts the output of a file in its place, if all its parts are there."""
        file, done = self.job.files[index], self.done(index)
        counts: dict[Piece, int] = {}
        if done.exists():
            return
        for unit in reversed(range(len(file.units))):  # the last is done last, and says soonest that one is missing
            try:
                counts[Piece(index, unit)] = int(self.end(Piece(index, unit)).read_bytes())
            except FileNotFoundError:
                return
        chunks = [(piece, number) for piece in sorted(counts) for number in range(counts[piece])]
        parts = [self.part(*chunk) for chunk in chunks]
        try:
            with self._placing(file.output, self.job.folder) as stream:
                self.writer(index).join(parts, stream)
            digests = [self.digest(*chunk) for chunk in chunks] if file.name == STDIN else []
            files.write(done, digests[-1].read_bytes() if digests else b"")
        except FileNotFoundError:
            if not done.exists() and not self.is_over():
                raise
        for made in (*parts, *map(self.end, counts)):
            made.unlink(missing_ok=True)

    def finish(self) -> int | None:
        """Ends the job if all its outputs are in their places, and tells how many bad rows there are; else None.

        Raises:
            FlaxsentError: the folder of the parts has been deleted.
        """
        manifest = manifests.read(self.job.folder)
        names = {*_names(self.job.folder)}
        if manifest is None or manifest.run != self.run:
            return self.check_over()
        if not all(self.done(index).name in names for index in range(len(self.job.files))):
            return None
        try:
            bad_rows = manifest.facts["bad rows"]
            num_bad = 0 if bad_rows is None else self._join_bad_rows(Path(bad_rows))
            is_stream = self.job.files[0].name == STDIN
            stream = (self.done(0).read_text() or manifests.digest_rows([]).hexdigest()) if is_stream else None
        except FileNotFoundError:
            return self.check_over()
        manifests.finish(self.job, manifest, stream)
        self.remove()
        return num_bad

    def check_over(self) -> None:
        """Refuses to go on where another process has not finished the job, and yet its manifest is not there."""
        if not self.is_over():
            raise FlaxsentError(f"{self.job.folder} was deleted while the job was running; start the job again.")

    def _join_bad_rows(self, output: Path) -> int:
        """Puts the bad rows in their place, and tells how many there are."""
        names = [name for name in _names(self.job.folder) if self._is_work(name) and name.endswith(".bad")]
        num_rows = 0
        with self._placing(output) as stream:
            for name in sorted(names, key=lambda name: [int(number) for number in Path(name).stem.split("-")[1:]]):
                content = (self.job.folder / name).read_bytes()
                stream.write(content)
                num_rows += content.count(b"\n")
        return num_rows

    @contextlib.contextmanager
    def _placing(self, output: Path, folder: Path | None = None) -> Iterator[BinaryIO]:
        """A stream that becomes an output; not where another job has made it meanwhile, or ended this one."""
        with files.appearing(output, folder) as stream:
            yield stream
            stream.flush()
            # This job, too, may have made it: it was killed before it could say so.
            if not self._replaces and output.exists() and not filecmp.cmp(stream.name, output, shallow=False):
                raise FlaxsentError(f"{output} was written by another job meanwhile; move it, then pass --resume.")
            if not manifests.is_current(self.job, self.run):
                raise FileNotFoundError(errno.ENOENT, "this job has been ended, or its folder deleted")

    def clear(self) -> None:
        """Removes what jobs have left that were killed while they removed it; none of them is under way."""
        for name in _names(self.job.folder):
            if (_WORK.fullmatch(name) or files.TEMPORARY.search(name)) and not name.startswith(f"{self.run}-"):
                (self.job.folder / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the work, and the folder unless it holds something of another's; others may be doing the same."""
        manifests.end(self.job, self.run)
        is_over = not (self.job.folder / MANIFEST).exists()  # then unfinished files are nobody's
        for name in _names(self.job.folder):
            if self._is_work(name) or (is_over and files.TEMPORARY.search(name)):
                (self.job.folder / name).unlink(missing_ok=True)
        if self.job.options.bad_rows is not None:  # which are joined beside their output
            output = Path(self.job.options.bad_rows).absolute()
            for name in _names(output.parent) if is_over else ():
                if name.startswith(f".{output.name}.") and files.TEMPORARY.fullmatch(name, len(output.name) + 1):
                    output.with_name(name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.job.folder.rmdir()

    def _is_work(self, name: str) -> bool:
        return name.startswith(f"{self.run}-") and _WORK.fullmatch(name) is not None


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(folder)
    return []
