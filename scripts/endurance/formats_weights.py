"""Weights files: .npz, safetensors, HDF5 of Keras, whole Keras models, TensorFlow checkpoints."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from . import aware
from .formats import Digests, Folder, Format
from .outcomes import sums

_TABLE = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # the last bytes of a LevelDB table


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "stem/kernel": rng.standard_normal((3, 3, 1, 4), np.float32),
        "stem/bias": np.arange(4, dtype=np.float32),
        "head/kernel": rng.standard_normal((16, 3), np.float32),
        "head/bias": np.arange(3, dtype=np.float32) - 1,
        "step": np.array(7, np.int64),
    }


def _read_tensors(path: pathlib.Path) -> Digests:
    from engine.porting.readers.source import open_tensors

    with open_tensors(path) as source:
        return sums((name, source.read(name)) for name in source.names())


def _write_npz(folder: Folder) -> None:
    import ml_dtypes

    from engine.files import write_npz

    half = np.arange(6, dtype=np.float32).astype(ml_dtypes.bfloat16)
    write_npz(folder / "weights.npz", [*_arrays().items(), ("half", half)], texts={"about.json": '{"format": 1}'})


def _write_compressed(folder: Folder) -> None:
    arrays: dict[str, Any] = {name.replace("/", "."): value for name, value in _arrays().items()}
    np.savez_compressed(folder / "weights.npz", **arrays)


def _write_trained(folder: Folder) -> None:
    from engine.data.class_names import as_texts
    from engine.files import write_npz

    write_npz(folder / "weights.npz", _arrays().items(), texts=as_texts(["a", "b", "c"]))


def _read_trained(folder: Folder) -> Digests:
    from engine.data.class_names import read_class_names

    names = read_class_names(folder / "weights.npz")
    return _read_tensors(folder / "weights.npz") | sums([("class names", json.dumps(names).encode())])


def _write_safetensors(folder: Folder) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "tf"}}
    body = b""
    for name, array in _arrays().items():
        content = array.tobytes()
        kind = {"float32": "F32", "int64": "I64"}[array.dtype.name]
        header[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + len(content)],
        }
        body += content
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    (folder / "weights.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)


def _keras_model() -> Any:
    import keras

    keras.utils.set_random_seed(1)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="images"),
            layers.Conv2D(3, 3, name="stem"),
            layers.BatchNormalization(name="norm"),
            layers.Flatten(name="flat"),
            layers.Dense(3, name="head"),
        ]
    )


def _write_model(folder: Folder, name: str) -> None:
    model = _keras_model()
    save = model.save_weights if name.endswith(".weights.h5") else model.save
    save(folder / name)


def _write_keras2(folder: Folder) -> None:
    """A whole model as Keras 2.4 wrote it."""
    import h5py

    _write_model(folder, "model.h5")
    with h5py.File(folder / "model.h5", "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for layer in config["config"]["layers"]:
            own = layer["config"]
            for key in [key for key, value in own.items() if isinstance(value, dict) and "module" in value]:
                own[key] = {"class_name": own[key]["class_name"], "config": own[key]["config"]}
            if isinstance(own.get("dtype"), dict):
                own["dtype"] = "float32"
            if "batch_shape" in own:
                own["batch_input_shape"] = own.pop("batch_shape")
            for key in ("module", "registered_name", "build_config"):
                layer.pop(key, None)
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "2.4.0"


def _read_model(folder: Folder) -> Digests:
    """Builds the model, as --model=file:... does, and reads the file as weights, as --weights does, if it can."""
    from engine.models.keras.safe_loading import load_model

    (path,) = folder.iterdir()
    model = load_model(str(path), "model")
    found = [(f"{number} {v.path}", v.numpy()) for number, v in enumerate(model.variables)]
    found.append(("config", json.dumps(model.get_config(), sort_keys=True, default=str).encode()))
    return sums(found)


def _read_h5(folder: Folder) -> Digests:
    (path,) = folder.iterdir()
    return _read_tensors(path)


def _write_checkpoint(folder: Folder, version: int) -> None:
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        variables = {name: v1.get_variable(f"v{n}", initializer=a) for n, (name, a) in enumerate(_arrays().items())}
        session.run(v1.global_variables_initializer())
        saver = v1.train.Saver(variables, write_version=version)
        saver.save(session, str(folder / "model"), write_meta_graph=False)


def _read_checkpoint(folder: Folder) -> Digests:
    from compat_v1.checkpoints.reader import open_source

    with open_source(str(folder / "model")) as source:
        return sums((name, source.read(name)) for name in source.names())


def _edit_if_index(data: bytes, rng: Any) -> bytes:
    """Edits an index; a data file, which has no such structure, is cut in half."""
    return aware.edit_index(data, rng) if data.endswith(_TABLE) else data[: len(data) // 2]


FORMATS = (
    Format("npz", True, _write_npz, lambda f: _read_tensors(f / "weights.npz"), (aware.edit_zip_directory,)),
    Format(
        "npz-compressed",
        True,
        _write_compressed,
        lambda f: _read_tensors(f / "weights.npz"),
        (aware.edit_zip_directory,),
    ),
    Format("trained.npz", True, _write_trained, _read_trained, (aware.edit_zip_directory,)),
    Format(
        "safetensors",
        False,
        _write_safetensors,
        lambda f: _read_tensors(f / "weights.safetensors"),
        (aware.edit_safetensors_header,),
    ),
    Format("weights.h5", False, lambda f: _write_model(f, "model.weights.h5"), _read_h5, (aware.edit_h5,)),
    Format("h5", False, lambda f: _write_model(f, "model.h5"), _read_model, (aware.edit_h5,)),
    Format("keras2-h5", False, _write_keras2, _read_h5, (aware.edit_h5,)),
    Format("keras2-h5-model", False, _write_keras2, _read_model, (aware.edit_h5,)),
    Format("keras", True, lambda f: _write_model(f, "model.keras"), _read_model, (aware.edit_zip_directory,)),
    Format(
        "tf-v2",
        True,
        lambda f: _write_checkpoint(f, 2),
        _read_checkpoint,
        (_edit_if_index,),
        "model.*",
        forgeries=(_edit_if_index,),
    ),
    Format("tf-v1", True, lambda f: _write_checkpoint(f, 1), _read_checkpoint, (), "model"),
)
