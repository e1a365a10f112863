"""What a network itself does to its images before its first weights, which tells the values that it was made for.

The traced network is run up to the first operation that computes with weights, on images of one value each: what the values
0 and 255, 0 and 1, -1 and 1 become there shows which of these ranges is brought to one that weights are trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine.graphs import dataflow, tracing
from engine.graphs.op_kinds import is_handle, is_product
from engine.graphs.reach import reach
from engine.selection.variables import NamedVariable

# What images may be given as: the lowest, middle and highest value of each range.
RANGES = {"pixels": (0.0, 127.5, 255.0), "unit": (0.0, 0.5, 1.0), "tf": (-1.0, 0.0, 1.0)}
_LEVELS = sorted({level for values in RANGES.values() for level in values})
_CALLS = ("PartitionedCall", "StatefulPartitionedCall", "If", "StatelessIf", "Case", "StatelessCase")
# Ranges that weights are trained on: common ones, then those of ImageNet's mean and deviation, and of its mean alone.
_MEANS, _DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_KNOWN = [(0.0, 1.0), (-1.0, 1.0), (-0.5, 0.5), (0.0, 255.0), (-127.5, 127.5), (1.0, 0.0), (255.0, 0.0)]
_KNOWN += [(-mean / std, (1 - mean) / std) for mean, std in zip(_MEANS, _DEVIATIONS, strict=True)]
_KNOWN += [(-255 * mean, 255 * (1 - mean)) for mean in _MEANS]


@dataclass(frozen=True)
class Scaling:
    """What a network does to its images before its first weights.

    Attributes:
        mode: the range of the images that it was made for, a key of ``RANGES``; "any" if it standardises each image;
            None if it takes them as they are; "" if that cannot be decided.
        reason: what was found, for a message.
        rounds: whether it converts images to integers.
    """

    mode: str | None
    reason: str
    rounds: bool = False


def probe_scaling(traced: Any, variables: Iterable[NamedVariable]) -> Scaling:
    """Finds out for which range of values a network was made, by running what it does before its first weights.

    Args:
        traced: the network as a concrete function of images [B, height, width, channels], in inference mode.
        variables: the network's variables. Those with one value per channel, or one per pixel that do not train, may be
            part of a preprocessing; others are weights.
    """
    traced = tracing.inline_calls(traced)
    image = traced.graph.inputs[0]
    found, hidden, rounds = _find_frontier(traced, image, variables)
    if not found:
        return Scaling("", "its outputs do not depend on them")
    values = _Probe(traced, image, found)
    before = np.stack([values.at(level) for level in _LEVELS])  # [level, position]
    answers = np.flatnonzero((before != before[0]).any(axis=0))
    if not len(answers):
        return _judge_textures(values)
    before = before[:, answers]
    if _is_close(before, np.array(_LEVELS)[:, None]):
        if hidden:
            return Scaling("", f"it gives them to {hidden}, which is not looked into")
        if values.is_reordered():
            return Scaling("", "it reorders their channels")
        return Scaling(None, "it does not scale images itself")
    fits = {mode: _rate(*(before[_LEVELS.index(level)] for level in RANGES[mode])) for mode in RANGES}
    best = [mode for mode, rating in fits.items() if rating == max(fits.values()) > 0]
    if len(best) != 1:
        ends = sorted({f"{low:.4g} to {high:.4g}" for low, high in before[[1, -1]].T})[:3]
        return Scaling("", f"it turns values from 0 to 255 into {', '.join(ends)}")
    if values.expects_blue_first(best[0]):
        return Scaling("", "it subtracts ImageNet's means as if blue came first")
    return Scaling(best[0], "it scales images itself", rounds)


def measure_scaling(traced: Any, variables: Iterable[NamedVariable]) -> tuple[np.ndarray, np.ndarray] | None:
    """The gain and offset, each [channels] in float64, by which a network scales images before its first weights.

    None if it does not scale each channel by itself, from 0 to 255 alike. The arguments are those of ``probe_scaling``.
    """
    traced = tracing.inline_calls(traced)
    image = traced.graph.inputs[0]
    found, hidden, rounds = _find_frontier(traced, image, variables)
    channels = image.shape[-1]
    if hidden or rounds or len(found) != 1 or len(found[0].shape) != 4 or found[0].shape[-1] != channels:
        return None
    probe = _Probe(traced, image, found)
    height, width = found[0].shape[1:3]

    def inside(image: Any) -> np.ndarray:  # of a pixel in the middle, since the border may be padded
        return probe.on(image).reshape(-1, height, width, channels)[0, height // 2, width // 2]

    black, grey, white = map(inside, (np.float32(0), np.float32(127.5), np.float32(255)))
    alone = np.stack([inside(probe.lit(channel)) for channel in range(channels)])
    expected = np.where(np.eye(channels, dtype=bool), white, black)
    if not (np.allclose(grey, (black + white) / 2, atol=1e-4) and np.allclose(alone, expected, atol=1e-4)):
        return None
    return (white - black) / 255, black


class _Probe:
    """Runs a network up to some tensors on made-up images."""

    def __init__(self, traced: Any, image: Any, tensors: Sequence[Any]) -> None:
        self._shape = [size or 1 for size in image.shape]
        captured = dataflow.captured_tensors(traced.graph)

        def compute(given: Any) -> list[Any]:
            return dataflow.copy_tensors(tensors, captured | {id(image): given})

        self._same_shape = len(tensors) == 1 and tensors[0].shape[1:] == image.shape[1:]
        self._compute = tf.function(compute, autograph=False, input_signature=[tf.TensorSpec(self._shape, image.dtype)])
        self._dtype = image.dtype

    def on(self, image: Any) -> np.ndarray:
        """The values of all tensors, in one row, for an image that has the shape of a batch of one or fits it."""
        given = tf.cast(np.broadcast_to(image, self._shape), self._dtype)
        return np.concatenate([tf.cast(value, tf.float64).numpy().ravel() for value in self._compute(given)])

    def at(self, level: float) -> np.ndarray:
        return self.on(np.float32(level))

    def lit(self, channel: int) -> np.ndarray:
        """An image in which one channel is 255 and the others are 0."""
        return np.float32(255.0) * (np.arange(self._shape[-1]) == channel)

    def is_reordered(self) -> bool:
        """Whether images come out in their own shape, but with other channels in the place of theirs."""
        images = [np.broadcast_to(self.lit(channel), self._shape) for channel in range(self._shape[-1])]
        return self._same_shape and not all(_is_close(self.on(image), image.ravel()) for image in images)

    def expects_blue_first(self, mode: str) -> bool:
        """Whether red images are centred at ImageNet's mean of blue, and blue ones at that of red."""
        if self._shape[-1] != 3:
            return False
        black = self.at(0.0)
        gains = np.stack([self.on(self.lit(channel)) - black for channel in range(3)])
        low, _, high = RANGES[mode]
        zeros = []
        for channel in (0, 2):
            alone = (gains[channel] != 0) & (np.count_nonzero(gains, axis=0) == 1)
            if not alone.any():
                return False
            zeros.append((np.median(-255 * black[alone] / gains[channel][alone]) - low) / (high - low))
        return _is_close(np.array(zeros), np.array([_MEANS[2], _MEANS[0]]))


