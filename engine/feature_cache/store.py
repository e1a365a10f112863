"""The feature cache: the output of the frozen part, computed once per example and stored on disk.

A cache is a folder of shards (engine.feature_cache.shards), named by its key: the digest of everything that determines a
feature (the operations of the prefix, the values it reads, the data and their preparation, and the format of the files).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from engine import files
from engine.data.part import Part
from engine.distribution.shares import WHOLE, Share
from engine.errors import InputError
from engine.feature_cache.filling import Compute, Piece, fill_together
from engine.feature_cache.options import DTYPES
from engine.feature_cache.shards import FORMAT, Column, ShardError, Shards
from engine.frostline.line import Line, Refused
from engine.sizes import format_bytes
from engine.writing import NoSpaceError

SHARD_BYTES, _SHARD_ROWS = 64 << 20, 1024  # limits on the memory for writing a shard, and on the loss if killed


SHARE_IT = (
    "the workers of a run share the folder of the caches: --cache_dir (by default feature_cache next to --out) must lie on "
    "a disk that all of them have, or --cache=off trains without caches"
)


class FeaturesError(InputError):
    """A cache that cannot be created or used; the message says what would help."""


class Prepares(Protocol):
    """Batches of one part of the data, such as TrainBatches and EvalBatches."""

    part: Part
    augment: tuple[str, ...]

    @property
    def preparing(self) -> str: ...

    def prepared(self, index: np.ndarray, epoch: int) -> Any: ...


def explain_refusal(augment: Sequence[str], views: int | None) -> str | None:
    """Explains why features cannot be cached, given the kinds of augmentation and ``--cache_views``; None if they can."""
    if views is not None and views < 1:
        return f"cache_views={views}: expected at least 1"
    if augment and views is None:
        return (
            f"augment={','.join(augment)} draws anew in every epoch, but a cached feature would repeat one draw; "
            "--cache_views=K keeps K draws of each example and cycles through them, or leave --augment out"
        )
    if not augment and views is not None and views > 1:
        return f"cache_views={views}: without --augment all views of an example are the same"
    return None


class Features:
    """The cached tensors at a frost line, for every example of a part.

    Args:
        root, line: the folder of all caches, and where the step is cut.
        batches: the part, and how its images are prepared.
        data: the fingerprint of the data (``Source.fingerprint``).
        dtype: "bfloat16" or "float16" halves the size of float32 tensors; None keeps the type that the step computes in.
        views: the augmented views to keep of each example; see ``explain_refusal``.

    Attributes:
        key, folder, bytes: the SHA-256 (hexadecimal), the folder and the size of this cache.
        computed: the rows that this object computed; a row is a view of an example.

    Raises:
        FeaturesError: an unknown dtype, or a pipeline whose features cannot be cached.
        TracedError, FingerprintError: the prefix has no digest; see ``Line.digest``.
    """

    def __init__(
        self,
        root: files.PathLike,
        line: Line,
        batches: Prepares,
        *,
        data: str,
        dtype: str | None = None,
        views: int | None = None,
    ) -> None:
        if dtype is not None and dtype not in DTYPES:
            raise FeaturesError(f"cache_dtype={dtype!r} is not a valid type; expected {' or '.join(DTYPES)}")
        if (reason := explain_refusal(batches.augment, views)) is not None:
            raise FeaturesError(reason)
        self._line, self._batches, self.views = line, batches, views or 1
        self._numbers = np.unique(batches.part.index)
        self._dtypes = [np.dtype(tensor.dtype.as_numpy_dtype) for tensor in line.tensors]
        columns = [
            Column(tensor.shape, DTYPES[dtype] if dtype is not None and tensor.dtype.is_floating else own)
            for tensor, own in zip(line.tensors, self._dtypes, strict=True)
        ]
        rows = self.views * len(self._numbers)
        each = max(1, min(_SHARD_ROWS, SHARD_BYTES // max(1, sum(column.row for column in columns))))
        self._parts = {
            "format": FORMAT,
            "prefix": line.digest(),
            "tensors": [
                [list(t.shape), t.dtype.name, c.dtype.name] for t, c in zip(line.tensors, columns, strict=True)
            ],
            "data": data,
            "examples": hashlib.sha256(self._numbers.astype("<i8").tobytes()).hexdigest(),
            "preparation": batches.preparing,
            "views": self.views,
            "rows_per_shard": each,
        }
        self.key = hashlib.sha256(json.dumps(self._parts, sort_keys=True).encode()).hexdigest()
        self.folder = pathlib.Path(root) / self.key[:32]
        self._shards = Shards(self.folder, self.key, columns, rows=rows, each=each)
        self.bytes = sum(self._shards.bytes_of(shard) for shard in range(len(self._shards)))
        self.computed = 0
        self._unfinished: list[np.ndarray] = []  # the columns of the shard that is being filled
        self._share = WHOLE  # of the missing shards, those that this process computes

    @property
    def rows(self) -> int:
        """The number of rows: examples times views."""
        return self._shards.rows

    @property
    def damaged(self) -> list[str]:
        """The files that existed at opening but were rejected, each with the reason."""
        return self._shards.damaged

    @property
    def missing_rows(self) -> int:
        """The number of rows that ``fill`` has to compute."""
        return sum(self._shards.rows_of(shard) for shard in self._shards.missing)

    @property
    def missing_bytes(self) -> int:
        """The bytes that ``fill`` has to write."""
        return sum(self._shards.bytes_of(shard) for shard in self._shards.missing)

    @property
    def missing_shards(self) -> list[int]:
        """The numbers of the shards that ``fill`` has to write."""
        return self._shards.missing

    def own_rows(self, share: Share) -> int:
        """The number of rows that ``fill`` computes for this share."""
        return sum(self._shards.rows_of(shard) for shard in _shared(self._shards.missing, share))

    def fill(
        self,
        *,
        batch_size: int = 64,
        budget: int | None = None,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int], None] = lambda done, rows: None,
        lower: Features | None = None,
        ahead: Sequence[Features] = (),
        compute: Compute | None = None,
        share: Share = WHOLE,
    ) -> bool:
        """Computes and writes the missing shards, or a share of them; returns True if none of these is left.

        Args:
            batch_size, budget: the number of examples computed at a time, and the bytes that the whole cache may take.
            stop: called after each batch; True stops the filling. Written shards stay, an unfinished one is dropped.
            progress: called after each batch with the number of finished rows and of all rows.
            lower: a complete cache at a lower line of the same examples and views. Missing rows are computed from it
                instead of from the images, unless it stores fewer bits or does not suffice.
            ahead, compute: caches at other lines of the same examples and views that are filled in the same pass over
                the images, and what computes the tensors of this cache (0) and of them (1, ...).
            share: of each cache's missing shards in order, those that this process computes. They are computed in the
                same pieces whatever the share, so the files are the same bytes. ``take_over`` then finds the others.

        Raises:
            FeaturesError: the cache exceeds the budget, the disk is full, or the stored type cannot represent a value.
        """
        if budget is not None and self.bytes > budget:
            raise FeaturesError(
                f"the cache would take {format_bytes(self.bytes)}, {self.bytes // max(self.rows, 1):,} bytes for each of "
                f"{self.rows:,} rows, but the budget is {format_bytes(budget)} (--cache_dtype=bfloat16 halves float32)"
            )
        caches = [self, *ahead]
        for cache in caches:
            cache._tidy()
            cache._share = share
        if not any(cache.missing_rows for cache in caches):
            return True
        load: Callable[[np.ndarray, int], Any] = self._batches.prepared
        if compute is None:
            bridge = None if lower is None or lower.missing_rows else self.find_bridge(lower)
            if lower is not None and bridge is not None:
                load = lower._read_tensors
            once = self._line.prefix if bridge is None else bridge

            def compute(numbers: Sequence[int], given: Any) -> Sequence[Sequence[Any]]:
                return [once(given)]

        needed = 0
        for cache in caches:
            needed += cache._prepare(needed)
        before = self.rows - self.missing_rows
        return fill_together(
            caches,
            load,
            compute,
            batch_size=batch_size,
            stop=stop,
            progress=lambda done: progress(before + done, self.rows),
        )

    def pieces(self, batch_size: int) -> list[Piece]:
        """The missing rows in batches, none of which extends past the end of a shard or a view."""
        found, count = [], len(self._numbers)
        for shard in _shared(self._shards.missing, self._share):
            row, end = shard * self._shards.each, shard * self._shards.each + self._shards.rows_of(shard)
            while row < end:
                length = min(batch_size, end - row, count - row % count)
                found.append(Piece(row, length))
                row += length
        return found

    def examples(self, piece: Piece) -> tuple[np.ndarray, int]:
        """The numbers of the images of these rows, and their view."""
        view, place = divmod(piece.row, len(self._numbers))
        return self._numbers[place : place + piece.length], view

    def put(self, piece: Piece, values: Sequence[Any]) -> None:
        """Takes the computed tensors of a piece, in the order of ``pieces``; writes each shard with its last piece."""
        shards, (shard, start) = self._shards, divmod(piece.row, self._shards.each)
        rows, end = shards.rows_of(shard), start + piece.length
        if start == 0:
            self._unfinished = [np.zeros((rows, *column.shape), column.dtype) for column in shards.columns]
        for tensor, array, value in zip(self._line.tensors, self._unfinished, values, strict=True):
            array[start:end] = _narrowed(tensor.name, np.asarray(value), array.dtype)
        if end < rows:
            return
        with self._disk():
            shards.write(shard, self._unfinished)
            self._unfinished = []
            self.computed += rows
            if not shards.missing:
                self._write_manifest()

    def forget(self, shards: Iterable[int]) -> None:
        """Takes these shards for missing, because another process does not have them."""
        self._shards.forget(shards)

    def take_over(self, *, patience: float, writes: bool) -> None:
        """Verifies the shards that other processes have written; one of them also ``writes`` the manifest.

        Raises FeaturesError if some do not appear within ``patience`` seconds, which a network's file system may take.
        """
        until = time.monotonic() + patience
        self._shards.look_again()
        while (missing := self._shards.missing) and time.monotonic() < until:
            time.sleep(0.1)
            self._shards.look_again()
        if missing:
            raise FeaturesError(
                f"{self.folder}: {len(missing)} of {len(self._shards)} shards that other workers have computed are not "
                f"there, or are damaged; {SHARE_IT}"
            )
        if writes:
            with self._disk():
                self._write_manifest()

    def _write_manifest(self) -> None:
        shards = self._shards
        sums = [{"shard": n, "bytes": shards.bytes_of(n), "sha256": shards.sums[n]} for n in range(len(shards))]
        files.write_json(self.folder / "manifest.json", {"key": self.key, "of": self._parts, "shards": sums})

    def _tidy(self) -> None:
        """Removes what killed processes left, and completes what one left undone between the last shard and the end."""
        with contextlib.suppress(OSError, InputError):  # a cache that can only be read serves as well
            self._shards.sweep()
            if not self._shards.missing and not (self.folder / "manifest.json").exists():
                self._write_manifest()

    def read(self, index: np.ndarray, *, view: int = 0) -> dict[str, np.ndarray]:
        """Reads the tensors [B, *shape] of images by number [B], by their keys and in the type that the step computes in.

        Raises FeaturesError if the part has no such image, the cache no such view, or a shard is missing.
        """
        place = np.searchsorted(self._numbers, index)
        known = (place < len(self._numbers)) & (self._numbers[np.minimum(place, len(self._numbers) - 1)] == index)
        if not known.all():
            raise FeaturesError(f"index={index[~known][0]}: the cache has no such image")
        if not 0 <= view < self.views:
            raise FeaturesError(f"view={view}: expected a view from 0 to {self.views - 1}")
        try:
            found = self._shards.read(place + view * len(self._numbers))
        except ShardError as error:
            raise FeaturesError(f"{error}; fill() computes it") from None
        tensors = zip(self._line.tensors, self._dtypes, found, strict=True)
        return {tensor.key: values.astype(dtype, copy=False) for tensor, dtype, values in tensors}

    def find_bridge(self, lower: Features) -> Callable[[Any], Any] | None:
        """The function from the tensors of a cache at a lower line to those of this one; None if these do not suffice."""
        same = np.array_equal(lower._numbers, self._numbers) and lower._parts["data"] == self._parts["data"]
        exact = all(column.dtype == own for column, own in zip(lower._shards.columns, lower._dtypes, strict=True))
        prepared = lower._parts["preparation"] == self._parts["preparation"] and lower.views == self.views
        if not (same and exact and prepared):
            return None
        found = self._line.build_bridge(lower._line)
        return None if isinstance(found, Refused) else found

    def _read_tensors(self, numbers: np.ndarray, view: int) -> dict[str, Any]:
        return {name: tf.constant(value) for name, value in self.read(numbers, view=view).items()}

    def _prepare(self, others: int) -> int:
        """Makes the folder ready for shards; returns their bytes, which must fit on the disk besides those of others."""
        with self._disk():
            self.folder.mkdir(parents=True, exist_ok=True)
            needed = self.missing_bytes
            if others + needed > (free := shutil.disk_usage(self.folder).free):
                raise FeaturesError(
                    f"{self.folder}: the cache needs {format_bytes(needed)}, but only {format_bytes(free - others)} are free"
                )
            return needed

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """Turns errors of the disk into FeaturesError."""
        try:
            yield
        except OSError as error:
            if isinstance(error, NoSpaceError) or error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise FeaturesError(
                    f"{self.folder}: no space is left on the disk; finished shards stay, and the next run continues from "
                    f"them ({error})"
                ) from None
            raise FeaturesError(f"{self.folder}: cannot write the cache ({error.strerror or error})") from None


def _shared(shards: Sequence[int], share: Share) -> list[int]:
    """The shards that this share computes."""
    first, stop = share.bounds(len(shards))
    return list(shards[first:stop])


def _narrowed(name: str, values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """The values in the stored type, whose range must include them."""
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        narrow = values.astype(dtype)
    finite = np.isfinite(values)
    if not np.array_equal(np.isfinite(narrow), finite):
        raise FeaturesError(
            f"cache_dtype={dtype.name} cannot represent {np.max(np.abs(values[finite])):.3g}, a value of {name}; "
            "bfloat16 has the range of float32"
        )
    return narrow
