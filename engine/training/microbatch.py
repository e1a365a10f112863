"""The forward and backward pass of one micro-batch, traced once per selection.

The tape watches only the trained variables, so it records nothing below the lowest of them. A step in one piece calls
the traced function once; a step as micro-batches calls it once for each of them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import tensorflow as tf

from engine import keras_private, part_times, tensorflow_private
from engine.devices import computing_kind
from engine.distribution.moments import moments, summing_over
from engine.distribution.replicas import Replicas
from engine.errors import InputError
from engine.graphs import dataflow
from engine.graphs.batch_shapes import BatchShapes
from engine.graphs.op_kinds import OpKinds
from engine.graphs.tracing import inlined
from engine.selection.selection import Selection
from engine.selection.variables import NamedVariable
from engine.text import join_some
from engine.training import losses, pieces, remat
from engine.training.losses import LossFunction
from engine.training.optimizer_base import Optimizer
from engine.training.own_state import OwnState, hold_still
from engine.training.precision import wide_type

Part = Literal["micro-batch", "replica's share"]  # of a step


class StepError(InputError):
    """The step cannot train with a batch, a loss or a setting."""


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """A traced micro-batch.

    Attributes:
        function: ``function(batch, divisors, share, loss_scale)``; see ``trace_micro_batch``.
        terms, metrics: the names of terms and metrics, in the order of ``divisors`` and of the results.
        weights: for each term, the sum of its weights as a tensor of the traced graph; None if it has no weights.
        forward, backward: the operations of the forward pass, and those that only the gradients need.
        own_state: the variables that the forward pass writes by itself, and the layers held so that it does not.
        by_rows: the trained variables of which only rows are read, so that their gradients are those of rows.
    """

    function: Any
    terms: tuple[str, ...]
    metrics: tuple[str, ...]
    weights: Mapping[str, Any]
    forward: tuple[Any, ...]
    backward: tuple[Any, ...]
    own_state: OwnState
    by_rows: tuple[str, ...] = ()

    @property
    def graph(self) -> Any:
        return self.function.graph

    @property
    def inputs(self) -> dict[str, Any]:
        """The placeholders of the batch's arrays by name; they come first among the graph's inputs."""
        names = sorted(self.function.structured_input_signature[0][0])  # as tf.nest flattens a dict
        return dict(zip(names, self.graph.inputs, strict=False))

    @functools.cached_property
    def shapes(self) -> BatchShapes:
        """The shapes in the graph as functions of the batch size, inferred once for all that analyse it."""
        return BatchShapes(self.graph, list(self.inputs.values()))

    def notes(self, optimizer: Optimizer) -> tuple[str, ...]:
        """A sentence for each decision about layers with a state of their own, and on gradients of rows."""
        return (*self.own_state.notes, *optimizer.note_rows(self.by_rows))

    def check(self) -> None:
        """Raises StepError if the forward pass itself writes frozen variables, or uses some that are not listed."""
        if self.own_state.refusal is not None:
            raise StepError(self.own_state.refusal)

    def written_trained(self, selection: Selection) -> list[Any]:
        """The trained variables that the forward pass writes too, as spectral normalisation does with its kernel."""
        return [entry.variable for entry in selection.trained if entry.path in self.own_state.written]

    def moved_variables(self, selection: Selection) -> list[Any]:
        """All variables that running the micro-batch changes, those of generators and metrics included."""
        moving = [entry.variable for entry in selection.moving]
        return moving + self.written_trained(selection) + list(selection.variables.bookkeeping.values())


@part_times.part("trace")
def trace_micro_batch(
    loss_fn: LossFunction,
    selection: Selection,
    specs: Mapping[str, tf.TensorSpec],
    *,
    whole: bool,
    remat_mode: remat.Mode = "none",
    inline: bool = False,
    compiled: bool = False,
    synchronised: Replicas | None = None,
) -> MicroBatch:
    """Traces the loss and its gradients; frozen layers with a state of their own are held in inference mode if needed.

    The traced function takes the batch, ``divisors`` (for each term, the step's summed weights), ``share`` (the share of
    the step's examples, for the regulariser, which enters once per step) and ``loss_scale``. It returns ``gradients`` (of
    the scaled loss; dense, at least float32) and the scalars ``values`` and ``weights`` (the sums of each term),
    ``metrics`` (pairs of sums) and ``regulariser``.

    Args:
        loss_fn, specs: the loss function, and the specs of the batch, including "seeds".
        whole: whether the step is computed in one piece. Its own sums are then the divisors, and ``divisors`` and
            ``share`` are ignored.
        remat_mode: which of the model's marks are recomputed (engine.training.remat).
        inline: whether to inline the tf.functions that the loss calls, so that the graph shows their operations.
        compiled: whether XLA will compile the step.
        synchronised: the replicas over which BatchNorm layers in training mode take the moments; None for the batch alone.

    Raises:
        StepError: the loss has no term, or does not depend on a trained variable.
    """
    variables = [entry.variable for entry in selection.trained]
    trained = frozenset(path for entry in selection.trained for path in entry.paths)
    found: dict[str, Any] = {}

    def micro_batch(batch: Mapping[str, Any], divisors: Any, share: Any, loss_scale: Any) -> dict[str, Any]:
        inputs = {name: value for name, value in batch.items() if name != "seeds"}
        marks = remat.scope(remat_mode, variables, compiled=compiled)
        together = summing_over(synchronised, present=share > 0)
        with marks, together, tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            with inlined() if inline else contextlib.nullcontext():
                whole_loss = loss_fn(inputs, training=True, seeds=batch["seeds"])
            loss = losses.choose_terms(whole_loss, selection.losses)
            sums, weights = _sum_terms(loss, together=synchronised is not None, present=share > 0)
            regulariser = losses.sum_regulariser(loss, trained, next(iter(sums.values()))[0].dtype)
            total = losses.build_objective(
                sums, regulariser, **({} if whole else {"divisors": divisors, "share": share})
            )
            scaled = total * tf.cast(loss_scale, total.dtype)
        metrics = losses.weighted_sums(loss.metrics)
        if synchronised is not None:
            metrics = _masked(metrics, share > 0)
        found["forward"] = tf.compat.v1.get_default_graph().get_operations()
        found["gradients"], found["by_rows"] = _take_gradients(tape, scaled, selection, whole_loss)
        found["weights"] = weights
        found["metrics"] = tuple(metrics)
        return {
            "gradients": found["gradients"],
            "values": [value for value, _ in sums.values()],
            "weights": [weight for _, weight in sums.values()],
            "metrics": [list(pair) for pair in metrics.values()],
            "regulariser": regulariser,
        }

    def trace(held: Sequence[Any]) -> Any:
        return _trace(micro_batch, dict(specs), selection, held, synchronised, compiled=compiled)

    function, own_state = hold_still(trace, selection)
    needed = dataflow.ancestors(found["gradients"]) - set(found["forward"])
    return MicroBatch(
        function=function,
        terms=tuple(found["weights"]),
        metrics=found["metrics"],
        weights=found["weights"],
        forward=tuple(found["forward"]),
        backward=tuple(op for op in function.graph.get_operations() if op in needed),
        own_state=own_state,
        by_rows=found["by_rows"],
    )


def _trace(
    micro_batch: Any,
    specs: dict[str, Any],
    selection: Selection,
    held: Sequence[Any],
    synchronised: Replicas | None,
    *,
    compiled: bool,
) -> Any:
    """The concrete function of a micro-batch, with layers in the modes that the selection gives them."""
    scalar = tf.TensorSpec([], tf.float64)
    norms = [each.layer for each in selection.variables.statistics_layers] if synchronised is not None else []
    with (
        selection.modes(),
        keras_private.inference_mode(held),
        keras_private.replaced_moments(norms, moments),
        pieces.scope(not compiled and computing_kind() == "cpu"),
        tensorflow_private.mortal_gradients(),
    ):
        return tf.function(micro_batch, autograph=False).get_concrete_function(
            specs, tf.TensorSpec([None], tf.float64), scalar, scalar
        )


def check_synchronised(strategy: Any | None, micro_batch_size: int | None) -> None:
    """Raises StepError if a step cannot take the moments of its whole batch."""
    if strategy is None or micro_batch_size is not None:
        missing = "there is no strategy" if strategy is None else f"micro_batch_size={micro_batch_size} divides it"
        raise StepError(f"sync_batch_norm: the moments are those of the whole step's batch, but {missing}")


def _sum_terms(loss: losses.Loss, *, together: bool, present: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sums of each term, and its summed weights, or None where it has no weights."""
    sums = losses.weighted_sums(loss.terms)
    if not sums:
        raise StepError("the loss has no term: Loss.terms is empty")
    weights = {name: None if loss.terms[name][1] is None else weight for name, (_, weight) in sums.items()}
    return _masked(sums, present) if together else sums, weights


