"""A step inside the graph: sum the micro-batches, unscale, check, clip and apply the gradients. One optimizer update.

The values and gradients of each term are summed over the micro-batches and divided once, by the sum of the term's
weights over the whole step; an average of averages would be a different loss. Whether the update is applied is decided
once, when all gradients have been computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from engine import part_times
from engine.selection.selection import Selection
from engine.text import join_some
from engine.training import ema, optimizers
from engine.training.microbatch import MicroBatch, step_weights
from engine.training.optimizers import Optimizer, Pace

_AGREE = 1e-3  # relative; another order of summation differs by far less, weights that depend on the batch by more


def build_update(
    micro: MicroBatch,
    selection: Selection,
    optimizer: Optimizer,
    *,
    micro_batch_size: int | None,
    scaled: bool,
    ema_decay: float | None,
    paces: Sequence[Pace],
    compiled: bool = False,
) -> Any:
    """Builds the function ``step(batch, learning_rate, loss_scale, handles, powers, averages)``, which is then traced.

    It returns the scalars ``loss``, ``grad_norm`` (before clipping), ``applied``, ``finite`` (the loss and the norm of
    the gradient are finite) and ``exact`` (the weights of the micro-batches sum to those of the step, which fails if the
    weight of an example depends on other examples); and, by name, ``terms``, ``weights`` (the sum of each term's
    weights), ``metrics`` and ``metric_weights``. In float32, a norm above 1.8e19 is not finite, because its square is not.

    Args:
        micro: the traced micro-batch; traced with ``whole`` if ``micro_batch_size`` is None.
        micro_batch_size: the number of examples per micro-batch, of which the last may have fewer; None computes the
            step in one piece.
        scaled: whether to divide gradients by ``loss_scale``.
        ema_decay: the decay of the averages behind the handles ``averages``; None if there are none.
        paces: how fast each trained variable moves (``optimizers.set_paces``).
        compiled: whether XLA compiles the function, which needs micro-batches of a size that is known then.
    """

    state = [entry.variable for entry in selection.moving] + micro.written_trained(selection)
    finish = build_finish(micro, selection, optimizer, scaled=scaled, ema_decay=ema_decay, paces=paces)

    def step(
        batch: Mapping[str, Any], learning_rate: Any, loss_scale: Any, handles: Any, powers: Any, averages: Any
    ) -> dict[str, Any]:
        before = [variable.read_value() for variable in state]
        sums = sum_parts(micro, selection, batch, loss_scale, micro_batch_size, compiled=compiled)
        return finish(sums, before, learning_rate, loss_scale, handles, powers, averages)

    return step


def build_finish(
    micro: MicroBatch,
    selection: Selection,
    optimizer: Optimizer,
    *,
    scaled: bool,
    ema_decay: float | None,
    paces: Sequence[Pace],
) -> Callable[..., dict[str, Any]]:
    """Builds the second half of a step: ``finish(sums, before, learning_rate, loss_scale, handles, powers, averages)``.

    It takes the sums of the whole step, with the "divisors" of the terms, and the values that the variables of
    ``selection.moving`` and ``micro.written_trained`` had before; see ``build_update`` for the rest.
    """
    state = [entry.variable for entry in selection.moving] + micro.written_trained(selection)

    def finish(
        sums: Mapping[str, Any],
        before: Sequence[Any],
        learning_rate: Any,
        loss_scale: Any,
        handles: Any,
        powers: Any,
        averages: Any,
    ) -> dict[str, Any]:
        terms = {
            n: tf.math.divide_no_nan(v, w) for n, v, w in zip(micro.terms, sums["values"], sums["weights"], strict=True)
        }
        metrics = {
            name: tf.math.divide_no_nan(*pair) for name, pair in zip(micro.metrics, sums["metrics"], strict=True)
        }
        loss = tf.add_n(list(terms.values())) + sums["regulariser"]

        gradients = sums["gradients"]
        if scaled:
            gradients = [gradient * tf.cast(1.0 / loss_scale, gradient.dtype) for gradient in gradients]
        norm = tf.linalg.global_norm(gradients)
        finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
        # If no example has a weight, there is no gradient. Zeros would still move variables by momentum and decay.
        weighed = tf.reduce_any(tf.stack([weight > 0 for weight in sums["weights"]]))
        pairs = list(zip(sums["weights"], sums["divisors"], strict=True))
        exact = tf.reduce_all(tf.stack([tf.abs(weight - divisor) <= _AGREE * divisor for weight, divisor in pairs]))
        # An invalid weight of a metric is an error as well, and an error must not change anything.
        measured = tf.reduce_all(tf.stack([True, *(weight >= 0 for _, weight in sums["metrics"])]))

        def apply() -> Any:
            clipped = _clipped(selection, gradients, norm, optimizer.clip_norm)
            rates = {"learning_rate": learning_rate, "paces": paces}
            optimizers.apply_gradients(selection, optimizer, clipped, **rates, handles=handles, powers=powers)
            if ema_decay is not None:
                ema.update_averages(selection, averages, ema_decay)
            return tf.constant(True)

        def skip() -> Any:
            assign_back(state, before)
            return tf.constant(False)

        return {
            "loss": loss,
            "terms": terms,
            "weights": dict(zip(micro.terms, sums["weights"], strict=True)),
            "exact": exact,
            "metrics": metrics,
            "metric_weights": {n: weight for n, (_, weight) in zip(micro.metrics, sums["metrics"], strict=True)},
            "grad_norm": norm,
            "finite": finite,
            "applied": tf.cond(finite & weighed & exact & measured, apply, skip),
        }

    return finish


@part_times.part("trace")
def trace_update(
    micro: MicroBatch,
    selection: Selection,
    optimizer: Optimizer,
    *,
    specs: Mapping[str, tf.TensorSpec],
    filters: Any | None,
    ema_decay: float | None,
    compiled: bool,
    **settings: Any,
) -> Any:
    """Returns the function of ``build_update`` as a concrete function for batches of these specs.

    ``filters`` are those of the learning rates, which are then an input of shape [1 + filters]; None if there is one rate.
    With ``compiled``, XLA compiles it when it is first called with a batch of a new size; it is traced once for all sizes.
    """
    built = build_update(micro, selection, optimizer, ema_decay=ema_decay, compiled=compiled, **settings)
    rate, scale, handles, powers, averages = input_specs(
        selection, optimizer, filters=filters, averaged=ema_decay is not None
    )
    return tf.function(built, autograph=False, jit_compile=compiled or None).get_concrete_function(
        dict(specs), rate, scale, handles, powers, averages
    )


def input_specs(selection: Selection, optimizer: Optimizer, *, filters: Any | None, averaged: bool) -> tuple[Any, ...]:
    """The specs of ``learning_rate``, ``loss_scale``, ``handles``, ``powers`` and ``averages``."""
    scalar, handle = tf.TensorSpec([], tf.float64), tf.TensorSpec([], tf.resource)
    return (
        scalar if filters is None else tf.TensorSpec([1 + len(filters)], tf.float64),
        scalar,
        [[handle] * len(optimizer.slots) for _ in selection.trained],
        tf.TensorSpec([len(selection.trained), optimizer.powers(np.ones(1)).shape[1]], tf.float64),
        [handle for _ in selection.trained] if averaged else [],
    )


def sum_parts(
    micro: MicroBatch,
    selection: Selection,
    batch: Mapping[str, Any],
    loss_scale: Any,
    size: int | None,
    *,
    compiled: bool,
    of: tuple[Any, Any, Any] | None = None,
) -> dict[str, Any]:
    """The results of ``micro.function`` summed over the step's micro-batches, and the "divisors" of the terms.

    Where the batch is a share of the step, ``of`` has the number of its examples, and the divisors (float64 [terms]) and the
    number of examples of the whole step; the sums are those of the share, and ``micro`` was traced without ``whole``.
    """
    if size is None and of is None:
        none = tf.zeros([len(micro.terms)], tf.float64)
        whole_step: dict[str, Any] = micro.function(dict(batch), none, tf.ones([], tf.float64), loss_scale)
        return whole_step | {"divisors": whole_step["weights"]}
    if of is None:
        count = tf.shape(next(iter(batch.values())))[0]
        of = (count, tf.stack(step_weights(micro, selection, batch, count)), count)
    count, divisors, total = of
    zeros = empty_sums(micro)
    whole = tf.cast(total, tf.float64)

    def add(sums: Any, part: Mapping[str, Any], examples: Any) -> Any:
        share = tf.cast(examples, tf.float64) / whole
        found = micro.function(part, divisors, share, loss_scale)
        found["regulariser"] = found["regulariser"] * tf.cast(share, found["regulariser"].dtype)
        return found if sums is None else tf.nest.map_structure(tf.add, sums, found)

    if size is None:
        sums = add(None, batch, count)
    else:
        sums = (_loop_over_equal_parts if compiled else _loop_over_parts)(batch, count, size, add, zeros)
    divided_by = [tf.cast(d, w.dtype) for d, w in zip(tf.unstack(divisors), sums["weights"], strict=True)]
    return sums | {"divisors": divided_by}


def empty_sums(micro: MicroBatch) -> Any:
    """The sums over no example."""
    return tf.nest.map_structure(lambda like: tf.zeros(like.shape, like.dtype), micro.function.structured_outputs)


def _loop_over_parts(batch: Mapping[str, Any], count: Any, size: int, add: Callable[..., Any], sums: Any) -> Any:
    def more(start: Any, *_: Any) -> Any:
        return start < count

    def add_next(start: Any, sums: Any) -> Any:
        stop = tf.minimum(start + size, count)
        return stop, add(sums, {name: value[start:stop] for name, value in batch.items()}, stop - start)

    return tf.while_loop(more, add_next, (tf.constant(0), sums), parallel_iterations=1)[1]


def _loop_over_equal_parts(batch: Mapping[str, Any], count: Any, size: int, add: Callable[..., Any], sums: Any) -> Any:
    """As ``_loop_over_parts``, for XLA: all parts have a size that is known when it compiles, a shorter last one too."""
    rest = count % size
    full = count - rest

    def add_next(start: Any, sums: Any) -> Any:
        # XLA also compiles this for a batch of fewer examples, for which it does not run
        take = tf.minimum(size, tf.shape(next(iter(batch.values())))[0])
        part = {
            name: tf.slice(value, [start, *[0] * (value.shape.rank - 1)], [take, *value.shape[1:]])
            for name, value in batch.items()
        }
        return start + size, add(sums, part, take)

    _, sums = tf.while_loop(lambda start, _: start < full, add_next, (tf.constant(0), sums), parallel_iterations=1)
    last = {
        name: value[count - tf.maximum(rest, 1) :] for name, value in batch.items()
    }  # XLA also compiles it if unused
    return tf.cond(rest > 0, lambda: add(sums, last, rest), lambda: sums)


def explain_not_finite(
    micro: MicroBatch,
    selection: Selection,
    batch: Mapping[str, Any],
    scale: float,
    *,
    micro_batch_size: int | None,
    compiled: bool,
) -> str:
    """Says, of a step that was not applied, which gradients are not finite.

    It computes the gradients again, with this loss scale, and changes nothing.
    """

    state = [entry.variable for entry in selection.moving] + micro.written_trained(selection)

    def check(batch: Mapping[str, Any], loss_scale: Any) -> Any:
        before = [variable.read_value() for variable in state]
        sums = sum_parts(micro, selection, batch, loss_scale, micro_batch_size, compiled=compiled)
        bad = [tf.reduce_any(tf.logical_not(tf.math.is_finite(gradient))) for gradient in sums["gradients"]]
        with tf.control_dependencies(bad):
            assign_back(state, before)
        return tf.stack(bad)

    function = tf.function(check, autograph=False, jit_compile=compiled or None)
    bad = function(dict(batch), tf.constant(scale, tf.float64)).numpy()
    return describe_not_finite(selection, bad)


def describe_not_finite(selection: Selection, bad: Sequence[bool]) -> str:
    """Names the trained variables whose gradients are not finite; ``bad`` says so of each."""
    names = [entry.path for entry, is_bad in zip(selection.trained, bad, strict=True) if is_bad]
    if names:
        return f"{len(names)} of {len(bad)} gradients are not finite: {join_some(names)}"
    return "all gradients are finite, but the loss or the norm of the gradient is not"


def assign_back(state: Sequence[Any], before: Sequence[Any]) -> None:
    """Gives variables the values that they had before, inside a tf.function."""
    for variable, value in zip(state, before, strict=True):
        variable.assign(value)


def _clipped(selection: Selection, gradients: list[Any], norm: Any, limit: float | None) -> list[Any]:
    """The gradients in their variables' dtypes, scaled so that the global norm is at most ``limit``."""
    if limit is not None:
        # The scale is exactly 1 below the limit, so that an unclipped gradient keeps its bits.
        scale = limit / tf.maximum(norm, tf.constant(limit, norm.dtype))
        gradients = [gradient * tf.cast(scale, gradient.dtype) for gradient in gradients]
    return [
        tf.cast(gradient, entry.variable.dtype) for entry, gradient in zip(selection.trained, gradients, strict=True)
    ]
