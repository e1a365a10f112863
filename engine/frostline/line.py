"""The frost line: a traced step cut in two, where the frozen part ends and the trained part begins.

Loss and gradients are traced first and cut afterwards, so that nothing has to be differentiated again. Row i of a tensor
that crosses the line depends on example i alone: this is inferred from shapes and then verified by running the prefix.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from engine.data.batch_names import CACHED
from engine.errors import InputError
from engine.frostline import explain
from engine.frostline.analysis import Analysis, Crossing
from engine.frostline.fingerprint import Digests, FingerprintError
from engine.frostline.split import FrostTensor, Same, build_feeds, build_suffix, reshape_rows
from engine.frostline.traced import Compute, Traced, TracedFunction
from engine.graphs import dataflow
from engine.sizes import format_bytes
from engine.training.microbatch import MicroBatch


class FrostLineError(InputError):
    """A batch that does not fit a frost line."""


@dataclass(frozen=True)
class Refused:
    """The reasons why there is no frost line: one sentence each, with what would make one possible."""

    reasons: tuple[str, ...]

    def describe(self) -> str:
        return "no frost line: " + "; ".join(self.reasons)


@dataclass(frozen=True)
class Cut:
    """Where an analysed graph can be cut: the tensors that cross, and the function from the images to them."""

    analysis: Analysis
    crossing: Sequence[Crossing]
    prefix: Compute


class Line(abc.ABC):
    """A frost line: the tensors that cross it, how they are computed, and how much work they save.

    Args:
        found, forward: the result of ``search.find_cut``, and the operations of the forward pass.

    Attributes:
        tensors, selection: the tensors that cross, and the variables that train.
        inputs: the names in a batch of the model's inputs, in the place of which the tensors come.
        forward_share, step_share: the share below the line of the multiply-adds of the forward pass, and of all.
        macs: the multiply-adds of the whole step, forward and backward, per example.
        notes: what keeps the line lower than the selection alone would, one sentence each.
    """

    def __init__(self, found: Cut, forward: Sequence[Any]) -> None:
        analysis = self._analysis = found.analysis
        self._crossing, self._prefix = found.crossing, found.prefix
        self.inputs, self.selection = tuple(map(analysis.input_name, analysis.examples)), analysis.selection
        stem = CACHED  # of keys that do not collide with the names in the batch
        while any(name.startswith(stem) for name in analysis.inputs):
            stem += "_"
        self.tensors = tuple(
            FrostTensor(f"{stem}{n}", t.name.removesuffix(":0"), c.shape, t.dtype, analysis.last_variable(t))
            for n, c in enumerate(found.crossing)
            for t in [c.tensor]
        )
        below = analysis.count_macs(analysis.ops_below() & dataflow.ancestors([c.tensor for c in found.crossing]))
        of_forward, self.macs = analysis.count_macs(forward), analysis.count_macs(analysis.live)
        self.forward_share = below / of_forward if of_forward else 0.0
        self.step_share = below / self.macs if self.macs else 0.0
        self.notes = explain.explain_height(analysis)

    @property
    def bytes(self) -> int:
        """The bytes that cross the line per example."""
        return sum(tensor.bytes for tensor in self.tensors)

    def prefix(self, examples: Any) -> tuple[Any, ...]:
        """The tensors at the line, [B, *shape], for examples [B, ...]; compiled, for any B.

        ``examples`` is the input of the model, such as images, or a mapping of its inputs by name if it has several.
        """
        found = self._prefix(*self._listed(examples))
        return tuple(reshape_rows(v, c.shape) for v, c in zip(found, self._crossing, strict=True))

    def _listed(self, examples: Any) -> list[Any]:
        """The inputs of the model in their order."""
        return [examples[name] for name in self.inputs] if isinstance(examples, Mapping) else [examples]

    def replace_images(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Runs the prefix: the batch with the tensors at the line in place of the model's inputs.

        FrostLineError: the batch lacks one of them.
        """
        if missing := [name for name in self.inputs if name not in batch]:
            raise FrostLineError(f"the batch has no {missing[0]!r}; it has {', '.join(batch)}")
        values = dict(zip((tensor.key for tensor in self.tensors), self.prefix(batch), strict=True))
        return {name: value for name, value in batch.items() if name not in self.inputs} | values

    def specs(self, batch: Mapping[str, Any]) -> dict[str, tf.TensorSpec]:
        """Dtypes and shapes of ``replace_images(batch)``, for any batch size, without computing it."""
        found = {n: tf.TensorSpec([None, *v.shape[1:]], v.dtype) for n, v in batch.items() if n not in self.inputs}
        return found | {t.key: tf.TensorSpec([None, *t.shape], t.dtype) for t in self.tensors}

    @property
    def _called(self) -> str:
        """The model's inputs, for messages."""
        return f"the {'images' if self.inputs == ('image',) else 'inputs'} ({', '.join(self.inputs)})"

    def digest(self) -> str:
        """SHA-256 of what the prefix computes: its operations and the current values of the variables that it reads.

        It is the same in every process for the same model, whatever else is selected, and it changes with anything
        that could change a feature. Names of nodes and variables do not matter. Raises TracedError if the prefix reads
        something that has no value, and FingerprintError if it has a loop of TF1's control flow.
        """
        tensors, examples = [crossing.tensor for crossing in self._crossing], self._analysis.examples
        named = self._analysis.traced.outside(dataflow.leaf_tensors(tensors), by_value=True)
        for name, given in zip(self.inputs, examples, strict=True):
            called = "images" if len(examples) == 1 else f"input {name}"  # the only one has no name of its own
            named[id(given)] = f"{called} {given.dtype.name} {given.shape.as_list()[1:]}"
        found = Digests(self._analysis.graph, lambda leaf: named.get(id(leaf))).compute(tensors)
        return hashlib.sha256(f"{tf.__version__} {found}".encode()).hexdigest()

    def describe(self) -> str:
        """One paragraph: where the line lies, what crosses it, and how much work it saves."""
        what = " and ".join(
            f"{t.name} {list(t.shape)} {t.dtype.name}" + (f" (after {t.after})" if t.after else "")
            for t in self.tensors
        )
        size = f"{self.bytes:,} bytes" + (f" ({format_bytes(self.bytes)})" if self.bytes >= 1024 else "")
        text = (
            f"the frost line is at {what}: {size} per example, with "
            f"{self.forward_share:.1%} of the forward pass and {self.step_share:.1%} of the step below it"
        )
        return ". ".join([text, *self.notes])

    @abc.abstractmethod
    def build_bridge(self, lower: Line) -> Any:
        """Builds the function from the tensors of a lower line to those of this one, for a later phase of the same model.

        It takes arrays [B, ...] by the keys of ``lower.tensors`` and returns the tensors [B, ...] of this line. Returns
        Refused where a tensor of the lower line is not computed below this one or the tensors do not suffice.
        """

    def match_evaluation(self, traced: Traced) -> tuple[Analysis, Same] | Refused:
        """Analyses the graph of an evaluation and finds the line's tensors in it."""
        other = Analysis(traced, self.selection, self.inputs)
        try:
            same = self.match_tensors(other)
        except FingerprintError as error:
            return Refused((str(error),))
        if isinstance(same, str):
            return Refused((f"in evaluation the frozen part does not compute {same}: it depends on the mode",))
        return other, same

    def refuse_without_images(self, what: str) -> Refused:
        """The refusal of something that cannot be computed from the cached tensors alone."""
        return Refused((f"{what} needs {self._called} in addition to the cached tensors",))

    def refuse_lower(self, tensor: str) -> Refused:
        """The refusal of a lower line for one of its tensors."""
        return Refused((f"{tensor} of the lower line is not computed below the higher one",))

    def match_tensors(self, other: Analysis, *, by_value: bool = False) -> Same | str:
        """Finds the line's tensors in another graph, or else returns the name of one that it does not compute.

        With ``by_value``, variables of equal values count as the same; else they must be one variable. Raises as
        ``digest`` does.
        """

        def names(analysis: Analysis, crossing: Sequence[Crossing]) -> list[str]:
            tensors = [one.tensor for one in crossing]
            named = {id(placeholder): f"input {name}" for name, placeholder in analysis.inputs.items()}
            named |= analysis.traced.outside(dataflow.leaf_tensors(tensors), by_value=by_value)
            return Digests(analysis.graph, lambda leaf: named.get(id(leaf))).compute(tensors)

        wanted, invariant = names(self._analysis, self._crossing), other.find_candidates()
        found: dict[str, list[Crossing]] = {}
        for crossing, name in zip(invariant, names(other, invariant), strict=True):
            found.setdefault(name, []).append(crossing)
        same: Same = {}
        for number, (tensor, name) in enumerate(zip(self.tensors, wanted, strict=True)):
            if name not in found:
                return tensor.name
            for crossing in found[name]:
                same |= {id(c.tensor): (number, c) for c in other.find_views(crossing)}
        return same


