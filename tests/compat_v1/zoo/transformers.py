"""The encoder of google-research/bert in TensorFlow 1, under the names of its checkpoints."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
from slim_layers import Layers, Network


def bert(
    tokens: int, *, width: int = 768, depth: int = 12, heads: int = 12, positions: int = 512, first: bool = False
) -> Network:
    """Takes [3, B, length] numbers: tokens, mask and segments. Returns the features, or those of the pooler."""

    def norm(layers: Layers, x: Any) -> Any:
        mean, variance = tf.nn.moments(x, -1, keepdims=True)
        with layers.scope("LayerNorm"):
            beta, gamma = layers.variable("beta", width), layers.variable("gamma", width)
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-12)

    def attend(layers: Layers, x: Any, mask: Any) -> Any:
        def split(name: str) -> Any:
            y = layers.dense(x, f"attention/self/{name}", width, weights="kernel")
            return tf.transpose(tf.reshape(y, [*x.shape[:2], heads, width // heads]), [0, 2, 1, 3])

        query, key, value = map(split, ("query", "key", "value"))
        scores = tf.matmul(query, key, transpose_b=True) / math.sqrt(width // heads)
        scores += (1 - mask[:, None, None]) * -10000.0
        y = tf.transpose(tf.nn.softmax(scores) @ value, [0, 2, 1, 3])
        return tf.reshape(y, x.shape)

    def network(layers: Layers, inputs: Any) -> Any:
        ids, mask, segments = (inputs[0], tf.cast(inputs[1], tf.float32), inputs[2])
        with layers.scope("bert"):
            with layers.scope("embeddings"):
                x = tf.gather(layers.variable("word_embeddings", tokens, width), ids)
                x += tf.gather(layers.variable("token_type_embeddings", 2, width), segments)
                x += layers.variable("position_embeddings", positions, width)[: ids.shape[1]]
                x = norm(layers, x)
            for number in range(depth):
                with layers.scope(f"encoder/layer_{number}"):
                    y = attend(layers, x, mask)
                    with layers.scope("attention/output"):
                        x = norm(layers, x + layers.dense(y, "dense", width, weights="kernel"))
                    y = layers.dense(x, "intermediate/dense", 4 * width, weights="kernel")
                    y = 0.5 * y * (1 + tf.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
                    with layers.scope("output"):
                        x = norm(layers, x + layers.dense(y, "dense", width, weights="kernel"))
            pooled = layers.dense(x[:, 0], "pooler/dense", width, activation=tf.tanh, weights="kernel")
        return pooled if first else x

    return network
