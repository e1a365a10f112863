"""Compares an export with its model on real examples."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine.export.subject import Subject, batches, read_images, spread

_TIMED = 30  # calls


class ExportError(RuntimeError):
    """An export failed, or is not what the model is. Nothing is written."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An export beside its model.

    Attributes:
        examples: the number of real examples.
        largest_difference: the largest absolute difference of an output.
        scale: the largest absolute output of the model, or 1 if that is larger.
        agreement: the share of examples to which both give the same class; None without classes.
        accuracy, model_accuracy: the share of right classes of both; None without classes.
        milliseconds, model_milliseconds: the median time for a single image, by both, on this machine.
    """

    examples: int
    largest_difference: float
    scale: float
    agreement: float | None
    accuracy: float | None
    model_accuracy: float | None
    milliseconds: float | None = None
    model_milliseconds: float | None = None

    @property
    def relative(self) -> float:
        return self.largest_difference / self.scale

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    subject: Subject,
    run: Callable[[np.ndarray], np.ndarray],
    *,
    most: int | None = None,
    bound: float | None,
    what: str,
) -> Comparison:
    """Runs an export beside the model on the examples.

    Args:
        run: float images [B, height, width, channels] in [0, 1] -> outputs [B, outputs].
        most: the largest number of examples; None takes all.
        bound: the largest difference allowed, relative to ``Comparison.scale``; None allows any finite one.
        what: the export, for messages.

    Raises ExportError if the outputs differ by more than that, are not finite where the model's are, or have another
    shape.
    """
    forward = tf.function(subject.forward, input_signature=[subject.image_spec], autograph=False)
    part, worst, scale = subject.examples, 0.0, 1.0
    right, own_right, same = 0, 0, 0
    positions = spread(len(part), len(part) if most is None else most)
    for _, batch in batches(part, positions):
        expected, found = forward(tf.constant(batch["images"])).numpy(), run(batch["images"])
        if found.shape != expected.shape:
            raise ExportError(
                f"{what}: it gives outputs of shape {list(found.shape)}; the model, {list(expected.shape)}"
            )
        difference = float(np.abs(found.astype(np.float64) - expected).max())
        if not np.isfinite(difference):
            raise ExportError(f"{what}: its outputs are not finite numbers, or the model's are not; nothing is written")
        worst, scale = max(worst, difference), max(scale, float(np.abs(expected).max()))
        if subject.labels and batch["labels"].ndim == 1:
            chosen, own = (subject.choose(tf.constant(each)).numpy() for each in (found, expected))
            same += int((chosen == own).sum())
            right += int((chosen == batch["labels"]).sum())
            own_right += int((own == batch["labels"]).sum())
    if bound is not None and worst > bound * scale:
        raise ExportError(
            f"{what}: an output differs from the model's by {worst:.3g}, and at most {bound * scale:.3g} is allowed; nothing is "
            "written"
        )
    classes = subject.labels and subject.examples.labels.ndim == 1
    shares = [count / len(positions) if classes else None for count in (same, right, own_right)]
    return Comparison(
        examples=len(positions),
        largest_difference=worst,
        scale=scale,
        agreement=shares[0],
        accuracy=shares[1],
        model_accuracy=shares[2],
    )


def time_single(subject: Subject, run: Callable[[Any], Any]) -> float:
    """The median time in milliseconds in which ``run`` answers for a batch of one image."""
    image = read_images(subject.examples, np.arange(1))
    run(image)
    taken = []
    for _ in range(_TIMED):
        begun = time.perf_counter()
        run(image)
        taken.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(taken)


def time_model(subject: Subject) -> float:
    """The median time in milliseconds in which the model itself answers for a batch of one image."""
    forward = tf.function(subject.forward, input_signature=[subject.image_spec], autograph=False)
    return time_single(subject, lambda image: forward(tf.constant(image)).numpy())
