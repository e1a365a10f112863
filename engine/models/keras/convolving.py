"""The step that all heads on feature maps repeat: a convolution, a normalisation that keeps no statistics, and a ReLU."""

from __future__ import annotations

from typing import Any

_GROUPS = 8


def convolve(x: Any, filters: int, size: int, name: str, *, dilation: int = 1) -> Any:
    """A convolution, a normalisation of groups of channels (Wu and He, arXiv:1803.08494) and a ReLU."""
    import keras

    given: dict[str, Any] = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
    x = keras.layers.Conv2D(filters, size, dilation_rate=dilation, name=name, **given)(x)
    groups = next(count for count in range(min(_GROUPS, filters), 0, -1) if filters % count == 0)
    x = keras.layers.GroupNormalization(groups, name=f"{name}_norm")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)
