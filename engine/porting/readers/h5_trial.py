"""Opens HDF5 files in a process of its own first: a damaged one makes the library loop for ever, or crash."""

from __future__ import annotations

import functools
import os

from engine import host
from engine.errors import FileError
from engine.files import PathLike
from engine.reading import check_regular
from engine.trial import Trial

SECONDS, PER_BYTE = 2.0, 1 / 50e6  # of computing time for any file, and for each of its bytes
_WORK = """
import math, resource
import h5py
MOST_OBJECTS, MOST_TEXT = 100_000, 1 << 28

def work(request):
    path, limit = request
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    try:
        with open("/proc/self/statm") as own:
            used = int(own.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + limit, hard))
    except (OSError, ValueError):
        pass  # not Linux, or a lower limit already
    try:
        with h5py.File(path, "r") as file:
            visit(file, set(), limit, [0])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))

def attempt(what):
    try:
        what()
    except Exception:
        pass

def visit(item, above, limit, count):
    count[0] += 1
    if count[0] > MOST_OBJECTS:
        return
    attempt(lambda: attributes(item))
    if isinstance(item, h5py.Dataset):
        attempt(lambda: values(item, limit))
    if isinstance(item, h5py.Group):
        identity = h5py.h5o.get_info(item.id).addr
        if identity in above or len(above) > 64:
            return
        for key in item:
            attempt(lambda: child(item, key, above | {identity}, limit, count))

def child(group, key, above, limit, count):
    if isinstance(group.get(key, getlink=True), h5py.HardLink):
        visit(group[key], above, limit, count)

def attributes(item):
    for name in item.attrs:
        attempt(lambda: attribute(item, name))

def attribute(item, name):
    held = item.attrs.get_id(name)
    if held.get_storage_size() <= MOST_TEXT and math.prod(held.shape) <= MOST_OBJECTS:
        item.attrs[name]

def values(data, limit):
    if data.external or data.is_virtual:
        return
    settings = data.id.get_create_plist()
    [settings.get_filter(number) for number in range(settings.get_nfilters())]
    size = data.dtype.itemsize * math.prod(data.shape)
    if size <= min(limit, 1032 * data.id.get_storage_size()):
        data[()]
"""


def check_ends(path: PathLike) -> None:
    """Raises FileError if HDF5's library crashes on a file or does not end; a file that has passed is not tried again.

    Everything is read: the computing time that it may take grows with the file. An error that the library raises is left
    to whoever reads the file next.
    """
    check_regular(path)
    status = os.stat(path)
    _try(os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=256)
def _try(path: str, size: int, _mtime: int, _inode: int) -> None:
    seconds = SECONDS + PER_BYTE * size
    if _trial.run([path, host.memory_limit()], seconds) is None:
        raise FileError(
            f"{path}: damaged: HDF5's library crashes on it, or does not end within {seconds:.0f} s of computing time"
        )


_trial = Trial(_WORK, options=("-P",))
