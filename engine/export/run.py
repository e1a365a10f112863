"""Exports a run, checked against its model, or not at all."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.errors import InputError
from engine.export import interpreter, lite, savedmodel
from engine.export.checking import Comparison, ExportError, compare, time_model, time_single
from engine.export.config import ENCODER, NAMES, ExportConfig
from engine.export.folder import check_new, count_bytes, new_folder, write_record
from engine.export.opening import open_subject
from engine.export.outputs import name_arguments
from engine.export.subject import Subject
from engine.export.update import describe_base, write_delta
from engine.files import PathLike, write_bytes
from engine.host import versions
from engine.runs.saved_flags import read_flags
from engine.selection.filters import FilterError, parse_filter
from engine.selection.selection import matching_paths
from engine.text import join_some

_CHECKED = 64  # examples, where all of them would only take time
# The largest difference of an output, relative to the largest output or 1: the same operations, or other kernels.
_SAME, _CLOSE = 1e-5, 1e-4

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What an export came to.

    Attributes:
        out: the folder that was created (a file with ``delta_for``).
        record: the content of its export.json.
        comparison: the export beside the model; None with ``delta_for``.
    """

    out: pathlib.Path
    record: Mapping[str, Any]
    comparison: Comparison | None


def export_run(config: ExportConfig, *, say: Say = lambda line: None) -> ExportResult:
    """Exports a run as the config says; ``say`` is called with lines about what is done.

    Raises:
        InputError: the run, its data or a field of the config are not right, the folder exists, or a package is missing.
        ExportError: the model cannot be converted, the export is not what the model is, or quantisation loses more
            accuracy than ``max_accuracy_loss`` and ``yes`` is not set. Nothing is written.
        NoSpaceError: the disk is full. Nothing is written.
    """
    if config.format == "safetensors" and config.rules is None:
        model = str((read_flags(pathlib.Path(config.run)) or {}).get("model", ""))
        config = replace(config, rules=ENCODER if model.startswith("bert:") else NAMES[0])
    check_new(config.place)
    if config.format == "tflite":
        interpreter.import_litert()
    make = _MAKERS[config.format]
    if config.format == "onnx":
        from engine.export.onnx_file import check_packages

        check_packages()
    given: dict[str, Any] = {"data": config.data, "ema": config.ema, "checkpoint": config.checkpoint}
    subject = open_subject(config.run, say=say, **given)
    if config.delta_for is not None:
        record = write_delta(subject, config.delta_for, config.place, say=say)
        return ExportResult(out=config.place, record=record, comparison=None)
    _check_adapters(subject, config)
    with new_folder(config.place) as folder:
        comparison, extra = make(subject, folder, config, say)
        subject.inputs.write_files(folder)
        comparison = (
            replace(comparison, model_milliseconds=time_model(subject)) if comparison.milliseconds else comparison
        )
        record = _describe(subject, config) | {
            "bytes": {"model": subject.bytes, "export": count_bytes(folder)},
            "checked": comparison.to_json(),
            **extra,
        }
        write_record(folder, record)
    return ExportResult(out=config.place, record=record, comparison=comparison)


def _check_adapters(subject: Subject, config: ExportConfig) -> None:
    """Raises InputError if a network keeps adapters and the format has only layers that others know."""
    kept = [entry.path for entry in subject.variables if "adapters" in entry.groups]
    if kept and config.format in ("keras", "safetensors"):
        raise InputError(
            f"format={config.format}: the model keeps adapters that cannot be merged ({join_some(kept, most=2)}), for which "
            "other programs have no layers; --format=savedmodel, tflite and onnx hold what it computes"
        )


def export_savedmodel(
    run: PathLike,
    out: PathLike,
    *,
    data: str | None = None,
    ema: bool | None = None,
    checkpoint: str | None = None,
) -> ExportResult:
    """Exports a run as a SavedModel, which serves without Frostline: it prepares images and knows the class names.

    Its signatures are described in docs/export.md. It is compared with the model on real examples before ``out`` is created.

    Args:
        run: the run directory.
        out: the folder to create.
        data: where the run's data are now; None means where they were.
        ema: True takes the averages, False the last values; None takes the averages if the run kept some.
        checkpoint: "last", "best" or a checkpoint of the run; None takes the end of a run that is done.

    Raises:
        InputError: the run or its data cannot be opened, or ``out`` exists.
        ExportError: the export is not what the model is. Nothing is written.

    Example:
        >>> import tempfile
        >>> import tensorflow as tf
        >>> from engine import FinetuneConfig, export_savedmodel, finetune
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     given = {"model": "cnn:mini", "weights": "none", "train": "@head", "train_examples": 64}
        ...     result = finetune(FinetuneConfig(**given, steps=2, out=f"{folder}/run"))
        ...     exported = export_savedmodel(result.out, f"{folder}/exported")
        ...     loaded = tf.saved_model.load(f"{folder}/exported")
        ...     found = loaded.signatures["serving_default"](images=tf.zeros([1, 28, 28, 1]))
        >>> found["probabilities"].shape
        TensorShape([1, 10])
    """
    return export_run(ExportConfig(run=str(run), out=str(out), data=data, ema=ema, checkpoint=checkpoint))


