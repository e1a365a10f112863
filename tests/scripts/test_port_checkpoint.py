"""port_checkpoint, run as a program: there with slots and proof, back byte for byte, and what it refuses."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from engine.files import Npz

v1 = tf.compat.v1
ROOT = pathlib.Path(__file__).resolve().parents[2]

MODEL = """
import keras

def build(image_shape=(4, 4, 1), outputs=3):
    images = keras.Input(image_shape)
    x = keras.layers.Flatten()(images)
    x = keras.layers.Dense(5, activation="relu", name="hidden")(x)
    return keras.Model(images, keras.layers.Dense(outputs, name="head")(x), name="small")
"""
RULES = """
(hidden|head)/kernel <- net/\\1/weights
(hidden|head)/bias <- net/\\1/biases
"""


class Old(NamedTuple):
    folder: pathlib.Path
    prefix: pathlib.Path
    target: str
    rules: pathlib.Path


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Old:
    """A TF1 program's checkpoint after three steps of Adam, with averages, its graph, and a Keras model for it."""
    folder = tmp_path_factory.mktemp("old")
    (folder / "small_model.py").write_text(MODEL)
    (folder / "small.rules").write_text(RULES)
    rng = np.random.default_rng(0)
    with tf.Graph().as_default():
        v1.set_random_seed(1)
        images = v1.placeholder(tf.float32, [None, 4, 4, 1], name="images")
        x = tf.reshape(images, [-1, 16])
        with v1.variable_scope("net"):
            for name, units in (("hidden", 5), ("head", 3)):
                with v1.variable_scope(name):
                    kernel = v1.get_variable("weights", [x.shape[-1], units])
                    x = tf.nn.bias_add(tf.matmul(x, kernel), v1.get_variable("biases", [units]))
                x = tf.nn.relu(x) if name == "hidden" else x
        logits = tf.identity(x, name="logits")
        train = v1.train.AdamOptimizer(0.01).minimize(tf.reduce_mean(tf.square(logits)))
        averages = v1.train.ExponentialMovingAverage(0.5)
        with tf.control_dependencies([train]):
            train = averages.apply(v1.trainable_variables())
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            for _ in range(3):
                session.run(train, {images: rng.standard_normal((6, 4, 4, 1))})
            prefix = v1.train.Saver().save(session, str(folder / "model.ckpt"), global_step=3)
    return Old(folder, pathlib.Path(prefix), "py:small_model:build", folder / "small.rules")


