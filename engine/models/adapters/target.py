"""A layer that adapters can be attached to, of the engine or of Keras."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from engine.selection.variables import NamedVariable

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
        groups: those of a convolution, each of which has a share of its channels.
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
    groups: int = 1
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
