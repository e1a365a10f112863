"""Which layers of a network adapters can be attached to, and the variables of these layers that they merge into."""

from __future__ import annotations

import math
from typing import Any

from engine.models import layers
from engine.models.adapters.target import Target
from engine.selection.variables import ModelVariables, NamedVariable


def find_targets(network: Any, variables: ModelVariables) -> list[Target]:
    """All layers of a network that can be adapted, in model order."""
    by_id = {id(entry.variable): entry for entry in variables}
    found: dict[str, Target] = {}
    for module in getattr(network, "submodules", ()):
        if type(module) in _MODULES and (target := _module_target(module, by_id)) is not None:
            found[target.entry.path] = target
    if variables.keras_layers:
        from engine.models.adapters import keras_layers

        for layer in variables.keras_layers.values():
            if (target := keras_layers.find_target(layer, by_id)) is not None:
                found[target.entry.path] = target
    return [found[entry.path] for entry in variables if entry.path in found]


_MODULES = (layers.Dense, layers.Conv, layers.LayerNorm, layers.BatchNorm)


def _module_target(module: Any, by_id: dict[int, NamedVariable]) -> Target | None:
    norm = isinstance(module, (layers.LayerNorm, layers.BatchNorm))
    names = ("gamma", "beta") if norm else ("kernel", "bias")
    multiplier, offset = (by_id.get(id(getattr(module, name))) for name in names)
    if multiplier is None:  # a part of the model that is not listed
        return None
    shape = multiplier.shape
    return Target(
        path=multiplier.path.rpartition("/")[0],
        layer=module,
        form="norm" if norm else "product",
        multiplier=multiplier,
        offset=offset,
        inputs=shape[:-1],
        outputs=shape[-1:],
        lora_limit=0 if norm else min(math.prod(shape[:-1]), shape[-1]),
    )
