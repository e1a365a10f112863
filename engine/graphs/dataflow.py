"""Dataflow in a ``tf.Graph``: which operations depend on which, and copies of a part of a graph."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Any

import tensorflow as tf

from engine.graphs.reach import reach

_READS = ("ReadVariableOp", "ResourceGather", "ResourceGatherNd")  # of a variable, or of rows of one


def dependents(graph: Any, sources: Iterable[Any], *, ops: Iterable[Any] = (), but: Set[Any] = frozenset()) -> set[Any]:
    """Returns all operations that depend on the tensors ``sources`` or on ``ops``, by data or by control.

    Operations in ``but`` are neither followed nor returned.
    """
    followers: dict[Any, list[Any]] = {}
    for op in graph.get_operations():
        for before in op.control_inputs:
            followers.setdefault(before, []).append(op)

    def following(op: Any) -> list[Any]:
        readers = [reader for output in op.outputs for reader in output.consumers()]
        return [after for after in (*readers, *followers.get(op, ())) if after not in but]

    first = [op for tensor in sources for op in tensor.consumers() if op not in but]
    return set(reach(first + [after for op in ops for after in following(op)], following))


def ancestors(tensors: Iterable[Any], *, ops: Iterable[Any] = (), given: Collection[int] = ()) -> set[Any]:
    """Returns all operations that the tensors and operations depend on, by data or by control, and their own.

    ``given`` are the ids of tensors whose values are given, so that their operations are not followed.
    """

    def before(op: Any) -> list[Any]:
        return [*(tensor.op for tensor in op.inputs if id(tensor) not in given), *op.control_inputs]

    return set(reach([*(tensor.op for tensor in tensors if id(tensor) not in given), *ops], before))


def captured_tensors(traced: Any) -> dict[int, Any]:
    """Returns the tensors that a function's graph captures, by the ``id`` of the placeholder that stands for each."""
    return {id(inner): outer for outer, inner in traced.captures}


def leaf_tensors(tensors: Iterable[Any]) -> list[Any]:
    """Returns, of all tensors that the given ones depend on, those of operations without inputs."""
    return [op.outputs[0] for op in ancestors(tensors) if not op.inputs and op.outputs]


def copy_tensors(
    tensors: Sequence[Any],
    feeds: Mapping[int, Any],
    *,
    effects: Iterable[Any] = (),
    without: Set[Any] = frozenset(),
    name: str | None = None,
) -> list[Any]:
    """Copies tensors, and all that they depend on, into the graph that is being built, and returns the copies.

    Args:
        feeds: the ``id`` of a tensor of that graph -> the tensor that replaces it here. Each placeholder that the
            tensors depend on needs one.
        effects: operations, such as writes and assertions, that are copied as well, with all that they depend on.
        without: operations that have been run before; a control dependency on one is dropped.

    Raises:
        ValueError: a tensor depends, by data, on an operation in ``without`` whose output is not fed.
    """
    effects = list(effects)
    needed = _needed(tensors, effects, feeds, without)
    source = tensors[0].graph
    definition = tf.compat.v1.GraphDef()
    whole = source.as_graph_def()
    definition.versions.CopyFrom(whole.versions)
    definition.library.CopyFrom(whole.library)
    names = {op.name for op in needed}
    for node in whole.node:
        if node.name in names:
            copied = definition.node.add()
            copied.CopyFrom(node)
            kept = [at for at in node.input if not at.startswith("^") or at[1:] in names]
            del copied.input[:]
            copied.input.extend(kept)
            copied.attr.pop("_class", None)  # colocation with operations that may be absent
    here = tf.compat.v1.get_default_graph()
    wanted = {id(tensor) for op in needed for tensor in (*op.inputs, *op.outputs)} | {id(tensor) for tensor in tensors}
    capture = getattr(here, "capture", lambda value: value)
    values = {key: capture(value) for key, value in feeds.items() if key in wanted}
    read = {id(tensor): tensor for op in needed for tensor in op.inputs}
    fed = {tensor.name: values[key] for key, tensor in read.items() if key in values}
    unfed = [tensor for tensor in tensors if id(tensor) not in values]
    found = tf.graph_util.import_graph_def(
        definition, input_map=fed, return_elements=[t.name for t in unfed], name=name or "import"
    )
    copies = dict(zip((id(tensor) for tensor in unfed), found, strict=True))
    return [values[id(tensor)] if id(tensor) in values else copies[id(tensor)] for tensor in tensors]


def used_handles(traced: Any) -> set[int]:
    """Returns the ids of captured handles whose variables a function's graph computes with.

    A variable whose value is read but not used does not count.
    """
    return {
        id(outer)
        for outer, inner in traced.captures
        if any(op.type != "ReadVariableOp" or op.outputs[0].consumers() for op in inner.consumers())
    }


def _needed(tensors: Sequence[Any], effects: list[Any], feeds: Mapping[int, Any], without: Set[Any]) -> set[Any]:
    """The operations to be copied, without those that are only waited for to no effect."""

    def before(op: Any) -> list[Any]:
        if op in without:
            raise ValueError(f"{op.name} ({op.type}) must not be copied, but a copied tensor depends on it")
        waited = [earlier for earlier in op.control_inputs if earlier not in without and not _is_idle(earlier)]
        return [*(tensor.op for tensor in op.inputs if id(tensor) not in feeds), *waited]

    return set(reach([*(tensor.op for tensor in tensors if id(tensor) not in feeds), *effects], before))


def _is_idle(op: Any) -> bool:
    """Whether waiting for an operation has no effect: tf.function makes its results wait for every read."""
    return op.type in _READS and not op.control_inputs


def captured_handles(graph: Any, variables: Iterable[Any]) -> list[Any]:
    """Returns the placeholders of a function's graph that stand for the handles of these variables."""
    wanted = {id(variable.handle) for variable in variables}
    return [inner for outer, inner in graph.captures if id(outer) in wanted]
