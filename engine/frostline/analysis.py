"""Classifies the operations of a traced graph, and finds the cheapest cut between its frozen and its trained part.

An operation is varying, invariant, or invariant and input-dependent. Only input-dependent tensors can cross the frost line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from engine.errors import InputError
from engine.frostline.dependence import Dependence
from engine.frostline.mincut import UNBOUNDED, Network
from engine.frostline.traced import Compute, Traced
from engine.graphs import dataflow
from engine.graphs.batch_shapes import SHAPES, BatchShapes, Shape
from engine.graphs.reach import reach
from engine.selection.selection import Selection

_UNIT = 1000  # capacities are integers: thousandths of a byte
_MIXING = frozenset(["FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"])


class AnalysisError(InputError):
    """The batch has no input of the name given for the images."""


@dataclass(frozen=True)
class Crossing:
    """A tensor that may cross the frost line.

    Attributes:
        tensor, rows: the tensor in the graph, [rows * B, ...].
        shape: the shape for one example; it begins with ``rows`` unless that is 1.
    """

    tensor: Any
    rows: int
    shape: tuple[int, ...]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row: that of the tensor without its first axis."""
        return self.shape[1:] if self.rows > 1 else self.shape

    @property
    def bytes(self) -> int:
        """The size of one example in bytes."""
        return int(self.tensor.dtype.size) * math.prod(self.shape)


