"""What a run does to an image file, as TensorFlow operations that go into an exported model.

engine.data.decode and engine.data.resize decide what is done; the bits are the same. Only JPEG and PNG are read.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from engine.export.orientation import read_orientation

_RATIOS = (1, 2, 4, 8)


def prepare_file(encoded: Any, image_shape: tuple[int, ...]) -> Any:
    """Decodes an encoded JPEG or PNG of any size (a string scalar) to uint8 of ``image_shape`` (1 or 3 channels).

    The image is turned upright, resized to cover the shape, and cropped about the centre.
    """
    size = tf.constant(image_shape[:2], tf.int64)
    is_png = tf.strings.substr(encoded, 0, 8) == b"\x89PNG\r\n\x1a\n"
    is_jpeg = tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"
    check = tf.debugging.Assert(is_jpeg | is_png, ["expected an encoded JPEG or PNG; the data begin otherwise"])
    with tf.control_dependencies([check]):
        orientation = tf.cond(is_jpeg, lambda: read_orientation(encoded), lambda: tf.constant(1))
    turned = orientation >= 5
    wanted = tf.where(turned, tf.reverse(size, [0]), size)
    image = tf.cond(
        is_jpeg,
        lambda: _decode_jpeg(encoded, wanted),
        lambda: tf.io.decode_png(encoded, channels=3),
    )
    image = _turn_upright(_resize(image, wanted), orientation, turned)
    image.set_shape([*image_shape[:2], 3])
    return image if image_shape[2] == 3 else _as_grey(image)


def _as_grey(image: Any) -> Any:
    """The luma (ITU-R BT.601) of a colour image; a grey one keeps its values."""
    luma = tf.linalg.matvec(tf.cast(image, tf.float64), tf.constant([0.299, 0.587, 0.114], tf.float64))
    return tf.cast(tf.round(luma), tf.uint8)[..., None]


def _decode_jpeg(encoded: Any, wanted: Any) -> Any:
    """A much larger JPEG is decoded at a half, a quarter or an eighth of its size."""
    found = tf.cast(tf.io.extract_jpeg_shape(encoded)[:2], tf.float64)
    larger = tf.reduce_min(found / tf.cast(wanted, tf.float64))
    number = tf.reduce_sum(tf.cast(larger >= tf.constant([4.0, 8.0, 16.0], tf.float64), tf.int32))

    def decode(ratio: int) -> Any:
        return lambda: tf.io.decode_jpeg(encoded, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")

    return tf.switch_case(number, [decode(ratio) for ratio in _RATIOS])


def _resize(image: Any, wanted: Any) -> Any:
    """Resizes uint8 [height, width, 3] as engine.data.resize does, with the same roundings."""
    given = tf.shape(image, out_type=tf.int64)[:2]

    def fit() -> Any:
        one = tf.constant(1.0, tf.float64)
        target, sides = tf.cast(wanted, tf.float64), tf.cast(given, tf.float64)
        scale = tf.reduce_max(target / sides)
        reach = tf.maximum(one, one / scale) + one
        cut = tf.maximum(tf.cast((sides - target / scale) / 2 - reach, tf.int64), 0)
        cut = tf.where(tf.reduce_any(2 * cut > given // 2), cut, tf.zeros_like(cut))
        left = given - 2 * cut
        part = tf.slice(image, tf.concat([cut, [0]], 0), tf.concat([left, [3]], 0))
        offset = (target - tf.cast(left, tf.float64) * scale) / 2
        floats = tf.raw_ops.ScaleAndTranslate(
            images=part[None],
            size=tf.cast(wanted, tf.int32),
            scale=tf.cast(tf.stack([scale, scale]), tf.float32),
            translation=tf.cast(offset, tf.float32),
            kernel_type="triangle",
            antialias=True,
        )[0]
        return tf.cast(tf.clip_by_value(tf.round(floats), 0.0, 255.0), tf.uint8)

    return tf.cond(tf.reduce_all(given == wanted), lambda: image, fit)


def _turn_upright(image: Any, orientation: Any, turned: Any) -> Any:
    """Undoes the Exif orientation: 2 to 4 mirror or rotate by 180 degrees, 5 to 8 also exchange the axes."""

    def among(*numbers: int) -> Any:
        return tf.reduce_any(orientation == tf.constant(numbers))

    image = tf.cond(turned, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    image = tf.cond(among(2, 3, 6, 7), lambda: tf.reverse(image, [1]), lambda: image)
    return tf.cond(among(3, 4, 7, 8), lambda: tf.reverse(image, [0]), lambda: image)
