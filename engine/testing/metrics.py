"""The test kit of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from engine.errors import InputError
from engine.testing.contract import ContractError, calling, demand, find_splits, nearly_same
from engine.training.gathered import Gathered
from engine.training.metric import Figure, Metric, kept_names, measure_metrics
from engine.training.metric_names import check_users_name

_CLOSE, _ROUNDED = 1e-9, 1e-4  # relative: sums in another order, in float64 and in float32


def check_metric(metric: Any, outputs: Any = None, labels: Any = None) -> None:
    """Checks a metric: that the figure of all examples does not depend on how they are divided, and what weights mean.

    Args:
        metric: an object with ``name``, ``measure`` and ``finalise`` (``engine.training.metric.Metric``).
        outputs, labels: some examples that it is meant for, [n, ...] each, at least 4; by default logits [24, 3] and classes
            int64 [24].

    Raises:
        ContractError: the metric breaks a rule of the contract.
        MetricError: as an evaluation would raise it.

    Example:
        >>> from engine.testing import check_metric
        >>> from engine.training.figures import build_metric
        >>> check_metric(build_metric("f1", kind="softmax", outputs=3))
    """
    rng = np.random.default_rng(0)
    outputs = rng.standard_normal((24, 3)).astype(np.float32) if outputs is None else np.asarray(outputs)
    labels = rng.integers(0, 3, len(outputs)) if labels is None else np.asarray(labels)
    demand(
        len(outputs) == len(labels) >= 4, f"check_metric: {len(outputs)} outputs, {len(labels)} labels; give 4 or more"
    )
    for name in ("measure", "finalise"):
        demand(callable(getattr(metric, name, None)), f"the metric has no method {name}")
    called = getattr(metric, "name", None)
    check_users_name(type(metric).__name__, "figure" if called == "accuracy" else called)
    about = f"metric {called}"
    higher = getattr(metric, "higher_is_better", True)
    demand(isinstance(higher, bool), f"{about}: higher_is_better is {higher!r}; expected True or False")
    kept = getattr(metric, "kept", ())
    demand(
        not isinstance(kept, str) and all(isinstance(each, str) for each in kept),
        f"{about}: kept is {kept!r}; expected a tuple of names, such as ('scores',)",
    )

    whole = _Batch(outputs, labels)
    figure = _compute(about, metric, [whole])
    demand(
        nearly_same(_compute(about, metric, [whole]), figure, relative=0.0),
        f"{about}: the same examples give another figure the second time; it must keep no state",
    )
    _check_splits(about, metric, whole, figure)
    _check_traced(about, metric, whole, figure)
    _check_weights(about, metric, whole)
    empty = _compute(about, metric, [whole.take(slice(0, 0))])
    demand(empty is not None, f"{about}: without examples, the figure is None; expected NaN, or a number")


class _Batch:
    """Examples with weights, or None where all count 1."""

    def __init__(self, outputs: Any, labels: Any, weights: Any = None) -> None:
        self.outputs, self.labels, self.weights = outputs, labels, weights

    def take(self, at: Any) -> _Batch:
        return _Batch(self.outputs[at], self.labels[at], None if self.weights is None else self.weights[at])

    def weighted(self, weights: Any) -> _Batch:
        return _Batch(self.outputs, self.labels, np.asarray(weights, np.float32))

    def tensors(self) -> tuple[Any, Any, Any]:
        weights = None if self.weights is None else tf.constant(self.weights)
        return tf.constant(self.outputs), tf.constant(self.labels), weights


def _measure(metric: Metric, batch: _Batch) -> Mapping[str, Any]:
    return measure_metrics([metric], *batch.tensors())[metric.name][1]


def _compute(about: str, metric: Metric, batches: list[_Batch]) -> Figure:
    gathered = Gathered(alone=True)
    with calling(about):
        for batch in batches:
            gathered.add({metric.name: _measure(metric, batch)}, {metric.name: metric})
        return Gathered.finalise([gathered], {metric.name: metric})[metric.name]


def _check_traced(about: str, metric: Metric, whole: _Batch, figure: Figure) -> None:
    """It must work in a graph, for any number of examples."""
    tensors = whole.tensors()[:2]

    def measure(outputs: Any, labels: Any) -> Mapping[str, Any]:
        return measure_metrics([metric], outputs, labels, None)[metric.name][1]

    specs = [tf.TensorSpec([None, *each.shape[1:]], each.dtype) for each in tensors]
    try:
        found = tf.function(measure, autograph=False).get_concrete_function(*specs)(*tensors)
    except InputError as error:
        raise ContractError(f"in a tf.function, {error}") from error
    gathered = Gathered(alone=True)
    gathered.add({metric.name: found}, {metric.name: metric})
    traced = Gathered.finalise([gathered], {metric.name: metric})[metric.name]
    demand(
        nearly_same(traced, figure, relative=_CLOSE),
        f"{about}: in a tf.function the figure is {traced}, and {figure} outside; measure must use TensorFlow operations alone",
    )


def _check_splits(about: str, metric: Metric, whole: _Batch, figure: Figure) -> None:
    kept = kept_names(metric)
    shapes = {name: value.shape for name, value in _measure(metric, whole).items() if name not in kept}
    for name, value in _measure(metric, whole.take(slice(0, 1))).items():
        demand(
            name in kept or value.shape == shapes.get(name),
            f"{about}: {name!r} has shape {shapes.get(name)} for {len(whole.labels)} examples and {value.shape} for one; return "
            "a sum over the examples, or list its name in `kept`",
        )
    for split in find_splits(len(whole.labels)):
        found = _compute(about, metric, [whole.take(part) for part in split])
        sizes = ", ".join(str(part.stop - part.start) for part in split)
        demand(
            nearly_same(found, figure, relative=_CLOSE) or not nearly_same(found, figure, relative=_ROUNDED),
            f"{about}: the figure is {figure} for all examples at once, and {found} in batches of {sizes}; compute sums in float64, "
            "as float32 rounds them",
        )
        demand(
            nearly_same(found, figure, relative=_CLOSE),
            f"{about}: the figure is {figure} for all examples at once, and {found} in batches of {sizes}; what measure "
            "returns is added over batches, so return sums, and divide in finalise",
        )
    mixed = np.random.default_rng(1).permutation(len(whole.labels))
    found = _compute(about, metric, [whole.take(mixed)])
    demand(
        nearly_same(found, figure, relative=_CLOSE),
        f"{about}: in another order of the examples the figure is {found}, not {figure}",
    )


def _check_weights(about: str, metric: Metric, whole: _Batch) -> None:
    count = len(whole.labels)
    plain = _compute(about, metric, [whole])
    ones = _compute(about, metric, [whole.weighted(np.ones(count))])
    demand(
        nearly_same(ones, plain, relative=_CLOSE),
        f"{about}: with weights of 1 the figure is {ones}, and {plain} without weights",
    )
    present = np.arange(count) % 4 != 1
    expected = _compute(about, metric, [whole.take(np.flatnonzero(present))])
    found = _compute(about, metric, [whole.weighted(present)])
    demand(
        nearly_same(found, expected, relative=_CLOSE),
        f"{about}: with weight 0 for some examples the figure is {found}, and {expected} without these examples; an example "
        "of weight 0 must count nowhere",
    )
    twice = np.repeat(np.arange(count), 1 + present)
    expected = _compute(about, metric, [whole.take(twice)])
    found = _compute(about, metric, [whole.weighted(1 + present)])
    demand(
        nearly_same(found, expected, relative=_CLOSE),
        f"{about}: with weight 2 for some examples the figure is {found}, and {expected} where they are there twice; the "
        "weights of the examples must count",
    )
    if whole.labels.dtype.kind == "f":  # a missing label may be NaN, and is 0 when the metric gets it
        other = whole.labels.copy()
        other[~present] = 0
        found = _compute(about, metric, [_Batch(whole.outputs, other).weighted(present)])
        expected = _compute(about, metric, [whole.weighted(present)])
        demand(
            nearly_same(found, expected, relative=_CLOSE),
            f"{about}: another label of an example of weight 0 gives {found}, not {expected}",
        )
