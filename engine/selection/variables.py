"""Names the variables of a model. This is the only place that turns a model into variable paths.

A path is the attribute path in a ``tf.Module`` (``blocks/10/mlp/up/kernel``), the names of the layers of a Keras 3 model
from below the root down to the layer, followed by the variable's own name (``mobilenetv2_1.00_96/Conv1/kernel``), or
the name of a variable in a plain list. A variable that is reached twice is listed once: the first path is its path, and
later ones are aliases.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import tensorflow as tf

from engine import keras_private, tensorflow_private
from engine.errors import InputError
from engine.graphs.graph_variables import GraphVariable
from engine.selection import groups, keras_names
from engine.selection.statistics import is_statistic, statistic_layer

Kind = Literal["weight", "statistic", "constant"]


class ModelError(InputError):
    """The object is not a model whose variables can be named, or has no variables yet."""


@dataclass(frozen=True, eq=False)
class NamedVariable:
    """One variable of a model, with everything that a filter may ask about it.

    Attributes:
        path: its first path in the model, which is its name in files and filters.
        aliases: further paths of the same variable (shared layers), which filters match as well.
        variable: the ``tf.Variable`` itself, or the one behind a Keras variable.
        kind: "weight" if it can be trained; "statistic" if it follows its layer (BatchNorm moments); "constant" if it is
            never trained (integers, or created with ``trainable=False``).
        layer, groups: the path of the layer that owns it, or ""; its groups, such as "kernel" or "norm".
        block: the index of its block and the number of blocks, if it belongs to a block of a ViT.
        layers: (model name, index, number of layers) for every Keras model that contains it; the name "" stands for
            the model that ``@layers`` without a name means.
    """

    path: str
    aliases: tuple[str, ...]
    variable: Any
    kind: Kind
    layer: str
    groups: frozenset[str]
    block: tuple[int, int] | None
    layers: tuple[tuple[str, int, int], ...]

    @property
    def size(self) -> int:
        """The number of parameters."""
        return int(self.variable.shape.num_elements())

    @property
    def bytes(self) -> int:
        return self.size * int(self.variable.dtype.size)

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path, *self.aliases)


@dataclass(frozen=True, eq=False)
class StatisticsLayer:
    """A layer that keeps statistics. ``switch`` is the attribute that puts it into inference mode."""

    path: str
    layer: Any
    switch: Literal["trainable", "update_statistics"]


@dataclass(frozen=True, eq=False)
class ModelVariables:
    """Every variable of a model, in model order, each once.

    Attributes:
        statistics_layers: the layers whose statistics can be switched to inference mode.
        generators: the states of Keras seed generators, by path. They are not weights and filters do not see them,
            but a checkpoint needs them.
    """

    entries: tuple[NamedVariable, ...]
    statistics_layers: tuple[StatisticsLayer, ...]
    generators: Mapping[str, Any]

    def __iter__(self) -> Iterator[NamedVariable]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def parameters(self) -> int:
        """The number of parameters, statistics included."""
        return sum(entry.size for entry in self.entries)

    def by_path(self) -> dict[str, NamedVariable]:
        return {entry.path: entry for entry in self.entries}

    def refresh(self) -> None:
        """Must be called after values were assigned: a Keras Normalization layer computes with constants derived from
        its statistics, which an assignment does not update."""
        for layer in self.statistics_layers:
            finalize = getattr(layer.layer, "finalize_state", None)
            if finalize is not None:
                finalize()


class _Found(NamedTuple):
    """One variable as the walk finds it."""

    path: str
    variable: Any
    kind: Kind
    owner: Any
    layer: str
    layers: tuple[tuple[int, int, int], ...]  # (id of the Keras model, index, number of layers)


def is_keras(obj: Any) -> bool:
    """Whether an object is a Keras 3 layer or model. Does not import Keras: a Keras object has imported it already."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(obj, getattr(keras, "Layer", ()))


def name_variables(model: Any) -> ModelVariables:
    """Names every variable of a ``tf.Module``, a Keras 3 model or layer, or a list or dict of variables.

    Raises ModelError if the object is none of these, or has no variables yet (such as an unbuilt Keras model).
    """
    if isinstance(model, ModelVariables):
        return model
    walk = _Walk(model)
    if is_keras(model) or isinstance(model, tf.Module):
        walk.value(model, "", None, "", "", ())
    elif isinstance(model, Mapping):
        for key, value in model.items():
            walk.add(str(key), _raw(value, f"model[{key!r}]"), _module_kind(None, "", value), None, "", ())
    elif isinstance(model, Sequence) and not isinstance(model, str):
        for position, value in enumerate(model):
            raw = _raw(value, f"model[{position}]")
            name = getattr(value, "path", None) or raw.name
            walk.add(name.removesuffix(":0"), raw, _module_kind(None, "", value), None, "", ())
    else:
        raise ModelError(
            f"model={type(model).__name__}: expected a tf.Module, a Keras 3 model, or a list or dict of variables"
        )
    if not walk.found:
        raise ModelError(
            f"model={type(model).__name__}: the model has no variables yet; call it once on an input, "
            "or call model.build, to create them"
        )
    return _finish(walk, model)


