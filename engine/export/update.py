"""Ships only what changed: a delta for an exported model, and an exported model with a delta in it."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine.data.class_names import Names, normal_form, read_class_names, read_task_class_names
from engine.data.class_names import as_texts as class_texts
from engine.data.tokens import Tokenizer
from engine.errors import InputError
from engine.export.checking import ExportError
from engine.export.folder import check_new, count_bytes, new_folder, read_record, write_record
from engine.export.subject import Subject
from engine.files import Npz, PathLike, write_npz
from engine.porting.deltas import adapters
from engine.porting.deltas.onto import check_base
from engine.porting.deltas.record import BaseRecord, as_texts, find_digits, take_record
from engine.porting.deltas.record import read_record as read_base
from engine.porting.readers.checkpoint_file import Checkpoint, readable_name
from engine.selection.variables import ModelVariables, NamedVariable
from engine.text import join_some, join_words, nearest

_PREFIX = "weights/"  # of the names of variables in the checkpoint of an export
_KEPT = ("saved_model.pb", "assets", "assets.extra", *Tokenizer.FILES)

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PushResult:
    """An exported model with a delta: the folder (or the file for a device), and the bytes of the delta and of the model."""

    out: pathlib.Path
    sent: int
    whole: int
    paths: tuple[str, ...]


def push_delta(to: PathLike, delta: PathLike, out: PathLike, *, force_base: bool = False) -> PushResult:
    """Puts a delta, such as a run's trained.npz, into a copy of an exported model, if the model is its base.

    A SavedModel becomes a new one, of which nothing is run. For an updatable TFLite model, ``out`` is an .npz file with
    the arguments of its ``load_delta``, for the device that has the model.

    Args:
        to: the folder of the exported model, which stays as it is.
        delta: the delta.
        out: the folder, or the file, to create.
        force_base: whether to go on though the model is not the delta's base.

    Raises:
        InputError: ``to`` is not such an export, the delta does not fit it or belongs to another base, its classes are
            others, or ``out`` exists. Nothing is written.

    Example:
        >>> import tempfile
        >>> from engine import FinetuneConfig, export_savedmodel, finetune
        >>> from engine.export.update import push_delta
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     given = {"model": "cnn:mini", "weights": "none", "train": "@head", "train_examples": 64}
        ...     for name, steps in (("a", 1), ("b", 2)):
        ...         result = finetune(FinetuneConfig(**given, steps=steps, out=f"{folder}/{name}"))
        ...     exported = export_savedmodel(f"{folder}/a", f"{folder}/exported")
        ...     found = push_delta(f"{folder}/exported", f"{folder}/b/trained.npz", f"{folder}/updated")
        >>> found.paths
        ('head/kernel', 'head/bias')
    """
    to, delta, out = pathlib.Path(to), pathlib.Path(delta), pathlib.Path(out)
    check_new(out)
    record = read_record(to, name="to")
    with Npz(delta) as npz:
        arrays, base = {path: npz.read(path) for path in npz.names()}, read_base(npz)
    if not arrays:
        raise InputError(f"delta={delta}: it holds no variable")
    _check_classes(delta, read_task_class_names(delta) or read_class_names(delta), record)
    found: dict[str, Any] = {"sent": delta.stat().st_size, "whole": count_bytes(to), "paths": tuple(arrays)}
    if record["kind"] == "savedmodel":
        variables = read_variables(to, name="to")
        asked = adapters.read_at(delta)
        if asked is not None and arrays.keys() - {entry.path for entry in variables}:
            raise InputError(
                f"delta={delta}: it holds adapters ({asked.text}), and the exported model has none, or has them merged into its "
                f"kernels; `frostline export --run=RUN --delta_for={to}` writes the merged variables as a delta"
            )
        _check_fit(delta, arrays, {entry.path: entry for entry in variables})
        if not force_base:
            check_base(delta, base, variables, held=set(arrays), base=str(to))
        _push_saved(to, arrays, out, record=record | {"pushed": str(delta), "checked": None})
        return PushResult(out=out, **found)
    if record["kind"] == "tflite" and "load_delta" in record:
        content = _arguments(delta, arrays, base, record, to=to, force=force_base)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_npz(out, content.items())
        return PushResult(out=out, **found | {"sent": out.stat().st_size})
    raise InputError(
        f"to={to}: it is an export as {record['kind']}, which cannot be updated; expected a SavedModel, or a TFLite model that "
        "was exported with --updatable"
    )


def write_delta(subject: Subject, exported: PathLike, out: pathlib.Path, *, say: Say) -> dict[str, Any]:
    """Writes what turns an exported SavedModel into a model, as a delta with all variables that its ``load_delta`` takes.

    Raises InputError if the two are not the same network for the same classes, other variables differ too, or none does.
    """
    record = read_record(exported, name="delta_for")
    if record["kind"] != "savedmodel":
        raise InputError(f"delta_for={exported}: it is an export as {record['kind']}; expected a SavedModel")
    names = subject.data_names
    _check_classes(pathlib.Path(record["run"]), names, record)
    variables = read_variables(exported, name="delta_for")
    saved, own = ({entry.path: entry for entry in each} for each in (variables, subject.variables))
    _check_fit(pathlib.Path("run"), {path: entry.variable.numpy() for path, entry in own.items()}, saved)
    if lacking := [path for path in saved if path not in own]:
        raise InputError(f"delta_for={exported}: its network has {join_some(lacking)}, which the run's has not")
    differing = [path for path in own if find_digits(own[path]) != find_digits(saved[path])]
    taken = list(record["load_delta"]["arguments"])
    if outside := [path for path in differing if path not in taken]:
        raise InputError(
            f"delta_for={exported}: {join_some(outside)} differ too, and its load_delta takes only {join_some(taken)}; both runs "
            "must start from the same weights and train the same variables. Otherwise, export the whole model"
        )
    if not differing:
        raise InputError(f"delta_for={exported}: it has all of the run's weights already; nothing changed")
    base = take_record(variables, set(taken), {path: find_digits(saved[path]) for path in taken})
    out.parent.mkdir(parents=True, exist_ok=True)
    arrays = ((path, own[path].variable.numpy()) for path in taken)
    write_npz(out, arrays, texts=class_texts(names), packed=as_texts(base))
    sent, whole = out.stat().st_size, count_bytes(pathlib.Path(exported))
    say(f"delta: {len(taken)} variables, {sent:,} bytes; the model has {whole:,} bytes")
    return {"bytes": {"model": whole, "export": sent}}


def read_variables(exported: PathLike, *, name: str) -> ModelVariables:
    """The variables of an exported SavedModel, read from its checkpoint: none of its functions is run."""
    prefix = pathlib.Path(exported) / "variables" / "variables"
    entries = []
    with Checkpoint(prefix) as source:
        for key in source.names():
            if key.startswith(_PREFIX):
                given: dict[str, Any] = {"aliases": (), "kind": "weight", "layer": "", "groups": frozenset()}
                value = tf.constant(source.read(key))
                path = key.removeprefix(_PREFIX)
                entries.append(NamedVariable(path=path, variable=value, block=None, layers=(), **given))
    if not entries:
        raise InputError(f"{name}={exported}: its checkpoint holds no variables that frostline export wrote")
    return ModelVariables(tuple(entries), (), {}, {}, {})


def _check_classes(path: pathlib.Path, given: Names | None, record: Mapping[str, Any]) -> None:
    """Raises InputError if the classes of a delta are not those of an exported model, in their order."""
    own = record.get("data_names")
    if given is None or own is None:
        return
    one, other = ({task: normal_form(names) for task, names in _by_task(each).items()} for each in (given, own))
    for task in dict.fromkeys((*one, *other)):
        if one.get(task) != other.get(task):
            of = f" of {task}" if task else ""
            raise InputError(
                f"{path}: its classes{of} are {join_words(one.get(task, ())) or 'not named'}; the exported model's, "
                f"{join_words(other.get(task, ())) or 'not named'}. A delta for other classes, or for another order of them, would "
                "give wrong names; export the whole model"
            )


def _by_task(names: Names) -> Mapping[str, Sequence[str]]:
    return names if isinstance(names, Mapping) else {"": names}


def _check_fit(path: pathlib.Path, arrays: Mapping[str, np.ndarray], own: Mapping[str, NamedVariable]) -> None:
    """Raises InputError if the exported model lacks a variable, or has it in another shape or dtype."""
    for name, array in arrays.items():
        if name not in own:
            raise InputError(f"{path}: {name}: the exported model has no such variable{nearest(name, list(own))}")
        variable = own[name].variable
        if tuple(array.shape) != tuple(variable.shape) or array.dtype != variable.dtype.as_numpy_dtype:
            raise InputError(
                f"{path}: {name} is {array.dtype.name} {list(array.shape)}; in the exported model it is "
                f"{variable.dtype.name} {list(variable.shape)}"
            )


def _push_saved(
    to: pathlib.Path, arrays: Mapping[str, np.ndarray], out: pathlib.Path, *, record: Mapping[str, Any]
) -> None:
    """Copies a SavedModel, with some of its variables replaced in the checkpoint."""
    reader = tf.train.load_checkpoint(str(to / "variables" / "variables"))
    values = {}
    for key in reader.get_variable_to_shape_map():
        path = _path_of(key)
        values[key] = arrays[path] if path in arrays else reader.get_tensor(key)
    keys = sorted(values)
    with new_folder(out) as folder:
        for name in _KEPT:
            source = to / name
            if source.is_symlink() or not source.exists():
                continue
            if source.is_dir():
                shutil.copytree(source, folder / name, symlinks=True)
            else:
                shutil.copyfile(source, folder / name)
        (folder / "variables").mkdir()
        prefix = folder / "variables" / "variables"
        tensors = [tf.constant(values[key]) for key in keys]
        tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=keys, shape_and_slices=[""] * len(keys), tensors=tensors)
        written = {entry.path: entry.variable.numpy() for entry in read_variables(folder, name="out")}
        wrong = [path for path, value in arrays.items() if written[path].tobytes() != value.tobytes()]
        if wrong:
            raise ExportError(f"{out}: {join_some(wrong)} came back with other bits; nothing is written")
        write_record(folder, {key: value for key, value in record.items() if key != "format"})


def _path_of(key: str) -> str:
    """The path of the variable under a key of the checkpoint of an export; "" for anything else."""
    name = readable_name(key)
    return name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else ""


def describe_base(entries: ModelVariables, updatable: set[str]) -> dict[str, Any]:
    """What export.json keeps of the variables of a TFLite model that a device cannot replace."""
    base = take_record(entries, updatable)
    return {
        "sha256": base.sha256,
        "variables": {path: f"{held} {held.digits}" for path, held in base.variables.items()},
    }


def _arguments(
    delta: pathlib.Path,
    arrays: Mapping[str, np.ndarray],
    base: BaseRecord | None,
    record: Mapping[str, Any],
    *,
    to: pathlib.Path,
    force: bool,
) -> dict[str, np.ndarray]:
    """The arguments of a TFLite model's ``load_delta``; InputError if the delta is not made for that model."""
    taken = record["load_delta"]
    names = taken["arguments"]
    if set(arrays) != set(names):
        odd = sorted(set(arrays) ^ set(names))
        raise InputError(
            f"{delta}: it holds {join_some(list(arrays))}; the load_delta of {to} takes {join_some(list(names))} (different: "
            f"{join_some(odd)}); train these variables, or export with --updatable for those of the run"
        )
    for path, array in arrays.items():
        if list(array.shape) != taken["shapes"][path]:
            raise InputError(f"{delta}: {path} has shape {list(array.shape)}; the model, {taken['shapes'][path]}")
    own = taken["base"]
    if not force and (base is None or base.sha256 != own["sha256"]):
        now = {} if base is None else {path: f"{held} {held.digits}" for path, held in base.variables.items()}
        odd = sorted(path for path in {*now, *own["variables"]} if now.get(path) != own["variables"].get(path))
        found = "it does not say which weights it belongs to" if base is None else f"digest {base.sha256[:16]}"
        raise InputError(
            f"{delta}: it belongs to other weights than {to}: {found}, and there {own['sha256'][:16]}; "
            f"{len(odd)} variables differ ({join_some(odd, most=3)}); --force_base goes on"
        )
    return {names[path]: array.astype(np.float32) for path, array in arrays.items()}
