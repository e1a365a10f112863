"""Runs a TFLite model in the LiteRT interpreter (the package ai-edge-litert, extra ``litert``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from engine import host
from engine.errors import InputError
from engine.export.checking import ExportError
from engine.export.subject import Subject
from engine.selection.variables import NamedVariable


def import_litert() -> Any:
    """The module of the interpreter; raises InputError if the package is missing."""
    try:
        from ai_edge_litert import interpreter
    except ImportError as error:
        raise InputError(
            "format=tflite: a TFLite model is checked in the LiteRT interpreter, and the package ai-edge-litert is missing "
            f"({error}); pip install 'frostline[litert]' installs it"
        ) from None
    return interpreter


def open_model(content: bytes, *, threads: int = 1) -> Any:
    """An interpreter for a TFLite model, with its tensors allocated."""
    with host.stderr_on_failure():  # it says which delegate it creates
        found = import_litert().Interpreter(model_content=content, num_threads=threads)
        found.allocate_tensors()
    return found


def open_runner(content: bytes) -> Callable[[Any], dict[str, np.ndarray]]:
    """A TFLite model as a function from a batch of its only input, or of each by name, to outputs by name, an example at a time."""
    interpreter = open_model(content)
    serve = interpreter.get_signature_runner("serving_default")

    names = list(serve.get_input_details())

    def run(given: Any) -> dict[str, np.ndarray]:
        named = given if isinstance(given, Mapping) else {names[0]: given}
        count = len(named[names[0]])
        found = [serve(**{name: named[name][at : at + 1] for name in names}) for at in range(count)]
        return {name: np.concatenate([each[name] for each in found]) for name in found[0]}

    return run


def check_update(
    content: bytes, subject: Subject, entries: Sequence[NamedVariable], arguments: Mapping[str, str]
) -> None:
    """Gives a new interpreter other values through ``load_delta``, and compares it with the model that has the same.

    Raises ExportError if the outputs differ, or do not change.
    """
    interpreter = open_model(content)
    serve, load = (interpreter.get_signature_runner(name) for name in ("serving_default", "load_delta"))
    before = {entry.path: entry.variable.numpy() for entry in entries}
    others = {path: (value * np.float32(0.5)).astype(value.dtype) for path, value in before.items()}
    given = subject.inputs.read(subject.examples, np.arange(1))
    tensors = [tf.constant(given[name]) for name in subject.inputs.specs]
    load(**{arguments[path]: value for path, value in others.items()})
    found = serve(**given)
    try:
        for entry in entries:
            entry.variable.assign(others[entry.path])
        expected = subject.forward(*tensors)
    finally:
        for entry in entries:
            entry.variable.assign(before[entry.path])
    original = subject.forward(*tensors)
    for name, own in expected.items():
        error = float(np.abs(found[name] - own.numpy()).max())
        if not error <= 0.05 * max(float(np.abs(original[name].numpy() - own.numpy()).max()), 1e-3):
            raise ExportError(
                f"updatable: after load_delta, {name} differs by {error:.3g} from the model's with the same variables; nothing is "
                "written"
            )
