"""One protocol for the tensors of every kind of weights file; the kind is recognised by content.

| kind | recognised by | names |
|---|---|---|
| .npz | a zip archive of .npy members | as saved; bfloat16 as written by ``engine.files`` |
| safetensors | a JSON header after its length | as saved |
| Keras HDF5 | the HDF5 signature | slash paths (``layers/dense/vars/0``, ``dense/dense/kernel``) |
| TensorFlow checkpoint | a prefix with an ``.index`` file, or its folder | without ``/.ATTRIBUTES/VARIABLE_VALUE`` |
"""

from __future__ import annotations

import pathlib
import re
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from engine.files import FileError, Npz, PathLike
from engine.text import join_some
from engine.training.checkpoint_names import describe_whole_files, list_whole_files


class TensorSource(Protocol):
    """Named tensors that are read one at a time. A context manager; every method may raise FileError.

    ``path`` is for messages. ``checksums`` says whether reading a tensor can find damage that opening the file did not,
    so that a careful loader reads everything once before it changes anything.
    """

    @property
    def path(self) -> pathlib.Path: ...

    @property
    def checksums(self) -> bool: ...

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> np.dtype[Any]: ...

    def read(self, name: str) -> np.ndarray:
        """Reads the whole tensor into new memory."""

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        """Reads the rows ``start`` to ``stop`` along axis 0; the others are not kept in memory."""

    def close(self) -> None: ...

    def __enter__(self) -> TensorSource: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


def open_tensors(path: PathLike) -> TensorSource:
    """Opens a weights file; its kind is recognised by its first bytes, not by its name.

    The path is an .npz, safetensors or Keras HDF5 file; the prefix of a TensorFlow checkpoint, one of its files, or a
    folder with one checkpoint or one ``model.safetensors``. Raises FileError if there is no such file, it is of an
    unknown kind, or it is damaged.
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
        whole = list_whole_files(path.parent) if not path.exists() else []
        hint = f"; the run there has its weights in {describe_whole_files(path.parent)}" if whole else ""
        raise FileError(f"{path}: {'there is no such file' if not path.exists() else error}{hint}") from None
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06") or path.suffix == ".npz":
        return _open_zip(path)
    if start[:8] == b"\x89HDF\r\n\x1a\n":
        from engine.porting.readers.h5_file import KerasH5

        return KerasH5(path)
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        from engine.porting.readers.safetensors_file import Safetensors

        return Safetensors(path)
    if start.startswith(b"version https://git-lfs"):
        raise FileError(
            f"{path}: this is a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull`"
        )
    if start[:1] == b"\x80":
        raise FileError(f"{path}: this is a Python pickle, which is never loaded; save the weights as safetensors")
    if path.suffix in (".meta", ".pb", ".pbtxt"):
        raise FileError(
            f"{path}: this is a graph, not a checkpoint; expected the weights that belong to it, such as "
            f"{path.stem}.index and its data files (for a frozen graph, those that it was frozen from)"
        )
    known = ".npz, safetensors, Keras HDF5 or a TensorFlow checkpoint"
    raise FileError(f"{path}: not a weights file of a supported kind, or a truncated one; expected {known}")


def _open_zip(path: pathlib.Path) -> TensorSource:
    npz = Npz(path)
    try:
        if not npz.names():
            others = npz.others()
            if "model.weights.h5" in others:
                raise FileError(
                    f"{path}: this is a whole Keras model; give it as --model=file:{path.name}, not as --weights"
                )
            if any(name.endswith("data.pkl") for name in others):
                raise FileError(
                    f"{path}: this is a PyTorch pickle, which is never loaded; save the weights as safetensors"
                )
            raise FileError(f"{path}: this zip archive holds no array")
    except FileError:
        npz.close()
        raise
    return npz


def _open_folder(folder: pathlib.Path) -> TensorSource:
    if (folder / "model.safetensors").is_file():
        return open_tensors(folder / "model.safetensors")
    for place in (folder, folder / "variables"):  # a SavedModel has the second
        found = sorted(place.glob("*.index"))
        if (place / ".index").is_file():  # a checkpoint without a name, which glob does not list
            found.append(place / ".index")
        named = _newest(place)
        if len(found) > 1 and named is not None:
            found = [named]
        if len(found) == 1:
            return _open_checkpoint(str(found[0])[: -len(".index")])
        if found:
            names = join_some([file.name for file in found])
            raise FileError(f"{folder}: the folder holds {len(found)} checkpoints ({names}); name one of them")
    run = next((each for each in (folder, folder.parent) if list_whole_files(each)), None)
    hint = "" if run is None else f"; a run has its weights in {describe_whole_files(run)}"
    raise FileError(f"{folder}: the folder holds neither a checkpoint (*.index) nor model.safetensors{hint}")


def _newest(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the index file that ``checkpoint`` names, ignoring the folder there, which may be its author's."""
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
