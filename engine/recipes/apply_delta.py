"""Whole weights from a base and what runs trained, in the base's own format."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.data.class_names import Names, as_texts, read_class_names, read_task_class_names
from engine.errors import InputError
from engine.files import Npz, PathLike, write_npz
from engine.models.adapters.merging import merge_into
from engine.models.weights import load_as_it_is
from engine.porting.deltas import adapters
from engine.porting.deltas.chain import WORDS, parse_chain, parse_deltas
from engine.porting.deltas.merge import Merged, merge
from engine.porting.frozen_writer import SUFFIXES as GRAPHS
from engine.porting.frozen_writer import check_frozen_target, write_frozen
from engine.porting.plan import take_names
from engine.porting.readers.frozen_file import FrozenFile
from engine.porting.readers.h5_file import KerasH5
from engine.porting.readers.safetensors_file import Safetensors
from engine.porting.readers.source import open_tensors
from engine.porting.readers.tensor_source import TensorSource
from engine.porting.rules import detect
from engine.porting.safetensors_writer import write_safetensors
from engine.porting.whole_file import WholeFile
from engine.recipes.reopen import OpenedRun, build_run_model, open_run
from engine.runs.saved_flags import read_flags
from engine.selection.groups import in_head
from engine.selection.variables import ModelVariables, name_variables
from engine.text import join_words
from engine.writing import check_target

_SUFFIXES = {
    "npz": (".npz",),
    "safetensors": (".safetensors",),
    "HDF5": (".weights.h5",),
    "keras": (".keras",),
    "frozen": GRAPHS,
}


@dataclass(frozen=True, kw_only=True)
class AppliedDelta:
    """What ``apply_delta`` wrote.

    Attributes:
        out: the file.
        texts: a line for the base and for each delta, for people.
        tensors: how many tensors the file has.
        changed: those that differ from the base.
        dropped: what the base has besides weights (slots, averages, generators), which the file does not have.
        rounded: the variables that lost digits, since the base keeps them in a smaller dtype.
    """

    out: pathlib.Path
    texts: tuple[str, ...]
    tensors: int
    changed: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    rounded: tuple[str, ...] = ()


def apply_delta(
    base: PathLike,
    delta: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    rules: PathLike | None = None,
    run: PathLike | None = None,
    force_base: bool = False,
) -> AppliedDelta:
    """Writes whole weights: a base with what runs trained, in the base's own format, under its names and in its dtypes.

    Args:
        base: the weights from which the run started, as ``--weights`` had them: an .npz, safetensors, .weights.h5 or .keras
            file, a frozen graph, ``"auto"``, or one of these with deltas, BASE+DELTA. (Checkpoints of TensorFlow are for the command, ``frostline apply-delta``.)
        delta: ``trained.npz`` (or ``ema.npz``) of a run, or several of runs on top of each other, in order.
        out: the file, which is then whole or as it was. Its name must have the base's suffix.
        rules: which tensor of the base becomes which variable; None takes the rules of the run, or chooses by the names.
        run: the run directory, which Keras files and words need for the model; None is the folder of the last delta.
        force_base: put a delta also onto weights that it does not belong to.

    What an own checkpoint has besides weights, such as slots and averages, is left out, since it belongs to other values.

    Raises:
        InputError: a file is missing, damaged, of another kind or not of this model; a delta belongs to another base; or a
            value cannot be written back by the rules. Nothing is written then.

    Example:
        >>> import tempfile
        >>> from engine import FinetuneConfig, apply_delta, finetune
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = FinetuneConfig(train="@head", steps=2, train_examples=64, cache="off", out=f"{folder}/run")
        ...     result = finetune(config)
        ...     applied = apply_delta("auto", f"{folder}/run/trained.npz", f"{folder}/whole.npz")
        >>> applied.tensors, applied.changed
        (104, ('head/kernel', 'head/bias'))
    """
    given = [delta] if isinstance(delta, (str, os.PathLike)) else list(delta)
    chain = parse_chain(base, name="base")
    base, deltas = chain.base, [*chain.deltas, *(part for each in given for part in parse_deltas(each))]
    target, folder = pathlib.Path(out), pathlib.Path(run) if run is not None else pathlib.Path(deltas[-1]).parent
    check_target(target)
    _check_other(target, base, *deltas)
    if base in WORDS:
        opened = open_run(folder)
        shipped = opened.model.shipped_weights if base == "auto" else None
        if shipped is None:
            return _write_model(base, deltas, target, opened, rules=rules, force=force_base)
        base = shipped
    kind = find_kind(base)
    if kind not in _SUFFIXES:
        raise InputError(f"base={base}: a checkpoint of TensorFlow; `frostline apply-delta` writes one")
    if not target.name.endswith(_SUFFIXES[kind]):
        known = " or ".join(_SUFFIXES[kind])
        raise InputError(f"out={target}: the base is {kind}; expected a name that ends in {known}")
    if kind in ("HDF5", "keras"):
        return _write_model(base, deltas, target, open_run(folder), rules=rules, force=force_base)
    with open_tensors(base) as source:
        return _write_by_rules(
            source, deltas, target, rules=rules or find_rules(folder), folder=folder, force=force_base
        )


def find_kind(base: PathLike) -> str:
    """What a base is: "npz", "safetensors", "HDF5" (of Keras), "keras" (a whole model), "frozen" (a graph), or "checkpoint".

    Raises FileError if it is none of these.
    """
    place = pathlib.Path(base)
    if place.suffix == ".keras" and place.is_file():
        return "keras"
    with open_tensors(base) as source:
        if isinstance(source, Npz):
            return "npz"
        if isinstance(source, Safetensors):
            return "safetensors"
        if isinstance(source, FrozenFile):
            return "frozen"
        return "HDF5" if isinstance(source, KerasH5) else "checkpoint"


def find_rules(run: pathlib.Path) -> str | None:
    """The rules by which the run in a folder read its weights; None if there is no run, or the names in the file chose them."""
    try:
        found = (read_flags(run) or {}).get("rules")
    except InputError:
        return None
    return found if isinstance(found, str) else None


def _check_other(out: pathlib.Path, *given: PathLike) -> None:
    """Raises InputError if the file to write is one of those that are read."""
    for each in given:
        if out.exists() and os.path.exists(each) and os.path.samefile(out, each):
            raise InputError(f"out={out}: it is also what is read; choose another name")


def _write_by_rules(
    source: TensorSource,
    deltas: Sequence[str],
    out: pathlib.Path,
    *,
    rules: PathLike | None,
    folder: pathlib.Path,
    force: bool,
) -> AppliedDelta:
    """Writes an .npz or safetensors file, or a frozen graph; the run's model is needed only for adapters."""
    if isinstance(source, FrozenFile):
        check_frozen_target(out, source)
    if any(adapters.read_at(delta) is not None for delta in deltas):
        merged = _merge_adapters(source, deltas, folder, rules=rules, force=force)
    else:
        merged = merge(source, deltas, rules=rules, force=force)
    whole = WholeFile(source, merged.variables, merged.rules)
    if isinstance(source, Safetensors):
        specs = {name: (whole.shape(name), whole.dtype(name)) for name in whole.names()}
        write_safetensors(out, specs, whole.read, metadata=source.metadata)
    elif isinstance(source, FrozenFile):
        write_frozen(out, source, whole)
    else:
        names = find_class_names([source.path, *deltas])
        write_npz(out, ((name, whole.read(name)) for name in whole.names()), texts=as_texts(names))
    return AppliedDelta(
        out=out,
        texts=merged.texts,
        tensors=len(whole.names()),
        changed=tuple(whole.changed),
        dropped=whole.dropped,
        rounded=tuple(whole.rounded),
    )