def name_graph_variables(variables: Sequence[Any]) -> ModelVariables:
    """Names the variables of a TF1 graph, such as its GLOBAL_VARIABLES. A path is the variable's ``op.name``.

    A variable's layer is the scope around it. Moving means and variances, which TF1 layers create with
    ``trainable=False``, are statistics (engine.selection.statistics); other variables created that way are constants. A
    partition (``kernel/part_3``) has the whole variable's name as an alias. ModelError: there are no variables.
    """
    walk = _Walk(None)
    for variable in variables:
        name = variable.op.name
        whole = _PART.sub("", name)
        layer = whole.rpartition("/")[0]
        kind = _module_kind(None, "", variable)
        if kind == "constant" and is_statistic(whole):
            kind, layer = "statistic", statistic_layer(whole)
        for path in dict.fromkeys((name, whole)):
            walk.found.append(_Found(path, variable, kind, None, layer, ()))
    if not walk.found:
        raise ModelError("variables=[]: the graph has no variables; build the model first")
    return _finish(walk, None)


_PART = re.compile(r"/part_\d+$")


def _is_keras_variable(value: Any) -> bool:
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(value, getattr(keras, "Variable", ()))


def _raw(value: Any, what: str) -> Any:
    """The ``tf.Variable`` behind a variable of TensorFlow or Keras; a graph's variable is returned as it is."""
    if isinstance(value, (tf.Variable, GraphVariable)):
        return value
    if _is_keras_variable(value):
        return value.value
    raise ModelError(f"{what}={type(value).__name__}: expected a variable")


def _module_kind(owner: Any, attribute: str, variable: Any) -> Kind:
    """The kind of a variable. A tf.Module names its statistics in a class attribute ``statistics``."""
    if isinstance(variable, GraphVariable):
        return "statistic" if variable.statistic else "weight"
    if attribute in getattr(owner, "statistics", ()):
        return "statistic"
    if not tf.as_dtype(variable.dtype).is_floating or not variable.trainable:
        return "constant"
    return "weight"


