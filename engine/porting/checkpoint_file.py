"""Tensors of a TensorFlow checkpoint in the V2 format (``PREFIX.index``, ``PREFIX.data-...``)."""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from engine.files import FileError, PathLike

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLICED = (tf.float32, tf.float64, tf.int32, tf.int64)  # what RestoreV2 restores slices of


class Checkpoint:
    """A checkpoint as a TensorSource (engine.porting.source).

    Names lose ``/.ATTRIBUTES/VARIABLE_VALUE``; a ``/`` or ``.`` inside a key (TensorFlow writes ``.S``
    and ``..``) is itself again. Text and resources (the object graph) are no tensors here.

    Raises:
        FileError: no checkpoint, a damaged index, or one that promises more than its data files hold.
    """

    checksums = True

    def __init__(self, prefix: PathLike) -> None:
        self._prefix = str(prefix)
        self.path = pathlib.Path(prefix)
        self._keys: dict[str, str] = {}
        folder, base = pathlib.Path(f"{self._prefix}.index").parent, pathlib.Path(f"{self._prefix}.index").name[:-6]
        held = sum(file.stat().st_size for file in folder.iterdir() if file.name.startswith(f"{base}.data-"))
        with self._damage(""):
            self._reader = tf.compat.v1.train.NewCheckpointReader(self._prefix)
            shapes, dtypes = (
                self._reader.get_variable_to_shape_map(),
                self._reader.get_variable_to_dtype_map(),
            )
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, tf.DType] = {}
        for key in sorted(shapes):
            dtype = tf.as_dtype(dtypes[key])
            if not (dtype.is_floating or dtype.is_integer or dtype.is_bool or dtype.is_complex):
                continue
            name, shape = _readable(key), tuple(int(length) for length in shapes[key])
            if name in self._keys:
                raise FileError(f"{self.path}: {name}: the checkpoint holds it twice")
            if any(length < 0 for length in shape) or math.prod(shape) * dtype.size > held:
                raise FileError(
                    f"{self.path}: {name}: shape {list(shape)} {dtype.name} is more than the {held:,} bytes "
                    "of its data files; they are truncated, or missing"
                )
            self._keys[name], self._shapes[name], self._dtypes[name] = key, shape, dtype

    def names(self) -> list[str]:
        return list(self._keys)

    def shape(self, name: str) -> tuple[int, ...]:
        self._key(name)
        return self._shapes[name]

    def dtype(self, name: str) -> np.dtype[Any]:
        self._key(name)
        return np.dtype(self._dtypes[name].as_numpy_dtype)

    def read(self, name: str) -> np.ndarray:
        return self._restore(name, "")

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        shape = self.shape(name)
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise FileError(f"{self.path}: {name}: rows {start} to {stop} of shape {list(shape)}")
        if start == stop:
            return np.empty((0, *shape[1:]), self.dtype(name))
        if self._dtypes[name] not in _SLICED:
            return self.read(name)[start:stop].copy()
        rest = "".join(":-" for _ in shape[1:])
        return self._restore(name, f"{' '.join(map(str, shape))} {start},{stop - start}{rest}")

    def close(self) -> None:
        pass  # every read opens and closes the files itself

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _restore(self, name: str, rows: str) -> np.ndarray:
        key = self._key(name)
        with self._damage(name), tf.device("CPU:0"):
            (value,) = tf.raw_ops.RestoreV2(
                prefix=self._prefix, tensor_names=[key], shape_and_slices=[rows], dtypes=[self._dtypes[name]]
            )
        return value.numpy()

    def _key(self, name: str) -> str:
        if name not in self._keys:
            raise FileError(f"{self.path}: it has no {name}")
        return self._keys[name]

    @contextmanager
    def _damage(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # OpError, ValueError, IndexError, RuntimeError: by the kind of damage
            where = f"{self.path}: {name}" if name else f"{self.path}"
            raise FileError(f"{where}: damaged or truncated ({str(error)[:200] or type(error).__name__})") from None


def _readable(key: str) -> str:
    escapes = {".S": "/", "..": "."}
    return re.sub(r"\.S|\.\.", lambda match: escapes[match.group()], key.removesuffix(_VALUE))
