"""Which layers of a network adapters can be attached to, and the variables of these layers that they merge into."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from engine.models import layers
from engine.selection.variables import ModelVariables, NamedVariable

Form = Literal["product", "depthwise", "norm"]


@dataclass(frozen=True, eq=False)
class Target:
    """A layer that can be adapted.

    Attributes:
        path, layer: the path of the layer, and the layer itself.
        form: "product" (dense, convolution), "depthwise" or "norm".
        multiplier, offset: its kernel or gamma, and its bias or beta; None if it has none. They take up scale and shift.
        inputs, outputs: the shape of its kernel without the outputs, and of the outputs.
        lora_limit: the largest rank; 0 if ``lora`` and ``adapter`` do not apply.
        keras: whether it is a layer of Keras.
    """

    path: str
    layer: Any
    form: Form
    multiplier: NamedVariable | None
    offset: NamedVariable | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    lora_limit: int = 0
    keras: bool = False

    @property
    def entry(self) -> NamedVariable:
        """The variable that a filter must match for the layer to be adapted."""
        found = self.multiplier or self.offset
        assert found is not None
        return found

    def takes(self, kind: str) -> bool:
        """Whether a kind of adapter applies to it."""
        return kind == "ssf" or self.form == "product"

    @property
    def attached(self) -> dict[str, Any]:
        """The adapters that the layer has already, by kind."""
        found = {kind: getattr(self.layer, kind, None) for kind in ("lora", "adapter", "ssf")}
        return {kind: held for kind, held in found.items() if held is not None}


def find_targets(network: Any, variables: ModelVariables) -> list[Target]:
    """All layers of a network that can be adapted, in model order."""
    by_id = {id(entry.variable): entry for entry in variables}
    found: dict[str, Target] = {}
    for module in getattr(network, "submodules", ()):
        if type(module) in _MODULES and (target := _module_target(module, by_id)) is not None:
            found[target.entry.path] = target
    if variables.keras_layers:
        from engine.models.adapters import keras_layers  # imported here, since it imports Keras

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
