"""Finds where a step stops being finite: the first such operation, and the last variable read before it.

From a non-finite result of the batch that failed, the search goes back through non-finite tensors to an operation whose
inputs are all finite. A mask of -inf that a softmax absorbs is not on that path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from engine.data.batch_names import is_cached, list_inputs
from engine.frostline.analysis import Analysis
from engine.frostline.traced import TracedFunction
from engine.graphs import dataflow
from engine.selection.selection import Selection
from engine.training.microbatch import MicroBatch


@dataclass(frozen=True)
class Finding:
    """The first operation with a non-finite result.

    Attributes:
        op: its name in the traced graph.
        kind: its type, such as "Exp"; "input" for an array of the batch, "variable" for the value of a variable.
        part: "forward" or "backward".
        variable: the path of the last variable read before it; "" if there is none.
        bad, of: the number of non-finite elements, and of all elements.
    """

    op: str
    kind: str
    part: str
    variable: str
    bad: int
    of: int

    def describe(self) -> str:
        """The finding as one clause."""
        share = f"{self.bad:,} of {self.of:,} elements"
        if self.kind == "input":
            return f"{self.op!r} in the batch is not finite: {share}"
        if self.kind == "variable":
            return f"the variable {self.variable} itself is not finite: {share}"
        after = f", after the variable {self.variable}" if self.variable else ""
        return f"the first operation with a non-finite result is {self.op} ({self.kind}, {self.part}{after}): {share}"


def first_nonfinite(
    micro: MicroBatch,
    selection: Selection,
    batch: Mapping[str, Any],
    *,
    loss_scale: float = 1.0,
    micro_batch_size: int | None = None,
) -> Finding | None:
    """Finds where the loss or a gradient stops being finite; runs the batch once more and changes nothing.

    Args:
        micro, selection: from ``TrainStep.micro_batch`` for such a batch, and the selection that it was traced for.
        batch: arrays by name, including "seeds"; "index" is not used.
        loss_scale, micro_batch_size: those of the step; the first micro-batch that fails is reported.

    Returns:
        The finding; None if the loss, the gradients and everything that they are computed from are finite.
    """
    tensors = {name: tf.convert_to_tensor(batch[name]) for name in micro.inputs}
    analysis = Analysis(
        TracedFunction(micro.function), selection, list_inputs(micro.inputs) or tuple(filter(is_cached, micro.inputs))
    )
    looked = [t for op in analysis.live for t in op.outputs if t.dtype.is_floating]
    look = tf.function(_counter(analysis, looked), autograph=False)
    count = int(next(iter(tensors.values())).shape[0])
    size = micro_batch_size or count
    state = micro.moved_variables(selection)
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
    """(batch, divisors, share, loss_scale) -> int64 [tensors, 2]: the numbers of non-finite and of all elements."""

    def look(part: Mapping[str, Any], *others: Any) -> Any:
        feeds = dataflow.captured_tensors(analysis.graph)
        feeds |= {id(analysis.inputs[name]): value for name, value in part.items()}
        feeds |= {id(placeholder): value for placeholder, value in zip(analysis.others, others, strict=True)}
        rows = []
        for tensor in dataflow.copy_tensors(looked, feeds):
            bad = tf.reduce_sum(tf.cast(tf.logical_not(tf.math.is_finite(tensor)), tf.int64))
            rows.append(tf.stack([bad, tf.size(tensor, out_type=tf.int64)]))
        return tf.stack(rows)

    return look


def _root(analysis: Analysis, micro: MicroBatch, bad: Mapping[int, int]) -> Any | None:
    """The first non-finite tensor, on the way to a result, that is computed from finite ones alone."""
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
    kind = {"Placeholder": "input", "ReadVariableOp": "variable"}.get(op.type, op.type)
    name = analysis.input_name(root) if kind == "input" else op.name
    part = "forward" if op in set(micro.forward) else "backward"
    return Finding(name, kind, part, analysis.last_variable(root), bad, length)
