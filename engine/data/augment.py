"""Augmentation of image batches. Every random draw is a function of the example's seeds alone.

Crop, rotation and zoom are combined into one projective transform, so an image is resampled at most once.
"""

from __future__ import annotations

from typing import Any

from engine import seeds as example_seeds
from engine.errors import InputError
from engine.text import nearest

KINDS = ("flip", "crop", "color", "rotate", "zoom", "contrast")
CROP = 0.125  # the largest shift, as a share of the side
ROTATE = 15.0  # the largest angle, in degrees
ZOOM = 0.2  # the largest relative change of size
COLOR = 0.2  # the largest change of brightness, and the largest relative change of saturation
CONTRAST = 0.3  # the largest relative change of contrast
_SITE = 1 << 20  # the first site number of augmentation; models count from 0


class AugmentError(InputError):
    """An augmentation does not exist or is named twice."""


def parse(text: str) -> tuple[str, ...]:
    """Reads a comma-separated list of augmentations ("" is none); raises AugmentError if one is unknown or repeated."""
    kinds = tuple(word.strip() for word in text.split(",") if word.strip())
    for kind in kinds:
        if kind not in KINDS:
            raise AugmentError(
                f"augment={text!r}: `{kind}` is not one of {', '.join(KINDS)}{nearest(kind, list(KINDS))}"
            )
        if kinds.count(kind) > 1:
            raise AugmentError(f"augment={text!r}: `{kind}` is named twice")
    return kinds


def augment(images: Any, seeds: Any, kinds: tuple[str, ...]) -> Any:
    """Augments float32 images [B, height, width, channels] in [0, 1] by the examples' int32 ``seeds`` [B, 2].

    The result stays in [0, 1]. ``kinds`` are any of ``KINDS``.
    """
    import tensorflow as tf

    def draw(number: int, count: int = 1) -> Any:
        """Draws numbers [B, count] in [-1, 1)."""
        return example_seeds.uniform(seeds, [count], site=_SITE + number) * 2.0 - 1.0

    if "flip" in kinds:
        images = tf.where(draw(0)[:, :, None, None] < 0, tf.reverse(images, [2]), images)
    if {"crop", "rotate", "zoom"} & set(kinds):
        images = _warp(images, kinds, shift=draw(1, 2), angle=draw(2)[:, 0], size=draw(3)[:, 0])
    if "contrast" in kinds:
        mean = tf.reduce_mean(images, axis=[1, 2], keepdims=True)
        images = mean + (images - mean) * (1.0 + CONTRAST * draw(4)[:, :, None, None])
    if "color" in kinds:
        change = draw(5, 2)
        images = images + COLOR * change[:, 0, None, None, None]
        if images.shape[-1] == 3:
            grey = tf.reduce_sum(images * tf.constant([0.299, 0.587, 0.114]), axis=-1, keepdims=True)
            images = grey + (images - grey) * (1.0 + COLOR * change[:, 1, None, None, None])
    return tf.clip_by_value(images, 0.0, 1.0) if kinds else images


def _warp(images: Any, kinds: tuple[str, ...], *, shift: Any, angle: Any, size: Any) -> Any:
    """Rotates and zooms about the centre, then shifts. Pixels from outside the image are filled by reflection."""
    import tensorflow as tf

    height, width = (float(n) for n in images.shape[1:3])
    none = tf.zeros_like(angle)
    radians = angle * (ROTATE * 3.141592653589793 / 180.0) if "rotate" in kinds else none
    scale = 1.0 + ZOOM * size if "zoom" in kinds else none + 1.0
    right = shift[:, 0] * CROP * width if "crop" in kinds else none
    down = shift[:, 1] * CROP * height if "crop" in kinds else none
    if kinds and not {"rotate", "zoom"} & set(kinds):
        right, down = tf.round(right), tf.round(down)  # a crop alone moves by whole pixels
    cos, sin = tf.cos(radians) * scale, tf.sin(radians) * scale
    x, y = (width - 1.0) / 2.0, (height - 1.0) / 2.0
    transform = [cos, -sin, x - cos * x + sin * y + right, sin, cos, y - sin * x - cos * y + down, none, none]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack(transform, axis=1),
        output_shape=tf.constant([int(height), int(width)]),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )
