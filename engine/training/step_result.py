"""What a step returns, and the error of a step whose loss or gradient is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

NonFinite = Literal["skip", "stop"]


class NonFiniteError(RuntimeError):
    """The loss or a gradient of a step is not finite. The step has changed nothing."""


@dataclass(frozen=True)
class StepResult:
    """The result of one step. Scalars are tensors, so that they are copied from the device only when they are read.

    Attributes:
        loss: the sum of all terms and the regulariser.
        terms: the weighted mean of each term, by name.
        metrics: the weighted mean of each metric, by name.
        grad_norm: the global norm of the gradient of the trained variables, before clipping.
        skipped: whether nothing was updated, because the loss or the gradient was not finite or no example had a weight.
        loss_scale: the loss scale used in this step; 1.0 if there is none.
        left_out: the names of terms whose weights were all 0.
        stopping: whether this worker, or any other, wants to stop.
        metric_weights: the summed weights of each metric: 0 where no example counted, whose mean is then 0.

    Example:
        >>> import tensorflow as tf
        >>> from engine import SGD, Loss, TrainStep, select
        >>> model = {"w": tf.Variable(2.0)}
        >>> step = TrainStep(lambda batch, *, training, seeds: Loss({"term": (batch["x"] * model["w"], None)}), SGD())
        >>> result = step(select(model, "w"), {"x": tf.constant([1.0, 3.0])}, learning_rate=0.1)
        >>> float(result.loss), float(result.grad_norm), result.skipped
        (4.0, 2.0, False)
    """

    loss: Any
    terms: Mapping[str, Any]
    metrics: Mapping[str, Any]
    grad_norm: Any
    skipped: bool = False
    loss_scale: float = 1.0
    left_out: tuple[str, ...] = ()
    stopping: bool = False
    metric_weights: Mapping[str, Any] = field(default_factory=dict)
