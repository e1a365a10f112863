"""Copies a part of a graph that is being converted into the body of a function, with its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from compat_v1.graphs.draft import ARGUMENT, Draft, Nodes, make_constant
from compat_v1.graphs.endpoints import producer


class Place(NamedTuple):
    """Where a tensor that a part reads comes from: an argument by its key, or a tensor of the part (``key`` None)."""

    tensor: str
    key: Any = None


class Part:
    """A part of a graph that becomes the body of a function.

    Attributes:
        nodes: the copies of the nodes so far, and the arguments that they read.
        originals: the names of the nodes that were copied.
        waits: the names of nodes outside that a node inside waits for.
    """

    def __init__(
        self,
        draft: Draft,
        source: Mapping[str, Any],
        arguments: dict[Any, int],
        *,
        place: Callable[[str], Place],
        place_control: Callable[[str], str | None],
    ) -> None:
        """``place`` says where a tensor comes from, ``place_control`` whether a node to wait for is inside ("") or which
        node outside it is (None for no need to wait). ``arguments`` is key -> number, and grows.
        """
        self.nodes: Nodes = {}
        self.originals: list[str] = []
        self.waits: dict[str, None] = {}
        self._draft, self._source, self._arguments = draft, source, arguments
        self._place, self._place_control = place, place_control

    def add(self, tensor: str) -> str:
        """Copies what a tensor needs; returns the tensor in the part."""
        pending: list[str] = []
        found = self._reference(tensor, pending)
        self._copy(pending)
        return found

    def add_control(self, text: str) -> str:
        """Copies what an operation (``^node``) needs; returns what to wait for in the part, "" for nothing."""
        pending: list[str] = []
        found = self._control(text, pending)
        self._copy(pending)
        return found

    def _copy(self, pending: list[str]) -> None:
        while pending:
            name = pending.pop()
            if name in self.nodes:
                continue
            original = self._source[name]
            self._draft.check_movable(original)
            node = tf.compat.v1.NodeDef()
            node.CopyFrom(original)
            if node.op in ("LoopCond", "NextIteration"):
                node.attr["T"].type = self._draft.type_of(f"{name}:0", self._source).as_datatype_enum
                node.op = "Identity"
            self.nodes[name] = node
            self.originals.append(name)
            texts = [
                self._control(text, pending) if text[0] == "^" else self._reference(text, pending)
                for text in node.input
            ]
            node.input[:] = [text for text in texts if text]

    def add_constant(self, stem: str, value: int) -> str:
        """Adds an int32 constant; returns its tensor."""
        node = make_constant(self._draft.new_name(stem), value, tf.int32)
        self.nodes[node.name] = node
        return f"{node.name}:0"

    def pass_argument(self, key: Any, dtype: tf.DType) -> str:
        """Adds an argument, unless it is there already; returns its tensor."""
        name = self._draft.argument(self._arguments.setdefault(key, len(self._arguments)))
        if name not in self.nodes:
            self.nodes[name] = tf.compat.v1.NodeDef(name=name, op=ARGUMENT)
            self.nodes[name].attr["T"].type = dtype.as_datatype_enum
        return f"{name}:0"

    def _reference(self, tensor: str, pending: list[str]) -> str:
        place = self._place(tensor)
        if place.key is not None:
            return self.pass_argument(place.key, self._draft.type_of(tensor, self._source))
        pending.append(producer(place.tensor))
        return place.tensor

    def _control(self, text: str, pending: list[str]) -> str:
        name = self._place_control(text[1:])
        if name == "":
            pending.append(text[1:])
            return text
        if name is not None and name in self._source:
            self.waits[name] = None
        return ""
