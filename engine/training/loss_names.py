"""The names of the supervised losses, which can be checked without TensorFlow."""

from __future__ import annotations

from engine.errors import InputError
from engine.text import nearest

OF_GRAPH = "graph:"  # followed by the name of a tensor: the loss of the model's own graph
LOSSES = ("softmax", "sigmoid", "mse")


class LossError(InputError):
    """A loss function breaks the contract of ``Loss``, or the name or arguments of a loss are wrong."""


def output_kind(loss: str, *, classes: bool) -> str:
    """What the outputs of a model mean that was trained with a loss: "softmax", "sigmoid" or "mse".

    The loss of a graph does not say; its outputs are taken for those of ``classes`` where the data have some.
    """
    if loss.startswith(OF_GRAPH):
        return "softmax" if classes else "mse"
    return loss


def check_loss(kind: str, label_smoothing: float = 0.0) -> None:
    """Raises LossError if the loss is unknown or the label smoothing is out of range."""
    if kind.startswith(OF_GRAPH) and len(kind) > len(OF_GRAPH):
        if label_smoothing:
            raise LossError(f"label_smoothing={label_smoothing}: {kind} is computed by the graph")
        return
    if kind not in LOSSES:
        raise LossError(f"loss={kind!r}: expected one of {', '.join(LOSSES)}{nearest(kind, list(LOSSES))}")
    if not 0.0 <= label_smoothing < 1.0:
        raise LossError(f"label_smoothing={label_smoothing}: expected a number of at least 0 and below 1")
    if kind == "mse" and label_smoothing:
        raise LossError(f"label_smoothing={label_smoothing}: the loss mse has no classes to smooth over")
