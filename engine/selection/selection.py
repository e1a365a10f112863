"""Selection: a filter resolved against one model. The only answer to "does this variable train?"

Everything else (tape, slots, decay, clipping, statistics, checkpoints, proof) receives a Selection
and obeys it. Statistics follow their layer: when none of a layer's weights is trained, the layer
runs in inference mode and its statistics are frozen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from engine import keras_private, text
from engine.selection import filters
from engine.selection.filters import Filter, FilterError, Item, Ordered
from engine.selection.variables import ModelVariables, NamedVariable, StatisticsLayer, name_variables
from engine.text import shorten, table

Statistics = Literal["follow", "frozen"]


@dataclass(frozen=True, eq=False)
class Selection:
    """What trains, what moves with it, and what is frozen, of one model.

    Equality and hash go by the variables and the inference layers, not by the filter's wording:
    two filters that select the same are the same selection.

    Attributes:
        variables: all variables of the model.
        trained: the variables that gradients update, in model order.
        moving: statistics that follow trained layers.
        frozen: all others. A freeze proof covers exactly these.
        rules: path -> the rule that decided it.
        inference: layers with statistics that run in inference mode.
    """

    variables: ModelVariables
    trained: tuple[NamedVariable, ...]
    moving: tuple[NamedVariable, ...]
    frozen: tuple[NamedVariable, ...]
    rules: Mapping[str, str]
    inference: tuple[StatisticsLayer, ...]

    @cached_property
    def key(self) -> tuple[Any, ...]:
        return (
            tuple(id(entry.variable) for entry in self.variables),
            tuple(entry.path for entry in self.trained),
            tuple(entry.path for entry in self.moving),
            tuple(layer.path for layer in self.inference),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selection) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def trained_parameters(self) -> int:
        return sum(entry.size for entry in self.trained)

    @property
    def frozen_parameters(self) -> int:
        return sum(entry.size for entry in self.frozen)

    def rows(self) -> list[tuple[str, int, int, str, str]]:
        """(state, variables, parameters, rule, paths in short), one row per state and rule."""
        found: dict[tuple[str, str], list[NamedVariable]] = {}
        for state, entries in (("trained", self.trained), ("moving", self.moving), ("frozen", self.frozen)):
            for entry in entries:
                found.setdefault((state, self.rules[entry.path]), []).append(entry)
        return [
            (state, len(entries), sum(entry.size for entry in entries), rule, shorten([e.path for e in entries]))
            for (state, rule), entries in found.items()
        ]

    def table(self) -> str:
        """The selection as aligned text."""
        head = ("", "variables", "parameters", "decided by", "paths")
        body = [(s, str(n), f"{p:,}", rule, paths) for s, n, p, rule, paths in self.rows()]
        return table([head, *body], right={1, 2})

    @contextlib.contextmanager
    def modes(self) -> Iterator[None]:
        """Puts each layer with statistics into the mode this selection wants; restores on leaving.

        Meant to surround tracing: the modes are Python attributes that the trace reads.
        """
        inference = {id(layer.layer) for layer in self.inference}
        with contextlib.ExitStack() as stack:
            for layer in self.variables.statistics_layers:
                stack.callback(_restore, layer, _read_mode(layer))
                setattr(layer.layer, layer.switch, id(layer.layer) not in inference)
            yield


def _read_mode(layer: StatisticsLayer) -> list[tuple[Any, bool]]:
    """The switch; in Keras also those of the layers inside and all their variables, which the switch overwrites."""
    if layer.switch != "trainable":
        return [(layer.layer, getattr(layer.layer, layer.switch))]
    return [(owner, owner.trainable) for owner in (*keras_private.flatten_layers(layer.layer), *layer.layer.weights)]


def _restore(layer: StatisticsLayer, before: list[tuple[Any, bool]]) -> None:
    for owner, value in before:  # a layer before the layers inside it
        setattr(owner, layer.switch, value)


def select(model: Any, filter: Filter | str, *, statistics: Statistics = "follow") -> Selection:
    """Resolves a filter (or its text form) against a model.

    Args:
        model: a tf.Module, a Keras 3 model, a list of variables, or their ``ModelVariables``.
        filter: what trains.
        statistics: what statistics of trained layers do when no item speaks of them: "follow"
            (they move) or "frozen" (the layer runs in inference mode; right for pre-trained
            backbones). An item that matches statistics alone, such as ``@stats``, overrides it.

    Raises:
        FilterError: an item matches nothing, or every match of it is taken over by later items, or
            nothing trains.
    """
    if statistics not in ("follow", "frozen"):
        raise ValueError(f"statistics={statistics!r}: it takes 'follow' or 'frozen'")
    variables = name_variables(model)
    rule = filters.parse_filter(filter) if isinstance(filter, str) else filter
    verdicts = _verdicts(rule, variables)
    trained = [e for e in variables if e.kind == "weight" and verdicts[e.path][0]]
    if not trained:
        raise FilterError(
            f"`{rule}` trains nothing: no weight is selected of the model's {len(variables)} variables, such as "
            + ", ".join(e.path for e in variables.entries[:3])
        )
    rules = {e.path: verdicts[e.path][1] for e in variables}
    moving = _moving(rule, variables, verdicts, {id(e.variable) for e in trained}, statistics, rules)
    chosen = {e.path for e in (*trained, *moving)}
    for entry in variables:
        if entry.kind == "constant":
            rules[entry.path] = "made not trainable"
    moving_layers = {e.layer for e in moving}
    return Selection(
        variables=variables,
        trained=tuple(trained),
        moving=tuple(moving),
        frozen=tuple(e for e in variables if e.path not in chosen),
        rules=rules,
        inference=tuple(layer for layer in variables.statistics_layers if layer.path not in moving_layers),
    )


def matching(model: Any, filter: Filter | str) -> frozenset[str]:
    """Paths that a filter matches, for other uses than training (decay). Same errors, but may be empty."""
    variables = name_variables(model)
    verdicts = _verdicts(filters.parse_filter(filter) if isinstance(filter, str) else filter, variables)
    return frozenset(path for path, (chosen, _) in verdicts.items() if chosen)


def _verdicts(rule: Filter, variables: ModelVariables) -> dict[str, tuple[bool, str]]:
    """path -> (selected, the deciding rule in words). Raises on an item without effect."""
    if not isinstance(rule, Ordered):
        for position, part in enumerate(rule.parts(), start=1):
            _check_matches(f"part {position} `{part}`", part, variables)
        return {e.path: (rule(e), str(rule) if rule(e) else f"outside {rule}") for e in variables}
    for item in rule.items:
        _check_matches(str(item), item.filter, variables)
    deciding = {e.path: rule.deciding(e) for e in variables}
    for item in rule.items:
        matched = [e.path for e in variables if item.filter(e)]
        if matched and all(deciding[path] is not item for path in matched):
            later: dict[Item, None] = dict.fromkeys(d for path in matched if (d := deciding[path]) is not None)
            raise FilterError(
                f"{item} has no effect: each of the {len(matched)} variables that it matches is taken over by "
                f"{', '.join(str(i) for i in later)}; the last item that matches decides"
            )
    return {
        path: (False, "no item matches") if item is None else (not item.negated, str(item))
        for path, item in deciding.items()
    }


def _check_matches(name: str, part: Filter, variables: ModelVariables) -> None:
    if part == filters.Group("none") or any(part(entry) for entry in variables):
        return
    hint = ""
    if isinstance(part, filters.Path):
        hint = text.nearest(part.pattern, _known_names(variables))
    elif isinstance(part, filters.Blocks):
        count = max((e.block[1] for e in variables if e.block), default=0)
        hint = f"; the model has {count} blocks" if count else "; the model has no blocks (paths with blocks/N/)"
    elif isinstance(part, filters.Layers):
        known = {name: count for e in variables for name, _, count in e.layers}
        listed = ", ".join(
            f"@layers({name}) with {count}" if name else f"@layers with {count}" for name, count in known.items()
        )
        hint = f"; layers to index: {listed}" if known else "; the model is no Keras model with layers"
    elif isinstance(part, filters.Group):
        present = sorted({g for e in variables for g in e.groups})
        hint = f"; groups with variables here: {' '.join('@' + g for g in present)}"
    raise FilterError(f"{name} matches nothing: a regex must match a whole variable path, a group some variable{hint}")


def _known_names(variables: ModelVariables) -> list[str]:
    """Paths, and their prefixes as one would write them in a filter, for "nearest"."""
    known: dict[str, None] = {}
    for entry in variables:
        for path in entry.paths:
            parts = path.split("/")
            known.update(dict.fromkeys("/".join(parts[:n]) + "/.*" for n in range(1, len(parts))))
            known[path] = None
    return list(known)


def _moving(
    rule: Filter,
    variables: ModelVariables,
    verdicts: Mapping[str, tuple[bool, str]],
    trained: set[int],
    statistics: Statistics,
    rules: dict[str, str],
) -> list[NamedVariable]:
    """Statistics that follow their layer, and the rule for each statistic, written into ``rules``."""
    layer_trains: dict[str, str] = {}
    for entry in variables:
        if id(entry.variable) in trained:
            parts = entry.layer.split("/")
            for n in range(len(parts) + 1):  # a wrapper's statistics belong to the layer inside it
                layer_trains.setdefault("/".join(parts[:n]), verdicts[entry.path][1])
    moving = []
    for entry in variables:
        if entry.kind != "statistic":
            continue
        wanted, why = _statistics_rule(rule, entry, variables, verdicts, statistics)
        if entry.layer not in layer_trains:
            rules[entry.path] = "its layer does not train: inference mode"
        elif not wanted:
            rules[entry.path] = f"inference mode: {why}"
        else:
            rules[entry.path] = f"follows its layer: {layer_trains[entry.layer]}"
            moving.append(entry)
    moves = {entry.layer: entry.path for entry in moving}
    for entry in variables:
        if entry.kind == "statistic" and entry.layer in moves and entry not in moving:
            other = moves[entry.layer]
            raise FilterError(
                f"`{rule}`: {entry.path} is to stay ({rules[entry.path]}) and {other} to move ({rules[other]}); "
                "a layer's statistics move together: name all of them, as @stats and !@stats do"
            )
    return moving


def _statistics_rule(
    rule: Filter,
    entry: NamedVariable,
    variables: ModelVariables,
    verdicts: Mapping[str, tuple[bool, str]],
    statistics: Statistics,
) -> tuple[bool, str]:
    """Whether statistics of a training layer move: by an item that speaks of statistics, else the default."""
    default = (statistics == "follow", "the default for this model (ask for moving ones with @stats)")
    if not isinstance(rule, Ordered):
        return verdicts[entry.path] if filters.Group("stats") in rule.parts() else default
    spoken = [i for i in rule.items if i.filter(entry) and all(e.kind == "statistic" for e in variables if i.filter(e))]
    return (not spoken[-1].negated, str(spoken[-1])) if spoken else default
