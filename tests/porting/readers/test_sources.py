"""Tensor sources: every kind of file gives what was written, and damage of any kind is told."""

from __future__ import annotations

import json
import os
import pathlib
import struct
from collections.abc import Callable
from typing import Any

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from engine import files, porting
from engine.files import FileError
from engine.porting import PortError, open_tensors
from engine.porting.rules import language

Arrays = dict[str, np.ndarray]
ARRAYS: Arrays = {
    "a/kernel": np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 3, 2),
    "a/bias": np.arange(5, dtype=np.float64),
    "count": np.arange(3, dtype=np.int64),
    "half": np.array([[1.5, -2], [0, 3], [7, 8]], np.float16),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}
BFLOAT16 = np.array([[1.5, -2], [0, 3], [7, 8]], ml_dtypes.bfloat16)
fuzzing = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))


def write_npz(folder: pathlib.Path, arrays: Arrays) -> pathlib.Path:
    files.write_npz(folder / "w.npz", arrays.items())
    return folder / "w.npz"


def write_safetensors(folder: pathlib.Path, arrays: Arrays) -> pathlib.Path:
    save_file(arrays, folder / "w.safetensors", metadata={"format": "np"})
    return folder / "w.safetensors"


def write_h5(folder: pathlib.Path, arrays: Arrays) -> pathlib.Path:
    """An older Keras weights file."""
    with h5py.File(folder / "w.h5", "w") as file:
        file.attrs["layer_names"] = [b"a"]
        for name, array in arrays.items():
            if array.dtype == ml_dtypes.bfloat16:  # as Keras 3 does
                file.create_dataset(name, data=array).attrs["dtype"] = "bfloat16"
            else:
                file.create_dataset(f"{name}:0", data=array)
    return folder / "w.h5"


def write_checkpoint(folder: pathlib.Path, arrays: Arrays) -> pathlib.Path:
    checkpoint = tf.train.Checkpoint(state={name: tf.Variable(array) for name, array in arrays.items()})
    checkpoint.write(str(folder / "ckpt"))
    return folder / "ckpt"


WRITERS: dict[str, Callable[[pathlib.Path, Arrays], pathlib.Path]] = {
    "npz": write_npz,
    "safetensors": write_safetensors,
    "h5": write_h5,
    "checkpoint": write_checkpoint,
}
kinds = pytest.mark.parametrize("kind", list(WRITERS))


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def name_in(kind: str, name: str) -> str:
    return f"state/{name}" if kind == "checkpoint" else name


# --- what was written comes back ---


@kinds
def test_names_shapes_types_and_values_come_back(tmp_path: pathlib.Path, kind: str) -> None:
    arrays = ARRAYS | {"b16": BFLOAT16}
    with open_tensors(WRITERS[kind](tmp_path, arrays)) as source:
        assert sorted(source.names()) == sorted(name_in(kind, name) for name in arrays)
        for name, array in arrays.items():
            name = name_in(kind, name)
            assert source.shape(name) == array.shape
            assert source.dtype(name) == array.dtype
            assert same(source.read(name), array), name


@kinds
def test_slices_are_rows_along_the_first_axis(tmp_path: pathlib.Path, kind: str) -> None:
    with open_tensors(WRITERS[kind](tmp_path, ARRAYS | {"b16": BFLOAT16})) as source:
        for name, array in (ARRAYS | {"b16": BFLOAT16}).items():
            if array.ndim == 0:
                continue
            rows = len(array)
            for start, stop in ((0, rows), (0, min(1, rows)), (rows // 2, rows), (rows, rows)):
                assert same(source.read_slice(name_in(kind, name), start, stop), array[start:stop]), (name, start)


@kinds
@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 5), (3, 2)])
def test_rows_that_are_not_there_are_refused(tmp_path: pathlib.Path, kind: str, start: int, stop: int) -> None:
    with (
        open_tensors(WRITERS[kind](tmp_path, ARRAYS)) as source,
        pytest.raises(FileError, match=f"rows {start} to {stop} of shape"),
    ):
        source.read_slice(name_in(kind, "a/kernel"), start, stop)
    with open_tensors(WRITERS[kind](tmp_path, ARRAYS)) as source, pytest.raises(FileError, match="rows 0 to 1"):
        source.read_slice(name_in(kind, "scalar"), 0, 1)


