"""The frost line: a traced step cut in two, where what is frozen ends and what still moves begins.

Loss and gradients are traced first and cut afterwards, so that nothing has to be differentiated again. What is cold
(engine.heat) and depends on the images is either computed once (the prefix) or computed again in every window (the
suffix): the minimum cut of bytes that cross for an example, and a small price for each multiply-add that is done again.
Only tensors cross whose row i depends on example i alone: reasoned from shapes, and then checked by running them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from engine import graph, obstacles, purity
from engine.anatomy import Anatomy, Crossing
from engine.canonical import Digests
from engine.errors import InputError
from engine.microbatch import MicroBatch
from engine.selection import Selection, digest
from engine.sizes import format_bytes
from engine.suffix import FrostTensor, feeds_of, suffix_of

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


@dataclass(frozen=True, eq=False)
class FrostLine:
    """A traced step, cut.

    Attributes:
        tensors: what crosses.
        images: name of the images in a batch.
        suffix: what is above; its function takes the tensors in place of the images, and returns what the whole did.
        forward_share: of the forward pass's multiply-adds, the share below the line.
        step_share: of all multiply-adds of the step, forward and backward.
        macs: multiply-adds of the whole step for an example.
        notes: what keeps the line lower than the selection alone would, a sentence each.
        selection: what trains.
    """

    tensors: tuple[FrostTensor, ...]
    images: str
    suffix: MicroBatch
    forward_share: float
    step_share: float
    macs: int
    notes: tuple[str, ...]
    selection: Selection
    _anatomy: Anatomy = field(repr=False)
    _crossing: tuple[Crossing, ...] = field(repr=False)
    _prefix: Any = field(repr=False)

    @property
    def bytes(self) -> int:
        """That cross for one example."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def frozen_below(self) -> tuple[str, ...]:
        """Paths of the variables that only what is below the line computes with, in model order."""
        below, above = (graph.handles_read(g) for g in (self._prefix.graph, self.suffix.function.graph))
        handles = [(entry.path, id(entry.variable.handle)) for entry in self.selection.variables]
        return tuple(path for path, handle in handles if handle in below and handle not in above)

    def prefix(self, images: Any) -> tuple[Any, ...]:
        """The tensors [B, *shape] of images [B, ...]; compiled, for any B."""
        values = zip(self._prefix(tf.convert_to_tensor(images)), self._crossing, strict=True)
        return tuple(tf.reshape(value, [-1, *c.shape]) if c.rows > 1 else value for value, c in values)

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
        found = [tf.cast(value, tf.float64) for value in self.prefix(images) if value.dtype.is_floating]
        squares = [tf.reduce_sum(tf.square(v), axis=list(range(1, v.shape.rank))) for v in found]
        return float(tf.reduce_mean(tf.sqrt(tf.add_n(squares)))) if squares else 0.0

    def digest(self) -> str:
        """SHA-256 of what the prefix computes: its operations, and the values of all variables that it reads now.

        The same in every process for the same model, selection aside, and another one when anything changed that
        could change a feature. Names of nodes and variables do not count.
        """
        captured = {id(inner): outer for outer, inner in self._anatomy.graph.captures}

        def leaf(tensor: Any) -> str:
            if tensor is self._anatomy.images:
                return f"images {tensor.dtype.name} {tensor.shape.as_list()[1:]}"
            outer = captured[id(tensor)]
            if outer.dtype == tf.resource:
                return "variable " + digest("", self._anatomy.value(outer))
            return "constant " + digest("", outer.numpy())

        found = Digests(self._anatomy.graph, leaf).of([crossing.tensor for crossing in self._crossing])
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

    def cut(self, function: Any) -> Any:
        """Cuts another traced function of the same images, such as an evaluation's, at the same tensors.

        Args:
            function: a concrete function whose first argument is the batch.

        Returns:
            The function that takes the tensors in place of the images, or Refused: where it does not compute these
            very tensors (dropout or batch moments differ between training and inference), or needs the images besides.
        """
        other = Anatomy(function, self.selection, self.images)
        same = self._found_in(other)
        if isinstance(same, str):
            return Refused((f"in evaluation the frozen part computes no {same}: it differs by mode",))
        try:
            return suffix_of(other, self.tensors, same, without={other.images.op}).function
        except ValueError:
            return Refused((f"evaluation needs the images ({self.images}) above the line too",))

    def after(self, lower: FrostLine) -> Any:
        """The function from the tensors of a lower line, [B, ...] by their keys, to those of this one, [B, ...].

        For a later phase of the same model whose line lies higher. Refused where a tensor of the lower line is not
        computed below this one, or does not suffice.
        """
        same = lower._found_in(self._anatomy)
        if isinstance(same, str):
            return Refused((f"{same} of the lower line is not computed below the higher one",))

        def between(values: Mapping[str, Any]) -> list[Any]:
            feeds = self._anatomy.outside() | feeds_of(lower.tensors, same, values)
            count = tf.shape(values[lower.tensors[0].key])[0]
            feeds |= self._anatomy.shape_values(count, None)
            wanted = [crossing.tensor for crossing in self._crossing]
            found = graph.copy(wanted, feeds, without={self._anatomy.images.op}, name="between")
            pairs = zip(found, self._crossing, strict=True)
            return [tf.reshape(value, [-1, *c.shape]) if c.rows > 1 else value for value, c in pairs]

        specs = {t.key: tf.TensorSpec([None, *t.shape], t.dtype, name=t.key) for t in lower.tensors}
        try:
            return tf.function(between, autograph=False).get_concrete_function(specs)
        except ValueError:
            return Refused(("the higher line needs the images besides what the lower one keeps",))

    def _found_in(self, other: Anatomy) -> dict[int, tuple[int, Crossing]] | str:
        """``id`` of each tensor of another graph that is one of the line's -> which, and its shape there.

        Or the name of a tensor that the other graph does not compute.
        """

        def which(anatomy: Anatomy) -> Digests:
            captured = {id(inner): outer for outer, inner in anatomy.graph.captures}

            def leaf(tensor: Any) -> str:
                outer = captured.get(id(tensor))
                if outer is None:
                    return f"input {anatomy.name(tensor)}"
                if outer.dtype == tf.resource:
                    return f"variable {id(outer)}"
                return "constant " + digest("", outer.numpy())

            return Digests(anatomy.graph, leaf)

        wanted = which(self._anatomy).of([crossing.tensor for crossing in self._crossing])
        cold = other.candidates()
        found: dict[str, list[Crossing]] = {}
        for crossing, name in zip(cold, which(other).of([c.tensor for c in cold]), strict=True):
            found.setdefault(name, []).append(crossing)
        same: dict[int, tuple[int, Crossing]] = {}
        for number, (tensor, name) in enumerate(zip(self.tensors, wanted, strict=True)):
            if name not in found:
                return tensor.name
            for crossing in found[name]:
                same |= {id(c.tensor): (number, c) for c in other.views(crossing)}
        return same


