"""The forward and backward pass of one micro-batch, traced once for a selection.

The tape watches the selection's variables and nothing else, so nothing below the lowest of them is
recorded. A step calls this function once, or once for each of its micro-batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from engine.errors import InputError
from engine.graphs import dataflow
from engine.graphs.op_kinds import OpKinds
from engine.graphs.tracing import inlined
from engine.selection.selection import Selection
from engine.training import losses, remat
from engine.training.losses import LossFunction
from engine.training.precision import wide_type


class StepError(InputError):
    """A batch, a loss or a setting that the step cannot train with."""


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """A traced micro-batch.

    Attributes:
        function: ``function(batch, divisors, share, loss_scale)``; see ``trace``.
        terms, metrics: names, in the order of ``divisors``, and of the results.
        weights: term -> the sum of its weights, a tensor of the traced graph; None where it has no weights.
        forward: operations of the forward pass.
        backward: operations that only the gradients need.
    """

    function: Any
    terms: tuple[str, ...]
    metrics: tuple[str, ...]
    weights: Mapping[str, Any]
    forward: tuple[Any, ...]
    backward: tuple[Any, ...]

    @property
    def graph(self) -> Any:
        return self.function.graph

    @property
    def inputs(self) -> dict[str, Any]:
        """Name -> placeholder of the batch's arrays, which come first among the graph's inputs."""
        names = sorted(self.function.structured_input_signature[0][0])  # as tf.nest flattens a dict
        return dict(zip(names, self.graph.inputs, strict=False))


def trace_micro_batch(
    loss_fn: LossFunction,
    selection: Selection,
    specs: Mapping[str, tf.TensorSpec],
    *,
    whole: bool,
    remat_mode: remat.Mode = "none",
    inline: bool = False,
) -> MicroBatch:
    """Traces loss and gradients.

    The function takes the batch, ``divisors`` (one for each term: the step's summed weights),
    ``share`` (of the step's examples, for the regulariser, which enters once a step) and
    ``loss_scale``. It returns ``gradients`` (of the scaled loss; dense, at least float32), and the
    scalars ``values``, ``weights`` (a term's sums), ``metrics`` (pairs of sums) and ``regulariser``.

    Args:
        loss_fn: ``loss_fn(batch, *, training, seeds) -> Loss``.
        selection: what trains.
        specs: of the batch, "seeds" included.
        whole: the micro-batch is the step: its own sums are the divisors, what is given is ignored.
        remat_mode: what the model's marks do (engine.training.remat).
        inline: whether tf.functions that the loss calls are written out, so that the graph shows what is in them.

    Raises:
        StepError: the loss has no term, or does not depend on a trained variable.
    """
    variables = [entry.variable for entry in selection.trained]
    trained = frozenset(path for entry in selection.trained for path in entry.paths)
    found: dict[str, Any] = {}

    def micro_batch(batch: Mapping[str, Any], divisors: Any, share: Any, loss_scale: Any) -> dict[str, Any]:
        inputs = {name: value for name, value in batch.items() if name != "seeds"}
        with remat.scope(remat_mode, variables), tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            with inlined() if inline else contextlib.nullcontext():
                loss = loss_fn(inputs, training=True, seeds=batch["seeds"])
            sums = losses.weighted_sums(loss.terms)
            if not sums:
                raise StepError("the loss has no term: Loss.terms is empty")
            regulariser = losses.regulariser_of(loss, trained, next(iter(sums.values()))[0].dtype)
            total = losses.objective(sums, regulariser, **({} if whole else {"divisors": divisors, "share": share}))
            scaled = total * tf.cast(loss_scale, total.dtype)
        metrics = losses.weighted_sums(loss.metrics)
        here = tf.compat.v1.get_default_graph()
        found["forward"] = here.get_operations()
        gradients = tape.gradient(scaled, variables)
        missing = [e.path for e, g in zip(selection.trained, gradients, strict=True) if g is None]
        if missing:
            raise StepError(
                f"the loss does not depend on {len(missing)} trained variable(s): {', '.join(missing[:5])}; "
                "leave them out of the filter"
            )
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        gradients = [tf.cast(gradient, wide_type(gradient.dtype)) for gradient in gradients]
        found["gradients"] = gradients
        found["weights"] = {name: None if loss.terms[name][1] is None else sums[name][1] for name in sums}
        found["metrics"] = tuple(metrics)
        return {
            "gradients": gradients,
            "values": [value for value, _ in sums.values()],
            "weights": [weight for _, weight in sums.values()],
            "metrics": [list(pair) for pair in metrics.values()],
            "regulariser": regulariser,
        }

    scalar = tf.TensorSpec([], tf.float64)
    with selection.modes():
        function = tf.function(micro_batch, autograph=False).get_concrete_function(
            dict(specs), tf.TensorSpec([None], tf.float64), scalar, scalar
        )
    forward = set(found["forward"])
    needed = dataflow.ancestors(found["gradients"])
    return MicroBatch(
        function=function,
        terms=tuple(found["weights"]),
        metrics=found["metrics"],
        weights=found["weights"],
        forward=tuple(found["forward"]),
        backward=tuple(op for op in function.graph.get_operations() if op in needed and op not in forward),
    )


def step_weights(micro: MicroBatch, selection: Selection, batch: Mapping[str, Any], count: Any) -> list[Any]:
    """Each term's summed weights over a whole step, inside a tf.function: float64 scalars.

    A micro-batch's gradient is divided by them, so they must be known before the first one: the part
    of the traced loss that makes the weights is run on the whole batch, and nothing else of it.

    Raises:
        StepError: weights depend on the model's variables, or on random numbers other than "seeds".
    """
    own = {id(entry.variable.handle): entry.path for entry in selection.variables}
    outer = {id(inner): source for source, inner in micro.graph.captures}
    wanted: dict[str, Any] = {}
    kinds = OpKinds(micro.graph)
    for name, weight in micro.weights.items():
        if weight is None:
            continue
        needed = dataflow.ancestors([weight])
        reads = [own[id(s)] for s, inner in micro.graph.captures if inner.op in needed and id(s) in own]
        drawn = [op.type for op in needed if kinds.draws(op)]
        if reads or drawn:
            what = f"the variable {reads[0]}" if reads else f"random numbers ({drawn[0]})"
            raise StepError(
                f"term {name!r}: its weights depend on {what}; with micro-batches they must come from the batch "
                "(or from its seeds): multiply the values instead"
            )
        wanted[name] = weight
    found: dict[str, Any] = {}
    if wanted:
        feeds = {id(placeholder): batch[name] for name, placeholder in micro.inputs.items()} | outer
        found = dict(zip(wanted, dataflow.copy(list(wanted.values()), feeds), strict=True))
    return [tf.cast(found.get(name, count), tf.float64) for name in micro.terms]
