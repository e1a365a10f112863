"""Tensors of a Keras HDF5 file: ``.weights.h5`` of Keras 3, and the older weights and whole-model files.

HDF5 can do much that a weights file needs not: links to other files, data in other files, Python
objects, filters from plug-ins. All of it is refused; no path leads out of the file.
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np

from engine.files import FileError, PathLike

_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
_MOST_PACKED = 1032  # deflate's largest ratio; lzf's is smaller
_MOST_OBJECTS = 100_000


class KerasH5:
    """A Keras HDF5 file as a TensorSource (engine.porting.readers.source).

    Names are the paths of the data sets: ``layers/dense/vars/0`` in Keras 3 files. In older files
    ``model_weights/`` in front and ``:0`` behind are left out: ``dense/dense/kernel``.

    Raises:
        FileError: no HDF5, truncated, no weights of Keras, or a part that is refused.
    """

    checksums = True  # of some filters; and its reader finds much damage late

    def __init__(self, path: PathLike) -> None:
        try:
            import h5py
        except ImportError:
            raise FileError(f"{path}: an HDF5 file needs the package h5py: pip install 'frostline[weights]'") from None
        self._h5py = h5py
        self.path = pathlib.Path(path)
        self._sets: dict[str, Any] = {}
        self._objects = 0
        with self._damage("", "no HDF5 file, or a truncated one"):
            self._file = h5py.File(self.path, "r")
        try:
            with self._damage("", "damaged"):
                self._walk(self._file, "", set())
                if not self._sets or not self._is_keras():
                    held = ", ".join(list(self._sets)[:3]) or "nothing"
                    raise FileError(
                        f"{self.path}: an HDF5 file, but no weights of Keras; it holds {held}. Keras writes "
                        "groups `vars`, or an attribute `layer_names`"
                    )
        except BaseException:
            self._file.close()
            raise

    def names(self) -> list[str]:
        return list(self._sets)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._set(name).shape)

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._dtype(self._set(name))

    def read(self, name: str) -> np.ndarray:
        data = self._set(name)
        with self._damage(name, "damaged or truncated"):
            return np.asarray(data[()]).view(self._dtype(data))

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        data = self._set(name)
        if not data.shape or not 0 <= start <= stop <= data.shape[0]:
            raise FileError(f"{self.path}: {name}: rows {start} to {stop} of shape {list(data.shape)}")
        with self._damage(name, "damaged or truncated"):
            return np.asarray(data[start:stop]).view(self._dtype(data))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> KerasH5:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _set(self, name: str) -> Any:
        if name not in self._sets:
            raise FileError(f"{self.path}: it has no {name}")
        return self._sets[name]

    @staticmethod
    def _dtype(data: Any) -> np.dtype[Any]:
        """Keras stores bfloat16 as bytes without a type, and says so in an attribute."""
        is_bfloat16 = data.dtype == np.dtype("V2") and data.attrs.get("dtype") == "bfloat16"
        return np.dtype(ml_dtypes.bfloat16) if is_bfloat16 else data.dtype

    def _walk(self, group: Any, path: str, above: set[Any]) -> None:
        """Collects data sets below a group. Only hard links are followed, and no cycle."""
        identity = self._h5py.h5o.get_info(group.id).addr
        if identity in above or len(above) > 64:
            raise FileError(f"{self.path}: {path or '/'}: a group that lies in itself, or too deep")
        for key in group:
            self._objects += 1
            if self._objects > _MOST_OBJECTS:
                raise FileError(f"{self.path}: more than {_MOST_OBJECTS:,} objects are not believable")
            place = f"{path}/{key}" if path else key
            link = group.get(key, getlink=True)
            if not isinstance(link, self._h5py.HardLink):
                raise FileError(f"{self.path}: {place}: a {type(link).__name__}; links are never followed")
            item = group[key]
            if isinstance(item, self._h5py.Group):
                self._walk(item, place, above | {identity})
            elif isinstance(item, self._h5py.Dataset):
                self._add(place, item)

    def _add(self, place: str, data: Any) -> None:
        name = place.removeprefix("model_weights/").removesuffix(":0")
        if data.dtype.kind not in "fiub" and self._dtype(data) != ml_dtypes.bfloat16:
            if name.startswith(("optimizer", "_")) or data.shape == ():
                return  # Keras keeps texts beside the weights
            raise FileError(f"{self.path}: {place}: holds {data.dtype}, not numbers; objects are never loaded")
        if data.external or data.is_virtual:
            raise FileError(f"{self.path}: {place}: its data lie in another file; links are never followed")
        settings = data.id.get_create_plist()
        filters = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
        if unknown := [number for number in filters if number not in _FILTERS]:
            raise FileError(f"{self.path}: {place}: filter {unknown[0]}; only {', '.join(_FILTERS.values())} are read")
        size, held = data.dtype.itemsize * math.prod(data.shape), data.id.get_storage_size()
        if data.shape is None or size > held * (_MOST_PACKED if filters else 1):
            raise FileError(
                f"{self.path}: {place}: shape {list(data.shape or ())} {data.dtype} takes {size:,} bytes, "
                f"the file has {held:,} of it"
            )
        if held > self.path.stat().st_size:
            raise FileError(f"{self.path}: {place}: its {held:,} bytes are more than the file has")
        if name in self._sets:
            raise FileError(f"{self.path}: {name}: the file holds it twice")
        self._sets[name] = data

    def _is_keras(self) -> bool:
        groups = [self._file, self._file.get("model_weights")]
        old = any(isinstance(group, self._h5py.Group) and "layer_names" in group.attrs for group in groups)
        return old or any(re.search(r"(^|/)vars/\d+$", name) for name in self._sets)

    @contextmanager
    def _damage(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        except (FileError, MemoryError):
            raise
        except Exception as error:  # h5py raises OSError, RuntimeError, KeyError, ValueError on damaged bytes
            where = f"{self.path}: {name}" if name else f"{self.path}"
            raise FileError(f"{where}: {what} ({str(error)[:200] or type(error).__name__})") from None