def _merge_adapters(
    source: TensorSource, deltas: Sequence[str], folder: pathlib.Path, *, rules: PathLike | None, force: bool
) -> Merged:
    """As ``merge``, with the run's model, into which its adapters are merged."""
    network, text = _load_model(source.path, deltas, open_run(folder), rules=rules, force=force, file=None)
    variables = name_variables(network)
    chosen = detect.get_rules(rules) if rules is not None else None
    chosen = chosen or detect.choose_rules(take_names(source, variables), variables)
    return Merged(variables, chosen, (text,), frozenset(variables.by_path()))


def find_class_names(files: Sequence[PathLike]) -> Names | None:
    """The names of the classes of the last of these files that holds a head, or those of each task."""
    for file in reversed(files):
        with open_tensors(file) as source:
            if any(in_head(name) for name in source.names()):
                return read_task_class_names(file) or read_class_names(file)
    return None


def _write_model(
    base: PathLike, deltas: Sequence[str], out: pathlib.Path, opened: OpenedRun, *, rules: PathLike | None, force: bool
) -> AppliedDelta:
    """Loads a base and deltas into the run's model, and writes all of it."""
    from engine.models.keras.weights_file import save_model_file, save_weights_file

    known = [suffix for kind in ("npz", "HDF5", "keras") for suffix in _SUFFIXES[kind]]
    if not out.name.endswith(tuple(known)):
        raise InputError(f"out={out}: expected a name that ends in {join_words(known)}")
    file = opened.config.model.partition(":")[2].split(",")[0] if opened.config.model.startswith("file:") else None
    network, text = _load_model(base, deltas, opened, rules=rules, force=force, file=file)
    variables = name_variables(network)
    held = {path for delta in deltas for path in read_held(delta)}
    if out.name.endswith(".keras"):
        whole = base if str(base).endswith(".keras") else file
        save_model_file(network if whole is None else _with_activation(whole, network, variables), out)
    elif out.name.endswith(".npz"):
        write_npz(out, ((e.path, e.variable.numpy()) for e in variables), texts=as_texts(opened.data.output_names))
    else:
        save_weights_file(network, out)
    changed = tuple(entry.path for entry in variables if entry.path in held)
    return AppliedDelta(out=out, texts=(text,), tensors=len(variables), changed=changed)