@kinds
def test_a_name_that_is_not_there_is_refused(tmp_path: pathlib.Path, kind: str) -> None:
    with open_tensors(WRITERS[kind](tmp_path, ARRAYS)) as source:
        for ask in (source.read, lambda name: source.read_slice(name, 0, 1)):
            with pytest.raises(FileError, match=r"has no (tensor )?absent"):
                ask("absent")


def test_slices_of_a_compressed_or_fortran_npz(tmp_path: pathlib.Path) -> None:
    array = np.random.default_rng(0).standard_normal((50, 7))
    np.savez_compressed(tmp_path / "w.npz", c=array, f=np.asfortranarray(array))
    with open_tensors(tmp_path / "w.npz") as source:
        for name in ("c", "f"):
            np.testing.assert_array_equal(source.read_slice(name, 11, 32), array[11:32])


@pytest.mark.parametrize("name", ["w.npz", "w.bin", "w", "w.ckpt"])
def test_the_kind_is_known_by_content_not_by_name(tmp_path: pathlib.Path, name: str) -> None:
    for kind in ("safetensors", "h5", "npz"):
        if kind != "npz" and name == "w.npz":
            continue
        WRITERS[kind](tmp_path, ARRAYS).rename(tmp_path / name)
        with open_tensors(tmp_path / name) as source:
            assert same(source.read("a/kernel"), ARRAYS["a/kernel"])


# --- Keras files ---


def keras_model() -> Any:
    layers = keras.layers
    return keras.Sequential([keras.Input([3]), layers.Dense(4, name="one"), layers.Dense(2, name="two")], name="net")


@pytest.mark.parametrize("name", ["m.weights.h5", "m.h5"])
def test_files_of_keras_itself(tmp_path: pathlib.Path, name: str) -> None:
    model = keras_model()
    if name == "m.h5":
        model.compile("adam", "mse")
        model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)
        model.save(tmp_path / name)
    else:
        model.save_weights(tmp_path / name)
    with open_tensors(tmp_path / name) as source:
        kernels = [name for name in source.names() if "optimizer" not in name and len(source.shape(name)) == 2]
        values = [source.read(name) for name in kernels]
    # Keras 3 numbers layers by class, whatever their names
    weights = ["layers/dense/vars/0", "layers/dense_1/vars/0"]
    assert kernels == (weights if "weights" in name else ["one/net/one/kernel", "two/net/two/kernel"])
    for value, layer in zip(values, model.layers, strict=True):
        np.testing.assert_array_equal(value, layer.kernel)


def test_a_whole_keras_model_is_told_what_it_is(tmp_path: pathlib.Path) -> None:
    keras_model().save(tmp_path / "m.keras")
    with pytest.raises(FileError, match=r"a whole Keras model; give it as --model=file:m.keras"):
        open_tensors(tmp_path / "m.keras")


def test_a_keras_file_loads_by_rules(tmp_path: pathlib.Path) -> None:
    one, two = keras_model(), keras_model()
    one.save_weights(tmp_path / "m.weights.h5")
    lines = [
        f"{ours}/{name} <- layers/{theirs}/vars/{index}"
        for ours, theirs in (("one", "dense"), ("two", "dense_1"))
        for index, name in enumerate(("kernel", "bias"))
    ]
    rules = language.parse_rules("\n".join(lines))
    porting.load(two, tmp_path / "m.weights.h5", rules)
    np.testing.assert_array_equal(two.layers[1].kernel, one.layers[1].kernel)


def h5(path: pathlib.Path, fill: Callable[[Any], None]) -> pathlib.Path:
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"a"]
        file["fine"] = np.ones(3)
        fill(file)
    return path


def external_data(file: Any) -> None:
    file.create_dataset("a", (4,), "f4", external=[("/etc/hostname", 0, 16)])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", shape=(3,))
    file.create_virtual_dataset("a", layout)


