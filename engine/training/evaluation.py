"""Evaluation: exact means over a part of the data, and the norm of the frozen part's output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from engine import part_times, tensorflow_private
from engine.graphs import dataflow
from engine.graphs.inlining import inline_calls
from engine.graphs.tracing import batch_signature, batch_specs, batch_tensors, calls_functions, inlined
from engine.selection.selection import Selection
from engine.training import losses
from engine.training.losses import LossFunction
from engine.training.traces import Traces

WATCHED = 32  # the number of examples, the first of a part, whose frozen output is watched


@dataclass(frozen=True)
class Result:
    """Means over all examples.

    Attributes:
        loss, metrics: the sum of the terms' weighted means, without regulariser; the weighted mean of each metric.
        per_example: the values of each metric in the order of the part, float64 [n], by name.
        frozen_output_norm: the L2 norm of the frozen part's output, averaged over the first ``WATCHED`` examples; None
            if nothing frozen lies between the images and the lowest trained variable.
    """

    loss: float
    metrics: Mapping[str, float]
    per_example: Mapping[str, np.ndarray]
    frozen_output_norm: float | None


class TracedEvaluation(NamedTuple):
    """A traced evaluation.

    ``watches`` says whether it computes the norm of a frozen part's output. Where that lies inside a function which the
    evaluation calls, as those of a SavedModel, ``norms`` computes it in the place of ``function``.
    """

    function: Any
    watches: bool
    norms: Any | None = None

    def watch(self, tensors: Mapping[str, Any], out: Mapping[str, Any]) -> np.ndarray:
        """Returns the norms for a batch of which ``function`` computed ``out``."""
        return (out["norms"] if self.norms is None else self.norms(tensors)).numpy()


# From a selection and images, computes the norm of each example [B] at the frost line in the graph being traced, or None.
Watch = Callable[[Selection, Any], Any | None]


class Evaluator:
    """Evaluates a loss function. It is compiled per selection, because the frost line depends on it.

    ``watch`` computes the norm of the frozen part's output (engine.frostline.watch); None computes none.
    """

    def __init__(self, loss_fn: LossFunction, *, watch: Watch | None = None) -> None:
        self.loss_fn = loss_fn
        self.watch = watch
        self._traces = Traces()

    @part_times.part("evaluation")
    def __call__(
        self,
        selection: Selection,
        batches: Iterable[Mapping[str, Any]],
        *,
        watched: Mapping[str, Any] | None = None,
    ) -> Result:
        """Evaluates batches of images, or of cached tensors (after ``use_traced`` with a cut evaluation).

        It does so in inference mode, with sums in float64. If batches are cached, ``watched`` must be the batch of the
        first ``WATCHED`` images: cached tensors cannot show that the layers that computed them have changed.
        """
        terms: dict[str, np.ndarray] = {}
        metrics: dict[str, np.ndarray] = {}
        examples: dict[str, list[np.ndarray]] = {}
        norms: list[np.ndarray] = []
        below = False
        for batch in batches:
            tensors = batch_tensors(batch)
            traced = self._function(selection, tensors)
            below, out = traced.watches, traced.function(tensors)
            for pairs in (out["terms"], out["metrics"]):
                losses.check_weights({name: mass for name, (_, mass) in pairs.items()})
            for sums, found in ((terms, out["terms"]), (metrics, out["metrics"])):
                for name, pair in found.items():
                    sums[name] = sums.get(name, np.zeros(2)) + np.array([float(pair[0]), float(pair[1])])
            for name, values in out["examples"].items():
                examples.setdefault(name, []).append(values.numpy().astype(np.float64))
            if watched is None and sum(map(len, norms)) < WATCHED:
                norms.append(traced.watch(tensors, out))
        if watched is not None:
            tensors = batch_tensors(watched)
            traced = self._function(selection, tensors)
            below, norms = traced.watches, [traced.watch(tensors, traced.function(tensors))]
        first = np.concatenate(norms)[:WATCHED] if norms else np.zeros(0)
        return Result(
            loss=float(sum(total / weight if weight else 0.0 for total, weight in terms.values())),
            metrics={name: float(total / weight) if weight else 0.0 for name, (total, weight) in metrics.items()},
            per_example={name: np.concatenate(parts) for name, parts in examples.items()},
            frozen_output_norm=float(np.mean(first)) if below and len(first) else None,
        )

    def traced(self, selection: Selection, batch: Mapping[str, Any], *, inline: bool = False) -> TracedEvaluation:
        """Returns the traced evaluation for a selection and batches like this one, without running it.

        With ``inline`` it is traced again, with the tf.functions that the loss calls inlined.
        """
        tensors = batch_tensors(batch)
        if not inline:
            return self._function(selection, tensors)
        with inlined():
            return self._trace(selection, tensors)

    def use_traced(self, selection: Selection, specs: Mapping[str, Any], traced: TracedEvaluation) -> None:
        """Makes batches of these specs use this function, instead of a trace of the loss, from now on."""
        self._traces.give(selection, batch_signature(specs), traced)

    def _function(self, selection: Selection, tensors: Mapping[str, Any]) -> TracedEvaluation:
        found: TracedEvaluation = self._traces.find(
            selection, batch_signature(tensors), lambda: self._trace(selection, tensors)
        )
        return found

    @part_times.part("trace")
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

        specs = batch_specs(tensors)
        with tensorflow_private.mortal_gradients():
            traced = tf.function(evaluate, autograph=False).get_concrete_function(specs)
        if self.watch is None or below[-1] or not selection.frozen or not calls_functions(traced.graph):
            return TracedEvaluation(traced, below[-1])
        inside = self._watch_inside(traced, selection, specs)
        return TracedEvaluation(traced, inside is not None, inside)

    def _watch_inside(self, traced: Any, selection: Selection, specs: Mapping[str, Any]) -> Any | None:
        """Traces the norm at a frozen part's output that lies inside a function which the evaluation calls; None if none."""
        assert self.watch is not None
        graph = inline_calls(traced).function.graph
        inputs = dict(zip(sorted(specs), graph.inputs, strict=False))
        with graph.as_default():
            norms = self.watch(selection, inputs["image"])
        if norms is None:
            return None

        def compute(batch: Mapping[str, Any]) -> Any:
            feeds = {id(inner): source for source, inner in graph.captures}
            feeds |= {id(placeholder): batch[name] for name, placeholder in inputs.items()}
            return dataflow.copy_tensors([norms], feeds)[0]

        return tf.function(compute, autograph=False).get_concrete_function(specs)
