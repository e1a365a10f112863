"""Moves boxes as augmentation moves the pixels of their images, by the same draws."""

from __future__ import annotations

from typing import Any

from engine.data.augment import WARPS, AugmentError, draw_flips, draw_transforms
from engine.data.box_geometry import KEPT


def check_kinds(kinds: tuple[str, ...]) -> None:
    """Raises AugmentError for an augmentation after which a box would not fit its object."""
    if "rotate" in kinds:
        raise AugmentError(
            "augment: `rotate` turns objects, and the box around a turned box is larger than the one around the object; with "
            "boxes, expected any of flip, crop, zoom, color, contrast"
        )


def move_boxes(boxes: Any, seeds: Any, kinds: tuple[str, ...], *, height: int, width: int) -> Any:
    """Boxes [B, K, 5] where ``augment`` leaves what they surround, for images of this size and the same ``seeds``.

    They are class, x1, y1, x2, y2, with edges as shares of the image's sides. They are cut at its edges; one of which less
    than a quarter of the area remains gets the class -1.
    """
    import tensorflow as tf

    number, x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    if "flip" in kinds:
        flips = draw_flips(seeds)[:, None]
        x1, x2 = tf.where(flips, 1.0 - x2, x1), tf.where(flips, 1.0 - x1, x2)
    if WARPS & set(kinds):
        t = draw_transforms(seeds, kinds, height=height, width=width)
        # an edge lies half a pixel beside the centre of one, from which transforms count
        x1, x2 = (((x * width - 0.5 - t[:, 2:3]) / t[:, 0:1] + 0.5) / width for x in (x1, x2))
        y1, y2 = (((y * height - 0.5 - t[:, 5:6]) / t[:, 4:5] + 0.5) / height for y in (y1, y2))
    moved = tf.stack([x1, y1, x2, y2], axis=-1)
    inside = tf.clip_by_value(moved, 0.0, 1.0)
    kept = (number >= 0) & (_areas(inside) >= KEPT * _areas(moved))
    return tf.where(kept[..., None], tf.concat([number[..., None], inside], axis=-1), _NONE)


_NONE = [-1.0, 0.0, 0.0, 0.0, 0.0]


def _areas(boxes: Any) -> Any:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
