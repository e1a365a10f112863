"""TFLite models: whole or quantised, and with variables that a device can replace."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from engine import host
from engine.data.order import fixed_permutation
from engine.export.checking import ExportError
from engine.export.savedmodel import OPTIONS, make_loader
from engine.export.subject import Subject
from engine.selection.variables import NamedVariable


class _Holder(tf.Module):
    """Keeps the variables of a function alive, and known to TensorFlow, while it is converted."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.weights = {entry.path: entry.variable for entry in subject.variables}


def convert(
    subject: Subject,
    *,
    quantize: str,
    calibration_examples: int,
    updatable: Sequence[NamedVariable] = (),
    arguments: Mapping[str, str] = {},
) -> bytes:
    """Converts a network in float32 to a TFLite model for a batch of one example.

    Its signature ``serving_default`` takes what ``Subject.specs`` say, such as ``images``, float32
    [1, height, width, channels] in [0, 1], which it normalises, and gives ``logits`` (or ``outputs``, for the loss mse) [1, ..., outputs]; of several outputs, ``TASK_logits`` for each. With ``updatable`` variables there is also ``load_delta``, which takes their
    values (``arguments``: path -> name of the argument) and gives ``updated``, their number.

    Args:
        quantize: ``none``, ``float16`` (weights), ``dynamic`` (weights in 8 bits) or ``int8`` (weights and activations).
        calibration_examples: the number of training examples from which int8 takes the ranges of activations.

    Raises ExportError if TensorFlow cannot convert the network.
    """
    holder = _Holder(subject)
    specs = [tf.TensorSpec([1, *spec.shape[1:]], spec.dtype, name=spec.name) for spec in subject.specs]
    serve = tf.function(lambda *given: subject.forward(*given), input_signature=specs, autograph=False)
    with host.stderr_on_failure(), tempfile.TemporaryDirectory() as folder:
        try:
            if updatable:
                path = pathlib.Path(folder) / "saved"
                signatures = {"serving_default": serve, "load_delta": make_loader(updatable, arguments)}
                tf.saved_model.save(holder, str(path), signatures=signatures, options=OPTIONS)
                converter = tf.lite.TFLiteConverter.from_saved_model(str(path), signature_keys=list(signatures))
                converter.experimental_enable_resource_variables = True
            else:
                converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], holder)
            if quantize != "none":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if quantize == "float16":
                converter.target_spec.supported_types = [tf.float16]
            elif quantize == "int8":
                built_in = tf.lite.OpsSet
                converter.target_spec.supported_ops = [built_in.TFLITE_BUILTINS_INT8, built_in.TFLITE_BUILTINS]
                converter.representative_dataset = lambda: _calibration(subject, calibration_examples)
            return bytes(converter.convert())
        except Exception as error:  # the converter's own errors have no common class
            lines = [line for line in str(error).splitlines() if "rror:" in line] or str(error).splitlines() or [""]
            why = lines[0].rpartition("rror:")[2].strip()
            raise ExportError(
                f"{subject.model}: TensorFlow cannot convert it to TFLite: {why}; --format=savedmodel holds it"
            ) from error


def _calibration(subject: Subject, count: int) -> Iterator[list[np.ndarray]]:
    """The first training examples of a fixed permutation, one at a time."""
    part = subject.training
    for position in fixed_permutation(len(part))[:count]:
        given = subject.inputs.read(part, np.array([position]))
        yield [given[name] for name in subject.inputs.specs]
