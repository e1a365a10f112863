"""Checks what rules expect of the graph that weights belong to.

Names and shapes cannot tell two networks apart that differ in a stride or a pooling size. A rule file says so with
``expect`` lines (engine.porting.rules.language), and these are compared with the graph as data.
"""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from engine.porting.errors import PortError
from engine.porting.readers import graph_file
from engine.porting.rules.language import Expected, Rules
from engine.text import join_some, listed, nearest

_MOST_ELEMENTS = 4096  # of a constant: a file may declare any number


class GivenGraph(Protocol):
    """A graph that was read already: ``engine.porting.readers.graph_file.GraphFile`` is one."""

    @property
    def path(self) -> pathlib.Path: ...

    @property
    def definition(self) -> Any: ...


def check_expected(rules: Rules, weights: pathlib.Path, *, graph: GivenGraph | None = None) -> str:
    """Checks the ``expect`` lines of rules against a graph, by default the one that lies beside the weights.

    Returns a sentence that says what was checked, "" for rules without such lines. Raises PortError if the graph
    contradicts a line, or there is no graph for a line that needs one (``expect`` without ``?``).
    """
    if not rules.expect:
        return ""
    if graph is None and (file := graph_file.find_graph_file(weights)) is not None:
        graph = graph_file.read_graph_file(file)
    facts = f"what {rules.name} expects of the graph"
    if graph is None:
        needed = [each for each in rules.expect if not each.optional]
        if not needed:
            return f"not checked: {facts} ({join_some([str(each) for each in rules.expect], most=2)})"
        raise PortError(
            f"{needed[0].where}: `{needed[0]}` must hold for the graph that the weights belong to, but there is no graph "
            f"beside {weights}; give it with verify_graph= of port_checkpoint, or put it there as {weights.name}.meta. If "
            "you know that it holds, use a copy of the rules without the `expect` lines"
        )
    problems = [text for each in rules.expect for text in _contradictions(each, graph.definition.graph_def)]
    if problems:
        raise PortError(
            f"{graph.path}: the weights belong to another network than {rules.name} describes; it would compute something else"
            + listed("in the graph", problems)
        )
    return f"{facts} holds ({len(rules.expect)} line{'s'[: len(rules.expect) - 1]}, {graph.path})"


def _contradictions(expected: Expected, definition: Any) -> Iterator[str]:
    nodes = list(itertools.chain(definition.node, *(function.node_def for function in definition.library.function)))
    found = [node for node in nodes if expected.pattern.fullmatch(node.name)]
    if not found:
        near = nearest(expected.pattern.pattern, [node.name for node in nodes], count=1)
        yield f"no operation {expected.pattern.pattern} ({expected.where}{near})"
    for node in found:
        values = _values(node, expected.attribute)
        if values is None:
            yield f"{node.name} ({node.op}) has no {expected.attribute} ({expected.where})"
        elif not _equal(values, expected.values):
            has = ",".join(map(str, values))
            yield f"{node.name} ({node.op}): {expected.attribute} is {has}, not {','.join(expected.values)} ({expected.where})"


def _values(node: Any, attribute: str) -> Sequence[Any] | None:
    """Returns an attribute of a node as a flat list; None if there is none, or it is not of a comparable kind."""
    if attribute == "op":
        return [node.op]
    if attribute not in node.attr:
        return None
    try:
        return _flat(node.attr[attribute])
    except (ValueError, TypeError):  # a type that does not exist, or a constant that contradicts itself
        return None


def _flat(value: Any) -> Sequence[Any] | None:
    kind = value.WhichOneof("value")
    if kind == "list":
        lists = value.list
        if lists.type:
            return [tf.as_dtype(each).name for each in lists.type]
        return [*lists.i, *lists.f, *lists.b, *(text.decode(errors="replace") for text in lists.s)]
    if kind == "s":
        return [value.s.decode(errors="replace")]
    if kind == "type":
        return [tf.as_dtype(value.type).name]
    if kind == "shape":
        return ["?"] if value.shape.unknown_rank else [dim.size if dim.size >= 0 else "?" for dim in value.shape.dim]
    if kind == "tensor":
        small = math.prod(dim.size for dim in value.tensor.tensor_shape.dim) <= _MOST_ELEMENTS
        return list(np.ravel(tf.make_ndarray(value.tensor))) if small else None
    return [getattr(value, kind)] if kind in ("i", "f", "b") else None


def _equal(values: Sequence[Any], texts: Sequence[str]) -> bool:
    return len(values) == len(texts) and all(map(_same, values, texts))


def _same(value: Any, text: str) -> bool:
    """Compares numbers as float32, in which graphs hold them, and everything else as text."""
    if isinstance(value, (bool, np.bool_, str, bytes)):
        return (value.decode(errors="replace") if isinstance(value, bytes) else str(value)) == text
    try:
        return bool(np.float32(text) == np.float32(value))
    except ValueError:
        return False
