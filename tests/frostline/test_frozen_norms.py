"""The norm at the frozen part's output."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from engine.frostline.watch import frozen_output_norms
from engine.models.adapters.attach import attach
from engine.models.registry import build_model
from engine.selection.selection import select


def test_rows_of_all_positions_count_towards_their_example() -> None:
    """A frozen dense layer with an adapter is a product of all positions together, [B * T, D], at the frost line."""
    network = build_model("vit:mini,depth=1", image_shape=(8, 8, 1), outputs=2).network
    attach(network, "lora:rank=1 @attention", seed=0)
    selection = select(network, "@adapters @head")

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, 8, 8, 1])])
    def compute(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        outputs = network(images, training=False)
        return outputs, frozen_output_norms(selection, images)

    images = tf.constant(np.random.default_rng(0).random((3, 8, 8, 1), np.float32))
    norms = compute(images)[1].numpy()
    assert norms.shape == (3,)
    assert (norms > 0).all()
    for number in range(3):
        alone = compute(images[number : number + 1])[1].numpy()
        np.testing.assert_allclose(alone, norms[number : number + 1], rtol=1e-5)
