"""Reads the tensors of a Keras HDF5 file: ``.weights.h5`` of Keras 3, and older weights and whole-model files.

HDF5 can do much that a weights file does not need: links to other files, data in other files, Python
objects, filters from plug-ins. All of it is refused, and no path leads out of the file.
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
from engine.porting.readers.closing import Closing
from engine.porting.readers.h5_trial import check_ends
from engine.reading import check_memory, check_names, check_total
from engine.text import join_some

_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
_MOST_PACKED = 1032  # the largest compression ratio of deflate; that of lzf is smaller
_MOST_OBJECTS = 100_000
_MOST_TEXT = 1 << 28  # bytes of a text attribute: more than any model's configuration has


class KerasH5(Closing):
    """A Keras HDF5 file as a TensorSource (engine.porting.readers.source).

    Names are the paths of the data sets, such as ``layers/dense/vars/0`` in Keras 3 files. In older files a leading
    ``model_weights/`` and a trailing ``:0`` are dropped: ``dense/dense/kernel``. Raises FileError if the file is not
    HDF5, is truncated, holds no Keras weights, or has a part that is refused. ``own`` says that this process wrote the file;
    any other is first opened in another process, where the library may crash.
    """

    checksums = True  # some filters have them, and h5py finds much damage only when it reads

    def __init__(self, path: PathLike, *, own: bool = False) -> None:
        try:
            import h5py
        except ImportError:
            raise FileError(f"{path}: reading HDF5 needs the package h5py: pip install 'frostline[weights]'") from None
        self._h5py = h5py
        if not own:
            check_ends(path)
        self.path = pathlib.Path(path)
        self._sets: dict[str, Any] = {}
        self._groups: dict[str, Any] = {}
        self._objects = 0
        with self._damage("", "not an HDF5 file, or a truncated one"):
            self._file = h5py.File(self.path, "r")
        try:
            with self._damage("", "damaged"):
                self._walk(self._file, "", set())
                if not (self._sets or "model_config" in self._file.attrs) or not self._is_keras():
                    held = join_some(list(self._sets), most=3) or "nothing"
                    raise FileError(
                        f"{self.path}: an HDF5 file, but not Keras weights; it holds {held}. Keras writes "
                        "groups called `vars`, or an attribute `layer_names`"
                    )
                self._check_lists()
                check_names(self.path, self._groups)
                check_names(self.path, self._sets)
                check_total(self.path, (each.dtype.itemsize * math.prod(each.shape) for each in self._sets.values()))
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
        check_memory(self.path, data.dtype.itemsize * math.prod(data.shape), name)
        with self._damage(name, "damaged or truncated"):
            return np.asarray(data[()]).view(self._dtype(data))

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        data = self._set(name)
        if not data.shape or not 0 <= start <= stop <= data.shape[0]:
            raise FileError(f"{self.path}: {name}: rows {start} to {stop} of shape {list(data.shape)}")
        check_memory(self.path, math.prod(data.shape[1:], start=data.dtype.itemsize * (stop - start)), name)
        with self._damage(name, "damaged or truncated"):
            return np.asarray(data[start:stop]).view(self._dtype(data))

    def groups(self) -> list[str]:
        """The paths of all groups, named as the data sets are; the root, or that of the weights, is ``""``."""
        return list(self._groups)

    def text(self, name: str) -> str:
        """A text that the file has as an attribute, such as ``model_config``; "" if it has none."""
        return "".join(self._texts(self._file, name))

    def strings(self, group: str, name: str) -> list[str]:
        """A list of strings that a group has as an attribute, such as ``layer_names``; a long one is kept in several."""
        owner = self._groups.get(group)
        if owner is None or name in owner.attrs:
            return self._texts(owner, name) if owner is not None else []
        found: list[str] = []
        number = 0
        while f"{name}{number}" in owner.attrs:
            found += self._texts(owner, f"{name}{number}")
            number += 1
        return found

    def close(self) -> None:
        self._file.close()

    def _texts(self, owner: Any, name: str) -> list[str]:
        with self._damage(name, "damaged"):
            if name not in owner.attrs:
                return []
            held = owner.attrs.get_id(name)
            if math.prod(held.shape) == 0:
                return []
            if held.get_storage_size() > _MOST_TEXT or math.prod(held.shape) > _MOST_OBJECTS:
                raise FileError(f"{self.path}: the attribute {name} is larger than any that Keras writes")
            values = np.atleast_1d(owner.attrs[name])
            return [value.decode("utf8") if isinstance(value, bytes) else str(value) for value in values]

    def _set(self, name: str) -> Any:
        if name not in self._sets:
            raise FileError(f"{self.path}: the file has no tensor {name}")
        return self._sets[name]

    @staticmethod
    def _dtype(data: Any) -> np.dtype[Any]:
        """Keras stores bfloat16 as untyped bytes and names the dtype in an attribute."""
        is_bfloat16 = data.dtype == np.dtype("V2") and data.attrs.get("dtype") == "bfloat16"
        return np.dtype(ml_dtypes.bfloat16) if is_bfloat16 else data.dtype

    def _walk(self, group: Any, path: str, above: set[Any]) -> None:
        """Collects the data sets below a group; only hard links are followed, and cycles are refused."""
        self._groups["" if path == "model_weights" else path.removeprefix("model_weights/")] = group
        identity = self._h5py.h5o.get_info(group.id).addr
        if identity in above or len(above) > 64:
            raise FileError(f"{self.path}: {path or '/'}: the group contains itself or is nested too deeply")
        for key in group:
            self._objects += 1
            if self._objects > _MOST_OBJECTS:
                raise FileError(f"{self.path}: more than {_MOST_OBJECTS:,} objects are too many for a weights file")
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
                return  # Keras keeps strings along with the weights
            raise FileError(f"{self.path}: {place}: it holds {data.dtype}, not numbers; objects are never loaded")
        if data.external or data.is_virtual:
            raise FileError(f"{self.path}: {place}: its data are in another file; links are never followed")
        settings = data.id.get_create_plist()
        filters = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
        if unknown := [number for number in filters if number not in _FILTERS]:
            raise FileError(
                f"{self.path}: {place}: filter {unknown[0]} is not supported; expected {', '.join(_FILTERS.values())}"
            )
        size, held = data.dtype.itemsize * math.prod(data.shape), data.id.get_storage_size()
        if data.shape is None or size > held * (_MOST_PACKED if filters else 1):
            raise FileError(
                f"{self.path}: {place}: shape {list(data.shape or ())} {data.dtype} takes {size:,} bytes, "
                f"but the file holds {held:,}"
            )
        if held > self.path.stat().st_size:
            raise FileError(f"{self.path}: {place}: its {held:,} bytes are more than the whole file has")
        if name in self._sets:
            raise FileError(f"{self.path}: {name}: the file has two data sets of this name")
        self._sets[name] = data

    def _check_lists(self) -> None:
        """Raises FileError if a group or data set that the lists of an older file name is lost."""
        for layer in self.strings("", "layer_names"):
            if layer not in self._groups:
                raise FileError(f"{self.path}: damaged; it lists the layer {layer}, which it does not hold")
            for weight in self.strings(layer, "weight_names"):
                if f"{layer}/{weight}".removesuffix(":0") not in self._sets:
                    raise FileError(
                        f"{self.path}: damaged; it lists the weight {weight} of {layer}, which it does not hold"
                    )

    def _is_keras(self) -> bool:
        groups = [self._file, self._file.get("model_weights")]
        old = any(isinstance(group, self._h5py.Group) and "layer_names" in group.attrs for group in groups)
        return old or any(re.search(r"(^|/)vars/\d+$", name) for name in self._sets)

    @contextmanager
    def _damage(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        except FileError:
            raise
        except MemoryError:
            where = f"{self.path}: {name}" if name else f"{self.path}"
            raise FileError(f"{where}: there is not enough memory to read it") from None
        except Exception as error:  # h5py raises OSError, RuntimeError, KeyError, ValueError on damaged bytes
            where = f"{self.path}: {name}" if name else f"{self.path}"
            raise FileError(f"{where}: {what} ({str(error)[:200] or type(error).__name__})") from None
