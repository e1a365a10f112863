"""The test kit of losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from engine.testing.contract import calling, demand, find_splits, list_some, nearly_same
from engine.training.loss_kinds import Values, use_present
from engine.training.losses import weighted_sums

_CLOSE = 1e-5  # relative, of float32


def check_loss(loss: Callable[..., Any], outputs: Any = None, labels: Any = None, **options: Any) -> None:
    """Checks a loss: that it is one value for each example, which depends on this example alone, and that weights count.

    Only so is the gradient of a step the same however the step is divided into micro-batches and over devices.

    Args:
        loss: ``loss(outputs, labels, weights, **options)``, as for ``--loss=py:module:name``: it returns values [B], or
            ``engine.training.loss_kinds.Values``.
        outputs, labels: some examples that it is meant for, [n, ...] each, at least 4; by default logits [12, 3] and classes
            int64 [12].
        options: passed on to the loss.

    Raises:
        ContractError: the loss breaks a rule of the contract.

    Example:
        >>> import tensorflow as tf
        >>> from engine.testing import check_loss
        >>> check_loss(lambda outputs, labels, weights: tf.reduce_mean((outputs - labels) ** 2, axis=1), [[1.0]] * 4, [[0.0]] * 4)
        >>> check_loss(lambda outputs, labels, weights: tf.reduce_mean(outputs - labels), [[1.0]] * 4, [[0.0]] * 4)
        Traceback (most recent call last):
        engine.testing.contract.ContractError: loss: the values have shape (); expected one for each example, [4], not their mean
    """
    rng = np.random.default_rng(0)
    outputs = rng.standard_normal((12, 3)).astype(np.float32) if outputs is None else np.asarray(outputs)
    outputs = outputs.astype(np.float32) if outputs.dtype.kind != "f" or outputs.dtype == np.float64 else outputs
    labels = rng.integers(0, 3, len(outputs)) if labels is None else np.asarray(labels)
    labels = labels.astype(np.float32) if labels.dtype == np.float64 else labels
    demand(
        len(outputs) == len(labels) >= 4, f"check_loss: {len(outputs)} outputs, {len(labels)} labels; give 4 or more"
    )
    run = _Run(loss, options)
    values, weights = run(outputs, labels)
    demand(np.isfinite(values).all(), f"loss: the value of example {_first(~np.isfinite(values))} is not finite")
    again, _ = run(outputs, labels)
    demand(nearly_same(again, values, relative=0.0), "loss: the same examples have other values the second time")
    _check_rows(run, outputs, labels, values, weights)
    _check_weights(run, outputs, labels)
    _check_gradients(run, outputs, labels)
    _check_traced(run, outputs, labels, values)


class _Run:
    """A loss, called as a step calls it."""

    def __init__(self, loss: Callable[..., Any], options: Mapping[str, Any]) -> None:
        self._loss, self._options = loss, options

    def values(self, outputs: Any, labels: Any, weights: Any) -> Values:
        """What the loss returns for tensors, checked."""
        labels = use_present(labels, weights)
        with calling("loss"):
            found = self._loss(outputs, labels, weights, **self._options)
        found = Values(*found) if isinstance(found, tuple) else Values(tf.convert_to_tensor(found), weights)
        shape = getattr(found.values, "shape", None)
        demand(
            shape is not None and shape.rank == 1 and found.values.dtype.is_floating,
            f"loss: the values have shape {shape}; expected one for each example, [{outputs.shape[0]}], not their mean",
        )
        demand(
            found.values.shape.is_compatible_with(outputs.shape[:1]),
            f"loss: there are {shape} values for {outputs.shape[0]} examples",
        )
        demand(
            weights is None or found.weights is not None,
            "loss: it was given weights and returned none; pass them on as Values(values, weights), or return values alone",
        )
        for name, pair in found.metrics.items():
            ok = isinstance(pair, tuple) and len(pair) == 2 and getattr(pair[0], "shape", None) is not None
            demand(
                ok and pair[0].shape.rank == 1,
                f"loss: the metric {name!r} is not a pair (values [B], weights [B] or None)",
            )
        return found

    def __call__(self, outputs: Any, labels: Any, weights: Any = None) -> tuple[np.ndarray, np.ndarray | None]:
        given = None if weights is None else tf.constant(weights, tf.float32)
        found = self.values(tf.constant(outputs), tf.constant(labels), given)
        return found.values.numpy(), None if found.weights is None else tf.convert_to_tensor(found.weights).numpy()

    def gradient(self, outputs: Any, labels: Any, weights: Any) -> tuple[np.ndarray, np.ndarray]:
        """The sum over the examples of values times weights, with its gradient by the outputs."""
        logits = tf.constant(outputs)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            found = self.values(logits, tf.constant(labels), tf.constant(weights, tf.float32))
            total, _ = weighted_sums({"loss": (found.values, found.weights)})["loss"]
        gradient = tape.gradient(total, logits)
        demand(gradient is not None, "loss: its values do not depend on the outputs, so there is no gradient")
        return total.numpy(), gradient.numpy()


def _first(wrong: np.ndarray) -> int:
    """The first example of which something is wrong."""
    return int(np.argmax(wrong))


def _check_rows(run: _Run, outputs: Any, labels: Any, values: np.ndarray, weights: np.ndarray | None) -> None:
    """Value and weight of an example must not depend on which others are in the batch."""
    for split in find_splits(len(outputs)):
        for part in split:
            found, own = run(outputs[part], labels[part])
            demand(
                nearly_same(found, values[part], relative=_CLOSE),
                f"loss: the values of the examples {part.start} to {part.stop - 1} are {list_some(found.tolist())} in a batch by "
                f"themselves, and {list_some(values[part].tolist())} among others; a value must depend on its example alone",
            )
            if weights is not None and own is not None:
                demand(
                    nearly_same(own, weights[part], relative=_CLOSE),
                    f"loss: the weights of the examples {part.start} to {part.stop - 1} depend on the others in the batch; the "
                    "weights of the micro-batches of a step would not sum to those of the step",
                )


def _check_weights(run: _Run, outputs: Any, labels: Any) -> None:
    given = np.linspace(0.5, 2.0, len(outputs)).astype(np.float32)
    values, weights = run(outputs, labels, given)
    plain, own = run(outputs, labels)
    expected = given if own is None else given * own
    demand(
        weights is not None and nearly_same(values * weights, plain * expected, relative=_CLOSE),
        "loss: an example of weight w must count w times: values * weights do not grow with the weights that it was given",
    )


def _check_gradients(run: _Run, outputs: Any, labels: Any) -> None:
    count = len(outputs)
    ones = np.ones(count, np.float32)
    total, gradient = run.gradient(outputs, labels, ones)
    finite = np.isfinite(gradient).reshape(count, -1).all(axis=1)
    demand(finite.all(), f"loss: the gradient of example {_first(~finite)} is not finite")
    for split in find_splits(count):
        parts = [run.gradient(outputs[part], labels[part], ones[part]) for part in split]
        joined = np.concatenate([each for _, each in parts])
        demand(
            nearly_same(sum(each for each, _ in parts), total, relative=_CLOSE)
            and nearly_same(joined, gradient, relative=_CLOSE),
            "loss: micro-batches do not add up to the whole batch: the gradient of an example depends on the others",
        )
    present = np.arange(count) % 3 != 1
    missing = labels.copy()
    if labels.dtype.kind == "f":
        missing[~present] = np.nan
    _, gradient = run.gradient(outputs, missing, present.astype(np.float32))
    demand(
        np.isfinite(gradient).all() and not gradient[~present].any(),
        "loss: an example of weight 0, whose label is missing, has a gradient; it must have none, even where its label was NaN",
    )


def _check_traced(run: _Run, outputs: Any, labels: Any, values: np.ndarray) -> None:
    """It must work in a graph, for any number of examples."""
    tensors = (tf.constant(outputs), tf.constant(labels), tf.ones([len(outputs)]))
    specs = [tf.TensorSpec([None, *each.shape[1:]], each.dtype) for each in tensors]
    with calling("loss: in a tf.function, it"):
        traced = tf.function(lambda *given: run.values(*given).values, autograph=False).get_concrete_function(*specs)
        found = traced(*tensors).numpy()
    demand(
        nearly_same(found, values, relative=_CLOSE),
        "loss: in a tf.function it has other values; use TensorFlow operations alone",
    )
