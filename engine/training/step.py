"""TrainStep: one compiled function per selection and optimizer. A step is one call of it.

Gradients, slots, averages, decay and the clipping norm exist for the selection alone. Slots are
passed to the compiled function by handle: it survives their being dropped, and going back to an
old selection traces nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from engine.graphs.tracing import call_unchecked, signature, specs_of
from engine.seeds import example_seeds
from engine.selection.selection import Selection
from engine.selection.variables import ModelVariables
from engine.text import join_some
from engine.training import losses, microbatch, update
from engine.training.ema import Averages
from engine.training.losses import LossFunction
from engine.training.microbatch import MicroBatch, StepError
from engine.training.optimizer_state import Slots
from engine.training.optimizers import Optimizer
from engine.training.precision import LossScale
from engine.training.remat import check as check_remat

NonFinite = Literal["skip", "stop"]


class NonFiniteError(RuntimeError):
    """A step whose loss or gradient is not finite; it changed nothing."""


@dataclass(frozen=True)
class StepResult:
    """What one step gave; scalars as tensors, read when needed.

    Attributes:
        loss: sum of all terms and the regulariser.
        terms: each term's weighted mean.
        metrics: each metric's weighted mean.
        grad_norm: global norm of the selection's gradient, before clipping.
        skipped: nothing was updated: the loss or the gradient was not finite, or no example had a weight.
        loss_scale: that this step was computed with (1.0 without one).
        left_out: terms whose weights were all 0.
    """

    loss: Any
    terms: Mapping[str, Any]
    metrics: Mapping[str, Any]
    grad_norm: Any
    skipped: bool = False
    loss_scale: float = 1.0
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class TracedStep:
    """A compiled step as a graph, to be read.

    Attributes:
        graph: its function graph.
        handles: the graph's inputs that are handles -> names of their variables: a path of the model,
            ``optimizer/<path>/<slot>`` or ``ema/<path>`` as in checkpoints.
        micro_batch: the micro-batch that it is made of.
    """

    graph: Any
    handles: Mapping[str, str]
    micro_batch: MicroBatch


class TrainStep:
    """Trains on one step a call.

    Args:
        loss_fn: ``loss_fn(batch, *, training, seeds) -> Loss`` (engine.training.losses).
        optimizer: hyperparameters; ``__call__`` can be given another of the same kind.
        seed: base of the per-example seeds of batches that bring none.
        micro_batch_size: examples per micro-batch: a step is computed in parts of so many (the last
            may have fewer), with the same result up to rounding and the memory of one part. None
            computes it in one piece.
        remat: "none", "elementwise" or "blocks": what is computed again instead of kept (engine.training.remat).
        loss_scale: dynamic loss scale, which a model that computes in float16 needs.
        ema: decay of averages of the trained variables; None keeps none.
        nonfinite: "stop" raises at the first step that is not finite; "skip" goes on without it.
            None: skips with a loss scale, else stops. Such a step never changes anything.
        give_up: steps skipped in a row after which it raises all the same.

    Attributes:
        slots: optimizer state of the current selection.
        averages: of the current selection, or None.
        steps: steps trained so far, skipped ones included; not one that "stop" raised at.
        skipped: how many of them were skipped.
        left_out: term -> steps in which all its weights were 0.
        traces: how many times a function was traced.

    Raises:
        StepError, RematError, EmaError: an argument outside its range.
    """

    def __init__(
        self,
        loss_fn: LossFunction,
        optimizer: Optimizer,
        *,
        seed: int = 0,
        micro_batch_size: int | None = None,
        remat: str = "none",
        loss_scale: LossScale | None = None,
        ema: float | None = None,
        nonfinite: NonFinite | None = None,
        give_up: int = 20,
    ) -> None:
        if micro_batch_size is not None and micro_batch_size < 1:
            raise StepError(f"micro_batch_size={micro_batch_size}: it must be at least 1")
        if nonfinite not in (None, "skip", "stop"):
            raise StepError(f"nonfinite={nonfinite!r}: it takes 'skip' or 'stop'")
        if give_up < 1:
            raise StepError(f"give_up={give_up}: it must be at least 1")
        self.loss_fn = loss_fn
        self.optimizer = optimizer
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.remat = check_remat(remat)
        self.loss_scale = loss_scale
        self.nonfinite = nonfinite or ("skip" if loss_scale is not None else "stop")
        self.give_up = give_up
        self.slots = Slots()
        self.averages = Averages(ema) if ema is not None else None
        self.steps = 0
        self.skipped = 0
        self.left_out: dict[str, int] = {}
        self.traces = 0
        self._skipped_in_row = 0
        self._micro: dict[Any, MicroBatch] = {}
        self._compiled: dict[Any, Any] = {}

    def __call__(
        self,
        selection: Selection,
        batch: Mapping[str, Any],
        *,
        learning_rate: float,
        optimizer: Optimizer | None = None,
    ) -> StepResult:
        """Trains the selection on one batch.

        Args:
            selection: what may move.
            batch: name -> array or tensor, first axis the examples. "seeds" (int32 [B, 2]) are the
                examples' random seeds; "index" stays on the host.
            learning_rate: of this step.
            optimizer: instead of the one given at the making, with the same slots.

        Raises:
            StepError: the batch is empty or uneven, or a trained variable has no gradient.
            LossError: the loss breaks its contract, such as by a negative weight.
            NonFiniteError: see ``nonfinite`` and ``give_up``; names the variables whose gradients were not finite.
        """
        optimizer = optimizer or self.optimizer
        tensors = self.tensors(batch)
        self.slots.fit(selection, optimizer)
        if self.averages is not None:
            self.averages.fit(selection)
        function = self._function(selection, optimizer, tensors)
        scale = self.loss_scale.scale if self.loss_scale is not None else 1.0
        result = call_unchecked(
            function,
            tensors,
            tf.constant(learning_rate, tf.float64),
            tf.constant(scale, tf.float64),
            self.slots.handles(selection),
            tf.constant(optimizer.powers(self.slots.steps(selection) + 1)),
            self.averages.handles(selection) if self.averages is not None else [],
        )
        losses.check_weights(result["weights"])
        losses.check_weights(result["metric_weights"])
        if bool(result["finite"]) and not bool(result["exact"]):
            raise losses.LossError(
                "weights of micro-batches do not sum to those of the step: an example's weight must not depend on "
                "the other examples of its batch; compute it from the example, or before the batch is given"
            )
        applied = bool(result["applied"])
        self._judge(selection, tensors, applied, bool(result["finite"]), scale)
        if applied:
            self.slots.advance(selection)
        empty = tuple(name for name, weight in result["weights"].items() if not float(weight))
        for name in empty:
            self.left_out[name] = self.left_out.get(name, 0) + 1
        return StepResult(
            loss=result["loss"],
            terms=result["terms"],
            metrics=result["metrics"],
            grad_norm=result["grad_norm"],
            skipped=not applied,
            loss_scale=scale,
            left_out=empty,
        )

    def micro_batch(self, selection: Selection, batch: Mapping[str, Any], *, inline: bool = False) -> MicroBatch:
        """The traced forward and backward pass for a selection and batches like this one, without running it.

        ``inline`` traces anew and writes out the tf.functions that the loss calls; the step itself goes on with the
        trace that it has.
        """
        tensors = self.tensors(batch)
        return self._trace(selection, tensors, inline=True) if inline else self._micro_batch(selection, tensors)

    def use_micro_batch(self, selection: Selection, specs: Mapping[str, Any], micro: MicroBatch) -> None:
        """From now on, batches of these specs are trained by this micro-batch instead of a trace of the loss."""
        self._micro[selection, signature(specs), self.micro_batch_size is None] = micro

    def traced(self, selection: Selection, batch: Mapping[str, Any]) -> TracedStep:
        """The compiled step for a selection and batches like this one, without running it."""
        tensors = self.tensors(batch)
        graph = self._function(selection, self.optimizer, tensors).graph
        first = len(tensors) + 2  # after the batch, the learning rate and the loss scale
        names = [f"optimizer/{e.path}/{slot}" for e in selection.trained for slot in self.optimizer.slots]
        handles = dict(zip((tensor.op.name for tensor in graph.inputs[first:]), names, strict=False))
        if self.averages is not None:
            inputs = graph.inputs[first + len(names) + 1 :]
            paths = [f"ema/{entry.path}" for entry in selection.trained]
            handles |= dict(zip((tensor.op.name for tensor in inputs), paths, strict=False))
        own = {id(entry.variable.handle): entry.path for entry in selection.variables}
        handles |= {inner.op.name: own[id(outer)] for outer, inner in graph.captures if id(outer) in own}
        return TracedStep(graph, handles, self._micro_batch(selection, tensors))

    def evaluating(self, variables: ModelVariables) -> contextlib.AbstractContextManager[None]:
        """Surrounds an evaluation: with averages, they are in the model meanwhile."""
        return contextlib.nullcontext() if self.averages is None else self.averages.in_place(variables)

    def caveats(self, selection: Selection) -> list[str]:
        """What micro-batches cannot keep exact for this selection, a sentence each; none without micro-batches."""
        if self.micro_batch_size is None:
            return []
        found = []
        if selection.moving:
            names = list(dict.fromkeys(entry.layer for entry in selection.moving))
            found.append(
                f"{len(names)} BatchNorm layer(s) in training mode take their moments from a micro-batch, not from the "
                f"step, and their statistics move once for each: {', '.join(names[:5])}; `!@stats` avoids it"
            )
        if generators := list(selection.variables.generators):
            found.append(
                f"{len(generators)} Keras layer(s) draw random numbers of their own, which depend on how a step is "
                f"split: {', '.join(generators[:5])}"
            )
        return found

    def state(self) -> dict[str, Any]:
        """What a resume needs beside variables and ``arrays``."""
        scale = self.loss_scale
        return {
            "steps": self.steps,
            "skipped": self.skipped,
            "skipped_in_row": self._skipped_in_row,
            "left_out": dict(self.left_out),
            "loss_scale": None if scale is None else {"scale": scale.scale, "good": scale.good},
        }

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Slots (``optimizer/<path>/<slot>``) and averages (``ema/<path>``), one at a time."""
        yield from self.slots.arrays()
        if self.averages is not None:
            yield from self.averages.arrays()

    def restore(self, variables: ModelVariables, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Takes over ``state()`` and ``arrays()`` of a step with the same arguments.

        Raises:
            OptimizerError, EmaError: arrays do not fit the model.
        """
        self.slots.restore(variables, self.optimizer, arrays)
        if self.averages is not None:
            self.averages.restore(variables, arrays)
        self.steps, self.skipped = state["steps"], state["skipped"]
        self._skipped_in_row, self.left_out = state["skipped_in_row"], dict(state["left_out"])
        if self.loss_scale is not None and state["loss_scale"] is not None:
            self.loss_scale.scale, self.loss_scale.good = state["loss_scale"]["scale"], state["loss_scale"]["good"]

    # ---- what is behind a call

    def _judge(
        self, selection: Selection, tensors: Mapping[str, Any], applied: bool, finite: bool, scale: float
    ) -> None:
        """Counts a step and moves the loss scale, or raises; the skipped step that is one too many is counted."""
        if not finite and self.nonfinite == "stop":
            raise NonFiniteError(f"step {self.steps + 1} was not applied; {self._whose(selection, tensors, scale)}")
        self.steps += 1
        if self.loss_scale is not None:
            self.loss_scale.update(finite)
        if applied:
            self._skipped_in_row = 0
            return
        self.skipped += 1
        if finite:  # nothing had a weight
            return
        self._skipped_in_row += 1
        if self._skipped_in_row >= self.give_up:
            at = "" if self.loss_scale is None else f", the last with loss scale {scale:g}"
            raise NonFiniteError(
                f"{self._skipped_in_row} steps in a row were skipped{at}; {self._whose(selection, tensors, scale)}"
            )

    def _whose(self, selection: Selection, tensors: Mapping[str, Any], scale: float) -> str:
        """Names the variables whose gradients are not finite, by computing them again."""
        whose = update.whose_gradients(
            self._micro_batch(selection, tensors), selection, micro_batch_size=self.micro_batch_size
        )
        bad = tf.function(whose, autograph=False)(dict(tensors), tf.constant(scale, tf.float64)).numpy()
        names = [entry.path for entry, is_bad in zip(selection.trained, bad, strict=True) if is_bad]
        if names:
            return f"{len(names)} of {len(bad)} gradients are not finite: {join_some(names)}"
        return "each gradient is finite, but the loss or the gradient's norm is too large"

    def tensors(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch as the step trains on it: tensors, with seeds where it brings none; checked.

        Raises:
            StepError: it is empty, or its arrays have different numbers of examples.
        """
        tensors = {name: tf.convert_to_tensor(value) for name, value in batch.items() if name != "index"}
        lengths = {name: t.shape[0] if t.shape.rank else None for name, t in tensors.items()}
        if not lengths or None in lengths.values() or len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise StepError(
                f"batch: every array needs the same number of examples (at least 1) on its first axis; got {lengths}"
            )
        if "seeds" not in tensors:
            count = int(next(iter(tensors.values())).shape[0])
            tensors["seeds"] = tf.constant(example_seeds(self.seed, self.steps, np.arange(count)))
        return tensors

    def _micro_batch(self, selection: Selection, tensors: Mapping[str, Any]) -> MicroBatch:
        key = (selection, signature(tensors), self.micro_batch_size is None)
        if key not in self._micro:
            self._micro[key] = self._trace(selection, tensors, inline=False)
        return self._micro[key]

    def _trace(self, selection: Selection, tensors: Mapping[str, Any], *, inline: bool) -> MicroBatch:
        whole = self.micro_batch_size is None
        found = microbatch.trace_micro_batch(
            self.loss_fn, selection, specs_of(tensors), whole=whole, remat_mode=self.remat, inline=inline
        )
        if self.loss_scale is None and any(o.dtype == tf.float16 for op in found.backward for o in op.outputs):
            raise StepError("loss_scale=None: the model computes in float16, whose gradients need one: LossScale()")
        return found

    def _function(self, selection: Selection, optimizer: Optimizer, tensors: Mapping[str, Any]) -> Any:
        key = (selection, optimizer, signature(tensors), self.micro_batch_size)
        if key not in self._compiled:
            built = update.build_update(
                self._micro_batch(selection, tensors),
                selection,
                optimizer,
                micro_batch_size=self.micro_batch_size,
                scaled=self.loss_scale is not None,
                ema_decay=self.averages.decay if self.averages is not None else None,
            )
            scalar, handle = tf.TensorSpec([], tf.float64), tf.TensorSpec([], tf.resource)
            self._compiled[key] = tf.function(built, autograph=False).get_concrete_function(
                specs_of(tensors),
                scalar,
                scalar,
                [[handle] * len(optimizer.slots) for _ in selection.trained],
                tf.TensorSpec([len(selection.trained), optimizer.powers(np.ones(1)).shape[1]], tf.float64),
                [handle for _ in selection.trained] if self.averages is not None else [],
            )
            self.traces += 1
        return self._compiled[key]
