"""Walks a model and collects its variables: those that it lists, and those that only its attributes lead to.

Keras lists what its own layers make, ``tf.Module`` what its modules hold. Neither lists a plain ``tf.Variable`` in a Keras
layer, a module or a loaded SavedModel in one, or what a loaded function captured; they are found here.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import tensorflow as tf

from engine import keras_private, tensorflow_private
from engine.errors import InputError
from engine.graphs.graph_variables import GraphVariable
from engine.selection import keras_names
from engine.selection.statistics import is_statistic

Kind = Literal["weight", "statistic", "constant"]
_PLAIN = (str, bytes, int, float, tf.Tensor, type(None))
_SEED = "seed_generator_state"  # the variable of a Keras seed generator, also in a SavedModel


class ModelError(InputError):
    """The object is not a model whose variables can be named, or has no variables yet."""


@dataclass(frozen=True, eq=False)
class StatisticsLayer:
    """A layer that keeps statistics. ``switch`` is the attribute that puts it into inference mode."""

    path: str
    layer: Any
    switch: Literal["trainable", "update_statistics"]


class Found(NamedTuple):
    """One variable as the walk finds it."""

    path: str
    variable: Any
    kind: Kind
    owner: Any
    layer: str
    layers: tuple[tuple[int, int, int], ...]  # (id of the Keras model, index, number of layers)


def is_keras(obj: Any) -> bool:
    """Whether an object is a Keras 3 layer or model. Does not import Keras: a Keras object has imported it already."""
    return _is_keras(obj, "Layer")


def raw_variable(value: Any, what: str) -> Any:
    """The ``tf.Variable`` behind a variable of TensorFlow or Keras; a graph's variable is returned as it is."""
    if isinstance(value, (tf.Variable, GraphVariable)):
        return value
    if _is_keras(value, "Variable"):
        return value.value
    raise ModelError(f"{what}={type(value).__name__}: expected a variable")


def find_kind(owner: Any, attribute: str, variable: Any) -> Kind:
    """The kind of a variable. A tf.Module names its statistics in a class attribute ``statistics``."""
    if isinstance(variable, GraphVariable):
        return "statistic" if variable.statistic else "weight"
    if attribute in getattr(owner, "statistics", ()):
        return "statistic"
    if not tf.as_dtype(variable.dtype).is_floating or not variable.trainable:
        return "constant"
    return "weight"


def join(path: str, name: str) -> str:
    """A path and a name below it."""
    return f"{path}/{name}" if path else name


def _is_keras(obj: Any, kind: str) -> bool:
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(obj, operator.attrgetter(kind)(keras))


def _may_move(dtype: Any) -> bool:
    """Whether a variable of a Keras layer can be a state that moves, and not a kernel that was quantised."""
    found = tf.as_dtype(dtype)
    return bool(found.is_floating or found.is_bool or found.size >= 4)


