"""Finds the weights among the constants of a frozen graph."""

from __future__ import annotations

import collections
import hashlib
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from engine.errors import FileError, InputError
from engine.graphs.graph_variables import HOLDERS
from engine.graphs.nodes import FlatGraphError, Node
from engine.porting.frozen.constant_graph import ConstantGraph
from engine.porting.frozen.judge import Judge, Verdict
from engine.porting.frozen.roles import INTEGER_PRODUCTS
from engine.porting.frozen.stored import Stored, absorbed, find_stored
from engine.text import compile_pattern, join_some, nearest

_CONVOLUTION = re.compile(r"_?(Fused)?(Depthwise)?Conv(\d[dD])?(Native|BackpropInput(V2)?)?")
_TWIN = 1024  # elements from which equal values are no coincidence


@dataclass(frozen=True)
class FrozenWeight:
    """A constant that is a weight.

    Attributes:
        name: the node that has its value.
        rule: why it is one, such as ``kernel (Conv2D conv1/Conv2D)``.
        shape, dtype: of the weight; of its value where it is kept in fewer bits.
        kind: a statistic is what batch normalisation measured, anything else is a weight.
        stored: how it is kept, "" for a constant with the values themselves.
        role, reader: what it is for (kernel, bias, scale, offset, mean, variance, table, slope), and the operation that reads it so; "" where only
            its name shows it.
    """

    name: str
    rule: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    kind: Literal["weight", "statistic"] = "weight"
    stored: str = ""
    role: str = ""
    reader: str = ""


@dataclass(frozen=True)
class UnclearConstant:
    """A constant of which nothing shows whether it is a weight, and what is known."""

    name: str
    reason: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, eq=False)
class FrozenWeights:
    """The constants of a graph.

    Attributes:
        weights: those that are weights, in the order of the graph.
        unclear: those of which nothing shows it.
        others: the other floating-point constants -> what they are.
        notes: what a user should know, a sentence each.
        stored: name -> where the values of a weight, or of any constant that could be one, are.
    """

    weights: tuple[FrozenWeight, ...]
    unclear: tuple[UnclearConstant, ...]
    others: Mapping[str, str]
    notes: tuple[str, ...]
    stored: Mapping[str, Stored] = field(repr=False)

    def read(self, name: str) -> np.ndarray:
        """Reads the value of a constant that is or could be a weight; raises ValueError if it is damaged."""
        return self.stored[name].read()


def find_weights(
    definition: Any, *, where: str, outputs: Collection[str] = (), chosen: str | None = None
) -> FrozenWeights:
    """Finds the weights among the constants of a GraphDef, which is read as data.

    Args:
        where: the file, for messages.
        outputs: the operations or tensors that are computed; only what they need counts. () stands for the whole graph.
        chosen: items, separated by white space, that change what is decided: REGEX makes the constants of these names
            weights, ``!REGEX`` leaves them constants. The last item that matches decides. A regex must match the whole name; it is
            compared with weights and unclear constants, and if none of them matches, with all other floating-point ones.

    Raises:
        InputError: an item matches nothing, or the graph computes with integers (QuantizedConv2D).
        FileError: the graph contradicts itself, or a constant is damaged.
    """
    names = [name.removeprefix("^").partition(":")[0] for name in outputs]
    known = {node.name for node in definition.node}
    if wrong := next((name for name in names if name not in known), None):
        raise InputError(f"{where}: outputs={wrong}: the graph has no such operation{nearest(wrong, sorted(known))}")
    try:
        graph = ConstantGraph(definition, names)
    except FlatGraphError as error:
        raise FileError(f"{where}: {error}; the file is damaged") from None
    _refuse_integers(graph, where)
    judge = Judge(graph)
    found = dict(_judge_all(graph, judge, where))
    found = _choose(found, chosen, where)
    weights = tuple(
        FrozenWeight(
            name,
            verdict.reason,
            stored.shape,
            stored.dtype,
            "statistic" if verdict.kind == "statistic" else "weight",
            stored.text,
            verdict.role,
            verdict.reader,
        )
        for name, (verdict, stored) in found.items()
        if verdict.kind in ("weight", "statistic")
    )
    unclear = tuple(
        UnclearConstant(name, verdict.reason, stored.shape, stored.dtype)
        for name, (verdict, stored) in found.items()
        if verdict.kind == "unclear"
    )
    others = {name: verdict.reason for name, (verdict, _) in found.items() if verdict.kind == "constant"}
    stored = {name: stored for name, (_, stored) in found.items()}
    return FrozenWeights(weights, unclear, others, tuple(_notes(graph, judge, found, weights)), stored)


Found = dict[str, tuple[Verdict, Stored]]


def _judge_all(graph: ConstantGraph, judge: Judge, where: str) -> Iterator[tuple[str, tuple[Verdict, Stored]]]:
    """Yields name -> verdict for all constants that are or become floating-point numbers."""
    candidates: dict[Node, Stored] = {}
    taken, made = set[Node](), set[Node]()
    for leaf in graph.constants:
        try:
            stored = find_stored(graph, leaf)
        except ValueError as error:
            raise FileError(f"{where}: {leaf.name}: {error}; the file is damaged") from None
        if stored is not None and stored.node not in made:
            candidates[leaf] = stored
            made.add(stored.node)
    quantised = {leaf: stored for leaf, stored in candidates.items() if stored.node is not stored.constant}
    verdicts = {leaf: judge.judge(stored.node, stored.shape) for leaf, stored in quantised.items()}
    for leaf, stored in quantised.items():
        if verdicts[leaf].spoken:
            taken |= absorbed(stored) - {leaf}
        elif verdicts[leaf].kind != "weight" or leaf.definition.attr["dtype"].type in (3, 6, 9):  # numbers that count
            del candidates[leaf]
        else:
            taken |= absorbed(stored) - {leaf}
    for leaf, stored in candidates.items():
        if leaf in taken:
            continue
        verdict = verdicts.get(leaf) or judge.judge(leaf, stored.shape)
        if ":" in leaf.name and verdict.kind in ("weight", "statistic"):
            reason = f"{verdict.reason}; it is inside a function of the graph, where it stays a constant"
            verdict = Verdict("unclear", reason)
        yield stored.node.name, (verdict, stored)


