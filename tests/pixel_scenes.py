"""Tiny scenes with a class for each pixel, and networks for them."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from engine.data.part import IGNORED

SIZE = 16


def trunk(image_shape: Any = (SIZE, SIZE, 3), outputs: int = 2) -> Any:
    import keras

    image = keras.Input(image_shape)
    x = keras.layers.Conv2D(4, 3, 2, padding="same", activation="relu", name="first")(image)
    return keras.Model(image, keras.layers.Conv2D(6, 3, 2, padding="same", name="second")(x), name="trunk")


class Pixels(tf.Module):
    """Logits of each pixel from its own values: enough to tell the colours of the scenes apart."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.trunk = {"kernel": tf.Variable(tf.random.stateless_normal([1, 1, 3, 8], [3, 4]))}
        self.head = {"kernel": tf.Variable(tf.random.stateless_normal([1, 1, 8, outputs], [5, 6]) * 0.1)}

    def __call__(self, images: Any) -> Any:
        return tf.nn.conv2d(
            tf.nn.relu(tf.nn.conv2d(images, self.trunk["kernel"], 1, "SAME")), self.head["kernel"], 1, "SAME"
        )


def pixels(image_shape: Any, outputs: int) -> Pixels:
    """For ``--model=py:pixel_scenes:pixels``."""
    return Pixels(outputs)


def write_scenes(folder: pathlib.Path, order: tuple[int, ...] = (0, 1, 2), names: str = "ground\ndisc\nsea\n") -> None:
    y, x = np.mgrid[:SIZE, :SIZE]
    for number in range(10):
        labels = ((y - 4 - number % 4) ** 2 + (x - 5) ** 2 < 12).astype(np.uint8)
        labels[y > 11] = 2
        image = np.array([[30, 60, 90], [200, 90, 20], [20, 160, 200]], np.uint8)[labels]
        labels = np.array(order, np.uint8)[labels]
        labels[:, :2] = IGNORED
        for name, array in (("images", image), ("masks", labels)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / name / f"{number}.png")
    (folder / "classes.txt").write_text(names)
