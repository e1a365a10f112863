"""The names of the supervised losses, which can be checked without TensorFlow."""

from __future__ import annotations

from engine.errors import InputError
from engine.text import nearest

LOSSES = ("softmax", "sigmoid", "mse")


class LossError(InputError):
    """A loss function breaks the contract of ``Loss``, or the name or arguments of a loss are wrong."""


def check_loss(kind: str, label_smoothing: float = 0.0) -> None:
    """Raises LossError if the loss is unknown or the label smoothing is out of range."""
    if kind not in LOSSES:
        raise LossError(f"loss={kind!r}: expected one of {', '.join(LOSSES)}{nearest(kind, list(LOSSES))}")
    if not 0.0 <= label_smoothing < 1.0:
        raise LossError(f"label_smoothing={label_smoothing}: expected a number of at least 0 and below 1")
    if kind == "mse" and label_smoothing:
        raise LossError(f"label_smoothing={label_smoothing}: the loss mse has no classes to smooth over")