def _find_frontier(traced: Any, image: Any, variables: Iterable[NamedVariable]) -> tuple[list[Any], str, bool]:
    """The last tensors that depend on the image and not on weights; the call that hides more; whether one is an integer."""
    graph, shape = traced.graph, image.shape[1:]
    kinds = {id(entry.variable.handle): entry for entry in variables if hasattr(entry.variable, "handle")}

    def holds_weights(outer: Any) -> bool:
        if outer.dtype != tf.resource:
            return False
        entry = kinds.get(id(outer))
        if entry is None:
            return True
        is_picture = entry.kind != "weight" and entry.variable.shape[-3:] == shape
        return entry.size > shape[-1] and not (is_picture and entry.variable.dtype.is_floating)

    weights = [inner for outer, inner in graph.captures if holds_weights(outer)]
    pictured = _readers([image])
    stops = {
        op for op in pictured if _contracts(op, {image.op, *pictured}, shape[-1]) or any(map(_is_opaque, op.outputs))
    }
    weighted = stops | _readers([*weights, *(output for op in stops for output in op.outputs)])
    before = pictured - weighted
    tensors = [image, *(output for op in before for output in op.outputs)]
    tensors = [tensor for tensor in tensors if not _is_opaque(tensor)]
    results = {id(tensor) for tensor in traced.outputs}
    last = [t for t in tensors if id(t) in results or any(op in weighted for op in t.consumers())]
    last = [tensor for tensor in last if tensor.dtype.is_floating or tensor.dtype.is_integer]
    hidden = next((op.name for tensor in last for op in tensor.consumers() if op.type in _CALLS), "")
    rounds = any(op.type == "Cast" and op.outputs[0].dtype.is_integer for op in before)
    return last, hidden, rounds


def _readers(tensors: Sequence[Any]) -> set[Any]:
    """All operations that depend on tensors by data: an inlined call makes all that it computes wait for its arguments."""
    first = [op for tensor in tensors for op in tensor.consumers()]
    return set(reach(first, lambda op: [reader for output in op.outputs for reader in output.consumers()]))


def _contracts(op: Any, pictured: set[Any], channels: int) -> bool:
    """Whether an operation is a product with more numbers than converting the channels of a pixel takes."""
    if not is_product(op.type):
        return False
    others = [tensor for tensor in op.inputs if tensor.op not in pictured]
    sizes = [tensor.shape.num_elements() for tensor in others if tensor.dtype.is_floating]
    return not sizes or any(size is None or size > channels**2 for size in sizes)


def _is_opaque(tensor: Any) -> bool:
    return is_handle(tensor) or tensor.dtype in (tf.variant, tf.string)


def _judge_textures(values: _Probe) -> Scaling:
    """The scaling of a network that shows nothing of an image of one value."""
    texture = np.random.default_rng(0).random(values._shape, np.float32)
    seen = [values.on(low + (high - low) * texture) for low, _, high in RANGES.values()]
    if len(seen[0]) and np.ptp(seen[0]) > 0 and all(_is_close(each, seen[0]) for each in seen):
        return Scaling("any", "it standardises each image itself")
    return Scaling("", "it shows nothing of images of one value")


def _rate(low: np.ndarray, middle: np.ndarray, high: np.ndarray) -> int:
    """2 if a range of images becomes one that weights are trained on, 1 if it becomes one that they may be, else 0."""
    span = np.abs(high - low)
    if not (np.isfinite(span).all() and span.all()) or (np.abs(middle - (low + high) / 2) > 0.02 * span).any():
        return 0
    ends = np.stack([low, high], axis=1)[:, None, :]  # [position, 1, 2]
    if (np.abs(ends - np.array(_KNOWN)).max(axis=2).min(axis=1) < 0.02 * np.minimum(span, 10)).all():
        return 2
    centred = (np.minimum(low, high) <= 0.05 * span) & (np.maximum(low, high) >= -0.05 * span)
    return int((centred & (((span >= 0.4) & (span <= 15)) | ((span >= 200) & (span <= 300)))).all())


def _is_close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool((np.abs(found - expected) <= 0.01 * np.maximum(1.0, np.abs(expected))).all())
