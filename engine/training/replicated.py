"""A step on several replicas: each sums over its share of the examples, the sums are added, and all update alike.

What one device does in one function is here done in two: the sums over a share, and what follows from the sums of the
whole step (``update.build_finish``). Both are traced once, and called on each replica with its copies of the variables.
Between the two, and nowhere else, replicas exchange tensors. The terms are divided by the weights of the whole step, so
terms with weights need these first, which takes one more exchange of one number per term.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from engine import part_times
from engine.distribution.reduction import Communication, count_communication, sum_over_replicas
from engine.distribution.replicas import Replicas, by_handle
from engine.graphs.op_kinds import OpKinds
from engine.selection.selection import Selection
from engine.training import update
from engine.training.microbatch import MicroBatch, step_weights
from engine.training.optimizers import Optimizer, Pace
from engine.training.precision import wide_type


@dataclass(frozen=True, eq=False)
class ReplicatedStep:
    """A traced step on several replicas.

    Attributes:
        function: ``function(batch, offsets, total, stopping, learning_rate, loss_scale, handles, powers, averages)``. The
            batch has this worker's share, of which replica r takes the examples from offsets[r] to offsets[r + 1];
            ``total`` is the number of examples of the whole step; ``handles`` and ``averages`` have one entry per
            replica. Its results are those of ``update.build_update``, and ``stopping``: the sum of that of all workers.
        inner: the concrete function of the sums over a share, which XLA may compile.
        communication: what a replica exchanges in a step.
    """

    function: Any
    inner: Any
    communication: Communication


@part_times.part("trace")
def trace_replicated_step(
    micro: MicroBatch,
    selection: Selection,
    optimizer: Optimizer,
    *,
    replicas: Replicas,
    specs: Mapping[str, tf.TensorSpec],
    filters: Any | None,
    micro_batch_size: int | None,
    scaled: bool,
    ema_decay: float | None,
    paces: Sequence[Pace],
    compiled: bool,
) -> ReplicatedStep:
    """Traces a step; the arguments are those of ``update.trace_update``.

    Raises:
        StepError: see ``microbatch.step_weights``.
        DistributionError: the step uses a resource of which the other devices can have no copy.
    """
    halves = _Halves(replicas, micro, selection, specs=dict(specs), size=micro_batch_size, compiled=compiled)
    inputs = update.input_specs(selection, optimizer, filters=filters, averaged=ema_decay is not None)
    finish = update.build_finish(micro, selection, optimizer, scaled=scaled, ema_decay=ema_decay, paces=paces)

    def end(sums: Any, moved: Any, before: Any, *given: Any) -> dict[str, Any]:
        update.assign_back(halves.moved, moved)
        return finish(sums, before, *given)

    given = ([_spec(v) for v in halves.moved], [_spec(v) for v in halves.state])
    ending = tf.function(end, autograph=False, jit_compile=compiled or None).get_concrete_function(
        tf.nest.map_structure(_spec, halves.share.structured_outputs), *given, *inputs
    )

    replicas.prepare(ending, halves.known)

    def step(
        batch: Any,
        offsets: Any,
        total: Any,
        stopping: Any,
        rate: Any,
        scale: Any,
        handles: Any,
        powers: Any,
        averages: Any,
    ) -> dict[str, Any]:
        def replica(number: int) -> dict[str, Any]:
            stops = stopping if number == 0 else tf.zeros_like(stopping)
            sums, before, moved, stops = halves.reduced(number, batch, offsets, total, scale, stops)
            given = (rate, scale, handles[number], powers, averages[number])
            result: dict[str, Any] = replicas.call(ending, (sums, moved, before, *given), number, halves.known)
            return result | {"stopping": stops}

        found: dict[str, Any] = replicas.run(replica)
        return found

    rate, scale, handles, powers, averages = inputs
    local = len(replicas.devices)
    function = tf.function(step, autograph=False).get_concrete_function(
        *halves.inputs(), tf.TensorSpec([], tf.float64), rate, scale, [handles] * local, powers, [averages] * local
    )
    return ReplicatedStep(function, halves.share, count_communication(function, replicas=local))


def explain_not_finite(
    micro: MicroBatch,
    selection: Selection,
    tensors: Sequence[Any],
    scale: float,
    *,
    replicas: Replicas,
    specs: Mapping[str, tf.TensorSpec],
    micro_batch_size: int | None,
    compiled: bool,
) -> str:
    """As ``update.explain_not_finite``, by all workers together; ``tensors`` are a batch, its offsets and the total."""
    halves = _Halves(replicas, micro, selection, specs=dict(specs), size=micro_batch_size, compiled=compiled)

    def put_back(before: Any) -> Any:
        update.assign_back(halves.state, before)
        return tf.constant(True)

    back = tf.function(put_back, autograph=False).get_concrete_function([_spec(value) for value in halves.state])
    replicas.prepare(back, halves.known)

    def check(batch: Any, offsets: Any, total: Any, loss_scale: Any) -> Any:
        def replica(number: int) -> Any:
            stop = tf.zeros([], tf.float64)
            sums, before, _, _ = halves.reduced(number, batch, offsets, total, loss_scale, stop)
            with tf.control_dependencies([replicas.call(back, (before,), number, halves.known)]):
                return tf.stack([tf.reduce_any(~tf.math.is_finite(gradient)) for gradient in sums["gradients"]])

        return replicas.run(replica)

    bad = tf.function(check, autograph=False)(*tensors, tf.constant(scale, tf.float64))
    return update.describe_not_finite(selection, bad.numpy())


class _Halves:
    """The traced functions of a share, and how their results are added.

    Attributes:
        share: ``share(batch, count, divisors, total, loss_scale)`` -> the sums over a share of ``count`` examples.
        state: the variables that a step which is not applied gives their values back.
        moved: the variables that the forward pass itself writes.
        known: all variables that the functions may have captured, by handle.
    """

    def __init__(
        self,
        replicas: Replicas,
        micro: MicroBatch,
        selection: Selection,
        *,
        specs: dict[str, Any],
        size: int | None,
        compiled: bool,
    ) -> None:
        self._replicas, self._micro, self._specs = replicas, micro, specs
        self._together = any(op.type == "CollectiveReduceV2" for op in micro.graph.get_operations())
        self.known = by_handle(selection.variables.with_bookkeeping())
        self.state = [entry.variable for entry in selection.moving] + micro.written_trained(selection)
        written = {id(inner) for inner in OpKinds(micro.graph).written_captures()}
        handles = {id(outer) for outer, inner in micro.graph.captures if id(inner) in written}
        self.moved = [variable for variable in micro.moved_variables(selection) if id(variable.handle) in handles]

        def sum_share(batch: Any, count: Any, divisors: Any, total: Any, loss_scale: Any) -> Any:
            of = (count, divisors, total)
            return update.sum_parts(micro, selection, batch, loss_scale, size, compiled=compiled, of=of)

        scalar, whole = tf.TensorSpec([], tf.float64), tf.TensorSpec([], tf.int32)
        self.share = tf.function(sum_share, autograph=False, jit_compile=compiled or None).get_concrete_function(
            specs, whole, tf.TensorSpec([len(micro.terms)], tf.float64), whole, scalar
        )
        self._weights = None
        if any(weight is not None for weight in micro.weights.values()):

            def weigh(batch: Any) -> Any:
                return tf.stack(step_weights(micro, selection, batch, tf.shape(batch["seeds"])[0]))

            self._weights = tf.function(weigh, autograph=False).get_concrete_function(specs)
            replicas.prepare(self._weights, self.known)
        replicas.prepare(self.share, self.known)

    def inputs(self) -> tuple[Any, ...]:
        """The specs of a batch, its offsets and the total."""
        return self._specs, tf.TensorSpec([len(self._replicas.devices) + 1], tf.int32), tf.TensorSpec([], tf.int32)

    def reduced(
        self, number: int, batch: Any, offsets: Any, total: Any, loss_scale: Any, stopping: Any
    ) -> tuple[dict[str, Any], list[Any], list[Any], Any]:
        """On a replica: the sums of the whole step, the values before, the values moved, and the sum of ``stopping``."""
        replicas = self._replicas
        if len(replicas.devices) > 1:
            batch = {name: value[offsets[number] : offsets[number + 1]] for name, value in batch.items()}
        count = tf.shape(batch["seeds"])[0]
        divisors = self._divide_by(number, batch, total)

        def compute() -> Any:
            return replicas.call(self.share, (batch, count, divisors, total, loss_scale), number, self.known)

        def sum_nothing() -> Any:
            zeros = update.empty_sums(self._micro)
            return zeros | {
                "divisors": [tf.cast(d, w.dtype) for d, w in zip(tf.unstack(divisors), zeros["weights"], strict=True)]
            }

        def read(variables: Sequence[Any]) -> list[Any]:
            return [replicas.variables(variable)[number].read_value() for variable in variables]

        before = read(self.state)
        if self._together:  # a replica without examples takes part with one of zeros, which counts for nothing
            absent = tf.cast(count == 0, tf.int32)
            batch = {
                name: tf.pad(value, [[0, absent], *[[0, 0]] * (value.shape.rank - 1)]) for name, value in batch.items()
            }
        sums = compute() if self._together else tf.cond(count > 0, compute, sum_nothing)
        moved = read(self.moved)
        divisors = sums.pop("divisors")
        share = tf.cast(count, tf.float64) / tf.cast(total, tf.float64)
        first = replicas.share.first + number == 0
        added = _add(sums, [_part_of(value, share, first) for value in moved], stopping)
        sums, parts, stopping = added
        moved = [tf.cast(part, variable.dtype) for part, variable in zip(parts, self.moved, strict=True)]
        return sums | {"divisors": divisors}, before, moved, stopping

    def _divide_by(self, number: int, batch: Any, total: Any) -> Any:
        """The summed weights of each term over the whole step, float64 [terms]."""
        if self._weights is None:
            return tf.fill([len(self._micro.terms)], tf.cast(total, tf.float64))
        return sum_over_replicas([self._replicas.call(self._weights, (batch,), number, self.known)])[0]


def _add(sums: dict[str, Any], moved: list[Any], stopping: Any) -> tuple[dict[str, Any], list[Any], Any]:
    """The sums over all replicas of everything that one has; scalars travel as one float64 vector."""
    tensors = tf.nest.flatten((sums, moved, stopping))
    scalars = [n for n, tensor in enumerate(tensors) if tensor.shape.rank == 0 and tensor.dtype.is_floating]
    others = [n for n in range(len(tensors)) if n not in set(scalars)]
    vector = tf.stack([tf.cast(tensors[n], tf.float64) for n in scalars])
    (vector, *rest) = sum_over_replicas([vector, *(tensors[n] for n in others)])
    for n, value in zip(scalars, tf.unstack(vector), strict=True):
        tensors[n] = tf.cast(value, tensors[n].dtype)
    for n, value in zip(others, rest, strict=True):
        tensors[n] = value
    found: tuple[dict[str, Any], list[Any], Any] = tf.nest.pack_sequence_as((sums, moved, stopping), tensors)
    return found


def _part_of(value: Any, share: Any, first: bool) -> Any:
    """What a replica contributes to a variable that the forward pass wrote: of numbers that can be averaged its share, of
    counters and generators the value of the first replica, which has examples in every step."""
    if value.dtype.is_floating:
        wide = tf.cast(value, wide_type(value.dtype))
        return wide * tf.cast(share, wide.dtype)
    whole = tf.cast(value, tf.int64)
    return whole if first else tf.zeros_like(whole)


def _spec(value: Any) -> tf.TensorSpec:
    return tf.TensorSpec(value.shape, value.dtype)
