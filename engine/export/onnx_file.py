"""An ONNX file, where the packages tf2onnx and onnxruntime are installed and fit this TensorFlow."""

from __future__ import annotations

import importlib.metadata
import pathlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from engine import host
from engine.errors import InputError
from engine.export.checking import ExportError
from engine.export.subject import Subject

_OPSET = 17  # the first with LayerNormalization; onnxruntime has read it since 1.12


def check_packages() -> None:
    """Raises InputError if a package is missing, or tf2onnx cannot be imported beside this TensorFlow and NumPy."""
    for module, package, use in (
        ("tf2onnx", "tf2onnx", "converts"),
        ("onnxruntime", "onnxruntime", "checks what is written"),
    ):
        try:
            with host.stderr_on_failure():
                __import__(module)
        except ImportError as error:
            raise InputError(
                f"format=onnx: the package {package}, which {use}, is missing or does not fit ({error}); pip install "
                "'frostline[onnx]' installs it. --format=tflite and savedmodel need no other package"
            ) from None
        except Exception as error:  # it uses names that another NumPy or TensorFlow no longer has
            raise InputError(f"format=onnx: {_versions()} do not fit together: {error}") from None


def save_onnx(subject: Subject, path: pathlib.Path) -> Callable[[Any], Any]:
    """Writes the network with its normalisation as ONNX; returns a function from its inputs to its outputs, by name if there are several.

    Its inputs are those of ``Subject.specs``, such as ``images``, float32 [B, height, width, channels] in [0, 1]. Raises ExportError if tf2onnx cannot convert it.
    """
    import onnxruntime
    import tf2onnx

    serve = tf.function(
        lambda *given: subject.forward(*given),
        input_signature=subject.specs,
        autograph=False,
    )
    try:
        with host.stderr_on_failure():
            tf2onnx.convert.from_function(serve, input_signature=subject.specs, opset=_OPSET, output_path=str(path))
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # tf2onnx raises whatever its handlers raise
        raise ExportError(f"{subject.model}: {_versions()} cannot convert it: {str(error)[:300]}") from error
    taken, names = [each.name for each in session.get_inputs()], [each.name for each in session.get_outputs()]

    def run(given: Any) -> Any:
        named = subject.name_inputs(given)
        # tf2onnx keeps the names of specs, as in "tokens" or "tokens:0"
        fed = {name: named[name.partition(":")[0]] for name in taken} if len(taken) > 1 else {taken[0]: given}
        found = dict(zip(names, session.run(None, fed), strict=True))
        return found if subject.several else found[names[0]]

    return run


def _versions() -> str:
    found = []
    for package in ("tf2onnx", "onnxruntime", "numpy"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} (missing)")
    return f"{', '.join(found)} and TensorFlow {tf.__version__}"
