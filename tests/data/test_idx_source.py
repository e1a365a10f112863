"""idx folders, and Fashion-MNIST from wherever it is."""

from __future__ import annotations

import gzip
import pathlib
import struct
from typing import Any

import numpy as np
import pytest

from engine import data
from engine.data import arrays
from engine.data.idx import read_idx_folder


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def write(tmp_path: pathlib.Path) -> Any:
    """Writes the four files of 40 and 10 real images: ``write(mark="-", zipped=True)`` -> DIR."""
    source = data.open_data("fashion_mnist_mini")
    assert source.test is not None

    def make(mark: str = "-", *, zipped: bool = False, name: str = "idx") -> pathlib.Path:
        folder = tmp_path / name
        folder.mkdir()
        assert source.test is not None
        for stem, part, count in (("train", source.train, 40), ("t10k", source.test, 10)):
            step = len(part) // count
            batch = part.read(np.arange(count) * step)
            files = {f"images{mark}idx3": batch["image"][..., 0], f"labels{mark}idx1": batch["label"].astype(np.uint8)}
            for what, array in files.items():
                content = idx(array)
                path = folder / f"{stem}-{what}-ubyte{'.gz' if zipped else ''}"
                path.write_bytes(gzip.compress(content) if zipped else content)
        return folder

    return make


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("zipped", [False, True])
def test_both_usual_names_gzipped_or_not_give_the_same_data(write: Any, mark: str, zipped: bool) -> None:
    source = data.open_data(f"idx:{write(mark, zipped=zipped)}", eval_fraction=0.2)
    assert source.test is not None
    assert [len(part) for part in (source.train, source.eval, source.test)] == [32, 8, 10]
    assert source.image_shape == (28, 28, 1)
    assert source.classes == tuple("0123456789")
    plain = data.open_data(f"idx:{write(name='plain')}", eval_fraction=0.2)
    assert source.fingerprint() == plain.fingerprint()
    np.testing.assert_array_equal(source.train.read(np.arange(32))["image"], plain.train.read(np.arange(32))["image"])


def test_image_size_applies(write: Any) -> None:
    assert data.open_data(f"idx:{write()}", image_size=(32, 48)).image_shape == (32, 48, 1)


def test_a_missing_or_damaged_file_is_named(write: Any, tmp_path: pathlib.Path) -> None:
    def refused(folder: pathlib.Path) -> str:
        with pytest.raises(data.DataError) as caught:
            data.open_data(f"idx:{folder}")
        return str(caught.value)

    assert "there is no such folder" in refused(tmp_path / "nowhere")
    folder = write()
    assert "it is a file; expected a folder" in refused(folder / "train-images-idx3-ubyte")
    labels = folder / "t10k-labels-idx1-ubyte"
    content = labels.read_bytes()
    labels.unlink()
    assert "the folder has no t10k-labels-idx1-ubyte (with or without .gz)" in refused(folder)
    labels.write_bytes(content[:-1])
    assert "t10k-labels-idx1-ubyte: the header claims 10 bytes, but the file has 9" in refused(folder)
    labels.write_bytes(idx(np.zeros((10, 2), np.uint8)))
    assert "cannot be labels" in refused(folder)
    labels.write_bytes(idx(np.zeros(9, np.uint8)))
    assert "test_labels has shape [9] for 10 images" in refused(folder)
    labels.write_bytes(idx(np.full(10, 77, np.uint8)))
    assert "test_labels[0]=77 is out of range; the classes are 0 to 9" in refused(folder)


def test_fashion_mnist_is_read_from_debians_folder(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "DEBIAN", write(zipped=True))
    source = data.open_data("fashion_mnist", eval_fraction=0.2)
    assert source.classes == arrays.FASHION
    assert len(source.train) == 32


def test_fashion_mnist_is_read_from_what_keras_downloads(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    downloaded = read_idx_folder(write())
    monkeypatch.setattr(arrays, "DEBIAN", pathlib.Path("/nowhere"))
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", lambda: (downloaded["train"], downloaded["test"]))
    assert len(data.open_data("fashion_mnist", eval_fraction=0.2).train) == 32


def test_fashion_mnist_without_files_and_network_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    import keras

    waited: list[float | None] = []

    def fail() -> None:
        waited.append(socket.getdefaulttimeout())
        raise OSError("no network")

    monkeypatch.setattr(arrays, "DEBIAN", pathlib.Path("/nowhere"))
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", fail)
    with pytest.raises(data.DataError) as caught:
        data.open_data("fashion_mnist")
    for part in ("/nowhere", "package dataset-fashion-mnist", "no network", "--data=idx:FOLDER"):
        assert part in str(caught.value)
    assert waited == [15.0], "a silent network is given up"
    assert socket.getdefaulttimeout() is None