def cut(
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
        images: name of the images in the batch; all other inputs are hot.
        most_bytes: that may cross for an example; None sets no limit. Cheaper cuts are tried, down to the fewest bytes.

    Raises:
        FrostLineError: the batch has no such name.
    """
    anatomy = Anatomy(micro.function, selection, images)
    reasons: list[str] = []
    for share in _CHEAPER:
        found = _pure_cut(anatomy, MAC_PRICE * share)
        if isinstance(found, Refused):
            return Refused(tuple(dict.fromkeys([*reasons, *found.reasons])))
        chosen, prefix = found
        size = sum(crossing.bytes for crossing in chosen)
        if most_bytes is None or size <= most_bytes:
            return _line(anatomy, micro, selection, chosen, prefix)
        reasons = [f"the cheapest cut has {size:,} bytes an example, {most_bytes:,} are allowed"]
    return Refused(tuple(reasons))


def _pure_cut(anatomy: Anatomy, price: float) -> tuple[Sequence[Crossing], Any] | Refused:
    """The cheapest cut of tensors that do not mix examples, and the function that computes them."""
    while True:
        chosen = anatomy.cut(price)
        # below a line before the first product there is nothing worth keeping: it would be the images again
        if chosen is None or not anatomy.macs(anatomy.below() & graph.ancestors([c.tensor for c in chosen])):
            return Refused(obstacles.why_not(anatomy, chosen))
        try:
            prefix, bad = _checked(anatomy, chosen)
            if not bad:
                return chosen, prefix
            # all are asked at once: of a mixing tensor all that depends on it mixes too
            others = anatomy.candidates()
            for start in range(0, len(others), _AT_ONCE):
                bad += _checked(anatomy, others[start : start + _AT_ONCE])[1]
            anatomy.forbid(bad)
        except purity.PurityError as error:
            return Refused((str(error),))


def _checked(anatomy: Anatomy, crossing: Sequence[Crossing]) -> tuple[Any, list[Any]]:
    """images -> the tensors, compiled; and those of them that mix examples."""
    spec = tf.TensorSpec(anatomy.images.shape, anatomy.images.dtype)
    compute = anatomy.function_of([c.tensor for c in crossing])
    function = tf.function(compute, autograph=False).get_concrete_function(spec)
    bad = purity.mixing(function, [c.rows for c in crossing], spec)
    return function, [crossing[number].tensor for number in bad]


def _line(
    anatomy: Anatomy, micro: MicroBatch, selection: Selection, chosen: Sequence[Crossing], prefix: Any
) -> FrostLine:
    keys = _keys(anatomy, len(chosen))
    tensors = tuple(
        FrostTensor(key, c.tensor.name.removesuffix(":0"), c.shape, c.tensor.dtype, anatomy.after(c.tensor))
        for key, c in zip(keys, chosen, strict=True)
    )
    same = {id(c.tensor): (number, c) for number, c in enumerate(chosen)}
    below = anatomy.below()
    made = suffix_of(anatomy, tensors, same, without=below, micro=micro)

    def copied(ops: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(made.ops[op.name] for op in ops if op.name in made.ops)

    suffix = MicroBatch(
        function=made.function,
        terms=micro.terms,
        metrics=micro.metrics,
        weights=made.weights,
        forward=copied(micro.forward),
        backward=copied(micro.backward),
    )
    kept = anatomy.macs(below & graph.ancestors([crossing.tensor for crossing in chosen]))
    forward, whole = anatomy.macs(micro.forward), anatomy.macs(anatomy.live)
    return FrostLine(
        tensors=tensors,
        images=anatomy.name(anatomy.images),
        suffix=suffix,
        forward_share=kept / forward if forward else 0.0,
        step_share=kept / whole if whole else 0.0,
        macs=whole,
        notes=obstacles.lowered_by(anatomy),
        selection=selection,
        _anatomy=anatomy,
        _crossing=tuple(chosen),
        _prefix=prefix,
    )


def _keys(anatomy: Anatomy, count: int) -> list[str]:
    """Names for the tensors in a batch, which it does not have already."""
    stem = "frozen"
    while any(name.startswith(stem) for name in anatomy.inputs):
        stem += "_"
    return [f"{stem}{number}" for number in range(count)]