def cycle(file: Any) -> None:
    group = file.create_group("g")
    group["itself"] = group


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (lambda f: f.__setitem__("a", h5py.ExternalLink("/etc/hostname", "/x")), "links are never followed"),
        (lambda f: f.__setitem__("a", h5py.SoftLink("/fine")), "links are never followed"),
        (external_data, "its data are in another file"),
        (virtual, "its data are in another file"),
        (cycle, "the group contains itself"),
        (lambda f: f.create_dataset("a", data=[b"x", b"y"], dtype=h5py.string_dtype()), "objects are never loaded"),
        (lambda f: f.create_dataset("a", data=[f.ref, f.ref], dtype=h5py.ref_dtype), "objects are never loaded"),
        (lambda f: f.create_dataset("a", (1 << 40,), "f4", chunks=(1024,)), "but the file holds 0"),
        (lambda f: f.create_dataset("a", (1 << 40,), "f4", chunks=(1024,), compression="gzip"), "but the file holds 0"),
        (
            lambda f: f.create_dataset("a:0", data=np.ones(2)) and f.__setitem__("a", np.ones(2)),
            "has two data sets of this name",
        ),
    ],
)
def test_what_a_weights_file_needs_not_is_refused(
    tmp_path: pathlib.Path, fill: Callable[[Any], None], said: str
) -> None:
    with pytest.raises(FileError, match=said):
        open_tensors(h5(tmp_path / "w.h5", fill))


def test_an_h5_that_is_no_keras_file_says_so(tmp_path: pathlib.Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["measurements/temperature"] = np.ones(3)
    with pytest.raises(PortError, match=r"not Keras weights; it holds measurements/temperature"):
        porting.load([tf.Variable(1.0)], tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5", "w"):
        pass
    with pytest.raises(FileError, match="it holds nothing"):
        open_tensors(tmp_path / "w.h5")


# --- checkpoints ---


def test_a_checkpoint_is_found_by_prefix_file_or_folder(tmp_path: pathlib.Path) -> None:
    prefix = write_checkpoint(tmp_path, ARRAYS)
    for path in (prefix, f"{prefix}.index", f"{prefix}.data-00000-of-00001", tmp_path):
        with open_tensors(path) as source:
            assert same(source.read("state/a/kernel"), ARRAYS["a/kernel"])


def test_of_several_checkpoints_the_newest_is_taken_or_one_must_be_named(tmp_path: pathlib.Path) -> None:
    checkpoint = tf.train.Checkpoint(w=tf.Variable(1.0))
    manager = tf.train.CheckpointManager(checkpoint, str(tmp_path), max_to_keep=3)
    manager.save()
    checkpoint.w.assign(2.0)
    manager.save()
    with open_tensors(tmp_path) as source:
        assert float(source.read("w")) == 2
    state = (tmp_path / "checkpoint").read_text().replace('path: "ckpt', 'path: "/home/author/run/ckpt')
    (tmp_path / "checkpoint").write_text(state)
    with open_tensors(tmp_path) as source:
        assert float(source.read("w")) == 2
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(FileError, match=r"the folder holds 2 checkpoints \(ckpt-1, ckpt-2\); name one"):
        open_tensors(tmp_path)


def test_a_saved_model_and_a_hugging_face_folder(tmp_path: pathlib.Path) -> None:
    module = tf.Module()
    module.w = tf.Variable([1.0, 2.0])
    tf.saved_model.save(module, str(tmp_path / "saved"))
    with open_tensors(tmp_path / "saved") as source:
        assert source.read("w").tolist() == [1, 2]
    (tmp_path / "hf").mkdir()
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "hf/model.safetensors")
    with open_tensors(tmp_path / "hf") as source:
        assert source.names() == ["w"]
    (tmp_path / "none").mkdir()
    with pytest.raises(FileError, match="the folder holds neither a checkpoint"):
        open_tensors(tmp_path / "none")


def test_our_model_comes_back_from_a_tf_checkpoint(tmp_path: pathlib.Path) -> None:
    from engine.models import build_model

    one, two = (build_model("vit:mini,depth=1", image_shape=(8, 8, 1), outputs=3, seed=s).network for s in (1, 2))
    tf.train.Checkpoint(one).save(str(tmp_path / "ckpt"))
    ledger = porting.load(two, tmp_path)
    assert [entry.name for entry in ledger.skipped] == ["save_counter"]
    np.testing.assert_array_equal(two(np.ones((1, 8, 8, 1), np.float32)), one(np.ones((1, 8, 8, 1), np.float32)))


# --- damage ---


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a weights file of a supported kind"),
        (b"hello, this is a text", "not a weights file of a supported kind"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b"\x80\x04\x95\x10\x00", "a Python pickle, which is never loaded"),
        (b"PK\x03\x04 and no more", "not an .npz file, or truncated"),
        (b"\x89HDF\r\n\x1a\n and no more", "not an HDF5 file, or a truncated one"),
    ],
)
def test_what_is_no_weights_file_says_what_it_is(tmp_path: pathlib.Path, content: bytes, said: str) -> None:
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(FileError, match=said):
        open_tensors(tmp_path / "w.bin")


