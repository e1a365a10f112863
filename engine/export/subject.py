"""What is exported: a trained network, with everything that using and checking it requires."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine.data import Normalise, Part
from engine.export.outputs import Output
from engine.selection.variables import ModelVariables
from engine.training.losses import accepted_keywords
from engine.training.precision import widen

BATCH = 64  # examples


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A trained network to export.

    Attributes:
        model: the name of the model.
        network, variables: the network with its weights, and all its variables, named.
        normalise: prepares images for the network.
        image_shape: (height, width, channels) of the images that ``normalise`` takes.
        outputs: what each output of the network means, by its task ("" for the only one).
        averaged: whether the weights are the averages of the run.
        trained: the paths of the variables that the run trained, statistics that moved included.
        single_precision: whether the variables and the computation are in float32.
        rebuild: builds the network anew, with initial weights, in float32.
        reads_files: whether images of the run were read from files as ``prepare_file`` reads them: cropped, in 8-bit colour or
            grey.
        examples, training: the part that exports are checked on, and the one that quantisation is calibrated on.
    """

    model: str
    network: Any
    variables: ModelVariables
    normalise: Normalise
    image_shape: tuple[int, ...]
    outputs: tuple[Output, ...]
    averaged: bool
    trained: tuple[str, ...]
    single_precision: bool
    rebuild: Callable[[], tuple[Any, ModelVariables]]
    examples: Part
    training: Part
    reads_files: bool = True

    @property
    def image_spec(self) -> tf.TensorSpec:
        """The spec of a batch of float images in [0, 1]."""
        return tf.TensorSpec([None, *self.image_shape], tf.float32, name="images")

    @property
    def bytes(self) -> int:
        """The memory of all variables."""
        return sum(entry.bytes for entry in self.variables)

    @property
    def several(self) -> bool:
        """Whether the network returns outputs by name."""
        return self.outputs[0].task != ""

    @property
    def data_names(self) -> dict[str, tuple[str, ...]] | tuple[str, ...] | None:
        """The names that the data give to the outputs: by task, where there are several; None if they name none."""
        if not self.several:
            return self.outputs[0].class_names
        return {each.task: each.class_names for each in self.outputs if each.class_names and each.loss != "mse"} or None

    def by_output(self, value: Callable[[Output], Any]) -> Any:
        """What a function says of the only output, or of each by its task."""
        return {each.task: value(each) for each in self.outputs} if self.several else value(self.outputs[0])

    def forward(self, images: Any) -> dict[str, Any]:
        """Each output by its name [B, count], for float images in [0, 1], in inference mode and in at least float32.

        Of a class for each pixel, it is [B, height, width, count].
        """
        given = {"training": False, "seeds": None}
        taken = accepted_keywords(self.network)
        found = self.network(self.normalise(images), **{name: given[name] for name in taken})
        return {each.name: widen(found[each.task] if self.several else found) for each in self.outputs}

    def in_float32(self) -> Subject:
        """The same weights in a network that computes in float32, which phones and other formats need."""
        if self.single_precision:
            return self
        network, variables = self.rebuild()
        values = {entry.path: entry.variable.numpy() for entry in self.variables}
        for entry in variables:
            entry.variable.assign(values[entry.path].astype(entry.variable.dtype.as_numpy_dtype))
        return dataclasses.replace(self, network=network, variables=variables, single_precision=True)


def read_images(part: Part, positions: np.ndarray) -> np.ndarray:
    """The images at these positions as float32 in [0, 1], as ``Normalise`` converts them."""
    images = part.read(positions)["image"]
    return images.astype(np.float32) / np.float32(255.0) if images.dtype == np.uint8 else images


def batches(part: Part, positions: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields batches of positions, with their float images."""
    for start in range(0, len(positions), BATCH):
        chosen = positions[start : start + BATCH]
        yield chosen, read_images(part, chosen)


def spread(count: int, most: int) -> np.ndarray:
    """At most ``most`` positions, spread evenly over ``count``."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
