"""Loading reads one tensor at a time and needs no second copy of the model."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import weakref
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import porting
from engine.porting import PortError
from engine.porting.rules import language

ROOT = pathlib.Path(__file__).resolve().parents[3]


class Counting:
    """A TensorSource in memory that knows what was read and what of it is still alive."""

    path = pathlib.Path("counting")
    checksums = False

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.alive = self.most_alive = 0
        self.elements_read = 0

    def names(self) -> list[str]:
        return list(self.arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.arrays[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return self.arrays[name].dtype

    def read(self, name: str) -> np.ndarray:
        return self.read_slice(name, 0, len(self.arrays[name]))

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        array = self.arrays[name][start:stop].copy()
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        self.elements_read += array.size
        weakref.finalize(array, self._gone)
        return array

    def _gone(self) -> None:
        self.alive -= 1

    def close(self) -> None:
        pass

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *unused: object) -> None:
        pass


def test_at_most_one_tensor_is_held_at_a_time() -> None:
    arrays = {f"w{number}": np.full((40, 30), number, np.float32) for number in range(6)}
    source = Counting(arrays)
    model = {name: tf.Variable(tf.zeros([30, 40])) for name in arrays}
    porting.load(model, source, language.parse_rules(r"w\d <- \0 | transpose(1, 0)"))
    assert source.most_alive <= 2  # the last one may live until the next has taken its name
    assert source.alive == 0
    assert all(float(model[name][0, 0]) == array[0, 0] for name, array in arrays.items())


def test_of_a_joined_tensor_only_the_part_is_read() -> None:
    source = Counting({"qkv": np.arange(36, dtype=np.float32).reshape(9, 4)})
    model = {name: tf.Variable(tf.zeros([4, 3])) for name in "qkv"}
    text = "\n".join(f"{name} <- qkv | split(0, 3, {part}) | transpose(1, 0)" for part, name in enumerate("qkv"))
    porting.load(model, source, language.parse_rules(text))
    assert source.elements_read == 36
    np.testing.assert_array_equal(model["k"], source.arrays["qkv"][3:6].T)


def test_nothing_is_read_when_something_does_not_fit() -> None:
    source = Counting({"a": np.ones((2, 2), np.float32), "b": np.ones(3, np.float32)})
    with pytest.raises(PortError):
        porting.load({"a": tf.Variable(tf.zeros([2, 2])), "b": tf.Variable(tf.zeros([4]))}, source)
    assert source.elements_read == 0


@pytest.mark.slow
def test_loading_a_vit_b_needs_three_of_its_largest_tensor_and_100_mb(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "scripts.benchmark_loading", "--repeats=1", f"--out={tmp_path / 'results.json'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["file_bytes"] > 200_000_000
    assert results["rss_above_model_bytes"] <= 3 * results["largest_tensor_bytes"] + 100_000_000
    assert results["variables"] == results["tensors"] == 200
    assert set(results["seconds"]) == {"load", "load_file", "one_by_one"}
    assert "peak memory above the built model" in done.stdout