def _describe(subject: Subject, config: ExportConfig) -> dict[str, Any]:
    """The entries of export.json that do not depend on the format; of several outputs, some have a value for each task."""
    return {
        "kind": config.format,
        "quantize": config.quantize,
        "run": config.run,
        "averages": subject.averaged,
        "model": subject.model,
        "loss": subject.by_output(lambda output: output.loss),
        **subject.inputs.describe(),
        "output": subject.by_output(lambda output: output.name),
        "class_names": subject.by_output(lambda output: output.names),
        "data_names": subject.data_names,
        "versions": versions(),
    }


Made = tuple[Comparison, dict[str, Any]]


def _make_savedmodel(subject: Subject, folder: pathlib.Path, config: ExportConfig, say: Say) -> Made:
    arguments = savedmodel.save_model(subject, folder)
    found = compare(subject, savedmodel.open_saved(folder, subject), most=_CHECKED, bound=_SAME, what="savedmodel")
    savedmodel.check_files(folder, subject, bound=_SAME)
    return found, {"load_delta": {"arguments": arguments}}


def _make_tflite(subject: Subject, folder: pathlib.Path, config: ExportConfig, say: Say) -> Made:
    quantised = config.quantize != "none"
    original, subject = subject, subject.in_float32()
    entries = _updatable(subject, config.updatable)
    arguments = name_arguments([entry.path for entry in entries])
    if config.quantize == "int8" and config.calibration_examples > len(subject.training):
        say(f"calibration: all {len(subject.training)} training examples, fewer than {config.calibration_examples}")
    say(f"converting to TFLite, quantize={config.quantize}")
    content = lite.convert(
        subject,
        quantize=config.quantize,
        calibration_examples=config.calibration_examples,
        updatable=entries,
        arguments=arguments,
    )
    write_bytes(folder / "model.tflite", content)
    run = interpreter.open_runner(content)
    found = compare(subject, run, bound=None if quantised else _CLOSE, what=f"tflite, quantize={config.quantize}")
    found = replace(found, milliseconds=time_single(subject, run))
    if quantised:
        _check_loss(found, config)
    extra: dict[str, Any] = {"file": "model.tflite"}
    if entries:
        interpreter.check_update(content, subject, entries, arguments)
        extra["load_delta"] = {
            "arguments": arguments,
            "shapes": {entry.path: list(entry.shape) for entry in entries},
            "bytes": sum(entry.bytes for entry in entries),
            "base": describe_base(original.variables, set(arguments)),
        }
    return found, extra


def _updatable(subject: Subject, text: str | None) -> list[Any]:
    """The variables that a device can replace; InputError if the filter is not valid or means none."""
    if text is None:
        return []
    try:
        paths = set(matching_paths(subject.variables, parse_filter(text)))
    except FilterError as error:
        raise FilterError(f"updatable={text!r}: {error}") from None
    found = [entry for entry in subject.variables if entry.path in paths and entry.kind != "constant"]
    if not found:
        raise InputError(f"updatable={text!r}: it means no variable of the model; @head are those of its head")
    return found


def _check_loss(found: Comparison, config: ExportConfig) -> None:
    """Raises ExportError if quantisation loses too much accuracy, or nobody can tell, and ``yes`` is not set."""
    if config.yes:
        return
    for task, each in (found.tasks or {"": found}).items():
        about = f"quantize={config.quantize}: " + (f"output {task!r}: " if task else "")
        if each.accuracy is None or each.model_accuracy is None:
            raise ExportError(
                f"{about}there is no accuracy to compare; the largest difference of an output is "
                f"{each.largest_difference:.3g}, of outputs up to {each.scale:.3g} (counted as 1 if less). --yes writes the model; nothing is written"
            )
        lost = each.model_accuracy - each.accuracy
        if lost > config.max_accuracy_loss:
            raise ExportError(
                f"{about}accuracy {each.accuracy:.4f} in place of {each.model_accuracy:.4f} on {each.examples} examples, a loss of "
                f"{lost:.4f}; --max_accuracy_loss={config.max_accuracy_loss:g} allows less. --yes writes the model all the same, "
                "and --quantize=dynamic or float16 lose less; nothing is written"
            )


def _make_keras(subject: Subject, folder: pathlib.Path, config: ExportConfig, say: Say) -> Made:
    from engine.export.keras_file import save_keras

    run, extra = save_keras(subject, folder / "model.keras")
    return compare(subject, run, most=_CHECKED, bound=_SAME, what="keras"), {"file": "model.keras", **extra}


def _make_safetensors(subject: Subject, folder: pathlib.Path, config: ExportConfig, say: Say) -> Made:
    from engine.export.torch_names import save_tensors

    run, extra = save_tensors(subject, folder, config.rules or NAMES[0])
    found = compare(subject, run, most=_CHECKED, bound=_SAME, what="safetensors")
    return found, {"file": "model.safetensors", **extra}


def _make_onnx(subject: Subject, folder: pathlib.Path, config: ExportConfig, say: Say) -> Made:
    from engine.export.onnx_file import save_onnx

    run = save_onnx(subject.in_float32(), folder / "model.onnx")
    return compare(subject, run, most=_CHECKED, bound=_CLOSE, what="onnx"), {"file": "model.onnx"}


_MAKERS: Mapping[str, Callable[[Subject, pathlib.Path, ExportConfig, Say], Made]] = {
    "savedmodel": _make_savedmodel,
    "tflite": _make_tflite,
    "keras": _make_keras,
    "safetensors": _make_safetensors,
    "onnx": _make_onnx,
}
