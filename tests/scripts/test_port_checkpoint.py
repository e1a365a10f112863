"""port_checkpoint, run as a program: there with slots and proof, back byte for byte, and what it refuses."""

from __future__ import annotations

import importlib
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from engine.files import Npz

v1 = tf.compat.v1

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


class Ran(NamedTuple):
    """What all commands did, run one after the other in one process: (exit code, stdout, stderr) by name."""

    out: pathlib.Path
    said: dict[str, tuple[int, str, str]]

    def ok(self, name: str, code: int = 0) -> str:
        found, printed, error = self.said[name]
        assert found == code, f"{found}:\n{printed}\n{error}"
        return printed if code < 2 else error


@pytest.fixture(scope="module")
def ran(old: Old, run_each: Any, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    out = tmp_path_factory.mktemp("out")
    bad = out / "bad"
    bad.mkdir()
    index, numbers = ".index", ".data-00000-of-00001"
    (bad / f"m{index}").write_bytes(pathlib.Path(f"{old.prefix}{index}").read_bytes())
    (bad / f"m{numbers}").write_bytes(bytes(byte ^ 1 for byte in pathlib.Path(f"{old.prefix}{numbers}").read_bytes()))
    np.savez(out / "changed.npz", **changed(old))
    source, rules, graph = f"--source={old.prefix}", f"--rules={old.rules}", f"{old.prefix}.meta"
    commands = {
        "there": [source, "--auto", "--slots=Adam", f"--verify_graph={graph}", "--outputs=logits", f"--out={out}/new/small.npz"],
        "back": [
            "--reverse", f"--source={out}/new/small.npz", f"--rules={out}/new/small.rules", f"--base={old.prefix}",
            f"--graph={graph}", f"--out={out}/back/model.ckpt-3",
        ],
        "averages": [f"--source={old.folder}", rules, "--take_ema", "--slots=auto", f"--out={out}/averages/a.npz"],
        "no base": ["--reverse", f"--source={out}/changed.npz", rules, f"--out={out}/v1/old", "--format=V1"],
        "changed": [
            "--reverse", f"--source={out}/changed.npz", rules, f"--base={old.prefix}", f"--out={out}/changed/model",
        ],
        "dry": [source, rules, "--dry_run", f"--out={out}/dry/a.npz"],
        "damaged": [f"--source={bad}/m", rules, f"--out={out}/damaged/a.npz"],
        "name": [source, f"--out={out}/refused/a.txt"],
        "kind": [source, rules, "--slots=Momentum", f"--out={out}/refused/a.npz"],
        "rules": [source, f"--out={out}/refused/a.npz"],
        "itself": ["--reverse", f"--source={out}/new/small.npz", rules, f"--base={old.prefix}", f"--out={old.prefix}"],
        "bound": [source, rules, "--bound=1e-3", "--seed=2", f"--out={out}/refused/a.npz"],
        "betas": [source, rules, "--beta1=0.8", f"--out={out}/refused/a.npz"],
        "seeded": [source, rules, f"--verify_graph={graph}", f"--feed={out}/x.npz", "--examples=2", "--dry_run"],
        "sized": [source, rules, "--target=file:x.keras", "--image_size=32", "--dry_run"],
        "channels": [source, rules, "--channels=1", "--dry_run"],
        "keras": [source, rules, f"--out={out}/keras/small.weights.h5"],
        "wrong": [
            source, rules, f"--verify_graph={graph}", "--outputs=logits", f"--out={out}/wrong/small.npz",
            "--target=py:wrong_model:build",
        ],
    }  # fmt: skip
    (old.folder / "wrong_model.py").write_text(MODEL.replace('"relu"', '"tanh"'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(old.folder))
        asked = [[f"--target={old.target}", *words] for words in commands.values()]
        found = run_each("scripts.port_checkpoint", asked)
    return Ran(out, dict(zip(commands, found, strict=True)))


def changed(old: Old) -> dict[str, np.ndarray]:
    """Weights and slots as a run would leave them, each number another than the checkpoint's."""
    file = reader(old.prefix)
    found: dict[str, np.ndarray] = {}
    for layer in ("hidden", "head"):
        for new, name in (("kernel", "weights"), ("bias", "biases")):
            found[f"{layer}/{new}"] = file.get_tensor(f"net/{layer}/{name}") + 1
            for slot, end in (("m", "Adam"), ("v", "Adam_1")):
                found[f"optimizer/{layer}/{new}/{slot}"] = file.get_tensor(f"net/{layer}/{name}/{end}") + 2
            found[f"optimizer/{layer}/{new}/t"] = np.asarray(7, np.int64)
    return found


def reader(prefix: pathlib.Path) -> Any:
    return tf.train.load_checkpoint(str(prefix))


def test_there_with_slots_and_proof_and_back_byte_for_byte(old: Old, ran: Ran) -> None:
    printed = ran.ok("there")
    assert "after 3 steps (known from beta1_power" in printed
    ledger = json.loads((ran.out / "new/ledger.json").read_text())
    assert set(ledger) >= {"source", "target", "loaded", "skipped", "unused", "missing", "slots", "parity"}
    assert ledger["parity"]["max_abs_difference"] <= 1e-6
    assert [output["name"] for output in ledger["parity"]["outputs"]] == ["logits:0"]
    explained = {name for entry in ledger["loaded"] for name in entry["source"]}
    explained |= {entry["name"] for entry in ledger["skipped"]}
    explained |= {name for entry in ledger["slots"] for name in entry["source"]}
    assert explained == set(reader(old.prefix).get_variable_to_shape_map())
    assert ledger["unused"] == ledger["missing"] == []
    assert all(0.8 <= entry["confidence"] < 1 for entry in ledger["loaded"])
    with Npz(ran.out / "new/small.npz") as file:
        assert len(file.names()) == 4 + 8 + 4
        for path, name in (("hidden/kernel", "net/hidden/weights"), ("head/bias", "net/head/biases")):
            np.testing.assert_array_equal(file.read(path), reader(old.prefix).get_tensor(name))
            np.testing.assert_array_equal(
                file.read(f"optimizer/{path}/v"), reader(old.prefix).get_tensor(f"{name}/Adam_1")
            )
            assert file.read(f"optimizer/{path}/t") == 3
    assert "# 0.9" in (ran.out / "new/small.rules").read_text()  # a confidence on every line
    ran.ok("back")
    for end in (".index", ".data-00000-of-00001"):
        assert (ran.out / f"back/model.ckpt-3{end}").read_bytes() == pathlib.Path(f"{old.prefix}{end}").read_bytes()


def test_averages_are_taken(old: Old, ran: Ran) -> None:
    ran.ok("averages")
    with Npz(ran.out / "averages/a.npz") as file:
        kernel = file.read("hidden/kernel")
    np.testing.assert_array_equal(kernel, reader(old.prefix).get_tensor("net/hidden/weights/ExponentialMovingAverage"))
    assert not np.array_equal(kernel, reader(old.prefix).get_tensor("net/hidden/weights"))


def test_what_changed_goes_back_with_its_slots(old: Old, ran: Ran) -> None:
    ran.ok("no base")
    ran.ok("changed")
    assert not (ran.out / "v1/old.index").exists()
    arrays, before = changed(old), reader(old.prefix)
    for prefix in (ran.out / "v1/old", ran.out / "changed/model"):
        found = reader(prefix)
        np.testing.assert_array_equal(found.get_tensor("net/hidden/weights"), arrays["hidden/kernel"])
        np.testing.assert_array_equal(found.get_tensor("net/head/biases/Adam"), arrays["optimizer/head/bias/m"])
        assert found.get_tensor("beta1_power") == pytest.approx(0.9**8)
    average = "net/head/biases/ExponentialMovingAverage"  # no rule touches it
    np.testing.assert_array_equal(found.get_tensor(average), before.get_tensor(average))


def test_a_proof_that_fails_writes_no_weights(ran: Ran) -> None:
    assert "NOT EQUAL" in ran.ok("wrong", code=1)
    assert [file.name for file in (ran.out / "wrong").iterdir()] == ["ledger.json"]
    assert json.loads((ran.out / "wrong/ledger.json").read_text())["parity"]["max_abs_difference"] > 1e-3


def test_keras_weights(old: Old, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    ran.ok("keras")
    monkeypatch.syspath_prepend(str(old.folder))
    model = importlib.import_module("small_model").build()
    model.load_weights(ran.out / "keras/small.weights.h5")
    np.testing.assert_array_equal(
        model.get_layer("head").kernel.numpy(), reader(old.prefix).get_tensor("net/head/weights")
    )


def test_a_dry_run_writes_the_ledger_alone_and_damage_writes_nothing(ran: Ran) -> None:
    assert "4 variables by small.rules" in ran.ok("dry")
    assert [file.name for file in (ran.out / "dry").iterdir()] == ["ledger.json"]
    error = ran.ok("damaged", code=2)
    assert "4 tensors are damaged" in error
    assert "net/head/biases" in error
    assert list((ran.out / "damaged").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("name", "expected a name that ends in .npz or .weights.h5"),
        ("kind", "the checkpoint has slots of Adam"),
        ("rules", "no rule file matches its names"),
        ("itself", "is the base itself; choose another prefix"),
        ("bound", "bound, seed: only used with --verify_graph"),
        ("betas", "beta1: only used with --slots or --reverse"),
        ("seeded", "examples: not used with --feed="),
        ("sized", "image_size: file:x.keras already defines its images"),
        ("channels", "channels=1 also needs --image_size"),
    ],
)
def test_bad_flags_are_named_and_write_nothing(ran: Ran, name: str, message: str) -> None:
    assert message in ran.ok(name, code=2)
    folder = ran.out / "refused"
    assert not folder.exists() or list(folder.iterdir()) == []
