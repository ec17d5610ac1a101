"""The bytes of a file as lines of text: decompressed and decoded as they are read, never whole in memory."""

import bz2
import codecs
import contextlib
import gzip
import io
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flaxsent import files
from flaxsent.base import FlaxsentError
from flaxsent.data.base import NOT_UTF8, STDIN, Reading, compression_of

_LONGEST = 1 << 24
"""Characters of a line: a file without line ends must not fill the memory."""
_BUFFER = 1 << 16
_ESCAPE = "flaxsent.escape"


class Lines:
    """The lines of a stream as text; bytes that are not of its encoding become lone surrogates."""

    def __init__(self, stream: "io.BufferedReader[Any]", *, name: str, reading: Reading) -> None:
        """Reads nothing yet: standard input may be opened more than once before that."""
        self.num_characters = 0
        """Read so far."""
        self.num_taken = 0
        """Characters read since the last `take`."""
        self._stream, self._name, self._codec = stream, name, reading.codec
        self._text: io.TextIOWrapper | None = None
        self._taken: list[str] = []
        self._is_cut = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._read(_LONGEST + 1)
        if not line:
            raise StopIteration
        if len(line) > _LONGEST:
            self._is_cut, rest = True, line
            while rest and not rest.endswith("\n"):
                rest = self._read(_LONGEST)
        self._taken.append(line)
        self.num_characters += len(line)
        self.num_taken += len(line)
        return line

    def take(self) -> tuple[str, str | None]:
        """All that was read since the last call, without its last line end, and what is wrong with it."""
        raw = "".join(self._taken).removesuffix("\n").removesuffix("\r")
        error = None
        if self._is_cut:
            error = f"has a line of more than {_LONGEST:,} characters"
        elif not raw.isascii() and not is_unicode(raw):
            error = NOT_UTF8 if self._codec in _UTF8 else f"is not {self._codec} text"
        self._taken, self.num_taken, self._is_cut = [], 0, False
        return raw, error

    def _read(self, limit: int) -> str:
        try:
            if self._text is None:
                self._text = self._open()
                return self._text.readline(limit).removeprefix("\ufeff")
            return self._text.readline(limit)
        except UnicodeError as err:
            raise FlaxsentError(
                f"{self._name} cannot be read as {self._codec}: {err}; pass the --encoding that it has."
            ) from err

    def _open(self) -> io.TextIOWrapper:
        _check_kind(self._stream.peek(_HEAD)[:_HEAD], self._name, self._codec)
        codecs.register_error(_ESCAPE, _escape)
        errors = "surrogateescape" if self._codec in _UTF8 else _ESCAPE
        return io.TextIOWrapper(self._stream, self._codec, errors, newline="\n")


_UTF8 = ("utf-8", "utf-8-sig")
_HEAD = 64
"""Bytes by which a kind of file is known."""

_KINDS = (
    (rb"\x1f\x8b", "compressed by gzip; name it so that it ends in .gz"),
    (rb"BZh[1-9]1AY&SY", "compressed by bzip2; name it so that it ends in .bz2"),
    (rb"\x28\xb5\x2f\xfd", "compressed by Zstandard; name it so that it ends in .zst"),
    (rb"PAR1[\x00-\x1f]", "Parquet; name it so that it ends in .parquet, or pass --format parquet"),
    (rb"PK\x03\x04", "a ZIP archive or an Excel workbook; unpack it, or save it as CSV"),
)
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32", "utf-32"),
    (codecs.BOM_UTF32_BE, "UTF-32", "utf-32"),
    (codecs.BOM_UTF16_LE, "UTF-16", "utf-16"),
    (codecs.BOM_UTF16_BE, "UTF-16", "utf-16"),
)


def _check_kind(head: bytes, name: str, codec: str) -> None:
    """Refuses, by its first bytes, a file that is plainly not what it is read as."""
    for pattern, told in _KINDS:
        if re.match(pattern, head):
            raise FlaxsentError(f"{name} is {told}.")
    if codec not in _UTF8:
        return
    for mark, told, encoding in _MARKS:
        if head.startswith(mark):
            raise FlaxsentError(f"{name} is {told}, by the mark at its beginning; pass --encoding {encoding}.")
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):  # ASCII in it has every other byte 0
        every_other = head[first::2]
        if len(every_other) > 1 and every_other.count(0) * 2 > len(every_other) > 2 * head[1 - first :: 2].count(0):
            raise FlaxsentError(f"{name} looks like UTF-16 without a mark; pass --encoding {encoding}.")


def _escape(err: UnicodeError) -> tuple[str, int]:
    """Bytes that are not of an encoding, as lone surrogates: those of surrogateescape, which has none for ASCII."""
    assert isinstance(err, UnicodeDecodeError)
    return "".join(chr(0xDC00 | 0x80 | byte) for byte in err.object[err.start : err.end]), err.end


def is_unicode(text: str) -> bool:
    """Whether it has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Opened(io.RawIOBase):
    """The bytes of a file as they are stored, counted."""

    def __init__(self, stream: io.RawIOBase) -> None:
        self.position = 0
        """How many have been read."""
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        num = self._stream.readinto(buffer)
        self.position += num or 0
        return num


@contextlib.contextmanager
def open_lines(file: str | Path, reading: Reading) -> Iterator[tuple[Lines, Opened]]:
    """The lines of a file or of standard input, and its bytes as they are stored.

    Raises:
        FileNotFoundError: no such file.
        MissingPackageError: .zst, and nothing that is installed reads it; the message has the command.
    """
    name = "standard input" if file == STDIN else str(file)
    # Python cannot exit while a thread waits in sys.stdin itself.
    descriptor = sys.stdin.fileno() if file == STDIN else file
    with open(descriptor, "rb", buffering=0, closefd=file != STDIN) as raw:
        opened = Opened(raw)
        stream: io.BufferedReader[Any] = io.BufferedReader(opened, _BUFFER)
        if (compression := None if file == STDIN else compression_of(file)) is not None:
            stream = io.BufferedReader(_Decompressed(stream, name, compression), _BUFFER)
        yield Lines(stream, name=name, reading=reading), opened


class _Decompressed(io.RawIOBase):
    """What a compressed stream holds, a buffer at a time: a small file may expand to more than fits a memory."""

    def __init__(self, stream: "io.BufferedReader[Any]", name: str, compression: str) -> None:
        self._name, self._compression = name, compression
        self._stream: Any = _DECOMPRESSORS[compression](stream)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            content = self._stream.read(len(buffer))
        except (EOFError, OSError, zlib.error, *_zstd_errors()) as err:
            raise FlaxsentError(
                f"{self._name} is not {self._compression}, or is damaged or cut off: {err}; fetch it again."
            ) from err
        buffer[: len(content)] = content
        return len(content)


def _zstandard(stream: Any) -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.open(stream)
    pyarrow = files.require("pyarrow", needed_by="a .zst file", extra="data")
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd")


def _zstd_errors() -> tuple[type[Exception], ...]:
    if sys.version_info >= (3, 14):
        from compression import zstd

        return (zstd.ZstdError,)
    return ()  # pyarrow's are OSErrors


_DECOMPRESSORS = {"gzip": gzip.open, "bzip2": bz2.open, "Zstandard": _zstandard}
