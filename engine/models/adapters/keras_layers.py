"""Adapters of Keras layers: Keras' own ``enable_lora`` where it fits, otherwise variables beside a layer whose call is wrapped.

Their paths are those of the engine's own layers: ``LAYER/lora/down``, ``LAYER/ssf/scale`` (engine.selection.keras_names).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from engine import keras_private
from engine.models.adapters import kinds
from engine.models.adapters.target import Form, Target
from engine.selection.variables import NamedVariable

_EQUATION = re.compile(r"(?P<inputs>[a-zA-Z.]+),(?P<kernel>[a-zA-Z]+)->(?P<outputs>[a-zA-Z.]+)")


@functools.cache
def _classes(form: Form | Literal["convolution"]) -> tuple[Any, ...]:
    """The classes of layers of a form that can be adapted; Keras is imported when they are first asked for."""
    from keras import layers

    convolutions = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
    return {
        "product": (layers.Dense, layers.EinsumDense, *convolutions),
        "convolution": convolutions,
        "depthwise": (layers.DepthwiseConv1D, layers.DepthwiseConv2D),
        "norm": (layers.BatchNormalization, layers.LayerNormalization),
    }[form]


def _make_variables(kind: str, values: Mapping[str, np.ndarray], *, dtype: str, factor: float) -> Any:
    """A layer that only holds the variables of an adapter; ``factor`` is alpha / rank of ``lora``."""
    import keras

    held = keras.layers.Layer(name=kind, dtype=dtype)
    held.adapter_kind = kind
    held.factor = factor
    for name, value in values.items():

        def initialize(shape: Any, dtype: Any = None, value: np.ndarray = value) -> Any:
            return tf.cast(value, dtype)

        setattr(held, name, held.add_weight(name=name, shape=value.shape, dtype=dtype, initializer=initialize))
    held.built = True
    return held


def find_target(layer: Any, by_id: Mapping[int, NamedVariable]) -> Target | None:
    """A layer as one that can be adapted; None if it is of another kind, or has channels anywhere but last."""
    if not any(type(layer) in _classes(form) for form in ("product", "depthwise", "norm")):
        return None
    norm = isinstance(layer, _classes("norm"))
    held = (layer.gamma, layer.beta) if norm else (keras_private.stored_kernel(layer), layer.bias)
    multiplier, offset = (None if each is None else by_id.get(id(each.value)) for each in held)
    found = multiplier or offset
    if found is None or (multiplier is None and not norm) or getattr(layer, "quantization_mode", None) is not None:
        return None
    if not norm and not found.variable.dtype.is_floating:
        return None
    form, inputs, outputs = _find_form(layer, found.shape)
    if form is None or (offset is not None and offset.shape != outputs):  # a bias of an EinsumDense may have other axes
        return None
    return Target(
        path=found.path.rpartition("/")[0],
        layer=layer,
        form=form,
        multiplier=multiplier,
        offset=offset,
        inputs=inputs,
        outputs=outputs,
        lora_limit=min(math.prod(inputs), math.prod(outputs)) if form == "product" else 0,
        groups=getattr(layer, "groups", 1) if isinstance(layer, _classes("convolution")) else 1,
        keras=True,
    )


def _find_form(layer: Any, shape: tuple[int, ...]) -> tuple[Form | None, tuple[int, ...], tuple[int, ...]]:
    """The form of a layer with a kernel (or gamma) of this shape, and the shapes of its inputs and outputs."""
    if isinstance(layer, _classes("norm")):
        rank = getattr(layer.input_spec, "ndim", None) or 0  # BatchNormalization knows it
        return ("norm" if layer.axis in (-1, [-1], rank - 1) else None), (), shape
    if getattr(layer, "data_format", "channels_last") != "channels_last" or getattr(layer, "padding", "") == "causal":
        return None, (), ()
    if isinstance(layer, _classes("depthwise")):
        return "depthwise", shape[:-2], (shape[-2] * shape[-1],)
    if hasattr(layer, "equation"):
        if (found := _read_equation(layer.equation)) is None:
            return None, (), ()
        _, kernel, contracted = found
        count = len(contracted)
        return ("product" if kernel[:count] == contracted else None), shape[:count], shape[count:]
    if isinstance(layer, _classes("convolution")) and layer.groups > 1 and not uses_own_lora(layer):
        return None, (), ()
    return "product", shape[:-1], shape[-1:]


def _read_equation(equation: str) -> tuple[str, str, str] | None:
    """The indices of an EinsumDense: those of input and kernel, and those that it sums over, in the kernel's order.

    None unless each index of the kernel is either summed over or new in the output.
    """
    match = _EQUATION.fullmatch(equation.replace(" ", ""))
    if match is None:
        return None
    inputs, kernel, outputs = match["inputs"], match["kernel"], match["outputs"]
    contracted = "".join(letter for letter in kernel if letter in inputs)
    rest = "".join(letter for letter in inputs if letter not in contracted)
    new = "".join(letter for letter in kernel if letter not in inputs)
    if not new or not contracted or any(letter in outputs for letter in contracted) or rest + new != outputs:
        return None
    return inputs, kernel, contracted


def uses_own_lora(layer: Any) -> bool:
    """Whether ``lora`` is Keras' own.

    It refuses constraints, its variables always have float32, and it divides only the last axis of an EinsumDense, which for
    the query of an attention (inputs, heads, size) would need as many parameters as there are heads times inputs.
    """
    if not hasattr(layer, "enable_lora") or layer.kernel_constraint is not None:
        return False
    kernel = keras_private.stored_kernel(layer)
    return kernel.dtype == "float32" and (len(kernel.shape) == 2 or isinstance(layer, _classes("convolution")))


class _Adapted:
    """A Keras layer as ``kinds.adapt`` needs it."""

    def __init__(self, target: Target) -> None:
        self._layer = target.layer

    @property
    def lora(self) -> Any:
        return getattr(self._layer, "lora", None)

    @property
    def adapter(self) -> Any:
        return getattr(self._layer, "adapter", None)

    @property
    def ssf(self) -> Any:
        return getattr(self._layer, "ssf", None)

    def project(self, x: Any, kernel: Any) -> Any:
        """The layer's operation with another kernel."""
        layer = self._layer
        if hasattr(layer, "units"):
            return kinds.multiply(x, kernel)
        if not hasattr(layer, "equation"):
            return layer.convolution_op(x, kernel)
        found = _read_equation(layer.equation)
        assert found is not None
        inputs, _, contracted = found
        rest = "".join(letter for letter in inputs if letter not in contracted)
        new = next(letter for letter in "rstuvwxyzabcdefghijklmnopq" if letter not in inputs)
        return tf.einsum(f"{inputs},{contracted}{new}->{rest}{new}", x, kernel)


