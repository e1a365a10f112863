"""Merges adapters into the kernels, biases and norms of their layers, whose model then needs none."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.models.adapters.language import AdapterError
from engine.models.adapters.target import Target
from engine.models.adapters.targets import find_targets
from engine.selection.variables import NamedVariable, name_variables
from engine.text import join_some


def find_unmergeable(network: Any) -> list[str]:
    """The paths of the layers whose adapters cannot be merged: bottlenecks, which have a ReLU between their products."""
    targets = find_targets(network, name_variables(network))
    return [target.path for target in targets if "adapter" in target.attached]


def merge_values(network: Any) -> dict[str, np.ndarray]:
    """The values of the variables that change when adapters are merged, by path, in the dtypes of the variables.

    The sums are formed in float64 and rounded once. Raises AdapterError if there is an ``adapter``, which cannot be merged.
    """
    if paths := find_unmergeable(network):
        raise AdapterError(
            f"{join_some(paths, most=2)}: a bottleneck adapter has a nonlinearity, so it cannot be merged into a kernel; "
            "the model stays as it is, with its adapters"
        )
    found: dict[str, np.ndarray] = {}
    for target in find_targets(network, name_variables(network)):
        found |= _merge_one(target)
    return found


def merge_into(network: Any, plain: Any) -> list[str]:
    """Gives a network of the same kind without adapters the values of one with them, merged; returns the paths that changed.

    Raises AdapterError as ``merge_values``.
    """
    merged = merge_values(network)
    own = name_variables(network).by_path()
    for entry in (variables := name_variables(plain)):
        value = merged[entry.path] if entry.path in merged else own[entry.path].variable.numpy()
        entry.variable.assign(value.astype(entry.variable.dtype.as_numpy_dtype))
    variables.refresh()
    return list(merged)


def _merge_one(target: Target) -> dict[str, np.ndarray]:
    """The variables of one layer that change."""
    lora, ssf = _read_lora(target), target.attached.get("ssf")
    multiplier, offset, found = target.multiplier, target.offset, dict[NamedVariable, np.ndarray]()
    if lora is not None and multiplier is not None:
        down, up, factor = lora
        found[multiplier] = _float64(multiplier.variable) + factor * np.tensordot(down, up, axes=1)
    if ssf is not None:
        scale, shift = (_float64(getattr(ssf, name, None)) for name in ("scale", "shift"))
        if multiplier is not None and scale is not None:
            shape = multiplier.shape[-2:] if target.form == "depthwise" else scale.shape
            found[multiplier] = found.get(multiplier, _float64(multiplier.variable)) * scale.reshape(shape)
        if offset is not None:
            found[offset] = _float64(offset.variable) * (1.0 if scale is None else scale) + shift
    return {entry.path: value.astype(entry.variable.dtype.as_numpy_dtype) for entry, value in found.items()}


def _read_lora(target: Target) -> tuple[np.ndarray, np.ndarray, float] | None:
    """down, up and alpha / rank."""
    if target.keras:
        from engine.models.adapters import keras_layers

        own = keras_layers.read_lora(target.layer)
        if own is not None:
            return _float64(own[0]), _float64(own[1]), own[2]
    held = target.attached.get("lora")
    return None if held is None else (_float64(held.down), _float64(held.up), held.factor)


def _float64(variable: Any) -> Any:
    return None if variable is None else np.asarray(variable.numpy(), np.float64)
