"""Selection: a filter resolved against one model, and the only answer to "does this variable train?"

Everything else (tape, slots, decay, clipping, statistics, checkpoints, proof) receives a Selection and obeys it.
Statistics follow their layer: if none of a layer's weights is trained, the layer runs in inference mode and its
statistics are frozen.
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
from engine.selection.variables import ModelVariables, NamedVariable, name_variables
from engine.selection.walk import StatisticsLayer
from engine.text import shorten, table

Statistics = Literal["follow", "frozen"]


@dataclass(frozen=True, eq=False)
class Selection:
    """The variables of one model, divided into those that train, those that move with them, and those that are frozen.

    ``select`` makes one. ``TrainStep`` trains it, and a ``FreezeProof`` covers exactly its frozen variables. Equality
    and hash depend on the variables and layers, not on the filter: two filters that select the same variables give
    equal selections.

    Attributes:
        variables: all variables of the model.
        trained: the variables that gradients update, in model order.
        moving: the statistics that follow trained layers.
        frozen: all other variables.
        rules: the rule that decided each variable, by path.
        inference: the layers with statistics that run in inference mode.
        losses: the names of the terms of the loss that train it; None means all. Others are neither computed nor
            differentiated in a step, but evaluations show them.

    Example:
        >>> import tensorflow as tf
        >>> from engine import select
        >>> model = {name: tf.Variable([0.0, 0.0]) for name in ("stem/kernel", "head/kernel", "head/bias")}
        >>> print(select(model, "head/.*").table())
                 variables  parameters  decided by        paths
        trained          2           4  item 1 `head/.*`  head
        frozen           1           2  no item matches   stem
    """

    variables: ModelVariables
    trained: tuple[NamedVariable, ...]
    moving: tuple[NamedVariable, ...]
    frozen: tuple[NamedVariable, ...]
    rules: Mapping[str, str]
    inference: tuple[StatisticsLayer, ...]
    losses: tuple[str, ...] | None = None

    @cached_property
    def key(self) -> tuple[Any, ...]:
        return (
            tuple(id(entry.variable) for entry in self.variables),
            tuple(entry.path for entry in self.trained),
            tuple(entry.path for entry in self.moving),
            tuple(layer.path for layer in self.inference),
            self.losses,
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
        """Returns one row per state and rule: state, number of variables and of parameters, rule, shortened paths."""
        found: dict[tuple[str, str], list[NamedVariable]] = {}
        for state, entries in (("trained", self.trained), ("moving", self.moving), ("frozen", self.frozen)):
            for entry in entries:
                found.setdefault((state, self.rules[entry.path]), []).append(entry)
        return [
            (state, len(entries), sum(entry.size for entry in entries), rule, shorten([e.path for e in entries]))
            for (state, rule), entries in found.items()
        ]

    def table(self) -> str:
        """Formats the selection as aligned text."""
        head = ("", "variables", "parameters", "decided by", "paths")
        body = [(s, str(n), f"{p:,}", rule, paths) for s, n, p, rule, paths in self.rows()]
        return table([head, *body], right={1, 2})

    @contextlib.contextmanager
    def modes(self) -> Iterator[None]:
        """Puts each layer with statistics into its mode within a ``with`` block, in which one must trace."""
        inference = {id(layer.layer) for layer in self.inference}
        with contextlib.ExitStack() as stack:
            for layer in self.variables.statistics_layers:
                stack.callback(_restore, layer, _read_mode(layer))
                setattr(layer.layer, layer.switch, id(layer.layer) not in inference)
            yield


def _read_mode(layer: StatisticsLayer) -> list[tuple[Any, bool]]:
    """The layer's switch; in Keras also those of inner layers and of all variables, which the layer's overwrites."""
    if layer.switch != "trainable":
        return [(layer.layer, getattr(layer.layer, layer.switch))]
    return [(owner, owner.trainable) for owner in (*keras_private.flatten_layers(layer.layer), *layer.layer.weights)]


def _restore(layer: StatisticsLayer, before: list[tuple[Any, bool]]) -> None:
    for owner, value in before:  # each layer comes before the layers inside it
        setattr(owner, layer.switch, value)


def select(model: Any, filter: Filter | str, *, statistics: Statistics = "follow") -> Selection:
    """Decides which variables of a model train, by resolving a filter against it.

    Args:
        model: a tf.Module, a Keras 3 model, a list of variables, a dict of variables or models, or a ``ModelVariables``.
        filter: a Filter or its text form, which matches the variables to train.
        statistics: what happens to the statistics of trained layers that no item mentions: "follow" lets them move,
            "frozen" runs their layers in inference mode, which is right for pre-trained backbones. An item that matches
            only statistics, such as ``@stats`` or ``!@stats``, overrides it.

    Raises:
        FilterError: an item matches nothing, later items decide everything that it matches, or nothing trains.
        ModelError: the model is not one of these types, or has no variables yet.

    Example:
        >>> import tensorflow as tf
        >>> from engine import select
        >>> names = ("patch/kernel", "blocks/0/kernel", "blocks/1/kernel", "head/kernel")
        >>> model = {name: tf.Variable([0.0]) for name in names}
        >>> selection = select(model, "head/.* @blocks[-1:]")
        >>> [entry.path for entry in selection.trained]
        ['blocks/1/kernel', 'head/kernel']
    """
    if statistics not in ("follow", "frozen"):
        raise ValueError(f"statistics={statistics!r}: expected 'follow' or 'frozen'")
    variables = name_variables(model)
    rule = filters.parse_filter(filter) if isinstance(filter, str) else filter
    verdicts = _verdicts(rule, variables)
    trained = [e for e in variables if e.kind == "weight" and verdicts[e.path][0]]
    if not trained:
        raise FilterError(
            f"`{rule}` trains nothing: it selects no weight among the model's {len(variables)} variables, such as "
            + ", ".join(e.path for e in variables.entries[:3])
        )
    rules = {e.path: verdicts[e.path][1] for e in variables}
    moving = _moving(rule, variables, verdicts, {id(e.variable) for e in trained}, statistics, rules)
    chosen = {e.path for e in (*trained, *moving)}
    for entry in variables:
        if entry.kind == "constant":
            rules[entry.path] = "created as not trainable"
    moving_layers = {e.layer for e in moving}
    return Selection(
        variables=variables,
        trained=tuple(trained),
        moving=tuple(moving),
        frozen=tuple(e for e in variables if e.path not in chosen),
        rules=rules,
        inference=tuple(layer for layer in variables.statistics_layers if layer.path not in moving_layers),
    )


def matching_paths(model: Any, filter: Filter | str) -> frozenset[str]:
    """Returns the paths that a filter matches, for purposes such as weight decay; unlike ``select``, it may be none."""
    variables = name_variables(model)
    verdicts = _verdicts(filters.parse_filter(filter) if isinstance(filter, str) else filter, variables)
    return frozenset(path for path, (chosen, _) in verdicts.items() if chosen)


def _verdicts(rule: Filter, variables: ModelVariables) -> dict[str, tuple[bool, str]]:
    """By path, whether each variable is selected, and the deciding rule; a FilterError if an item is useless."""
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
                f"{item} has no effect: each of the {len(matched)} variables that it matches is decided by a later item "
                f"({', '.join(str(i) for i in later)}), because the last match decides"
            )
    return {
        path: (False, "no item matches") if item is None else (not item.negated, str(item))
        for path, item in deciding.items()
    }


def _check_matches(name: str, part: Filter, variables: ModelVariables) -> None:
    if part == filters.Group("none") or getattr(part, "optional", False) or any(part(entry) for entry in variables):
        return
    hint = ""
    if isinstance(part, filters.Path):
        hint = ": a regular expression must match a whole variable path"
        hint += text.nearest(part.pattern, _known_names(variables))
    elif isinstance(part, filters.Blocks):
        count = max((e.block[1] for e in variables if e.block), default=0)
        hint = f"; the model has {count} blocks" if count else "; the model has no blocks (no path contains blocks/N/)"
    elif isinstance(part, filters.Layers):
        known = {name: count for e in variables for name, _, count in e.layers}
        listed = ", ".join(
            f"@layers({name}) with {count}" if name else f"@layers with {count}" for name, count in known.items()
        )
        hint = f"; layers to index: {listed}" if known else "; the model is not a Keras model with layers"
    elif isinstance(part, filters.Group):
        present = sorted({g for e in variables for g in e.groups})
        hint = f"; groups with variables here: {' '.join('@' + g for g in present)}"
    raise FilterError(f"{name} matches nothing{hint}")


def _known_names(variables: ModelVariables) -> list[str]:
    """All paths, and their prefixes as one would write them in a filter, for "nearest"."""
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
    """Returns the statistics that follow their layers, and writes the rule of each statistic into ``rules``."""
    layer_trains: dict[str, str] = {}
    for entry in variables:
        if id(entry.variable) in trained and "adapters" not in entry.groups:  # the layer that one adapts stays as it is
            parts = entry.layer.split("/")
            for n in range(len(parts) + 1):  # a wrapper's statistics belong to the layer inside it
                layer_trains.setdefault("/".join(parts[:n]), verdicts[entry.path][1])
    moving = []
    weighted = {entry.layer for entry in variables if entry.kind == "weight"}
    for entry in variables:
        if entry.kind != "statistic":
            continue
        wanted, why = _statistics_rule(rule, entry, variables, verdicts, statistics)
        if entry.layer not in layer_trains and entry.layer not in weighted and _is_named(rule, entry, variables):
            rules[entry.path] = f"moves by itself: {verdicts[entry.path][1]}"
            moving.append(entry)
        elif entry.layer not in layer_trains:
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
                f"`{rule}`: {entry.path} would stay ({rules[entry.path]}) while {other} moves ({rules[other]}); "
                "the statistics of a layer must move together: match all of them, as @stats and !@stats do"
            )
    return moving


def _is_named(rule: Filter, entry: NamedVariable, variables: ModelVariables) -> bool:
    """Whether a filter selects this statistic by its path, as it must for a layer that has nothing but statistics."""
    item = rule.deciding(entry) if isinstance(rule, Ordered) else None
    parts = [item.filter] if item is not None else [] if isinstance(rule, Ordered) else list(rule.parts())
    paths = [part for part in parts if isinstance(part, filters.Path) and part(entry)]
    return rule(entry) and any(all(e.kind == "statistic" for e in variables if part(e)) for part in paths)


def _statistics_rule(
    rule: Filter,
    entry: NamedVariable,
    variables: ModelVariables,
    verdicts: Mapping[str, tuple[bool, str]],
    statistics: Statistics,
) -> tuple[bool, str]:
    """Whether the statistics of a trained layer move: by the last item that matches only statistics, else by default."""
    default = (statistics == "follow", "the default for this model (@stats makes them move)")
    if not isinstance(rule, Ordered):
        return verdicts[entry.path] if filters.Group("stats") in rule.parts() else default
    own = [i for i in rule.items if i.filter(entry) and all(e.kind == "statistic" for e in variables if i.filter(e))]
    return (not own[-1].negated, str(own[-1])) if own else default
