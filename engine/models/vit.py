"""Vision Transformer (arXiv:2010.11929) as a tf.Module with explicit variable paths:

patch/{kernel,bias}, [class_token,] position_embedding,
blocks/N/{norm1,norm2}/{gamma,beta}, blocks/N/attention/{query,key,value,out}/{kernel,bias},
blocks/N/mlp/{up,down}/{kernel,bias}, [blocks/N/{scale1,scale2},] norm/{gamma,beta} or fc_norm/{gamma,beta},
head/{kernel,bias}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine.errors import InputError
from engine.models import layers
from engine.training import remat

# (width, depth, heads): the sizes of the paper; "Ti" and "S" are those of DeiT (arXiv:2012.12877)
SIZES = {"mini": (96, 6, 3), "Ti": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape and options of a ViT.

    Attributes:
        width, depth, heads: the features of a token, the number of blocks, and of attention heads.
        patch, image: the side of a patch in pixels, and (height, width, channels); the first two are multiples of it.
        classes: the number of outputs of the head.
        pool: "token" (class token) or "mean" (mean of the patch tokens).
        class_token: whether there is a class token; None means only with pool "token". With "mean" it takes part in
            attention, but not in the mean.
        fc_norm: whether the last norm follows the pooling instead of preceding it (timm's ``fc_norm``).
        norm_epsilon, gelu: the epsilon of every LayerNorm; "exact" (erf) or "tanh".
        layer_scale: the initial value of LayerScale (arXiv:2103.17239); None for a model without it.
        dropout: the rate after the embedding, the attention output and the MLP layers, in training.
        drop_path: the rate for the last block's branches; it decreases linearly to 0 at the first block.
        tasks: the numbers of outputs of several tasks, instead of ``classes``; the model then returns logits by task.
    """

    width: int
    depth: int
    heads: int
    patch: int
    image: tuple[int, int, int]
    classes: int
    pool: str = "token"
    class_token: bool | None = None
    fc_norm: bool = False
    norm_epsilon: float = 1e-6
    gelu: str = "exact"
    layer_scale: float | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    tasks: tuple[tuple[str, int], ...] = ()

    @property
    def has_class_token(self) -> bool:
        return self.pool == "token" or bool(self.class_token)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        height, width, _ = self.image
        return height // self.patch, width // self.patch

    @property
    def tokens(self) -> int:
        rows, columns = self.grid
        return rows * columns + self.has_class_token

    def drop_path_rate(self, block: int) -> float:
        """The drop path rate of a block's branches; blocks are counted from 0."""
        return self.drop_path * block / max(1, self.depth - 1)