class Walk:
    """Collects variables in model order. ``_stack`` holds the objects being visited, to stop at cycles.

    Attributes:
        found: the variables, in model order; one that is reached twice is there twice.
        statistics_layers, generators, metrics, keras_layers: see ``ModelVariables``; the first by the layer's ``id``.
        models: the Keras models with their names; ``inner`` are those inside models other than the root.
    """

    def __init__(self, model: Any) -> None:
        self.root = id(model)
        self.found: list[Found] = []
        self.statistics_layers: dict[int, StatisticsLayer] = {}
        self.generators: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        self.keras_layers: dict[str, Any] = {}
        self.models: list[tuple[str, Any]] = []
        self.inner: set[int] = set()
        self._used: dict[tuple[str, str], int] = {}
        self._seen: dict[tuple[str, str, int], str] = {}
        self._stack: set[int] = set()
        self._names: dict[int, str] = {}
        self._listed: set[int] = set()  # ids of variables that Keras lists or that were found inside a Keras layer
        self._inside = 0  # the number of Keras layers whose attributes are being searched

    def add(self, path: str, variable: Any, kind: Kind, owner: Any, layer: str, layers: tuple[Any, ...]) -> None:
        if ("variable", path, id(variable)) not in self._seen:
            unique = self._unique("variable", path, variable)
            self.found.append(Found(unique, variable, kind, owner, layer, layers))

    def _unique(self, what: str, path: str, obj: Any) -> str:
        """The path, with ``#2`` or ``#3`` appended if another object of its kind ("variable", "layer") has it already."""
        key = (what, path, id(obj))
        if key not in self._seen:
            count = self._used[what, path] = self._used.get((what, path), 0) + 1
            self._seen[key] = path if count == 1 else f"{path}#{count}"
        return self._seen[key]

    def value(self, value: Any, path: str, owner: Any, name: str, layer: str, layers: tuple[Any, ...]) -> None:
        """Collects what an attribute ``name`` of ``owner`` holds, if that is a variable or can hold one."""
        if isinstance(value, _PLAIN):
            return
        if isinstance(value, tf.Variable) or _is_keras(value, "Variable"):
            raw = raw_variable(value, path)
            if not self._inside:
                self.add(path, raw, find_kind(owner, name, value), owner, layer, layers)
            elif id(raw) not in self._listed:
                self._hidden(path, raw, find_kind(owner, name, value), owner, layer, layers)
            return
        if id(value) in self._stack:
            return
        self._stack.add(id(value))
        if is_keras(value):
            if not self._inside or not {id(raw) for raw in _listed_by_keras(value)} <= self._listed:
                self._keras_root(value, path, layers)
        elif isinstance(value, tf.Module):
            self._module(value, path, layers)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                self.value(item, join(path, str(key)), owner, name, layer, layers)
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                self.value(item, join(path, str(index)), owner, name, layer, layers)
        elif isinstance(value, tf.random.Generator) or _is_keras(value, "random.SeedGenerator"):
            self._generator(path, raw_variable(value.state, path))
        elif _is_keras(value, "metrics.Metric"):
            for own, variable in zip(keras_names.variable_names(value.variables), value.variables, strict=True):
                self.metrics.setdefault(join(path, own), raw_variable(variable, own))
        elif not _is_keras(value, "optimizers.Optimizer"):
            self._saved(value, path, layers)
        self._stack.discard(id(value))

    def _module(self, module: tf.Module, path: str, layers: tuple[Any, ...]) -> None:
        ignored = tensorflow_private.ignored_module_properties(module)
        order = tuple(getattr(module, "layer_order", ()))  # a network that is a sequence of layers says which
        for name, value in vars(module).items():
            if name in ignored or name.startswith("_self_"):
                continue
            own = ((id(module), order.index(name), len(order)),) if name in order else ()
            self.value(value, join(path, name), module, name, path, (*layers, *own))
        if getattr(module, "statistics", ()) and hasattr(module, "update_statistics"):
            self.statistics_layers.setdefault(id(module), StatisticsLayer(path, module, "update_statistics"))

    def _saved(self, value: Any, path: str, layers: tuple[Any, ...]) -> None:
        """A loaded SavedModel goes by its attributes; its lists of variables, and its functions, by the variables' names."""
        if (captured := tensorflow_private.function_variables(value)) is not None:
            self._by_name(captured, path, layers)
        elif tensorflow_private.is_saved_object(value):
            for name, child in vars(value).items():
                if name == "_all_variables":  # copies that Keras' export stores beside them
                    continue
                if name.endswith("variables") and isinstance(child, (list, tuple)):
                    self._by_name(child, path, layers)
                elif not name.startswith("_self_"):
                    self.value(child, join(path, name), value, name, path, layers)

    def _by_name(self, variables: Iterable[Any], path: str, layers: tuple[Any, ...]) -> None:
        known = {id(found.variable) for found in self.found} | self._listed
        for variable in variables:
            if isinstance(variable, tf.Variable) and id(variable) not in known:
                name = join(path, variable.name.removesuffix(":0"))
                kind = "statistic" if is_statistic(name) else find_kind(None, "", variable)
                self._hidden(name, variable, kind, None, name.rpartition("/")[0], layers)

    def _hidden(self, path: str, raw: Any, kind: Kind, owner: Any, layer: str, layers: tuple[Any, ...]) -> None:
        """A variable that its model does not list. In a Keras layer, what is not trained may move with the layer."""
        if path.endswith(_SEED):
            self._generator(path.removesuffix(f"/{_SEED}"), raw)
            return
        if self._inside:
            self._listed.add(id(raw))
            if kind == "constant" and _may_move(raw.dtype):
                kind = "statistic"
        self.add(path, raw, kind, owner, layer, layers)

    def _generator(self, path: str, state: Any) -> None:
        if not any(state is known for known in self.generators.values()):
            self.generators.setdefault(path, state)

    # ---- Keras

    def _keras_root(self, root: Any, path: str, layers: tuple[Any, ...]) -> None:
        import keras

        self._names.update(keras_names.stable_names(root))
        self._listed |= {id(raw) for raw in _listed_by_keras(root)}
        if isinstance(root, keras.Model):
            self.models.append((path or keras_names.root_name(root), root))
        self._keras_layer(root, path, path, layers)

    def _keras_layer(self, layer: Any, path: str, unique: str, layers: tuple[Any, ...]) -> None:
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
        self.keras_layers.setdefault(unique, layer)
        self._keras_variables(layer, path, unique, layers)
        self._stack.add(id(layer))
        for child in keras_private.child_layers(layer):
            if id(child) not in self._stack:
                name = self._names.get(id(child), child.name)
                own = self._unique("layer", join(unique, name), child)
                self._keras_layer(child, join(path, name), own, within.get(id(child), layers))
        self._stack.discard(id(layer))

    def _keras_variables(self, layer: Any, path: str, unique: str, layers: tuple[Any, ...]) -> None:
        """The layer's own variables, those that Keras lists before those that it does not."""
        weights, others = keras_private.own_variables(layer)
        first = len(self.found)
        for variables, kinds in ((weights, "weight"), (others, "statistic")):
            for own, variable in zip(keras_names.variable_names(variables), variables, strict=True):
                raw = raw_variable(variable, own)
                kind: Kind = kinds if tf.as_dtype(raw.dtype).is_floating else "constant"  # type: ignore[assignment]
                if own.endswith(_SEED):
                    self._generator(join(unique, own.removesuffix(_SEED).rstrip("_")), raw)
                    continue
                if kind == "constant" and _may_move(raw.dtype):
                    kind = "statistic"
                self.add(join(path, own), raw, kind, layer, unique, layers)
        for number, generator in enumerate(keras_private.seed_generators(layer)):
            self._generator(join(unique, f"seed_generator/{number}"), raw_variable(generator.state, "seed"))
        if not keras_private.is_built_in(layer):
            self._inside += 1
            self._stack.add(id(layer))
            for name, value in keras_private.own_attributes(layer):
                self.value(value, join(path, name), layer, name, unique, layers)
            self._stack.discard(id(layer))
            self._inside -= 1
        if any(found.layer == unique and found.kind == "statistic" for found in self.found[first:]):
            self.statistics_layers.setdefault(id(layer), StatisticsLayer(unique, layer, "trainable"))


def _listed_by_keras(root: Any) -> list[Any]:
    """The variables and states of generators that Keras lists for a layer and all inside it."""
    found = []
    for layer in keras_private.flatten_layers(root):
        weights, others = keras_private.own_variables(layer)
        states = [generator.state for generator in keras_private.seed_generators(layer)]
        found += [raw_variable(variable, "variable") for variable in (*weights, *others, *states)]
    return found
