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
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np

from engine.data.decode import LARGEST_FILE, check_memory, decode
from engine.data.header import BadImageError, Header, check_stored_tiff, read_header
from engine.data.image_options import DEFAULT, ImageForm, ImageOptions
from engine.data.part import DataError
from engine.data.resize import Size
from engine.reading import open_file
from engine.sizes import format_bytes
from engine.text import join_words

_EDGE = 4096  # bytes at each end of a file that its fingerprint covers
_SAY_EVERY = 5.0  # seconds
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b"\x00\x3b"}  # what the last bytes of a whole file hold
_MEASURED = ("WebP", "TIFF")  # their headers say how long the file is, and are compared with it

Say = Callable[[str], None]


class ImageFiles:
    """Images [n, height, width, channels], by the number of their file; implements ``engine.data.part.Images``.

    They are uint8 and have three channels, unless ``options`` say otherwise.

    At first only headers and the ends of files are read, which tells files that are not images or are cut off. An image is
    decoded when it is first read, or by ``load``. The first images, as many as fit the budget, are then kept; the others
    are decoded each time they are read. Both give the same bits.

    Args:
        spec: the name of the source, for error messages.
        folder, names: the folder of the files, and their paths in it, with "/".
        size, budget: the (height, width) that each image is resized to, and the bytes that decoded images may take.
        options: how files become arrays. With ``image_pixels="stored"``, the headers of all files decide about the channels,
            in which they must agree, and about the dtype: float32 where one has more than 8 bits.
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
        options: ImageOptions = DEFAULT,
        say: Say = print,
    ) -> None:
        self._spec, self._folder, self._names = spec, folder, list(names)
        self._pool = concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 16), thread_name_prefix="decode")
        self._skip_bad, self._say = skip_bad, say
        self._decoded = np.zeros(0, bool)
        self.holds_floats = False  # whether a file stores floats, and so may hold NaN
        self.form = ImageForm(size=size, options=options)
        if options.image_pixels == "stored":
            self.form = self._settle(size, options)
        self.shape, self.dtype = (len(names), *self.form.shape), self.form.dtype
        kept = min(len(names), budget // self.form.bytes)
        self._kept = np.zeros((kept, *self.form.shape), self.dtype)
        self._decoded = np.zeros(kept, bool)
        self._digests = [b""] * len(names)
        self._deep = False
        self.bad = self._look(self._check, range(len(names)), "checked")
        if self._deep and self.dtype == np.uint8:
            say(
                "data: some images have 16 bits a channel, of which the upper 8 are read; --image_pixels=stored reads all"
            )
        if not skip_bad:
            self._refuse(self.bad)

    @property
    def kept(self) -> int:
        """The number of images in memory."""
        return len(self._kept)

    @property
    def paths(self) -> Sequence[str] | None:
        """The paths of all images in the folder, as the data name them; None if they are not files."""
        return self._names

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        out = np.empty((len(numbers), *self.shape[1:]), self.dtype)
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
        return int((~self._held(wanted)).sum()) * self.form.bytes

    def fingerprint(self) -> str:
        """Returns a SHA-256 over the form of the images and the names, lengths and both ends of the files."""
        hasher = hashlib.sha256(repr((self.form.size, sorted(self.bad))).encode())
        hasher.update(self.form.description.encode())
        for name, digest in zip(self._names, self._digests, strict=True):
            hasher.update(os.fsencode(name) + b"\0" + digest)
        return hasher.hexdigest()

    def _open(self, number: Any) -> BinaryIO:
        """The encoded image, from its beginning; BadImageError if it cannot be opened."""
        return _open(self._folder / self._names[number])

    def _settle(self, size: Size, options: ImageOptions) -> ImageForm:
        """The form in which files keep what they store: one number of channels, and a dtype that holds all values."""
        found: dict[tuple[int, bool], list[int]] = {}

        def look(number: Any) -> None:
            with self._open(number) as file:
                header = read_header(file)
                if header.kind == "TIFF" and check_stored_tiff(file).kind == "f":
                    self.holds_floats = True
            found.setdefault((header.channels, header.bits > 8), []).append(int(number))

        bad = self._look(look, range(len(self._names)), "looked at")
        if not self._skip_bad:
            self._refuse(bad)
        if len(channels := sorted({count for count, _ in found})) > 1:
            some = [min(min(numbers) for (n, _), numbers in found.items() if n == count) for count in channels]
            told = join_words(f"{count} ({self.name(number)})" for count, number in zip(channels, some, strict=True))
            raise DataError(
                f"data={self._spec}: images have different numbers of channels: {told}; --image_pixels=rgb makes colour of "
                "all of them"
            )
        form = ImageForm(size=size, options=options)
        if not found:
            return form
        deep = any(more for _, more in found)
        if deep and len(found) > 1:
            self._say(
                "data: images of 8 and of more bits together: all become float32, 1 being the largest value of each"
            )
        return replace(form, channels=channels[0], dtype=np.dtype(np.float32 if deep else np.uint8))

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
        with self._open(number) as file:
            image = decode(file.read(), self.form)
        if number < len(self._kept):
            self._kept[number] = image
            self._decoded[number] = True  # after its pixels: other threads read it without a lock
        return image

    def _check(self, number: Any) -> None:
        """Reads what identifies a file, and its header; decodes it where it may be skipped, or seems to be cut off."""
        with self._open(number) as file:
            self._digests[number], end = _digest(file)
            if not self._skip_bad:
                header = read_header(file)
                check_memory(header, self.form)
                self._deep |= header.bits > 8
                whole = header.kind in _MEASURED or (header.kind in _ENDS and _ENDS[header.kind] in end)
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
            size = int(self._decoded.sum()) * self.form.bytes
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


def read_image(path: pathlib.Path, form: ImageForm | Size) -> np.ndarray:
    """Reads an image file in a form, or as uint8 RGB of a size (height, width); raises BadImageError, which says why not."""
    with _open(path) as file:
        return decode(file.read(), form)


def read_file_header(path: pathlib.Path) -> Header:
    """Reads the header of an image file, with its size and orientation; raises BadImageError, which says why not."""
    with _open(path) as file:
        return read_header(file)


def read_whole_header(path: pathlib.Path) -> Header:
    """As ``read_file_header``, for an image of which places are told; BadImageError too if its array shows only a part of it."""
    header = read_file_header(path)
    if not header.whole:
        raise BadImageError("the first frame of the GIF does not fill it; save it as PNG")
    return header


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


_TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how they begin


def _digest(file: BinaryIO) -> tuple[bytes, bytes]:
    """A SHA-256 over a file's length and both ends, and its last bytes. Leaves the file at its beginning.

    Of a TIFF it is over all bytes: other values often take the same space there, between ends that stay as they were.
    """
    try:
        length = file.seek(0, io.SEEK_END)
        file.seek(0)
        hasher = hashlib.sha256(str(length).encode() + b"\0" + file.read(_EDGE))
        file.seek(max(0, length - _EDGE))
        hasher.update(end := file.read(_EDGE))
        file.seek(0)
        if file.read(4) in _TIFFS:
            while piece := file.read(1 << 20):
                hasher.update(piece)
        file.seek(0)
    except OSError as error:
        raise BadImageError(f"cannot be read ({error.strerror or error})") from None
    return hasher.digest(), end


def printable(name: str) -> str:
    """Makes a file name safe to print, by escaping control characters and bytes that are not text."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
