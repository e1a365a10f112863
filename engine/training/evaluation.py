"""Evaluation: exact means over a part, and the norm of what the frozen part puts out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from engine.graphs.tracing import batch_tensors, inlined, signature, specs_of
from engine.selection.selection import Selection
from engine.training import losses
from engine.training.losses import LossFunction

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


class TracedEvaluation(NamedTuple):
    """A traced evaluation. ``watches``: whether something frozen lies below the frost line, whose norm it gives."""

    function: Any
    watches: bool


# (selection, images) -> the norm of each example [B] at the frost line, in the graph that is being traced, or None
Watch = Callable[[Selection, Any], Any | None]


class Evaluator:
    """Evaluates a loss function; compiled once per selection (the frost line depends on it).

    Args:
        loss_fn: ``loss_fn(batch, *, training, seeds) -> Loss``.
        watch: what gives the norm of the frozen output (engine.frostline.watch); None watches nothing.
    """

    def __init__(self, loss_fn: LossFunction, *, watch: Watch | None = None) -> None:
        self.loss_fn = loss_fn
        self.watch = watch
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
            tensors = batch_tensors(batch)
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
            tensors = batch_tensors(watched)
            function, below = self._function(selection, tensors)
            norms = [function(tensors)["norms"].numpy()]
        first = np.concatenate(norms)[:WATCHED] if norms else np.zeros(0)
        return Result(
            loss=float(sum(total / weight if weight else 0.0 for total, weight in terms.values())),
            metrics={name: float(total / weight) if weight else 0.0 for name, (total, weight) in metrics.items()},
            per_example={name: np.concatenate(parts) for name, parts in examples.items()},
            frozen_output_norm=float(np.mean(first)) if below and len(first) else None,
        )

    def traced(self, selection: Selection, batch: Mapping[str, Any], *, inline: bool = False) -> TracedEvaluation:
        """The traced evaluation for a selection and batches like this one, without running it.

        ``inline`` traces anew and writes out the tf.functions that the loss calls.
        """
        tensors = batch_tensors(batch)
        if not inline:
            return self._function(selection, tensors)
        with inlined():
            return self._trace(selection, tensors)

    def use_traced(self, selection: Selection, specs: Mapping[str, Any], traced: TracedEvaluation) -> None:
        """From now on, batches of these specs are evaluated by this function instead of a trace of the loss."""
        self._compiled[selection, signature(specs)] = traced

    def _function(self, selection: Selection, tensors: Mapping[str, Any]) -> TracedEvaluation:
        key = (selection, signature(tensors))
        if key not in self._compiled:
            self._compiled[key] = self._trace(selection, tensors)
        return self._compiled[key]

    def _trace(self, selection: Selection, tensors: Mapping[str, Any]) -> TracedEvaluation:
        below = []

        def evaluate(batch: Mapping[str, Any]) -> dict[str, Any]:
            inputs = {name: value for name, value in batch.items() if name != "seeds"}
            loss = self.loss_fn(inputs, training=False, seeds=batch.get("seeds"))
            norms = None if self.watch is None else self.watch(selection, batch["image"])
            below.append(norms is not None)
            return {
                "terms": losses.weighted_sums(loss.terms),
                "metrics": losses.weighted_sums(loss.metrics),
                "examples": {name: values for name, (values, _) in loss.metrics.items()},
                "norms": tf.zeros([0], tf.float64) if norms is None else norms,
            }

        specs = specs_of(tensors)
        return TracedEvaluation(tf.function(evaluate, autograph=False).get_concrete_function(specs), below[-1])
