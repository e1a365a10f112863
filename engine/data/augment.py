"""Augmentation of image batches. Every random draw is a function of the example's seeds alone.

Crop, rotation and zoom are combined into one projective transform, so an image is resampled at most once.
"""

from __future__ import annotations

from typing import Any

from engine import seeds as example_seeds
from engine.errors import InputError
from engine.text import nearest

KINDS = ("flip", "crop", "color", "rotate", "zoom", "contrast")
WARPS = {"crop", "rotate", "zoom"}
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


def augment(images: Any, seeds: Any, kinds: tuple[str, ...], *, fill: str = "reflect") -> Any:
    """Augments float32 images [B, height, width, channels] in [0, 1] by the examples' int32 ``seeds`` [B, 2].

    The result stays in [0, 1]. ``kinds`` are any of ``KINDS``. What a warp brings in from outside the image is a "reflect"ion
    of it, or its "mean" colour, where a reflection would show objects that no label tells of.
    """
    import tensorflow as tf

    images = _move(images, seeds, kinds, fill=fill)
    if "contrast" in kinds:
        mean = tf.reduce_mean(images, axis=[1, 2], keepdims=True)
        images = mean + (images - mean) * (1.0 + CONTRAST * _draw(seeds, 4)[:, :, None, None])
    if "color" in kinds:
        change = _draw(seeds, 5, 2)
        images = images + COLOR * change[:, 0, None, None, None]
        if images.shape[-1] == 3:
            grey = tf.reduce_sum(images * tf.constant([0.299, 0.587, 0.114]), axis=-1, keepdims=True)
            images = grey + (images - grey) * (1.0 + COLOR * change[:, 1, None, None, None])
    return tf.clip_by_value(images, 0.0, 1.0) if kinds else images


def augment_masks(masks: Any, seeds: Any, kinds: tuple[str, ...]) -> Any:
    """Moves label images uint8 [B, height, width] as ``augment`` moves the images with these ``seeds``.

    Each pixel gets the label nearest to the place that its image's pixel comes from; outside of the image, labels are
    reflected as the image is. What only changes colours changes nothing.
    """
    return _move(masks[..., None], seeds, kinds, interpolation="NEAREST")[..., 0]


def draw_flips(seeds: Any) -> Any:
    """Which examples "flip" mirrors, bool [B]."""
    return _draw(seeds, 0)[:, 0] < 0


def draw_transforms(seeds: Any, kinds: tuple[str, ...], *, height: int, width: int) -> Any:
    """The warps by which "crop", "rotate" and "zoom" move the examples' images after a flip, float32 [B, 8].

    Rotation and zoom are about the centre, the shift follows. The pixel at (x, y) of the result shows the place
    (t0 x + t1 y + t2, t3 x + t4 y + t5) of the image, where the centre of the first pixel is (0, 0).
    """
    import tensorflow as tf

    shift, angle, size = _draw(seeds, 1, 2), _draw(seeds, 2)[:, 0], _draw(seeds, 3)[:, 0]
    none = tf.zeros_like(angle)
    radians = angle * (ROTATE * 3.141592653589793 / 180.0) if "rotate" in kinds else none
    scale = 1.0 + ZOOM * size if "zoom" in kinds else none + 1.0
    right = shift[:, 0] * CROP * float(width) if "crop" in kinds else none
    down = shift[:, 1] * CROP * float(height) if "crop" in kinds else none
    if kinds and not {"rotate", "zoom"} & set(kinds):
        right, down = tf.round(right), tf.round(down)  # a crop alone moves by whole pixels
    cos, sin = tf.cos(radians) * scale, tf.sin(radians) * scale
    x, y = (width - 1.0) / 2.0, (height - 1.0) / 2.0
    transform = [cos, -sin, x - cos * x + sin * y + right, sin, cos, y - sin * x - cos * y + down, none, none]
    return tf.stack(transform, axis=1)


def _draw(seeds: Any, number: int, count: int = 1) -> Any:
    """Draws numbers [B, count] in [-1, 1)."""
    return example_seeds.uniform(seeds, [count], site=_SITE + number) * 2.0 - 1.0


def _move(
    images: Any, seeds: Any, kinds: tuple[str, ...], *, interpolation: str = "BILINEAR", fill: str = "reflect"
) -> Any:
    """Flips and warps images [B, height, width, channels]; pixels from outside of them are filled."""
    import tensorflow as tf

    if "flip" in kinds:
        images = tf.where(draw_flips(seeds)[:, None, None, None], tf.reverse(images, [2]), images)
    if not WARPS & set(kinds):
        return images
    transforms = draw_transforms(seeds, kinds, height=images.shape[1], width=images.shape[2])
    if fill == "mean":
        mean = tf.reduce_mean(images, axis=[1, 2], keepdims=True)
        return mean + _warp(images - mean, transforms, interpolation, "CONSTANT")
    return _warp(images, transforms, interpolation, "REFLECT")


def _warp(images: Any, transforms: Any, interpolation: str, fill_mode: str) -> Any:
    import tensorflow as tf

    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=tf.constant([int(side) for side in images.shape[1:3]]),
        fill_value=0.0,
        interpolation=interpolation,
        fill_mode=fill_mode,
    )
