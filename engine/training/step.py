"""TrainStep: trains one batch per call, with one compiled function per selection and optimizer.

Slots are passed to the compiled function as handles, so the function outlives them, and returning to a recent selection
traces nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from engine.graphs.tracing import batch_signature, batch_specs, batch_tensors, call_unchecked
from engine.seeds import example_seeds
from engine.selection.selection import Selection
from engine.selection.variables import ModelVariables
from engine.training import compiling, losses, microbatch, update
from engine.training.ema import Averages
from engine.training.losses import LossFunction
from engine.training.microbatch import MicroBatch, StepError
from engine.training.optimizer_state import Slots
from engine.training.optimizers import Optimizer, set_paces
from engine.training.precision import LossScale
from engine.training.rates import Rates
from engine.training.remat import check as check_remat
from engine.training.traced_step import TracedStep, name_handles
from engine.training.traces import Traces

NonFinite = Literal["skip", "stop"]


class NonFiniteError(RuntimeError):
    """The loss or a gradient of a step is not finite. The step has changed nothing."""


@dataclass(frozen=True)
class StepResult:
    """The result of one step. Scalars are tensors, so that they are copied from the device only when they are read.

    Attributes:
        loss: the sum of all terms and the regulariser.
        terms: the weighted mean of each term, by name.
        metrics: the weighted mean of each metric, by name.
        grad_norm: the global norm of the gradient of the trained variables, before clipping.
        skipped: whether nothing was updated, because the loss or the gradient was not finite or no example had a weight.
        loss_scale: the loss scale used in this step; 1.0 if there is none.
        left_out: the names of terms whose weights were all 0.

    Example:
        >>> import tensorflow as tf
        >>> from engine import SGD, Loss, TrainStep, select
        >>> model = {"w": tf.Variable(2.0)}
        >>> step = TrainStep(lambda batch, *, training, seeds: Loss({"term": (batch["x"] * model["w"], None)}), SGD())
        >>> result = step(select(model, "w"), {"x": tf.constant([1.0, 3.0])}, learning_rate=0.1)
        >>> float(result.loss), float(result.grad_norm), result.skipped
        (4.0, 2.0, False)
    """

    loss: Any
    terms: Mapping[str, Any]
    metrics: Mapping[str, Any]
    grad_norm: Any
    skipped: bool = False
    loss_scale: float = 1.0
    left_out: tuple[str, ...] = ()


class TrainStep:
    """Trains a selection of variables. Each call is one step: one optimizer update from one batch.

    A call computes the loss of the batch and the gradients of the selection's trained variables, and updates these and
    nothing else. Everything obeys the selection: the tape records nothing below the lowest trained variable; slots,
    averages, weight decay and the clipping norm cover only trained variables; and a BatchNorm layer of which nothing
    trains runs in inference mode. A variable that leaves the selection loses its slots, and one that joins it starts
    with new ones, so a phase of a run is just a series of calls with the same selection.

    The first call with a selection traces and compiles a function for it, the optimizer's hyperparameters and the names,
    dtypes and shapes in the batch (not the batch size). Later calls reuse it, even after a few other selections have been
    trained in between (engine.training.traces); after many, it is traced again, with the same result. Learning rates and the loss scale are inputs of the function and may change in every step.

    A step is computed in one piece, or as micro-batches to save memory. Both give the same result up to rounding, because
    values and gradients are summed over the micro-batches and divided once by the weights of the whole step.

    Args:
        loss_fn: the loss function, ``loss_fn(batch, *, training, seeds) -> Loss`` (see ``Loss``).
        optimizer: the hyperparameters; a call can use others of the same kind.
        seed: the base of the random seeds of examples, for batches without "seeds".
        micro_batch_size: the number of examples per micro-batch, of which the last may have fewer; None computes a step
            in one piece.
        remat: "none", "elementwise" or "blocks": what the backward pass recomputes instead of keeping it
            (engine.training.remat).
        loss_scale: a dynamic loss scale, needed by models that compute in float16.
        ema: the decay of exponential moving averages of the trained variables; None keeps none.
        nonfinite: "stop" raises an error at the first step whose loss or gradient is not finite; "skip" skips such
            steps; None means "skip" with a loss scale and "stop" without. Such a step never changes a variable.
        give_up: the number of consecutive skipped steps after which an error is raised nevertheless.
        jit_compile: whether XLA compiles the whole step: "on", "off", or "auto" (on GPUs, and not where the step has an
            operation that XLA cannot compile). It compiles once for each batch size.

    Attributes:
        slots: the optimizer state of the current selection.
        averages: the averages of the current selection, or None.
        steps: the number of steps trained, including skipped ones but not one at which "stop" raised an error.
        skipped: the number of skipped steps.
        left_out: for each term, the number of steps in which all its weights were 0.
        traces: the number of functions traced so far.

    Raises:
        StepError, RematError, EmaError, CompileError: an argument is out of range.

    Example:
        >>> import tensorflow as tf
        >>> from engine import SGD, Loss, TrainStep, select
        >>> model = {"stem/w": tf.Variable(1.0), "head/w": tf.Variable(2.0)}
        >>> def loss_fn(batch, *, training, seeds):
        ...     outputs = model["head/w"] * model["stem/w"] * batch["x"]
        ...     return Loss(terms={"mse": (tf.square(outputs - batch["y"]), None)})
        >>> step = TrainStep(loss_fn, SGD())
        >>> result = step(select(model, "head/.*"), {"x": tf.ones([4]), "y": tf.ones([4])}, learning_rate=0.25)
        >>> float(result.loss), [float(variable) for variable in model.values()]
        (1.0, [1.0, 1.5])
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
        jit_compile: str = "auto",
    ) -> None:
        if micro_batch_size is not None and micro_batch_size < 1:
            raise StepError(f"micro_batch_size={micro_batch_size}: expected at least 1")
        if nonfinite not in (None, "skip", "stop"):
            raise StepError(f"nonfinite={nonfinite!r}: expected 'skip' or 'stop'")
        if give_up < 1:
            raise StepError(f"give_up={give_up}: expected at least 1")
        self.loss_fn = loss_fn
        self.optimizer = optimizer
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.remat = check_remat(remat)
        self.loss_scale = loss_scale
        self.nonfinite = nonfinite or ("skip" if loss_scale is not None else "stop")
        self.give_up = give_up
        self.jit_compile = compiling.check(jit_compile)
        self._compiles = compiling.decide(self.jit_compile)
        self.slots = Slots()
        self.averages = Averages(ema) if ema is not None else None
        self.steps = self.skipped = self.traces = self._skipped_in_row = 0
        self.left_out: dict[str, int] = {}
        self._traces = Traces()

    def __call__(
        self,
        selection: Selection,
        batch: Mapping[str, Any],
        *,
        learning_rate: float,
        rates: Rates | None = None,
        optimizer: Optimizer | None = None,
    ) -> StepResult:
        """Trains the selection on one batch.

        Args:
            batch: arrays or tensors by name, whose first axis is the examples. "seeds" (int32 [B, 2]) are the random
                seeds of the examples; "index" is ignored.
            learning_rate: the learning rate of the variables that no rule of ``rates`` matches.
            rates: learning rates by filter (``parse_rates``), in this step: a schedule is a factor on both,
                ``learning_rate=base * factor, rates=rates.scaled(factor)``.
            optimizer: hyperparameters for this step, instead of the constructor's; they must have the same slots.

        Raises:
            RateError: a rule of ``rates`` decides none of the trained variables.
            StepError: the batch is empty, its arrays differ in length, the loss does not depend on a trained variable, or
                the forward pass itself would write a frozen variable or uses one that the model does not list.
            LossError: the loss breaks its contract, for example by a negative weight.
            NonFiniteError: see ``nonfinite`` and ``give_up``. The message names the variables concerned.
            CompileError: XLA cannot compile the step; the message names the operation. Nothing has changed.
        """
        optimizer = (optimizer or self.optimizer).checked_for(learning_rate)
        tensors = self.tensors(batch)
        self._micro_batch(selection, tensors).check()
        self.slots.fit(selection, optimizer)
        if self.averages is not None:
            self.averages.fit(selection)
        function = self._function(selection, optimizer, tensors, rates)
        scale = self.loss_scale.scale if self.loss_scale is not None else 1.0
        with compiling.explained(self.jit_compile, function):
            result = call_unchecked(
                function,
                tensors,
                tf.constant(learning_rate if rates is None else [learning_rate, *rates.values], tf.float64),
                tf.constant(scale, tf.float64),
                self.slots.handles(selection),
                tf.constant(optimizer.powers(self.slots.steps(selection) + 1)),
                self.averages.handles(selection) if self.averages is not None else [],
            )
        losses.check_weights(result["weights"])
        losses.check_weights(result["metric_weights"])
        if bool(result["finite"]) and not bool(result["exact"]):
            raise losses.LossError(
                "the weights of the micro-batches do not sum to those of the step: the weight of an example must not "
                "depend on other examples; compute it from the example alone, or add it to the batch beforehand"
            )
        applied = bool(result["applied"])
        self._judge(selection, tensors, applied, bool(result["finite"]), scale)
        if applied:
            self.slots.advance(selection)
        empty = tuple(name for name, weight in result["weights"].items() if not float(weight))
        for name in empty:
            self.left_out[name] = self.left_out.get(name, 0) + 1
        found = {name: result[name] for name in ("loss", "terms", "metrics", "grad_norm")}
        return StepResult(**found, skipped=not applied, loss_scale=scale, left_out=empty)

    def micro_batch(self, selection: Selection, batch: Mapping[str, Any], *, inline: bool = False) -> MicroBatch:
        """Returns the traced forward and backward pass for a selection and batches like this one, without running it.

        With ``inline`` it is traced again, with the tf.functions that the loss calls inlined; the step itself keeps its
        own trace. Raises StepError as a call does.
        """
        tensors = self.tensors(batch)
        found = self._trace(selection, tensors, inline=True) if inline else self._micro_batch(selection, tensors)
        found.check()
        self._is_compiled(selection, tensors)
        return found

    def use_micro_batch(self, selection: Selection, specs: Mapping[str, Any], micro: MicroBatch) -> None:
        """Makes batches of these specs use this micro-batch, instead of a trace of the loss, from now on."""
        self._traces.give(selection, self._micro_key(specs), micro)

    def traced(self, selection: Selection, batch: Mapping[str, Any]) -> TracedStep:
        """Returns the compiled step for a selection and batches like this one, without running it.

        Unlike a call it does so even if the step must not be run, so that one can look at what it would write.
        """
        tensors = self.tensors(batch)
        graph = self._function(selection, self.optimizer, tensors).graph
        handles = name_handles(
            graph, selection, self.optimizer, arrays=len(tensors), averaged=self.averages is not None
        )
        return TracedStep(graph, handles, self._micro_batch(selection, tensors))

    def evaluating(self, variables: ModelVariables) -> contextlib.AbstractContextManager[None]:
        """Puts the averages, if there are any, into the model for an evaluation in a ``with`` block."""
        return contextlib.nullcontext() if self.averages is None else self.averages.in_place(variables)

    def caveats(self, selection: Selection) -> list[str]:
        """Returns a sentence for each reason why micro-batches are not exact for this selection; none in one piece."""
        return [] if self.micro_batch_size is None else microbatch.list_caveats(selection)

    def notes(self, selection: Selection) -> list[str]:
        """Returns a sentence for each decision about layers with a state of their own and XLA, as far as steps were traced."""
        traces = list(self._traces.of(selection))
        found = [trace.notes(self.optimizer) for trace in traces if isinstance(trace, MicroBatch)]
        found += [trace.notes for trace in traces if isinstance(trace, compiling.Obstacle)]
        found += [compiling.list_notes(self.remat)] if self._compiles else []
        return list(dict.fromkeys(note for notes in found for note in notes))

    def state(self) -> dict[str, Any]:
        """Returns the state that a resume needs besides variables and ``arrays``."""
        scale = self.loss_scale
        return {
            "steps": self.steps,
            "skipped": self.skipped,
            "skipped_in_row": self._skipped_in_row,
            "left_out": dict(self.left_out),
            "loss_scale": None if scale is None else {"scale": scale.scale, "good": scale.good},
        }

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the names and values of slots (``optimizer/<path>/<slot>``) and averages (``ema/<path>``)."""
        yield from self.slots.arrays()
        if self.averages is not None:
            yield from self.averages.arrays()

    def restore(self, variables: ModelVariables, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Restores saved ``state()`` and ``arrays()``; raises OptimizerError or EmaError if the arrays do not fit."""
        self.slots.restore(variables, self.optimizer, arrays)
        if self.averages is not None:
            self.averages.restore(variables, arrays)
        self.steps, self.skipped = state["steps"], state["skipped"]
        self._skipped_in_row, self.left_out = state["skipped_in_row"], dict(state["left_out"])
        if self.loss_scale is not None and state["loss_scale"] is not None:
            self.loss_scale.scale, self.loss_scale.good = state["loss_scale"]["scale"], state["loss_scale"]["good"]

    # ---- the implementation of a call

    def _judge(
        self, selection: Selection, tensors: Mapping[str, Any], applied: bool, finite: bool, scale: float
    ) -> None:
        """Counts the step and adjusts the loss scale, or raises NonFiniteError (after counting the last skipped step)."""
        if not finite and self.nonfinite == "stop":
            raise NonFiniteError(f"step {self.steps + 1} was not applied; {self._whose(selection, tensors, scale)}")
        self.steps += 1
        if self.loss_scale is not None:
            self.loss_scale.update(finite)
        if applied:
            self._skipped_in_row = 0
            return
        self.skipped += 1
        if finite:  # no example had a weight
            return
        self._skipped_in_row += 1
        if self._skipped_in_row >= self.give_up:
            at = "" if self.loss_scale is None else f", the last with loss scale {scale:g}"
            raise NonFiniteError(
                f"{self._skipped_in_row} steps in a row were skipped{at}; {self._whose(selection, tensors, scale)}"
            )

    def _whose(self, selection: Selection, tensors: Mapping[str, Any], scale: float) -> str:
        """Computes the gradients again, and names the variables whose gradients are not finite."""
        micro, compiled = self._micro_batch(selection, tensors), self._is_compiled(selection, tensors)
        size = self.micro_batch_size
        return update.explain_not_finite(micro, selection, tensors, scale, micro_batch_size=size, compiled=compiled)

    def tensors(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Checks a batch and converts it to the step's inputs: tensors, with "seeds" added if there are none.

        Raises StepError if the batch is empty, or its arrays differ in length.
        """
        tensors = batch_tensors(batch)
        lengths = {name: t.shape[0] if t.shape.rank else None for name, t in tensors.items()}
        if not lengths or None in lengths.values() or len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise StepError(
                f"batch: all arrays must have the same number of examples (at least 1) on their first axis; got {lengths}"
            )
        if "seeds" not in tensors:
            count = int(next(iter(tensors.values())).shape[0])
            tensors["seeds"] = tf.constant(example_seeds(self.seed, self.steps, np.arange(count)))
        return tensors

    def _micro_batch(self, selection: Selection, tensors: Mapping[str, Any]) -> MicroBatch:
        found: MicroBatch = self._traces.find(
            selection, self._micro_key(tensors), lambda: self._trace(selection, tensors, inline=False)
        )
        return found

    def _is_compiled(self, selection: Selection, tensors: Mapping[str, Any]) -> bool:
        """Whether XLA compiles the step; CompileError if it must, and an operation of the micro-batch does not let it."""
        if not self._compiles:
            return False
        micro, key = self._micro_batch(selection, tensors), ("obstacle", *self._micro_key(tensors))
        found = self._traces.find(selection, key, lambda: compiling.Obstacle.find(self.jit_compile, micro.function))
        return found.text is None

    def _micro_key(self, tensors: Mapping[str, Any]) -> tuple[Any, ...]:
        return "micro-batch", batch_signature(tensors), self.micro_batch_size is None

    def _trace(self, selection: Selection, tensors: Mapping[str, Any], *, inline: bool) -> MicroBatch:
        whole = self.micro_batch_size is None
        found = microbatch.trace_micro_batch(
            self.loss_fn,
            selection,
            batch_specs(tensors),
            whole=whole,
            remat_mode=self.remat,
            inline=inline,
            compiled=self._compiles,
        )
        if self.loss_scale is None and any(o.dtype == tf.float16 for op in found.backward for o in op.outputs):
            raise StepError(
                "loss_scale=None: the model computes in float16, which needs a loss scale: LossScale(), or "
                "--precision=mixed_float16"
            )
        return found

    def _function(
        self, selection: Selection, optimizer: Optimizer, tensors: Mapping[str, Any], rates: Rates | None = None
    ) -> Any:
        filters = None if rates is None else rates.filters
        key = ("step", optimizer, filters, batch_signature(tensors), self.micro_batch_size)

        def trace() -> Any:
            self.traces += 1
            return update.trace_update(
                self._micro_batch(selection, tensors),
                selection,
                optimizer,
                specs=batch_specs(tensors),
                filters=filters,
                micro_batch_size=self.micro_batch_size,
                scaled=self.loss_scale is not None,
                ema_decay=self.averages.decay if self.averages is not None else None,
                paces=set_paces(selection, optimizer, rates),
                compiled=self._is_compiled(selection, tensors),
            )

        return self._traces.find(selection, key, trace)