def test_a_torch_file_and_an_empty_archive(tmp_path: pathlib.Path) -> None:
    import zipfile

    for member, said in (("archive/data.pkl", "a PyTorch pickle"), ("readme.txt", "this zip archive holds no array")):
        with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
            archive.writestr(member, b"x")
        with pytest.raises(FileError, match=said):
            open_tensors(tmp_path / "w.pt")


def header(text: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"short", "5 bytes are too few for a safetensors file"),
        (header(b"{}", length=100), "its header should have 100 bytes"),
        (header(b"{}", length=1 << 63), "its header should have"),
        (header(b"{not json}"), "its header is not JSON"),
        (header(b"\xff\xfe{}"), "its header is not JSON"),
        (header(b"[" * 100_000), "its header is not JSON"),
        (header(b"[]"), "not a JSON object"),
        (header(b'{"a": 1}'), "a: its entry lacks dtype"),
        (
            header(json.dumps({"a": entry()}).encode() + b" " * 9, b""),
            "describes 4 bytes of tensors, but the file has 0",
        ),
        (header(json.dumps({"a": entry()}).encode(), b"12345"), "describes 4 bytes of tensors, but the file has 5"),
        (header(json.dumps({"a": entry("F31")}).encode(), b"1234"), "dtype 'F31' is not supported"),
        (header(json.dumps({"a": entry(shape=[-1])}).encode(), b"1234"), "is not a valid shape"),
        (header(json.dumps({"a": entry(shape=[1.0])}).encode(), b"1234"), "is not a valid shape"),
        (header(json.dumps({"a": entry(shape=[True])}).encode(), b"1234"), "is not a valid shape"),
        (header(json.dumps({"a": entry(shape=[1 << 60])}).encode(), b"1234"), "is not a valid shape"),
        (header(json.dumps({"a": entry(shape=[1 << 40])}).encode(), b"1234"), "takes 4398046511104 bytes"),
        (header(json.dumps({"a": entry(offsets=[4, 0])}).encode(), b"1234"), "its data_offsets span -4"),
        (header(json.dumps({"a": entry(offsets=[0])}).encode(), b"1234"), "is not a valid pair of data_offsets"),
        (header(json.dumps({"a": entry(), "b": entry()}).encode(), b"1234"), "a hole or an overlap"),
        (header(json.dumps({"a": entry(offsets=[4, 8])}).encode(), b"12345678"), "a hole or an overlap"),
        (header(f'{{"a": {json.dumps(entry())}, "a": {json.dumps(entry())}}}'.encode(), b"1234"), "has a name twice"),
    ],
)
def test_a_safetensors_header_is_not_believed(tmp_path: pathlib.Path, content: bytes, said: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(FileError, match=said):
        open_tensors(tmp_path / "w.safetensors")


def test_a_safetensors_file_that_shrinks_while_open_is_told(tmp_path: pathlib.Path) -> None:
    path = write_safetensors(tmp_path, {"w": np.ones(1000, np.float32)})
    with open_tensors(path) as source:
        os.truncate(path, 500)
        with pytest.raises(FileError, match="w: the file has become shorter"):
            source.read("w")


def test_every_truncation_of_a_safetensors_file_is_told(tmp_path: pathlib.Path) -> None:
    content = write_safetensors(tmp_path, {"w": np.ones(10, np.float32), "v": np.ones(3)}).read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut.safetensors").write_bytes(content[:length])
        with pytest.raises(FileError):
            open_tensors(tmp_path / "cut.safetensors")


SMALL: Arrays = {name: ARRAYS[name] for name in ("a/kernel", "count")}


def damaged(folder: pathlib.Path, kind: str, part: str) -> tuple[pathlib.Path, pathlib.Path, bytes]:
    """What to open, the file to damage, and its content."""
    path = WRITERS[kind](folder, SMALL)
    file = pathlib.Path(f"{path}.{part}") if part else path
    return path, file, file.read_bytes()


PARTS = [("npz", ""), ("h5", ""), ("checkpoint", "index"), ("checkpoint", "data-00000-of-00001")]


# In `make test`, checkpoints alone: test_files.py damages each byte of an .npz, and test_endure.py files of all kinds.
@pytest.mark.parametrize(
    ("kind", "part"), [pytest.param(*each, marks=[pytest.mark.slow] * (each[0] != "checkpoint")) for each in PARTS]
)
@given(data=st.data())
@fuzzing
def test_truncation_gives_an_error_or_the_right_data(
    tmp_path_factory: pytest.TempPathFactory, kind: str, part: str, data: st.DataObject
) -> None:
    path, file, content = damaged(tmp_path_factory.mktemp("cut"), kind, part)
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    try:
        with open_tensors(path) as source:
            for name, array in SMALL.items():
                assert same(source.read(name_in(kind, name)), array)
    except FileError as error:
        assert str(path) in str(error)  # noqa: PT017 any other exception comes through


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        pytest.param(*each, marks=[pytest.mark.slow] * (each[0] in ("npz", "checkpoint")))
        for each in (*PARTS, ("safetensors", ""))
    ],
)
@given(data=st.data())
@fuzzing
def test_flipped_bits_give_an_error_or_arrays_of_the_shape_that_was_told(
    tmp_path_factory: pytest.TempPathFactory, kind: str, part: str, data: st.DataObject
) -> None:
    """Formats with checksums (.npz, checkpoints) never give wrong values; the others have no way to know."""
    path, file, content = damaged(tmp_path_factory.mktemp("flip"), kind, part)
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(bytes(changed))
    try:
        with open_tensors(path) as source:
            for name in source.names():
                array = source.read(name)
                assert (array.shape, array.dtype) == (source.shape(name), source.dtype(name))
                if kind in ("npz", "checkpoint") and name in {name_in(kind, own) for own in SMALL}:
                    assert same(array, SMALL[name.removeprefix("state/")])
    except FileError as error:
        assert str(path.parent) in str(error)  # noqa: PT017


def test_a_checkpoint_without_its_data_is_told(tmp_path: pathlib.Path) -> None:
    prefix = write_checkpoint(tmp_path, ARRAYS)
    pathlib.Path(f"{prefix}.data-00000-of-00001").unlink()
    with pytest.raises(FileError, match="truncated or missing"):
        open_tensors(prefix)


def test_pickled_objects_are_refused(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "w.npz", w=np.array([{"a": 1}], object))
    with pytest.raises(PortError, match="pickled Python objects, which are never loaded"):
        porting.load([tf.Variable(1.0)], tmp_path / "w.npz")


@pytest.mark.parametrize("name", ["h5py", "safetensors"])
def test_optional_packages_are_not_needed_to_import_or_are_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import sys

    paths = {"h5py": write_h5(tmp_path, SMALL), "safetensors": write_safetensors(tmp_path, SMALL)}
    monkeypatch.setitem(sys.modules, name, None)
    if name == "h5py":
        with pytest.raises(FileError, match=r"needs the package h5py: pip install 'frostline\[weights\]'"):
            open_tensors(paths[name])
    else:
        with open_tensors(paths[name]) as source:
            assert same(source.read("count"), SMALL["count"])
