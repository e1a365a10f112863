"""Evaluation: exact means over a part of the data, and the norm of the frozen part's output."""

from __future__ import annotations

import concurrent.futures
import itertools
import math
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from engine import part_times, tensorflow_private
from engine.data.batch_names import join_inputs
from engine.distribution.distribution import ALONE, Distribution
from engine.distribution.replicas import Replicas, by_handle
from engine.distribution.together import work_together
from engine.graphs import dataflow
from engine.graphs.inlining import inline_calls
from engine.graphs.tracing import batch_signature, batch_specs, batch_tensors, calls_functions, inlined
from engine.selection.selection import Selection
from engine.training import losses
from engine.training.gathered import Gathered
from engine.training.losses import LossFunction
from engine.training.metric import Figure, Metric
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
        figures: those of the metrics that were asked for (``Loss.measured``), by name; with several terms, also
            ``loss/TERM`` and the metrics ``NAME/TERM`` of each. Those without any example that counts are NaN.
        lower: the names of the figures of which a lower value is better.
    """

    loss: float
    metrics: Mapping[str, float]
    per_example: Mapping[str, np.ndarray]
    frozen_output_norm: float | None
    figures: Mapping[str, Figure] = field(default_factory=dict)
    lower: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float | None:
        """The accuracy, as the metric of that name gives it where it was asked for; None if the loss has none."""
        return self.figures.get("accuracy", self.metrics.get("accuracy"))


def _mean(total: float, weight: float) -> float:
    return float(total / weight) if weight else math.nan


class _MeasuredBatch(NamedTuple):
    """The sums (values, weights) of a batch by term and by metric, and the values of each metric by example."""

    terms: Mapping[str, tuple[float, float]]
    metrics: Mapping[str, tuple[float, float]]
    examples: Mapping[str, np.ndarray]


class _Measured(NamedTuple):
    """What a worker measures: its batches, the norms of those of their examples that are watched, and for figures."""

    batches: list[_MeasuredBatch]
    norms: list[np.ndarray]
    gathered: Gathered

    def to_json(self) -> Any:
        """As JSON values, with all bits: examples as bytes in base64."""
        batches = [
            (b.terms, b.metrics, {name: b64encode(values.tobytes()).decode() for name, values in b.examples.items()})
            for b in self.batches
        ]
        return [batches, [norms.astype(np.float64).tolist() for norms in self.norms], self.gathered.to_json()]

    @classmethod
    def read(cls, given: Any) -> _Measured:
        batches, norms, gathered = given
        return cls(
            [
                _MeasuredBatch(
                    terms,
                    metrics,
                    {name: np.frombuffer(b64decode(text), np.float64) for name, text in examples.items()},
                )
                for terms, metrics, examples in batches
            ],
            [np.array(each, np.float64) for each in norms],
            Gathered.read(gathered),
        )


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


# From a selection and the model's input (or its inputs by name), computes the norm of each example [B] at the frost line in the graph being traced, or None.
Watch = Callable[[Selection, Any], Any | None]


class Evaluator:
    """Evaluates a loss function. It is compiled per selection, because the frost line depends on it.

    ``watch`` computes the norm of the frozen part's output (engine.frostline.watch); None computes none. The workers of a
    ``distribution`` each evaluate a share of the batches, and all return the same result: that of one, to the bit. So do the
    devices of ``replicas``, those of the step that trains (``TrainStep.replicas``).
    """

    def __init__(
        self,
        loss_fn: LossFunction,
        *,
        watch: Watch | None = None,
        distribution: Distribution = ALONE,
        replicas: Replicas | None = None,
    ) -> None:
        self.loss_fn = loss_fn
        self._distribution = distribution
        self._replicas = replicas
        self.watch = watch
        self._traces = Traces()
        self._metrics: dict[str, Metric] = {}  # of the loss function, known once it has been traced

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
        first ``WATCHED`` images: cached tensors cannot show that the layers that computed them have changed. With several
        workers, ``batches`` must have a length and ``between``, as those of engine.data have.
        """
        found, told = work_together(
            self._distribution, lambda: self._measure(selection, batches, watched), tell=lambda own: own.to_json()
        )
        every = [found] if len(told) == 1 else [_Measured.read(own) for own in told]
        measured = [batch for own in every for batch in own.batches]
        terms: dict[str, np.ndarray] = {}
        metrics: dict[str, np.ndarray] = {}
        examples: dict[str, list[np.ndarray]] = {}
        for batch in measured:  # in their order, as one worker adds them
            for sums, pairs in ((terms, batch.terms), (metrics, batch.metrics)):
                for name, pair in pairs.items():
                    sums[name] = sums.get(name, np.zeros(2)) + np.array(pair)
            for name, values in batch.examples.items():
                examples.setdefault(name, []).append(values)
        gathered = [own.gathered for own in every]
        if any(own.names - set(self._metrics) for own in gathered):  # this worker had no batch, and has traced nothing
            self._function(selection, batch_tensors(next(iter(batches.between(0, 1)))))  # type: ignore[attr-defined]
        norms = [norms for own in (every if watched is None else every[:1]) for norms in own.norms]
        first = np.concatenate(norms)[:WATCHED] if norms else np.zeros(0)
        each = {f"loss/{name}": _mean(*pair) for name, pair in terms.items()} if len(terms) > 1 else {}
        means = {name: _mean(*pair) for name, pair in metrics.items()}
        own = each | {name: mean for name, mean in means.items() if "/" in name}
        return Result(
            loss=float(sum(total / weight if weight else 0.0 for total, weight in terms.values())),
            metrics=means,
            per_example={name: np.concatenate(parts) for name, parts in examples.items()},
            frozen_output_norm=float(np.mean(first)) if len(first) else None,
            figures=own | Gathered.finalise(gathered, self._metrics),
            lower=(*each, *(n for n, metric in self._metrics.items() if not getattr(metric, "higher_is_better", True))),
        )

    def _measure(
        self, selection: Selection, batches: Iterable[Mapping[str, Any]], watched: Mapping[str, Any] | None
    ) -> _Measured:
        """What this worker has of an evaluation."""
        before, own = 0, batches
        if self._distribution.workers > 1:
            first, stop = self._distribution.share.bounds(len(batches))  # type: ignore[arg-type]
            before, own = first * batches.batch_size, batches.between(first, stop)  # type: ignore[attr-defined]
        found = _Measured([], [], Gathered(alone=self._distribution.workers == 1))
        below = False
        for tensors, traced, out in self._evaluated(selection, own):
            below = traced.watches
            for pairs in (out["terms"], out["metrics"]):
                losses.check_weights({name: mass for name, (_, mass) in pairs.items()})
            terms, metrics = (
                {name: (float(t), float(w)) for name, (t, w) in out[kind].items()} for kind in ("terms", "metrics")
            )
            examples = {name: values.numpy().astype(np.float64) for name, values in out["examples"].items()}
            found.batches.append(_MeasuredBatch(terms, metrics, examples))
            found.gathered.add(out["measured"], self._metrics)
            if watched is None and before + sum(map(len, found.norms)) < WATCHED:
                found.norms.append(traced.watch(tensors, out))
        if watched is not None:
            tensors = batch_tensors(watched)
            traced = self._function(selection, tensors)
            below, found = traced.watches, found._replace(norms=[traced.watch(tensors, traced.function(tensors))])
        return found if below else found._replace(norms=[])

    def _evaluated(
        self, selection: Selection, batches: Iterable[Mapping[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], TracedEvaluation, Any]]:
        """Yields the tensors of each batch, their traced evaluation and its results, in order. The devices take turns."""
        given = ((tensors, self._function(selection, tensors)) for tensors in map(batch_tensors, batches))
        replicas = self._replicas
        if replicas is None or len(replicas.devices) == 1:
            for tensors, traced in given:
                yield tensors, traced, traced.function(tensors)
            return
        known = by_handle(selection.variables.with_bookkeeping())
        replicas.follow()
        with concurrent.futures.ThreadPoolExecutor(len(replicas.devices)) as pool:
            while together := list(itertools.islice(given, len(replicas.devices))):
                running = []
                for number, (tensors, traced) in enumerate(together):
                    replicas.prepare(traced.function, known)
                    running.append(pool.submit(replicas.call_on, traced.function, [tensors], number, known))
                for (tensors, traced), out in zip(together, running, strict=True):
                    yield tensors, traced, out.result()

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
            norms = None if self.watch is None else self.watch(selection, join_inputs(batch))
            below.append(norms is not None)
            self._metrics |= {name: metric for name, (metric, _) in loss.measured.items()}
            return {
                "terms": losses.weighted_sums(loss.terms),
                "metrics": losses.weighted_sums(loss.metrics),
                "examples": {name: values for name, (values, _) in loss.metrics.items()},
                "measured": {name: dict(tensors) for name, (_, tensors) in loss.measured.items()},
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
            norms = self.watch(selection, join_inputs(inputs))
        if norms is None:
            return None

        def compute(batch: Mapping[str, Any]) -> Any:
            feeds = {id(inner): source for source, inner in graph.captures}
            feeds |= {id(placeholder): batch[name] for name, placeholder in inputs.items()}
            return dataflow.copy_tensors([norms], feeds)[0]

        return tf.function(compute, autograph=False).get_concrete_function(specs)
