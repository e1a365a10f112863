"""The encoder of BERT (Devlin et al. 2018) as a Keras model of its own layers.

``bert.rules`` ports the checkpoints of github.com/google-research/bert. Its GELU is the approximation by tanh, and its
norms have an epsilon of 1e-12.
"""

from __future__ import annotations

import functools
from typing import Any

from engine.models.keras.safe_loading import import_keras

_EPSILON = 1e-12
_DROPOUT = 0.1


def base_uncased() -> Any:
    """BERT-Base, uncased: 12 layers of width 768 and 30,522 tokens."""
    return build(30_522)


def base_cased() -> Any:
    """BERT-Base, cased: 28,996 tokens."""
    return build(28_996)


def base_multilingual() -> Any:
    """BERT-Base, multilingual cased: 119,547 tokens."""
    return build(119_547)


def base_chinese() -> Any:
    """BERT-Base, Chinese: 21,128 tokens."""
    return build(21_128)


def large_uncased() -> Any:
    """BERT-Large, uncased: 24 layers of width 1,024 and 30,522 tokens."""
    return build(30_522, width=1024, depth=24, heads=16)


def large_cased() -> Any:
    """BERT-Large, cased: 28,996 tokens."""
    return build(28_996, width=1024, depth=24, heads=16)


def build(
    tokens: int, *, width: int = 768, depth: int = 12, heads: int = 12, positions: int = 512, segments: int = 2
) -> Any:
    """Builds the encoder.

    It takes three integer tensors [B, length]: the tokens, a mask (1 for tokens, 0 for padding) and the segments. It
    returns the features [B, length, width] and those of the first token after the pooler, [B, width].
    """
    keras = import_keras()
    layers = keras.layers
    ids, mask, segment = (keras.Input((None,), dtype="int32", name=name) for name in ("tokens", "mask", "segments"))
    norm = functools.partial(layers.LayerNormalization, epsilon=_EPSILON)
    gelu = functools.partial(keras.activations.gelu, approximate=True)
    place = keras.ops.cumsum(keras.ops.ones_like(ids), axis=1) - 1
    x = layers.Embedding(tokens, width, name="word_embeddings")(ids)
    x = layers.Add()(
        [
            x,
            layers.Embedding(segments, width, name="token_type_embeddings")(segment),
            layers.Embedding(positions, width, name="position_embeddings")(place),
        ]
    )
    x = layers.Dropout(_DROPOUT)(norm(name="embeddings_norm")(x))
    seen = keras.ops.expand_dims(mask, 1) > 0
    for number in range(depth):
        name = f"layer_{number}"
        attention = layers.MultiHeadAttention(heads, width // heads, dropout=_DROPOUT, name=f"{name}_attention")
        y = layers.Dropout(_DROPOUT)(attention(x, x, attention_mask=seen))
        x = norm(name=f"{name}_attention_norm")(layers.Add()([y, x]))
        y = layers.Activation(gelu)(layers.Dense(4 * width, name=f"{name}_intermediate")(x))
        y = layers.Dropout(_DROPOUT)(layers.Dense(width, name=f"{name}_output")(y))
        x = norm(name=f"{name}_output_norm")(layers.Add()([y, x]))
    pooled = layers.Dense(width, activation="tanh", name="pooler")(x[:, 0])
    return keras.Model([ids, mask, segment], [x, pooled], name="bert")
