"""The frost line: a traced step cut in two, where what is frozen ends and what still moves begins.

Loss and gradients are traced first and cut afterwards, so that nothing has to be differentiated again. What is invariant
(engine.frostline.dependence) and depends on the images is either computed once (the prefix) or computed again in every step (the
suffix): the minimum cut of bytes that cross for an example, and a small price for each multiply-add that is done again.
Only tensors cross whose row i depends on example i alone: reasoned from shapes, and then checked by running them.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine.errors import InputError
from engine.frostline import explain, row_independence
from engine.frostline.analysis import Analysis, Crossing
from engine.frostline.fingerprint import Digests, FingerprintError
from engine.frostline.split import FrostTensor, Same, feeds_of, reshaped, suffix_of
from engine.frostline.traced import Compute, Traced, TracedFunction
from engine.graphs import dataflow
from engine.selection.selection import Selection
from engine.sizes import format_bytes
from engine.training.microbatch import MicroBatch

MAC_PRICE = 0.02  # bytes that doing a multiply-add again is worth; with 0 the line moves too far up
_AT_ONCE = 32  # tensors that are checked in one run, whose values are held
_CHEAPER = (1.0, 0.1, 0.01, 0.0)  # of the price, for a limit on bytes


class FrostLineError(InputError):
    """A batch that does not fit a frost line."""


@dataclass(frozen=True)
class Refused:
    """No frost line, and why: a sentence for each reason, with what would make it legal."""

    reasons: tuple[str, ...]

    def describe(self) -> str:
        return "no frost line: " + "; ".join(self.reasons)


@dataclass(frozen=True)
class Cut:
    """Where a graph can be cut.

    Attributes:
        analysis: of the graph.
        crossing: what crosses.
        prefix: images -> those tensors.
    """

    analysis: Analysis
    crossing: Sequence[Crossing]
    prefix: Compute


class Line(abc.ABC):
    """A frost line: what crosses it, how that is computed, and what it saves.

    Args:
        found: from ``find``.
        forward: operations of the forward pass.

    Attributes:
        tensors: what crosses.
        images: name of the images in a batch.
        forward_share: of the forward pass's multiply-adds, the share below the line.
        step_share: of all multiply-adds of the step, forward and backward.
        macs: multiply-adds of the whole step for an example.
        notes: what keeps the line lower than the selection alone would, a sentence each.
        selection: what trains.
    """

    def __init__(self, found: Cut, forward: Sequence[Any]) -> None:
        analysis = self._analysis = found.analysis
        self._crossing, self._prefix = found.crossing, found.prefix
        self.images, self.selection = analysis.name(analysis.images), analysis.selection
        self.tensors = tuple(
            FrostTensor(key, c.tensor.name.removesuffix(":0"), c.shape, c.tensor.dtype, analysis.after(c.tensor))
            for key, c in zip(_keys(analysis, len(found.crossing)), found.crossing, strict=True)
        )
        kept = analysis.macs(analysis.below() & dataflow.ancestors([c.tensor for c in found.crossing]))
        of_forward, self.macs = analysis.macs(forward), analysis.macs(analysis.live)
        self.forward_share = kept / of_forward if of_forward else 0.0
        self.step_share = kept / self.macs if self.macs else 0.0
        self.notes = explain.lowered_by(analysis)

    @property
    def bytes(self) -> int:
        """That cross for one example."""
        return sum(tensor.bytes for tensor in self.tensors)

    def prefix(self, images: Any) -> tuple[Any, ...]:
        """The tensors [B, *shape] of images [B, ...]; compiled, for any B."""
        return tuple(reshaped(v, c.shape) for v, c in zip(self._prefix(images), self._crossing, strict=True))

    def below(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch with the tensors in place of the images."""
        if self.images not in batch:
            raise FrostLineError(f"batch: it has no {self.images!r}; it has {', '.join(batch)}")
        values = dict(zip((tensor.key for tensor in self.tensors), self.prefix(batch[self.images]), strict=True))
        return {name: value for name, value in batch.items() if name != self.images} | values

    def specs(self, batch: Mapping[str, Any]) -> dict[str, tf.TensorSpec]:
        """Dtypes and shapes of ``below(batch)``, for any batch size, without computing it."""
        found = {n: tf.TensorSpec([None, *v.shape[1:]], v.dtype) for n, v in batch.items() if n != self.images}
        return found | {t.key: tf.TensorSpec([None, *t.shape], t.dtype) for t in self.tensors}

    def norm(self, images: Any) -> float:
        """Mean over examples of the L2 norm of the tensors: it cannot move."""
        pairs = zip(self.tensors, self.prefix(images), strict=True)
        found = [np.asarray(value).astype(np.float64) for tensor, value in pairs if tensor.dtype.is_floating]
        squares = [np.sum(np.square(value), axis=tuple(range(1, value.ndim))) for value in found]
        return float(np.mean(np.sqrt(np.sum(squares, axis=0)))) if squares else 0.0

    def digest(self) -> str:
        """SHA-256 of what the prefix computes: its operations, and the values of all variables that it reads now.

        The same in every process for the same model, selection aside, and another one when anything changed that
        could change a feature. Names of nodes and variables do not count.

        Raises:
            TracedError, FingerprintError: the prefix reads what has no value, or has a loop of TF1's control flow.
        """
        tensors, images = [crossing.tensor for crossing in self._crossing], self._analysis.images
        named = self._analysis.traced.outside(dataflow.leaves(tensors), by_value=True)
        named[id(images)] = f"images {images.dtype.name} {images.shape.as_list()[1:]}"
        found = Digests(self._analysis.graph, lambda leaf: named.get(id(leaf))).of(tensors)
        return hashlib.sha256(f"{tf.__version__} {found}".encode()).hexdigest()

    def describe(self) -> str:
        """One paragraph: where the line is, what crosses, what it saves."""
        what = " and ".join(
            f"{t.name} {list(t.shape)} {t.dtype.name}" + (f" (after {t.after})" if t.after else "")
            for t in self.tensors
        )
        size = f"{self.bytes:,} bytes" + (f" ({format_bytes(self.bytes)})" if self.bytes >= 1024 else "")
        text = (
            f"the frost line is at {what}: {size} an example, with "
            f"{self.forward_share:.1%} of the forward pass and {self.step_share:.1%} of the step below it"
        )
        return ". ".join([text, *self.notes])

    @abc.abstractmethod
    def after(self, lower: Line) -> Any:
        """The function from the tensors of a lower line, [B, ...] by their keys, to those of this one, [B, ...].

        For a later phase of the same model whose line lies higher. Refused where a tensor of the lower line is not
        computed below this one, or does not suffice.
        """

    def in_evaluation(self, traced: Traced) -> tuple[Analysis, Same] | Refused:
        """An evaluation's graph, and which of its tensors are the line's."""
        other = Analysis(traced, self.selection, self.images)
        try:
            same = self.same_in(other)
        except FingerprintError as error:
            return Refused((str(error),))
        if isinstance(same, str):
            return Refused((f"in evaluation the frozen part computes no {same}: it differs by mode",))
        return other, same

    def needs_images(self, what: str) -> Refused:
        """Said of what cannot be computed from the tensors that are kept."""
        return Refused((f"{what} needs the images ({self.images}) besides what is kept",))

    def not_below(self, tensor: str) -> Refused:
        """Said of a tensor of a lower line."""
        return Refused((f"{tensor} of the lower line is not computed below the higher one",))

    def same_in(self, other: Analysis, *, by_value: bool = False) -> Same | str:
        """Which tensors of another graph are the line's; or the name of one that the other graph does not compute.

        Args:
            other: of that graph.
            by_value: variables of equal values are the same; else they are if they are one variable.

        Raises:
            TracedError, FingerprintError: as ``digest``.
        """

        def names(analysis: Analysis, crossing: Sequence[Crossing]) -> list[str]:
            tensors = [one.tensor for one in crossing]
            named = {id(placeholder): f"input {name}" for name, placeholder in analysis.inputs.items()}
            named |= analysis.traced.outside(dataflow.leaves(tensors), by_value=by_value)
            return Digests(analysis.graph, lambda leaf: named.get(id(leaf))).of(tensors)

        wanted, invariant = names(self._analysis, self._crossing), other.candidates()
        found: dict[str, list[Crossing]] = {}
        for crossing, name in zip(invariant, names(other, invariant), strict=True):
            found.setdefault(name, []).append(crossing)
        same: Same = {}
        for number, (tensor, name) in enumerate(zip(self.tensors, wanted, strict=True)):
            if name not in found:
                return tensor.name
            for crossing in found[name]:
                same |= {id(c.tensor): (number, c) for c in other.views(crossing)}
        return same


