"""Writes so that a kill, a full disk or a second process leaves what was there, or what is new, and always whole.

A file is written under a temporary name in the same folder (``.NAME.PID.tmp``), flushed to disk and then renamed. The
temporary file is locked while it is written (engine.locks), so that what a killed process left can be swept. Only a
regular file is ever replaced: a device, a pipe, a folder or a link stays what it is.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from typing import IO, Any

from engine.errors import InputError
from engine.locks import is_at, try_lock
from engine.reading import PathLike, describe_kind
from engine.sizes import format_bytes

_TEMPORARY = re.compile(r"\.(.+)\.\d+(?:-\d+)?\.tmp", re.DOTALL)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # of an OSError: the disk, a quota, a limit on the size of a file
_NO_NAMELESS = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}  # of a disk without files that have no name
_PROBE = "frostline"  # the name of a file with which a folder is tried


class TargetError(InputError):
    """Something is in the way of a file that is to be written; it is left alone."""


class NoSpaceError(OSError):
    """No space is left for a file, by the disk, a quota or a limit on its size. What was there before is unchanged."""

    def __str__(self) -> str:
        return str(self.strerror)


def no_space(number: int, path: PathLike, wanted: int) -> NoSpaceError:
    """The error for a file, or a folder, of which ``wanted`` bytes could not be written; ``number`` is an errno."""
    text = f"{os.fspath(path)}: {os.strerror(number)}"
    if wanted:
        text += f": it needs {format_bytes(wanted)} ({wanted:,} bytes)"
    with contextlib.suppress(OSError):
        found = os.statvfs(os.path.dirname(os.path.abspath(path)))
        free = found.f_bavail * found.f_frsize
        text += f", and {format_bytes(free)} ({free:,} bytes) are free on its disk"
    return NoSpaceError(number, text)


@contextlib.contextmanager
def explain_no_space(path: PathLike, wanted: int) -> Iterator[None]:
    """Within this scope, an OSError that says that the disk is full becomes a NoSpaceError about this file."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL or isinstance(error, NoSpaceError):
            raise
        raise no_space(error.errno, path, wanted) from None


def is_full(text: str) -> int | None:
    """The errno of a full disk that a message of another library speaks of; None if it speaks of none."""
    return next((number for number in sorted(FULL) if os.strerror(number) in text), None)


def write_atomically(path: PathLike, write: Callable[[IO[bytes]], object]) -> None:
    """Calls ``write`` with a binary file. Afterwards ``path`` is either complete or unchanged.

    Raises:
        TargetError: ``path`` is anything but a regular file, or missing.
        NoSpaceError: no space is left; the message says how many bytes the file needs, and how many are free.
    """
    path = pathlib.Path(path)
    check_target(path)
    with explain_no_space(path, 0):
        temporary, number = _create(path)
    file = os.fdopen(number, "wb")  # closed at the very end, and with it the lock
    counted = _Counted(file)
    try:
        write(counted)  # type: ignore[arg-type]
        counted.do(file.flush)
        counted.do(lambda: os.fsync(number))
        if counted.full is None:
            os.replace(temporary, path)
    except BaseException:
        _discard(file, temporary)
        raise
    if counted.full is not None:
        _discard(file, temporary)
        raise no_space(counted.full, path, counted.size)
    file.close()
    flush(path.parent)


def append_text(path: PathLike, text: str) -> None:
    """Appends to a text file; raises NoSpaceError, and takes back what was written of the text, if it is too long."""
    number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        before, left = os.fstat(number).st_size, text.encode()
        try:
            while left:
                left = left[os.write(number, left) :]
        except OSError as error:
            if error.errno not in FULL:
                raise
            with contextlib.suppress(OSError):
                os.ftruncate(number, before)
            raise no_space(error.errno, path, len(text.encode())) from None
    finally:
        os.close(number)


@contextlib.contextmanager
def temporary_folder(path: PathLike) -> Iterator[pathlib.Path]:
    """A folder in which a new ``path`` can be prepared, beside it and on the same disk; it is removed afterwards."""
    path = pathlib.Path(path)
    for count in itertools.count():
        place = _temporary_name(path, count)
        with contextlib.suppress(FileExistsError):
            place.mkdir()
            number = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try_lock(number)
            if is_at(number, place):
                break
            os.close(number)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(number)


def sweep(folder: PathLike, ours: Callable[[str], object]) -> list[str]:
    """Removes temporary files and folders whose process was killed, and returns their names.

    ``ours`` says of the name of a final file whether it is one that this program writes into the folder; all others, and
    those that a living process is writing, stay.
    """
    removed = []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        match = _TEMPORARY.fullmatch(name)
        if match is None or not (match.group(1) == _PROBE or ours(match.group(1))):
            continue
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):
            number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                mode = os.fstat(number).st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or not try_lock(number) or not is_at(number, path):
                    continue
                if stat.S_ISDIR(mode):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
                removed.append(name)
            finally:
                os.close(number)
    return removed


