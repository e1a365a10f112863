"""TF-Slim's VGG and VGGish in TensorFlow 1."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from slim_layers import Layers, Network, max_pool


def vgg(depth: int, *, classes: int = 1000, pixels: int = 1) -> Network:
    """``pixels`` is the size of the map that fc6 reads: 7 at 224x224 pixels, 1 at 32x32."""

    def network(layers: Layers, x: Any) -> Any:
        plain = {"norm": False}
        with layers.scope(f"vgg_{depth}"):
            counts = (2, 2, 3, 3, 3) if depth == 16 else (2, 2, 4, 4, 4)
            for block, (count, filters) in enumerate(zip(counts, (64, 128, 256, 512, 512), strict=True), 1):
                for number in range(1, count + 1):
                    x = layers.conv(x, f"conv{block}/conv{block}_{number}", filters, 3, **plain)
                x = max_pool(x, 2, 2, "VALID")
            x = layers.conv(x, "fc6", 4096, pixels, padding="VALID", **plain)
            x = layers.conv(x, "fc7", 4096, 1, **plain)
            return tf.squeeze(layers.conv(x, "fc8", classes, 1, activation=None, **plain), [1, 2])

    return network


def vggish(layers: Layers, x: Any) -> Any:
    """Log-mel spectrograms [B, 96, 64, 1] -> [B, 128], without the ReLU that old definitions end in."""
    plain = {"norm": False}
    with layers.scope("vggish"):
        x = max_pool(layers.conv(x, "conv1", 64, 3, **plain), 2, 2)
        x = max_pool(layers.conv(x, "conv2", 128, 3, **plain), 2, 2)
        for block, filters in ((3, 256), (4, 512)):
            for number in (1, 2):
                x = layers.conv(x, f"conv{block}/conv{block}_{number}", filters, 3, **plain)
            x = max_pool(x, 2, 2)
        x = tf.reshape(x, [x.shape[0], -1])
        x = layers.dense(x, "fc1/fc1_1", 4096, activation=tf.nn.relu)
        x = layers.dense(x, "fc1/fc1_2", 4096, activation=tf.nn.relu)
        return layers.dense(x, "fc2", 128)
