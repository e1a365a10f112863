"""A frozen .pb through the programs: looked at, ported with a proof, written back, and with a delta on it."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import frozen_graphs
import numpy as np
import pytest
import tensorflow as tf

from engine.files import Npz
from engine.porting.deltas.record import as_texts, take_record
from engine.porting.readers.source import open_tensors
from engine.selection.variables import name_variables

v1 = tf.compat.v1
MODEL = """
import keras

def build(image_shape=(4, 4, 1), outputs=3):
    images = keras.Input(image_shape)
    x = keras.layers.Flatten()(images)
    x = keras.layers.Dense(5, activation="relu", name="hidden")(x)
    return keras.Model(images, keras.layers.Dense(outputs, name="head")(x), name="small")
"""

EMOTION = """
import keras
from keras import layers

def build(image_shape=(64, 64, 1), outputs=7):
    images = keras.Input(image_shape)
    x = layers.Conv2D(32, 3, strides=2, activation="relu", name="stem_a")(images)
    x = layers.Conv2D(64, 3, activation="relu", name="stem_b")(x)
    for name, width in (("middle", 128), ("last", 256)):
        short = layers.Conv2D(width, 1, strides=2, padding="same", name=f"{name}_shortcut")(x)
        x = layers.ReLU()(x) if name == "last" else x
        x = layers.SeparableConv2D(width, 3, padding="same", activation="relu", name=f"{name}_a")(x)
        x = layers.SeparableConv2D(width, 3, padding="same", name=f"{name}_b")(x)
        x = layers.MaxPool2D(3, strides=2, padding="same")(x) + short
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(outputs, 3, padding="same", name="maps")(x))
    return keras.Model(images, keras.ops.softmax(x))
