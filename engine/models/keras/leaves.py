"""A Keras model, or a file that holds one, as a list of its innermost layers: the common form in which both are compared."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine import keras_private
from engine.selection.variables import name_variables

# Layers that do nothing in inference: a file and a model may differ in them.
NEUTRAL = re.compile(
    r"input(_layer)?|dropout|(spatial_|gaussian_|alpha_)dropout\w*|gaussian_noise|activity_regularization|identity"
)
_INPUT = re.compile(
    r"inputs?(_\w+)?|\w+_inputs?|images?|img|pixels|x"
)  # usual names, where a file does not say the class


@dataclass(frozen=True, eq=False)
class Leaf:
    """A layer that is not itself a graph of layers, in a model or in a file.

    Attributes:
        name, kind: the layer's name, and its class in snake case; "" where a file does not say.
        path: the names of the models that contain it, the outermost first, without the root.
        key: where a ``.weights.h5`` holds it, such as ``layers/functional/layers/conv2d_1``; "" where unknown.
        arrays: name within the layer -> shape, in the order of the file or the model.
        values: name within the layer -> the variable of a model, or the name of a tensor in a file.
        places: where an old file lists the arrays, among those of its entry.
        config: the layer's configuration, where it is known.
        head: whether a model's leaf belongs to its head.
        layer: the layer itself, of a model.
    """

    name: str
    kind: str = ""
    path: tuple[str, ...] = ()
    key: str = ""
    arrays: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    places: tuple[int, ...] = ()
    config: Mapping[str, Any] | None = None
    head: bool = False
    layer: Any = None

    @property
    def full_name(self) -> str:
        return "/".join((*self.path, self.name or self.kind or "?"))

    @property
    def rank(self) -> int | None:
        """The number in an automatic name (``conv2d_3``; 0 for ``conv2d``), or None for a name of its own."""
        if not self.kind:
            match = re.fullmatch(r"[a-z][a-z0-9_]*?(?:_(\d+))?", self.name)
            return int(match.group(1) or 0) if match else None
        match = re.fullmatch(re.escape(self.kind) + r"(?:_(\d+))?", self.name)
        return int(match.group(1) or 0) if match else None

    @property
    def is_input(self) -> bool:
        """Whether it is an input of a model."""
        if self.kind or self.arrays:
            return self.kind == "input_layer"
        return _INPUT.fullmatch(self.name) is not None

    @property
    def neutral(self) -> bool:
        """Whether it does nothing in inference, as far as its class, or else its automatic name, says."""
        word = self.kind or re.sub(r"_?\d+$", "", self.name)
        return self.is_input or (not self.arrays and NEUTRAL.fullmatch(word) is not None)


@dataclass(frozen=True, eq=False)
class Leaves:
    """The leaves of a model or a file.

    Attributes:
        ordered: whether they are listed in the order of the graph.
        opaque: models whose layers without weights the file does not list.
    """

    all: tuple[Leaf, ...]
    ordered: bool = True
    opaque: frozenset[tuple[str, ...]] = frozenset()

    def __iter__(self) -> Iterator[Leaf]:
        return iter(self.all)

    @property
    def weighted(self) -> list[Leaf]:
        return [leaf for leaf in self.all if leaf.arrays]


def is_graph(layer: Any) -> bool:
    """Whether a layer is a model that is a graph of layers, such as a Sequential one."""
    import keras

    return isinstance(layer, keras.Model) and bool(getattr(layer, "inputs", None))


def describe_model(model: Any) -> Leaves:
    """The leaves of a model that is a graph of layers, in Keras' order, which is that of the graph."""
    named = name_variables(model)
    in_head = {id(entry.variable) for entry in named if "head" in entry.groups}
    found: dict[int, Leaf] = {}

    def walk(container: Any, path: tuple[str, ...], key: str, head: bool) -> None:
        used: dict[str, int] = {}
        for layer in container.layers:
            kind = keras_private.snake_case(type(layer).__name__)
            used[kind] = used.get(kind, -1) + 1
            here = f"{key}layers/{kind}" + (f"_{used[kind]}" if used[kind] else "")
            if is_graph(layer):
                walk(layer, (*path, layer.name), f"{here}/", head or (not path and layer.name == "head"))
            elif id(layer) not in found:
                variables = {e.path: e.variable for e in name_variables(layer)} if layer.weights else {}
                found[id(layer)] = Leaf(
                    name=layer.name,
                    kind=kind,
                    path=path,
                    key=here,
                    arrays={name: tuple(variable.shape) for name, variable in variables.items()},
                    values=variables,
                    config=_config(layer),
                    head=head or any(id(variable) in in_head for variable in variables.values()),
                    layer=layer,
                )

    walk(model, (), "", head=False)
    return Leaves(tuple(found.values()))


def _config(layer: Any) -> Mapping[str, Any] | None:
    try:
        return dict(layer.get_config())
    except Exception:  # a custom layer without a configuration
        return None


def describe(leaves: Sequence[Leaf]) -> list[str]:
    """Names for messages."""
    return [leaf.full_name for leaf in leaves]
