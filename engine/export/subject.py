"""What is exported: a trained network, with everything that using and checking it requires."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine.data import Normalise, Part
from engine.data.part import number_classes
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
        loss: what the outputs are trained with: "softmax", "sigmoid" or "mse".
        outputs: the number of outputs.
        class_names: the names of the outputs, or of the two classes of a single output; None if the data name none.
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
    loss: str
    outputs: int
    class_names: tuple[str, ...] | None
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
    def output(self) -> str:
        """What the outputs are called in signatures: "logits", or "outputs" for the loss mse."""
        return "outputs" if self.loss == "mse" else "logits"

    @property
    def bytes(self) -> int:
        """The memory of all variables."""
        return sum(entry.bytes for entry in self.variables)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes that a prediction can be; empty where the outputs are not exclusive classes."""
        if self.loss == "softmax":
            return self.class_names or number_classes(self.outputs)
        if self.loss == "sigmoid" and self.outputs == 1:
            names = self.class_names or ()
            return {2: names, 1: (f"not {names[0]}", names[0])}.get(len(names), ("0", "1")) if names else ("0", "1")
        return ()

    def forward(self, images: Any) -> Any:
        """The outputs [B, outputs] for float images in [0, 1], in inference mode and in at least float32."""
        given = {"training": False, "seeds": None}
        taken = accepted_keywords(self.network)
        return widen(self.network(self.normalise(images), **{name: given[name] for name in taken}))

    def describe(self, outputs: Any) -> dict[str, Any]:
        """What a prediction consists of, given the outputs [B, outputs]: probabilities too, unless the loss is mse."""
        if self.loss == "mse":
            return {"outputs": outputs}
        probabilities = tf.nn.softmax(outputs) if self.loss == "softmax" else tf.sigmoid(outputs)
        return {"logits": outputs, "probabilities": probabilities}

    def choose(self, outputs: Any) -> Any:
        """The number of the class that each row of outputs stands for; only where there are ``labels``."""
        return tf.argmax(outputs, axis=-1) if self.outputs > 1 else tf.cast(outputs[:, 0] > 0, tf.int64)

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


def batches(part: Part, positions: np.ndarray) -> Iterator[tuple[np.ndarray, Mapping[str, Any]]]:
    """Yields batches of positions, with their float images and labels."""
    for start in range(0, len(positions), BATCH):
        chosen = positions[start : start + BATCH]
        yield chosen, {"images": read_images(part, chosen), "labels": part.labels[chosen]}


def spread(count: int, most: int) -> np.ndarray:
    """At most ``most`` positions, spread evenly over ``count``."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
