"""restore_strict: every variable of the model and every value of the checkpoint meet, or are named."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine.models import build_model
from engine.porting import PortError, restore_strict
from engine.selection.variables import name_variables


def network(*, outputs: int = 3, seed: int = 0) -> Any:
    return build_model("cnn:mini", image_shape=(8, 8, 1), outputs=outputs, seed=seed).network


def sequential(width: int = 4) -> Any:
    layers = [keras.layers.Dense(width), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    return keras.Sequential([keras.Input((5,)), *layers, keras.layers.Dense(2)])


def values(model: Any) -> dict[str, np.ndarray]:
    return {entry.path: entry.variable.numpy() for entry in name_variables(model)}


def equal(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(values(one).values(), values(other).values(), strict=True))


@pytest.mark.parametrize("make", [network, sequential])
@pytest.mark.parametrize("root", ["", "model", "net"])
def test_a_checkpoint_goes_into_another_model_of_its_structure(make: Any, root: str, tmp_path: pathlib.Path) -> None:
    source, target = make(), make()
    for entry in name_variables(source):
        entry.variable.assign_add(tf.ones_like(entry.variable))
    saved = tf.train.Checkpoint(**{root: source}) if root else tf.train.Checkpoint(source)
    prefix = saved.save(str(tmp_path / "c"))
    paths = restore_strict(target, prefix)
    assert list(paths) == list(values(source))
    assert equal(source, target)
    restore_strict(target, prefix, root=root)
    with pytest.raises(PortError, match="root='nowhere'"):
        restore_strict(target, prefix, root="nowhere")


def test_what_does_not_fit_is_named_on_both_sides_and_nothing_moves(tmp_path: pathlib.Path) -> None:
    class More(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = network().head
            self.extra = tf.Variable([1.0, 2.0])

    target = network(seed=1)
    before = values(target)
    prefix = tf.train.Checkpoint(More()).save(str(tmp_path / "c"))
    with pytest.raises(PortError) as raised:
        restore_strict(target, prefix)
    message = str(raised.value)
    assert "in the model, not in the file (20):\n    stages/0/conv/kernel [3, 3, 1, 16]" in message
    assert "in the file, not in the model (1):\n    extra [2]" in message
    prefix = tf.train.Checkpoint(network(outputs=7)).save(str(tmp_path / "d"))
    with pytest.raises(
        PortError,
        match=r"(?s)of another shape or type \(2\):\n    head/kernel: \[\d+, 3\] float32 in the model, \[\d+, 7\] float32 in",
    ):
        restore_strict(target, prefix)
    assert all(np.array_equal(before[path], array) for path, array in values(target).items())


def test_an_optimizer_is_named_unless_it_may_be_left_over(tmp_path: pathlib.Path) -> None:
    source = network()
    slots = {"iterations": tf.Variable(7), "velocity": tf.Variable([1.0])}
    prefix = tf.train.Checkpoint(model=source, optimizer=tf.train.Checkpoint(**slots)).save(str(tmp_path / "c"))
    with pytest.raises(
        PortError, match=r"(?s)not in the model \(2\):\n    optimizer/iterations \[\]\n    optimizer/velocity"
    ):
        restore_strict(network(seed=1), prefix)
    target = network(seed=1)
    restore_strict(target, prefix, skip=[r"optimizer/.*"])
    assert equal(source, target)


def test_files_that_are_no_checkpoint_are_refused(tmp_path: pathlib.Path) -> None:
    target = network()
    before = values(target)
    with pytest.raises(PortError, match="there is no such file"):
        restore_strict(target, tmp_path / "nowhere")
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        tf.compat.v1.get_variable("w", [2])
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(tmp_path / "named"))
    with pytest.raises(PortError, match="this checkpoint is name-based"):
        restore_strict(target, tmp_path / "named")
    prefix = tf.train.Checkpoint(network(seed=1)).save(str(tmp_path / "c"))
    data = pathlib.Path(f"{prefix}.data-00000-of-00001")
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PortError):
        restore_strict(target, prefix)
    middle = len(whole) // 2
    data.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(PortError, match="damaged or truncated"):
        restore_strict(target, prefix)
    assert all(np.array_equal(before[path], array) for path, array in values(target).items())