class FrostLine(Line):
    """The frost line of a traced training step.

    The function of ``suffix`` takes the tensors at the line in place of the images and returns what the step returned.
    """

    def __init__(self, found: Cut, micro: MicroBatch) -> None:
        super().__init__(found, micro.forward)
        same = {id(c.tensor): (number, c) for number, c in enumerate(found.crossing)}
        built = build_suffix(found.analysis, self.tensors, same, without=found.analysis.ops_below(), micro=micro)

        def copied(ops: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(built.ops[op.name] for op in ops if op.name in built.ops)

        self.suffix = MicroBatch(
            function=built.function,
            terms=micro.terms,
            metrics=micro.metrics,
            weights=built.weights,
            forward=copied(micro.forward),
            backward=copied(micro.backward),
            own_state=micro.own_state,
            by_rows=micro.by_rows,
        )

    @property
    def frozen_below(self) -> tuple[str, ...]:
        """The paths of the variables that only the prefix computes with, in model order."""
        needed = dataflow.ancestors([crossing.tensor for crossing in self._crossing])
        above = dataflow.used_handles(self.suffix.graph)
        found = []
        for entry in self.selection.variables:
            handle = self._analysis.traced.handle(entry.path, entry.variable)
            readers = [op for op in (handle.consumers() if handle is not None else ()) if op in needed]
            # a read that only a control edge waits for computes nothing
            used = any(op.type != "ReadVariableOp" or needed & set(op.outputs[0].consumers()) for op in readers)
            if used and id(entry.variable.handle) not in above:
                found.append(entry.path)
        return tuple(found)

    def cut_function(self, function: Any) -> Any:
        """Cuts another concrete function, such as an evaluation's, whose first argument is the batch, at the same tensors.

        Returns the function that takes the tensors in place of the images; or Refused, where the given one does not compute
        these very tensors (dropout and batch moments differ between training and inference) or also needs the images.
        """
        found = self.match_evaluation(TracedFunction(function))
        if isinstance(found, Refused):
            return found
        try:
            return build_suffix(
                found[0], self.tensors, found[1], without={given.op for given in found[0].examples}
            ).function
        except ValueError:
            return self.refuse_without_images("evaluation")

    def build_joint(self, others: Sequence[Line]) -> Callable[[Any], list[tuple[Any, ...]]] | Refused:
        """Builds the function from images to the tensors of this line and of others, which computes what they share once.

        It returns what ``prefix`` of each returns. Refused where this step's graph does not compute a tensor of another
        line below its own trained part.
        """
        lines: list[Sequence[tuple[Any, tuple[int, ...]]]] = [[(c.tensor, c.shape) for c in self._crossing]]
        for other in others:
            same = other.match_tensors(self._analysis)
            if isinstance(same, str):
                return Refused((f"{same} of another line is not computed by the frozen part of this one",))
            first: dict[int, Any] = {}
            for number, crossing in same.values():
                first.setdefault(number, crossing.tensor)
            lines.append([(first[number], tensor.shape) for number, tensor in enumerate(other.tensors)])
        compute = self._analysis.build_function([tensor for line in lines for tensor, _ in line])

        def joint(examples: Any) -> list[tuple[Any, ...]]:
            values = iter(compute(*self._listed(examples)))
            return [tuple(reshape_rows(next(values), shape) for _, shape in line) for line in lines]

        return joint

    def build_bridge(self, lower: Line) -> Any:
        same = lower.match_tensors(self._analysis)
        if isinstance(same, str):
            return self.refuse_lower(same)

        def between(values: Mapping[str, Any]) -> list[Any]:
            feeds = dataflow.captured_tensors(self._analysis.graph) | build_feeds(lower.tensors, same, values)
            count = tf.shape(values[lower.tensors[0].key])[0]
            feeds |= {id(tensor): value for tensor, value in self._analysis.shape_values(count, None)}
            wanted = [crossing.tensor for crossing in self._crossing]
            found = dataflow.copy_tensors(
                wanted, feeds, without={given.op for given in self._analysis.examples}, name="between"
            )
            return [reshape_rows(value, c.shape) for value, c in zip(found, self._crossing, strict=True)]

        specs = {t.key: tf.TensorSpec([None, *t.shape], t.dtype, name=t.key) for t in lower.tensors}
        try:
            return tf.function(between, autograph=False).get_concrete_function(specs)
        except ValueError:
            return self.refuse_without_images("the higher line")
