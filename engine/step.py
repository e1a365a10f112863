"""TrainStep: one compiled function per selection and optimizer. A window is one call of it.

The tape watches the selection's variables and nothing else, so nothing below the lowest of them is
recorded; gradients, slots, decay and the clipping norm exist for the selection alone. Slots are
passed to the compiled function by handle: it survives their being dropped, and going back to an
old selection traces nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine import graph, losses, optimizers
from engine.errors import InputError
from engine.losses import LossFunction
from engine.optimizers import Optimizer, Slots
from engine.seeds import example_seeds
from engine.selection import Selection


class StepError(InputError):
    """A batch or a loss that the step cannot train on."""


@dataclass(frozen=True)
class Window:
    """What one window gave; scalars as tensors, read when needed.

    Attributes:
        loss: sum of all terms and the regulariser.
        terms: each term's weighted mean.
        metrics: each metric's weighted mean.
        grad_norm: global norm of the selection's gradient, before clipping.
    """

    loss: Any
    terms: Mapping[str, Any]
    metrics: Mapping[str, Any]
    grad_norm: Any


class TrainStep:
    """Trains on one window a call.

    Args:
        loss_fn: ``loss_fn(batch, *, training, seeds) -> Loss`` (engine.losses).
        optimizer: hyperparameters; ``__call__`` can be given another of the same kind.
        seed: base of the per-example seeds of batches that bring none.

    Attributes:
        slots: optimizer state of the current selection.
        windows: windows trained so far.
        traces: how many times a function was traced.
    """

    def __init__(self, loss_fn: LossFunction, optimizer: Optimizer, *, seed: int = 0) -> None:
        self.loss_fn = loss_fn
        self.optimizer = optimizer
        self.seed = seed
        self.slots = Slots()
        self.windows = 0
        self.traces = 0
        self._compiled: dict[Any, Any] = {}

    def __call__(
        self,
        selection: Selection,
        batch: Mapping[str, Any],
        *,
        learning_rate: float,
        optimizer: Optimizer | None = None,
    ) -> Window:
        """Trains the selection on one batch.

        Args:
            selection: what may move.
            batch: name -> array or tensor, first axis the examples. "seeds" (int32 [B, 2]) are the
                examples' random seeds; "index" stays on the host.
            learning_rate: of this window.
            optimizer: instead of the one given at the making, with the same slots.

        Raises:
            StepError: the batch is empty or uneven, or a trained variable has no gradient.
        """
        optimizer = optimizer or self.optimizer
        tensors = _tensors(batch)
        if "seeds" not in tensors:
            count = int(next(iter(tensors.values())).shape[0])
            tensors["seeds"] = tf.constant(example_seeds(self.seed, self.windows, np.arange(count)))
        self.slots.fit(selection, optimizer)
        result = self._function(selection, optimizer, tensors)(
            tensors,
            tf.constant(learning_rate, tf.float64),
            self.slots.handles(selection),
            tf.constant(optimizer.powers(self.slots.windows(selection) + 1)),
        )
        self.slots.advance(selection)
        self.windows += 1
        return Window(**result)

    def concrete(self, selection: Selection, batch: Mapping[str, Any], *, optimizer: Optimizer | None = None) -> Any:
        """The traced function for a selection and batches like this one, without running it."""
        optimizer = optimizer or self.optimizer
        tensors = _tensors(batch)
        count = int(next(iter(tensors.values())).shape[0])
        tensors.setdefault("seeds", tf.zeros([count, 2], tf.int32))
        return self._function(selection, optimizer, tensors)

    def _function(self, selection: Selection, optimizer: Optimizer, tensors: Mapping[str, Any]) -> Any:
        signature = tuple((name, t.dtype, tuple(t.shape[1:])) for name, t in sorted(tensors.items()))
        key = (selection, optimizer, signature)
        if key not in self._compiled:
            specs = {name: tf.TensorSpec([None, *t.shape[1:]], t.dtype, name=name) for name, t in tensors.items()}
            handle = tf.TensorSpec([], tf.resource)
            handles = [[handle] * len(optimizer.slots) for _ in selection.trained]
            powers = tf.TensorSpec([len(selection.trained), optimizer.powers(np.ones(1)).shape[1]], tf.float64)
            traced = tf.function(self._window(selection, optimizer), autograph=False)
            with selection.modes():
                self._compiled[key] = traced.get_concrete_function(
                    specs, tf.TensorSpec([], tf.float64), handles, powers
                )
            self.traces += 1
        return self._compiled[key]

    def _window(self, selection: Selection, optimizer: Optimizer) -> Any:
        variables = [entry.variable for entry in selection.trained]
        trained = frozenset(path for entry in selection.trained for path in entry.paths)

        def window(batch: Mapping[str, Any], learning_rate: Any, handles: Any, powers: Any) -> dict[str, Any]:
            inputs = {name: value for name, value in batch.items() if name != "seeds"}
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                loss = self.loss_fn(inputs, training=True, seeds=batch["seeds"])
                means = _means(losses.weighted_sums(loss.terms))
                if not means:
                    raise StepError("the loss has no term: Loss.terms is empty")
                total = tf.add_n(list(means.values()))
                total += losses.regulariser_of(loss, trained, total.dtype)
            gradients = tape.gradient(total, variables)
            missing = [e.path for e, g in zip(selection.trained, gradients, strict=True) if g is None]
            if missing:
                raise StepError(
                    f"the loss does not depend on {len(missing)} trained variable(s): {', '.join(missing[:5])}; "
                    "leave them out of the filter"
                )
            gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
            norm = tf.linalg.global_norm(gradients)
            if optimizer.clip_norm is not None:
                # 1 below the limit, so that an unclipped gradient keeps its bits
                scale = optimizer.clip_norm / tf.maximum(norm, tf.constant(optimizer.clip_norm, norm.dtype))
                gradients = [gradient * tf.cast(scale, gradient.dtype) for gradient in gradients]
            optimizers.apply(
                selection, optimizer, gradients, learning_rate=learning_rate, handles=handles, powers=powers
            )
            metrics = _means(losses.weighted_sums(loss.metrics))
            return {"loss": total, "terms": means, "metrics": metrics, "grad_norm": norm}

        return window


def backward_ops(concrete: Any) -> int:
    """How many operations the backward pass of a traced window has."""
    return sum(1 for op in concrete.graph.get_operations() if graph.is_backward(op))


def _means(sums: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    return {name: tf.math.divide_no_nan(total, weight) for name, (total, weight) in sums.items()}


def _tensors(batch: Mapping[str, Any]) -> dict[str, Any]:
    tensors = {name: tf.convert_to_tensor(value) for name, value in batch.items() if name != "index"}
    lengths = {name: t.shape[0] if t.shape.rank else None for name, t in tensors.items()}
    if not lengths or None in lengths.values() or len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise StepError(
            f"batch: every array needs the same number of examples (at least 1) on its first axis; got {lengths}"
        )
    return tensors
