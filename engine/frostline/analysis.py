"""What a graph is made of, seen from the images: what is varying, what is invariant and hangs on them, what may cross."""

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
from engine.selection.selection import Selection

_UNIT = 1000  # capacities are integers: thousandths of a byte
_MIXING = frozenset(["FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"])


class AnatomyError(InputError):
    """A graph without the input that is asked for."""


@dataclass(frozen=True)
class Crossing:
    """A tensor that may cross the line.

    Attributes:
        tensor: of the graph, [rows * B, ...].
        rows: that an example has.
        shape: of one example; begins with ``rows`` where that is not 1.
    """

    tensor: Any
    rows: int
    shape: tuple[int, ...]

    @property
    def own(self) -> tuple[int, ...]:
        """The tensor's own shape but for its first length."""
        return self.shape[1:] if self.rows > 1 else self.shape

    @property
    def bytes(self) -> int:
        size = int(self.tensor.dtype.size)
        for length in self.shape:
            size *= length
        return size


class Analysis:
    """A graph taken apart.

    Args:
        traced: the graph, and what a step wants of it.
        selection: what trains and moves.
        images: name of the images in the batch.

    Attributes:
        traced, selection: as given.
        graph, inputs, others: of ``traced``.
        images: the placeholder of the images.
        live: operations that a run needs, in the order of the trace.
        input_dependent: invariant operations that depend on the images' values.
        tainted: input_dependent operations whose results mix examples, as far as shapes tell.
        forbidden: tensors by ``id`` that were found to mix them.
        dependence: what is varying, and why.

    Raises:
        AnatomyError: the batch has no such images.
    """

    def __init__(self, traced: Traced, selection: Selection, images: str) -> None:
        if images not in traced.inputs:
            raise AnatomyError(f"images={images!r}: the batch has {', '.join(sorted(traced.inputs))}")
        self.traced, self.selection = traced, selection
        self.graph, self.inputs, self.others = traced.graph, traced.inputs, traced.others
        self.images = self.inputs[images]
        needed = dataflow.ancestors(traced.results, ops=traced.effects)
        self.live = [op for op in self.graph.get_operations() if op in needed]
        self.dependence = Dependence(traced, selection, self.images, self.live)
        self.shapes = BatchShapes(self.graph, list(self.inputs.values()), self.live)
        invariant = [op for op in self.live if op not in self.dependence.varying]
        # of a invariant tensor's shape only the batch size can change: that is known above the line too
        self._sizes = {op for op in invariant if op.type in SHAPES and all(self.shapes.certain(t) for t in op.inputs)}
        reached = dataflow.dependents(self.graph, [self.images], but=self._sizes)
        self.input_dependent = {op for op in invariant if op in reached}
        self.forbidden: dict[int, Any] = {}
        self.tainted = self._mixed()
        self._again: set[Any] = set()

    # ---- names

    def name(self, placeholder: Any) -> str:
        """Of an input."""
        names = {id(tensor): name for name, tensor in self.inputs.items()}
        return names.get(id(placeholder), placeholder.op.name)

    @cached_property
    def _paths(self) -> dict[Any, str]:
        """Operation -> path of the variable that it reads."""
        found: dict[Any, str] = {}
        for entry in self.selection.variables:
            if (handle := self.traced.handle(entry.path, entry.variable)) is not None:
                found |= dict.fromkeys(handle.consumers(), entry.path)
        return found

    def after(self, tensor: Any) -> str:
        """Path of the variable that was read last, in the order of the trace, on the way to a tensor."""
        needed = dataflow.ancestors([tensor])
        read = [self._paths[op] for op in self.live if op in needed and op in self._paths]
        return read[-1] if read else ""

    def macs(self, ops: Iterable[Any]) -> int:
        """Multiply-adds for an example; what happens inside calls, branches and loops is not counted."""
        return sum(self.shapes.macs(op) for op in ops)

    # ---- the cut

    def crossing(self, tensor: Any) -> Crossing | None:
        """How a tensor would cross; None where it must not, as far as shapes tell."""
        if tensor.op in self.tainted or id(tensor) in self.forbidden or not self.traced.crosses(tensor):
            return None
        if not (tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool):
            return None
        found = self.shapes.rows(tensor)
        if found is None:
            return None
        rows, shape = found
        return Crossing(tensor, rows, shape if rows == 1 else (rows, *shape))

    def candidates(self) -> list[Crossing]:
        """All tensors that could cross, as far as shapes tell."""
        found = [self.crossing(tensor) for op in self.live if op in self.input_dependent for tensor in op.outputs]
        return [crossing for crossing in found if crossing is not None]

    def views(self, crossing: Crossing) -> list[Crossing]:
        """The tensor, and those of which it is only another shape."""
        found = [crossing]
        while found[-1].tensor.op.type in ("Reshape", "Identity", "Squeeze", "ExpandDims"):
            before = self.crossing(found[-1].tensor.op.inputs[0])
            if before is None or before.bytes != crossing.bytes:
                break
            found.append(before)
        return found

    def forbid(self, tensors: Iterable[Any]) -> None:
        """These do not cross."""
        self.forbidden |= {id(tensor): tensor for tensor in tensors}

    def wanted(self) -> list[tuple[Any, Any]]:
        """(input_dependent tensor, varying operation that reads it, or None for a result)."""
        input_dependent = self.input_dependent | {self.images.op}
        read = [
            (t, op) for op in self.live if op in self.dependence.varying for t in op.inputs if t.op in input_dependent
        ]
        return read + [(tensor, None) for tensor in self.traced.results if tensor.op in input_dependent]

    def cut(self, price: float) -> Sequence[Crossing] | None:
        """The cheapest tensors to cross; None when there are none.

        Args:
            price: bytes that doing a multiply-add again is worth.
        """
        wanted = {id(tensor): tensor for tensor, _ in self.wanted()}
        needed = (dataflow.ancestors(wanted.values()) & self.input_dependent) | {self.images.op}
        ops = [op for op in self.live if op in needed] + [op for op in [self.images.op] if op not in self.live]
        network = Network()
        source, sink = network.node(), network.node()
        nodes = {op: network.node() for op in ops}
        for op in ops:
            cost = UNBOUNDED if op is self.images.op else round(_UNIT * price * self.shapes.work(op))
            network.edge(source, nodes[op], cost)
            for tensor in op.outputs:
                readers = [nodes[reader] for reader in dict.fromkeys(tensor.consumers()) if reader in nodes]
                readers += [sink] if id(tensor) in wanted else []
                if readers:
                    crosses = self.crossing(tensor)
                    across = network.node()
                    size = UNBOUNDED if crosses is None else _UNIT * crosses.bytes
                    network.edge(nodes[op], across, size)
                    for reader in readers:
                        network.edge(across, reader, UNBOUNDED)
        price_of_all, above = network.cut(source, sink)
        if price_of_all >= UNBOUNDED:
            return None
        again = {op for op in ops if nodes[op] in above}
        found = []
        for op in ops:
            for tensor in op.outputs if op not in again else ():
                if id(tensor) in wanted or any(reader in again for reader in tensor.consumers()):
                    crossing = self.crossing(tensor)
                    if crossing is None:
                        return None
                    found.append(crossing)
        self._again = again
        return found

    def below(self) -> set[Any]:
        """Warm operations that are not done again above the last cut."""
        return (self.input_dependent | {self.images.op}) - self._again

    # ---- functions

    def function_of(self, tensors: Sequence[Any]) -> Compute:
        """``images -> these invariant tensors``; what asserts or prints below the line does it here."""
        speaks = [op for op in self.live if op in self.input_dependent and self.dependence.kinds.speaks(op)]
        return self.traced.function_of(self.images, tensors, [end for op in speaks for end in self._ends(op)])

    def _ends(self, op: Any) -> list[Any]:
        """The operation, or the first after it, that a run can be asked for."""
        if self.traced.fetches(op):
            return [op]
        after = dataflow.dependents(self.graph, [], ops=[op])
        return [end for end in self.live if end in after and end in self.input_dependent and self.traced.fetches(end)][
            :1
        ]

    def effects(self) -> list[Any]:
        """Varying operations with effects: a copy of what is above must not lose them."""
        return [op for op in self.live if op in self.dependence.varying and self.dependence.kinds.has_effect(op)]

    def shape_values(self, batch_size: Any, without: Set[Any] | None) -> list[tuple[Any, Any]]:
        """(tensor that holds a invariant tensor's shape, that shape for a batch of this size).

        Those of tensors that come from ``without``, which are not there to be asked; None: all. The shapes are arrays
        where the size is a number, tensors where it is one.
        """
        found = []
        for op in self._sizes:
            if without is not None and not any(tensor.op in without for tensor in op.inputs):
                continue
            for tensor, output in zip(op.inputs, op.outputs, strict=True):
                found.append((output, _measured(op.type, self.shapes(tensor) or (), batch_size, output.dtype)))
        return found

    # ---- tensors that mix examples, by their shapes

    def mixing_ops(self) -> list[Any]:
        """Where examples are mixed first, as far as shapes tell."""
        return [
            op for op in self.live if op in self.input_dependent and op in self.tainted and op not in self._bytainted
        ]

    def _mixed(self) -> set[Any]:
        """Warm operations that mix examples by their shapes alone, and all that reads their results."""
        sized = self._counting()
        starts = [
            op
            for op in self.live
            if op in self.input_dependent and (self._mixes(op) or sized & {t.op for t in op.inputs})
        ]
        self._bytainted: set[Any] = set()
        pending = list(starts)
        while pending:
            for output in pending.pop().outputs:
                for reader in output.consumers():
                    if reader in self.input_dependent and reader not in self._bytainted:
                        self._bytainted.add(reader)
                        pending.append(reader)
        return self._bytainted | set(starts)

    def _mixes(self, op: Any) -> bool:
        if op.type in _MIXING:
            return bool(op.get_attr("is_training"))
        read = [output for output in op.outputs if output.consumers()]
        return any(not self.shapes.follows(output) or self.shapes.crossed(output) for output in read)

    def _counting(self) -> set[Any]:
        """Operations that give numbers computed from the batch size: what reads them depends on how many examples there are."""
        after = dataflow.dependents(self.graph, [output for op in self._sizes for output in op.outputs])
        casts = [
            op
            for op in self.live
            if op in after and op.type == "Cast" and op not in self.input_dependent | self.dependence.varying
        ]
        casts = [op for op in casts if op.outputs[0].dtype.is_floating]
        if not casts:
            return set()

        outputs = [op.outputs[0] for op in casts]
        counted = [self.traced.run(outputs, self.shape_values(size, None)) for size in (2, 3)]
        pairs = zip(casts, *counted, strict=True)
        found = {op for op, two, three in pairs if not np.array_equal(two, three)}
        reached = dataflow.dependents(
            self.graph, [op.outputs[0] for op in found], but=self.input_dependent | self.dependence.varying
        )
        return found | reached


def _measured(kind: str, shape: Shape, batch_size: Any, dtype: Any) -> Any:
    """What an operation of ``SHAPES`` gives for a tensor of this shape."""
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
