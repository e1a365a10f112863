"""The metric contract: figures that evaluations compute beside the loss, exactly, however the examples are divided.

A metric measures each batch in the graph of the evaluation. What it measures is added over batches, replicas and workers in
float64, or kept for all examples, and made into one figure at the end. So a figure such as a macro F1 is that of all examples,
and not a mean over batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from engine.data.batch_names import label_name
from engine.errors import InputError
from engine.text import join_words
from engine.training.loss_kinds import use_present
from engine.training.metric_names import MetricError
from engine.training.task_terms import find_weights

Figure = Any  # a float (NaN where the examples do not define it), or a table: a list of lists of numbers


class Metric(Protocol):
    """A figure of an evaluation; derive from it, or write a class with the same members.

    Attributes:
        name: what lines and files call it: ``f1`` is ``eval_f1`` in metrics.jsonl.
        kept: the names of those measured tensors that are not added but concatenated along their first axis, such as the
            scores of all examples. They need memory for every example of the evaluation.
        higher_is_better: whether a model with a higher figure is better.

    Example:
        >>> import numpy as np
        >>> import tensorflow as tf
        >>> class MeanOutput(Metric):
        ...     name = "mean_output"
        ...     def measure(self, outputs, labels, weights):
        ...         return {"sum": tf.reduce_sum(outputs), "count": tf.shape(outputs)[0]}
        ...     def finalise(self, sums):
        ...         return float(sums["sum"] / max(sums["count"], 1))
        >>> measured = MeanOutput().measure(tf.constant([[1.0], [3.0]]), None, None)
        >>> MeanOutput().finalise({name: np.float64(value) for name, value in measured.items()})
        2.0
    """

    name: str
    kept: tuple[str, ...] = ()
    higher_is_better: bool = True

    def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
        """Measures a batch; traced, in inference mode.

        Args:
            outputs: the network's outputs, [B, ...], float32 or float64, such as logits.
            labels: those of the batch, [B, ...]; an example of weight 0 may have any.
            weights: how much each example counts, [B], at least 0; None where all count 1.

        Returns:
            Tensors by name, each of a shape that does not depend on the number of examples, but for the first axis of
            those in ``kept``. An example of weight 0 must leave no trace in them. Compute sums in float64: float32 counts
            only up to 16,777,216.
        """
        ...

    def finalise(self, sums: Mapping[str, np.ndarray]) -> Figure:
        """Makes the figure from the tensors of all batches: float64 sums, and what is kept in its own dtype.

        It is NaN where the examples do not define it. It may also be a table of numbers, as a list of lists.
        """
        ...


def figure_name(metric: str, task: str = "") -> str:
    """What the figure of a metric is called: ``f1``, or ``f1/species`` for one of several tasks."""
    return f"{metric}/{task}" if task else metric


def measure_metrics(
    metrics: Iterable[Metric], outputs: Any, labels: Any, weights: Any, *, task: str = ""
) -> dict[str, tuple[Metric, Mapping[str, Any]]]:
    """Measures a batch by each metric: what ``Loss.measured`` holds, by ``figure_name``.

    Raises:
        MetricError: a metric raised an error, or returned something other than tensors by name.
    """
    found: dict[str, tuple[Metric, Mapping[str, Any]]] = {}
    for metric in metrics:
        name = figure_name(metric.name, task)
        try:
            given = metric.measure(outputs, labels, weights)
        except InputError:
            raise
        except Exception as error:
            raise MetricError(f"metric {name}: measure raised {type(error).__name__}: {error}") from error
        if not isinstance(given, Mapping) or not given or not all(isinstance(key, str) for key in given):
            raise MetricError(
                f"metric {name}: measure returned {type(given).__name__}; expected a dict of tensors by name"
            )
        if name in found:
            raise MetricError(f"metric {name}: two metrics have this name; give each another one")
        found[name] = metric, {key: _as_tensor(name, metric, key, value) for key, value in given.items()}
        if absent := [key for key in kept_names(metric) if key not in given]:
            raise MetricError(
                f"metric {name}: measure returned no {absent[0]!r}, which `kept` lists; it returned {join_words(given)}"
            )
    return found


def measure_outputs(
    metrics: Mapping[str, Sequence[Metric]], outputs: Any, batch: Mapping[str, Any]
) -> dict[str, tuple[Metric, Mapping[str, Any]]]:
    """Measures each output of a network by its metrics, with its labels and weights in a batch: for ``Loss.measured``.

    Args:
        metrics: those of each output, by its name; "" is the only output.
        outputs: what the network returns: a tensor, or tensors by name.
    """
    found: dict[str, tuple[Metric, Mapping[str, Any]]] = {}
    for task, own in metrics.items():
        weights = find_weights(task, batch)
        labels = use_present(batch[label_name(task)], weights)
        found |= measure_metrics(own, outputs[task] if task else outputs, labels, weights, task=task)
    return found


def name_figures(metrics: Mapping[str, Sequence[Metric]]) -> tuple[str, ...]:
    """The names of the figures of the metrics of each output."""
    return tuple(figure_name(metric.name, task) for task, own in metrics.items() for metric in own)


def kept_names(metric: Metric) -> tuple[str, ...]:
    """The names of the tensors that a metric keeps; a class that is not derived from ``Metric`` may leave them out."""
    return tuple(getattr(metric, "kept", ()))


def _as_tensor(name: str, metric: Metric, key: str, value: Any) -> Any:
    """A measured tensor as it is gathered: a sum in float64, or what is kept in a dtype that numpy has."""
    tensor = tf.convert_to_tensor(value, dtype_hint=tf.float64)  # a number of Python keeps its bits
    if not (tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool):
        raise MetricError(f"metric {name}: {key!r} is {tensor.dtype.name}; expected numbers")
    if key not in kept_names(metric):
        if not tensor.shape.is_fully_defined():  # values by example would pass for sums where there is one batch
            raise MetricError(
                f"metric {name}: {key!r} has shape {tensor.shape}, which may depend on the number of examples; return a sum over "
                "the examples (tf.ensure_shape says its shape), or list the name in `kept`"
            )
        return tf.cast(tensor, tf.float64)
    if tensor.shape.rank == 0:
        raise MetricError(
            f"metric {name}: {key!r} is a scalar, but `kept` lists it; expected a first axis to join along"
        )
    return tf.cast(tensor, tf.float32) if tensor.dtype in (tf.bfloat16, tf.float16) else tensor
