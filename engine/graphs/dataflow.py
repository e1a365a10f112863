"""Dataflow on a ``tf.Graph``: what depends on what, and where the frozen part of a model ends."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

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


def is_random(op: Any) -> bool:
    """Whether an operation draws random numbers from a state of its own, not from seeds given to it."""
    return "Random" in op.type and not op.type.startswith("Stateless")


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


def frontier(graph: Any, *, varying: Iterable[Any], inputs: Iterable[Any]) -> list[Any]:
    """The tensors at the frost line: they depend on ``inputs`` but on nothing varying, and varying ops read them.

    Of several that are one tensor in other shapes, the first is given.

    Args:
        varying: source tensors, such as the captured handles of trained variables.
        inputs: placeholders of the examples.
    """
    varying_ops = dependents(graph, varying)
    inputs = list(inputs)
    input_dependent = dependents(graph, inputs)
    sources = {id(tensor) for tensor in inputs}
    found: dict[int, Any] = {}
    for op in graph.get_operations():
        if op not in varying_ops:
            continue
        for tensor in op.inputs:
            invariant = tensor.op not in varying_ops and (tensor.op in input_dependent or id(tensor) in sources)
            if invariant and tensor.dtype.is_floating:
                tensor = _viewed(tensor)
                found.setdefault(id(tensor), tensor)
    return list(found.values())


def _viewed(tensor: Any) -> Any:
    """The tensor that this one shows in another shape or under another name: the same bytes."""
    while tensor.op.type in ("Reshape", "Identity", "IdentityN"):
        tensor = tensor.op.inputs[tensor.value_index]
    return tensor


def captured_handles(graph: Any, variables: Iterable[Any]) -> list[Any]:
    """The placeholders by which a function graph reads those of the variables that it reads."""
    wanted = {id(variable.handle) for variable in variables}
    return [inner for outer, inner in graph.captures if id(outer) in wanted]


def saved_bytes(backward: Iterable[Any], batch_size: int) -> int:
    """Bytes of tensors with a batch axis that the backward pass reads and did not make: what is kept for it."""
    backward = set(backward)
    kept: dict[tuple[int, int], int] = {}
    for op in backward:
        for tensor in op.inputs:
            shape = tensor.shape
            if tensor.op in backward or shape.rank in (None, 0) or shape[0] is not None or not tensor.dtype.is_floating:
                continue
            elements = batch_size
            for length in shape[1:]:
                elements *= length or 1
            kept[(id(tensor.op), tensor.value_index)] = elements * tensor.dtype.size
    return sum(kept.values())


# The same bytes under another name, or no bytes of their own.
_VIEWS = frozenset(
    [
        "Reshape",
        "Identity",
        "IdentityN",
        "ExpandDims",
        "Squeeze",
        "StopGradient",
        "PreventGradient",
        "ReadVariableOp",
        "Placeholder",
    ]
)
# Kernels that write their result over an operand that nobody else needs.
_IN_PLACE = frozenset(
    [
        "Add",
        "AddV2",
        "AddN",
        "Sub",
        "Mul",
        "RealDiv",
        "Square",
        "Neg",
        "Exp",
        "Tanh",
        "TanhGrad",
        "Erf",
        "Erfc",
        "Rsqrt",
        "RsqrtGrad",
        "Sqrt",
        "Relu",
        "ReluGrad",
        "Sigmoid",
        "SigmoidGrad",
        "BiasAdd",
        "Softmax",
        "LogSoftmax",
        "SelectV2",
        "Select",
        "MulNoNan",
        "DivNoNan",
        "Maximum",
        "Minimum",
        "SquaredDifference",
        "Relu6",
        "Relu6Grad",
    ]
)
# A prime that is no dimension of any model: a size that it divides has the batch in it.
_PRIME = 8191


class Sizes(NamedTuple):
    """Bytes of a tensor: ``each`` for every example of the batch, or ``fixed``."""

    each: int
    fixed: int

    def at(self, batch_size: int) -> int:
        return self.each * batch_size + self.fixed


class Buffers:
    """When the tensors of a traced function come and go: what they take at any batch size.

    Operations are taken in the order in which they were traced, which is that of a sequential run;
    a tensor goes when the last that reads it is done. Where an elementwise kernel can write over an
    operand that goes, it does.

    Args:
        traced: the graph, its batch axis open.
        inputs: its placeholders of examples.
        results: tensors that it returns.
        kept: whether results stay until the end; else each goes with the last operation that reads it. In a traced
            function that is an Identity near the end: so gradients that are added up as they come are counted longer
            than they live, which errs on the safe side.
    """

    def __init__(self, traced: Any, inputs: Sequence[Any], results: Sequence[Any], *, kept: bool) -> None:
        needed = ancestors(results)
        self._ops = [op for op in traced.get_operations() if op in needed]
        self._sizes = _sizes(traced, self._ops, inputs)
        last: dict[Any, int] = {}
        for number, op in enumerate(self._ops):
            if op.type not in _VIEWS:  # who reads the view reads the buffer
                for tensor in op.inputs:
                    last[_buffer(tensor)] = number
        if kept:
            last |= {_buffer(tensor): len(self._ops) for tensor in results}
        self._last = last

    def peak(self, batch_size: int) -> int:
        """The most bytes that are alive at once; variables are not counted."""
        alive: dict[Any, int] = {}
        going: dict[int, list[Any]] = {}
        now = most = 0
        for number, op in enumerate(self._ops):
            mine = {_buffer(tensor) for tensor in op.inputs}
            free = sorted((alive[key] for key in mine if key in alive and self._last[key] == number), reverse=True)
            for tensor in op.outputs:
                key = _buffer(tensor)
                if key in alive or op.type in _VIEWS:
                    continue
                size = self._sizes[key].at(batch_size)
                if not size:
                    continue
                alive[key] = size
                now += size
                going.setdefault(self._last.get(key, number), []).append(key)
                if op.type in _IN_PLACE and size in free:
                    now -= size  # counted once: the operand goes below
                    free.remove(size)
                    most = max(most, now)
                    now += size
                else:
                    most = max(most, now)
            for key in going.pop(number, ()):
                now -= alive.pop(key)
        return most


def _buffer(tensor: Any) -> Any:
    """The (operation, output) whose bytes a tensor shows."""
    while tensor.op.type in _VIEWS and tensor.op.inputs and tensor.op.type != "ReadVariableOp":
        tensor = tensor.op.inputs[tensor.value_index]
    return tensor.op, tensor.value_index


def _sizes(traced: Any, ops: Sequence[Any], inputs: Sequence[Any]) -> dict[Any, Sizes]:
    """Bytes of every tensor: the graph's shapes are inferred again with a batch of ``_PRIME`` examples."""
    definition = traced.as_graph_def()
    with tf.Graph().as_default() as again:
        fed = {tensor.name: tf.compat.v1.placeholder(tensor.dtype, [_PRIME, *tensor.shape[1:]]) for tensor in inputs}
        for op in ops:  # reading a variable: its shape is known here, and not to a graph without the variable
            if op.type == "ReadVariableOp":
                fed[op.outputs[0].name] = tf.compat.v1.placeholder(op.outputs[0].dtype, op.outputs[0].shape)
        tf.graph_util.import_graph_def(definition, input_map=fed, name="")
    found: dict[Any, Sizes] = {}
    for op in ops:
        for tensor in op.outputs:
            if tensor.dtype in (tf.resource, tf.variant, tf.string) or op.type == "ReadVariableOp":
                found[op, tensor.value_index] = Sizes(0, 0)
                continue
            name = tensor.name
            shape = tensor.shape if name in fed else again.get_tensor_by_name(name).shape
            size = tensor.dtype.size
            for length in shape.as_list() if shape.rank is not None else []:
                size *= length if length is not None else 1
            found[op, tensor.value_index] = Sizes(size // _PRIME, 0) if size % _PRIME == 0 else Sizes(0, size)
    return found
