"""Batches as a pure function of the step: there is no shuffle buffer, so a resume needs only the step number."""

from __future__ import annotations

import collections
import concurrent.futures
import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from engine.data import order
from engine.data.augment import augment, augment_masks
from engine.data.augment_boxes import check_kinds, move_boxes
from engine.data.part import DataError, Part
from engine.distribution.shares import WHOLE, Share
from engine.seeds import example_seeds

Batch = dict[str, Any]
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Normalise:
    """The normalisation that a model expects: (image - mean) / std per channel, for images in [0, 1].

    Attributes:
        mean, std: one value for all channels, or one per channel (in reversed order if ``reverse``).
        channels: 3 repeats grayscale images, 1 converts colour to grey (ITU-R BT.601 luma), None changes nothing.
        reverse: whether blue comes first, as in networks whose weights come from Caffe.
    """

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    channels: int | None = None
    reverse: bool = False

    def __call__(self, images: Any) -> Any:
        """Normalises images [B, height, width, channels] to float32; the number of channels may change.

        They are uint8, or float with values in [0, 1]. Raises DataError for any other; within a ``tf.function`` or a
        ``tf.data`` pipeline, where values are not known, it cannot check the range.
        """
        images = _as_unit(images)
        given = images.shape[-1]
        expected = (1, 3) if self.channels else (len(self.mean),) if len(self.mean) > 1 else (given,)
        if given not in expected:
            raise DataError(
                f"images: shape {list(images.shape)}; expected {' or '.join(map(str, expected))} channels in the last place"
            )
        if self.channels == 3 and given == 1:
            images = tf.repeat(images, 3, axis=-1)
        elif self.channels == 1 and given == 3:
            images = tf.image.rgb_to_grayscale(images)
        if self.reverse:
            images = tf.reverse(images, axis=[-1])
        return (images - tf.constant(self.mean, tf.float32)) / tf.constant(self.std, tf.float32)


def _as_unit(images: Any) -> Any:
    """Images as float32 in [0, 1]; DataError if they are neither uint8 nor float in that range."""
    if isinstance(images, (np.ndarray, list, tuple)):
        images = tf.convert_to_tensor(images)
    dtype = tf.as_dtype(images.dtype)
    if dtype == tf.uint8:
        return tf.cast(images, tf.float32) / 255.0
    if not dtype.is_floating:
        raise DataError(f"images: {dtype.name}; expected uint8, or float with values in [0, 1]")
    if tf.is_tensor(images) and not tf.is_symbolic_tensor(images) and tf.size(images) > 0:
        low, high = (float(bound(images)) for bound in (tf.reduce_min, tf.reduce_max))
        if not (low >= -1e-3 and high <= 1.0 + 1e-3):
            raise DataError(
                f"images: {dtype.name} with values from {low:g} to {high:g}; expected 0 to 1 (divide pixels by 255, or give "
                "them as uint8)"
            )
    return images if dtype == tf.float32 else tf.cast(images, tf.float32)