def attach(target: Target, kind: str, values: Mapping[str, np.ndarray], *, rank: int, alpha: float) -> None:
    """Attaches an adapter with these first values to a Keras layer; ``rank`` and ``alpha`` are those of ``lora``."""
    layer = target.layer
    if kind == "lora" and uses_own_lora(layer):
        keras_private.enable_lora(layer, rank, alpha, values["down"])
        return
    dtype = str(target.entry.variable.dtype.name)
    factor = alpha / rank if kind == "lora" else 1.0
    if not any(getattr(layer, other, None) is not None for other in kinds.KINDS):
        keras_private.replace_call(layer, _wrap(layer, _Adapted(target)))
    keras_private.add_child(layer, kind, _make_variables(kind, values, dtype=dtype, factor=factor))


def _wrap(layer: Any, adapted: _Adapted) -> Any:
    """The call of a layer, with what is attached between its operation and its activation."""
    call = layer.call

    def wrapped(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        own = vars(layer)
        activation = own.get("activation")
        if activation is not None:
            own["activation"] = None
        try:
            y = call(inputs, *args, **kwargs)
        finally:
            if activation is not None:
                own["activation"] = activation
        y = kinds.adapt(adapted, inputs, y)
        return y if activation is None else activation(y)

    return wrapped


def read_lora(layer: Any) -> tuple[Any, Any, float] | None:
    """down, up and alpha / rank of a layer with Keras' own lora; None if it has none."""
    if not getattr(layer, "lora_enabled", False):
        return None
    return layer.lora_kernel_a, layer.lora_kernel_b, layer.lora_alpha / layer.lora_rank
