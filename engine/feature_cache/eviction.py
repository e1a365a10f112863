"""Room on disk for caches of features: which are in use, and which go first when a budget is reached."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator

from engine.files import PathLike

_CACHE, _OURS = re.compile(r"[0-9a-f]{32}"), re.compile(r"shard-\d{6}|\.shard-.*\.tmp|manifest\.json|in_use")


@contextlib.contextmanager
def taken(folder: pathlib.Path) -> Iterator[None]:
    """Marks a cache as in use, so that no other run removes it meanwhile. The mark ends with the process at the latest."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "in_use", "wb") as file:
        _lock(file.fileno(), alone=False)
        os.utime(folder)  # the one used last is removed last
        yield


def make_room(root: PathLike, needed: int, budget: int) -> list[pathlib.Path]:
    """Removes caches that nobody uses, the one used longest ago first, until ``needed`` more bytes fit; tells which."""
    folders = [path for path in _folders(root) if _CACHE.fullmatch(path.name)]
    sizes = {
        path: sum(file.stat().st_size for file in path.iterdir() if _OURS.fullmatch(file.name)) for path in folders
    }
    removed = []
    for path in sorted(folders, key=lambda path: path.stat().st_mtime):
        if sum(sizes.values()) + needed <= budget:
            break
        if _removed(path):
            removed.append(path)
            del sizes[path]
    return removed


def _folders(root: PathLike) -> list[pathlib.Path]:
    root = pathlib.Path(root)
    return [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()] if root.is_dir() else []


def _removed(folder: pathlib.Path) -> bool:
    """Removes a cache's own files, and the folder when nothing else is in it; False where a run uses it."""
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
    """Whether an open file could be locked; where the system has no locks, alone never."""
    try:
        import fcntl
    except ImportError:
        return not alone
    try:
        fcntl.flock(number, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
