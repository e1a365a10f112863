"""A port that is killed at any moment leaves the old files or the new ones, whole; the next one removes what is left."""

from __future__ import annotations

import json
import os
import pathlib
import shutil

import forked
import numpy as np
import pytest
import tensorflow as tf

from engine.files import Npz, write_npz

KILLED = """
import pathlib, shutil, sys
from killing import kill_at_each
from scripts import cli, port_checkpoint

folder, old, words = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:]

def prepare(number):
    return shutil.copytree(old, folder / f"{number:03d}", dirs_exist_ok=True)

def act(place):
    sys.argv = ["port_checkpoint", *(word.replace("PLACE", str(place)) for word in words)]
    if cli._run(port_checkpoint.main, "", port_checkpoint.__name__):
        raise RuntimeError

kills = kill_at_each(prepare, act, inside=str(folder), calls=("replace", "unlink", "fsync", "rename", "link", "rmdir"))
for number in range(0, kills + 1, 4):
    again = kill_at_each(lambda _: folder / f"{number:03d}", act, inside="nowhere")
print(kills)
"""
RULES = """
stem/kernel <- net/stem
"""
MODEL = """
import keras

def build(image_shape=(4, 4, 1), outputs=3):
    images = keras.Input(image_shape)
    return keras.Model(images, keras.layers.Dense(outputs, name="stem", use_bias=False)(keras.layers.Flatten()(images)))
"""


@pytest.fixture
def made(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with a model, a source for it, and what is in the place of the output."""
    (tmp_path / "killed_model.py").write_text(MODEL)
    (tmp_path / "killed.rules").write_text(RULES)
    write_npz(tmp_path / "source.npz", [("net/stem", np.full((16, 3), 2, np.float32))])
    write_npz(tmp_path / "ours.npz", [("stem/kernel", np.full((16, 3), 2, np.float32))])
    (tmp_path / "old").mkdir()
    (tmp_path / "old/ledger.json").write_text('{"of": "the old one"}')
    (tmp_path / "old/notes.txt").write_text("a user's own")
    return tmp_path


def read(place: pathlib.Path, kind: str) -> float:
    """The one value in what was ported."""
    if kind == "npz":
        with Npz(place / "out.npz") as file:
            array = file.read("stem/kernel")
    elif kind == "keras":
        import h5py

        with h5py.File(place / "out.weights.h5") as file:
            found: list[np.ndarray] = []
            file.visititems(lambda _, each: found.append(each[()]) if isinstance(each, h5py.Dataset) else None)
            (array,) = found
    else:
        array = tf.train.load_checkpoint(str(place / "model")).get_tensor("net/stem")
    (value,) = set(np.asarray(array).reshape(-1).tolist())
    return float(value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["npz", "keras", "reverse"])
def test_a_port_killed_at_any_call_leaves_the_old_or_the_new(
    programs: forked.Programs, made: pathlib.Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = [
        "--target=py:killed_model:build,classes=3",
        "--image_size=4",
        "--channels=1",
        f"--rules={made}/killed.rules",
    ]
    if kind == "reverse":
        tf.raw_ops.SaveV2(
            prefix=str(made / "old/model"), tensor_names=["net/stem"], shape_and_slices=[""], tensors=[tf.ones([16, 3])]
        )
        shutil.copytree(made / "old", made / "base")
        words = ["--reverse", f"--source={made}/ours.npz", f"--base={made}/base/model", "--out=PLACE/model"]
    else:
        name = {"npz": "out.npz", "keras": "out.weights.h5"}[kind]
        words = [f"--source={made}/source.npz", f"--out=PLACE/{name}"]
        first = made / "first.npz"
        write_npz(first, [("net/stem", np.ones((16, 3), np.float32))])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(pathlib.Path(__file__).parents[1]), str(made)]))
    if kind != "reverse":
        run = "from scripts import cli, port_checkpoint; raise SystemExit(cli._run(port_checkpoint.main, '', port_checkpoint.__name__))"
        there = [f"--source={first}", f"--out={made}/old/{name}", *target]
        done = programs.run(["-c", run, *there])
        assert done.returncode == 0, done.stderr
    (made / "killed").mkdir()
    done = programs.run(["-c", KILLED, str(made / "killed"), str(made / "old"), *words, *target])
    assert done.returncode == 0, done.stderr
    kills = int(done.stdout.splitlines()[-1])
    assert kills > 5
    found = []
    for number in range(kills + 1):
        place = made / f"killed/{number:03d}"
        found.append(read(place, kind))
        json.loads((place / "ledger.json").read_text())
        assert (place / "notes.txt").read_text() == "a user's own"
        if number % 4 == 0:
            assert found[-1] == 2.0
            assert {*os.listdir(place)} == {*os.listdir(made / "old")}
    others = [value for number, value in enumerate(found) if number % 4]
    assert others == sorted(others)
    assert {*others} == {1.0, 2.0}
