"""Rules that port_checkpoint proposed load the old checkpoint itself in finetune, in whatever way it was saved."""

from __future__ import annotations

import importlib
import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from compat_v1.checkpoints.reader import open_checkpoint
from compat_v1.porting import port
from engine import load_weights, porting
from engine.files import Npz
from engine.porting.plan import take_names
from engine.porting.readers.v1_checkpoint import V1Checkpoint
from engine.porting.rules import language
from engine.selection.variables import name_variables

MODEL = """
import keras

def build(image_shape=(4, 4, 1), outputs=3):
    images = keras.Input(image_shape)
    x = keras.layers.Flatten()(images)
    x = keras.layers.Dense(5, activation="relu", name="hidden")(x)
    return keras.Model(images, keras.layers.Dense(outputs, name="head")(x), name="small")
"""
V1, V2 = tf.compat.v1.train.SaverDef.V1, tf.compat.v1.train.SaverDef.V2
SHAPES = {"net/hidden/weights": (16, 5), "net/hidden/biases": (5,), "net/head/weights": (5, 3), "net/head/biases": (3,)}
KINDS = [
    (format, parts, ema) for format, parts, ema in itertools.product(("V1", "V2"), ("whole", "parts"), ("last", "ema"))
]
Save = Callable[..., pathlib.Path]


def values(parts: bool) -> dict[str, np.ndarray]:
    """Variables with averages and slots of Adam, the first of them in two uneven parts."""
    rng = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {"beta1_power": np.float32(0.9**2), "beta2_power": np.float32(0.999**2)}
    for name, shape in SHAPES.items():
        for end in ("", "/ExponentialMovingAverage", "/Adam", "/Adam_1"):
            whole = rng.standard_normal(shape).astype(np.float32)
            if parts and name == "net/hidden/weights":
                found |= {f"{name}/part_0{end}": whole[:9], f"{name}/part_1{end}": whole[9:]}
            else:
                found[name + end] = whole
    return found


