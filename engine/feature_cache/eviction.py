"""Evicts feature caches when a budget on disk space is reached, the least recently used first and never one in use."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator

from engine.files import PathLike

_CACHE, _OURS = re.compile(r"[0-9a-f]{32}"), re.compile(r"shard-\d{6}|\.shard-.*\.tmp|manifest\.json|in_use")


@contextlib.contextmanager
def hold_cache(folder: pathlib.Path) -> Iterator[None]:
    """Marks a cache as in use, so that no other run evicts it. The mark ends with the process at the latest."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "in_use", "wb") as file:
        _lock(file.fileno(), alone=False)
        os.utime(folder)  # the most recently used cache is evicted last
        yield


def evict_caches(root: PathLike, needed: int, budget: int) -> list[pathlib.Path]:
    """Removes unused caches, the least recently used first, until ``needed`` more bytes fit; returns their folders."""
    paths = pathlib.Path(root).iterdir() if pathlib.Path(root).is_dir() else ()
    folders = [path for path in paths if path.is_dir() and not path.is_symlink() and _CACHE.fullmatch(path.name)]
    sizes = {
        path: sum(file.stat().st_size for file in path.iterdir() if _OURS.fullmatch(file.name)) for path in folders
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
    """Removes a cache's own files, and its folder if nothing else is in it; False if a run uses it."""
    with open(folder / "in_use", "wb") as file:
        if not _lock(file.fileno(), alone=True):
            return False
        for path in folder.iterdir():
            if _OURS.fullmatch(path.name):
                path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
    return True


def _lock(number: int, *, alone: bool) -> bool:
    """Whether an open file could be locked; on systems without locks, an exclusive lock always fails."""
    try:
        import fcntl
    except ImportError:
        return not alone
    try:
        fcntl.flock(number, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