def _refuse_integers(graph: ConstantGraph, where: str) -> None:
    found = [node for node in graph.nodes if node.op.startswith(INTEGER_PRODUCTS)]
    if found:
        raise InputError(
            f"{where}: the graph computes with quantised integers ({found[0].op} {found[0].name} and "
            f"{len(found) - 1} more operations), which have no gradients and whose weights are rounded; take the floating-point "
            "graph that it was made from, or one in which only the weights are stored as integers (Dequantize)"
        )


def _choose(found: Found, chosen: str | None, where: str) -> Found:
    """Applies the user's items to the verdicts."""
    result = dict(found)
    for item in (chosen or "").split():
        pattern = compile_pattern(item.removeprefix("!"), name="chosen")
        first = [name for name, (verdict, _) in found.items() if verdict.kind != "constant" and pattern.fullmatch(name)]
        matched = first or [name for name in found if pattern.fullmatch(name)]
        inside = [name for name in matched if ":" in name and not item.startswith("!")]
        if not matched or inside:
            why = (
                f"{inside[0]} is inside a function of the graph, where it stays a constant"
                if inside
                else f"no floating-point constant has such a name{nearest(item.removeprefix('!'), list(found))}"
            )
            raise InputError(f"{where}: `{item}`: {why}")
        for name in matched:
            verdict, stored = result[name]
            if item.startswith("!"):
                result[name] = Verdict("constant", f"left out by `{item}`"), stored
            elif verdict.kind not in ("weight", "statistic"):
                before = found[name][0]
                kept = before.kind in ("weight", "statistic")
                result[name] = (before if kept else Verdict("weight", f"chosen by `{item}`")), stored
    return result


# ---- what a user should know


def _notes(graph: ConstantGraph, judge: Judge, found: Found, weights: tuple[FrozenWeight, ...]) -> Iterator[str]:
    """Yields a sentence for each thing that a list of weights does not show."""
    layers = [node for node in graph.varying if _CONVOLUTION.fullmatch(node.op)]
    if layers and not any(weight.kind == "statistic" for weight in weights):
        yield (
            "no batch normalisation is left in the graph: where the network had it, it is folded into kernels and biases, "
            "which are trained as they are, and there are no statistics"
        )
    if converted := [weight.name for weight in weights if weight.stored]:
        yield (
            f"{len(converted)} weights are stored in fewer bits ({join_some(converted, most=3)}); as variables they have the "
            "values that the graph computes with, and changed ones are written back as these"
        )
    kept = [name for name, (verdict, _) in found.items() if verdict.reason.startswith("it normalises the input")]
    if kept:
        yield f"what normalises the input stays constant: {join_some(kept)}"
    shared = [weight.name for weight in weights if len(_readers(graph, found[weight.name][1].node)) > 1]
    if shared:
        yield f"{len(shared)} weights are read in several places, and each is one variable: {join_some(shared, most=3)}"
    if twins := list(_twins(weights, found)):
        yield (
            f"{len(twins)} pairs of weights have equal values, such as {twins[0][0]} and {twins[0][1]}; if they were one variable, "
            "training tells them apart"
        )
    variables = [weight.name for weight in weights if judge.was_variable(found[weight.name][1].node)]
    rest = [weight.name for weight in weights if weight.name not in set(variables)]
    if rest and len(variables) > 4 * len(rest):
        yield (
            f"{len(variables)} weights are read as variables, but these are not, and may be fixed by design: "
            f"{join_some(rest)}"
        )
    if held := [node.name for node in graph.nodes if node.op in HOLDERS]:
        yield f"the graph is not wholly frozen: {len(held)} variables have no value in it ({join_some(held, most=3)})"


def _readers(graph: ConstantGraph, node: Node) -> set[Node]:
    """What reads a constant, behind the operations that only pass it on."""
    found, pending = set[Node](), [node]
    while pending:
        for reader in graph.readers(pending.pop()):
            if reader.op in ("Identity", "Enter", "Switch", "_Arg", "_Loop", "Cast"):
                if reader not in found:
                    found.add(reader)
                    pending.append(reader)
            else:
                found.add(reader)
    return {each for each in found if each.op not in ("Identity", "Enter", "Switch", "_Arg", "_Loop", "_Ret", "Cast")}


def _twins(weights: Iterable[FrozenWeight], found: Found) -> Iterator[tuple[str, str]]:
    """Yields pairs of large weights with the same values."""
    alike: dict[Any, list[str]] = collections.defaultdict(list)
    for weight in weights:
        if math.prod(weight.shape) >= _TWIN and len(weight.shape) > 1 and not weight.stored:
            alike[weight.shape, weight.dtype.name].append(weight.name)
    for names in alike.values():
        seen: dict[bytes, str] = {}
        for name in names if len(names) > 1 else ():
            content = found[name][1].node.definition.attr["value"].tensor.SerializeToString(deterministic=True)
            key = hashlib.sha256(content).digest()
            if key in seen:
                yield seen[key], name
            seen.setdefault(key, name)