class _Walk:
    """Collects variables in model order. ``_stack`` holds the objects being visited, to stop at cycles."""

    def __init__(self, model: Any) -> None:
        self.root = id(model)
        self.found: list[_Found] = []
        self.statistics_layers: dict[int, StatisticsLayer] = {}
        self.generators: dict[str, Any] = {}
        self.models: list[tuple[str, Any]] = []
        self.inner: set[int] = set()  # models inside models other than the root
        self._used: dict[tuple[str, str], int] = {}
        self._seen: dict[tuple[str, str, int], str] = {}
        self._stack: set[int] = set()
        self._names: dict[int, str] = {}

    def add(self, path: str, variable: Any, kind: Kind, owner: Any, layer: str, layers: tuple[Any, ...]) -> None:
        if ("variable", path, id(variable)) not in self._seen:
            unique = self._unique("variable", path, variable)
            self.found.append(_Found(unique, variable, kind, owner, layer, layers))

    def _unique(self, what: str, path: str, obj: Any) -> str:
        """The path, with ``#2`` or ``#3`` appended if another object of its kind ("variable", "layer") has it already."""
        key = (what, path, id(obj))
        if key not in self._seen:
            count = self._used[what, path] = self._used.get((what, path), 0) + 1
            self._seen[key] = path if count == 1 else f"{path}#{count}"
        return self._seen[key]

    def module(self, module: tf.Module, path: str, layers: tuple[Any, ...]) -> None:
        ignored = tensorflow_private.ignored_module_properties(module)
        for name, value in vars(module).items():
            if name in ignored or name.startswith("_self_"):
                continue
            self.value(value, _join(path, name), module, name, path, layers)
        if getattr(module, "statistics", ()) and hasattr(module, "update_statistics"):
            self.statistics_layers.setdefault(id(module), StatisticsLayer(path, module, "update_statistics"))

    def value(self, value: Any, path: str, owner: Any, name: str, layer: str, layers: tuple[Any, ...]) -> None:
        if isinstance(value, tf.Variable) or _is_keras_variable(value):
            self.add(path, _raw(value, path), _module_kind(owner, name, value), owner, layer, layers)
            return
        if id(value) in self._stack:
            return
        self._stack.add(id(value))
        if is_keras(value):
            self.keras_root(value, path)
        elif isinstance(value, tf.Module):
            self.module(value, path, layers)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                self.value(item, _join(path, str(key)), owner, name, layer, layers)
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                self.value(item, _join(path, str(index)), owner, name, layer, layers)
        self._stack.discard(id(value))

    def keras_root(self, root: Any, path: str) -> None:
        import keras

        self._names.update(keras_names.stable_names(root))
        if isinstance(root, keras.Model):
            self.models.append((path or keras_names.root_name(root), root))
        self.keras_layer(root, path, path, ())

    def keras_layer(self, layer: Any, path: str, unique: str, layers: tuple[Any, ...]) -> None:
        """``unique`` is the layer's own path: ``path`` with ``#2`` if a sibling layer has the same name."""
        import keras

        within: dict[int, tuple[Any, ...]] = {}
        if isinstance(layer, keras.Model):
            children = list(layer.layers)
            name = self._names.get(id(layer), layer.name)
            if id(layer) not in {id(model) for _, model in self.models}:
                self.models.append((name, layer))
                if {owner for owner, _, _ in layers} - {self.root}:
                    self.inner.add(id(layer))
            for index, child in enumerate(children):
                within[id(child)] = (*layers, (id(layer), index, len(children)))
        weights, others = keras_private.own_variables(layer)
        for names, kinds in ((weights, "weight"), (others, "statistic")):
            for own, variable in zip(keras_names.variable_names(names), names, strict=True):
                raw = _raw(variable, own)
                kind: Kind = kinds if tf.as_dtype(raw.dtype).is_floating else "constant"  # type: ignore[assignment]
                self.add(_join(path, own), raw, kind, layer, unique, layers)
                if kind == "statistic":
                    self.statistics_layers.setdefault(id(layer), StatisticsLayer(unique, layer, "trainable"))
        for number, generator in enumerate(keras_private.seed_generators(layer)):
            self.generators.setdefault(_join(unique, f"seed_generator/{number}"), _raw(generator.state, "seed"))
        self._stack.add(id(layer))
        for child in keras_private.child_layers(layer):
            if id(child) not in self._stack:
                name = self._names.get(id(child), child.name)
                own = self._unique("layer", _join(unique, name), child)
                self.keras_layer(child, _join(path, name), own, within.get(id(child), layers))
        self._stack.discard(id(layer))


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _same_layer(one: _Found, other: _Found) -> bool:
    """Whether both belong to the same layer of the innermost model (or, without a model, to the same layer)."""
    if one.layers and other.layers:
        return one.layers[-1] == other.layers[-1]
    return one.layer == other.layer


def _finish(walk: _Walk, model: Any) -> ModelVariables:
    """Merges shared variables, and adds groups, blocks and layer positions."""
    merged: dict[int, list[_Found]] = {}
    for found in walk.found:
        merged.setdefault(id(found.variable), []).append(found)
    numbers = sorted({n for found in walk.found if (n := groups.block_number(found.path)) is not None})
    names: dict[int, set[str]] = {}
    for name, keras_model in walk.models:
        names.setdefault(id(keras_model), set()).add(name)
    # @layers without a name means neither a head that is a model of its own nor a model inside the backbone
    inside = [found for name, found in walk.models if found is not model and not groups.in_head(name)]
    inside = [found for found in inside if id(found) not in walk.inner]
    inner = list({id(found): found for found in inside}.values())
    default = inner[0] if len(inner) == 1 else model
    names.setdefault(id(default), set()).add("")
    last = walk.found[-1] if is_keras(model) else None
    named_head = any(groups.in_head(found.path) for found in walk.found)
    entries = []
    for same in merged.values():
        first = same[0]
        memberships: set[str] = set()
        for found in same:
            memberships |= groups.find_groups(found.path, found.owner)
            if groups.in_head(found.path) or (not named_head and last is not None and _same_layer(found, last)):
                memberships.add("head")
        if first.kind == "statistic":
            memberships.add("stats")
        number = next((n for found in same if (n := groups.block_number(found.path)) is not None), None)
        positions = {
            (name, index, count)
            for found in same
            for owner, index, count in found.layers
            for name in names.get(owner, set())
        }
        entries.append(
            NamedVariable(
                path=first.path,
                aliases=tuple(found.path for found in same[1:]),
                variable=first.variable,
                kind=first.kind,
                layer=first.layer,
                groups=frozenset(memberships),
                block=None if number is None else (numbers.index(number), len(numbers)),
                layers=tuple(sorted(positions)),
            )
        )
    return ModelVariables(tuple(entries), tuple(walk.statistics_layers.values()), walk.generators)