@pytest.fixture(scope="module")
def made(save: Save, run_each: Any, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A checkpoint of each kind, and the rules and weights that port_checkpoint --auto made from it."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "rules_model.py").write_text(MODEL)
    commands = []
    for kind in KINDS:
        name = "-".join(kind)
        save(folder / name / "m", values(kind[1] == "parts"), write_version=V1 if kind[0] == "V1" else V2)
        commands.append(
            [
                f"--source={folder / name / 'm'}", "--target=py:rules_model:build", "--auto", f"--out={folder / name}/new.npz",
                *(["--take_ema", "--slots=Adam"] if kind[2] == "ema" else []),
            ]
        )  # fmt: skip
    again = folder / "V2-parts-ema"  # the rules say themselves that averages are taken
    again_flags = [
        f"--source={again / 'm'}",
        "--target=py:rules_model:build",
        f"--rules={again / 'new.rules'}",
        "--slots=Adam",
    ]
    commands.append([*again_flags, f"--out={folder}/again/new.npz"])
    commands.append([*again_flags, "--take_ema", f"--out={folder}/again/both.npz"])
    back = ["--reverse", f"--source={again}/new.npz", "--target=py:rules_model:build", f"--rules={again}/new.rules"]
    commands.append([*back, f"--base={again}/m", f"--out={folder}/again/back"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        for code, printed, error in run_each("scripts.port_checkpoint", commands):
            assert code == 0, (printed, error)
    return folder


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_proposed_rules_give_finetune_what_they_gave_the_port(
    made: pathlib.Path, kind: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(made))
    model = importlib.import_module("rules_model").build()
    folder, end = made / "-".join(kind), "/ExponentialMovingAverage" if kind[2] == "ema" else ""
    loaded = load_weights(model, folder / "m", rules=folder / "new.rules")
    wanted = values(False)
    with Npz(folder / "new.npz") as ported:
        for entry in name_variables(model):
            layer, role = entry.path.split("/")
            name = f"net/{layer}/{'weights' if role == 'kernel' else 'biases'}"
            np.testing.assert_array_equal(entry.variable.numpy(), wanted[name + end], entry.path)
            np.testing.assert_array_equal(ported.read(entry.path), wanted[name + end], entry.path)
    assert loaded.ledger is not None
    assert all(entry.source[0].endswith(end) for entry in loaded.ledger.loaded)


@pytest.mark.parametrize("file", ["new", "both"])
def test_rules_with_averages_hold_with_and_without_the_flag(made: pathlib.Path, file: str) -> None:
    with Npz(made / f"again/{file}.npz") as again, Npz(made / "V2-parts-ema/new.npz") as first:
        assert again.names() == first.names()
        for name in first.names():
            np.testing.assert_array_equal(again.read(name), first.read(name))


def test_averages_and_slots_go_back_to_where_they_came_from(made: pathlib.Path) -> None:
    found = tf.train.load_checkpoint(str(made / "again/back"))
    for name, array in values(True).items():
        np.testing.assert_array_equal(found.get_tensor(name), array, name)


def test_finetune_trains_from_an_old_checkpoint_of_one_file(
    made: pathlib.Path, call: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(made))
    images, labels = np.zeros((12, 4, 4, 1), np.uint8), np.arange(12) % 3
    np.savez(tmp_path / "d.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    folder = made / "V1-parts-ema"
    code, printed, error = call(
        "--model=py:rules_model:build", f"--weights={folder}/m", f"--rules={folder}/new.rules",
        f"--data=npz:{tmp_path}/d.npz", "--batch_size=4", "--train=@head", "--dry_run",
    )  # fmt: skip
    assert code == 0, error
    assert "m, 4 variables loaded by new.rules" in printed


@pytest.mark.parametrize("text", ["w <- w/part_\\d+ | concat(0)", "w <- w/part_0 + w/part_1 | concat(0)"])
def test_rules_that_name_parts_find_them_on_both_roads(tmp_path: pathlib.Path, save: Save, text: str) -> None:
    whole = np.arange(10, dtype=np.float32).reshape(5, 2)
    prefix = save(tmp_path / "m", {"w/part_0": whole[:3], "w/part_1": whole[3:], "w/part_0/Adam": whole[:3], "w/part_1/Adam": whole[3:]})  # fmt: skip
    rules = language.parse_rules(f"{text}\nskip w/part_\\d+/Adam", name="test")
    model = {"w": tf.Variable(tf.zeros([5, 2]))}
    porting.load(model, prefix, rules)
    np.testing.assert_array_equal(model["w"].numpy(), whole)
    with open_checkpoint(prefix) as source:
        weights = port.Weights(take_names(source, name_variables(model), rules))
        port.plan_port(weights, name_variables(model), rules).write_npz(tmp_path / "out.npz")
    with Npz(tmp_path / "out.npz") as file:
        np.testing.assert_array_equal(file.read("w"), whole)


def test_a_model_whose_own_variables_are_called_parts_keeps_them(tmp_path: pathlib.Path, save: Save) -> None:
    one, other = np.float32([1, 2]), np.float32([3, 4])
    prefix = save(tmp_path / "m", {"w/part_0": one, "w/part_1": other})
    model = {"w/part_0": tf.Variable([0.0, 0.0]), "w/part_1": tf.Variable([0.0, 0.0])}
    porting.load(model, prefix)
    np.testing.assert_array_equal(model["w/part_1"].numpy(), other)


def test_an_average_that_rules_name_is_taken_without_a_flag(tmp_path: pathlib.Path, save: Save) -> None:
    prefix = save(tmp_path / "m", {"w": np.float32([1]), "w/ExponentialMovingAverage": np.float32([2])})
    rules = language.parse_rules("w <- w/ExponentialMovingAverage\nskip w", name="test")
    model = {"w": tf.Variable([0.0])}
    with open_checkpoint(prefix) as source:
        planned = port.plan_port(port.Weights(source), name_variables(model), rules)
        planned.write_npz(tmp_path / "out.npz")
    assert planned.ledger(target="t")["loaded"][0]["source"] == ("w/ExponentialMovingAverage",)
    with Npz(tmp_path / "out.npz") as file:
        assert file.read("w").tolist() == [2]


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_file_of_the_old_format_changes_nothing(tmp_path: pathlib.Path, save: Save, damage: str) -> None:
    prefix = save(tmp_path / "m", {"w": np.arange(4000, dtype=np.float32)}, write_version=V1)
    with open_checkpoint(prefix) as source:
        assert isinstance(source, V1Checkpoint)
    content = bytearray(prefix.read_bytes())
    content[500] ^= 1
    prefix.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    model = {"w": tf.Variable(tf.zeros([4000]))}
    with pytest.raises(porting.PortError, match="m: "):
        porting.load(model, prefix)
    assert not model["w"].numpy().any()
