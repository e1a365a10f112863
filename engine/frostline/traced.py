"""A graph that is to be cut, whatever made it: what it is given, what a step wants of it, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from engine.digests import digest
from engine.errors import InputError
from engine.graphs import dataflow

Compute = Callable[[Any], Sequence[Any]]


class TracedError(InputError):
    """A graph that reads what has no value to be digested."""


class Traced(Protocol):
    """What is asked of a graph.

    Attributes:
        graph: a tf.Graph.
        inputs: name -> placeholder of a batch's array, [B, ...].
        others: its further placeholders.
        results: tensors that a step fetches.
        effects: operations that it runs besides.
    """

    graph: Any
    inputs: Mapping[str, Any]
    others: Sequence[Any]
    results: Sequence[Any]
    effects: Sequence[Any]

    def handle(self, path: str, variable: Any) -> Any | None:
        """The tensor by which the graph reads and writes a variable; None where it does not."""

    def name(self, handle: Any) -> str:
        """Of the variable behind such a tensor."""

    def outside(self, tensors: Sequence[Any], *, by_value: bool) -> dict[int, str]:
        """What tensors stand for that is not computed in the graph, a variable or a captured constant.

        Returns:
            ``id`` of each of them that does -> a text that tells it from others, or its value from other values.

        Raises:
            TracedError: by value, and one has none.
        """

    def crosses(self, tensor: Any) -> bool:
        """Whether the graph can be run up to a tensor, and from it."""

    def fetches(self, op: Any) -> bool:
        """Whether a run can be asked for an operation."""

    def run(self, tensors: Sequence[Any], feeds: Iterable[tuple[Any, Any]]) -> list[np.ndarray]:
        """Values of tensors that need nothing but variables, and tensors for which ``feeds`` has values."""

    def function_of(self, images: Any, tensors: Sequence[Any], effects: Sequence[Any]) -> Compute:
        """A function from images to tensors that need nothing else; it runs the effects too."""


class TracedFunction:
    """A concrete function; its first argument is a batch (a dict), further ones are scalars or vectors."""

    def __init__(self, function: Any) -> None:
        self.graph = function.graph
        arguments = function.structured_input_signature[0]
        names = sorted(arguments[0])  # as tf.nest flattens a dict
        self.inputs: Mapping[str, Any] = dict(zip(names, self.graph.inputs, strict=False))
        self.others = self.graph.inputs[len(names) : len(tf.nest.flatten(arguments))]
        self.results: Sequence[Any] = tf.nest.flatten(self.graph.structured_outputs)
        self.effects = self.graph.control_outputs
        self._inner = {id(outer): inner for outer, inner in self.graph.captures}
        self._outer = dataflow.outside(self.graph)

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

    def crosses(self, tensor: Any) -> bool:
        return True

    def fetches(self, op: Any) -> bool:
        return True

    def run(self, tensors: Sequence[Any], feeds: Iterable[tuple[Any, Any]]) -> list[np.ndarray]:
        def compute() -> list[Any]:
            return dataflow.copy(tensors, self._outer | {id(tensor): tf.constant(value) for tensor, value in feeds})

        return [value.numpy() for value in tf.function(compute, autograph=False)()]

    def function_of(self, images: Any, tensors: Sequence[Any], effects: Sequence[Any]) -> Compute:
        def compute(given: Any) -> list[Any]:
            return dataflow.copy(tensors, self._outer | {id(images): given}, effects=effects, name="prefix")

        spec = tf.TensorSpec(images.shape, images.dtype)
        function = tf.function(compute, autograph=False).get_concrete_function(spec)

        def run(given: Any) -> Sequence[Any]:
            found: Sequence[Any] = function(tf.convert_to_tensor(given))
            return found

        return run


def _value(handle: Any) -> np.ndarray:
    """What the handle of a variable holds now."""
    data = getattr(handle, "_handle_data", None)
    if data is None or not data.is_set or len(data.shape_and_type) != 1:
        raise TracedError(f"the frozen part reads a {handle.dtype.name} that is no variable: it has no digest")
    dtype = tf.as_dtype(data.shape_and_type[0].dtype)
    return np.asarray(tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype).numpy())