def port(old: Old, *flags: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.port_checkpoint", f"--target={old.target}", *flags]
    environment = os.environ | {"PYTHONPATH": str(old.folder)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert done.returncode == code, f"{done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def reader(prefix: pathlib.Path) -> Any:
    return tf.train.load_checkpoint(str(prefix))


def test_there_with_slots_and_proof_and_back_byte_for_byte(old: Old, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "new" / "small.npz"
    done = port(
        old, f"--source={old.prefix}", "--auto", "--slots=Adam", f"--verify_graph={old.prefix}.meta",
        "--outputs=logits", f"--out={out}",
    )  # fmt: skip
    assert "after 3 steps (told by beta1_power" in done.stdout
    ledger = json.loads((out.parent / "ledger.json").read_text())
    assert set(ledger) >= {"source", "target", "loaded", "skipped", "unused", "missing", "slots", "parity"}
    assert ledger["parity"]["max_abs_difference"] <= 1e-6
    assert [output["name"] for output in ledger["parity"]["outputs"]] == ["logits:0"]
    explained = {name for entry in ledger["loaded"] for name in entry["source"]}
    explained |= {entry["name"] for entry in ledger["skipped"]}
    explained |= {name for entry in ledger["slots"] for name in entry["source"]}
    assert explained == set(reader(old.prefix).get_variable_to_shape_map())
    assert ledger["unused"] == ledger["missing"] == []
    assert all(0.8 <= entry["confidence"] < 1 for entry in ledger["loaded"])
    with Npz(out) as file:
        assert len(file.names()) == 4 + 8 + 4
        for path, name in (("hidden/kernel", "net/hidden/weights"), ("head/bias", "net/head/biases")):
            np.testing.assert_array_equal(file.read(path), reader(old.prefix).get_tensor(name))
            np.testing.assert_array_equal(
                file.read(f"optimizer/{path}/v"), reader(old.prefix).get_tensor(f"{name}/Adam_1")
            )
            assert file.read(f"optimizer/{path}/t") == 3
    rules = out.with_suffix(".rules")
    assert "# 0.9" in rules.read_text()  # a confidence on every line

    back = tmp_path / "back" / "model.ckpt-3"
    port(
        old, "--reverse", f"--source={out}", f"--rules={rules}", f"--base={old.prefix}", f"--graph={old.prefix}.meta",
        f"--out={back}",
    )  # fmt: skip
    for end in (".index", ".data-00000-of-00001"):
        assert pathlib.Path(f"{back}{end}").read_bytes() == pathlib.Path(f"{old.prefix}{end}").read_bytes()


def test_averages_are_taken_and_changed_weights_go_back_without_a_base(old: Old, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "averages.npz"
    port(old, f"--source={old.folder}", f"--rules={old.rules}", "--take_ema", "--slots=auto", f"--out={out}")
    with Npz(out) as file:
        arrays = {name: file.read(name) for name in file.names()}
    shadow = reader(old.prefix).get_tensor("net/hidden/weights/ExponentialMovingAverage")
    np.testing.assert_array_equal(arrays["hidden/kernel"], shadow)
    assert not np.array_equal(shadow, reader(old.prefix).get_tensor("net/hidden/weights"))
    arrays = {name: value + 1 if value.dtype == np.float32 else value for name, value in arrays.items()}
    changed = tmp_path / "changed.npz"
    np.savez(changed, **arrays)
    back = tmp_path / "back"
    port(old, "--reverse", f"--source={changed}", f"--rules={old.rules}", f"--out={back}", "--format=V1")
    assert not pathlib.Path(f"{back}.index").exists()
    found = reader(back)
    np.testing.assert_array_equal(found.get_tensor("net/hidden/weights"), arrays["hidden/kernel"])
    np.testing.assert_array_equal(found.get_tensor("net/head/biases/Adam"), arrays["optimizer/head/bias/m"])
    assert found.get_tensor("beta1_power") == pytest.approx(0.9**4)


def test_keras_weights_and_a_proof_that_fails(old: Old, tmp_path: pathlib.Path) -> None:
    (old.folder / "wrong_model.py").write_text(MODEL.replace('"relu"', '"tanh"'))
    wrong = old._replace(target="py:wrong_model:build")
    out = tmp_path / "small.weights.h5"
    done = port(
        wrong, f"--source={old.prefix}", f"--rules={old.rules}", f"--verify_graph={old.prefix}.meta", "--outputs=logits",
        f"--out={out}", code=1,
    )  # fmt: skip
    assert "NOT EQUAL" in done.stdout
    assert json.loads((tmp_path / "ledger.json").read_text())["parity"]["max_abs_difference"] > 1e-3
    import keras

    sys.path.insert(0, str(old.folder))
    try:
        from small_model import build  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(old.folder))
    model = build()
    assert isinstance(model, keras.Model)
    model.load_weights(out)
    np.testing.assert_array_equal(
        model.get_layer("head").kernel.numpy(), reader(old.prefix).get_tensor("net/head/weights")
    )


def test_a_dry_run_writes_the_ledger_alone_and_damage_writes_nothing(old: Old, tmp_path: pathlib.Path) -> None:
    done = port(old, f"--source={old.prefix}", f"--rules={old.rules}", "--dry_run", f"--out={tmp_path / 'x' / 'a.npz'}")
    assert sorted(file.name for file in (tmp_path / "x").iterdir()) == ["ledger.json"]
    assert "4 variables by small.rules" in done.stdout
    bad = tmp_path / "bad"
    bad.mkdir()
    for end in (".index", ".data-00000-of-00001"):
        content = bytearray(pathlib.Path(f"{old.prefix}{end}").read_bytes())
        if end.startswith(".data"):
            content = bytearray(byte ^ 1 for byte in content)
        (bad / f"m{end}").write_bytes(content)
    done = port(old, f"--source={bad / 'm'}", f"--rules={old.rules}", f"--out={tmp_path / 'y' / 'a.npz'}", code=2)
    assert "4 tensors are damaged" in done.stderr
    assert "net/head/biases" in done.stderr
    assert list((tmp_path / "y").iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source=PREFIX", "--out=OUT/a.txt"], "it ends in .npz or .weights.h5"),
        (
            ["--source=PREFIX", "--rules=RULES", "--slots=Momentum", "--out=OUT/a.npz"],
            "the checkpoint has slots of Adam",
        ),
        (["--source=PREFIX", "--out=OUT/a.npz"], "no rule file fits"),
        (
            ["--reverse", "--source=OUT/a.npz", "--rules=RULES", "--base=PREFIX", "--out=PREFIX"],
            "it is the base itself",
        ),
    ],
)
def test_bad_flags_are_named(old: Old, tmp_path: pathlib.Path, flags: list[str], message: str) -> None:
    names = {"PREFIX": str(old.prefix), "RULES": str(old.rules), "OUT": str(tmp_path)}
    for word, value in names.items():
        flags = [flag.replace(word, value) for flag in flags]
    assert message in port(old, *flags, code=2).stderr
    assert list(tmp_path.iterdir()) == []
