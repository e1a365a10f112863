"""Batches as a pure function of the window: nothing is buffered, so a resume needs only a number."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine.data import order
from engine.data.augment import augment
from engine.data.part import DataError, Part
from engine.seeds import example_seeds

Batch = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Normalise:
    """What a model wants its images to be: (image - mean) / std per channel, for images in [0, 1].

    Attributes:
        mean, std: one value for all channels, or one a channel (in the reversed order, if ``reverse``).
        channels: 3 repeats grayscale images, 1 makes colours gray (ITU-R BT.601 luma); None leaves them.
        reverse: blue first, as networks want it whose weights come from Caffe.
    """

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    channels: int | None = None
    reverse: bool = False

    def __call__(self, images: Any) -> Any:
        """float32 [B, height, width, channels] -> float32 [B, height, width, channels that the model wants]."""
        given = images.shape[-1]
        if self.channels == 3 and given == 1:
            images = tf.repeat(images, 3, axis=-1)
        elif self.channels == 1 and given == 3:
            images = tf.image.rgb_to_grayscale(images)
        if self.reverse:
            images = tf.reverse(images, axis=[-1])
        return (images - tf.constant(self.mean, tf.float32)) / tf.constant(self.std, tf.float32)


class TrainBatches:
    """Windows of a training part.

    Args:
        part: the examples.
        batch_size: examples per window; the last window of an epoch has what is left.
        seed: with the epoch, decides the order; with the index too, augmentation and "seeds".
        augment: kinds of augmentation (engine.data.augment.KINDS).
        normalise: what the model wants its images to be.

    Raises:
        DataError: a batch size below 1 or above the number of examples.
    """

    def __init__(
        self,
        part: Part,
        *,
        batch_size: int,
        seed: int = 0,
        augment: Sequence[str] = (),
        normalise: Normalise | None = None,
    ) -> None:
        if not 1 <= batch_size <= len(part):
            raise DataError(f"batch_size={batch_size}: it is at least 1 and at most the {len(part)} training examples")
        self.part = part
        self.batch_size = batch_size
        self.seed = seed
        self._prepare = _preparation(part, tuple(augment), normalise or Normalise())

    @property
    def per_epoch(self) -> int:
        """Windows in an epoch."""
        return -(-len(self.part) // self.batch_size)

    def at(self, window: int) -> Batch:
        """The batch of a window, counted over all epochs: "image", "label", "seeds", "index"."""
        epoch, number = divmod(window, self.per_epoch)
        start = number * self.batch_size
        positions = order.permutation(self.seed, epoch, len(self.part), start=start, stop=start + self.batch_size)
        batch: Batch = self.part.read(positions)
        seeds = example_seeds(self.seed, epoch, batch["index"])
        return batch | {"image": self._prepare(batch["image"], seeds), "seeds": seeds}

    def between(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of the windows [start, stop), made ahead on another thread."""
        with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            ahead: collections.deque[concurrent.futures.Future[Batch]] = collections.deque()
            try:
                for window in range(start, stop):
                    ahead.append(pool.submit(self.at, window))
                    if len(ahead) > 2:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def epochs(self, count: int) -> Iterator[Batch]:
        """All batches of the first ``count`` epochs."""
        return self.between(0, count * self.per_epoch)


class EvalBatches:
    """An evaluation or test part in its own order, without augmentation; iterate as often as you like."""

    def __init__(self, part: Part, *, batch_size: int, normalise: Normalise | None = None) -> None:
        if batch_size < 1:
            raise DataError(f"batch_size={batch_size}: it is at least 1")
        self.part = part
        self.batch_size = batch_size
        self._prepare = _preparation(part, (), normalise or Normalise())

    def __len__(self) -> int:
        return -(-len(self.part) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.part), self.batch_size):
            batch: Batch = self.part.read(np.arange(start, min(start + self.batch_size, len(self.part))))
            seeds = example_seeds(0, 0, batch["index"])
            yield batch | {"image": self._prepare(batch["image"], seeds), "seeds": seeds}


def _preparation(part: Part, kinds: tuple[str, ...], normalise: Normalise) -> Any:
    """uint8 or float images to augmented, normalised float32, compiled once for any batch length."""
    images = tf.TensorSpec([None, *part.image_shape], tf.as_dtype(part.image_dtype))

    @tf.function(autograph=False, input_signature=[images, tf.TensorSpec([None, 2], tf.int32)])
    def prepare(images: Any, seeds: Any) -> Any:
        images = tf.cast(images, tf.float32) / 255.0 if images.dtype == tf.uint8 else images
        return normalise(augment(images, seeds, kinds))

    def call(images: np.ndarray, seeds: np.ndarray) -> Any:
        return prepare(tf.constant(images), tf.constant(seeds))

    return call
