"""What is asked of a task whose labels are masks, a class for each pixel, or boxes."""

from __future__ import annotations

from engine.data import Source
from engine.errors import InputError
from engine.models.keras.heads import Head, parse_head
from engine.text import join_words
from engine.training.dense_metrics import OVERLAPS
from engine.training.loss_names import CENTERS, OF_GRAPH
from engine.training.metric_names import MetricError, parse_metrics


def check_head(source: Source, model: str, head: str | None, loss: str) -> None:
    """Raises InputError if data with a class for each pixel get a model with outputs for each image, or the other way round."""
    parsed = None if head is None else parse_head(head)
    dense = source.train.dense
    _check_centers(head, parsed, model, loss)
    if parsed is not None and parsed.dense and not dense:
        raise InputError(
            f"head={head}: it has outputs for each pixel, but {source.name} has no masks, a class for each pixel; expected gap, "
            "gmp or flatten"
        )
    if not dense:
        return
    if model.partition(":")[0] in ("vit", "cnn", "graph"):
        raise InputError(
            f"model={model}: it has outputs for each image, but {source.name} has masks, a class for each pixel; expected "
            "keras:NAME with --head=unet, or file: or py: models with outputs [B, height, width, classes]"
        )
    if (parsed is None and model.startswith("keras:")) or (parsed is not None and not parsed.dense):
        raise InputError(
            f"head={head}: {source.name} has masks, a class for each pixel, which need outputs for each; --head=unet is a decoder "
            "on the stages of the trunk, --head=aspp one on its last map"
        )
    if loss.startswith(OF_GRAPH):
        raise InputError(f"loss={loss}: {source.name} has masks, a class for each pixel; expected softmax or dice")


def _check_centers(head: str | None, parsed: Head | None, model: str, loss: str) -> None:
    """Raises InputError unless a head for boxes and the loss for boxes come together."""
    centers, loss = parsed is not None and parsed.pool == CENTERS, loss.strip().partition(" ")[0]
    if centers and loss != CENTERS:
        raise InputError(f"head={head}: its outputs are for --loss=centers, but the loss is {loss}")
    if loss == CENTERS and not centers and (head is not None or model.startswith("keras:")):
        raise InputError(f"head={head}: the loss centers needs --head=centers")


def choose_pixel_metrics(metrics: str) -> str:
    """The text of ``--metrics`` for masks: as given, or all that there are where it names none; MetricError for others."""
    for request in parse_metrics(metrics):
        if request.metric not in OVERLAPS and not request.is_users:
            raise MetricError(
                f"metrics={request}: it is for one class for each example, but the labels are masks, a class for each pixel; "
                f"expected {join_words(OVERLAPS)} or py:module:name"
            )
    return metrics or ",".join(OVERLAPS)
