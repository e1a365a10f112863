"""Evicts feature caches when a budget on disk space is reached, the least recently used first and never one in use.

A cache is opened as a folder and worked on through that, so that no link that somebody put into the folder of caches
leads out of it.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import time
from collections.abc import Iterator

from engine.feature_cache.options import CacheError
from engine.files import PathLike
from engine.locks import is_at, open_lock, try_lock

_CACHE = re.compile(r"[0-9a-f]{32}")
_OURS = re.compile(r"shard-\d{6}|manifest\.json|\.(shard-\d{6}|manifest\.json)\.[\d-]+\.tmp|in_use")
_LOCK = "in_use"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATIENCE = 5.0  # seconds: another run may be about to evict the cache


@contextlib.contextmanager
def hold_cache(folder: pathlib.Path) -> Iterator[None]:
    """Marks a cache as in use, so that no other run evicts it. The mark ends with the process at the latest.

    Raises CacheError if the cache, or its lock, is a link or no file at all; OSError if the folder cannot be written.
    """
    until = time.monotonic() + _PATIENCE
    while (number := _try_to_hold(folder)) is None:
        if time.monotonic() > until:
            raise CacheError(f"{folder}: another process has been evicting this cache for {_PATIENCE:g} s")
        time.sleep(0.02)
    try:
        yield
    finally:
        os.close(number)


def _try_to_hold(folder: pathlib.Path) -> int | None:
    """The open lock of a cache, which is created if missing; None if it is being evicted."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True)
    with contextlib.suppress(FileNotFoundError), _open_folder(folder) as place:
        number = _open_lock(folder, place)
        locked = try_lock(number, shared=True)
        if locked is not False and is_at(number, _LOCK, folder=place) and is_at(place, folder):
            os.utime(place)  # the most recently used cache is evicted last
            return number
        os.close(number)
    return None


def evict_caches(root: PathLike, needed: int, budget: int) -> list[pathlib.Path]:
    """Removes unused caches, the least recently used first, until ``needed`` more bytes fit; returns their folders."""
    paths = pathlib.Path(root).iterdir() if pathlib.Path(root).is_dir() else ()
    folders = [path for path in paths if path.is_dir() and not path.is_symlink() and _CACHE.fullmatch(path.name)]
    sizes = {
        path: sum(file.lstat().st_size for file in path.iterdir() if _OURS.fullmatch(file.name)) for path in folders
    }
    removed = []
    for path in sorted(folders, key=lambda path: path.stat().st_mtime):
        if sum(sizes.values()) + needed <= budget:
            break
        if _remove(path):
            removed.append(path)
            del sizes[path]
    return removed


def _remove(folder: pathlib.Path) -> bool:
    """Removes a cache's own files, and its folder if nothing else is in it; False if it is in use, or is not a cache."""
    try:
        with _open_folder(folder) as place:
            number = _open_lock(folder, place)
            try:
                if not try_lock(number):
                    return False
                for name in sorted(os.listdir(place), key=_LOCK.__eq__):  # the lock goes last
                    if _OURS.fullmatch(name):
                        with contextlib.suppress(OSError):  # a folder of that name is not ours
                            os.unlink(name, dir_fd=place)
            finally:
                os.close(number)
    except (CacheError, OSError):
        return False
    with contextlib.suppress(OSError):
        folder.rmdir()
    return True


@contextlib.contextmanager
def _open_folder(folder: pathlib.Path) -> Iterator[int]:
    try:
        place = os.open(folder, _FOLDER)
    except NotADirectoryError:  # with O_DIRECTORY, also for a link
        raise CacheError(f"{folder}: it is a link or a file; a cache is a folder of its own") from None
    try:
        yield place
    finally:
        os.close(place)


def _open_lock(folder: pathlib.Path, place: int) -> int:
    try:
        return open_lock(_LOCK, folder=place)
    except FileNotFoundError:  # the folder has been removed
        raise
    except OSError as error:
        raise CacheError(f"{folder / _LOCK}: it cannot be used as a lock ({error.strerror})") from None
