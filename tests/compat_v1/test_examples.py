"""The example networks at other sizes and class counts, and their rules on checkpoints with such names."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compat_v1 import examples
from compat_v1.examples import musicnn_vgg, pnet
from engine import models, porting

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
    rules = FOLDER / f"{example.__name__.rpartition('.')[2]}.rules"
    shape = example.build.__defaults__[0]
    same = porting.load(example.build(shape, 5), checkpoint, rules)
    assert (same.missing, same.unused, same.fresh) == ((), (), {})
    other = porting.load(example.build(shape, 3), checkpoint, rules)
    assert set(other.fresh) == head


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