# ---- what may be written where


def check_target(path: PathLike) -> None:
    """Raises TargetError if there is something at a path that is not a regular file."""
    try:
        found = os.lstat(path)
    except OSError:
        return  # nothing is there; what else is wrong shows when it is written
    if not stat.S_ISREG(found.st_mode):
        raise TargetError(f"{os.fspath(path)}: it is {_kind(path, found)}, and only a regular file is ever replaced")


def check_file(path: PathLike, *, name: str = "out") -> None:
    """Raises InputError, which names the argument ``name``, unless a file of that name can be written.

    That is tried with a temporary file, since permissions do not tell it.
    """
    path, text = (
        os.fspath(path),
        f"{name}={os.fspath(path)!r}: expected the name of a file in an existing, writable folder",
    )
    folder = os.path.dirname(path) or "."
    try:
        if not os.path.basename(path):
            raise InputError(f"{text} (it names a folder)")
        if not os.path.isdir(folder):
            raise InputError(f"{text} ({folder!r} is not a folder)")
        check_target(path)
        _try_to_create(path)
    except TargetError as error:
        raise InputError(f"{text} ({str(error).removeprefix(f'{path}: ')})") from None
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"{text} ({error})") from None
    except OSError as error:
        raise InputError(f"{text} ({error.strerror})") from None


def check_folder(path: PathLike, *, name: str = "out", attempt: bool = True) -> None:
    """Raises InputError, which names the argument ``name``, unless files can be written into a folder, or it can be created.

    That is tried with a temporary file, unless ``attempt`` is False: then only the path is looked at.
    """
    path = os.fspath(path)
    text = f"{name}={path if path.isprintable() else repr(path)}"
    place, missing = pathlib.Path(os.path.abspath(path)), []
    try:
        while (found := _lstat(place)) is None:
            missing.append(place.name)
            place = place.parent
        if not place.is_dir():
            what = "this" if not missing else str(place)
            raise InputError(f"{text}: expected a folder, but {what} is {_kind(place, found)}")
        for each in (*missing, "/".join([*reversed(missing), "x" * 100])):  # also of the longest file in it
            _lstat(place / each)
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"{text}: {error}") from None
    except OSError as error:
        raise InputError(f"{text}: {error.strerror}") from None
    try:
        if attempt:
            _try_to_create(place / _PROBE)
    except OSError as error:
        raise InputError(f"{text}: files cannot be written into {place} ({error.strerror})") from None


def _lstat(path: pathlib.Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _kind(path: PathLike, found: os.stat_result) -> str:
    kind = describe_kind(found.st_mode)
    return f"{kind} to {os.readlink(path)!r}" if stat.S_ISLNK(found.st_mode) else kind


def _try_to_create(path: PathLike) -> None:
    """Creates and removes a temporary file as it would be made for a path, where possible one that has no name."""
    path = pathlib.Path(path)
    _lstat(_temporary_name(path, 1))  # the length of the name
    try:
        os.close(os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC))
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_NAMELESS:
            raise
        temporary, number = _create(path)
        os.unlink(temporary)
        os.close(number)


# ---- temporary files


def _temporary_name(path: pathlib.Path, count: int) -> pathlib.Path:
    return path.with_name(f".{path.name}.{os.getpid()}{f'-{count}' if count else ''}.tmp")


def _create(path: pathlib.Path) -> tuple[pathlib.Path, int]:
    """Creates and locks a temporary file beside a path; returns it open."""
    for count in itertools.count():
        temporary = _temporary_name(path, count)
        with contextlib.suppress(FileExistsError):  # of another thread, or of a process with that number elsewhere
            number = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try_lock(number)
            if is_at(number, temporary):  # else a sweep came in between
                return temporary, number
            os.close(number)
    raise AssertionError


def _discard(file: IO[bytes], temporary: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        os.unlink(temporary)
    with contextlib.suppress(OSError):  # what is still buffered does not fit either
        file.close()


def flush(path: PathLike) -> None:
    """Flushes a file, or the names in a folder, to disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


class _Counted:
    """A file that goes on counting when the disk is full, so that the error can say how many bytes there would be."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._at = self.size = 0
        self.full: int | None = None

    def write(self, data: Any) -> int:
        count = memoryview(data).nbytes
        self.do(lambda: self._file.write(data))
        self._at += count
        self.size = max(self.size, self._at)
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self.do(lambda: self._file.seek(self._at))
        return self._at

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        self.do(self._file.flush)

    def do(self, action: Callable[[], object]) -> None:
        if self.full is None:
            try:
                action()
            except OSError as error:
                if error.errno not in FULL:
                    raise
                self.full = error.errno