def _load_model(
    base: PathLike,
    deltas: Sequence[str],
    opened: OpenedRun,
    *,
    rules: PathLike | None,
    force: bool,
    file: str | None,
) -> tuple[Any, str]:
    """The run's model with a base and deltas, adapters merged, and a text that says so.

    ``file`` is the Keras file that the model came from.
    """
    given: Any = {"rules": rules or opened.config.rules, "image_shape": opened.image_shape, "force_base": force}
    model = build_run_model(opened.config, opened.data, opened.numbers)
    own = file is not None and os.path.exists(base) and os.path.samefile(base, file)  # then it has been loaded with it
    loaded = load_as_it_is(model, "+".join(["auto" if own else str(base), *deltas]), **given)
    if model.adapters is None:
        return model.network, loaded.text
    plain = build_run_model(
        dataclasses.replace(opened.config, adapt=None, train=None, phase=()), opened.data, opened.numbers
    )
    changed = merge_into(model.network, plain.network)
    return plain.network, f"{loaded.text}; adapters merged into {len(changed)} variables"


@dataclass(frozen=True, kw_only=True, eq=False)
class WholeWeights:
    """A base with what runs trained, in memory.

    Attributes:
        variables: all variables of the model, with their values.
        texts: a line for the base and for each delta, for people.
        network: the run's model; None if there is no run directory.
        opened: the run, or None.
    """

    variables: ModelVariables
    texts: tuple[str, ...]
    network: Any = None
    opened: OpenedRun | None = None


def open_whole(
    base: PathLike,
    deltas: Sequence[str],
    *,
    rules: PathLike | None = None,
    run: PathLike | None = None,
    force_base: bool = False,
) -> WholeWeights:
    """Puts deltas onto a base, as ``apply_delta`` does, to be written under other names.

    The model is built if the run directory is there; otherwise the deltas say which variables there are. Raises InputError as
    ``apply_delta``.
    """
    folder = pathlib.Path(run) if run is not None else pathlib.Path(deltas[-1]).parent
    if run is None and read_flags(folder) is None:
        if base in WORDS:
            raise InputError(
                f"base={base}: there is no run in {folder}; --run says where it is, or give the base as a file"
            )
        with open_tensors(base) as source:
            merged = merge(source, deltas, rules=rules, force=force_base)
        return WholeWeights(variables=merged.variables, texts=merged.texts)
    opened = open_run(folder)
    shipped = opened.model.shipped_weights if base == "auto" else None
    file = opened.config.model.partition(":")[2].split(",")[0] if opened.config.model.startswith("file:") else None
    network, text = _load_model(shipped or base, deltas, opened, rules=rules, force=force_base, file=file)
    return WholeWeights(variables=name_variables(network), texts=(text,), network=network, opened=opened)


def read_held(delta: PathLike) -> list[str]:
    """The paths of the variables that a delta holds."""
    with Npz(delta) as npz:
        return npz.names()


def _with_activation(file: PathLike, network: Any, variables: ModelVariables) -> Any:
    """The model in a file, which may end in the activation that training left out, with a network's values.

    The network itself, if it has another head than the file.
    """
    from engine.models.keras.safe_loading import load_model

    whole = load_model(os.fspath(file), "base")
    entries, values = list(name_variables(whole)), variables.by_path()
    if {entry.path: entry.shape for entry in entries} != {path: entry.shape for path, entry in values.items()}:
        return network
    for entry in entries:
        entry.variable.assign(values[entry.path].variable)
    name_variables(whole).refresh()
    return whole