class Analysis:
    """Classifies the operations of a graph by what they depend on.

    Args:
        traced: the graph, with the tensors and operations that a step needs from it.
        selection: the variables that train and move.
        inputs: the names of the model's inputs in the batch; AnalysisError is raised if it lacks one.
        shapes: the shapes in the graph, if they have been inferred already.

    Attributes:
        examples: the placeholders of the model's inputs; ``graph``, ``inputs`` and ``others`` are those of ``traced``.
        live: the operations that a run needs, in the order in which they were traced.
        dependence: the varying operations, and why they vary.
        input_dependent: the invariant operations that depend on the values of the model's inputs.
        tainted: the input-dependent operations whose results mix examples, as far as shapes tell.
        forbidden: tensors, by ``id``, that were found to mix examples when they were run.
    """

    def __init__(
        self, traced: Traced, selection: Selection, inputs: Sequence[str], *, shapes: BatchShapes | None = None
    ) -> None:
        if missing := [name for name in inputs if name not in traced.inputs]:
            raise AnalysisError(f"inputs={missing[0]!r}: the batch has {', '.join(sorted(traced.inputs))}")
        if not inputs:
            raise AnalysisError(f"inputs: the batch has no input of a model, only {', '.join(sorted(traced.inputs))}")
        self.traced, self.selection = traced, selection
        self.graph, self.inputs, self.others = traced.graph, traced.inputs, traced.others
        self.examples = tuple(self.inputs[name] for name in inputs)
        self._sources = {placeholder.op for placeholder in self.examples}
        needed = dataflow.ancestors(traced.results, ops=traced.effects)
        self.live = [op for op in self.graph.get_operations() if op in needed]
        self.dependence = Dependence(traced, selection, self.examples, self.live)
        self.shapes = shapes or BatchShapes(self.graph, list(self.inputs.values()), self.live)
        invariant = [op for op in self.live if op not in self.dependence.varying]
        # only the batch size can change in the shape of an invariant tensor, and it is known above the line too
        self._sizes = {op for op in invariant if op.type in SHAPES and all(self.shapes.certain(t) for t in op.inputs)}
        reached = dataflow.dependents(self.graph, self.examples, but=self._sizes)
        self.input_dependent = {op for op in invariant if op in reached}
        self.forbidden: dict[int, Any] = {}
        self.tainted = self._mixed()
        self._again: set[Any] = set()

    @property
    def other_inputs(self) -> dict[str, Any]:
        """The placeholders of the batch that are not inputs of the model, by name."""
        return {name: given for name, given in self.inputs.items() if given.op not in self._sources}

    # ---- names

    def input_name(self, placeholder: Any) -> str:
        """The name of an input in the batch."""
        names = {id(tensor): name for name, tensor in self.inputs.items()}
        return names.get(id(placeholder), placeholder.op.name)

    @cached_property
    def _paths(self) -> dict[Any, str]:
        """Operation -> the path of the variable that it reads."""
        found: dict[Any, str] = {}
        for entry in self.selection.variables:
            if (handle := self.traced.handle(entry.path, entry.variable)) is not None:
                found |= dict.fromkeys(handle.consumers(), entry.path)
        return found

    def last_variable(self, tensor: Any) -> str:
        """The path of the last variable read, in traced order, on the way to a tensor; "" if there is none."""
        needed = dataflow.ancestors([tensor])
        read = [self._paths[op] for op in self.live if op in needed and op in self._paths]
        return read[-1] if read else ""

    def count_macs(self, ops: Iterable[Any]) -> int:
        """Multiply-adds per example; the bodies of calls, branches and loops are not counted."""
        return sum(self.shapes.macs(op) for op in ops)

    # ---- the cut

    def as_crossing(self, tensor: Any) -> Crossing | None:
        """A tensor as one that crosses the line; None if it must not, as far as shapes tell."""
        if tensor.op in self.tainted or id(tensor) in self.forbidden or not self.traced.can_cut_at(tensor):
            return None
        if not (tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool):
            return None
        found = self.shapes.rows(tensor)
        if found is None:
            return None
        rows, shape = found
        return Crossing(tensor, rows, shape if rows == 1 else (rows, *shape))

    def find_candidates(self) -> list[Crossing]:
        """All tensors that could cross the line, as far as shapes tell."""
        found = [self.as_crossing(tensor) for op in self.live if op in self.input_dependent for tensor in op.outputs]
        return [crossing for crossing in found if crossing is not None]

    def find_views(self, crossing: Crossing) -> list[Crossing]:
        """The tensor itself, and the tensors that hold the same bytes in another shape."""
        found = [crossing]
        while found[-1].tensor.op.type in ("Reshape", "Identity", "Squeeze", "ExpandDims"):
            before = self.as_crossing(found[-1].tensor.op.inputs[0])
            if before is None or before.bytes != crossing.bytes:
                break
            found.append(before)
        return found

    def forbid(self, tensors: Iterable[Any]) -> None:
        """Excludes tensors from every further cut."""
        self.forbidden |= {id(tensor): tensor for tensor in tensors}

    def find_boundary(self) -> list[tuple[Any, Any]]:
        """Pairs of an input-dependent tensor and the varying operation that reads it (None for a result)."""
        input_dependent = self.input_dependent | self._sources
        read = [
            (t, op) for op in self.live if op in self.dependence.varying for t in op.inputs if t.op in input_dependent
        ]
        return read + [(tensor, None) for tensor in self.traced.results if tensor.op in input_dependent]

    def min_cut(self, price: float) -> Sequence[Crossing] | None:
        """The tensors that cross most cheaply, where recomputing a multiply-add costs ``price`` bytes; None without a cut."""
        wanted = {id(tensor): tensor for tensor, _ in self.find_boundary()}
        needed = (dataflow.ancestors(wanted.values()) & self.input_dependent) | self._sources
        ops = [op for op in self.live if op in needed] + [t.op for t in self.examples if t.op not in self.live]
        network = Network()
        source, sink = network.add_node(), network.add_node()
        nodes = {op: network.add_node() for op in ops}
        for op in ops:
            cost = UNBOUNDED if op in self._sources else round(_UNIT * price * self.shapes.work(op))
            network.add_edge(source, nodes[op], cost)
            for tensor in op.outputs:
                readers = [nodes[reader] for reader in dict.fromkeys(tensor.consumers()) if reader in nodes]
                readers += [sink] if id(tensor) in wanted else []
                if readers:
                    crosses = self.as_crossing(tensor)
                    across = network.add_node()
                    size = UNBOUNDED if crosses is None else _UNIT * crosses.bytes
                    network.add_edge(nodes[op], across, size)
                    for reader in readers:
                        network.add_edge(across, reader, UNBOUNDED)
        price_of_all, above = network.min_cut(source, sink)
        if price_of_all >= UNBOUNDED:
            return None
        again = {op for op in ops if nodes[op] in above}
        found = []
        for op in ops:
            for tensor in op.outputs if op not in again else ():
                if id(tensor) in wanted or any(reader in again for reader in tensor.consumers()):
                    crossing = self.as_crossing(tensor)
                    if crossing is None:
                        return None
                    found.append(crossing)
        self._again = again
        return found

    def ops_below(self) -> set[Any]:
        """The input-dependent operations that are not recomputed above the last cut."""
        return (self.input_dependent | self._sources) - self._again

    # ---- functions

    def build_function(self, tensors: Sequence[Any]) -> Compute:
        """A function from the model's inputs to these invariant tensors, with the assertions and prints below the line."""
        speaks = [op for op in self.live if op in self.input_dependent and self.dependence.kinds.asserts_or_prints(op)]
        return self.traced.build_function(self.examples, tensors, [end for op in speaks for end in self._fetchable(op)])

    def _fetchable(self, op: Any) -> list[Any]:
        """The operation itself if a run can fetch it, else the first such operation after it."""
        if self.traced.can_fetch(op):
            return [op]
        after = dataflow.dependents(self.graph, [], ops=[op]) & self.input_dependent
        return [end for end in self.live if end in after and self.traced.can_fetch(end)][:1]

    def find_effects(self) -> list[Any]:
        """The varying operations with effects: a copy of the suffix must not lose them."""
        return [op for op in self.live if op in self.dependence.varying and self.dependence.kinds.has_effect(op)]

    def shape_values(self, batch_size: Any, without: Set[Any] | None) -> list[tuple[Any, Any]]:
        """Pairs of a tensor that holds the shape of an invariant tensor, and that shape for a batch of this size.

        Shapes are arrays if the size is a number, and tensors if it is one. ``without`` restricts the pairs to shapes of
        tensors that these operations make.
        """
        found = []
        for op in self._sizes:
            if without is not None and not any(tensor.op in without for tensor in op.inputs):
                continue
            for tensor, output in zip(op.inputs, op.outputs, strict=True):
                found.append((output, _measured(op.type, self.shapes(tensor) or (), batch_size, output.dtype)))
        return found

    # ---- tensors that mix examples, by their shapes

    def find_mixing_ops(self) -> list[Any]:
        """The first operations that mix examples, as far as shapes tell."""
        return [op for op in self.live if op in self.tainted and op not in self._after_mixing]

    def _mixed(self) -> set[Any]:
        """The input-dependent operations that mix examples by their shapes alone, and all that read their results."""
        sized = self._counting()
        starts = [
            op
            for op in self.live
            if op in self.input_dependent and (self._mixes(op) or sized & {t.op for t in op.inputs})
        ]

        def readers(op: Any) -> list[Any]:
            found = [reader for output in op.outputs for reader in output.consumers()]
            return [reader for reader in found if reader in self.input_dependent]

        self._after_mixing = reach([reader for op in starts for reader in readers(op)], readers).keys()
        return self._after_mixing | set(starts)

    def _mixes(self, op: Any) -> bool:
        if op.type in _MIXING:
            return bool(op.get_attr("is_training"))
        read = [output for output in op.outputs if output.consumers()]
        return any(not self.shapes.follows(output) or self.shapes.crossed(output) for output in read)

    def _counting(self) -> set[Any]:
        """The operations that compute a number from the batch size: what reads them depends on the number of examples."""
        after = dataflow.dependents(self.graph, [output for op in self._sizes for output in op.outputs])
        others = self.input_dependent | self.dependence.varying
        casts = [op for op in self.live if op in after and op.type == "Cast" and op not in others]
        casts = [op for op in casts if op.outputs[0].dtype.is_floating]
        if not casts:
            return set()
        outputs = [op.outputs[0] for op in casts]
        counted = [self.traced.run(outputs, self.shape_values(size, None)) for size in (2, 3)]
        pairs = zip(casts, *counted, strict=True)
        found = {op for op, two, three in pairs if not np.array_equal(two, three)}
        return found | dataflow.dependents(self.graph, [op.outputs[0] for op in found], but=others)


def _measured(kind: str, shape: Shape, batch_size: Any, dtype: Any) -> Any:
    """The output of an operation of ``SHAPES`` for a tensor of this shape."""
    if isinstance(batch_size, int):
        lengths = [length.each * batch_size + length.fixed for length in shape]
        value = {"Rank": len(shape), "Size": math.prod(lengths)}.get(kind, lengths)
        return np.array(value, dtype.as_numpy_dtype)
    size = tf.cast(batch_size, dtype)
    stacked = tf.stack(
        [n.each * size + n.fixed if n.each else tf.constant(n.fixed, dtype) for n in shape] or tf.zeros([0], dtype)
    )
    if kind == "Rank":
        return tf.constant(len(shape), dtype)
    return tf.reduce_prod(stacked) if kind == "Size" else stacked
