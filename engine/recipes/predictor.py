"""What a trained model says of images, texts and vectors: in memory, and of many files or rows within little memory."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from engine import host
from engine.data import DataError, Normalise
from engine.data.batch_names import join_inputs
from engine.data.batches import prefetch
from engine.data.decode import LARGEST_DECODED
from engine.data.header import BadImageError
from engine.data.image_files import read_image, read_whole_header
from engine.data.image_options import ImageForm
from engine.data.part import ArraySpec, number_classes
from engine.errors import InputError, check_range
from engine.memory.buffers import Buffers
from engine.recipes.encoders import Encoder
from engine.training.centers import find_boxes
from engine.training.loss_names import CENTERS
from engine.training.losses import accepted_keywords
from engine.training.metrics import as_probabilities
from engine.training.precision import widen

_SHARE = 0.5  # of the free memory that a batch may take
_HELD = 5  # batches of images that are decoded ahead, besides the one that is computed


class PredictionError(RuntimeError):
    """A model computed something that is not a finite number."""


class FileBatch(NamedTuple):
    """What was computed for some files, or for some rows of one.

    Attributes:
        files: the files that could be read, in order; of rows, what identifies them (``engine.data.unlabelled.Unlabelled``).
        outputs: the tensors that the model computed for them, each [len(files), ...]: the outputs alone, or features.
        bad: the files that could not be read, each with the reason.
    """

    files: list[Any]
    outputs: list[np.ndarray]
    bad: list[tuple[pathlib.Path, str]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictor:
    """A trained network as a function of images, texts or vectors: made by ``RunResult.predictor`` and ``OpenedRun.predictor``.

    Attributes:
        network: ``network(images, training=False)`` -> outputs [B, C].
        normalise, image_shape: what prepares images for it, and (height, width, channels) of those that it prepares.
        loss: what the outputs mean (``engine.training.metrics.as_probabilities``).
        class_names: the names of the classes or labels; for "mse", those of the columns. None if they have none.
        batch_size: the most images that are computed at once; fewer where memory is short.
        form: how image files are read, where that is not in the usual way, cropped and as 8-bit colour.
        inputs: the inputs by name where they are not one image; the network is then called with batches of them.
        most_boxes: the most boxes that are found in an image.
        encoder: what turns examples that are not images into the inputs of the network: texts, or vectors.
    """

    network: Any
    normalise: Normalise
    image_shape: tuple[int, ...]
    loss: str
    class_names: tuple[str, ...] | None
    batch_size: int = 64
    form: ImageForm | None = None
    inputs: Mapping[str, ArraySpec] = field(default_factory=dict)
    most_boxes: int = 100
    encoder: Encoder | None = None

    def __call__(self, examples: Any) -> np.ndarray:
        """Probabilities of examples, float64 [n, classes]; for the loss "mse", the values themselves.

        Of a model with a class for each pixel, they are [n, height, width, classes].
        For the loss "centers", boxes, float64 [n, most, 6]: class (-1 is not a box), score, x1, y1, x2, y2, the best first, with
        edges as shares of the width and height of ``image_shape``.

        Args:
            examples: images, uint8 or float in [0, 1], [n, height, width, channels] of ``image_shape``; of a model of texts a
                list of them, each a str or, where an example has two, a pair; of a model of vectors an array [n, D], in the
                order of the run's columns and before it is standardised.

        Raises:
            DataError: the examples are anything else, or images have another shape, dtype or range.
            PredictionError: an output is not finite.
        """
        if self.encoder is not None:
            return self._predict_encoded(examples)
        if len(self.image_shape) != 3 or len(self.inputs) > 1:
            raise DataError(
                "predictor: the model takes neither images alone nor texts nor vectors, so it cannot predict from an array; evaluate "
                "takes its data, and its network can be called (OpenedRun.network)"
            )
        images = np.asarray(examples)
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise DataError(
                f"images: shape {list(images.shape)}; expected [n, {', '.join(map(str, self.image_shape))}]"
            )
        size = self.fit_batch_size()
        parts = [self.outputs(self.prepare(images[at : at + size])) for at in range(0, len(images), size)]
        outputs = np.concatenate(parts) if parts else np.zeros([0, *self.function.outputs[0].shape[1:]], np.float32)
        return self.probabilities(outputs)

    def _predict_encoded(self, examples: Any) -> np.ndarray:
        """Probabilities of texts or vectors."""
        examples = examples if isinstance(examples, (str, bytes, list, tuple)) else np.asarray(examples)
        if isinstance(examples, np.ndarray) and examples.dtype.kind in "USO":
            examples = examples.tolist()
        size = self.fit_batch_size()
        starts = range(0, max(1, len(examples)), size)
        parts = [
            self.outputs(self._encode(examples if at == 0 and size >= len(examples) else examples[at : at + size]))
            for at in starts
        ]
        return self.probabilities(np.concatenate(parts))

    def _encode(self, examples: Any) -> Any:
        """Texts or vectors as the network is called with them."""
        assert self.encoder is not None
        return join_inputs({name: tf.constant(value) for name, value in self.encoder(examples).items()})

    def predict_rows(
        self, rows: Iterable[tuple[Any, Any]], *, function: Any = None, size: int | None = None
    ) -> Iterator[FileBatch]:
        """Computes texts or vectors batch by batch, in order, while another thread encodes the next batches.

        Each row is what identifies an example, and the example. Memory does not grow with their number. The other arguments are
        those of ``predict_files``.
        """
        function = self.function if function is None else function
        size = size or self.fit_batch_size(function)

        def encode(some: list[tuple[Any, Any]]) -> tuple[list[Any], Any]:
            return [key for key, _ in some], self._encode([example for _, example in some])

        opened = iter(rows)
        pieces = iter(lambda: list(itertools.islice(opened, size)), [])
        for keys, inputs in prefetch(encode, pieces):
            yield FileBatch(keys, [value.numpy() for value in function(inputs)], [])

    def prepare(self, images: np.ndarray) -> Any:
        """Images as the network takes them, with the bits of the run's own batches: ``normalise``, compiled.

        TensorFlow turns a division by a constant into a multiplication when it compiles one, so the last bit of an image
        depends on it. Raises DataError as ``normalise``.
        """
        if images.dtype != np.uint8:
            self.normalise(images)  # the range of floats is checked only where values are known
            images = images.astype(np.float32, copy=False)
        return self._prepare(tf.constant(images))

    def predict_files(
        self,
        files: Sequence[pathlib.Path],
        *,
        function: Any = None,
        size: int | None = None,
        places: bool = False,
    ) -> Iterator[FileBatch]:
        """Computes image files batch by batch, in order, while other threads decode the next batches.

        Memory does not grow with the number of files. ``function`` computes something other than the outputs from prepared
        images, such as features (engine.recipes.features), and ``size`` is the size of a batch, if not ``fit_batch_size``.
        ``places`` says that places in the images will be told, so that files that do not show where they are count as bad.
        """
        function = self.function if function is None else function
        size = size or self.fit_batch_size(function)
        pieces = [files[at : at + size] for at in range(0, len(files), size)]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode") as pool:
            for read, bad, images in prefetch(functools.partial(self._prepare_files, pool, places), pieces):
                outputs = [] if images is None else [value.numpy() for value in function(images)]
                yield FileBatch(read, outputs, bad)

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs [n, C], or [n, height, width, C], as probabilities, or as values or boxes; PredictionError if one is not finite."""
        if len(wrong := np.flatnonzero(~np.isfinite(outputs).all(axis=tuple(range(1, outputs.ndim))))):
            raise PredictionError(
                f"the model computes outputs that are not finite for {len(wrong)} of {len(outputs)} examples, such as number "
                f"{wrong[0] + 1} of a batch; its weights are damaged, or its precision is too low"
            )
        return outputs.astype(np.float64) if self.loss == CENTERS else as_probabilities(outputs, self.loss)

    def name_outputs(self, count: int) -> tuple[str, ...]:
        """The names of ``count`` classes, labels or columns; their numbers where the data named none.

        A model may have more classes than its data (the option ``classes``); the last ones are then numbers.
        """
        if self.class_names is not None and self.loss in ("softmax", CENTERS):
            return self.class_names[:count] + number_classes(count)[len(self.class_names) :]
        if self.class_names is not None and len(self.class_names) == count:
            return self.class_names
        if self.class_names is not None and (len(self.class_names), count, self.loss) == (1, 2, "sigmoid"):
            return f"not {self.class_names[0]}", self.class_names[0]
        if self.loss == "mse":
            return ("value",) if count == 1 else tuple(f"value_{number}" for number in range(count))
        return number_classes(count)

    def outputs(self, prepared: Any) -> np.ndarray:
        """The outputs of the network, in at least float32 [B, C], for a batch that ``normalise`` has prepared.

        Those of a detector are boxes [B, n, 6] (``engine.training.centers.find_boxes``).
        """
        found: np.ndarray = self.function(prepared)[0].numpy()
        return found

    @functools.cached_property
    def function(self) -> Any:
        """The network in inference mode, compiled: prepared images -> [outputs], or, of a detector, [boxes]."""
        if self.loss == CENTERS:
            return self.compile(lambda images: [_find_finite_boxes(widen(self.call(images)), self.most_boxes)])
        return self.compile(lambda images: [widen(self.call(images))])

    @property
    def dense(self) -> bool:
        """Whether the outputs are those of each pixel, [B, height, width, C]."""
        return self.function.outputs[0].shape.rank == 4

    def call(self, images: Any) -> Any:
        """The network in inference mode, for a trace."""
        given = {"training": False} if "training" in accepted_keywords(self.network) else {}
        return self.network(images, **given)

    def compile(self, compute: Callable[[Any], Any]) -> Any:
        """A concrete function of prepared images, of any batch size."""
        specs = {name: self._spec(name, each) for name, each in self.inputs.items()}
        spec = specs or self._spec("image", ArraySpec(self.image_shape, np.dtype(np.uint8)))
        spec = next(iter(specs.values())) if len(specs) == 1 else spec
        return tf.function(compute, autograph=False).get_concrete_function(spec)

    def _spec(self, name: str, given: ArraySpec) -> Any:
        """The spec of batches of an input as the network takes it."""
        if not given.is_image:
            return tf.TensorSpec([None, *given.shape], tf.as_dtype(given.dtype), name=name)
        shape = self.normalise(np.zeros([1, *given.shape], np.uint8)).shape[1:]
        return tf.TensorSpec([None, *shape], tf.float32, name=name)

    def fit_batch_size(self, function: Any = None) -> int:
        """The largest batch size, ``batch_size`` or that halved as often as necessary, that fits the free memory.

        Counted are the largest set of tensors that is alive at once, and the images of the batches that are read ahead.
        """
        check_range("batch_size", self.batch_size, 1)
        traced = self.function if function is None else function
        inputs = traced.graph.inputs[: max(1, len(self.inputs))]
        buffers = Buffers(traced.graph, inputs, traced.outputs, kept=False)
        image = 4 * sum(int(np.prod(each.shape[1:])) for each in inputs)
        size, free = self.batch_size, _SHARE * host.memory_limit()
        while size > 1 and buffers.find_peak(size) + _HELD * size * image > free:
            size = -(-size // 2)
        return size

    def _prepare_files(
        self, pool: concurrent.futures.Executor, places: bool, files: Sequence[pathlib.Path]
    ) -> tuple[list[pathlib.Path], list[tuple[pathlib.Path, str]], Any]:
        """The files that can be read, those that cannot, and the prepared images of the former (None if there are none)."""
        tried = list(pool.map(functools.partial(self._try_to_read, places=places), files))
        read = [file for file, image in zip(files, tried, strict=True) if not isinstance(image, str)]
        bad = [(file, image) for file, image in zip(files, tried, strict=True) if isinstance(image, str)]
        images = [image for image in tried if not isinstance(image, str)]
        return read, bad, self.prepare(np.stack(images)) if images else None

    @functools.cached_property
    def _prepare(self) -> Any:
        shape = [None, *self.image_shape]
        made = {
            dtype: tf.function(self.normalise, autograph=False, input_signature=[tf.TensorSpec(shape, dtype)])
            for dtype in (tf.uint8, tf.float32)
        }
        return lambda images: made[images.dtype](images)

    def _try_to_read(self, file: pathlib.Path, *, places: bool) -> np.ndarray | str:
        """The image in a file, or why it cannot be read."""
        try:
            if places:
                self._check_places(file)
            return self.read_file(file)
        except (BadImageError, InputError) as error:
            return str(error)
        except OSError as error:  # a disk, or a network, that fails while it is read
            return f"cannot be read ({error.strerror or error})"

    def _check_places(self, file: pathlib.Path) -> None:
        """Raises BadImageError unless what is found in the array of an image file can be told for the file."""
        header = read_whole_header(file)
        if self.dense and header.height * header.width > LARGEST_DECODED:
            raise BadImageError(
                f"{header.width}x{header.height} pixels, of which a JPEG is read at a fraction, but a label image would have "
                f"each; the limit is {LARGEST_DECODED:,} pixels; make it smaller"
            )

    def read_file(self, file: pathlib.Path) -> np.ndarray:
        """An image file as uint8 of ``image_shape``, read as the run read its own: its middle, upright, in colour or grey.

        Raises BadImageError if the file is not an image, or is damaged.
        """
        image = read_image(file, self.file_form)
        return image if self.form is not None or self.image_shape[-1] == 3 else as_grey(image)

    @property
    def file_form(self) -> ImageForm:
        """How image files are read, before colour becomes grey where the run's images are grey."""
        return self.form or ImageForm(size=(self.image_shape[0], self.image_shape[1]))


def _find_finite_boxes(outputs: Any, most: int) -> Any:
    """The boxes in maps [B, h, w, C + 4]; not a number for an example of which one is not."""
    finite = tf.reduce_all(tf.math.is_finite(outputs), axis=[1, 2, 3])
    return tf.where(finite[:, None, None], find_boxes(outputs, most), float("nan"))


def as_grey(images: np.ndarray) -> np.ndarray:
    """Colour images, uint8 or float32 [..., 3], as their luma (ITU-R BT.601) [..., 1]; what is grey keeps its values."""
    luma = images @ np.array([0.299, 0.587, 0.114])
    whole = np.rint(luma) if images.dtype == np.uint8 else luma
    return whole.astype(images.dtype)[..., None]
