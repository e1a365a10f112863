"""Trains in a Session: one graph for a Selection and a freezing method, driven step by step.

A step has the same meaning as in the engine, and one that is not finite changes nothing. With one micro-batch, it is
one ``Session.run`` of a train op. With more, or with a loss scale, gradients are accumulated, and the host decides
whether to apply them.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.errors import SessionError
from compat_v1.training import session_line
from compat_v1.training.freezing import Freezing
from compat_v1.training.session_line import SessionLine
from compat_v1.training.training_graph import TrainingGraph
from engine.frostline.line import Refused
from engine.porting.readers.bundle_index import read_index
from engine.reading import check_regular
from engine.training import losses
from engine.training.losses import LossFunction
from engine.training.optimizers import Optimizer
from engine.training.precision import LossScale
from engine.training.step_result import NonFiniteError, StepResult

v1 = tf.compat.v1


_AT_ONCE = 64  # the number of variables to set in one run, since preparing a run costs more than the values
_IS_FINITE = re.compile(r"(above[^/]*/)?finite(_\d+)?")  # TrainingGraph's check, or a copy of it above a frost line


class SessionLoop:
    """Trains, evaluates, saves and restores one graph (``built``) in its session; ``skipped`` steps changed nothing.

    Raises FreezingError if the graph contradicts the selection; SessionError if the batch, the loss or the optimizer
    cannot be used.

    Args:
        loss_fn: ``loss_fn(batch, *, training, seeds) -> Loss`` (engine.training.losses), which builds its model with
            get_variable. The REGULARIZATION_LOSSES of the training graph are added to its regulariser.
        optimizer: an optimizer of engine.training.optimizers; its tf.compat.v1.train form trains, with the clipping and
            the decays of the engine.
        batch: an example of the batches, for their names, dtypes and shapes.
        micro_batch_size: the examples per micro-batch; None computes a step in one piece.
        loss_scale: a dynamic loss scale, which a model that computes in float16 needs.
        seed: the seed of the initial weights, unless ``assign`` sets others.
        summaries: the folder for TensorBoard's scalars, or None.
    """

    def __init__(
        self,
        loss_fn: LossFunction,
        freezing: Freezing,
        optimizer: Optimizer,
        batch: Mapping[str, Any],
        *,
        micro_batch_size: int | None = None,
        loss_scale: LossScale | None = None,
        seed: int = 0,
        summaries: pathlib.Path | None = None,
    ) -> None:
        if micro_batch_size is not None and micro_batch_size < 1:
            raise SessionError(f"micro_batch_size={micro_batch_size}: expected at least 1")
        self.freezing = freezing
        self.optimizer = optimizer
        self.micro_batch_size = micro_batch_size
        self.loss_scale = loss_scale
        self.skipped = 0
        self._line: SessionLine | None = None
        self.built = TrainingGraph(
            loss_fn,
            freezing,
            optimizer,
            _arrays(batch),
            in_parts=micro_batch_size is not None or loss_scale is not None,
            seed=seed,
        )
        with self.built.graph.as_default():
            self.session = v1.Session()
            self.session.run(self.built.initialise)
            self._writer = None if summaries is None else v1.summary.FileWriter(str(summaries), self.built.graph)

    # ---- a step

    def step(self, batch: Mapping[str, Any], *, learning_rate: float) -> StepResult:
        """Trains one step.

        The batch is name -> array [B, ...] as in the example batch, or one that ``below`` of the line returned; "index"
        is ignored. Raises NonFiniteError if the loss or gradient is not finite, and there is no loss scale (nothing has
        changed); LossError if a weight is negative; SessionError if the batch lacks an array, or a tensor at the line
        has another shape; OptimizerError if the optimizer cannot take a step with this learning rate.
        """
        self.optimizer.checked_for(learning_rate)
        arrays = _arrays(batch)
        statistics = [self.built.variables[entry.path] for entry in self.freezing.selection.moving]
        before = self.session.run(statistics)
        found = self._in_parts(arrays, learning_rate) if self.built.in_parts else self._at_once(arrays, learning_rate)
        finite = found is not None and _finite(found)
        skipped = found is None or not found["applied"]
        scale = self.loss_scale.scale if self.loss_scale is not None else 1.0
        if self.loss_scale is not None:
            self.loss_scale.update(finite)
        if skipped:
            self.assign({e.path: v for e, v in zip(self.freezing.selection.moving, before, strict=True)})
            if self.loss_scale is None and not finite:
                raise NonFiniteError("a step was not applied: its loss or its gradient is not finite")
            self.skipped += 1
        assert found is not None  # otherwise an error was raised
        weights = dict(zip(self.built.terms, found["weights"], strict=True))
        losses.check_weights(weights)
        result = StepResult(
            loss=found["loss"],
            terms={n: v / w if w else 0.0 for (n, w), v in zip(weights.items(), found["values"], strict=True)},
            metrics={name: value / mass if mass else 0.0 for name, (value, mass) in found["metrics"].items()},
            grad_norm=found["grad_norm"],
            skipped=skipped,
            loss_scale=scale,
        )
        self._summarise(result, learning_rate)
        return result

    def _at_once(self, arrays: Mapping[str, np.ndarray], rate: float) -> dict[str, Any] | None:
        try:
            runs, feed = self._fetched(arrays)
            _, found = self.session.run([runs.train_op, runs.report], feed | {self.built.rate: rate})
        except tf.errors.InvalidArgumentError as error:
            if error.op is not None and _IS_FINITE.fullmatch(error.op.name):
                return None
            raise
        return found | {"applied": True}

    def _in_parts(self, arrays: Mapping[str, np.ndarray], rate: float) -> dict[str, Any]:
        count = len(next(iter(arrays.values())))
        size = self.micro_batch_size or count
        runs, feed = self._fetched(arrays)
        weights = self.session.run(runs.weighted, feed) if runs.weighted else {}
        losses.check_weights(weights)
        divisors = [float(weights.get(name, count)) for name in self.built.terms]
        scale = self.loss_scale.scale if self.loss_scale is not None else 1.0
        self.session.run(runs.clear)
        found: dict[str, Any] = {}
        for start in range(0, count, size):
            part = {name: value[start : start + size] for name, value in arrays.items()}
            share = min(size, count - start) / count
            feed = self._fetched(part)[1]
            feed |= {self.built.divisors: divisors, self.built.share: share, self.built.scale: scale}
            _, more = self.session.run([runs.add, runs.report], feed)
            found = dict(more) if not found else tf.nest.map_structure(lambda a, b: a + b, found, dict(more))
        found["grad_norm"] = self.session.run(runs.norm, {self.built.scale: scale})
        # a step without any weight has no gradient; zeros would still move variables by momentum
        found["applied"] = _finite(found) and any(divisors)
        if found["applied"]:
            self.session.run(runs.train_op, {self.built.rate: rate, self.built.scale: scale})
        return found

    def _fetched(self, arrays: Mapping[str, np.ndarray], *, evaluating: bool = False) -> tuple[Any, dict[Any, Any]]:
        """Returns what a step runs, or what an evaluation fetches, for a batch; and placeholder -> array."""
        line, names = self._line, list(self.built.inputs)
        feed: dict[Any, Any] = {}
        if line is None or all(name in arrays for name in line.inputs):
            fetched = self.built.evaluated if evaluating else self.built.runs
        else:
            fetched, feed = line.evaluated(arrays) if evaluating else (line.runs, line.feeds(arrays))
            names = [name for name in names if name not in line.inputs]
        if missing := [name for name in names if name not in arrays]:
            raise SessionError(f"batch: expected {missing[0]!r}; it has {', '.join(arrays)}")
        return fetched, feed | {self.built.inputs[name]: arrays[name] for name in names}

    def _summarise(self, result: StepResult, rate: float) -> None:
        if self._writer is None:
            return
        scalars = {"loss": result.loss, "grad_norm": result.grad_norm, "learning_rate": rate}
        scalars |= result.metrics
        values = [v1.Summary.Value(tag=f"train/{name}", simple_value=float(value)) for name, value in scalars.items()]
        self._writer.add_summary(v1.Summary(value=values), self.steps)
        self._writer.flush()

    # ---- the frost line

    def cut(self, *, images: str = "image", most_bytes: int | None = None) -> SessionLine | Refused:
        """Finds the frost line; batches from ``SessionLine.below`` then train and evaluate only what is above it.

        The last cut counts. It is valid for the values that the variables below have when ``below`` is called. The
        arguments and errors are those of ``session_line.cut_training_graph``.
        """
        found = session_line.cut_training_graph(self.built, self.session, images=images, most_bytes=most_bytes)
        if isinstance(found, SessionLine):
            self._line = found
        return found

    # ---- evaluation, values, files

    def evaluate(self, batches: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """Returns "loss" (without regulariser) and each metric as weighted means over all batches, in inference mode.

        Raises SessionError if the batches are of tensors at the line, but the evaluation computes others
        (``SessionLine.evaluation``).
        """
        totals: list[dict[str, np.ndarray]] = [{}, {}]
        for batch in batches:
            evaluated, feed = self._fetched(_arrays(batch), evaluating=True)
            for total, found in zip(totals, self.session.run(evaluated, feed), strict=True):
                for name, pair in found.items():
                    total[name] = total.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
        means = [{name: float(v / w) if w else 0.0 for name, (v, w) in total.items()} for total in totals]
        return {"loss": sum(means[0].values()), **means[1]}

    @property
    def steps(self) -> int:
        """The number of steps applied so far, which is the global step."""
        return int(self.session.run(self.built.steps))

    def assign(self, values: Mapping[str, np.ndarray]) -> None:
        """Sets variables of the live session by name, with ``tf.compat.v1.assign`` of a placeholder.

        Raises SessionError, and sets nothing, if there is no such variable, or its shape differs.
        """
        for name, value in values.items():
            if name not in self.built.setters:
                raise SessionError(f"variable {name!r}: the graph has no variable of that name")
            wanted = tuple(self.built.setters[name][0].shape)
            if tuple(np.shape(value)) != wanted:
                raise SessionError(f"variable {name!r}: got shape {list(np.shape(value))}, expected {list(wanted)}")
        names = list(values)
        for start in range(0, len(names), _AT_ONCE):
            some = [(self.built.setters[name], values[name]) for name in names[start : start + _AT_ONCE]]
            self.session.run([op for (_, op), _ in some], {placeholder: value for (placeholder, _), value in some})

    def values(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (path, value) of every variable of the model in the selection's order."""
        for path, variable in self.built.variables.items():
            yield path, self.session.run(variable)

    def save(self, folder: pathlib.Path) -> pathlib.Path:
        """Writes a checkpoint of all variables, including slots and the step, and keeps the newest two; returns its prefix."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.loss_scale is not None:
            self.assign({"loss_scale_saved": np.array([self.loss_scale.scale, self.loss_scale.good], np.float64)})
        with self.built.graph.as_default():
            prefix = self.built.saver.save(
                self.session, str(folder / "model.ckpt"), self.built.steps, write_meta_graph=True
            )
        return pathlib.Path(prefix)

    def restore(self, folder: pathlib.Path, *, warn: Callable[[str], None] = print) -> int:
        """Restores the newest undamaged checkpoint; ``warn`` is called for each damaged one.

        Returns the number of steps trained by then; 0 if the folder has no checkpoint at all. Raises SessionError if
        there are checkpoints, but none can be restored.
        """
        if os.path.lexists(folder / "checkpoint"):
            check_regular(folder / "checkpoint")
        state = v1.train.get_checkpoint_state(str(folder))
        prefixes = [] if state is None else list(reversed(state.all_model_checkpoint_paths))
        for prefix in prefixes:
            try:
                read_index(prefix)  # TensorFlow's reader would end the process at a hostile one
                with self.built.graph.as_default():
                    self.built.saver.restore(self.session, prefix)
            except (tf.errors.OpError, ValueError, IndexError) as error:
                warn(f"{prefix}: this checkpoint cannot be restored ({str(error).splitlines()[0][:200]})")
                continue
            if self.loss_scale is not None:
                scale, good = self.session.run(self.built.scale_saved)
                if scale:
                    self.loss_scale.scale, self.loss_scale.good = float(scale), int(good)
            return self.steps
        if prefixes:
            raise SessionError(f"{folder}: none of its {len(prefixes)} checkpoints can be restored")
        return 0

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self.session.close()

    def __enter__(self) -> SessionLoop:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def _arrays(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in batch.items() if name != "index"}


def _finite(found: Mapping[str, Any]) -> bool:
    return bool(np.isfinite(found["grad_norm"]) and np.isfinite(found["loss"]))
