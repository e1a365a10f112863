"""A Keras model, or a file that holds one, as a list of its innermost layers: the common form in which both are compared."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine import keras_private
from engine.models.keras.operations import describe_operation, find_hard_silu, list_operations
from engine.selection.variables import name_variables

# Layers that do nothing in inference: a file and a model may differ in them.
NEUTRAL = re.compile(
    r"input(_layer)?|dropout|(spatial_|gaussian_|alpha_)dropout\w*|gaussian_noise|activity_regularization|identity|random_(?!crop)\w+"
)
POOLS = re.compile(r"global_(average|max)_pooling\dd|flatten")  # how a head may begin
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
    def is_operation(self) -> bool:
        """Whether it lies between a model's layers, as ``image / 255`` does; files of weights do not list such."""
        return self.layer is not None and not self.key

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
    import keras

    found: dict[int, Leaf] = {}

    def walk(container: Any, path: tuple[str, ...], key: str, head: bool) -> None:
        used: dict[str, int] = {}
        operations = list_operations(container)
        folded = {id(part) for operation in operations for part in find_hard_silu(operation)}
        for layer in operations:
            if not isinstance(layer, keras.Layer):
                if id(layer) not in folded:
                    found[id(layer)] = _describe_operation(layer, path, head)
                continue
            kind = keras_private.snake_case(type(layer).__name__)
            used[kind] = used.get(kind, -1) + 1
            here = f"{key}layers/{kind}" + (f"_{used[kind]}" if used[kind] else "")
            if is_graph(layer):
                walk(layer, (*path, layer.name), f"{here}/", head or (not path and layer.name == "head"))
            elif id(layer) not in found and id(layer) not in folded:
                variables = {e.path: e.variable for e in name_variables(layer)} if layer.weights else {}
                silu = bool(find_hard_silu(layer))
                found[id(layer)] = Leaf(
                    name="activation" if silu else layer.name,
                    kind="activation" if silu else kind,
                    path=path,
                    key=here,
                    arrays={name: tuple(variable.shape) for name, variable in variables.items()},
                    values=variables,
                    config={"activation": "hard_silu"} if silu else _config(layer),
                    head=head or any(id(variable) in in_head for variable in variables.values()),
                    layer=layer,
                )

    walk(model, (), "", head=False)
    return Leaves(tuple(found.values()))


def _describe_operation(operation: Any, path: tuple[str, ...], head: bool) -> Leaf:
    """The leaf of an operation that is not a layer; its class is its name, since nobody chose one."""
    silu = bool(find_hard_silu(operation))
    kind, config = ("activation", {"activation": "hard_silu"}) if silu else describe_operation(operation)
    return Leaf(kind, kind, path, config=config, head=head, layer=operation)


def _config(layer: Any) -> Mapping[str, Any] | None:
    try:
        return dict(layer.get_config())
    except Exception:  # a custom layer without a configuration
        return None


def modern_name(name: str) -> str:
    """A name as Keras 3 writes it, where names must not contain slashes: ``conv1/BatchNorm`` became ``conv1_bn``."""
    words = "_".join(keras_private.snake_case(part) for part in name.split("/"))
    return re.sub(r"(?<![a-z0-9])batch_norm(?![a-z0-9])", "bn", words)


def with_modern_names(theirs: Leaves, ours: Leaves) -> Leaves:
    """The leaves of a file with the names that a model has for them, where these differ only in how Keras writes them."""
    own, given = {leaf.name for leaf in ours}, {leaf.name for leaf in theirs}
    modern: dict[str, list[str]] = {}
    for name in given - own:
        if name and (found := modern_name(name)) in own - given:
            modern.setdefault(found, []).append(name)
    names = {olds[0]: new for new, olds in modern.items() if len(olds) == 1}
    return replace(theirs, all=tuple(replace(x, name=names[x.name]) if x.name in names else x for x in theirs))


def describe(leaves: Sequence[Leaf]) -> list[str]:
    """Names for messages."""
    return [leaf.full_name for leaf in leaves]
