"""Turns the constants of a frozen graph that are weights back into variables, so that the graph trains like any old one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compat_v1.errors import GraphError
from engine.errors import FileError
from engine.porting.frozen.find import FrozenWeight, FrozenWeights, UnclearConstant, find_weights
from engine.porting.frozen.rewrite import enter_frames, make_variable, replace_weights
from engine.reading import check_memory
from engine.text import join_some, listed


@dataclass(frozen=True, eq=False)
class Thawed:
    """A frozen graph with variables.

    Attributes:
        definition: the GraphDef, in which a VariableV2 has the place, name, dtype and shape of each weight.
        values: name -> value of each weight; it is computed when it is asked for.
        weights: the constants that became variables, in the order of the graph.
        unclear: constants of which nothing shows whether they are weights; they stayed constants.
        notes: what a user should know, a sentence each.
    """

    definition: Any
    values: Mapping[str, np.ndarray]
    weights: tuple[FrozenWeight, ...]
    unclear: tuple[UnclearConstant, ...]
    notes: tuple[str, ...]


def thaw(definition: Any, *, where: str, outputs: Collection[str] | None = None, chosen: str | None = None) -> Thawed:
    """Makes variables of those constants of a GraphDef that are weights (engine.porting.frozen.find).

    Args:
        where: the file, for messages.
        outputs: the tensors that are computed; constants that they do not need stay as they are. None takes the whole graph.
        chosen: items that change what is decided: ``REGEX`` makes constants weights, ``!REGEX`` leaves them constants.

    Raises:
        GraphError: no constant is a weight; the message lists the unclear ones.
        InputError: an item of ``chosen`` matches nothing, or the graph computes with integers; FileError: it is damaged.
    """
    found = find_weights(definition, where=where, outputs=outputs or (), chosen=chosen)
    if not found.weights:
        raise GraphError(f"{where}: {describe_missing(found)}")
    stored = [found.stored[weight.name] for weight in found.weights]
    made = replace_weights(definition, stored, make_variable)
    enter_frames(made, stored)
    return Thawed(made, FrozenValues(found, where), found.weights, found.unclear, found.notes)


def describe_missing(found: FrozenWeights) -> str:
    """Says that no constant is a weight, what the constants are, and the way out."""
    unclear = [f"{each.name} {list(each.shape)}: {each.reason}" for each in found.unclear]
    others = [f"{name}: {reason}" for name, reason in found.others.items()]
    hint = "choose those that are by their names" if unclear or others else "it holds no floating-point constant"
    return (
        f"no constant of the graph is known to be a weight; {hint}"
        + listed("unclear", unclear)
        + listed("taken for constants", others)
    )


class FrozenValues(Mapping[str, np.ndarray]):
    """The values of the weights of a frozen graph, by name; each is computed when it is asked for."""

    def __init__(self, found: FrozenWeights, where: str) -> None:
        self._found, self._where = found, where
        self._weights = {weight.name: weight for weight in found.weights}

    def __getitem__(self, name: str) -> np.ndarray:
        weight = self._weights[name]
        check_memory(self._where, int(np.prod(weight.shape, dtype=np.int64)) * weight.dtype.itemsize, name)
        try:
            return self._found.read(name)
        except ValueError as error:
            raise FileError(f"{self._where}: {name}: {error}; the file is damaged") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def summarise(thawed: Thawed) -> str:
    """A line for people: how many constants became variables, and which did not."""
    count = sum(int(np.prod(weight.shape, dtype=np.int64)) for weight in thawed.weights)
    statistics = sum(weight.kind == "statistic" for weight in thawed.weights)
    text = f"{len(thawed.weights)} constants became variables ({count:,} numbers"
    text += f"; {statistics} are statistics)" if statistics else ")"
    if thawed.unclear:
        text += f"; unclear, and left constant: {join_some([each.name for each in thawed.unclear])}"
    return text
