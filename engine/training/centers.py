"""Objects as points (Zhou, Wang, Krähenbühl, arXiv:1904.07850): the loss of a centre head, and the boxes that it finds.

Outputs are maps [B, h, w, C + 4]: for each of C classes the logit of an object's centre lying in a cell, then width and
height of the object, and the place of its centre within the cell (x, y), all four in cells. Boxes are [B, K, 5]: class, x1,
y1, x2, y2 with edges as shares of the image's width and height; class -1 is not a box.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from engine.data.part import GEOMETRY
from engine.training.loss_names import LossError

OVERLAP = 0.7  # the least overlap that boxes keep whose corners are moved by the radius of a Gaussian
FOUND = 6  # numbers of a detection: class, score, x1, y1, x2, y2


class Targets(NamedTuple):
    """What a centre head should put out for boxes.

    Attributes:
        heat: [B, h, w, C], 1 at the centre of each object of a class, less around it, and 0 elsewhere.
        cells: the cell of each box's centre, numbered by rows, int32 [B, K].
        geometry: width, height, and x and y within the cell, of each box, in cells, [B, K, 4].
        present: 1 for a box, and 0 for none, [B, K].
    """

    heat: Any
    cells: Any
    geometry: Any
    present: Any


class CenterLoss(NamedTuple):
    """The three parts of the loss, summed over the objects or cells of an image, and its number of objects; all [B]."""

    heat: Any
    size: Any
    offset: Any
    objects: Any


def draw_targets(boxes: Any, height: int, width: int, classes: int) -> Targets:
    """Draws the targets of boxes [B, K, 5] on maps of this size.

    The centre of a box lies in the cell (floor(x), floor(y)), measured in cells. Around it lies a Gaussian with the
    standard deviation (2 r + 1) / 6, cut off where either axis is more than r cells away; where Gaussians of a class
    overlap, the largest value counts. As in CornerNet (arXiv:1808.01244), r is the largest whole number of cells by which
    the corners of the box can move so that the moved box still overlaps it by ``OVERLAP``.
    """
    dtype = boxes.dtype
    present = boxes[..., 0] >= 0
    scale = tf.constant([width, height, width, height], dtype)
    x1, y1, x2, y2 = tf.unstack(boxes[..., 1:] * scale, axis=-1)
    x, y, wide, high = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    column = tf.clip_by_value(tf.floor(x), 0, width - 1)
    row = tf.clip_by_value(tf.floor(y), 0, height - 1)
    radius = tf.floor(find_radius(high, wide))

    def profile(centre: Any, count: int) -> Any:
        """The Gaussians along one axis, [B, K, count]."""
        away = tf.range(count, dtype=dtype) - centre[..., None]
        deviation = (2 * radius[..., None] + 1) / 6
        values = tf.exp(-tf.square(away) / (2 * tf.square(deviation)))
        return tf.where(tf.abs(away) <= radius[..., None], values, tf.zeros([], dtype))

    bells = profile(row, height)[..., :, None] * profile(column, width)[..., None, :]
    batch, most = tf.shape(boxes)[0], tf.shape(boxes)[1]
    number = tf.cast(boxes[..., 0], tf.int32)
    # one segment for each example and class; rows that are not a box belong to none
    segments = tf.where(present, tf.range(batch)[:, None] * classes + number, -1)
    drawn = tf.math.unsorted_segment_max(
        tf.reshape(bells, [batch * most, height, width]), tf.reshape(segments, [-1]), batch * classes
    )
    heat = tf.reshape(tf.maximum(drawn, 0), [batch, classes, height, width])
    return Targets(
        heat=tf.transpose(heat, [0, 2, 3, 1]),
        cells=tf.cast(row * width + column, tf.int32),
        geometry=tf.stack([wide, high, x - column, y - row], axis=-1),
        present=tf.cast(present, dtype),
    )


def find_radius(height: Any, width: Any, overlap: float = OVERLAP) -> Any:
    """The largest distance by which the corners of a box can move, in any direction, and keep this overlap with it.

    It is the least of three cases, each the smaller root of a quadratic equation: both corners move in the same
    direction, both inwards, or both outwards (CornerNet, section 3.2). A box without area has the radius 0.
    """
    around, area = height + width, height * width
    same = (around - tf.sqrt(tf.maximum(tf.square(around) - 4 * area * (1 - overlap) / (1 + overlap), 0))) / 2
    inwards = (around - tf.sqrt(tf.maximum(tf.square(around) - 4 * area * (1 - overlap), 0))) / 4
    outwards = (tf.sqrt(tf.square(around) + 4 * area * (1 - overlap) / overlap) - around) / 4
    return tf.minimum(tf.minimum(same, inwards), outwards)


def measure_centers(outputs: Any, boxes: Any) -> CenterLoss:
    """The parts of the loss of maps [B, h, w, C + 4] for boxes [B, K, 5]; raises LossError if either has another shape.

    ``heat`` is the penalty-reduced focal loss of every cell and class, with alpha = 2 and beta = 4; ``size`` and ``offset`` are absolute differences at
    the cells of the centres (section 3 of the paper).
    """
    check_shapes(outputs.shape, boxes.shape)
    height, width, channels = outputs.shape[1:]
    classes = channels - GEOMETRY
    targets = draw_targets(tf.stop_gradient(tf.cast(boxes, outputs.dtype)), height, width, classes)
    logits = outputs[..., :classes]
    chance = tf.sigmoid(logits)
    hit = tf.square(1 - chance) * tf.math.softplus(-logits)
    miss = tf.square(tf.square(1 - targets.heat)) * tf.square(chance) * tf.math.softplus(logits)
    heat = tf.reduce_sum(tf.where(targets.heat >= 1, hit, miss), axis=[1, 2, 3])
    maps = tf.reshape(outputs[..., classes:], [-1, height * width, GEOMETRY])
    errors = tf.abs(tf.gather(maps, targets.cells, batch_dims=1) - targets.geometry) * targets.present[..., None]
    return CenterLoss(
        heat=heat,
        size=tf.reduce_sum(errors[..., :2], axis=[1, 2]),
        offset=tf.reduce_sum(errors[..., 2:], axis=[1, 2]),
        objects=tf.reduce_sum(targets.present, axis=1),
    )


def count_objects(objects: Any) -> Any:
    """By how many objects an example's loss is divided, and so its weight: an image without objects counts as one with one.

    The paper divides the sum over images by the number of objects. An image without any has a loss too, that of its false
    alarms, but with the weight 0 it would never count. Where each image has an object, both are the same.
    """
    return tf.maximum(objects, 1)


def find_boxes(outputs: Any, most: int = 100) -> Any:
    """The boxes that maps [B, h, w, C + 4] show, [B, n, 6]: class, score, x1, y1, x2, y2; the best first.

    They are the ``most`` cells with the highest scores among those that none of the 8 cells around exceeds (of the same
    class), or all cells and classes if there are fewer. Edges are shares of the image's width and height, and are cut at
    its border; a row of class -1 and score 0 is not a box.
    """
    height, width, channels = outputs.shape[1:]
    classes = channels - GEOMETRY
    logits, dtype = outputs[..., :classes], outputs.dtype
    peaks = tf.cast(tf.equal(logits, tf.nn.max_pool2d(logits, 3, 1, "SAME")), dtype)
    count = height * width * classes
    scores, chosen = tf.math.top_k(tf.reshape(tf.sigmoid(logits) * peaks, [-1, count]), min(most, count))
    cell, number = chosen // classes, chosen % classes
    maps = tf.reshape(outputs[..., classes:], [-1, height * width, GEOMETRY])
    wide, high, right, down = tf.unstack(tf.gather(maps, cell, batch_dims=1), axis=-1)
    x, y = tf.cast(cell % width, dtype) + right, tf.cast(cell // width, dtype) + down
    wide, high = tf.maximum(wide, 0) / 2, tf.maximum(high, 0) / 2
    edges = tf.stack([x - wide, y - high, x + wide, y + high], axis=-1)
    edges = tf.clip_by_value(edges / tf.constant([width, height, width, height], dtype), 0, 1)
    named = tf.where(scores > 0, tf.cast(number, dtype), -1)
    return tf.concat([named[..., None], scores[..., None], edges], axis=-1)


def check_shapes(outputs: Any, boxes: Any) -> None:
    """Raises LossError unless these are the shapes of a centre head's maps and of boxes."""
    if outputs.rank != 4 or None in outputs[1:] or outputs[3] <= GEOMETRY:
        raise LossError(
            f"loss=centers: the model's outputs have shape {outputs}; expected [B, h, w, classes + {GEOMETRY}], as "
            "--head=centers makes them"
        )
    if boxes.rank != 3 or boxes[2] != 5:
        raise LossError(
            f"loss=centers: labels have shape {boxes}; expected boxes [B, K, 5] (class, x1, y1, x2, y2), as the source "
            "boxes:FILE.csv gives them"
        )