"""
SHARED = pathlib.Path(os.environ.get("FROSTLINE_SHARED", pathlib.Path(__file__).resolve().parents[3] / "shared"))
REAL = SHARED / "models" / "graphdef" / "emotion.pb"


class Ran(NamedTuple):
    folder: pathlib.Path
    said: dict[str, tuple[int, str, str]]
    values: dict[str, np.ndarray]

    def ok(self, name: str, code: int = 0) -> str:
        found, printed, error = self.said[name]
        assert found == code, f"{found}:\n{printed}\n{error}"
        return printed if code == 0 else error


def build() -> dict[str, Any]:
    x = tf.reshape(v1.placeholder(tf.float32, [None, 4, 4, 1], "images"), [-1, 16])
    x = tf.nn.relu(
        tf.matmul(x, v1.get_variable("net/hidden/weights", [16, 5])) + v1.get_variable("net/hidden/biases", [5])
    )
    return {
        "logits": tf.nn.bias_add(
            tf.matmul(x, v1.get_variable("net/head/weights", [5, 3])), v1.get_variable("net/head/biases", [3])
        )
    }


def write_delta(path: pathlib.Path, values: dict[str, np.ndarray], changed: Sequence[str]) -> None:
    """A trained.npz of a run on the graph itself, whose variables have the names of the constants."""
    from engine.files import write_npz

    variables = name_variables({name: tf.Variable(value) for name, value in values.items()})
    record = take_record(variables, changed)
    write_npz(path, ((name, values[name] + 1) for name in changed), texts=as_texts(record))


@pytest.fixture(scope="module")
def ran(run_each: Any, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("frozen")
    made = frozen_graphs.freeze(build, {})
    file = folder / "model.pb"
    file.write_bytes(made.definition.SerializeToString())
    (folder / "small_model.py").write_text(MODEL)
    values = dict(made.values)
    write_delta(folder / "trained.npz", values, ["net/head/biases"])
    write_delta(folder / "part.npz", {n: v for n, v in values.items() if "head" in n}, ["net/head/biases"])
    write_delta(folder / "wrong.npz", {n: v + 1 for n, v in values.items()}, ["net/head/biases"])
    np.savez(folder / "keras.npz", **{
        f"{layer}/{name}": values[f"net/{layer}/{old}"] + (layer == "head")
        for layer in ("hidden", "head") for name, old in (("kernel", "weights"), ("bias", "biases"))
    })  # fmt: skip
    target, source = "--target=py:small_model:build", f"--source={file}"
    graph = [f"--verify_graph={file}", "--outputs=logits"]
    back = ["--reverse", target, f"--source={folder}/keras.npz", f"--rules={folder}/new/small.rules", f"--base={file}"]
    (folder / "emotion_model.py").write_text(EMOTION)
    real = [
        "--target=py:emotion_model:build",
        "--auto",
        "--yes",
        f"--source={REAL}",
        f"--verify_graph={REAL}",
        f"--out={folder}/real/emotion.npz",
    ]
    asked = {
        "scripts.port_checkpoint": {
            "there": [source, target, "--auto", *graph, f"--out={folder}/new/small.npz"],
            "unverified": [source, target, f"--rules={folder}/new/small.rules", f"--out={folder}/again/small.npz"],
            "back": [*back, f"--out={folder}/back/new.pb"],
            "checkpoint": [*back, f"--out={folder}/back/model.ckpt"],
            "itself": [*back, f"--out={file}"],
            **({"real": real} if REAL.is_file() else {}),
            "no base": [*back[:-1], f"--out={folder}/back/other.pb"],
        },
        "scripts.apply_delta": {
            name: [f"--base={file}", f"--delta={folder}/{delta}.npz", f"--out={folder}/{out}"]
            for name, delta, out in [
                ("delta", "trained", "delta.pb"),
                ("part", "part", "part.pbtxt"),
                ("wrong", "wrong", "no.pb"),
                ("as checkpoint", "trained", "delta.ckpt"),
                ("onto itself", "trained", "model.pb"),
            ]
        },
        "scripts.inspect_checkpoint": {
            "list": [source, f"--out={folder}/list.json"],
            "cut": [f"--source={folder}/cut.pb"],
        },
    }
    (folder / "cut.pb").write_bytes(file.read_bytes()[:300])
    said: dict[str, tuple[int, str, str]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        for program, commands in asked.items():
            said |= dict(zip(commands, run_each(program, list(commands.values())), strict=True))
    return Ran(folder, said, values)


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    with open_tensors(path) as source:
        return {name: source.read(name) for name in source.names()}


def expect(found: dict[str, np.ndarray], values: dict[str, np.ndarray], changed: Sequence[str]) -> None:
    assert found.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(found[name], value + 1 if name in changed else value, err_msg=name)


def test_a_frozen_graph_is_ported_by_proposed_rules_and_proved_against_itself(ran: Ran) -> None:
    printed = ran.ok("there")
    assert "4 tensors" in printed
    assert "max" in printed or "difference" in printed
    with Npz(ran.folder / "new/small.npz") as found:
        np.testing.assert_array_equal(found.read("head/kernel"), ran.values["net/head/weights"])
    assert (
        f"NOT VERIFIED: nothing shows that the model computes what the original did; --verify_graph={ran.folder}/model.pb"
        in ran.ok("unverified")
    )


def test_a_model_s_weights_go_back_into_the_graph_and_into_a_checkpoint(ran: Ran) -> None:
    assert "4 by rule, of which 2 changed; 0 copied from the base" in ran.ok("back")
    changed = ["net/head/weights", "net/head/biases"]
    expect(read(ran.folder / "back/new.pb"), ran.values, changed)
    assert "4 by rule, of which 2 changed" in ran.ok("checkpoint")
    reader = tf.train.load_checkpoint(str(ran.folder / "back/model.ckpt"))
    expect({name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}, ran.values, changed)
    assert "it is the base itself" in ran.ok("itself", 2)
    assert "expected the prefix of a checkpoint" in ran.ok("no base", 2)


def test_a_delta_of_a_run_on_the_graph_is_put_onto_it(ran: Ran) -> None:
    assert "4 tensors, of which 1 differ from the base" in ran.ok("delta")
    expect(read(ran.folder / "delta.pb"), ran.values, ["net/head/biases"])
    ran.ok("part")  # of a model that was only a part of the graph
    expect(read(ran.folder / "part.pbtxt"), ran.values, ["net/head/biases"])
    assert "it belongs to other weights" in ran.ok("wrong", 2)
    assert "it is also what is read" in ran.ok("onto itself", 2)
    assert "tensors: 4, of which 1 differ" in ran.ok("as checkpoint")
    reader = tf.train.load_checkpoint(str(ran.folder / "delta.ckpt"))
    np.testing.assert_array_equal(reader.get_tensor("net/head/biases"), ran.values["net/head/biases"] + 1)
    assert not (ran.folder / "no.pb").exists()


def test_inspect_checkpoint_says_what_the_constants_of_a_graph_feed(ran: Ran) -> None:
    printed = ran.ok("list")
    assert "model.pb: frozen graph" in printed
    assert "kernel (MatMul MatMul)" in printed
    assert "4 variables of 103 elements" in printed
    listed = json.loads((ran.folder / "list.json").read_text())
    assert {each["name"]: each["feeds"] for each in listed["variables"]}["net/head/biases"] == "bias (BiasAdd BiasAdd)"
    assert "not a graph, or a truncated one" in ran.ok("cut", 1)


@pytest.mark.skipif(not REAL.is_file(), reason="the real frozen graphs are not beside the project")
def test_a_real_frozen_graph_goes_into_keras_by_proposed_rules_alone(ran: Ran) -> None:
    """The layers have other names in the graph, so that some lines are doubtful; the comparison proves them all."""
    printed = ran.ok("real")
    assert "left to you" not in printed
    assert "22 variables by emotion.rules; 0 tensors skipped" in printed
    difference = re.search(r"largest difference (\S+)", printed)
    assert difference is not None
    assert float(difference[1].rstrip(",")) < 1e-5
