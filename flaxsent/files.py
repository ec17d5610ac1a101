"""Files and folders that are whole or not there, their digests, and packages that an extra brings.

Every writer of this library goes through `appearing` or `replacing`: what is written has another name until it is
complete and on the disk.
"""

import contextlib
import hashlib
import importlib
import logging
import os
import re
import secrets
import shutil
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from flaxsent.base import FlaxsentError

EMBEDDED = Path(__file__).parent / "default_model"
"""The checkpoint that comes with the package."""


class MissingPackageError(ImportError):
    """A package that is not installed; the message has the command that installs it."""


def require(module: str, *, needed_by: str, extra: str | None = None, install: str | None = None) -> ModuleType:
    """Imports a package that the base install does not bring: by an extra of flaxsent, or by `install` for pip.

    Raises:
        MissingPackageError: it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as err:
        # A package that is there and lacks one of its own is a broken install; the same command mends it.
        what = install if extra is None else f'"flaxsent[{extra}]"'
        package = (err.name or module).partition(".")[0]
        raise MissingPackageError(f"{needed_by} needs {package}, which is not installed: pip install {what}") from err


_quieting = threading.Lock()
_quieted: dict[str, tuple[int, contextlib.ExitStack]] = {}
"""By logger: how many ask for quiet at once, and what ends it."""


@contextlib.contextmanager
def quietly(logger: str) -> Iterator[None]:
    """Leaves out what another library logs meanwhile: that it has no PyTorch, that its Flax classes are deprecated.

    Several threads may ask for it at once: the last one ends it.
    """
    theirs = logging.getLogger(logger)  # takes a lock of its own, which must not be waited for under this one
    with _quieting:
        num, end = _quieted.get(logger) or (0, _quieten(theirs))
        _quieted[logger] = num + 1, end
    try:
        yield
    finally:
        with _quieting:
            num, end = _quieted.pop(logger)
            if num > 1:
                _quieted[logger] = num - 1, end
            else:
                end.close()


def _quieten(theirs: logging.Logger) -> contextlib.ExitStack:
    """Begins the quiet; what it gives ends it."""
    end = contextlib.ExitStack()

    def says_nothing(record: logging.LogRecord) -> bool:  # a handler may be another logger's, too
        return not f"{record.name}.".startswith(f"{theirs.name}.")

    def quieten(one: logging.Filterer) -> None:
        one.addFilter(says_nothing)
        end.callback(one.removeFilter, says_nothing)

    def add_quieted(hdlr: logging.Handler) -> None:  # it is imported meanwhile, and makes its handler then
        with _quieting:
            if theirs.name in _quieted:
                quieten(hdlr)
        add(hdlr)

    for one in (theirs, *theirs.handlers):  # its loggers below hand records to its handlers, not to its filters
        quieten(one)
    add = theirs.addHandler
    theirs.addHandler = add_quieted
    end.callback(delattr, theirs, "addHandler")
    return end


def sha256(file: Path) -> str:
    """Of what a file holds, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp$")
"""How the name of an unfinished file or folder ends."""


def temporary_name(name: str) -> str:
    """Another at each call: two processes must not write into the same unfinished file."""
    return f"{name}.{secrets.token_hex(8)}.tmp"


@contextlib.contextmanager
def appearing(file: Path, folder: Path | None = None) -> Iterator[BinaryIO]:
    """A stream whose content appears as `file` when it is whole and on the disk.

    It is written in `folder`, on the same disk, or else as a hidden file beside `file`.

    Raises:
        OSError: it cannot be written; it names `file`. What the caller meets meanwhile in other files stays as it is.
    """
    hidden = f".{file.name}" if folder is None else file.name
    temporary = (file.absolute().parent if folder is None else folder) / temporary_name(hidden)
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
        _sync(file.absolute().parent)
    except OSError as err:
        if err.errno is None or err.filename not in (None, str(temporary)):
            raise
        raise OSError(err.errno, err.strerror, str(file)) from err
    finally:
        temporary.unlink(missing_ok=True)


def write(file: Path, content: bytes) -> None:
    """Writes a file that appears when it is whole.

    Raises: as `appearing`.
    """
    with appearing(file, file.parent) as stream:
        stream.write(content)


def create(file: Path, content: bytes) -> None:
    """Writes a file that appears when it is whole, and only if there is none of its name: a lock that says something.

    A disk without second names, such as FAT, has the name first and then the content: there a reader may find a part of
    it, and a process that is killed leaves that part.

    Raises:
        FileExistsError: there is one; of several processes that create it at once, one succeeds.
        OSError: it cannot be written.
    """
    temporary = file.parent / temporary_name(file.name)
    try:
        write(temporary, content)
        try:
            os.link(temporary, file)
        except (FileExistsError, FileNotFoundError):
            raise
        except OSError:  # a disk without second names: FAT, and some of networks
            with open(file, "xb") as stream:
                try:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                except BaseException:
                    file.unlink()
                    raise
        _sync(file.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(target: Path, *, owned: Collection[str] = ()) -> Iterator[Path]:
    """An empty folder that becomes `target` when it is whole, in the place of what is there; links are followed.

    Of an older `target` the names in `owned` go; whatever else lies in it stays, in the new folder, and so do the
    permissions of the folder and of the files that are replaced. Killed at any moment, it leaves the old folder or the
    new one, never a mixture: for a moment between two renames, the old one alone, under the name `.NAME.….old`. Hidden
    folders `.NAME.….tmp` and `.old` of a process that was killed stay.

    Raises:
        OSError: it cannot be written; nothing has changed then.
        FlaxsentError: the process, or the shell that started it, is in the folder that would be replaced.
    """
    target = Path(os.path.realpath(target))
    if target.exists() and Path.cwd().is_relative_to(target):
        raise FlaxsentError(f"{target} would be replaced, and the current folder is in it; start from another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(temporary_name(f".{target.name}"))
    replaced = unfinished.with_suffix(".old")
    try:
        unfinished.mkdir()
        yield unfinished
        if target.exists():
            _keep(target, unfinished, owned)
        for file in unfinished.iterdir():
            if not file.is_symlink() and (file.is_file() or file.is_dir()):  # who opens a pipe would wait
                _sync(file)
        if target.exists():
            target.rename(replaced)
        unfinished.rename(target)
        _sync(target.parent)
    except OSError as err:
        if err.errno is None or err.filename is not None:
            raise
        raise OSError(err.errno, err.strerror, str(target)) from err
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)


def _keep(old: Path, new: Path, owned: Collection[str]) -> None:
    """Gives a new folder what the old one holds besides `owned`, and the permissions that the old one had."""
    for entry in old.iterdir():
        if not (new / entry.name).exists():
            if entry.name not in owned:
                _link(entry, new / entry.name)
        elif entry.exists():  # else it is a link that leads nowhere
            shutil.copymode(entry, new / entry.name)
    shutil.copymode(old, new)


def _link(source: Path, target: Path) -> None:
    """The same file under a second name, or a copy where the disk has no second names."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=link)
    elif source.is_symlink():
        target.symlink_to(source.readlink())
    else:
        link(str(source), str(target))


def _sync(path: Path) -> None:
    """Names of files, too, are on the disk only when they are told to be."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
