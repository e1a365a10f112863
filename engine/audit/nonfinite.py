"""Where a step stops being finite: the first operation, and the variable read last before it.

Every floating tensor of a traced forward and backward pass is looked at on the batch that failed. From a result that is
not finite the way back leads through tensors that are not finite either, to the operation all of whose inputs still are:
a mask of -inf that a softmax swallows is not on that way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from engine.frostline.analysis import Analysis
from engine.frostline.traced import TracedFunction
from engine.graphs import dataflow
from engine.selection.selection import Selection
from engine.training.microbatch import MicroBatch


@dataclass(frozen=True)
class Finding:
    """Attributes:
    op: name of the first operation with a result that is not finite, in the traced graph.
    kind: its type, such as "Exp"; "input" for what the batch brings, "variable" for a value read.
    part: "forward" or "backward".
    variable: path of the variable read last on the way to it; "" when none was.
    bad, of: elements that are not finite, of so many.
    """

    op: str
    kind: str
    part: str
    variable: str
    bad: int
    of: int

    def describe(self) -> str:
        """In one sentence."""
        share = f"{self.bad:,} of {self.of:,} elements"
        if self.kind == "input":
            return f"the batch's {self.op!r} is not finite: {share}"
        if self.kind == "variable":
            return f"the variable {self.variable} itself is not finite: {share}"
        after = f", after the variable {self.variable}" if self.variable else ""
        return f"the first operation that is not finite is {self.op} ({self.kind}, {self.part}{after}): {share}"


def first_nonfinite(
    micro: MicroBatch,
    selection: Selection,
    batch: Mapping[str, Any],
    *,
    loss_scale: float = 1.0,
    micro_batch_size: int | None = None,
) -> Finding | None:
    """Looks for where loss or gradients stop being finite; runs the batch once more and changes nothing.

    Args:
        micro: from ``TrainStep.micro_batch`` for such a batch.
        selection: that it was traced for.
        batch: arrays by name, "seeds" included; "index" is not used.
        loss_scale: that the step was computed with.
        micro_batch_size: of the step; each part is looked at, and the first that fails is told.

    Returns:
        None when everything that loss and gradients are made of is finite.
    """
    tensors = {name: tf.convert_to_tensor(batch[name]) for name in micro.inputs}
    images = "image" if "image" in micro.inputs else next(n for n in micro.inputs if n not in ("label", "seeds"))
    analysis = Analysis(TracedFunction(micro.function), selection, images)
    looked = [t for op in analysis.live for t in op.outputs if t.dtype.is_floating]
    look = tf.function(_counter(analysis, looked), autograph=False)
    count = int(next(iter(tensors.values())).shape[0])
    size = micro_batch_size or count
    state = [entry.variable for entry in selection.moving] + list(selection.variables.generators.values())
    before = [variable.numpy() for variable in state]
    for start in range(0, count, size):
        part = {name: value[start : start + size] for name, value in tensors.items()}
        share = tf.constant(min(size, count - start) / count, tf.float64)
        scalars = tf.fill([len(micro.terms)], tf.constant(float(count), tf.float64)), share
        found = look(part, *scalars, tf.constant(loss_scale, tf.float64)).numpy()
        for variable, value in zip(state, before, strict=True):  # a read may wait for a write
            variable.assign(value)
        bad = {id(t): int(n) for t, (n, _) in zip(looked, found, strict=True) if n}
        lengths = {id(t): int(length) for t, (_, length) in zip(looked, found, strict=True)}
        if (root := _root(analysis, micro, bad)) is not None:
            return _finding(analysis, micro, root, bad[id(root)], lengths[id(root)])
    return None


def _counter(analysis: Analysis, looked: list[Any]) -> Any:
    """(batch, divisors, share, loss_scale) -> int64 [tensors, 2]: elements that are not finite, and all."""

    def look(part: Mapping[str, Any], *others: Any) -> Any:
        feeds = dataflow.outside(analysis.graph) | {id(analysis.inputs[name]): value for name, value in part.items()}
        feeds |= {id(placeholder): value for placeholder, value in zip(analysis.others, others, strict=True)}
        rows = []
        for tensor in dataflow.copy(looked, feeds):
            bad = tf.reduce_sum(tf.cast(tf.logical_not(tf.math.is_finite(tensor)), tf.int64))
            rows.append(tf.stack([bad, tf.size(tensor, out_type=tf.int64)]))
        return tf.stack(rows)

    return look


def _root(analysis: Analysis, micro: MicroBatch, bad: Mapping[int, int]) -> Any | None:
    """The tensor that is not finite though all that it is made from is, on the way to a result."""
    results = [t for t in tf.nest.flatten(analysis.graph.structured_outputs) if id(t) in bad]
    if not results:
        return None
    place = {op: number for number, op in enumerate(analysis.graph.get_operations())}
    pending, seen, roots = list(results), {id(t) for t in results}, []
    while pending:
        tensor = pending.pop()
        before = [t for t in tensor.op.inputs if id(t) in bad]
        if not before:
            roots.append(tensor)
        for other in before:
            if id(other) not in seen:
                seen.add(id(other))
                pending.append(other)
    return min(roots, key=lambda tensor: place[tensor.op])


def _finding(analysis: Analysis, micro: MicroBatch, root: Any, bad: int, length: int) -> Finding:
    op = root.op
    kind, name = op.type, op.name
    if op.type == "Placeholder":
        kind, name = "input", analysis.name(root)
    elif op.type == "ReadVariableOp":
        kind = "variable"
    part = "forward" if op in set(micro.forward) else "backward"
    return Finding(name, kind, part, analysis.after(root), bad, length)
