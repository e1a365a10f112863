"""Compiled functions for several runs of one network: one step of each run, and moves of values between variables.

A traced step reads and writes the variables that it has captured. Called with other variables in their place, the same
graph is a step of another run, so what each run computes is what it computes alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from engine import tensorflow_private
from engine.graphs.op_kinds import OpKinds, is_random
from engine.text import join_some
from engine.training.microbatch import StepError


@dataclass(frozen=True, eq=False)
class Uses:
    """What a traced step uses of a network.

    Attributes:
        names: of each tensor that it has captured, the name of the variable behind it; None for constants.
        operations: the number of its operations, those of functions that it calls included.
    """

    names: tuple[str | None, ...]
    operations: int

    @classmethod
    def find(cls, function: Any, names: Mapping[int, str]) -> Uses:
        """What a concrete function uses; ``names`` has the name of each variable by the id of its handle.

        Raises:
            StepError: it draws random numbers from a state that all runs of the process share.
        """
        graph = function.graph
        written = {id(inner) for inner in OpKinds(graph).written_captures()}
        shared = [inner.op.name for outer, inner in graph.captures if id(inner) in written and id(outer) not in names]
        definition = graph.as_graph_def()
        nodes = [*definition.node, *(node for inner in definition.library.function for node in inner.node_def)]
        shared += [node.op for node in nodes if is_random(node.op) and not _takes_variable(node.op)]
        if shared:
            raise StepError(
                f"the step changes or draws from a state that all runs of this process share ({join_some(shared)}), so that "
                "the result of a run would depend on the others; a keras.random.SeedGenerator as an attribute of the layer "
                "avoids this, and so does a process for each run"
            )
        return cls(tuple(names.get(id(outer)) for outer in function.captured_inputs), len(nodes))


def _takes_variable(kind: str) -> bool:
    """Whether operations of this type take their state from a variable, which is then among what is written."""
    return any(each.type == tf.resource.as_datatype_enum for each in tensorflow_private.op_definition(kind).input_arg)


def trace_together(function: Any, uses: Uses, *, count: int, replaced: Sequence[str]) -> Any:
    """One function that holds ``count`` calls of a traced step, none of which waits for another.

    Its flat arguments are, for each call, those of the step, and the handles of the variables that take the places of those
    named in ``replaced``. It returns the results of each call.
    """
    given = function.inputs[: len(function.inputs) - len(uses.names)]
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in given]
    specs += [tf.TensorSpec([], tf.resource) for _ in replaced]
    captured = function.captured_inputs

    def together(*flat: Any) -> list[Any]:
        results = []
        for number in range(count):
            own = flat[number * len(specs) : (number + 1) * len(specs)]
            handles = dict(zip(replaced, own[len(given) :], strict=True))
            inputs = [handles.get(str(name), outer) for name, outer in zip(uses.names, captured, strict=True)]
            results.append(tensorflow_private.call_with_captures(function, own[: len(given)], inputs))
        return results

    return tf.function(together, autograph=False).get_concrete_function(*specs * count)


def trace_moves(kinds: Sequence[tuple[bool, tf.DType]]) -> Any:
    """A function that gives variables values: its flat arguments are the sources, and the handles of the targets.

    For each source, ``kinds`` says whether it is the handle of a variable, and its dtype. Nothing is copied until one of
    two variables of the same value is written.
    """
    sources = [tf.TensorSpec([], tf.resource) if handle else tf.TensorSpec(None, dtype) for handle, dtype in kinds]

    def move(*flat: Any) -> None:
        for (handle, dtype), source, target in zip(kinds, flat[: len(kinds)], flat[len(kinds) :], strict=True):
            value = tf.raw_ops.ReadVariableOp(resource=source, dtype=dtype) if handle else source
            tf.raw_ops.AssignVariableOp(resource=target, value=value)

    targets = [tf.TensorSpec([], tf.resource)] * len(kinds)
    return tf.function(move, autograph=False).get_concrete_function(*sources, *targets)
