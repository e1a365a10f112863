"""The Exif orientation of a JPEG as TensorFlow operations, which find what engine.data.header finds in Python."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))


def read_orientation(encoded: Any) -> Any:
    """The orientation, int32 from 1 to 8, of an encoded JPEG (a string scalar); 1 where its Exif data state none."""
    data = tf.io.decode_raw(encoded, tf.uint8)
    size = tf.size(data, out_type=tf.int64)

    def byte(place: Any) -> Any:
        inside = place < size
        return tf.cast(tf.where(inside, data[tf.where(inside, place, 0)], tf.zeros([], tf.uint8)), tf.int64)

    def is_marker(place: Any) -> Any:
        return (byte(place) == 0xFF) & (byte(place + 1) != 0xFF) & (byte(place + 1) != 0)

    def next_segment(place: Any, orientation: Any, ended: Any) -> Any:
        start = tf.while_loop(
            lambda at: (at < size) & ~is_marker(at), lambda at: at + 1, [place], parallel_iterations=1
        )[0]
        marker, at = byte(start + 1), start + 2
        length = 256 * byte(at) + byte(at + 1)
        bare = tf.reduce_any(marker == tf.constant(_WITHOUT_LENGTH, tf.int64))
        orientation = tf.cond(
            (marker == 0xE1) & (orientation == 1),
            lambda: _read_exif(data, at + 2, tf.minimum(at + tf.maximum(length, 2), size)),
            lambda: orientation,
        )
        ended = (marker == 0xDA) | (marker == 0xD9) | (start >= size)
        return tf.where(bare, at, at + tf.maximum(length, 2)), orientation, ended

    start = (tf.constant(2, tf.int64), tf.constant(1), tf.constant(False))
    return tf.while_loop(lambda at, _, ended: ~ended & (at < size), next_segment, start, parallel_iterations=1)[1]


def _read_exif(data: Any, start: Any, end: Any) -> Any:
    """Tag 0x0112 of the first directory of the Exif segment from ``start`` to ``end``; 1 if it is missing or invalid."""
    inside = tf.cast(data[start:end], tf.int64)
    size = tf.size(inside, out_type=tf.int64)
    inside = tf.pad(inside, [[0, 16]])  # so that a short segment can be read, and judged afterwards
    big = inside[6] == ord("M")

    def number(place: Any, count: int) -> Any:
        bytes_ = [inside[place + n] for n in range(count)]
        up = tf.add_n([value * 256**n for n, value in enumerate(bytes_)])
        return tf.where(big, tf.add_n([value * 256**n for n, value in enumerate(reversed(bytes_))]), up)

    exif = tf.reduce_all(inside[:6] == tf.constant(list(b"Exif\0\0"), tf.int64))
    ordered = (inside[6] == inside[7]) & (big | (inside[6] == ord("I")))
    directory = 6 + number(10, 4)
    valid = exif & ordered & (size >= 14) & (directory + 2 <= size)

    def search() -> Any:
        count = number(directory, 2)
        first = directory + 2
        whole = tf.maximum((size - first - 10) // 12 + 1, 0)  # the entries whose value lies in the segment
        return tf.while_loop(
            lambda entry, found: (entry < tf.minimum(count, whole)) & (found == 0),
            lambda entry, found: (entry + 1, _value(entry, first)),
            [tf.zeros([], tf.int64), tf.zeros([], tf.int64)],
            parallel_iterations=1,
        )[1]

    def _value(entry: Any, first: Any) -> Any:
        place = first + 12 * entry
        value = number(place + 8, 2)
        wanted = (number(place, 2) == 0x0112) & (number(place + 2, 2) == 3)
        return tf.where(wanted, tf.where((value >= 1) & (value <= 8), value, 1), 0)

    return tf.cast(tf.maximum(tf.cond(valid, search, lambda: tf.ones([], tf.int64)), 1), tf.int32)
