"""TrainStep: trains one batch per call, with one compiled function per selection and optimizer.

Slots are passed to the compiled function as handles, so the function outlives them, and returning to a recent selection
traces nothing.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import tensorflow as tf

from engine.distribution.reduction import Communication
from engine.distribution.replicas import Replicas
from engine.distribution.shares import WHOLE
from engine.graphs.tracing import batch_signature, batch_specs, call_unchecked
from engine.selection.selection import Selection
from engine.selection.variables import ModelVariables
from engine.training import compiling, losses, microbatch, replicated, update
from engine.training.losses import LossFunction
from engine.training.microbatch import MicroBatch, StepError
from engine.training.optimizers import Optimizer, set_paces
from engine.training.precision import LossScale
from engine.training.rates import Rates
from engine.training.remat import check as check_remat
from engine.training.step_batch import StepBatch, read_batch
from engine.training.step_result import NonFinite, StepResult
from engine.training.step_state import StepState
from engine.training.traced_step import PreparedStep, TracedStep, name_handles
from engine.training.traces import Traces


class TrainStep(StepState):
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
        strategy: a ``tf.distribute.MirroredStrategy`` or ``MultiWorkerMirroredStrategy``: its replicas share the examples
            of a step and add their sums, so the step is that of one device up to rounding. Create the model outside of
            ``strategy.scope()``: the step keeps copies of the variables on its devices. None is one device.
        sync_batch_norm: whether BatchNorm layers in training mode normalise by the moments of all replicas' examples; needs
            a strategy, and steps in one piece.

    Attributes:
        slots: the optimizer state of the current selection.
        averages: the averages of the current selection, or None.
        steps: the number of steps trained, including skipped ones but not one at which "stop" raised an error.
        skipped: the number of skipped steps.
        left_out: for each term, the number of steps in which all its weights were 0.
        traces: the number of functions traced so far.
        replicas: the replicas of the strategy; None with one device.

    Raises:
        StepError, RematError, EmaError, CompileError, DistributionError: an argument is out of range.

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
        strategy: Any | None = None,
        sync_batch_norm: bool = False,
    ) -> None:
        if micro_batch_size is not None and micro_batch_size < 1:
            raise StepError(f"micro_batch_size={micro_batch_size}: expected at least 1")
        if nonfinite not in (None, "skip", "stop"):
            raise StepError(f"nonfinite={nonfinite!r}: expected 'skip' or 'stop'")
        if give_up < 1:
            raise StepError(f"give_up={give_up}: expected at least 1")
        super().__init__(optimizer, loss_scale=loss_scale, ema=ema, nonfinite=nonfinite, give_up=give_up)
        self.loss_fn = loss_fn
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.remat = check_remat(remat)
        self.jit_compile = compiling.check(jit_compile)
        self._compiles = compiling.decide(self.jit_compile)
        self._traces = Traces()
        replicas = None if strategy is None else Replicas(strategy)
        self.replicas = None if replicas is None or replicas.share.of == 1 else replicas  # one device needs nothing
        self._synchronised = self.replicas if sync_batch_norm else None
        if sync_batch_norm:
            microbatch.check_synchronised(strategy, micro_batch_size)
        self._share = WHOLE if self.replicas is None else self.replicas.share

    def __call__(
        self,
        selection: Selection,
        batch: Mapping[str, Any],
        *,
        learning_rate: float,
        rates: Rates | None = None,
        optimizer: Optimizer | None = None,
        stopping: bool = False,
    ) -> StepResult:
        """Trains the selection on one batch.

        Args:
            batch: arrays or tensors by name, whose first axis is the examples. "seeds" (int32 [B, 2]) are the random
                seeds of the examples; "index" is ignored. With several workers a batch has the examples of this worker
                (``replicas.share``), and "examples" is the number of examples of the whole step.
            learning_rate: the learning rate of the variables that no rule of ``rates`` matches.
            rates: learning rates by filter (``parse_rates``), in this step: a schedule is a factor on both,
                ``learning_rate=base * factor, rates=rates.scaled(factor)``.
            optimizer: hyperparameters for this step, instead of the constructor's; they must have the same slots.
            stopping: whether this worker wants to stop after the step, which all workers then hear of.

        Raises:
            RateError: a rule of ``rates`` decides none of the trained variables.
            StepError: the batch is empty, its arrays differ in length, the loss does not depend on a trained variable, or
                the forward pass itself would write a frozen variable or uses one that the model does not list.
            LossError: the loss breaks its contract, for example by a negative weight.
            NonFiniteError: see ``nonfinite`` and ``give_up``. The message names the variables concerned.
            CompileError: XLA cannot compile the step; the message names the operation. Nothing has changed.
        """
        given: dict[str, Any] = {"rates": rates, "optimizer": optimizer, "stopping": stopping}
        prepared = self.prepare(selection, batch, learning_rate=learning_rate, **given)
        with compiling.explained(self.jit_compile, prepared.inner):
            result = call_unchecked(prepared.function, *prepared.arguments)
        return self.conclude(prepared, result)

    def prepare(
        self,
        selection: Selection,
        batch: Mapping[str, Any],
        *,
        learning_rate: float,
        rates: Rates | None = None,
        optimizer: Optimizer | None = None,
        stopping: bool = False,
    ) -> PreparedStep:
        """The first part of a call, up to the compiled function and its arguments; raises as a call does, before it runs.

        It traces what has not been traced, and creates slots and averages, which may begin at the variables' values.
        """
        optimizer = (optimizer or self.optimizer).checked_for(learning_rate)
        read = self._read(batch)
        tensors = read.tensors
        self._micro_batch(selection, tensors).check()
        self.slots.fit(selection, optimizer)
        if self.averages is not None:
            self.averages.fit(selection)
        scale = self.loss_scale.scale if self.loss_scale is not None else 1.0
        rate = tf.constant(learning_rate if rates is None else [learning_rate, *rates.values], tf.float64)
        averages = self.averages.variables(selection) if self.averages is not None else []
        powers = tf.constant(optimizer.powers(self.slots.steps(selection) + 1))
        slots, scaled_by = self.slots.variables(selection), tf.constant(scale, tf.float64)
        found = self._function(selection, optimizer, tensors, rates)
        arguments: tuple[Any, ...]
        if self.replicas is None:
            function = inner = found
            handles = tf.nest.map_structure(lambda variable: variable.handle, [slots, averages])
            arguments = (tensors, rate, scaled_by, handles[0], powers, handles[1])
        else:
            function, inner = found.function, found.inner
            self.replicas.follow()
            spread = [self.replicas.handles(slots), powers, self.replicas.handles(averages)]
            wish = tf.constant(float(stopping), tf.float64)
            arguments = (*read.shared(self._share), wish, rate, scaled_by, *spread)
        return PreparedStep(selection, read, function, inner, arguments, scale, stopping)

    def conclude(
        self, prepared: PreparedStep, result: Mapping[str, Any], *, before_reading: Callable[[], None] = lambda: None
    ) -> StepResult:
        """The last part of a call: checks and counts what the compiled function returned; raises as a call does.

        ``before_reading`` is called before the gradients of a step that is not finite are computed again.
        """
        selection = prepared.selection
        losses.check_results(result)
        applied = bool(result["applied"])
        explain = functools.partial(self._whose, prepared, before_reading)
        self._judge(applied, bool(result["finite"]), prepared.scale, explain)
        if applied:
            self.slots.advance(selection)
        empty = tuple(name for name, weight in result["weights"].items() if not float(weight))
        for name in empty:
            self.left_out[name] = self.left_out.get(name, 0) + 1
        given = {name: result[name] for name in ("loss", "terms", "metrics", "grad_norm", "metric_weights")}
        stops = prepared.stopping if self.replicas is None else bool(result["stopping"])
        return StepResult(**given, skipped=not applied, loss_scale=prepared.scale, left_out=empty, stopping=stops)

    def sibling(self, *, seed: int | None = None) -> TrainStep:
        """A step for another run of the same network, as new: its own slots, averages, loss scale and counters.

        It has the loss, the settings and the traces of this one, so what either has traced need not be traced again.
        ``seed`` is the base of the random seeds of examples; None is that of this step.
        """
        found = copy.copy(self)
        found.begin_anew()
        found.seed = self.seed if seed is None else seed
        return found

    def keep(self, prepared: PreparedStep, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make`` returns, kept with the compiled function of a call for as long as that is kept."""
        return self._traces.find(prepared.selection, (key, id(prepared.function)), make)

    def make_room(self, selections: int) -> None:
        """Keeps the traces of this many selections from now on, if it kept fewer; siblings keep them together."""
        self._traces.kept = max(self._traces.kept, selections)

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
        if self.replicas is not None:
            raise StepError("strategy: a step of several replicas is several graphs; trace it without a strategy")
        tensors = self.tensors(batch)
        graph = self._function(selection, self.optimizer, tensors).graph
        handles = name_handles(
            graph, selection, self.optimizer, arrays=len(tensors), averaged=self.averages is not None
        )
        return TracedStep(graph, handles, self._micro_batch(selection, tensors))

    def evaluating(self, variables: ModelVariables) -> contextlib.AbstractContextManager[None]:
        """Puts the averages, if there are any, into the model for an evaluation in a ``with`` block."""
        follow = None if self.replicas is None else self.replicas.synchronize
        return contextlib.nullcontext() if self.averages is None else self.averages.in_place(variables, follow=follow)

    def communication(
        self, selection: Selection, batch: Mapping[str, Any], *, optimizer: Optimizer | None = None, rates: Any = None
    ) -> Communication:
        """What a replica sends in a step that was called with these arguments, counted in the traced graph."""
        if self.replicas is None:
            return Communication()
        tensors = self.tensors(batch)
        found: replicated.ReplicatedStep = self._function(selection, optimizer or self.optimizer, tensors, rates)
        return found.communication

    def caveats(self, selection: Selection) -> list[str]:
        """Returns a sentence for each reason why parts of a step are not exact for this selection; none in one piece."""
        if self.micro_batch_size is None and self.replicas is None:
            return []
        part: microbatch.Part = "replica's share" if self.micro_batch_size is None else "micro-batch"
        return microbatch.list_caveats(selection, part=part, synchronised=self._synchronised is not None)

    def notes(self, selection: Selection) -> list[str]:
        """Returns a sentence for each decision about layers with a state of their own and XLA, as far as steps were traced."""
        traces = list(self._traces.of(selection))
        found = [trace.notes(self.optimizer) for trace in traces if isinstance(trace, MicroBatch)]
        found += [trace.notes for trace in traces if isinstance(trace, compiling.Obstacle)]
        found += [compiling.list_notes(self.remat)] if self._compiles else []
        return list(dict.fromkeys(note for notes in found for note in notes))

    # ---- the implementation of a call

    def _whose(self, prepared: PreparedStep, before_reading: Callable[[], None]) -> str:
        """Computes the gradients again, and names the variables whose gradients are not finite."""
        selection, batch, scale = prepared.selection, prepared.batch, prepared.scale
        tensors = batch.tensors
        micro, compiled = self._micro_batch(selection, tensors), self._is_compiled(selection, tensors)
        settings: dict[str, Any] = {"micro_batch_size": self.micro_batch_size, "compiled": compiled}
        before_reading()
        if self.replicas is None:
            return update.explain_not_finite(micro, selection, tensors, scale, **settings)
        settings |= {"replicas": self.replicas, "specs": batch_specs(tensors)}
        return replicated.explain_not_finite(micro, selection, batch.shared(self._share), scale, **settings)

    def tensors(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Checks a batch (StepError) and converts it to tensors, with "seeds" added if there are none."""
        return self._read(batch).tensors

    def _read(self, batch: Mapping[str, Any]) -> StepBatch:
        return read_batch(batch, self._share, seed=self.seed, step=self.steps)

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

    @property
    def _whole(self) -> bool:
        return self.micro_batch_size is None and self.replicas is None

    def _micro_key(self, tensors: Mapping[str, Any]) -> tuple[Any, ...]:
        return "micro-batch", batch_signature(tensors), self._whole

    def _trace(self, selection: Selection, tensors: Mapping[str, Any], *, inline: bool) -> MicroBatch:
        found = microbatch.trace_micro_batch(
            self.loss_fn,
            selection,
            batch_specs(tensors),
            whole=self._whole,
            remat_mode=self.remat,
            inline=inline,
            compiled=self._compiles,
            synchronised=self._synchronised,
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
            settings: dict[str, Any] = {
                "specs": batch_specs(tensors),
                "filters": filters,
                "micro_batch_size": self.micro_batch_size,
                "scaled": self.loss_scale is not None,
                "ema_decay": self.averages.decay if self.averages is not None else None,
                "paces": set_paces(selection, optimizer, rates),
                "compiled": self._is_compiled(selection, tensors),
            }
            micro = self._micro_batch(selection, tensors)
            if self.replicas is None:
                return update.trace_update(micro, selection, optimizer, **settings)
            return replicated.trace_replicated_step(micro, selection, optimizer, replicas=self.replicas, **settings)

        return self._traces.find(selection, key, trace)
