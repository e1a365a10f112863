"""Finds the layers with statistics in a trace for training, and puts single ones into inference mode.

The trace moves all statistics at once. A layer is held by editing its part of the graph: what it computes from the batch to
average it (a mean, a variance) is replaced by the statistic that averages it, which is what inference computes with. Which
tensor that is, is read from the new value of the statistic; that nothing of the batch is left, is checked by running it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from engine.graphs.batch_shapes import SHAPES
from engine.graphs.node_editing import producer, tensor_name
from engine.graphs.reach import reach
from engine.models.saved_model.values import Program

_FUSED = frozenset(["FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"])
_AVERAGING = frozenset(
    ["Identity", "StopGradient", "Cast", "Mul", "Sub", "Add", "AddV2", "AddN", "Neg", "RealDiv", "Select", "SelectV2"]
)
_RESHAPING = frozenset(["Squeeze", "Reshape", "ExpandDims", "Identity", "StopGradient", "Cast"])
_STATISTIC = re.compile(r"(?:(?P<layer>.*)/)?(?:moving|running)_[^/]*(?:/.*)?")


@dataclass(frozen=True)
class Layer:
    """A layer whose statistics the trace for training moves.

    Attributes:
        path: the path of the layer.
        statistics: the numbers of the variables that it moves.
        moments: the tensor of the batch -> the number of the statistic that stands for it in inference.
        problem: why the layer cannot be held, "" if it can.
    """

    path: str
    statistics: tuple[int, ...]
    moments: Mapping[str, int]
    problem: str = ""


def layer_of(path: str) -> str:
    """The path of the layer that a statistic belongs to.

    Example:
        >>> layer_of("conv/bn/moving_mean"), layer_of("bn/moving_mean/average"), layer_of("norm/u")
        ('conv/bn', 'bn', 'norm')
    """
    match = _STATISTIC.fullmatch(path)
    return (match["layer"] or "") if match is not None else path.rpartition("/")[0]


def find_layers(program: Program, read: Collection[int], paths: Mapping[int, str]) -> tuple[Layer, ...]:
    """The layers whose statistics a program for training moves.

    ``read`` are the variables that inference computes with, and ``paths`` the paths of variables, by number. A counter
    that only moves with other statistics of its layer is a statistic too. Layers that inference does not use are left out.
    """
    nodes = {node.name: node for node in program.definition.node}
    fed = _dependents(nodes, [program.data])
    leaves = {number: _find_moments(nodes, tensor, fed) for number, tensor in program.writes.items()}
    grouped: dict[str, list[int]] = {}
    for number in program.writes:
        grouped.setdefault(layer_of(paths[number]), []).append(number)
    found = []
    for path, numbers in grouped.items():
        if not set(numbers) & set(read):
            continue  # of another output
        moments: dict[str, int] = {}
        problem = ""
        for tensor in dict.fromkeys(each for number in numbers for each in leaves[number]):
            averaging = [number for number in numbers if tensor in leaves[number]]
            standing = [number for number in averaging if number in read]
            if len(standing) == 1:
                moments[tensor] = standing[0]
            else:
                problem = f"it is not clear which statistic stands for {producer(tensor)} in inference"
        if moments or problem:
            found.append(Layer(path, tuple(numbers), moments, problem))
    return tuple(found)


def _dependents(nodes: Mapping[str, Any], names: Collection[str]) -> set[str]:
    """The nodes that depend on some by data, and these; a shape is not data."""
    readers: dict[str, list[str]] = {}
    for name, node in nodes.items():
        for source in node.input if node.op not in SHAPES else ():
            if not source.startswith("^"):
                readers.setdefault(producer(source), []).append(name)
    return set(reach(names, lambda name: readers.get(name, ())))


def find_reached(program: Program, numbers: Collection[int]) -> set[str]:
    """The nodes that compute with the values of some variables."""
    nodes = {node.name: node for node in program.definition.node}
    return _dependents(nodes, [program.reads[number] for number in numbers if number in program.reads])


def _find_moments(nodes: Mapping[str, Any], new: str, fed: Collection[str]) -> list[str]:
    """The tensors of the batch that a new value averages: those at which the averaging ends."""
    found: dict[str, None] = {}
    pending, seen = [new], set()
    for source in pending:  # grows
        if source in seen or producer(source) not in fed:
            continue
        seen.add(source)
        node = nodes[producer(source)]
        if node.op in _AVERAGING:
            pending += [tensor_name(each) for each in node.input if not each.startswith("^")]
        else:
            found[tensor_name(source)] = None
    return list(found)


def hold(definition: Any, layers: Collection[Layer], values: Mapping[int, str]) -> None:
    """Puts layers into inference mode, in place; ``values`` are the placeholders of the variables' values, by number."""
    nodes = {node.name: node for node in definition.node}
    replaced: dict[str, str] = {}
    for layer in layers:
        for tensor, number in layer.moments.items():
            node = nodes[producer(tensor)]
            if node.op in _FUSED:
                node.attr["is_training"].b = False
                place = {"1": 3, "2": 4}.get(tensor.rpartition(":")[2])
                if place is not None:
                    node.input[place] = values[number]
                continue
            replaced[tensor] = values[number]
            while node.op in _RESHAPING:  # the moment before it lost its axes of length 1, which are broadcast
                tensor = tensor_name(node.input[0])
                node = nodes[producer(tensor)]
                if node.op != "Placeholder":
                    replaced[tensor] = values[number]
    for node in definition.node:
        for place, source in enumerate(node.input):
            if not source.startswith("^") and (new := replaced.get(tensor_name(source))) is not None:
                node.input[place] = new


def numbers_of(layers: Collection[Layer]) -> set[int]:
    """The variables that layers move."""
    return {number for layer in layers for number in layer.statistics}
