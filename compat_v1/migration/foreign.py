"""Recognises files of other kinds than those of TensorFlow 1, and says which command reads them."""

from __future__ import annotations

import pathlib
import zipfile

from engine.files import FileError
from engine.reading import open_file

_HDF5 = b"\x89HDF\r\n\x1a\n"


def recognise(path: pathlib.Path) -> str:
    """Says what a file or folder of another kind is and what reads it, as one clause; "" if it is not known.

    Example:
        >>> recognise(pathlib.Path("no such file"))
        ''
    """
    if path.is_dir():
        if (path / "run.json").is_file():
            return f"a run of Frostline; `frostline predict --run={path}` and `frostline audit-graph --graph={path}` read it"
        if (path / "model.safetensors").is_file():
            return recognise(path / "model.safetensors").replace("a safetensors", "a folder with a safetensors", 1)
        return ""
    try:
        with open_file(path) as file:
            start = file.read(64)
    except (OSError, FileError):
        return ""
    weights = f"`frostline inspect-checkpoint --source={path}` lists it, and --weights={path} of finetune loads it"
    if start.startswith(b"PK\x03\x04"):
        return _recognise_zip(path, weights)
    if start[:8] == _HDF5:
        return f"a Keras HDF5 file; {weights}, or --model=file:{path} if it holds the whole model"
    if start[4:8] == b"TFL3":
        return "a TensorFlow Lite model; no command reads it back, so use the graph from which it was converted"
    if start[:1] == b"\x80" or path.suffix in (".pt", ".pth"):
        return _pickle(path)
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return f"a safetensors file; {weights}"
    if path.suffix == ".onnx":
        return "an ONNX model; no command reads it, so use the model from which it was converted"
    return ""


def _recognise_zip(path: pathlib.Path, weights: str) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return "a damaged zip archive"
    if "model.weights.h5" in names:
        return f"a whole Keras model; `frostline finetune --model=file:{path}` reads it"
    if any(name.endswith("data.pkl") for name in names):
        return _pickle(path)
    if any(name.endswith(".npy") for name in names):
        return f"an .npz file of arrays; {weights}"
    return "a zip archive; unpack it first, and name the folder"


def _pickle(path: pathlib.Path) -> str:
    return (
        "a pickle, as PyTorch writes it, which is never loaded; save its state_dict as safetensors there, and "
        f"`frostline port-checkpoint --source={path.with_suffix('.safetensors').name}` reads that"
    )
