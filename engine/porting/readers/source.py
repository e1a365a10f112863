"""Where tensors come from: one protocol for every kind of weights file, chosen by content.

| kind | recognised by | names |
|---|---|---|
| .npz | a zip archive of .npy members | as saved; bfloat16 as ``engine.files`` writes it |
| safetensors | a JSON header behind its length | as saved |
| HDF5 of Keras | the HDF5 signature | slash paths (``layers/dense/vars/0``, ``dense/dense/kernel``) |
| TensorFlow checkpoint | a prefix with ``.index``, or its folder | without ``/.ATTRIBUTES/VARIABLE_VALUE`` |
"""

from __future__ import annotations

import pathlib
import re
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from engine.files import FileError, Npz, PathLike


class TensorSource(Protocol):
    """Named tensors that are read one at a time. A context manager; every method raises FileError.

    Attributes:
        path: the file, for messages.
        checksums: True when reading a tensor can find damage that opening the file did not, so that
            a careful loader reads everything once before it changes anything.
    """

    @property
    def path(self) -> pathlib.Path: ...

    @property
    def checksums(self) -> bool: ...

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> np.dtype[Any]: ...

    def read(self, name: str) -> np.ndarray:
        """The whole tensor, in memory of its own."""

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` along axis 0; the others are not kept in memory."""

    def close(self) -> None: ...

    def __enter__(self) -> TensorSource: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


def open_tensors(path: PathLike) -> TensorSource:
    """Opens a weights file, whatever its name: what it is, its first bytes say.

    Args:
        path: an .npz, safetensors or Keras HDF5 file; the prefix of a TensorFlow checkpoint, one of its
            files, or a folder with one checkpoint or one ``model.safetensors``.

    Raises:
        FileError: there is nothing, nothing that is known, or it is damaged.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _open_folder(path)
    prefix = re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", str(path))
    if pathlib.Path(f"{prefix}.index").is_file() and (prefix != str(path) or not path.exists()):
        return _open_checkpoint(prefix)
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise FileError(f"{path}: {'there is no such file' if not path.exists() else error}") from None
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06") or path.suffix == ".npz":
        return _open_zip(path)
    if start[:8] == b"\x89HDF\r\n\x1a\n":
        from engine.porting.readers.h5_file import KerasH5

        return KerasH5(path)
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        from engine.porting.readers.safetensors_file import Safetensors

        return Safetensors(path)
    if start.startswith(b"version https://git-lfs"):
        raise FileError(f"{path}: a Git LFS pointer, not the weights themselves; `git lfs pull` fetches them")
    if start[:1] == b"\x80":
        raise FileError(f"{path}: a Python pickle; these are never loaded. Save the weights as safetensors")
    known = ".npz, safetensors, Keras HDF5 and TensorFlow checkpoints"
    raise FileError(f"{path}: no weights file of a known kind, or a truncated one; {known} are known")


def _open_zip(path: pathlib.Path) -> TensorSource:
    npz = Npz(path)
    try:
        if not npz.names():
            others = npz.others()
            if "model.weights.h5" in others:
                raise FileError(f"{path}: a whole Keras model; --model=file:{path.name} takes it, not --weights")
            if any(name.endswith("data.pkl") for name in others):
                raise FileError(f"{path}: a PyTorch pickle; these are never loaded. Save the weights as safetensors")
            raise FileError(f"{path}: a zip archive without any array")
    except FileError:
        npz.close()
        raise
    return npz


def _open_folder(folder: pathlib.Path) -> TensorSource:
    if (folder / "model.safetensors").is_file():
        return open_tensors(folder / "model.safetensors")
    for place in (folder, folder / "variables"):  # the second: a SavedModel
        found = sorted(place.glob("*.index"))
        if (place / ".index").is_file():  # a checkpoint without a name, which glob does not show
            found.append(place / ".index")
        named = _newest(place)
        if len(found) > 1 and named is not None:
            found = [named]
        if len(found) == 1:
            return _open_checkpoint(str(found[0])[: -len(".index")])
        if found:
            names = ", ".join(file.name for file in found[:5])
            raise FileError(f"{folder}: it holds {len(found)} checkpoints ({names}); name one of them")
    raise FileError(f"{folder}: a folder with neither a checkpoint (*.index) nor model.safetensors")


def _newest(folder: pathlib.Path) -> pathlib.Path | None:
    """The index file that ``checkpoint`` names. Its folder is not believed: it may be its author's."""
    try:
        text = (folder / "checkpoint").read_bytes()[:4096].decode(errors="replace")
    except OSError:
        return None
    match = re.search(r'^model_checkpoint_path: "(?:[^"]*[/\\])?([^"/\\]+)"', text, re.MULTILINE)
    index = folder / f"{match.group(1)}.index" if match else None
    return index if index is not None and index.is_file() else None


def _open_checkpoint(prefix: str) -> TensorSource:
    from engine.porting.readers.checkpoint_file import Checkpoint

    return Checkpoint(prefix)
