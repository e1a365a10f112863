"""Reads the tensors of a TensorFlow checkpoint in the V1 format (one file, or ``-00000-of-NNNNN`` shards)."""

from __future__ import annotations

import math
import pathlib
import re
from typing import Any

import numpy as np
import tensorflow as tf

from engine.files import FileError
from engine.porting.readers.bundle_index import check_v1
from engine.porting.readers.checkpoint_file import explaining_damage
from engine.porting.readers.closing import Closing
from engine.porting.readers.locate import Found
from engine.reading import check_memory

_MOST_RATIO = 32  # bytes of memory per byte of a V1 file, whose integers are varints and whose blocks may be packed


class V1Checkpoint(Closing):  # every read opens and closes the files
    """A checkpoint in the V1 format (one file, or ``-00000-of-NNNNN`` shards) as a TensorSource.

    The format keeps a piece as one value, so a slice of a variable that is stored in one piece is cut from the whole,
    which is in memory meanwhile. For a partitioned variable, only the pieces concerned are read. Raises FileError if
    the checkpoint is damaged, or declares a tensor that cannot be in files of this size.
    """

    checksums = True

    def __init__(self, found: Found) -> None:
        self.path = pathlib.Path(found.prefix)
        name = re.sub(r"-\d{5}-of-", "-?????-of-", found.files[0].name)
        # TensorFlow takes this as a pattern, in which the folder is meant literally
        folder = str(found.files[0].parent)
        self._pattern = f"{_escaped(folder)}/{name if len(found.files) > 1 else _escaped(found.files[0].name)}"
        self._held = sum(file.stat().st_size for file in found.files)
        self._dtypes: dict[str, tf.DType] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._others: list[str] = []
        for file in found.files:
            check_v1(file)
        with explaining_damage(self.path, ""):
            reader = tf.compat.v1.train.NewCheckpointReader(self._pattern)
            shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        for key in sorted(shapes):
            dtype = tf.as_dtype(dtypes[key])
            if not (dtype.is_floating or dtype.is_integer or dtype.is_bool or dtype.is_complex):
                self._others.append(key)
                continue
            shape = tuple(int(length) for length in shapes[key])
            if any(length < 0 for length in shape) or math.prod(shape) * dtype.size > _MOST_RATIO * self._held:
                raise FileError(
                    f"{self.path}: {key}: shape {list(shape)} {dtype.name} cannot be in {self._held:,} bytes of files"
                )
            self._dtypes[key], self._shapes[key] = dtype, shape

    def names(self) -> list[str]:
        return list(self._shapes)

    def others(self) -> list[str]:
        """Returns the entries that are not tensors of numbers."""
        return list(self._others)

    def shape(self, name: str) -> tuple[int, ...]:
        self._check_name(name)
        return self._shapes[name]

    def dtype(self, name: str) -> np.dtype[Any]:
        self._check_name(name)
        return np.dtype(self._dtypes[name].as_numpy_dtype)

    def read(self, name: str) -> np.ndarray:
        return self._restore(name, "")

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        shape = self.shape(name)
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise FileError(f"{self.path}: {name}: rows {start} to {stop} of shape {list(shape)}")
        if start == stop:
            return np.empty((0, *shape[1:]), self.dtype(name))
        rest = "".join(":-" for _ in shape[1:])
        return self._restore(name, f"{' '.join(map(str, shape))} {start},{stop - start}{rest}")

    def _restore(self, name: str, rows: str) -> np.ndarray:
        check_memory(self.path, math.prod(self.shape(name)) * self._dtypes[name].size, name)
        with explaining_damage(self.path, name), tf.device("CPU:0"):
            (value,) = tf.raw_ops.RestoreV2(
                prefix=self._pattern, tensor_names=[name], shape_and_slices=[rows], dtypes=[self._dtypes[name]]
            )
            return np.asarray(value.__array__())

    def _check_name(self, name: str) -> None:
        if name not in self._shapes:
            raise FileError(f"{self.path}: the file has no tensor {name}")


def _escaped(text: str) -> str:
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)
