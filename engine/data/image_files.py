"""Image files as an indexed set: checked once, decoded in parallel, and kept in memory within a budget."""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
import os
import pathlib
import stat
import time
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np

from engine.data.decode import LARGEST_FILE, check_memory, decode
from engine.data.header import BadImageError, read_header
from engine.data.part import DataError
from engine.data.resize import Size
from engine.sizes import format_bytes

_EDGE = 4096  # bytes at each end of a file that its fingerprint covers
_SAY_EVERY = 5.0  # seconds

Say = Callable[[str], None]


class ImageFiles:
    """Images uint8 [n, height, width, 3], by the number of their file; implements ``engine.data.part.Images``.

    The first images, as many as fit the budget, are kept decoded; the others are decoded each time they are read. Both
    give the same bits.

    Args:
        spec: the name of the source, for error messages.
        folder, names: the folder of the files, and their paths in it, with "/".
        size, budget: the (height, width) that each image is resized to, and the bytes that decoded images may take.
        skip_bad: whether to continue without unreadable files, which are listed in ``bad``; otherwise they are an error.
        say: a function that is called with messages about the progress of slow work.

    Raises:
        DataError: files cannot be read; the message names them.
    """

    def __init__(
        self,
        spec: str,
        folder: pathlib.Path,
        names: Sequence[str],
        *,
        size: Size,
        budget: int,
        skip_bad: bool,
        say: Say = print,
    ) -> None:
        self._spec, self._folder, self._names, self._size = spec, folder, list(names), size
        self.shape = (len(names), *size, 3)
        self.dtype = np.dtype(np.uint8)
        self._pool = concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 16), thread_name_prefix="decode")
        kept = min(len(names), budget // (size[0] * size[1] * 3))
        self._kept = np.zeros((kept, *size, 3), np.uint8)
        self._digests = [b""] * len(names)
        self.bad: dict[int, str] = {}
        self._check(skip_bad, say)
        if self.bad and not skip_bad:
            listed = "".join(f"\n  {printable(self._names[n])}: {reason}" for n, reason in list(self.bad.items())[:10])
            more = f"\n  ... and {len(self.bad) - 10} more" if len(self.bad) > 10 else ""
            raise DataError(
                f"data={spec}: {len(self.bad)} of {len(names)} images cannot be read "
                f"(--bad_images=skip leaves them out):{listed}{more}"
            )

    @property
    def kept(self) -> int:
        """The number of images in memory."""
        return len(self._kept)

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        out = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        held = numbers < len(self._kept)
        out[held] = self._kept[numbers[held]]
        for place, image in zip(np.flatnonzero(~held), self._pool.map(self._read, numbers[~held]), strict=True):
            out[place] = image
        return out

    def fingerprint(self) -> str:
        """Returns a SHA-256 over the image size and the names, lengths and both ends of the files."""
        hasher = hashlib.sha256(repr((self._size, sorted(self.bad))).encode())
        for name, digest in zip(self._names, self._digests, strict=True):
            hasher.update(os.fsencode(name) + b"\0" + digest)
        return hasher.hexdigest()

    def _read(self, number: Any) -> np.ndarray:
        try:
            with _open(self._folder / self._names[number]) as file:
                return decode(file.read(), self._size)
        except BadImageError as error:
            raise DataError(f"data={self._spec}: {printable(self._names[number])}: {error}") from None

    def _check(self, skip_bad: bool, say: Say) -> None:
        """Checks every file: decodes those that are kept or may be skipped, and reads only the header of the others."""

        def look(number: int) -> str | None:
            decoded = skip_bad or number < len(self._kept)
            try:
                with _open(self._folder / self._names[number]) as file:
                    self._digests[number] = _digest(file)
                    data = file.read() if decoded else b""
                    if not decoded:
                        check_memory(read_header(file), self._size)
                if decoded:
                    image = decode(data, self._size)
                    if number < len(self._kept):
                        self._kept[number] = image
            except BadImageError as error:
                return str(error)
            return None

        began = said = time.monotonic()
        for number, reason in enumerate(self._pool.map(look, range(len(self._names)))):
            if reason is not None:
                self.bad[number] = reason
            if time.monotonic() - said > _SAY_EVERY:
                said = time.monotonic()
                say(f"images: {number + 1:,} of {len(self._names):,} checked")
        if said > began:
            say(
                f"images: checked in {time.monotonic() - began:.0f} s, {format_bytes(self._kept.nbytes)} kept in memory"
            )


def _open(path: pathlib.Path) -> BinaryIO:
    """Opens a regular file that is not too large. (A pipe without a writer would block for ever.)"""
    try:
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):
            raise BadImageError("not a regular file")
        if facts.st_size > LARGEST_FILE:
            raise BadImageError(f"a file of {format_bytes(facts.st_size)}; the limit is {format_bytes(LARGEST_FILE)}")
        return open(path, "rb")
    except OSError as error:
        raise BadImageError(f"cannot be opened ({error.strerror or error})") from None


def _digest(file: BinaryIO) -> bytes:
    """A SHA-256 over a file's length and both ends. Leaves the file at its beginning."""
    try:
        length = file.seek(0, io.SEEK_END)
        file.seek(0)
        hasher = hashlib.sha256(str(length).encode() + b"\0" + file.read(_EDGE))
        file.seek(max(0, length - _EDGE))
        hasher.update(file.read(_EDGE))
        file.seek(0)
    except OSError as error:
        raise BadImageError(f"cannot be read ({error.strerror or error})") from None
    return hasher.digest()


def printable(name: str) -> str:
    """Makes a file name safe to print, by escaping control characters and bytes that are not text."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
