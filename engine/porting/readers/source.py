"""One protocol for the tensors of every kind of weights file; the kind is recognised by content.

| kind | recognised by | names |
|---|---|---|
| .npz | a zip archive of .npy members | as saved; bfloat16 as written by ``engine.files`` |
| safetensors | a JSON header after its length | as saved |
| Keras HDF5 | the HDF5 signature | slash paths (``layers/dense/vars/0``, ``dense/dense/kernel``) |
| TensorFlow checkpoint, V2 | a prefix with an ``.index`` file, or its folder | without ``/.ATTRIBUTES/VARIABLE_VALUE``; the parts of a partitioned variable are one tensor (``partitions``) |
| TensorFlow checkpoint, V1 | a table of TensorFlow: one file, or shards | as saved; parts as above |
| frozen graph | a GraphDef, binary or as text, whose weights are constants | the constants that are weights |
"""

from __future__ import annotations

import pathlib
import re

from engine.files import FileError, Npz, PathLike
from engine.porting.readers.locate import Found, locate
from engine.porting.readers.tensor_source import TensorSource as TensorSource
from engine.reading import open_file
from engine.text import nearest
from engine.training.checkpoint_names import describe_whole_files, list_whole_files

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_HDF5 = b"\x89HDF\r\n\x1a\n"
_GRAPH = re.compile(
    rb"\n[\x80-\xff]{0,4}[\x00-\x7f]\n|\s*node\s*\{"
)  # a GraphDef begins with a node, and that with its name


def open_tensors(path: PathLike, *, whole: bool = True, merge_parts: bool = True) -> TensorSource:
    """Opens a weights file; its kind is recognised by its first bytes, not by its name.

    The path is an .npz, safetensors or Keras HDF5 file, a frozen graph, a folder with one ``model.safetensors``, or any path that means
    one checkpoint of TensorFlow (engine.porting.readers.locate). Raises FileError if there is no such file, it is of an
    unknown kind, or it is damaged.

    Args:
        whole: raise FileError also for a V2 checkpoint whose data files are missing or too short; False opens it for
            its names and shapes and for the tensors that are complete.
        merge_parts: join the parts of partitioned variables in a checkpoint (engine.porting.readers.partitions).
    """
    place = pathlib.Path(path)
    if place.is_dir() and (place / "model.safetensors").is_file():
        return open_tensors(place / "model.safetensors")
    if not _is_array_file(place) and (found := locate(path)) is not None:
        return open_found(found, whole=whole, merge_parts=merge_parts)
    return _open_file(place)


def open_found(found: Found, *, whole: bool, merge_parts: bool) -> TensorSource:
    """Opens the checkpoint at a place that ``locate`` found, as ``open_tensors`` does."""
    from engine.porting.readers import partitions
    from engine.porting.readers.checkpoint_file import Checkpoint
    from engine.porting.readers.v1_checkpoint import V1Checkpoint

    source: TensorSource = V1Checkpoint(found) if found.files else Checkpoint(_plain(found.prefix), whole=whole)
    return partitions.merge_parts(source) if merge_parts else source


def _open_file(path: pathlib.Path) -> TensorSource:
    """Opens what is not a checkpoint, or says what it is."""
    if path.is_dir():
        run = next((each for each in (path, path.parent) if list_whole_files(each)), None)
        hint = "" if run is None else f"; a run has its weights in {describe_whole_files(run)}"
        raise FileError(f"{path}: the folder holds neither a checkpoint of TensorFlow nor model.safetensors{hint}")
    try:
        start = _first_bytes(path)
    except OSError as error:
        whole = list_whole_files(path.parent) if not path.exists() else []
        hint = f"; the run there has its weights in {describe_whole_files(path.parent)}" if whole else _similar(path)
        raise FileError(f"{path}: {'there is no such file' if not path.exists() else error}{hint}") from None
    if start[:4] in _ZIP or path.suffix == ".npz":
        return _open_zip(path)
    if start[:8] == _HDF5:
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
    if path.suffix in (".pb", ".pbtxt", ".meta") or _GRAPH.match(start):
        from engine.porting.readers.frozen_file import FrozenFile

        return FrozenFile(path)
    known = ".npz, safetensors, Keras HDF5, a TensorFlow checkpoint or a frozen graph"
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


def _similar(path: pathlib.Path) -> str:
    try:
        names = {re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", file.name) for file in path.parent.iterdir()}
    except OSError:
        return ""
    return nearest(path.name, sorted(names))


def _first_bytes(path: pathlib.Path) -> bytes:
    with open_file(path) as file:
        return file.read(64)


def _is_array_file(path: pathlib.Path) -> bool:
    """Whether a file is of a kind that is not a checkpoint, whatever lies beside it."""
    try:
        start = _first_bytes(path)
    except (OSError, FileError):
        return False
    return start[:4] in _ZIP or start[:8] == _HDF5 or start[8:9] == b"{" or path.suffix in (".npz", ".safetensors")


def _plain(prefix: str) -> str:
    if special := set("*?[\\") & set(prefix):
        raise FileError(
            f"{prefix}: TensorFlow takes {' '.join(sorted(special))} in the path of a V2 checkpoint as a pattern and "
            "finds nothing; rename the folder or file"
        )
    return prefix
