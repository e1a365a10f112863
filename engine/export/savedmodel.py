"""A SavedModel with everything that serving needs inside: preparation of images, class names, and updates."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from engine.export.checking import ExportError
from engine.export.features import find_features
from engine.export.inputs import Images, read_images
from engine.export.outputs import name_arguments
from engine.export.preparation import prepare_file
from engine.export.subject import Subject, spread
from engine.files import PathLike
from engine.selection.variables import NamedVariable

# The gradients of custom functions read tensors of the trace; an export only computes forwards.
OPTIONS = tf.saved_model.SaveOptions(experimental_custom_gradients=False)


class Served(tf.Module):
    """What is saved: all variables of a network, by path, and the names of its classes, a string variable (for each task)."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.weights = {entry.path: entry.variable for entry in subject.variables}
        self.class_names = subject.by_output(
            lambda output: tf.Variable(
                tf.constant(output.names, tf.string), trainable=False, name=f"{output.prefix}class_names"
            )
        )


def save_model(subject: Subject, folder: PathLike) -> dict[str, str]:
    """Writes a SavedModel; returns the argument of ``load_delta`` that stands for each trained variable, by path.

    Its signatures:

    * ``serving_default``: ``images``, float32 [B, height, width, channels] in [0, 1], or ``tokens`` (and ``types``), or
      ``features`` (engine.export.inputs) -> ``logits`` and ``probabilities``
      [B, outputs], and ``class`` (string [B]) where the outputs are classes; ``outputs`` alone for the loss mse. With a class
      for each pixel, logits and probabilities are [B, height, width, outputs], and ``mask`` has the numbers of classes. Of
      several outputs, these are ``TASK_logits`` and so on.
    * ``from_bytes``: ``encoded``, string [B], JPEG or PNG files of any size -> the same; not where the run read its images
      in another way (``Subject.reads_files``).
    * ``features``: the only input -> ``features``, what the head reads; only where that is a single tensor.
    * ``load_delta``: the trained variables -> ``updated``, how many it has replaced.

    Raises ExportError if the network uses something that a SavedModel cannot hold.
    """
    served = Served(subject)

    def predict(*given: Any) -> dict[str, Any]:
        outputs, found = subject.forward(*given), dict[str, Any]()
        for output in subject.outputs:
            names = served.class_names[output.task] if subject.several else served.class_names
            found |= output.describe(outputs[output.name], names)
        return found

    signatures = {
        "serving_default": tf.function(
            lambda *given: predict(*_check(subject, given).values()), input_signature=subject.specs, autograph=False
        ),
    }
    if subject.reads_files and isinstance(subject.inputs, Images):
        signatures["from_bytes"] = _from_bytes(subject.inputs.shape, predict)
    if (features := find_features(subject)) is not None:
        signatures["features"] = tf.function(
            lambda *given: {"features": features(subject.inputs.prepare(_check(subject, given)))},
            input_signature=subject.specs,
            autograph=False,
        )
    arguments: dict[str, str] = {}
    entries = [entry for entry in subject.variables if entry.path in set(subject.trained)]
    if entries:
        arguments = name_arguments([entry.path for entry in entries])
        signatures["load_delta"] = make_loader(entries, arguments)
    try:
        tf.saved_model.save(served, str(folder), signatures=signatures, options=OPTIONS)
    except (AssertionError, ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
        raise ExportError(f"{subject.model}: TensorFlow cannot save it: {str(error).splitlines()[0]}") from error
    _drop_gradients(pathlib.Path(folder) / "saved_model.pb")
    return arguments


def _drop_gradients(path: pathlib.Path) -> None:
    """Drops the names of custom gradients, which are not saved: otherwise every load would warn of them."""
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString(path.read_bytes())
    for graph in (each.graph_def for each in saved.meta_graphs):
        for node in (*graph.node, *(node for function in graph.library.function for node in function.node_def)):
            node.attr.pop("_gradient_op_type", None)
    path.write_bytes(saved.SerializeToString(deterministic=True))


def _check(subject: Subject, given: Sequence[Any]) -> Mapping[str, Any]:
    """The inputs by name, in the order of ``Subject.specs``, if their values are those that they should be."""
    return subject.inputs.check(dict(zip(subject.inputs.specs, given, strict=True)))


def _from_bytes(shape: tuple[int, ...], predict: Callable[[Any], dict[str, Any]]) -> Any:
    def run(encoded: Any) -> dict[str, Any]:
        spec = tf.TensorSpec(shape, tf.uint8)
        images = tf.map_fn(lambda each: prepare_file(each, shape), encoded, fn_output_signature=spec)
        return predict(tf.cast(images, tf.float32) / 255.0)

    return tf.function(run, input_signature=[tf.TensorSpec([None], tf.string, name="encoded")], autograph=False)


def make_loader(entries: Sequence[NamedVariable], arguments: Mapping[str, str]) -> Any:
    """The function behind a signature ``load_delta``: replaces these variables and says how many they are."""

    def load(*values: Any) -> dict[str, Any]:
        for entry, value in zip(entries, values, strict=True):
            entry.variable.assign(value)
        return {"updated": tf.constant([len(entries)])}

    specs = [tf.TensorSpec(entry.shape, entry.variable.dtype, name=arguments[entry.path]) for entry in entries]
    return tf.function(load, input_signature=specs, autograph=False)


def open_saved(folder: PathLike, subject: Subject) -> Callable[[Any], dict[str, np.ndarray]]:
    """Loads what ``save_model`` wrote, as a function from its only input, or each by name, to outputs by name."""
    loaded = tf.saved_model.load(str(folder))
    signature = loaded.signatures["serving_default"]

    def run(given: Any) -> dict[str, np.ndarray]:
        assert loaded is not None  # its variables live as long as it does
        found = signature(**{name: tf.constant(value) for name, value in subject.name_inputs(given).items()})
        return {output.name: found[output.name].numpy() for output in subject.outputs}

    return run


def check_files(folder: PathLike, subject: Subject, *, bound: float) -> None:
    """Gives ``from_bytes`` real examples as PNG files, and compares it with ``serving_default``.

    Raises ExportError if outputs differ by more than ``bound``, relative to the largest or 1.
    """
    if not subject.reads_files:
        return
    positions = spread(len(subject.examples), 4)
    images = subject.examples.read(positions)["image"]
    if images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        return  # no file can hold them exactly
    loaded = tf.saved_model.load(str(folder))
    files = tf.stack([tf.io.encode_png(image) for image in images])
    found = loaded.signatures["from_bytes"](encoded=files)
    expected = loaded.signatures["serving_default"](images=tf.constant(read_images(subject.examples, positions)))
    for name in (output.name for output in subject.outputs):
        difference = float(np.abs(found[name].numpy() - expected[name].numpy()).max())
        if not difference <= bound * max(1.0, float(np.abs(found[name]).max())):
            raise ExportError(
                f"savedmodel: {name} of from_bytes differs from that of serving_default by {difference:.3g}; nothing is written"
            )
