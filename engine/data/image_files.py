"""Image files as an indexed set: headers checked once, decoded in parallel when first needed, kept within a budget."""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
import os
import pathlib
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from engine.data.decode import LARGEST_FILE, check_memory, decode
from engine.data.header import BadImageError, read_header
from engine.data.part import DataError
from engine.data.resize import Size
from engine.reading import open_file
from engine.sizes import format_bytes

_EDGE = 4096  # bytes at each end of a file that its fingerprint covers
_SAY_EVERY = 5.0  # seconds
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b"\x00\x3b"}  # what the last bytes of a whole file hold

Say = Callable[[str], None]


class ImageFiles:
    """Images uint8 [n, height, width, 3], by the number of their file; implements ``engine.data.part.Images``.

    At first only headers and the ends of files are read, which tells files that are not images or are cut off. An image is
    decoded when it is first read, or by ``load``. The first images, as many as fit the budget, are then kept; the others
    are decoded each time they are read. Both give the same bits.

    Args:
        spec: the name of the source, for error messages.
        folder, names: the folder of the files, and their paths in it, with "/".
        size, budget: the (height, width) that each image is resized to, and the bytes that decoded images may take.
        skip_bad: whether to continue without unreadable files, which are listed in ``bad``; otherwise they are an error.
            Which these are decides the examples, so every image is then decoded at once.
        say: a function that is called with messages about the progress of slow work.

    Raises:
        DataError: files cannot be read, or their headers are damaged; the message names them.
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
        self._decoded = np.zeros(kept, bool)
        self._digests = [b""] * len(names)
        self._skip_bad, self._say = skip_bad, say
        self.bad = self._look(self._check, range(len(names)), "checked")
        if not skip_bad:
            self._refuse(self.bad)

    @property
    def kept(self) -> int:
        """The number of images in memory."""
        return len(self._kept)

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        out = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        held = self._held(numbers)
        out[held] = self._kept[numbers[held]]
        try:
            for place, image in zip(np.flatnonzero(~held), self._pool.map(self._read, numbers[~held]), strict=True):
                out[place] = image
        except DataError:  # where there is one damaged image there may be more: all are named at once
            self.load(np.setdiff1d(np.arange(len(self._kept)), list(self.bad)))
            raise
        return out

    def name(self, number: int) -> str:
        """The path of an image in the folder, safe to print."""
        return printable(self._names[number])

    def load(self, numbers: np.ndarray) -> None:
        """Decodes those of these images that memory keeps; raises DataError, which names all that are damaged."""
        wanted = np.unique(numbers[numbers < len(self._kept)])
        self._refuse(self._look(self._decode, wanted[~self._held(wanted)], "decoded"))

    def unloaded_bytes(self, numbers: np.ndarray) -> int:
        """Returns the memory that ``load`` would fill."""
        wanted = np.unique(numbers[numbers < len(self._kept)])
        return int((~self._held(wanted)).sum()) * self._size[0] * self._size[1] * 3

    def fingerprint(self) -> str:
        """Returns a SHA-256 over the image size and the names, lengths and both ends of the files."""
        hasher = hashlib.sha256(repr((self._size, sorted(self.bad))).encode())
        for name, digest in zip(self._names, self._digests, strict=True):
            hasher.update(os.fsencode(name) + b"\0" + digest)
        return hasher.hexdigest()

    def _held(self, numbers: np.ndarray) -> np.ndarray:
        """Which of these images are in memory."""
        held = numbers < len(self._kept)
        held[held] = self._decoded[numbers[held]]
        return held

    def _read(self, number: Any) -> np.ndarray:
        try:
            return self._decode(number)
        except BadImageError as error:
            raise DataError(f"data={self._spec}: {printable(self._names[number])}: {error}") from None

    def _decode(self, number: Any) -> np.ndarray:
        image = read_image(self._folder / self._names[number], self._size)
        if number < len(self._kept):
            self._kept[number] = image
            self._decoded[number] = True  # after its pixels: other threads read it without a lock
        return image

    def _check(self, number: Any) -> None:
        """Reads what identifies a file, and its header; decodes it where it may be skipped, or seems to be cut off."""
        with _open(self._folder / self._names[number]) as file:
            self._digests[number], end = _digest(file)
            if not self._skip_bad:
                header = read_header(file)
                check_memory(header, self._size)
                whole = header.kind in _ENDS and _ENDS[header.kind] in end
        if self._skip_bad or (not whole and number < len(self._kept)):
            self._decode(number)

    def _look(self, work: Callable[[Any], object], numbers: Sequence[int] | np.ndarray, done: str) -> dict[int, str]:
        """Does the work for these images in parallel; returns the bad ones, each with the reason."""

        def tried(number: int) -> str | None:
            try:
                work(number)
            except BadImageError as error:
                return str(error)
            return None

        bad: dict[int, str] = {}
        began = said = time.monotonic()
        for count, (number, reason) in enumerate(zip(numbers, self._pool.map(tried, numbers), strict=True), 1):
            if reason is not None:
                bad[int(number)] = reason
            if time.monotonic() - said > _SAY_EVERY:
                said = time.monotonic()
                self._say(f"images: {count:,} of {len(numbers):,} {done}")
        if said > began:
            size = int(self._decoded.sum()) * self._size[0] * self._size[1] * 3
            self._say(f"images: {done} in {time.monotonic() - began:.0f} s, {format_bytes(size)} kept in memory")
        return bad

    def _refuse(self, bad: Mapping[int, str]) -> None:
        if not bad:
            return
        listed = "".join(f"\n  {printable(self._names[n])}: {reason}" for n, reason in list(bad.items())[:10])
        more = f"\n  ... and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise DataError(
            f"data={self._spec}: {len(bad)} of {len(self._names)} images cannot be read "
            f"(--bad_images=skip leaves them out):{listed}{more}"
        )


def read_image(path: pathlib.Path, size: Size) -> np.ndarray:
    """Reads an image file as uint8 [height, width, 3] of this (height, width); raises BadImageError, which says why not."""
    with _open(path) as file:
        return decode(file.read(), size)


def _open(path: pathlib.Path) -> BinaryIO:
    """Opens a regular file that is not too large. (A pipe without a writer would block for ever.)"""
    try:
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):
            raise BadImageError("not a regular file")
        if facts.st_size > LARGEST_FILE:
            raise BadImageError(f"a file of {format_bytes(facts.st_size)}; the limit is {format_bytes(LARGEST_FILE)}")
        return open_file(path)
    except OSError as error:
        raise BadImageError(f"cannot be opened ({error.strerror or error})") from None


def _digest(file: BinaryIO) -> tuple[bytes, bytes]:
    """A SHA-256 over a file's length and both ends, and its last bytes. Leaves the file at its beginning."""
    try:
        length = file.seek(0, io.SEEK_END)
        file.seek(0)
        hasher = hashlib.sha256(str(length).encode() + b"\0" + file.read(_EDGE))
        file.seek(max(0, length - _EDGE))
        hasher.update(end := file.read(_EDGE))
        file.seek(0)
    except OSError as error:
        raise BadImageError(f"cannot be read ({error.strerror or error})") from None
    return hasher.digest(), end


def printable(name: str) -> str:
    """Makes a file name safe to print, by escaping control characters and bytes that are not text."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
