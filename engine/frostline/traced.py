"""Graphs that can be cut, whether traced by ``tf.function`` or built for a session: their inputs, results and execution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from engine.digests import digest
from engine.errors import InputError
from engine.graphs import dataflow

Compute = Callable[..., Sequence[Any]]


class TracedError(InputError):
    """A graph that reads something without a value to digest."""


class Traced(Protocol):
    """A graph that the frost line can cut.

    Attributes:
        inputs, others: name -> the placeholder of a batch's array, [B, ...]; and the other placeholders.
        results, effects: the tensors that a step fetches, and the operations that it runs in addition.
    """

    graph: Any
    inputs: Mapping[str, Any]
    others: Sequence[Any]
    results: Sequence[Any]
    effects: Sequence[Any]

    def handle(self, path: str, variable: Any) -> Any | None:
        """The tensor through which the graph reads and writes a variable; None if it does neither."""

    def name(self, handle: Any) -> str:
        """The name of the variable behind such a tensor."""

    def outside(self, tensors: Sequence[Any], *, by_value: bool) -> dict[int, str]:
        """Identifies the tensors that stand for a variable or a captured constant, which the graph does not compute.

        Returns ``id`` of each such tensor -> a text that identifies the variable, or its value if ``by_value`` is set;
        then a TracedError is raised if one has no value.
        """

    def can_cut_at(self, tensor: Any) -> bool:
        """Whether the graph can be run up to a tensor, and from it."""

    def can_fetch(self, op: Any) -> bool:
        """Whether a run can fetch an operation."""

    def run(self, tensors: Sequence[Any], feeds: Iterable[tuple[Any, Any]]) -> list[np.ndarray]:
        """The values of tensors that need only variables and the tensors that ``feeds`` has values for."""

    def build_function(self, examples: Sequence[Any], tensors: Sequence[Any], effects: Sequence[Any]) -> Compute:
        """A function of as many arrays as ``examples``, to tensors that need no other input; it also runs the effects."""


class TracedFunction:
    """A concrete function; its first argument is a batch (a dict), the others are scalars or vectors."""

    def __init__(self, function: Any) -> None:
        self.graph = function.graph
        arguments = function.structured_input_signature[0]
        names = sorted(arguments[0])  # the order in which tf.nest flattens a dict
        self.inputs: Mapping[str, Any] = dict(zip(names, self.graph.inputs, strict=False))
        self.others = self.graph.inputs[len(names) : len(tf.nest.flatten(arguments))]
        self.results: Sequence[Any] = tf.nest.flatten(self.graph.structured_outputs)
        self.effects = self.graph.control_outputs
        self._inner = {id(outer): inner for outer, inner in self.graph.captures}
        self._outer = dataflow.captured_tensors(self.graph)

    def handle(self, path: str, variable: Any) -> Any | None:
        return self._inner.get(id(variable.handle))

    def name(self, handle: Any) -> str:
        return str(getattr(self._outer.get(id(handle)), "name", "") or handle.name)

    def outside(self, tensors: Sequence[Any], *, by_value: bool) -> dict[int, str]:
        found = {}
        for key, outer in ((id(tensor), self._outer.get(id(tensor))) for tensor in tensors):
            if outer is not None and outer.dtype != tf.resource:
                found[key] = "constant " + digest("", outer.numpy())
            elif outer is not None:
                found[key] = "variable " + (digest("", _value(outer)) if by_value else str(id(outer)))
        return found

    def can_cut_at(self, tensor: Any) -> bool:
        return True

    def can_fetch(self, op: Any) -> bool:
        return True

    def run(self, tensors: Sequence[Any], feeds: Iterable[tuple[Any, Any]]) -> list[np.ndarray]:
        def compute() -> list[Any]:
            given = {id(tensor): tf.constant(value) for tensor, value in feeds}
            return dataflow.copy_tensors(tensors, self._outer | given)

        return [value.numpy() for value in tf.function(compute, autograph=False)()]

    def build_function(self, examples: Sequence[Any], tensors: Sequence[Any], effects: Sequence[Any]) -> Compute:
        def compute(*given: Any) -> list[Any]:
            feeds = {id(placeholder): value for placeholder, value in zip(examples, given, strict=True)}
            return dataflow.copy_tensors(tensors, self._outer | feeds, effects=effects, name="prefix")

        specs = [tf.TensorSpec(placeholder.shape, placeholder.dtype) for placeholder in examples]
        function = tf.function(compute, autograph=False).get_concrete_function(*specs)

        def run(*given: Any) -> Sequence[Any]:
            found: Sequence[Any] = function(*map(tf.convert_to_tensor, given))
            return found

        return run


def _value(handle: Any) -> np.ndarray:
    """The current value of the variable behind a handle."""
    data = getattr(handle, "_handle_data", None)
    if data is None or not data.is_set or len(data.shape_and_type) != 1:
        raise TracedError(f"the frozen part reads a {handle.dtype.name} that is not a variable and has no digest")
    dtype = tf.as_dtype(data.shape_and_type[0].dtype)
    return np.asarray(tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype).numpy())
