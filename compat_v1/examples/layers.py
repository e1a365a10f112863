"""The layers that the networks of TF-Slim are made of, as Keras layers with the names of its scopes.

A scope ``Mixed_3b/Branch_1/Conv2d_0a_1x1`` becomes the layer ``Mixed_3b_Branch_1_Conv2d_0a_1x1``, and its norm the layer
of that name followed by ``_bn``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.models.keras.safe_loading import import_keras


@dataclass(frozen=True)
class Layers:
    """Makes layers; ``gamma`` says whether norms have one (``scale`` of slim's batch_norm)."""

    epsilon: float = 1e-3
    gamma: bool = True
    activation: Any = "relu"
    momentum: float = 0.997

    def norm(self, x: Any, name: str, *, gamma: bool | None = None, activation: Any = None) -> Any:
        layers = import_keras().layers
        scale = self.gamma if gamma is None else gamma
        y = layers.BatchNormalization(epsilon=self.epsilon, momentum=self.momentum, scale=scale, name=name)(x)
        return _activate(y, activation)

    def conv(
        self,
        x: Any,
        name: str,
        filters: int,
        kernel: int | tuple[int, int],
        strides: int = 1,
        *,
        padding: str = "same",
        norm: bool = True,
        bias: bool | None = None,
        activation: Any = "default",
        dilation: int = 1,
    ) -> Any:
        """A convolution, its norm and its activation; without a norm it has a bias.

        The padding "fixed" is that of slim's conv2d_same: of a strided convolution, it does not depend on the size of
        the image, as that of "same" does.
        """
        layers = import_keras().layers
        if padding == "fixed":
            x, padding = _pad(x, kernel, strides, dilation)
        y = layers.Conv2D(
            filters, kernel, strides, padding, dilation_rate=dilation, use_bias=not norm if bias is None else bias, name=name
        )(x)  # fmt: skip
        y = self.norm(y, f"{name}_bn") if norm else y
        return _activate(y, self.activation if activation == "default" else activation)

    def depthwise(
        self,
        x: Any,
        name: str,
        kernel: int,
        strides: int = 1,
        *,
        padding: str = "same",
        norm: bool = True,
        activation: Any = "default",
        dilation: int = 1,
    ) -> Any:
        """A depthwise convolution, its norm and its activation."""
        layers = import_keras().layers
        if padding == "fixed":
            x, padding = _pad(x, kernel, strides, dilation)
        y = layers.DepthwiseConv2D(kernel, strides, padding, dilation_rate=dilation, use_bias=not norm, name=name)(x)
        y = self.norm(y, f"{name}_bn") if norm else y
        return _activate(y, self.activation if activation == "default" else activation)

    def join(self, branches: Sequence[Any]) -> Any:
        return import_keras().layers.Concatenate()(branches)


def finish(images: Any, x: Any, outputs: int, *, name: str, dropout: float = 0.0, flat: bool = False) -> Any:
    """The model that pools the features and computes logits from them, [B, outputs], without a softmax."""
    keras = import_keras()
    layers = keras.layers
    x = layers.Flatten(name="flat")(x) if flat else layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(dropout, name="dropout")(x) if dropout else x
    return keras.Model(images, layers.Dense(outputs, name="logits")(x), name=name)


def max_pool(x: Any, size: int, strides: int = 1, padding: str = "same") -> Any:
    return import_keras().layers.MaxPooling2D(size, strides, padding)(x)


def avg_pool(x: Any, size: int, strides: int = 1, padding: str = "same") -> Any:
    return import_keras().layers.AveragePooling2D(size, strides, padding)(x)


def _pad(x: Any, kernel: Any, strides: int, dilation: int) -> tuple[Any, str]:
    if strides == 1:
        return x, "same"
    total = dilation * (kernel - 1)
    edges = (total // 2, total - total // 2)
    return import_keras().layers.ZeroPadding2D((edges, edges))(x), "valid"


def _activate(x: Any, activation: Any) -> Any:
    return x if activation is None else import_keras().layers.Activation(activation)(x)
