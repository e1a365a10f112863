"""The runner keras_fit of a study: the same steps through Keras' own compile and fit.

Keras freezes by ``layer.trainable`` and ``variable.trainable``. A layer is frozen as a whole if none of its weights
trains, otherwise variable by variable; BatchNorm runs in inference mode where the selection says so.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from engine import keras_private
from engine.graphs import dataflow
from engine.selection.proof import FreezeProof
from engine.selection.selection import Selection
from engine.study.cost import Cost, TracedPass, count_cost
from engine.study.job import Setting
from engine.study.measurements import LeftOut, Measurements, NotFiniteError
from engine.training import phases as phase_rules
from engine.training.loop import Stage
from engine.training.phases import Evaluation

_LOSSES: dict[str, Callable[[], Any]] = {
    "softmax": lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "sigmoid": lambda: keras.losses.BinaryCrossentropy(from_logits=True),
    "mse": lambda: keras.losses.MeanSquaredError(),
}
_METRICS: dict[str, Callable[[], list[Any]]] = {
    "softmax": lambda: [keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    "sigmoid": lambda: [keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)],
    "mse": list,
}


class KerasRunner:
    """compile and fit, once for each phase, with Keras' own evaluate between steps.

    An ``engine.study.runners.Runner``; Keras has no feature cache and skips no steps.
    """

    skipped_steps = 0
    cache: dict[str, Any] | None = None

    def __init__(self, setting: Setting, stages: Sequence[Stage], *, scratch: pathlib.Path) -> None:
        del scratch
        self.setting, self.stages = setting, list(stages)
        self.model = setting.task.model.network
        self.measurements = Measurements()
        self.phases: list[dict[str, Any]] = []
        self.evaluations: list[Evaluation] = []
        self.step = 0

    @classmethod
    def why_not(cls, setting: Setting) -> str | None:
        """Why Keras' fit cannot run a job; None when it can."""
        job = setting.job
        if not setting.is_keras:
            return f"{job.model} is not a Keras model"
        if job.micro_batches > 1:
            return f"micro_batches={job.micro_batches}: Keras' accumulation never applies an incomplete last group"
        return None

    def run(self) -> None:
        """Trains to the end.

        Raises NotFiniteError if the loss of a step is not finite (Keras has applied it by then), and LeftOut if the strategy
        trains by another rule than Adam with one learning rate.
        """
        if any(stage.optimizer != self.setting.optimizer for stage in self.stages):
            raise LeftOut("Keras' fit trains by Adam with one learning rate for all layers")
        job, per_epoch = self.setting.job, self.setting.batches.per_epoch
        self.measurements.begin()
        while self.step < job.steps and (where := self._where()).phase < len(self.stages):
            stage = self.stages[where.phase]
            proof, start = FreezeProof.begin(stage.selection), self.step
            started = time.perf_counter()
            self._compile(stage)
            self.measurements.preparing += time.perf_counter() - started
            if not self.evaluations:
                self.evaluate(stage)
            stop = min(where.from_step + stage.phase.step_count(per_epoch), job.steps)
            watch = _Watch(self, stage, where.phase, stop)
            self.model.fit(
                self._dataset(start, stop), epochs=1, steps_per_epoch=stop - start, verbose=0, callbacks=[watch]
            )
            if not watch.finite:
                what = f"step {self.step} was not finite, and Keras has applied it (phase {stage.phase.name!r})"
                raise NotFiniteError(what, stage, {})
            row = {"name": stage.phase.name, "train": stage.phase.train, "from_step": start, "to_step": self.step}
            self.phases.append(row | {"changed": proof.changed(stage.selection)})
            self.measurements.slot_bytes = max(self.measurements.slot_bytes, self.slot_bytes())
        self.measurements.end()

    def evaluate(self, stage: Stage) -> None:
        """Evaluates with Keras' own evaluate."""
        found = self.model.evaluate(self._evaluation(), verbose=0, return_dict=True)
        evaluation = Evaluation(self.step, stage.phase.name, float(found["loss"]), found.get("accuracy"), None)
        self.evaluations.append(evaluation)
        self.measurements.add_evaluation(evaluation)
        self.model.reset_metrics()

    def has_ended(self, phase: int) -> bool:
        """Whether the evaluations so far end a phase."""
        return self._where().phase != phase

    def slot_bytes(self) -> int:
        """The size of Adam's m and v."""
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        slots = keras_private.slot_variables(optimizer)
        return sum(int(np.prod(slot.shape)) * tf.as_dtype(slot.dtype).size for slot in slots)

    def cost(self, stage: Stage) -> Cost:
        """The arithmetic of a step of a phase."""
        freeze(self.model, stage.selection)
        pair = self._pair(self.setting.batches.at(0))
        return count_cost(trace_pass(self.model, _LOSSES[self.setting.job.loss](), pair))

    def close(self) -> None:
        """There is nothing to release."""

    def _where(self) -> phase_rules.Position:
        phases = [stage.phase for stage in self.stages]
        per_epoch = self.setting.batches.per_epoch
        return phase_rules.locate(phases, per_epoch, self.step, self.evaluations, "eval_loss")

    def _compile(self, stage: Stage) -> None:
        freeze(self.model, stage.selection)
        rule = self.setting.optimizer
        self.model.compile(
            keras.optimizers.Adam(stage.learning_rate, rule.beta1, rule.beta2, epsilon=rule.epsilon),  # type: ignore[attr-defined]
            _LOSSES[self.setting.job.loss](),
            metrics=_METRICS[self.setting.job.loss](),
        )

    def _dataset(self, start: int, stop: int) -> Any:
        def batches() -> Iterator[tuple[Any, Any]]:
            for batch in self.setting.batches.between(start, stop):
                yield self._pair(batch)

        first = self._pair(self.setting.batches.at(start))
        return tf.data.Dataset.from_generator(batches, output_signature=_signature(first)).prefetch(2)

    def _evaluation(self) -> Any:
        first = self._pair(next(iter(self.setting.evaluation)))
        return tf.data.Dataset.from_generator(
            lambda: (self._pair(batch) for batch in self.setting.evaluation), output_signature=_signature(first)
        ).prefetch(2)

    def _pair(self, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        label = np.asarray(batch["label"])
        if self.setting.job.loss != "softmax":
            label = label.astype(np.float32)
            label = label[:, None] if label.ndim == 1 else label
        return batch["image"], label


class _Watch(keras.callbacks.Callback):
    """Times the steps, evaluates when it is due, and ends the phase."""

    def __init__(self, runner: KerasRunner, stage: Stage, phase: int, stop: int) -> None:
        super().__init__()
        self.runner, self.stage, self.phase, self.stop = runner, stage, phase, stop
        self.finite, self._first = True, True
        self._start = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.reset_metrics()  # Keras reports means over an epoch; this makes it the step's own loss
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        runner, job = self.runner, self.runner.setting.job
        loss = float(logs["loss"])
        seconds = time.perf_counter() - self._start
        _, positions = runner.setting.batches.place(runner.step)
        runner.measurements.add_step(loss, seconds=seconds, examples=len(positions), timed=not self._first)
        self._first = False
        runner.step += 1
        if not np.isfinite(loss):
            self.finite, self.model.stop_training = False, True
            return
        if runner.step % job.eval_every == 0 or runner.step == self.stop:
            runner.evaluate(self.stage)
            self.model.stop_training = runner.step == self.stop or runner.has_ended(self.phase)


def _signature(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(tf.TensorSpec([None, *part.shape[1:]], part.dtype) for part in parts)


def freeze(model: Any, selection: Selection) -> None:
    """Makes a Keras model train a selection by ``trainable`` of layers and of variables.

    Raises RuntimeError if Keras would train other variables.
    """
    trained = {id(entry.variable) for entry in selection.trained}
    model.trainable = True
    for layer in keras_private.flatten_layers(model):
        inner = keras_private.flatten_layers(layer, include_self=False)
        if not inner and layer.weights and not any(id(variable.value) in trained for variable in layer.weights):
            layer.trainable = False
    for statistics in selection.inference:
        statistics.layer.trainable = False  # the layer runs in inference mode; below, its trained weights are unfrozen
    for variable in model.weights:
        if variable.trainable != (id(variable.value) in trained):
            variable.trainable = id(variable.value) in trained
    found = {id(variable.value) for variable in model.trainable_variables}
    if found != trained:
        raise RuntimeError(f"Keras would train {len(found)} variables, not the {len(trained)} of the selection")


def trace_pass(model: Any, loss: Any, batch: tuple[Any, ...]) -> TracedPass:
    """The forward and backward pass of Keras' train_step, traced but not run."""
    kept: dict[str, Any] = {}

    def compute(images: Any, labels: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            value = loss(labels, model(images, training=True))
        kept["forward"] = tf.compat.v1.get_default_graph().get_operations()
        gradients = tape.gradient(value, [variable.value for variable in model.trainable_variables])
        kept["gradients"] = [tf.convert_to_tensor(gradient) for gradient in gradients]
        return list(kept["gradients"])

    function = tf.function(compute, autograph=False).get_concrete_function(*_signature(batch))
    forward = set(kept["forward"])
    needed = dataflow.ancestors(kept["gradients"])
    backward = [op for op in function.graph.get_operations() if op in needed and op not in forward]
    used = [op for op in kept["forward"] if op in needed]
    return TracedPass(function.graph, function.graph.inputs[:2], used, backward)