def _masked(sums: Mapping[str, tuple[Any, Any]], present: Any) -> dict[str, Any]:
    """Sums, or zeros where there are no examples: an example of zeros then stands in for them (engine.distribution.moments)."""
    return {name: tuple(tf.where(present, each, tf.zeros_like(each)) for each in pair) for name, pair in sums.items()}


def _take_gradients(
    tape: Any, loss: Any, selection: Selection, whole: losses.Loss
) -> tuple[list[Any], tuple[str, ...]]:
    """The gradients of the trained variables as dense tensors of at least float32, and which of them were of rows.

    ``whole`` has the terms that ``selection.losses`` leaves out too, for messages.
    """
    gradients = tape.gradient(loss, [entry.variable for entry in selection.trained])
    missing = [e for e, g in zip(selection.trained, gradients, strict=True) if g is None]
    if missing:
        which, way_out = "the loss does", "leave them out of the filter"
        if selection.losses is not None:
            which = f"losses={','.join(selection.losses)}: these do"
            if needed := _terms_of(missing, whole, but=selection.losses):
                names = [name for name in whole.terms if name in selection.losses or name in needed]
                way_out = f"write losses={','.join(names)}, or {way_out}"
        raise StepError(
            f"{which} not depend on {len(missing)} trained variable(s): {join_some([e.path for e in missing])}; {way_out}"
        )
    pairs = zip(selection.trained, gradients, strict=True)
    by_rows = tuple(entry.path for entry, gradient in pairs if isinstance(gradient, tf.IndexedSlices))
    gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
    return [tf.cast(gradient, wide_type(gradient.dtype)) for gradient in gradients], by_rows


