"""port-checkpoint and apply-delta with --names, as they are typed: what they write, print and refuse."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from engine.files import write_npz
from engine.porting.readers.safetensors_file import Safetensors
from engine.porting.safetensors_writer import write_safetensors

v1 = tf.compat.v1
MODEL = """
import keras

def build(image_shape=(4, 4, 1), outputs=3):
    images = keras.Input(image_shape)
    x = keras.layers.Conv2D(2, 3, use_bias=False, name="conv")(images)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Activation("relu")(x))
    return keras.Model(images, keras.layers.Dense(outputs, name="head")(x), name="small")
"""
OLD = r"""
conv/kernel <- net/conv/weights
norm/(gamma|beta|moving_mean|moving_variance) <- net/conv/BatchNorm/\1
head/kernel <- net/head/weights
head/bias <- net/head/biases
"""
TORCH = r"""
map norm gamma=weight beta=bias moving_mean=running_mean moving_variance=running_var
conv/kernel <- conv.weight | transpose(2, 3, 1, 0)
norm/(\w+) <- bn.\{norm:1}
head/kernel <- fc.weight | transpose
head/bias <- fc.bias
skip? .*num_batches_tracked
"""
DIRECT = r"""
map norm gamma=weight beta=bias moving_mean=running_mean moving_variance=running_var
net/conv/weights <- conv.weight | transpose(2, 3, 1, 0)
net/conv/BatchNorm/(\w+) <- bn.\{norm:1}
net/head/weights <- fc.weight | transpose
net/head/biases <- fc.bias
skip? .*num_batches_tracked
"""


class Ran(NamedTuple):
    folder: pathlib.Path
    said: dict[str, tuple[int, str, str]]


@pytest.fixture(scope="module")
def ran(run_each: Any, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("old")
    for name, text in (("small_net.py", MODEL), ("old.rules", OLD), ("torch.rules", TORCH), ("direct.rules", DIRECT)):
        (folder / name).write_text(text)
    (folder / "part.rules").write_text(DIRECT.replace("net/head/biases <- fc.bias", ""))
    shapes = {"conv/weights": [3, 3, 1, 2], "head/weights": [2, 3], "head/biases": [3]}
    shapes |= {f"conv/BatchNorm/{name}": [2] for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    with tf.Graph().as_default(), v1.variable_scope("net"):
        v1.set_random_seed(1)
        for name, shape in shapes.items():
            v1.get_variable(name, shape, initializer=v1.random_uniform_initializer(0.5, 1.5))
        loss = tf.add_n([tf.reduce_sum(each**2) for each in v1.trainable_variables()])
        train = v1.train.AdamOptimizer(0.01).minimize(loss)
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            session.run(train)
            v1.train.Saver().save(session, str(folder / "model.ckpt"))
    source, target = f"--source={folder}/model.ckpt", "--target=py:small_net:build"
    write_safetensors(folder / "own.safetensors", {"a": ((2,), np.dtype(np.float32))}, lambda _: np.ones(2, np.float32))
    commands = {
        "model": [source, target, f"--rules={folder}/old.rules", f"--names={folder}/torch.rules", f"--out={folder}/a/x.safetensors"],
        "direct": [source, f"--names={folder}/direct.rules", f"--out={folder}/b/x.safetensors"],
        "keras": [source, target, "--auto", "--names=keras", f"--out={folder}/c/x.safetensors"],
        "dry": [source, f"--names={folder}/direct.rules", f"--out={folder}/d/x.safetensors", "--dry_run"],
        "part": [source, f"--names={folder}/part.rules", f"--out={folder}/e/x.safetensors"],
        "unknown": [source, "--names=timm", f"--out={folder}/e/x.safetensors"],
        "misspelt": [source, "--names=tim", f"--out={folder}/e/x.safetensors"],
        "npz": [source, target, f"--rules={folder}/old.rules", "--names=timm", f"--out={folder}/e/x.npz"],
        "no names": [source, target, f"--rules={folder}/old.rules", f"--out={folder}/e/x.safetensors"],
        "slots": [source, target, f"--rules={folder}/old.rules", "--slots=Adam", "--names=keras", f"--out={folder}/e/x.safetensors"],
        "no target": [source, f"--rules={folder}/old.rules", "--names=keras", f"--out={folder}/e/x.safetensors"],
        "itself": [f"--source={folder}/own.safetensors", "--names=keras", f"--out={folder}/own.safetensors"],
        "no out": [source, "--names=keras"],
        "place": [source, f"--names={folder}/direct.rules", f"--out={folder}/there.safetensors/x.safetensors"],
    }  # fmt: skip
    (folder / "there.safetensors").write_text("a file")
    os.environ["PYTHONPATH"], before = (
        os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        os.environ.get("PYTHONPATH"),
    )
    for name in "abcde":
        (folder / name).mkdir()
    try:
        done = run_each("scripts.port_checkpoint", list(commands.values()))
    finally:
        os.environ["PYTHONPATH"] = before or ""
    return Ran(folder, dict(zip(commands, done, strict=True)))


def test_a_checkpoint_leaves_through_a_model_and_without_one_alike(ran: Ran) -> None:
    for name in ("model", "direct", "keras", "dry"):
        assert ran.said[name][0] == 0, ran.said[name]
    one, other = (ran.folder / name / "x.safetensors" for name in "ab")
    assert one.read_bytes() == other.read_bytes()
    with Safetensors(one) as file:
        shapes = {name: list(file.shape(name)) for name in file.names()}
    norm = {f"bn.{name}": [2] for name in ("weight", "bias", "running_mean", "running_var")}
    assert (
        shapes
        == {"conv.weight": [2, 1, 3, 3], "fc.weight": [3, 2], "fc.bias": [3], "bn.num_batches_tracked": []} | norm
    )
    assert (ran.folder / "a/x_parity.npz").is_file()
    assert not (ran.folder / "b/x_parity.npz").exists()
    assert "parity:  no outputs to compare with: no model was given" in ran.said["direct"][1]
    assert "checked: 8 tensors, read back by" in ran.said["model"][1]
    for name in "ab":
        ledger = json.loads((ran.folder / name / "ledger.json").read_text())
        assert {"source", "target", "loaded", "skipped", "unused", "missing", "slots", "parity"} <= set(ledger)
        assert sorted(each["name"] for each in ledger["written"]) == sorted(shapes)
        assert any("Adam" in each["name"] for each in ledger["skipped"])
    with Safetensors(ran.folder / "c/x.safetensors") as file:
        assert "norm/moving_mean" in file.names()
        assert file.shape("conv/kernel") == (3, 3, 1, 2)
    assert not list((ran.folder / "d").iterdir())


def test_what_cannot_leave_is_refused_and_nothing_is_written(ran: Ran) -> None:
    for name, message in {
        "part": "net/head/biases [3]",
        "unknown": "--names=FILE takes rules of your own",
        "misspelt": "there is no such file",
        "npz": "names=timm: only used with --out=X.safetensors",
        "no names": "--names says how the tensors of a safetensors file are called",
        "slots": "slots cannot be combined with --names",
        "no target": "target",
        "itself": "it is also what is read",
        "no out": "only used with --out=X.safetensors",
        "place": "there.safetensors",
    }.items():
        code, _, error = ran.said[name]
        assert code == 2, (name, ran.said[name])
        assert message in error, (name, error)
    assert not list((ran.folder / "e").iterdir())
    assert (ran.folder / "there.safetensors").read_text() == "a file"


def test_a_run_leaves_with_its_base_and_what_it_trained(photo_run: Any, run_each: Any, tmp_path: pathlib.Path) -> None:
    rules = tmp_path / "cnn.rules"
    rules.write_text(r"(.*kernel) <- \1" + "\n" + r"(?!.*kernel)(.*) <- net.\1")
    delta = f"--delta={photo_run.out}/trained.npz"
    base = tmp_path / "base.npz"
    with np.load(photo_run.out / "trained.npz", allow_pickle=False) as npz:
        arrays = {name: npz[name] for name in npz.files if not name.endswith(".json")}
    write_npz(base, arrays.items())
    done = run_each(
        "scripts.apply_delta",
        [
            ["--base=none", delta, f"--out={tmp_path}/x.safetensors", f"--names={rules}"],
            ["--base=none", delta, f"--out={tmp_path}/x.npz", f"--names={rules}"],
            ["--base=none", delta, f"--out={tmp_path}/y.safetensors", "--names=hf"],
        ],
    )
    assert [code for code, _, _ in done] == [0, 2, 2], done
    with Safetensors(tmp_path / "x.safetensors") as file:
        for name in file.names():
            np.testing.assert_array_equal(file.read(name), arrays[name.removeprefix("net.")])
    assert (tmp_path / "x_parity.npz").is_file() or "parity:" in done[0][1]
    assert not (tmp_path / "y.safetensors").exists()
