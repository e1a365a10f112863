"""Files for Keras that ask for more than there is, never end, or are refused half-way."""

from __future__ import annotations

import json
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from engine.errors import InputError
from engine.files import FileError
from engine.models.keras.safe_loading import load_model
from engine.models.keras.weights_file import load_weights_file
from engine.models.spec import ModelSpecError
from engine.porting.readers import h5_trial
from engine.porting.readers.h5_file import KerasH5
from engine.trial import Trial


@pytest.fixture(scope="module")
def model() -> Any:
    return keras.Sequential([keras.Input([4]), keras.layers.Dense(3, name="one"), keras.layers.Dense(2, name="two")])


def rewrite(
    path: pathlib.Path, name: str, change: Callable[[bytes], bytes], compression: int = zipfile.ZIP_STORED
) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for each, content in members.items():
            archive.writestr(each, change(content) if each == name else content)


def wider(content: bytes) -> bytes:
    config = json.loads(content)
    config["config"]["layers"][1]["config"]["units"] = 1 << 27
    return json.dumps(config).encode()


def test_a_small_file_that_declares_a_large_model_is_told(
    model: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.keras"
    model.save(path)
    rewrite(path, "config.json", wider)
    monkeypatch.setenv("FROSTLINE_MEMORY_LIMIT", str(1 << 30))
    with pytest.raises(ModelSpecError, match=r"its model takes 2(\.5)? GiB, more than the 1 GiB .*--memory_limit"):
        load_model(str(path), "model")
    old = tmp_path / "m.h5"
    model.save(old)
    with h5py.File(old, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][1]["config"]["units"] = 1 << 27
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(ModelSpecError, match="more than the 1 GiB"):
        load_model(str(old), "model")


def test_an_archive_that_unpacks_to_more_than_the_memory_is_told(
    model: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.keras"
    model.save(path)
    rewrite(path, "model.weights.h5", lambda content: content + bytes(1 << 22), zipfile.ZIP_DEFLATED)
    monkeypatch.setenv("FROSTLINE_MEMORY_LIMIT", str(1 << 21))
    with pytest.raises(ModelSpecError, match="all that it holds takes 4"):
        load_model(str(path), "model")


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5"])
def test_a_file_that_is_refused_leaves_the_model_as_it_was(suffix: str, model: Any, tmp_path: pathlib.Path) -> None:
    other = keras.Sequential([keras.Input([4]), keras.layers.Dense(3, name="one"), keras.layers.Dense(5, name="two")])
    path = tmp_path / f"w{suffix}"
    other.save_weights(path) if suffix == ".weights.h5" else other.save(path)
    before = model.get_weights()
    with pytest.raises(FileError):
        load_weights_file(model, path)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("work", ["while True: pass", "import os; os.abort()"])
def test_a_file_at_which_the_library_loops_or_crashes_is_told_by_every_reader(
    work: str, model: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, whole, old = tmp_path / "w.weights.h5", tmp_path / "m.keras", tmp_path / "m.h5"
    model.save_weights(weights)
    model.save(whole)
    model.save(old)
    monkeypatch.setattr(h5_trial, "_trial", Trial(f"def work(request):\n    {work}"))
    monkeypatch.setattr(h5_trial, "SECONDS", 0.2)
    h5_trial._try.cache_clear()
    for read in (
        lambda: KerasH5(weights),
        lambda: load_weights_file(model, weights),
        lambda: load_model(str(whole), "model"),
        lambda: load_model(str(old), "model"),
    ):
        with pytest.raises(InputError, match="crashes on it, or does not end"):
            read()


def test_the_trial_reads_everything_that_a_reader_may(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/a/vars/0", data=np.zeros((64, 64), np.float32), chunks=(64, 64), compression="gzip")
        file.attrs["layer_names"] = np.array([b"a"])
        file["layers/self"] = file["layers"]
        file["soft"] = h5py.SoftLink("/nowhere")
        file.create_dataset("text", data="words")
    h5_trial.check_ends(path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(20):  # no damage makes the trial itself fail in another way than by its time or a crash
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), 8):
            damaged[at] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            with KerasH5(path) as source:
                for name in source.names():
                    source.read(name)
        except FileError:
            pass


def test_sizes_in_an_old_file_are_held_against_the_memory(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "layers/a/vars/0", data=np.zeros((1 << 20,), np.float32), chunks=(1 << 18,), compression="gzip"
        )
    monkeypatch.setenv("FROSTLINE_MEMORY_LIMIT", str(1 << 20))
    with pytest.raises(FileError, match="all that it holds takes 4 MiB"):
        KerasH5(path)


@pytest.mark.parametrize("lost", ["norm/norm/gamma:0", "norm"])
def test_a_layer_or_weight_that_an_older_file_lists_but_lost_is_told(lost: str, tmp_path: pathlib.Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = [b"flat", b"norm"]
        file.create_group("flat").attrs["weight_names"] = []
        group = file.create_group("norm")
        group.attrs["weight_names"] = [b"norm/gamma:0", b"norm/beta:0"]
        for name in ("gamma", "beta"):
            group[f"norm/{name}:0"] = np.ones(3, np.float32)
    with KerasH5(tmp_path / "w.h5") as whole:
        assert len(whole.names()) == 2
    with h5py.File(tmp_path / "w.h5", "a") as file:
        del file[lost]
        file.require_group("flat")["other"] = np.ones(1)  # so that the file still holds something
    with pytest.raises(FileError, match="damaged; it lists"):
        KerasH5(tmp_path / "w.h5")