class ViT(tf.Module):
    """A ViT from normalised images [B, height, width, channels] to logits [B, classes].

    Variables have ``dtype``; the forward pass is computed in ``compute`` (None: ``dtype``). Logits have at least 32 bits.
    """

    def __init__(self, config: Config, *, seed: int = 0, dtype: Any = tf.float32, compute: Any = None) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.config = config
        self.compute = compute or dtype
        width, channels = config.width, config.image[2]
        self.patch = layers.Dense(config.patch * config.patch * channels, width, rng=rng, dtype=dtype)
        if config.has_class_token:
            self.class_token = tf.Variable(tf.zeros([1, 1, width], dtype), name="class_token")
        self.position_embedding = tf.Variable(
            tf.cast(layers.truncated_normal(rng, (1, config.tokens, width), 0.02), dtype), name="position_embedding"
        )
        self.blocks = [Block(config, index, rng=rng, dtype=dtype) for index in range(config.depth)]
        # two names, so that weights of one kind never load into the other
        norm = layers.LayerNorm(width, epsilon=config.norm_epsilon, dtype=dtype)
        self.norm: layers.LayerNorm | None = None if config.fc_norm else norm
        self.fc_norm: layers.LayerNorm | None = norm if config.fc_norm else None
        self.head = layers.make_heads(width, dict(config.tasks) or config.classes, rng=rng, dtype=dtype)

    def __call__(self, images: Any, *, training: bool = False, seeds: Any = None) -> Any:
        """Computes logits; in training, dropout and drop path need ``seeds`` (int32 [B, 2]).

        Raises InputError if the static shape of the images is not the model's.
        """
        if self.config.pool == "token":
            x = self._encode(images, training=training, seeds=seeds, first_only=True)[:, 0]
        else:
            x = self.features(images, training=training, seeds=seeds)
            x = tf.reduce_mean(x[:, 1:] if self.config.has_class_token else x, axis=1)
        x = x if self.fc_norm is None else self.fc_norm(x)
        return layers.apply_heads(self.head, x, [task for task, _ in self.config.tasks])

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches, to which a ported position embedding is resized."""
        return self.config.grid

    def features(self, images: Any, *, training: bool = False, seeds: Any = None) -> Any:
        """The tokens after the last norm (with ``fc_norm``, before it): [B, tokens, width], the class token first."""
        return self._encode(images, training=training, seeds=seeds, first_only=False)

    def _encode(self, images: Any, *, training: bool, seeds: Any, first_only: bool) -> Any:
        """``features``, or those of the first token alone: no other is computed beyond what it attends to in the last block."""
        config = self.config
        if training and seeds is None and (config.dropout or config.drop_path):
            raise ValueError("seeds=None: dropout and drop path in training need per-example seeds [B, 2]")
        x = self.patch(split_patches(tf.cast(images, self.compute), config))
        if config.has_class_token:
            token = tf.broadcast_to(tf.cast(self.class_token, x.dtype), [tf.shape(x)[0], 1, config.width])
            x = tf.concat([token, x], axis=1)
        x = x + tf.cast(self.position_embedding, x.dtype)
        if training and config.dropout:
            x = layers.dropout(x, config.dropout, seeds=seeds, site=0)
        for block in self.blocks:
            x = block(x, training=training, seeds=seeds, first_only=first_only and block is self.blocks[-1])
        return x if self.norm is None else self.norm(x)


class Block(tf.Module):
    """Pre-norm transformer block on tokens [B, N, width]."""

    def __init__(self, config: Config, index: int, *, rng: np.random.Generator, dtype: Any) -> None:
        super().__init__()
        width = config.width
        self.index = index
        self.dropout_rate = config.dropout
        self.drop_path_rate = config.drop_path_rate(index)
        self.norm1 = layers.LayerNorm(width, epsilon=config.norm_epsilon, dtype=dtype)
        self.attention = Attention(width, config.heads, rng=rng, dtype=dtype)
        self.norm2 = layers.LayerNorm(width, epsilon=config.norm_epsilon, dtype=dtype)
        self.mlp = Mlp(width, 4 * width, gelu=config.gelu, rng=rng, dtype=dtype)
        self.scale1 = self.scale2 = None
        if config.layer_scale is not None:
            self.scale1 = tf.Variable(tf.constant(config.layer_scale, dtype, [width]), name="scale1")
            self.scale2 = tf.Variable(tf.constant(config.layer_scale, dtype, [width]), name="scale2")

    def __call__(self, x: Any, *, training: bool, seeds: Any, first_only: bool = False) -> Any:
        """[B, N, width]; with ``first_only``, the same for the first token alone, [B, 1, width]."""

        def whole(x: Any) -> Any:
            projected = remat.elementwise(lambda x: self.attention.project(self.norm1(x), first_only=first_only), x)
            mixed = self.attention.mix(*projected)
            x = (x[:, :1] if first_only else x) + self._branch(mixed, self.scale1, 0, training=training, seeds=seeds)
            hidden = remat.elementwise(lambda x: self.mlp.up(self.norm2(x)), x)
            y = remat.elementwise(self.mlp.activate_and_down, hidden)
            return x + self._branch(y, self.scale2, 1, training=training, seeds=seeds)

        return remat.block(whole, x)

    def _branch(self, y: Any, scale: Any, which: int, *, training: bool, seeds: Any) -> Any:
        site = branch_site(self.index, which)
        if training and self.dropout_rate:
            y = layers.dropout(y, self.dropout_rate, seeds=seeds, site=site)
        if scale is not None:
            y = y * tf.cast(scale, y.dtype)
        if training and self.drop_path_rate:
            y = layers.drop_path(y, self.drop_path_rate, seeds=seeds, site=site + 1)
        return y


class Attention(tf.Module):
    """Multi-head self-attention on tokens [B, N, width]."""

    def __init__(self, width: int, heads: int, *, rng: np.random.Generator, dtype: Any) -> None:
        super().__init__()
        self.heads = heads
        self.query = layers.Dense(width, width, rng=rng, dtype=dtype)
        self.key = layers.Dense(width, width, rng=rng, dtype=dtype)
        self.value = layers.Dense(width, width, rng=rng, dtype=dtype)
        self.out = layers.Dense(width, width, rng=rng, dtype=dtype)

    def project(self, x: Any, *, first_only: bool = False) -> list[Any]:
        """Query (scaled by 1 / sqrt(size)), key and value, each [B, heads, N, size]; one query with ``first_only``."""
        size = x.shape[-1] // self.heads
        query, key, value = (
            tf.transpose(tf.reshape(y, [-1, y.shape[1], self.heads, size]), [0, 2, 1, 3])
            for y in (self.query(x[:, :1] if first_only else x), self.key(x), self.value(x))
        )
        return [query * tf.constant(1.0 / math.sqrt(size), query.dtype), key, value]

    def mix(self, query: Any, key: Any, value: Any, mask: Any = None) -> Any:
        """The output of the attention, [B, queries, width]; ``mask`` is that of ``layers.attend``."""
        _, heads, tokens, size = query.shape
        return self.out(tf.reshape(layers.attend(query, key, value, mask), [-1, tokens, heads * size]))


class Mlp(tf.Module):
    """Two dense layers with GELU between them, on tokens [B, N, width]."""

    def __init__(self, width: int, hidden: int, *, gelu: str, rng: np.random.Generator, dtype: Any) -> None:
        super().__init__()
        self.approximate = gelu == "tanh"
        self.up = layers.Dense(width, hidden, rng=rng, dtype=dtype)
        self.down = layers.Dense(hidden, width, rng=rng, dtype=dtype)

    def activate_and_down(self, hidden: Any) -> Any:
        """From the output of ``up``, [B, N, hidden], to [B, N, width]."""
        return self.down(layers.gelu(hidden, approximate=self.approximate))


def branch_site(block: int, which: int) -> int:
    """The site (engine.seeds) of the dropout of a block's branch (0 attention, 1 MLP); its drop path draws at the next."""
    return 4 * block + 2 * which + 1


def split_patches(images: Any, config: Config) -> Any:
    """Splits images [B, height, width, channels] into patches [B, patches, patch * patch * channels], row by row.

    Raises InputError if the static shape of the images is not the model's: the reshape would mix their pixels.
    """
    height, width, channels = config.image
    if not images.shape.is_compatible_with([None, *config.image]):
        first = images.shape.rank == 4 and images.shape[1:].is_compatible_with([channels, height, width])
        hint = "; channels come last: tf.transpose(images, [0, 2, 3, 1])" if first else ""
        raise InputError(
            f"images have shape {images.shape.as_list()}; expected {[None, *config.image]} (height, width, channels){hint}"
        )
    rows, columns, side = height // config.patch, width // config.patch, config.patch
    x = tf.reshape(images, [-1, rows, side, columns, side, channels])
    x = tf.transpose(x, [0, 1, 3, 2, 4, 5])
    return tf.reshape(x, [-1, rows * columns, side * side * channels])
