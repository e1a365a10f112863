"""Locks: one process at a time works in a folder or on a file, and what a killed process left can be told from work in progress.

A lock is the kernel's (``flock``) on an open file. It ends with its process, however that ends, so no number of a process
that was given out again can deceive, and processes in containers or on other machines (NFS) count too. A lock file is
removed by the process that held it; the one that a killed process leaves is taken over. On a file system without locks
nobody is refused.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import socket
import stat
import sys
import time
from collections.abc import Iterator

from engine.errors import InputError
from engine.reading import PathLike

try:
    import fcntl
except ImportError:  # a system without such locks
    fcntl = None  # type: ignore[assignment]

FOLDER_LOCK = ".lock"  # the name of the lock file in a folder that one process at a time may use
_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PATIENCE = 1.0  # seconds: a process that was just killed keeps its locks until its memory is given back


class InUseError(InputError):
    """Another process uses a folder or a file. ``holder`` names it, for a sentence."""

    def __init__(self, name: str, place: PathLike, holder: str) -> None:
        super().__init__(
            f"{name}={os.fspath(place)}: {holder} is using it; wait until that has ended, or choose another {name}"
        )
        self.holder = holder


def try_lock(number: int, *, shared: bool = False) -> bool | None:
    """Locks an open file without waiting: False if another holds it, None if the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(number, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_at(number: int, path: PathLike, *, folder: int | None = None) -> bool:
    """Whether an open file is still the one at a path (in an open ``folder``): it may have been removed meanwhile."""
    try:
        return os.path.samestat(os.fstat(number), os.stat(path, dir_fd=folder, follow_symlinks=False))
    except OSError:
        return False


def open_lock(path: PathLike, *, folder: int | None = None) -> int:
    """Opens a lock file (in an open ``folder``), which is created if missing; OSError if it is anything but a plain file."""
    number = os.open(path, _OPEN, 0o666, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return number


@contextlib.contextmanager
def hold_file(path: PathLike, *, name: str = "out") -> Iterator[None]:
    """Within this scope no other process can hold the file, which need not exist; its folder must.

    Raises InUseError, which names the argument ``name`` and the process, if another holds it.
    """
    file = pathlib.Path(os.path.abspath(path))
    with _hold(file.with_name(f".{file.name}.lock"), name=name, place=path):
        yield


@contextlib.contextmanager
def hold_folder(folder: PathLike, *, name: str = "out") -> Iterator[None]:
    """Within this scope no other process can hold the folder. It is created; if it is empty at the end, it is removed.

    Raises InUseError, which names the argument ``name`` and the process, if another holds it.
    """
    here = pathlib.Path(os.path.abspath(folder))
    made = [place for place in (here, *here.parents) if not place.exists()]
    with contextlib.ExitStack() as stack:
        for place in reversed(made):
            stack.callback(_remove_if_empty, place)
        for _ in range(5):
            here.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # the process that had made the folder removed it just now
                stack.enter_context(_hold(here / FOLDER_LOCK, name=name, place=folder))
                break
        else:
            raise InputError(f"{name}={os.fspath(folder)}: the folder is removed as soon as it is created")
        yield


def _remove_if_empty(folder: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def check_free(folder: PathLike, *, name: str = "out") -> None:
    """Raises InUseError if another process holds the folder; changes nothing."""
    lock = pathlib.Path(folder) / FOLDER_LOCK
    try:
        number = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return
    try:
        if not _wait_for_lock(number, shared=True):
            raise InUseError(name, folder, _describe_holder(number))
    finally:
        os.close(number)


@contextlib.contextmanager
def _hold(lock: pathlib.Path, *, name: str, place: PathLike) -> Iterator[None]:
    number, owner = _acquire(lock, name, place), os.getpid()
    try:
        yield
    finally:
        if os.getpid() == owner:  # not in a process that was forked within the scope
            if is_at(number, lock):
                lock.unlink()
            os.close(number)


def _acquire(lock: pathlib.Path, name: str, place: PathLike) -> int:
    """Opens and locks the file, and writes into it who holds it; FileNotFoundError if its folder is missing."""
    while True:
        try:
            number = open_lock(lock)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise InputError(
                f"{name}={os.fspath(place)}: {lock.name} cannot be used as a lock ({error.strerror})"
            ) from None
        if not _wait_for_lock(number):
            holder = _describe_holder(number)
            os.close(number)
            raise InUseError(name, place, holder)
        if is_at(number, lock):  # else its holder removed it just now
            break
        os.close(number)
    me = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(sys.argv)[:500],
    }
    with contextlib.suppress(OSError):  # on a full disk the lock holds too
        os.ftruncate(number, 0)
        os.pwrite(number, json.dumps(me).encode(), 0)
    return number


def _wait_for_lock(number: int, *, shared: bool = False) -> bool:
    """Whether the file could be locked; also if the file system has no locks."""
    until = time.monotonic() + _PATIENCE
    while (locked := try_lock(number, shared=shared)) is False and time.monotonic() < until:
        time.sleep(0.02)
    return locked is not False


def _describe_holder(number: int) -> str:
    """Names the process that wrote a lock file, as far as the file can be read."""
    try:
        found = json.loads(os.pread(number, 4096, 0))
        where = "" if found["host"] == socket.gethostname() else f" on {str(found['host'])!r}"
        return f"process {int(found['pid'])}{where}, running since {found['since']} ({str(found['command'])!r}),"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"
