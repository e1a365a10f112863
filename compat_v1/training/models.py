"""The engine's ViT and cnn:mini in TF1 style; the op names of variables are the engine's paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import tensorflow as tf

from compat_v1.training import layers
from engine.errors import InputError
from engine.models import cnn as engine_cnn
from engine.models import layers as engine_layers
from engine.models import vit as engine_vit
from engine.selection.selection import Selection
from engine.training.precision import widen

v1 = tf.compat.v1


class ModelError(InputError):
    """A network that has no TF1 form."""


class Network(Protocol):
    """A function from images [B, height, width, channels] to logits, built in the current graph and variable scope."""

    def __call__(self, images: Any, *, training: bool = False, seeds: Any = None) -> Any: ...


def translate_network(network: Any, selection: Selection) -> Network:
    """Translates a network of the engine to TF1, with the same variables by name and the same logits.

    BatchNorm layers whose statistics the selection, one of that network, does not move run in inference mode. Raises
    ModelError if the network is neither an engine.models.vit.ViT nor an engine.models.cnn.CNN.
    """
    moving = frozenset(entry.layer for entry in selection.moving)
    if isinstance(network, engine_vit.ViT):
        return _vit(network)
    if isinstance(network, engine_cnn.CNN):
        return _cnn(network, moving.__contains__)
    raise ModelError(f"model={type(network).__name__}: {_HAVE}")


def check_name(spec: str) -> None:
    """Raises ModelError unless a model, by its name in a flag, has a TF1 form."""
    if not (spec.startswith("vit:") or spec.split(",")[0].strip() == "cnn:mini"):
        raise ModelError(f"model={spec!r}: {_HAVE}")


_HAVE = "the TF1 path has only vit:SIZE[/PATCH] and cnn:mini; any other TF1 graph can be audited (audit_graph)"


def vit(images: Any, config: engine_vit.Config, *, training: bool = False, seeds: Any = None) -> Any:
    """Builds a ViT on images in the dtype that it computes in; see engine.models.vit for paths and options.

    Images are [B, height, width, channels]; dropout and drop path in training, if the config has them, draw from
    ``seeds``, int32 [B, 2]. Returns logits [B, classes], float32 at least.
    """
    if training and seeds is None and (config.dropout or config.drop_path):
        raise ModelError("seeds=None: dropout and drop path in training need per-example seeds [B, 2]")
    width = config.width
    x = layers.dense(engine_vit.split_patches(images, config), width, name="patch")
    if config.has_class_token:
        token = layers.weight("class_token", [1, 1, width], v1.zeros_initializer(), x.dtype)
        x = tf.concat([tf.broadcast_to(tf.cast(token, x.dtype), [tf.shape(x)[0], 1, width]), x], axis=1)
    normal = v1.truncated_normal_initializer(stddev=0.02)
    positions = layers.weight("position_embedding", [1, config.tokens, width], normal, x.dtype)
    x = x + tf.cast(positions, x.dtype)
    if training and config.dropout:
        x = engine_layers.dropout(x, config.dropout, seeds=seeds, site=0)
    for index in range(config.depth):
        x = _block(x, config, index, training=training, seeds=seeds)
    if not config.fc_norm:
        x = layers.layer_norm(x, name="norm", epsilon=config.norm_epsilon)
    x = x[:, 0] if config.pool == "token" else tf.reduce_mean(x[:, 1:] if config.has_class_token else x, axis=1)
    if config.fc_norm:
        x = layers.layer_norm(x, name="fc_norm", epsilon=config.norm_epsilon)
    return widen(layers.dense(x, config.classes, name="head", scale=0.02))


def cnn(images: Any, classes: int, *, training: Callable[[str], bool]) -> Any:
    """Builds cnn:mini on images in the dtype that it computes in, [B, height, width, channels].

    ``training`` says of the scope of a BatchNorm layer (``stages/0/norm``) whether it is in training mode. Returns
    logits [B, classes], float32 at least.
    """
    x = images
    for index, filters in enumerate(engine_cnn.WIDTHS):
        scope = f"stages/{index}"
        with v1.variable_scope(scope):
            x = layers.conv(x, filters, 3, name="conv", stride=1 if index == 0 else 2, bias=False)
            x = tf.nn.relu(layers.batch_norm(x, training=training(f"{scope}/norm"), name="norm"))
    return widen(layers.dense(tf.reduce_mean(x, axis=[1, 2]), classes, name="head", scale=0.02))


def _vit(network: engine_vit.ViT) -> Network:
    config, compute = network.config, network.compute

    def build(images: Any, *, training: bool = False, seeds: Any = None) -> Any:
        return vit(tf.cast(images, compute), config, training=training, seeds=seeds)

    return build


def _cnn(network: engine_cnn.CNN, moves: Callable[[str], bool]) -> Network:
    classes, compute = network.head.bias.shape[0], network.compute

    def build(images: Any, *, training: bool = False, seeds: Any = None) -> Any:
        return cnn(tf.cast(images, compute), classes, training=lambda scope: training and moves(scope))

    return build


def _block(x: Any, config: engine_vit.Config, index: int, *, training: bool, seeds: Any) -> Any:
    with v1.variable_scope(f"blocks/{index}"):
        normed = layers.layer_norm(x, name="norm1", epsilon=config.norm_epsilon)
        y = layers.attention(normed, config.heads, name="attention")
        x = x + _branch(y, config, index, 0, training=training, seeds=seeds)
        normed = layers.layer_norm(x, name="norm2", epsilon=config.norm_epsilon)
        y = layers.mlp(normed, 4 * config.width, name="mlp", approximate=config.gelu == "tanh")
        return x + _branch(y, config, index, 1, training=training, seeds=seeds)


def _branch(y: Any, config: engine_vit.Config, index: int, which: int, *, training: bool, seeds: Any) -> Any:
    """Applies dropout, layer scale and drop path to a residual branch, with the engine's sites and rates."""
    site = engine_vit.branch_site(index, which)
    if training and config.dropout:
        y = engine_layers.dropout(y, config.dropout, seeds=seeds, site=site)
    if config.layer_scale is not None:
        scale = layers.weight(f"scale{which + 1}", [config.width], v1.constant_initializer(config.layer_scale), y.dtype)
        y = y * tf.cast(scale, y.dtype)
    rate = config.drop_path_rate(index)
    if training and rate:
        y = engine_layers.drop_path(y, rate, seeds=seeds, site=site + 1)
    return y