def _terms_of(entries: Sequence[NamedVariable], loss: losses.Loss, *, but: Sequence[str]) -> list[str]:
    """The other terms that depend on variables, in the graph that is being traced."""
    handles = {id(entry.variable.handle) for entry in entries}
    captures = tf.compat.v1.get_default_graph().captures
    own = {inner.op for outer, inner in captures if id(outer) in handles}
    rest = {name: values for name, (values, _) in loss.terms.items() if name not in but and tf.is_tensor(values)}
    return [name for name, values in rest.items() if own & dataflow.ancestors([values])]


def step_weights(micro: MicroBatch, selection: Selection, batch: Mapping[str, Any], count: Any) -> list[Any]:
    """Computes each term's summed weights over a whole step, inside a tf.function: float64 scalars.

    The gradient of a micro-batch is divided by them, so they must be known before the first micro-batch. Therefore the
    part of the traced loss that computes the weights, and only that, is run on the whole batch.

    Raises:
        StepError: weights depend on variables that train or move, or on random numbers other than "seeds".
    """
    own = {id(entry.variable.handle): entry.path for entry in (*selection.trained, *selection.moving)}
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
                f"term {name!r}: its weights depend on {what}; with micro-batches they must be computed from the batch "
                "(or its seeds) alone; multiply the values instead"
            )
        wanted[name] = weight
    found: dict[str, Any] = {}
    if wanted:
        feeds = {id(placeholder): batch[name] for name, placeholder in micro.inputs.items()} | outer
        found = dict(zip(wanted, dataflow.copy_tensors(list(wanted.values()), feeds), strict=True))
    return [tf.cast(found.get(name, count), tf.float64) for name in micro.terms]


def list_caveats(selection: Selection, *, part: Part = "micro-batch", synchronised: bool = False) -> list[str]:
    """Returns a sentence for each reason why a step in parts is not exactly the step in one piece.

    ``synchronised`` says that BatchNorm layers take the moments of the whole step.
    """
    found = []
    kinds = {each.path: type(each.layer).__name__ for each in selection.variables.statistics_layers}
    moving: dict[str, dict[str, None]] = {}  # kind of layer -> paths
    for entry in selection.moving:
        moving.setdefault(kinds.get(entry.layer, "other"), {})[entry.layer] = None
    for kind, names in moving.items():
        if synchronised and "BatchNorm" in kind:
            continue
        norm, shared = "BatchNorm" in kind, part == "replica's share"
        normalise = f"normalise by the moments of a {part}, not of the step, and " if norm else ""
        update = f"update their statistics once per {part}, not once per step"
        if shared:
            update = "take the mean of the statistics of all replicas"
        found.append(
            f"{len(names)} {kind} layer(s) in training mode {normalise}{update}: {join_some(list(names))}; "
            f"`!@stats`{' or sync_batch_norm' * (norm and shared)} avoids this"
        )
    if generators := list(selection.variables.generators):
        found.append(
            f"{len(generators)} Keras layer(s) draw their own random numbers, which depend on how a step is split: "
            f"{join_some(generators)}"
        )
    return found
