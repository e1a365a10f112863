"""The example networks at other sizes and class counts, and their rules on checkpoints with such names."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from compat_v1 import examples
from compat_v1.examples import musicnn_vgg, pnet
from engine import models, porting
from engine.porting.rules import language

FOLDER = pathlib.Path(examples.__file__).parent
RNG = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def of_pnet(classes: int) -> dict[str, np.ndarray]:
    sizes = [("conv1", 3, 3, 10), ("conv2", 3, 10, 16), ("conv3", 3, 16, 32)]
    sizes += [("conv4_1", 1, 32, classes), ("conv4_2", 1, 32, 4), ("conv4_3", 1, 32, 10)]
    found = {f"{name}/weights": random(size, size, n, m) for name, size, n, m in sizes}
    found |= {f"{name}/biases": random(m) for name, _, _, m in sizes}
    found |= {f"{name}/alphas": random(m) for name, _, _, m in sizes[:3]}
    return found | {"conv1/weights/Momentum": random(3, 3, 3, 10), "Variable": np.int32(5)}


def of_musicnn(tags: int) -> dict[str, np.ndarray]:
    found = {f"{n}CNN/kernel": random(3, 3, 1 if n == 1 else 128, 128) for n in range(1, 6)}
    found |= {f"{n}CNN/bias": random(128) for n in range(1, 6)}
    for number in range(6):
        name = f"batch_normalization_{number}" if number else "batch_normalization"
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            found[f"{name}/{part}"] = random(128 if number else 1)
    found |= {"dense/kernel": random(256, tags), "dense/bias": random(tags)}
    return found | {"dense/bias/Adam": random(tags), "dense/bias/Adam_1": random(tags), "beta1_power": np.float32(0.5)}


@pytest.mark.parametrize(
    ("example", "arrays", "head"),
    [
        (pnet, of_pnet, {"classifier/kernel", "classifier/bias"}),
        (musicnn_vgg, of_musicnn, {"head/kernel", "head/bias"}),
    ],
    ids=["pnet", "musicnn"],
)
def test_rules_load_every_variable_and_leave_another_head_fresh(
    tmp_path: pathlib.Path, save: Callable[..., Any], example: Any, arrays: Any, head: set[str]
) -> None:
    checkpoint = save(tmp_path / "model.ckpt", arrays(5))
    (tmp_path / "model.ckpt.meta").unlink()  # its graph is not the network's
    rules = language.read_rules(FOLDER / f"{example.__name__.rpartition('.')[2]}.rules")
    rules = dataclasses.replace(rules, expect=())
    shape = example.build.__defaults__[0]
    same = porting.load(example.build(shape, 5), checkpoint, rules)
    assert (same.missing, same.unused, same.fresh) == ((), (), {})
    other = porting.load(example.build(shape, 3), checkpoint, rules)
    assert set(other.fresh) == head


def pools(folder: pathlib.Path, *sizes: tuple[list[int], list[int]]) -> None:
    """Writes the graph of a network with these pools (ksize, strides) beside the checkpoint."""
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 64, 64, 1])
        for number, (ksize, strides) in enumerate(sizes):
            name = f"model/max_pooling2d_{number}/MaxPool" if number else "model/max_pooling2d/MaxPool"
            x = tf.raw_ops.MaxPool(input=x, ksize=ksize, strides=strides, padding="VALID", name=name)
        tf.compat.v1.train.export_meta_graph(str(folder / "model.ckpt.meta"), graph=graph)


def test_musicnn_is_loaded_only_where_the_graph_has_its_pools(tmp_path: pathlib.Path, save: Callable[..., Any]) -> None:
    checkpoint = save(tmp_path / "model.ckpt", of_musicnn(50))
    load = functools.partial(porting.load, musicnn_vgg.build(), checkpoint, FOLDER / "musicnn_vgg.rules")
    pools(tmp_path, ([1, 4, 1, 1], [1, 2, 2, 1]), ([1, 2, 2, 1], [1, 2, 2, 1]))  # MTT_vgg
    assert "what musicnn_vgg.rules expects of the graph holds (4 lines" in load().summary()
    pools(tmp_path, ([1, 4, 1, 1], [1, 4, 1, 1]), ([1, 1, 4, 1], [1, 1, 4, 1]))  # MSD_vgg
    with pytest.raises(
        porting.PortError, match=r"(?s)another network .*max_pooling2d_1/MaxPool.*: ksize is 1,1,4,1, not"
    ):
        load()
    (tmp_path / "model.ckpt.meta").unlink()
    with pytest.raises(porting.PortError, match=r"there is no graph beside .*model.ckpt; give it with verify_graph="):
        load()


def test_models_of_other_sizes() -> None:
    assert [shape[1:] for shape in pnet.build((48, 64, 3)).output_shape] == [(19, 27, 2), (19, 27, 4), (19, 27, 10)]
    assert pnet.build((None, None, 3)).output_shape[0] == (None, None, None, 2)
    assert [shape[1:] for shape in pnet.build(outputs=3).output_shape] == [(3,), (4,), (10,)]
    assert musicnn_vgg.build((128, 80, 1), 7).output_shape == (None, 7)
    model = musicnn_vgg.build()
    spectrograms = random(2, 187, 96)
    np.testing.assert_array_equal(model(spectrograms), model(spectrograms[..., None]))


def test_finetune_takes_one_by_its_name() -> None:
    made = models.build_model("py:compat_v1.examples.musicnn_vgg:build", image_shape=(187, 96, 1), outputs=7)
    assert made.network.output_shape == (None, 7)
