"""Evaluation: exact means over a part, and the norm of what the frozen part puts out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine.frostline.line import FrostLine, Refused
from engine.graphs import dataflow
from engine.selection.selection import Selection
from engine.training import losses
from engine.training.losses import LossFunction
from engine.training.microbatch import calls_functions, inlined

WATCHED = 32  # examples, the first of a part, whose frozen output is watched


@dataclass(frozen=True)
class Result:
    """Means over all examples.

    Attributes:
        loss: sum of the terms' weighted means (no regulariser).
        metrics: name -> weighted mean.
        per_example: metric name -> float64 [n], in the part's order.
        frozen_output_norm: mean over the first examples (``WATCHED``) of the L2 norm of what the frozen part puts
            out; None where nothing frozen lies between the images and the lowest trained variable.
    """

    loss: float
    metrics: Mapping[str, float]
    per_example: Mapping[str, np.ndarray]
    frozen_output_norm: float | None


class Evaluator:
    """Evaluates a loss function; compiled once per selection (the frost line depends on it)."""

    def __init__(self, loss_fn: LossFunction) -> None:
        self.loss_fn = loss_fn
        self._compiled: dict[Any, Any] = {}

    def __call__(
        self,
        selection: Selection,
        batches: Iterable[Mapping[str, Any]],
        *,
        watched: Mapping[str, Any] | None = None,
    ) -> Result:
        """Runs over batches in inference mode; sums in float64.

        Args:
            selection: what trains.
            batches: of images; or of tensors at the frost line, after ``cut``.
            watched: the batch of the first ``WATCHED`` examples with images, to watch the frozen output where
                ``batches`` have none: kept tensors cannot show that what made them has changed.
        """
        terms: dict[str, np.ndarray] = {}
        metrics: dict[str, np.ndarray] = {}
        examples: dict[str, list[np.ndarray]] = {}
        norms: list[np.ndarray] = []
        below = False
        for batch in batches:
            tensors = _tensors(batch)
            function, below = self._function(selection, tensors)
            out = function(tensors)
            for pairs in (out["terms"], out["metrics"]):
                losses.check_weights({name: mass for name, (_, mass) in pairs.items()})
            for sums, found in ((terms, out["terms"]), (metrics, out["metrics"])):
                for name, pair in found.items():
                    sums[name] = sums.get(name, np.zeros(2)) + np.array([float(pair[0]), float(pair[1])])
            for name, values in out["examples"].items():
                examples.setdefault(name, []).append(values.numpy().astype(np.float64))
            norms.append(out["norms"].numpy())
        if watched is not None:
            tensors = _tensors(watched)
            function, below = self._function(selection, tensors)
            norms = [function(tensors)["norms"].numpy()]
        first = np.concatenate(norms)[:WATCHED] if norms else np.zeros(0)
        return Result(
            loss=float(sum(total / weight if weight else 0.0 for total, weight in terms.values())),
            metrics={name: float(total / weight) if weight else 0.0 for name, (total, weight) in metrics.items()},
            per_example={name: np.concatenate(parts) for name, parts in examples.items()},
            frozen_output_norm=float(np.mean(first)) if below and len(first) else None,
        )

    def cut(self, selection: Selection, line: FrostLine, batch: Mapping[str, Any]) -> Refused | None:
        """Cuts the evaluation at a training step's frost line; batches that ``line.below`` made evaluate the part above.

        Args:
            selection: the one that the line is for.
            line: where to cut.
            batch: any batch with images.

        Returns:
            None; or why it cannot be cut there: the frozen part computes something else in inference mode.
        """
        tensors = _tensors(batch)
        traced, below = self._function(selection, tensors)
        if calls_functions(traced.graph):
            with inlined():
                traced, below = self._trace(selection, tensors)
        above = line.cut(traced)
        if isinstance(above, Refused):
            return above
        self._compiled[_key(selection, line.specs(tensors))] = (above, below)
        return None

    def _function(self, selection: Selection, tensors: Mapping[str, Any]) -> tuple[Any, bool]:
        key = _key(selection, tensors)
        if key not in self._compiled:
            self._compiled[key] = self._trace(selection, tensors)
        return self._compiled[key]

    def _trace(self, selection: Selection, tensors: Mapping[str, Any]) -> tuple[Any, bool]:
        below = []

        def evaluate(batch: Mapping[str, Any]) -> dict[str, Any]:
            inputs = {name: value for name, value in batch.items() if name != "seeds"}
            loss = self.loss_fn(inputs, training=False, seeds=batch.get("seeds"))
            norms = _frozen_output_norms(selection, batch["image"])
            below.append(norms is not None)
            return {
                "terms": losses.weighted_sums(loss.terms),
                "metrics": losses.weighted_sums(loss.metrics),
                "examples": {name: values for name, (values, _) in loss.metrics.items()},
                "norms": tf.zeros([0], tf.float64) if norms is None else norms,
            }

        specs = {name: tf.TensorSpec([None, *t.shape[1:]], t.dtype, name=name) for name, t in tensors.items()}
        return tf.function(evaluate, autograph=False).get_concrete_function(specs), below[-1]


def _key(selection: Selection, tensors: Mapping[str, Any]) -> Any:
    return (selection, tuple((name, t.dtype, tuple(t.shape[1:])) for name, t in sorted(tensors.items())))


def _tensors(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tf.convert_to_tensor(value) for name, value in batch.items() if name != "index"}


def _frozen_output_norms(selection: Selection, images: Any) -> Any | None:
    """The L2 norm of each example [B] at the frost line, in the graph that is being traced."""
    traced = tf.compat.v1.get_default_graph()
    varying = dataflow.captured_handles(traced, [e.variable for e in (*selection.trained, *selection.moving)])
    frozen = dataflow.dependents(traced, dataflow.captured_handles(traced, [e.variable for e in selection.frozen]))
    tensors = dataflow.frontier(traced, varying=varying, inputs=[images])
    tensors = [t for t in tensors if t.op in frozen and t.shape.rank and t.shape[0] is None]
    if not tensors:
        return None
    squares = [tf.reduce_sum(tf.square(tf.cast(t, tf.float64)), axis=list(range(1, t.shape.rank))) for t in tensors]
    return tf.sqrt(tf.add_n(squares))
