"""Image files as an indexed set: checked once, decoded in parallel, kept in memory as far as a budget goes."""

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

_EDGE = 4096  # bytes at both ends of a file that its fingerprint covers
_SAY_EVERY = 5.0  # seconds

Say = Callable[[str], None]


class ImageFiles:
    """Images [n, height, width, 3] uint8, by the number of their file; has ``engine.data.part.Images``.

    The first ones are kept decoded, as many as fit the budget; the others are decoded at each reading. Both
    give the same bits.

    Args:
        spec: the source, for errors.
        folder: where the files are.
        names: their paths in it, with "/".
        size: (height, width) that each is resized to.
        budget: bytes that decoded images may take in memory.
        skip_bad: go on without the files that cannot be read (they are in ``bad``); else they are an error.
        say: told about progress, when it takes long.

    Raises:
        DataError: files that cannot be read; they are named.
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
        self._spec = spec
        self._folder = folder
        self._names = list(names)
        self._size = size
        self.shape = (len(names), *size, 3)
        self.dtype = np.dtype(np.uint8)
        self._pool = concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 16), thread_name_prefix="decode")
        kept = min(len(names), budget // (size[0] * size[1] * 3))
        self._kept = np.zeros((kept, *size, 3), np.uint8)
        self._digests = [b""] * len(names)
        self.bad: dict[int, str] = {}
        self._check(skip_bad, say)
        if self.bad and not skip_bad:
            listed = "".join(f"\n  {shown(self._names[n])}: {reason}" for n, reason in list(self.bad.items())[:10])
            more = f"\n  ... and {len(self.bad) - 10} more" if len(self.bad) > 10 else ""
            raise DataError(
                f"data={spec}: {len(self.bad)} of {len(names)} images cannot be read "
                f"(--bad_images=skip goes on without them):{listed}{more}"
            )

    @property
    def kept(self) -> int:
        """How many images are in memory."""
        return len(self._kept)

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        out = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        held = numbers < len(self._kept)
        out[held] = self._kept[numbers[held]]
        late = np.flatnonzero(~held)
        for place, image in zip(late, self._pool.map(self._read, numbers[late]), strict=True):
            out[place] = image
        return out

    def fingerprint(self) -> str:
        """SHA-256 of names, lengths and both ends of the files, and of the size; not of what is kept."""
        hasher = hashlib.sha256(repr((self._size, sorted(self.bad))).encode())
        for name, digest in zip(self._names, self._digests, strict=True):
            hasher.update(os.fsencode(name) + b"\0" + digest)
        return hasher.hexdigest()

    def _read(self, number: Any) -> np.ndarray:
        try:
            with _open(self._folder / self._names[number]) as file:
                return decode(file.read(), self._size)
        except BadImageError as error:
            raise DataError(f"data={self._spec}: {shown(self._names[number])}: {error}") from None

    def _check(self, skip_bad: bool, say: Say) -> None:
        """Looks at every file: decodes those that are kept, or may be skipped; of the others, the header."""

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
    """Opens a regular file that is not too large; a pipe that nobody writes to would block for ever."""
    try:
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):
            raise BadImageError("it is no regular file")
        if facts.st_size > LARGEST_FILE:
            raise BadImageError(f"it has {format_bytes(facts.st_size)}; {format_bytes(LARGEST_FILE)} is the limit")
        return open(path, "rb")
    except OSError as error:
        raise BadImageError(f"it cannot be opened ({error.strerror or error})") from None


def _digest(file: BinaryIO) -> bytes:
    """SHA-256 of a file's length and ends; the file is at its beginning again."""
    try:
        length = file.seek(0, io.SEEK_END)
        file.seek(0)
        hasher = hashlib.sha256(str(length).encode() + b"\0" + file.read(_EDGE))
        file.seek(max(0, length - _EDGE))
        hasher.update(file.read(_EDGE))
        file.seek(0)
    except OSError as error:
        raise BadImageError(f"it cannot be read ({error.strerror or error})") from None
    return hasher.digest()


def shown(name: str) -> str:
    """A file name that any output can take: bytes that are no text, and control characters, escaped."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