class TrainBatches:
    """The batches of a training part, by step.

    Args:
        batch_size: the number of examples per step; the last step of an epoch has the remainder.
        seed: decides the order of each epoch, and with it augmentation and the examples' "seeds".
        augment: the augmentations to apply (engine.data.augment.KINDS).
        share: the replicas of this process. Only their examples of each step are read, in which order and augmentation
            do not depend on the share; a batch may then be empty, and has the number of "examples" of the whole step.

    Raises:
        DataError: the batch size is below 1 or above the number of examples.
    """

    def __init__(
        self,
        part: Part,
        *,
        batch_size: int,
        seed: int = 0,
        augment: Sequence[str] = (),
        normalise: Normalise | None = None,
        share: Share = WHOLE,
    ) -> None:
        order.check_count("batch_size", batch_size)
        if not 1 <= batch_size <= len(part):
            raise DataError(f"batch_size={batch_size}: expected 1 to {len(part)}, the number of training examples")
        self.part = part
        self.batch_size = batch_size
        self.seed = seed
        self.augment = tuple(augment)
        self.normalise = normalise or Normalise()
        self.share = share
        self._prepare = _preparation(part, self.augment, self.normalise)
        self._prepare_labels = _label_preparation(part, self.augment)

    @property
    def per_epoch(self) -> int:
        """The number of steps in an epoch."""
        return -(-len(self.part) // self.batch_size)

    @property
    def preparing(self) -> str:
        """A text that identifies the transformation by ``prepared``."""
        return f"{self.normalise} augment={self.augment}" + (f" seed={self.seed}" if self.augment else "")

    def prepared(self, index: np.ndarray, epoch: int) -> Any:
        """Returns the inputs with these numbers as an epoch sees them: float32 [B, height, width, channels] of images.

        If the data have several inputs, it returns them by name.
        """
        found = self._prepare(self.part.read_inputs(index), example_seeds(self.seed, epoch, index))
        return _alone(found)

    def prepared_rest(self, positions: np.ndarray, epoch: int) -> Batch:
        """Returns what examples have besides inputs, as an epoch sees them: labels in an image are moved as its pixels are."""
        rest: Batch = self.part.read_rest(positions)
        return rest | self._prepare_labels(rest, example_seeds(self.seed, epoch, rest["index"]))

    def place(self, step: int, count: int = 1) -> tuple[int, np.ndarray]:
        """Returns the epoch of a step, counted over all epochs, and the positions of its examples.

        With ``count``, the positions are those of that many consecutive steps, up to the end of the epoch.
        """
        epoch, number = divmod(step, self.per_epoch)
        start, stop = number * self.batch_size, (number + count) * self.batch_size
        return epoch, order.permutation(self.seed, epoch, len(self.part), start=start, stop=stop)

    def own(self, step: int, count: int = 1) -> tuple[int, list[tuple[np.ndarray, dict[str, int]]]]:
        """Returns the epoch of a step and, for each step as in ``place``, what this share has of it.

        These are the positions of its examples, and what a batch of them says of the whole step ("examples"), which is
        nothing where the share is the whole.
        """
        epoch, positions = self.place(step, count)
        found = []
        for start in range(0, len(positions), self.batch_size):
            whole = positions[start : start + self.batch_size]
            first, stop = self.share.bounds(len(whole))
            found.append((whole[first:stop], {} if self.share.is_whole else {"examples": len(whole)}))
        return epoch, found

    def at(self, step: int) -> Batch:
        """Returns the batch of a step, counted over all epochs: inputs, labels and weights, "seeds" and "index"."""
        epoch, [(positions, said)] = self.own(step)
        batch: Batch = self.part.read(positions)
        seeds = example_seeds(self.seed, epoch, batch["index"])
        return batch | self._prepare(batch, seeds) | self._prepare_labels(batch, seeds) | {"seeds": seeds} | said

    def between(self, start: int, stop: int) -> Iterator[Batch]:
        """Yields the batches of the steps [start, stop), prepared ahead on another thread."""
        return prefetch(self.at, range(start, stop))

    def epochs(self, count: int) -> Iterator[Batch]:
        """Yields all batches of the first ``count`` epochs."""
        return self.between(0, count * self.per_epoch)


def prefetch(make: Callable[[Any], Made], these: Iterable[Any]) -> Generator[Made, None, None]:
    """Yields ``make`` of each item in order, computing up to three of them ahead on another thread."""
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        waiting: collections.deque[concurrent.futures.Future[Made]] = collections.deque()
        try:
            for one in these:
                waiting.append(pool.submit(make, one))
                if len(waiting) > 2:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class EvalBatches:
    """The batches of an evaluation or test part, in its own order and without augmentation; can be iterated repeatedly."""

    def __init__(self, part: Part, *, batch_size: int, normalise: Normalise | None = None) -> None:
        order.check_count("batch_size", batch_size)
        if batch_size < 1:
            raise DataError(f"batch_size={batch_size}: expected at least 1")
        self.part = part
        self.batch_size = batch_size
        self.augment: tuple[str, ...] = ()
        self.normalise = normalise or Normalise()
        self._prepare = _preparation(part, (), self.normalise)

    @property
    def preparing(self) -> str:
        """A text that identifies the transformation by ``prepared``."""
        return f"{self.normalise} augment=()"

    def prepared(self, index: np.ndarray, epoch: int = 0) -> Any:
        """Returns the inputs with these numbers, the same in every epoch, as ``TrainBatches.prepared`` does."""
        return _alone(self._prepare(self.part.read_inputs(index), example_seeds(0, epoch, index)))

    def __len__(self) -> int:
        return -(-len(self.part) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.between(0, len(self))

    def between(self, first: int, stop: int) -> Iterator[Batch]:
        """Yields the batches with the numbers [first, stop)."""
        for start in range(first * self.batch_size, min(stop * self.batch_size, len(self.part)), self.batch_size):
            batch: Batch = self.part.read(np.arange(start, min(start + self.batch_size, len(self.part))))
            seeds = example_seeds(0, 0, batch["index"])
            yield batch | self._prepare(batch, seeds) | {"seeds": seeds}


def _preparation(part: Part, kinds: tuple[str, ...], normalise: Normalise) -> Any:
    """The function from a batch to its inputs by name: images become augmented, normalised float32, others tensors."""
    normalise = replace(normalise, mean=tuple(normalise.mean), std=tuple(normalise.std))  # lists have no hash
    specs, made = part.input_specs, {}
    for name, spec in specs.items():
        if spec.is_image:
            made[name] = _compile_preparation(spec.shape, tf.as_dtype(spec.dtype), kinds, normalise, _fill(part))
    if kinds and not made:
        raise DataError(f"augment={','.join(kinds)}: the data have no images, only {', '.join(specs)}")

    def prepare(batch: Batch, seeds: Any) -> Batch:
        found = {name: tf.constant(batch[name]) for name in specs}
        return found | {name: make(found[name], tf.constant(seeds)) for name, make in made.items()}

    return prepare


def _fill(part: Part) -> str:
    """What augmentation shows of what lies outside of an image: nothing that would look like an object without a box."""
    return "mean" if part.has_boxes else "reflect"


def _label_preparation(part: Part, kinds: tuple[str, ...]) -> Any:
    """The function from a batch to those of its labels that augmentation moves: labels of pixels, and boxes."""
    if not kinds or not (part.dense or part.has_boxes):
        return lambda batch, seeds: {}
    height, width, *_ = part.input_specs[part.input_name].shape
    labels, name = tf.TensorSpec([None, *part.labels.shape[1:]], part.labels.dtype), part.label_name
    if part.has_boxes:
        check_kinds(kinds)

    @tf.function(autograph=False, input_signature=[labels, tf.TensorSpec([None, 2], tf.int32)])
    def move(labels: Any, seeds: Any) -> Any:
        if part.dense:
            return augment_masks(labels, seeds, kinds)
        return move_boxes(labels, seeds, kinds, height=height, width=width)

    return lambda batch, seeds: {name: move(tf.constant(batch[name]), tf.constant(seeds))}


def _alone(inputs: Batch) -> Any:
    """The only input itself, or all of them by name."""
    return next(iter(inputs.values())) if len(inputs) == 1 else inputs


@functools.lru_cache(maxsize=16)  # a run reads the same images in several ways
def _compile_preparation(
    shape: tuple[int, ...], dtype: Any, kinds: tuple[str, ...], normalise: Normalise, fill: str
) -> Any:
    """Builds the function that prepares images, compiled once for all lengths."""
    images = tf.TensorSpec([None, *shape], dtype)

    @tf.function(autograph=False, input_signature=[images, tf.TensorSpec([None, 2], tf.int32)])
    def prepare(images: Any, seeds: Any) -> Any:
        images = tf.cast(images, tf.float32) / 255.0 if images.dtype == tf.uint8 else images
        return normalise(augment(images, seeds, kinds, fill=fill))

    return prepare
