"""Checkpoints: everything comes back, damage is told, and the one before it is used."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from engine import files
from engine.models import build_model
from engine.selection.variables import ModelVariables, name_variables
from engine.training import checkpoint
from engine.training.checkpoint import CheckpointError

SLOTS = {"optimizer/w/m": np.linspace(0, 1, 6).reshape(2, 3), "optimizer/w/t": np.asarray(7, np.int64)}
STATE = {"evaluations": [[0, "head", 1.25, None, 0.1]], "proof": None, "seed": 3}


def variables(seed: int = 0) -> ModelVariables:
    rng = np.random.default_rng(seed)
    return name_variables(
        {
            "w": tf.Variable(rng.standard_normal((2, 3))),
            "b": tf.Variable(rng.standard_normal(3).astype(ml_dtypes.bfloat16)),
            "count": tf.Variable(np.int64(seed), trainable=False),
        }
    )


def values(model: ModelVariables) -> dict[str, bytes]:
    return {entry.path: entry.variable.numpy().tobytes() for entry in model}


def save(folder: pathlib.Path, step: int, model: ModelVariables | None = None, **more: Any) -> pathlib.Path:
    return checkpoint.save(folder, step, variables=model or variables(step), arrays=SLOTS.items, state=STATE, **more)


def damage(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


def no_warning(text: str) -> None:
    raise AssertionError(text)


# --- round trip ---


def test_a_checkpoint_brings_everything_back(tmp_path: pathlib.Path) -> None:
    model, other = variables(1), variables(2)
    path = save(tmp_path / "checkpoints", 120, model)
    assert path == tmp_path / "checkpoints" / "step-00000120.npz"
    found = checkpoint.read(path)
    assert (found.path, found.step, found.state) == (path, 120, STATE)
    assert found.arrays.keys() == {"w", "b", "count", *SLOTS}
    for name, array in SLOTS.items():
        np.testing.assert_array_equal(found.arrays[name], array)
        assert found.arrays[name].dtype == array.dtype
    assert values(other) != values(model)
    checkpoint.restore(found, other)
    assert values(other) == values(model)


def test_a_checkpoint_is_a_weights_file_too(tmp_path: pathlib.Path) -> None:
    from engine import porting

    one = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=3, seed=1).network
    two = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=3, seed=2).network
    path = checkpoint.save(tmp_path, 1, variables=name_variables(one), arrays=SLOTS.items, state={})
    porting.load(two, path)
    assert values(name_variables(two)) == values(name_variables(one))


def test_random_state_of_keras_layers_comes_back(tmp_path: pathlib.Path) -> None:
    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(4), keras.layers.Dropout(0.5)])
    named = name_variables(model)
    path = checkpoint.save(tmp_path, 1, variables=named, arrays={}.items, state={})
    images = tf.ones([8, 3])
    first, second = model(images, training=True).numpy(), model(images, training=True).numpy()
    assert (first != second).any()
    checkpoint.restore(checkpoint.read(path), named)
    np.testing.assert_array_equal(model(images, training=True).numpy(), first)


class Watched(keras.layers.Layer):
    """Keeps a plain variable and a metric."""

    def build(self, shape: Any) -> None:
        self.plain, self.seen = tf.Variable(2.0), keras.metrics.Sum(name="seen")

    def call(self, x: Any) -> Any:
        return self.plain * x


def test_plain_variables_and_metrics_of_keras_layers_come_back(tmp_path: pathlib.Path) -> None:
    layer = Watched(name="watched")
    named = name_variables(keras.Sequential([keras.Input([3]), layer]))
    layer.seen.update_state(7.0)
    path = checkpoint.save(tmp_path, 1, variables=named, arrays={}.items, state={})
    assert set(checkpoint.read(path).arrays) == {"watched/plain", "metric/watched/seen/total"}
    layer.seen.reset_state()
    layer.plain.assign(0.0)
    checkpoint.restore(checkpoint.read(path), named)
    assert (float(layer.seen.result()), float(layer.plain)) == (7.0, 2.0)


def test_equal_state_gives_equal_bytes(tmp_path: pathlib.Path) -> None:
    one, two = save(tmp_path / "a", 5), save(tmp_path / "b", 5)
    assert one.read_bytes() == two.read_bytes()


def test_a_named_checkpoint_is_not_listed(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path, 5, name="best.npz")
    assert path == tmp_path / "best.npz"
    assert checkpoint.read(path).step == 5
    assert checkpoint.list_checkpoints(tmp_path) == []


# --- damage ---


def test_a_flipped_bit_anywhere_is_told_or_has_touched_no_content(tmp_path: pathlib.Path) -> None:
    """Places without content are the local headers' copies of what the archive's directory says."""
    path = save(tmp_path / "a", 3)
    whole, intact = path.read_bytes(), checkpoint.read(path)
    directory = whole.index(b"PK\x01\x02")
    changed, told = tmp_path / "changed.npz", 0
    for byte in range(0, len(whole), 2):
        content = bytearray(whole)
        content[byte] ^= 1 << (byte // 2 % 8)
        changed.write_bytes(bytes(content))
        try:
            found = checkpoint.read(changed)
        except CheckpointError:
            told += 1
            continue
        assert (found.step, found.state) == (intact.step, intact.state)
        assert {n: a.tobytes() for n, a in found.arrays.items()} == {n: a.tobytes() for n, a in intact.arrays.items()}
    assert told > 0.8 * directory / 2


def test_every_flipped_bit_of_an_array_or_of_the_state_is_told(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "a", 3)
    whole = path.read_bytes()
    changed = tmp_path / "changed.npz"
    weights = variables(3).by_path()["w"].variable.numpy().tobytes()
    state = b'"evaluations'[1:]
    for part in (weights, state):
        start = whole.index(part)
        for bit in range(8 * start, 8 * (start + len(part)), 3):
            content = bytearray(whole)
            content[bit // 8] ^= 1 << (bit % 8)
            changed.write_bytes(bytes(content))
            with pytest.raises(CheckpointError, match=r"changed\.npz"):
                checkpoint.read(changed)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_told(tmp_path: pathlib.Path, share: float) -> None:
    path = save(tmp_path, 3)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"step-00000003\.npz: damaged"):
        checkpoint.read(path)


def test_a_checkpoint_that_is_not_there_is_told(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file"):
        checkpoint.read(tmp_path / "step-00000001.npz")


def rewrite(path: pathlib.Path, *, body: Any, arrays: dict[str, np.ndarray], sign: bool = True) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    sha256 = hashlib.sha256(text.encode()).hexdigest() if sign else "0" * 64
    files.write_npz(path, arrays.items(), texts={"state.json": json.dumps({"sha256": sha256, "body": text})})


def test_an_array_exchanged_behind_the_archives_back_is_told(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path, 3)
    with files.Npz(path) as npz:
        body = json.loads(json.loads(npz.text("state.json"))["body"])
        arrays = {name: npz.read(name) for name in npz.names()}
    rewrite(path, body=body, arrays=arrays)
    assert checkpoint.read(path).step == 3  # the rewriting itself is sound
    rewrite(path, body=body, arrays=arrays | {"w": arrays["w"] + 1})
    with pytest.raises(CheckpointError, match="w does not match its digest"):
        checkpoint.read(path)
    rewrite(path, body=body, arrays={name: array for name, array in arrays.items() if name != "w"})
    with pytest.raises(CheckpointError, match="the file has no w"):
        checkpoint.read(path)
    rewrite(path, body=body, arrays=arrays, sign=False)
    with pytest.raises(CheckpointError, match="the state does not match its digest"):
        checkpoint.read(path)


def test_another_format_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "step-00000001.npz"
    rewrite(path, body={"format": 1, "step": 1, "digests": {}, "state": {}}, arrays={})
    with pytest.raises(
        CheckpointError,
        match=r"format 1, written by Frostline 0\.1; .* Start again, or use the file as weights with --weights=.*01\.npz",
    ):
        checkpoint.read(path)


@pytest.mark.parametrize(
    "body",
    [
        "[]",
        "3",
        "not json",
        '{"format": 2}',
        '{"format": 2, "digests": ["a"], "step": 1, "state": {}}',
        '{"format": 2, "digests": {}, "state": {}}',
        '{"format": 2, "digests": {}, "state": {}, "step": null}',
        '{"format": 2, "digests": 3, "step": 1, "state": {}}',
        '{"a":' * 100_000,
    ],
    ids=lambda body: body[:30],
)
def test_a_state_that_makes_no_sense_is_told(tmp_path: pathlib.Path, body: str) -> None:
    rewrite(tmp_path / "a.npz", body=body, arrays={"a": np.ones(1)})
    with pytest.raises(CheckpointError, match=r"a\.npz: "):
        checkpoint.read(tmp_path / "a.npz")


# --- the newest ---


def test_the_newest_checkpoint_is_the_one_with_the_highest_step(tmp_path: pathlib.Path) -> None:
    for step in (900, 1000, 99_999_999, 100_000_000, 20):
        save(tmp_path, step)
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == [
        "step-100000000.npz",
        "step-99999999.npz",
        "step-00001000.npz",
        "step-00000900.npz",
        "step-00000020.npz",
    ]
    found = checkpoint.read_newest(tmp_path, warn=no_warning)
    assert found is not None
    assert found.step == 100_000_000


def test_the_damaged_newest_is_named_and_the_one_before_it_is_used(tmp_path: pathlib.Path) -> None:
    for step in (10, 20, 30, 40):
        save(tmp_path, step)
    for step in (30, 40):
        damage(tmp_path / f"step-000000{step}.npz")
    told: list[str] = []
    found = checkpoint.read_newest(tmp_path, warn=told.append)
    assert found is not None
    assert found.step == 20
    assert len(told) == 2
    assert "step-00000040.npz" in told[0]
    assert "step-00000030.npz" in told[1]
    assert all(text.endswith("trying the one before it") for text in told)


def test_when_all_are_damaged_it_is_an_error(tmp_path: pathlib.Path) -> None:
    for step in (10, 20):
        damage(save(tmp_path, step))
    told: list[str] = []
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints can be used"):
        checkpoint.read_newest(tmp_path, warn=told.append)
    assert len(told) == 2


def test_where_there_is_no_checkpoint_there_is_none(tmp_path: pathlib.Path) -> None:
    assert checkpoint.read_newest(tmp_path, warn=no_warning) is None
    assert checkpoint.read_newest(tmp_path / "absent", warn=no_warning) is None
    (tmp_path / "step-1.npz").write_bytes(b"")
    (tmp_path / ".step-00000001.npz.12.tmp").write_bytes(b"")
    assert checkpoint.read_newest(tmp_path, warn=no_warning) is None


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_prune_keeps_the_newest_and_touches_no_other_file(tmp_path: pathlib.Path, keep: int) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    save(tmp_path, 10, name="best.npz")
    checkpoint.prune(tmp_path, keep)
    wanted = [f"step-000000{step}.npz" for step in (30, 20, 10)][:keep]
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == wanted
    assert (tmp_path / "best.npz").exists()


@pytest.mark.parametrize("keep", [1, 2])
def test_a_checkpoint_that_could_not_be_read_does_not_push_out_one_that_could(
    tmp_path: pathlib.Path, keep: int
) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, keep, last=20)
    kept = {30, *[20, 10][:keep]}
    assert {int(path.stem[5:]) for path in checkpoint.list_checkpoints(tmp_path)} == kept


# --- a checkpoint of another model ---


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"w": (2, 3), "b": (3,)}, "the checkpoint is of another model; 1 variables differ, such as count"),
        ({"w": (2, 3), "b": (3,), "count": (), "more": (1,)}, "1 variables differ, such as more"),
        ({"w": (3, 2), "b": (3,), "count": ()}, r"w is float64 \[2, 3\], but the model's is float32 \[3, 2\]"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(
    tmp_path: pathlib.Path, other: dict[str, tuple[int, ...]], message: str
) -> None:
    found = checkpoint.read(save(tmp_path, 3))
    model = name_variables({name: tf.Variable(tf.zeros(shape)) for name, shape in other.items()})
    before = values(model)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.restore(found, model)
    assert values(model) == before
