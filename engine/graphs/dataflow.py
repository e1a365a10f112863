"""Dataflow on a ``tf.Graph``: what depends on what, and where the frozen part of a model ends."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Any

import tensorflow as tf


def dependents(graph: Any, sources: Iterable[Any], *, ops: Iterable[Any] = (), but: Set[Any] = frozenset()) -> set[Any]:
    """All operations that depend on one of the source tensors or operations, by data or by control.

    ``but`` are operations that are not followed, and not among the result.
    """
    found: set[Any] = set()
    pending = [op for tensor in sources for op in tensor.consumers()]
    followers: dict[Any, list[Any]] = {}
    for op in graph.get_operations():
        for before in op.control_inputs:
            followers.setdefault(before, []).append(op)
    for op in ops:
        pending.extend(consumer for output in op.outputs for consumer in output.consumers())
        pending.extend(followers.get(op, ()))
    while pending:
        op = pending.pop()
        if op in found or op in but:
            continue
        found.add(op)
        pending.extend(consumer for output in op.outputs for consumer in output.consumers())
        pending.extend(followers.get(op, ()))
    return found


def ancestors(tensors: Iterable[Any], *, ops: Iterable[Any] = (), given: Collection[int] = ()) -> set[Any]:
    """All operations that the tensors (or operations) depend on, by data or by control; their own included.

    ``given`` are ids of tensors that are there already: what they alone depend on is not followed.
    """
    found: set[Any] = set()
    pending = [tensor.op for tensor in tensors if id(tensor) not in given] + list(ops)
    while pending:
        op = pending.pop()
        if op not in found:
            found.add(op)
            pending.extend(tensor.op for tensor in op.inputs if id(tensor) not in given)
            pending.extend(op.control_inputs)
    return found


def outside(traced: Any) -> dict[int, Any]:
    """``id`` of what stands for a captured tensor in a function's graph -> that tensor."""
    return {id(inner): outer for outer, inner in traced.captures}


def leaves(tensors: Iterable[Any]) -> list[Any]:
    """Tensors, among all that these depend on, of operations without inputs."""
    return [op.outputs[0] for op in ancestors(tensors) if not op.inputs and op.outputs]


def copy(
    tensors: Sequence[Any],
    feeds: Mapping[int, Any],
    *,
    effects: Iterable[Any] = (),
    without: Set[Any] = frozenset(),
    name: str | None = None,
) -> list[Any]:
    """Copies what the tensors need into the graph that is being built; returns the copies.

    Args:
        tensors: of another graph.
        feeds: ``id`` of a tensor of that graph -> what takes its place here; its placeholders among
            what is needed must have one.
        effects: operations that are copied too, with what they need: writes, assertions.
        without: operations that are not copied though something waits for them: they were run before.
        name: scope of the copies.

    Raises:
        ValueError: a tensor needs one of ``without``, which is not fed.
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
            copied.attr.pop("_class", None)  # colocation with what may be absent
    here = tf.compat.v1.get_default_graph()
    values: dict[int, Any] = {}
    wanted = {id(tensor) for op in needed for tensor in (*op.inputs, *op.outputs)} | {id(tensor) for tensor in tensors}
    for key, value in feeds.items():
        if key in wanted:
            values[key] = here.capture(value) if hasattr(here, "capture") else value
    read = {id(tensor): tensor for op in needed for tensor in op.inputs}
    fed = {tensor.name: values[key] for key, tensor in read.items() if key in values}
    made = [tensor for tensor in tensors if id(tensor) not in values]
    found = tf.graph_util.import_graph_def(
        definition, input_map=fed, return_elements=[t.name for t in made], name=name or "import"
    )
    copies = dict(zip((id(tensor) for tensor in made), found, strict=True))
    return [values[id(tensor)] if id(tensor) in values else copies[id(tensor)] for tensor in tensors]


def handles_read(of: Any) -> set[int]:
    """``id`` of each handle outside of a function's graph whose variable it computes with: one read in vain is none."""
    found = set()
    for outer, inner in of.captures:
        readers = inner.consumers()
        if any(op.type != "ReadVariableOp" or op.outputs[0].consumers() for op in readers):
            found.add(id(outer))
    return found


def _needed(tensors: Sequence[Any], effects: list[Any], feeds: Mapping[int, Any], without: Set[Any]) -> set[Any]:
    """The operations to be copied: those that are needed and not only waited for without effect."""
    found: set[Any] = set()
    pending = [tensor.op for tensor in tensors if id(tensor) not in feeds] + effects
    while pending:
        op = pending.pop()
        if op in found:
            continue
        if op in without:
            raise ValueError(f"{op.name} ({op.type}) would be copied, and is not to be")
        found.add(op)
        pending.extend(tensor.op for tensor in op.inputs if id(tensor) not in feeds)
        pending.extend(before for before in op.control_inputs if before not in without and not _idle(before))
    return found


def _idle(op: Any) -> bool:
    """Whether waiting for an operation is waiting for nothing: tf.function has its results wait for every read."""
    return bool(op.type == "ReadVariableOp" and not op.control_inputs)


def captured_handles(graph: Any, variables: Iterable[Any]) -> list[Any]:
    """The placeholders by which a function graph reads those of the variables that it reads."""
    wanted = {id(variable.handle) for variable in variables}
    return [inner for outer, inner in graph.captures if id(outer) in wanted]
