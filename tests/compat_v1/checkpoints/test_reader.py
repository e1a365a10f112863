"""Legacy checkpoints give what was saved, by whatever path; and damage is named, tensor by tensor."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from compat_v1.checkpoints.reader import open_checkpoint, open_source
from engine import files
from engine.files import FileError
from engine.porting.readers.verify import find_damage

v1 = tf.compat.v1
V1, V2 = v1.train.SaverDef.V1, v1.train.SaverDef.V2
Save = Callable[..., pathlib.Path]

ARRAYS: dict[str, np.ndarray] = {
    "block.Scale/conv..1/weights": np.linspace(-1, 1, 120, dtype=np.float32).reshape(3, 4, 5, 2),
    "bias": np.arange(5, dtype=np.float64),
    "half": np.array([[1.5, -2], [0, 3], [7, 8]], np.float16),
    "flags": np.array([True, False, True]),
    "complex": np.array([1 + 2j, -3j], np.complex64),
    "wide": np.array([1 + 2j], np.complex128),
    "bytes": np.array([255, 0, 7], np.uint8),
    "small": np.array([-128, 127], np.int8),
    "short": np.array([[-300], [300]], np.int16),
    "whole": np.array([-5, 1 << 30], np.int32),
    "global_step": np.array(123456789012, np.int64),
    "empty": np.zeros((0, 3), np.float32),
}


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# --- what was saved comes back ---


@pytest.mark.parametrize("version", [V1, V2], ids=["V1", "V2"])
@pytest.mark.parametrize("sharded", [False, True], ids=["one", "sharded"])
def test_names_shapes_types_values_and_rows_come_back(
    tmp_path: pathlib.Path, save: Save, version: int, sharded: bool
) -> None:
    arrays = dict(ARRAYS)
    if version == V1:  # its writer has no empty tensors
        arrays.pop("empty")
    else:
        arrays["brain"] = np.array([[1.5, -2], [0, 3]], ml_dtypes.bfloat16)
    save(tmp_path / "old" / "model.ckpt-7", arrays, write_version=version, sharded=sharded)
    with open_checkpoint(tmp_path / "old" / "model.ckpt-7") as source:
        assert sorted(source.names()) == sorted(arrays)
        assert source.checksums
        for name, array in arrays.items():
            assert source.shape(name) == array.shape
            assert source.dtype(name) == array.dtype
            assert same(source.read(name), array), name
            source.read(name)[...] = 0  # memory of its own
            assert same(source.read(name), array), name
            if array.ndim:
                rows = len(array)
                for start, stop in ((0, rows), (0, min(1, rows)), (rows // 2, rows), (rows, rows)):
                    assert same(source.read_slice(name, start, stop), array[start:stop]), (name, start)
        assert find_damage(source) == []
        for bad in ((-1, 1), (0, 4), (2, 1)):
            with pytest.raises(FileError, match=f"rows {bad[0]} to {bad[1]} of shape"):
                source.read_slice("flags", *bad)
        with pytest.raises(FileError, match="rows 0 to 1"):
            source.read_slice("global_step", 0, 1)
        for ask in (source.read, source.shape, source.dtype, lambda name: source.read_slice(name, 0, 1)):
            with pytest.raises(FileError, match="the file has no tensor absent"):
                ask("absent")


def two_shards(tmp_path: pathlib.Path, version: int) -> pathlib.Path:
    """A checkpoint in two files: variables of two devices, saved sharded."""
    with tf.Graph().as_default():
        for device, name in (("/cpu:0", "a"), ("/cpu:1", "b")):
            with tf.device(device):
                v1.get_variable(name, initializer=tf.fill([4, 2], float(ord(name))))
        saver = v1.train.Saver(sharded=True, write_version=version)
        with v1.Session(config=v1.ConfigProto(device_count={"CPU": 2})) as session:
            session.run(v1.global_variables_initializer())
            saver.save(session, str(tmp_path / "m"), write_meta_graph=False)
    return tmp_path / "m"


@pytest.mark.parametrize("version", [V1, V2], ids=["V1", "V2"])
def test_of_several_shards_each_is_read_and_a_missing_one_is_told(tmp_path: pathlib.Path, version: int) -> None:
    prefix = two_shards(tmp_path, version)
    shards = sorted(file.name for file in tmp_path.iterdir() if "-of-00002" in file.name)
    assert len(shards) == 2
    for path in (prefix, tmp_path, tmp_path / shards[1]):
        with open_checkpoint(path) as source:
            assert (source.read("a")[0, 0], source.read_slice("b", 1, 3)[1, 1]) == (97, 98)
    (tmp_path / shards[1]).unlink()
    if version == V1:
        with pytest.raises(FileError, match=r"1 of its 2 shards are missing, such as m-00001-of-00002"):
            open_checkpoint(prefix)
    else:
        with open_checkpoint(prefix) as source:
            (bad,) = find_damage(source)
        assert bad.name == "b"
        assert "data-00001-of-00002, which is missing" in bad.reason


def test_shards_of_two_checkpoints_under_one_name_are_refused(tmp_path: pathlib.Path) -> None:
    prefix = two_shards(tmp_path, V1)
    shutil.copy(f"{prefix}-00000-of-00002", f"{prefix}-00000-of-00001")
    with pytest.raises(FileError, match="the folder has shards of checkpoints with 1 and 2 shards"):
        open_checkpoint(prefix)


# --- any path that means one ---


@pytest.mark.parametrize("version", [V1, V2], ids=["V1", "V2"])
@pytest.mark.parametrize("folder", ["plain", "run [1]*?"])
def test_any_file_of_a_checkpoint_its_prefix_or_its_folder_means_it(
    tmp_path: pathlib.Path, save: Save, version: int, folder: str
) -> None:
    prefix = save(tmp_path / "made" / "m.ckpt", {"w": np.float32([1, 2])}, write_version=version)
    (tmp_path / "made").rename(tmp_path / folder)
    prefix = tmp_path / folder / prefix.name
    if version == V2 and folder != "plain":
        with pytest.raises(FileError, match="as a pattern and finds nothing; rename"):
            open_checkpoint(prefix)
        return
    paths = [prefix, prefix.parent, f"{prefix.parent}/", f"{prefix}.meta", prefix.parent / "checkpoint"]
    paths += [f"{prefix}.index", f"{prefix}.data-00000-of-00001"] if version == V2 else []
    for path in paths:
        for opens in (open_checkpoint, open_source):
            with opens(path) as source:
                assert source.read("w").tolist() == [1, 2], path


def test_a_checkpoint_without_a_name(tmp_path: pathlib.Path, save: Save) -> None:
    prefix = save(tmp_path / "made" / "m", {"w": np.float32([1, 2])})
    folder = tmp_path / "unnamed"
    folder.mkdir()
    for part in ("index", "meta", "data-00000-of-00001"):
        shutil.copy(f"{prefix}.{part}", folder / f".{part}")
    (folder / "checkpoint").write_text('model_checkpoint_path: "/home/author/experiments/1563/"\n')
    for path in (folder, f"{folder}/", folder / ".index", folder / ".meta", folder / "checkpoint"):
        with open_checkpoint(path) as source:
            assert source.read("w").tolist() == [1, 2], path
    shutil.copy(f"{prefix}.index", folder / "other.index")
    shutil.copy(f"{prefix}.data-00000-of-00001", folder / "other.data-00000-of-00001")
    with open_checkpoint(f"{folder}/") as source:  # the slash at the end means the one without a name
        assert source.names() == ["w"]


@pytest.mark.parametrize("version", [V1, V2], ids=["V1", "V2"])
@pytest.mark.parametrize("place", ["", "/home/author/run/", "..\\\\run\\\\", "elsewhere/"])
def test_of_several_the_checkpoint_file_chooses_by_name_alone(
    tmp_path: pathlib.Path, save: Save, version: int, place: str
) -> None:
    for number in (1, 2, 3):
        save(tmp_path / f"m-{number}", {"w": np.float32(number)}, write_version=version)
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{place}m-2"\nall_model_checkpoint_paths: "m-3"\n')
    for path in (tmp_path, tmp_path / "checkpoint"):
        with open_checkpoint(path) as source:
            assert source.read("w") == 2
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{place}gone-9"\n')
    with pytest.raises(
        FileError, match=r"3 checkpoints \(m-1, m-2, m-3\); its file `checkpoint` names gone-9, which is"
    ):
        open_checkpoint(tmp_path)
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(FileError, match=r"3 checkpoints \(m-1, m-2, m-3\); name one of them"):
        open_checkpoint(tmp_path)


def test_the_variables_of_a_saved_model_of_tensorflow_1(tmp_path: pathlib.Path) -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        v1.get_variable("dense/kernel", initializer=tf.ones([2, 3]))
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(tmp_path / "saved"))
        builder.add_meta_graph_and_variables(session, [v1.saved_model.tag_constants.SERVING])
        builder.save()
    for path in (tmp_path / "saved", tmp_path / "saved" / "variables", tmp_path / "saved" / "variables" / "variables"):
        with open_checkpoint(path) as source:
            assert source.shape("dense/kernel") == (2, 3)


def test_other_kinds_of_weights_open_too(tmp_path: pathlib.Path) -> None:
    files.write_npz(tmp_path / "w.npz", [("a/part_0", np.ones(2, np.float32))])
    with open_source(tmp_path / "w.npz") as source:
        assert source.names() == ["a/part_0"]
    with pytest.raises(FileError, match=r"w.npz: there is no checkpoint; expected w.npz.index \(V2\), or"):
        open_checkpoint(tmp_path / "w.npz")
    with pytest.raises(FileError, match="the folder holds no checkpoint"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda d: d / "absent", r"absent: there is no such file"),
        (lambda d: d, "the folder holds neither a checkpoint"),
        (lambda d: write(d / "model.ckpt", b"version https://git-lfs.github.com/spec/v1\n"), "a Git LFS pointer"),
        (
            lambda d: write(d / "model.ckpt", b"\0\0\x12 and no more"),
            "this is a V1 checkpoint without its end; it is truncated",
        ),
        (lambda d: write(d / "w.bin", b"something else altogether"), "not a weights file of a supported kind"),
        (lambda d: write(d / "m.index", b"version https://git-lfs.github.com/spec/v1\n"), "a Git LFS pointer"),
        (lambda d: write(d / "m.index", b""), "a truncated one: its end is missing"),
    ],
)
def test_what_is_no_checkpoint_is_told(tmp_path: pathlib.Path, make: Callable[[pathlib.Path], Any], said: str) -> None:
    with pytest.raises(FileError, match=said):
        open_source(make(tmp_path))


def write(path: pathlib.Path, content: bytes) -> pathlib.Path:
    path.write_bytes(content)
    return path


def test_text_is_no_tensor_and_is_listed(tmp_path: pathlib.Path) -> None:
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "m"), tensor_names=["w", "words"], shape_and_slices=["", ""], tensors=[1.0, ["a", "b"]]
    )
    with open_checkpoint(tmp_path / "m") as source:
        assert source.names() == ["w"]
        assert source.others() == ["words"]  # type: ignore[attr-defined]


# --- damage ---


@pytest.fixture
def three(tmp_path: pathlib.Path, save: Save) -> Callable[[int], pathlib.Path]:
    values = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    return lambda version: save(
        tmp_path / f"m{version}.ckpt", dict(zip("abc", values, strict=True)), write_version=version
    )


def test_a_flipped_bit_is_found_in_that_tensor_alone(three: Callable[[int], pathlib.Path]) -> None:
    prefix = three(V2)
    data = pathlib.Path(f"{prefix}.data-00000-of-00001")
    content = bytearray(data.read_bytes())
    content[160 + 37] ^= 4
    data.write_bytes(content)
    with open_checkpoint(prefix) as source:
        (bad,) = find_damage(source)
        assert bad.name == "b"
        assert "Checksum does not match" in bad.reason
        assert "function_node" not in bad.reason
        assert source.read("a").shape == (40,)


@pytest.mark.parametrize(("length", "names"), [(479, ["c"]), (161, ["b", "c"]), (0, ["a", "b", "c"]), (480, [])])
def test_a_truncated_data_file_damages_what_lay_beyond(
    three: Callable[[int], pathlib.Path], length: int, names: list[str]
) -> None:
    prefix = three(V2)
    os.truncate(f"{prefix}.data-00000-of-00001", length)
    with open_checkpoint(prefix) as source:
        bad = find_damage(source)
        assert [damage.name for damage in bad] == names
        assert all(f"which has {length} bytes" in damage.reason for damage in bad)
        if names:
            with pytest.raises(FileError, match="truncated"):
                source.read_slice("c", 0, 40)


def test_every_flipped_bit_of_an_index_or_a_v1_file_is_found(three: Callable[[int], pathlib.Path]) -> None:
    for version in (V2, V1):
        prefix = three(version)
        file = prefix if version == V1 else pathlib.Path(f"{prefix}.index")
        with open_checkpoint(prefix) as source:
            wanted = {name: source.read(name) for name in source.names()}
        content = file.read_bytes()
        found = 0
        for at in range(0, len(content), 7):
            file.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
            try:
                with open_checkpoint(prefix) as source:
                    bad = {damage.name for damage in find_damage(source)}
                    found += bool(bad)
                    for name in set(source.names()) - bad:  # what is not named is right
                        assert same(source.read(name), wanted[name]), (version, at, name)
                    assert bad or set(source.names()) == set(wanted)
            except FileError as error:
                found += 1
                assert str(prefix) in str(error)  # noqa: PT017 any other exception comes through
        assert found > 0.7 * len(range(0, len(content), 7)), version  # the rest lies in padding
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(FileError, match="truncated"):
            open_checkpoint(prefix)


def test_a_shape_that_the_files_cannot_hold_is_refused_before_memory_is_allocated(
    tmp_path: pathlib.Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile file whose checksums are right: its reader says what we let it say."""

    class Hostile:
        def __init__(self, pattern: str) -> None:
            pass

        def get_variable_to_shape_map(self) -> dict[str, list[int]]:
            return {"w": [1 << 20, 1 << 20]}

        def get_variable_to_dtype_map(self) -> dict[str, Any]:
            return {"w": tf.float32}

    prefix = save(tmp_path / "m", {"w": np.float32(1)}, write_version=V1)
    monkeypatch.setattr(v1.train, "NewCheckpointReader", Hostile)
    with pytest.raises(FileError, match=r"w: shape \[1048576, 1048576\] float32 cannot be in"):
        open_checkpoint(prefix)
