"""Names the variables of a model. This is the only place that turns a model into variable paths.

A path is the attribute path in a ``tf.Module`` (``blocks/10/mlp/up/kernel``), the names of the layers of a Keras 3 model
from below the root down to the layer, followed by the variable's own name (``mobilenetv2_1.00_96/Conv1/kernel``), or
the name of a variable in a plain list. A variable that is reached twice is listed once: the first path is its path, and
later ones are aliases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from engine import part_times
from engine.selection import groups
from engine.selection.statistics import is_statistic, statistic_layer
from engine.selection.walk import Found as _Found
from engine.selection.walk import Kind, StatisticsLayer, Walk, find_kind, raw_variable
from engine.selection.walk import ModelError as ModelError
from engine.selection.walk import is_keras as is_keras


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
    def shape(self) -> tuple[int, ...]:
        return tuple(self.variable.shape)

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
class ModelVariables:
    """Every variable of a model, in model order, each once.

    Attributes:
        statistics_layers: the layers whose statistics can be switched to inference mode.
        generators, metrics: the states of random generators, and the variables of Keras metrics in layers, by path. They
            are not weights and filters do not see them, but a checkpoint needs them.
        keras_layers: the Keras layers by path.
    """

    entries: tuple[NamedVariable, ...]
    statistics_layers: tuple[StatisticsLayer, ...]
    generators: Mapping[str, Any]
    metrics: Mapping[str, Any]
    keras_layers: Mapping[str, Any]

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

    def with_bookkeeping(self) -> list[Any]:
        """All variables, those of generators and metrics too."""
        return [*(entry.variable for entry in self), *self.bookkeeping.values()]

    @property
    def bookkeeping(self) -> dict[str, Any]:
        """``generators`` and ``metrics``, by the names that they have in checkpoints."""
        found = {f"generator/{path}": state for path, state in self.generators.items()}
        return found | {f"metric/{path}": variable for path, variable in self.metrics.items()}

    def enclosing_layers(self, path: str) -> list[tuple[str, Any]]:
        """Returns the Keras layers around the layer (or other scope) of this path, itself first, with their paths."""
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]
        return [(name, self.keras_layers[name]) for name in dict.fromkeys(above) if name in self.keras_layers]

    def refresh(self) -> None:
        """Must be called after values were assigned: a Keras Normalization layer computes with constants derived from
        its statistics, which an assignment does not update."""
        for layer in self.statistics_layers:
            finalize = getattr(layer.layer, "finalize_state", None)
            if finalize is not None:
                finalize()


@part_times.part("model")
def name_variables(model: Any) -> ModelVariables:
    """Names every variable of a ``tf.Module``, a Keras 3 model or layer, a list of variables, or a dict of variables or models.

    Raises ModelError if the object is none of these, or has no variables yet (such as an unbuilt Keras model).
    """
    if isinstance(model, ModelVariables):
        return model
    walk = Walk(model)
    if is_keras(model) or isinstance(model, tf.Module):
        walk.value(model, "", None, "", "", ())
    elif isinstance(model, Mapping):
        for key, value in model.items():
            if is_keras(value) or isinstance(value, tf.Module):
                walk.value(value, str(key), None, "", str(key), ())
                continue
            walk.add(str(key), raw_variable(value, f"model[{key!r}]"), find_kind(None, "", value), None, "", ())
    elif isinstance(model, Sequence) and not isinstance(model, str):
        for position, value in enumerate(model):
            raw = raw_variable(value, f"model[{position}]")
            name = getattr(value, "path", None) or raw.name
            walk.add(name.removesuffix(":0"), raw, find_kind(None, "", value), None, "", ())
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
    walk = Walk(None)
    for variable in variables:
        name = variable.op.name
        whole = _PART.sub("", name)
        layer = whole.rpartition("/")[0]
        kind = find_kind(None, "", variable)
        if kind == "constant" and is_statistic(whole):
            kind, layer = "statistic", statistic_layer(whole)
        for path in dict.fromkeys((name, whole)):
            walk.found.append(_Found(path, variable, kind, None, layer, ()))
    if not walk.found:
        raise ModelError("variables=[]: the graph has no variables; build the model first")
    return _finish(walk, None)


_PART = re.compile(r"/part_\d+$")


def _same_layer(one: _Found, other: _Found) -> bool:
    """Whether both belong to the same layer of the innermost model (or, without a model, to the same layer)."""
    if one.layers and other.layers:
        return one.layers[-1] == other.layers[-1]
    return one.layer == other.layer


def _finish(walk: Walk, model: Any) -> ModelVariables:
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
    return ModelVariables(
        tuple(entries), tuple(walk.statistics_layers.values()), walk.generators, walk.metrics, walk.keras_layers
    )
