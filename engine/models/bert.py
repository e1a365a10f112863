"""The encoder of BERT (arXiv:1810.04805) as a tf.Module; MiniLM has its shape, and DistilBERT one without token types.

embeddings/{word,position,[type]}_embedding, embeddings/norm/{gamma,beta},
blocks/N/attention/{query,key,value,out}/{kernel,bias}, blocks/N/{norm1,norm2}/{gamma,beta},
blocks/N/mlp/{up,down}/{kernel,bias}, [pooler/{kernel,bias},] head/{kernel,bias}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine.models import layers
from engine.models.vit import Attention, Mlp, branch_site
from engine.training import remat
from engine.training.precision import widen

POOLS = ("mean", "cls", "pooler")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape and options of an encoder.

    Attributes:
        vocabulary, positions, types: the numbers of tokens, of positions and of token types; 0 types for a model without.
        width, depth, heads, hidden: the features of a token, the number of blocks, of attention heads, and of the features
            inside an MLP.
        classes: the number of outputs of the head.
        pool: what the head reads: "mean" (of the tokens that are not padding), "cls" (the first token) or "pooler" (a dense
            layer with tanh on the first token, as BERT was pre-trained).
        pad: the id of the token that fills up a text. Nothing attends to it, and the mean leaves it out.
        norm_epsilon, gelu: the epsilon of every LayerNorm; "exact" (erf) or "tanh".
        dropout: the rate after the embeddings, the attention output, the MLP and the pooling, in training.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    hidden: int
    positions: int
    classes: int
    types: int = 2
    pool: str = "mean"
    pad: int = 0
    norm_epsilon: float = 1e-12
    gelu: str = "exact"
    dropout: float = 0.0


class Bert(tf.Module):
    """An encoder from token ids, int32 [B, T], to logits [B, classes].

    Variables have ``dtype``; the forward pass is computed in ``compute`` (None: ``dtype``). Logits have at least 32 bits.
    """

    def __init__(self, config: Config, *, seed: int = 0, dtype: Any = tf.float32, compute: Any = None) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.config = config
        self.compute = compute or dtype
        width = config.width
        self.embeddings = Embeddings(config, rng=rng, dtype=dtype)
        self.blocks = [Block(config, index, rng=rng, dtype=dtype) for index in range(config.depth)]
        self.pooler = layers.Dense(width, width, rng=rng, dtype=dtype) if config.pool == "pooler" else None
        # small but not zero: a frozen head of zeros would pass no gradient on
        self.head = layers.Dense(width, config.classes, rng=rng, scale=0.02, dtype=dtype)

    def __call__(self, inputs: Any, *, training: bool = False, seeds: Any = None) -> Any:
        """Computes logits of ``inputs``: tokens [B, T], or a dict of them as "tokens" and of token types as "types".

        In training, dropout needs ``seeds`` (int32 [B, 2]).
        """
        x, mask = self._encode(inputs, training=training, seeds=seeds, first_only=self.config.pool != "mean")
        if self.config.pool == "mean":
            wide = widen(x)
            counted = tf.cast(mask, wide.dtype)[..., None]
            mean = tf.reduce_sum(wide * counted, axis=1) / tf.maximum(tf.reduce_sum(counted, axis=1), 1.0)
            x = tf.cast(mean, x.dtype)
        else:
            x = x[:, 0]
        if self.pooler is not None:
            x = tf.tanh(self.pooler(x))
        if training and self.config.dropout:
            x = layers.dropout(x, self.config.dropout, seeds=seeds, site=branch_site(self.config.depth, 0))
        return widen(self.head(x))

    def features(self, inputs: Any, *, training: bool = False, seeds: Any = None) -> Any:
        """The tokens after the last block: [B, T, width]."""
        return self._encode(inputs, training=training, seeds=seeds, first_only=False)[0]

    def _encode(self, inputs: Any, *, training: bool, seeds: Any, first_only: bool) -> tuple[Any, Any]:
        """``features``, or those of the first token alone, and which tokens are not padding, bool [B, T]."""
        config = self.config
        if training and seeds is None and config.dropout:
            raise ValueError("seeds=None: dropout in training needs per-example seeds [B, 2]")
        given = inputs if isinstance(inputs, Mapping) else {"tokens": inputs}
        tokens = given["tokens"]
        mask = tf.not_equal(tokens, tf.cast(config.pad, tokens.dtype))
        x = self.embeddings(tokens, given.get("types"), compute=self.compute)
        if training and config.dropout:
            x = layers.dropout(x, config.dropout, seeds=seeds, site=0)
        for block in self.blocks:
            last = block is self.blocks[-1]
            x = block(x, mask[:, None, None, :], training=training, seeds=seeds, first_only=first_only and last)
        return x, mask


class Embeddings(tf.Module):
    """The sum of the embeddings of tokens, positions and token types, normalised."""

    def __init__(self, config: Config, *, rng: np.random.Generator, dtype: Any) -> None:
        super().__init__()

        def table(rows: int, name: str) -> tf.Variable:
            return tf.Variable(tf.cast(layers.truncated_normal(rng, (rows, config.width), 0.02), dtype), name=name)

        self.word_embedding = table(config.vocabulary, "word_embedding")
        self.position_embedding = table(config.positions, "position_embedding")
        self.type_embedding = table(config.types, "type_embedding") if config.types else None
        self.norm = layers.LayerNorm(config.width, epsilon=config.norm_epsilon, dtype=dtype)

    def __call__(self, tokens: Any, types: Any, *, compute: Any) -> Any:
        """[B, T, width] for ids [B, T]; token types of None are all 0."""
        length = tokens.shape[1]
        x = tf.gather(self.word_embedding, tokens) + self.position_embedding[:length]
        if self.type_embedding is not None:
            x += self.type_embedding[0] if types is None else tf.gather(self.type_embedding, types)
        return self.norm(tf.cast(x, compute))


class Block(tf.Module):
    """Post-norm transformer block on tokens [B, T, width]."""

    def __init__(self, config: Config, index: int, *, rng: np.random.Generator, dtype: Any) -> None:
        super().__init__()
        width = config.width
        self.index = index
        self.dropout_rate = config.dropout
        self.attention = Attention(width, config.heads, rng=rng, dtype=dtype)
        self.norm1 = layers.LayerNorm(width, epsilon=config.norm_epsilon, dtype=dtype)
        self.mlp = Mlp(width, config.hidden, gelu=config.gelu, rng=rng, dtype=dtype)
        self.norm2 = layers.LayerNorm(width, epsilon=config.norm_epsilon, dtype=dtype)

    def __call__(self, x: Any, mask: Any, *, training: bool, seeds: Any, first_only: bool = False) -> Any:
        """[B, T, width]; with ``first_only``, the same for the first token alone, [B, 1, width].

        ``mask``, bool [B, 1, 1, T], says which tokens may be attended to.
        """

        def dropped(y: Any, which: int) -> Any:
            if training and self.dropout_rate:
                return layers.dropout(y, self.dropout_rate, seeds=seeds, site=branch_site(self.index, which))
            return y

        def whole(x: Any) -> Any:
            query, key, value = self.attention.project(x, first_only=first_only)
            mixed = self.attention.mix(query, key, value, mask)
            x = self.norm1((x[:, :1] if first_only else x) + dropped(mixed, 0))
            hidden = self.mlp.up(x)
            return self.norm2(x + dropped(remat.elementwise(self.mlp.activate_and_down, hidden), 1))

        return remat.block(whole, x)
