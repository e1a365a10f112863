"""Corrupted images: how much of its accuracy a model keeps when its input is blurred, noisy, pale, bright or compressed.

The idea and the severities are those of Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations (arXiv:1903.12261): strengths 1, 2 and 3 here are the severities 1, 3 and 5 of CIFAR-10-C for
images whose shorter side is below 64 pixels, and those of ImageNet-C for all others. The implementation is our own.

The corruption of an image depends on the seed and the number of the image alone, so every process sees the same one. The
noise of an image has the same shape at all strengths. The bits of "jpeg" are those of TensorFlow's encoder, and may differ
between its versions.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.data.part import Images, Part
from engine.errors import InputError, check_range
from engine.text import cut, nearest

KINDS = ("blur", "noise", "contrast", "jpeg", "brightness")
STRENGTHS = (1, 2, 3)
_SMALL = 64  # pixels of the shorter side
_LARGE_SIDE = 224  # of ImageNet-C; the blur of other large images is as wide in proportion
# kind -> strengths for small images, and for large ones
_LEVELS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "blur": ((0.4, 0.7, 1.0), (1.0, 3.0, 6.0)),  # standard deviation, in pixels
    "noise": ((0.04, 0.08, 0.10), (0.08, 0.18, 0.38)),  # standard deviation
    "contrast": ((0.75, 0.4, 0.15), (0.4, 0.2, 0.05)),  # the factor on the distance from the mean
    "jpeg": ((80, 58, 40), (25, 15, 7)),  # quality
    "brightness": ((0.05, 0.15, 0.3), (0.1, 0.3, 0.5)),  # added to the value of HSV
}


class CorruptionError(InputError):
    """A corruption does not exist, has no such strength or is named twice."""


class Corruption(NamedTuple):
    """A kind of corruption (one of ``KINDS``) and its strength, 1 to 3."""

    kind: str
    strength: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.strength}"


def parse(text: str) -> tuple[Corruption, ...]:
    """Reads ``KIND:STRENGTH``, separated by commas; ``all`` is every kind at every strength.

    Raises CorruptionError if one is unknown or appears twice.

    Example:
        >>> [str(each) for each in parse("blur:2, noise:1")], len(parse("all"))
        (['blur:2', 'noise:1'], 15)
    """
    if text.strip() == "all":
        return tuple(Corruption(kind, strength) for kind in KINDS for strength in STRENGTHS)
    found: list[Corruption] = []
    for word in text.split(","):
        kind, _, strength = word.strip().partition(":")
        if kind not in KINDS:
            hint = "; all stands alone" if kind == "all" else nearest(kind, KINDS)
            raise CorruptionError(
                f"corrupt={cut(text)!r}: `{cut(word.strip())}`: expected all, or KIND:STRENGTH, where KIND is one of "
                f"{', '.join(KINDS)}{hint}"
            )
        if strength not in map(str, STRENGTHS):
            raise CorruptionError(
                f"corrupt={cut(text)!r}: `{cut(word.strip())}`: expected a strength from 1 to 3, such as {kind}:2"
            )
        found.append(Corruption(kind, int(strength)))
        if found.count(found[-1]) > 1:
            raise CorruptionError(f"corrupt={cut(text)!r}: `{found[-1]}` appears twice")
    return tuple(found)


def corrupted(part: Part, kind: str, strength: int, *, seed: int = 0) -> Part:
    """Returns a part whose images are corrupted as they are read; its labels and its order stay as they are.

    Args:
        part: images of uint8, which are rounded again, or of float32 in [0, 1].
        kind, strength: one of ``KINDS``, and 1, 2 or 3.
        seed: of the noise, from 0 to 2**31 - 1. Another seed gives every image another noise.

    Raises:
        CorruptionError: there is no such kind or strength.
        InputError: the seed is out of range.
    """
    (chosen,) = parse(f"{kind}:{strength}")
    check_range("seed", seed, 0, 2**31 - 1)
    return dataclasses.replace(part, images=_Corrupted(part.images, chosen, seed))


def average(chosen: Sequence[Corruption], values: Sequence[float]) -> float:
    """The mean over the kinds of the means over their strengths, as in the paper's corruption error.

    Example:
        >>> average([Corruption("blur", 1), Corruption("blur", 3), Corruption("jpeg", 2)], [0.5, 0.25, 0.875])
        0.625
    """
    by_kind: dict[str, list[float]] = {}
    for each, value in zip(chosen, values, strict=True):
        by_kind.setdefault(each.kind, []).append(value)
    return float(np.mean([np.mean(found) for found in by_kind.values()]))


class _Corrupted:
    """Images (``engine.data.part.Images``) that are corrupted one by one, so the bits of one do not depend on others."""

    def __init__(self, images: Images, corruption: Corruption, seed: int) -> None:
        self._images, self._corruption, self._seed = images, corruption, seed
        self.shape, self.dtype = tuple(images.shape), np.dtype(images.dtype)
        side = min(self.shape[1:3])
        small, large = (levels[corruption.strength - 1] for levels in _LEVELS[corruption.kind])
        if corruption.kind == "blur":  # one much narrower than a pixel would change nothing
            large = max(small, large * side / _LARGE_SIDE)
        self._level = small if side < _SMALL else large

    def __getitem__(self, numbers: Any) -> np.ndarray:
        numbers = np.asarray(numbers)
        found: np.ndarray = self._images[numbers]
        whole = found.dtype == np.uint8
        change: Callable[..., np.ndarray] = _CHANGES[self._corruption.kind]
        out = np.empty_like(found, order="C")
        for place, (number, image) in enumerate(zip(numbers.tolist(), found, strict=True)):
            values = image.astype(np.float32) / np.float32(255) if whole else np.ascontiguousarray(image)
            changed = np.clip(change(values, self._level, (self._seed, number)), 0.0, 1.0)
            out[place] = np.rint(changed * np.float32(255)) if whole else changed
        return out

    def fingerprint(self) -> str:
        """A SHA-256 that changes with the images below and with the corruption."""
        images: Any = self._images
        below = images if isinstance(images, np.ndarray) else images.fingerprint().encode()
        hasher = hashlib.sha256(f"{self._corruption} {self._seed} {self.shape} {self.dtype}".encode())
        hasher.update(np.ascontiguousarray(below).data if isinstance(below, np.ndarray) else below)
        return hasher.hexdigest()


def _blur(image: np.ndarray, deviation: float, key: tuple[int, int]) -> np.ndarray:
    """A Gaussian of four standard deviations to each side; pixels outside the image are those at its edge."""
    reach = int(4.0 * deviation + 0.5)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (0, 1):
        length = image.shape[axis]
        rows = np.clip(np.arange(-reach, length + reach), 0, length - 1)
        padded = np.take(image, rows, axis=axis)
        image = np.zeros_like(image)
        for place, tap in enumerate(taps):
            image += tap * (padded[place : place + length] if axis == 0 else padded[:, place : place + length])
    return image


def _add_noise(image: np.ndarray, deviation: float, key: tuple[int, int]) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
    return image + np.float32(deviation) * generator.standard_normal(image.shape, dtype=np.float32)


def _lower_contrast(image: np.ndarray, factor: float, key: tuple[int, int]) -> np.ndarray:
    mean = image.mean(axis=(0, 1), keepdims=True)
    return (image - mean) * np.float32(factor) + mean


def _brighten(image: np.ndarray, more: float, key: tuple[int, int]) -> np.ndarray:
    """Adds to the value V of HSV, the largest channel. With hue and saturation as they are, all channels grow as V does."""
    value = image.max(axis=2, keepdims=True)
    brighter = np.minimum(value + np.float32(more), np.float32(1))
    black = value == 0
    return np.where(black, brighter, image * (brighter / np.where(black, np.float32(1), value)))


def _compress(image: np.ndarray, quality: float, key: tuple[int, int]) -> np.ndarray:
    import tensorflow as tf

    encoded = tf.io.encode_jpeg(
        np.rint(np.clip(image, 0.0, 1.0) * np.float32(255)).astype(np.uint8), quality=int(quality)
    )
    decoded = tf.io.decode_jpeg(encoded, channels=image.shape[2], dct_method="INTEGER_ACCURATE")
    return decoded.numpy().astype(np.float32) / np.float32(255)


_CHANGES: dict[str, Callable[..., np.ndarray]] = {
    "blur": _blur,
    "noise": _add_noise,
    "contrast": _lower_contrast,
    "jpeg": _compress,
    "brightness": _brighten,
}