class FrostLine(Line):
    """A traced step, cut.

    Attributes:
        suffix: what is above; its function takes the tensors in place of the images, and returns what the whole did.
    """

    def __init__(self, found: Cut, micro: MicroBatch) -> None:
        super().__init__(found, micro.forward)
        same = {id(c.tensor): (number, c) for number, c in enumerate(found.crossing)}
        made = suffix_of(found.analysis, self.tensors, same, without=found.analysis.below(), micro=micro)

        def copied(ops: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(made.ops[op.name] for op in ops if op.name in made.ops)

        self.suffix = MicroBatch(
            function=made.function,
            terms=micro.terms,
            metrics=micro.metrics,
            weights=made.weights,
            forward=copied(micro.forward),
            backward=copied(micro.backward),
        )

    @property
    def frozen_below(self) -> tuple[str, ...]:
        """Paths of the variables that only what is below the line computes with, in model order."""
        needed = dataflow.ancestors([crossing.tensor for crossing in self._crossing])
        above = dataflow.handles_read(self.suffix.graph)
        found = []
        for entry in self.selection.variables:
            handle = self._analysis.traced.handle(entry.path, entry.variable)
            readers = [op for op in (handle.consumers() if handle is not None else ()) if op in needed]
            # a value that is read in vain, for a control edge, is not computed with
            used = any(op.type != "ReadVariableOp" or needed & set(op.outputs[0].consumers()) for op in readers)
            if used and id(entry.variable.handle) not in above:
                found.append(entry.path)
        return tuple(found)

    def cut(self, function: Any) -> Any:
        """Cuts another traced function of the same images, such as an evaluation's, at the same tensors.

        Args:
            function: a concrete function whose first argument is the batch.

        Returns:
            The function that takes the tensors in place of the images, or Refused: where it does not compute these
            very tensors (dropout or batch moments differ between training and inference), or needs the images besides.
        """
        found = self.in_evaluation(TracedFunction(function))
        if isinstance(found, Refused):
            return found
        try:
            return suffix_of(found[0], self.tensors, found[1], without={found[0].images.op}).function
        except ValueError:
            return self.needs_images("evaluation")

    def after(self, lower: Line) -> Any:
        same = lower.same_in(self._analysis)
        if isinstance(same, str):
            return self.not_below(same)

        def between(values: Mapping[str, Any]) -> list[Any]:
            feeds = dataflow.outside(self._analysis.graph) | feeds_of(lower.tensors, same, values)
            count = tf.shape(values[lower.tensors[0].key])[0]
            feeds |= {id(tensor): value for tensor, value in self._analysis.shape_values(count, None)}
            wanted = [crossing.tensor for crossing in self._crossing]
            found = dataflow.copy(wanted, feeds, without={self._analysis.images.op}, name="between")
            return [reshaped(value, c.shape) for value, c in zip(found, self._crossing, strict=True)]

        specs = {t.key: tf.TensorSpec([None, *t.shape], t.dtype, name=t.key) for t in lower.tensors}
        try:
            return tf.function(between, autograph=False).get_concrete_function(specs)
        except ValueError:
            return self.needs_images("the higher line")


def cut_micro_batch(
    micro: MicroBatch,
    selection: Selection,
    *,
    images: str = "image",
    most_bytes: int | None = None,
) -> FrostLine | Refused:
    """Finds the frost line of a traced micro-batch and cuts it there.

    Args:
        micro: from ``microbatch.trace``.
        selection: that it was traced for.
        images: name of the images in the batch; all other inputs are varying.
        most_bytes: that may cross for an example; None sets no limit. Cheaper cuts are tried, down to the fewest bytes.

    Raises:
        FrostLineError: the batch has no such name.
    """
    found = find(Analysis(TracedFunction(micro.function), selection, images), most_bytes=most_bytes)
    return found if isinstance(found, Refused) else FrostLine(found, micro)


def find(analysis: Analysis, *, most_bytes: int | None) -> Cut | Refused:
    """The cheapest cut of a graph within a limit on bytes, at tensors that do not mix examples."""
    reasons: list[str] = []
    for share in _CHEAPER:
        found = _pure_cut(analysis, MAC_PRICE * share)
        if isinstance(found, Refused):
            return Refused(tuple(dict.fromkeys([*reasons, *found.reasons])))
        size = sum(crossing.bytes for crossing in found.crossing)
        if most_bytes is None or size <= most_bytes:
            return found
        reasons = [f"the cheapest cut has {size:,} bytes an example, {most_bytes:,} are allowed"]
    return Refused(tuple(reasons))


def _pure_cut(analysis: Analysis, price: float) -> Cut | Refused:
    """The cheapest cut of tensors that do not mix examples."""
    while True:
        chosen = analysis.cut(price)
        # below a line before the first product there is nothing worth keeping: it would be the images again
        if chosen is None or not analysis.macs(analysis.below() & dataflow.ancestors([c.tensor for c in chosen])):
            return Refused(explain.why_not(analysis, chosen))
        try:
            prefix, bad = _checked(analysis, chosen)
            if not bad:
                return Cut(analysis, chosen, prefix)
            # all are asked at once: of a mixing tensor all that depends on it mixes too
            others = analysis.candidates()
            for start in range(0, len(others), _AT_ONCE):
                bad += _checked(analysis, others[start : start + _AT_ONCE])[1]
            analysis.forbid(bad)
        except row_independence.RowIndependenceError as error:
            return Refused((str(error),))


def _checked(analysis: Analysis, crossing: Sequence[Crossing]) -> tuple[Compute, list[Any]]:
    """images -> the tensors; and those of them that mix examples."""
    compute = analysis.function_of([c.tensor for c in crossing])
    bad = row_independence.mixing(compute, [c.rows for c in crossing], analysis.images)
    return compute, [crossing[number].tensor for number in bad]


def _keys(analysis: Analysis, count: int) -> list[str]:
    """Names for the tensors in a batch, which it does not have already."""
    stem = "frozen"
    while any(name.startswith(stem) for name in analysis.inputs):
        stem += "_"
    return [f"{stem}{number}" for number in range(count)]
