"""Which variables of a model's head have an entry for each class, and what a file's classes mean for them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from engine.data.class_names import read_class_names, same_names
from engine.files import FileError, PathLike
from engine.models.spec import Model
from engine.porting.class_order import WAY_OUT, ClassMatch, InClassOrder, match_classes
from engine.porting.errors import PortError
from engine.porting.ledger import Ledger
from engine.porting.readers.source import TensorSource, open_tensors
from engine.reading import read_json
from engine.selection.variables import NamedVariable, name_variables
from engine.text import join_words
from engine.training.losses import accepted_keywords

_LARGEST = 1 << 20  # bytes of a config


@dataclass(frozen=True, eq=False)
class HeadClasses:
    """The classes of a model's head while weights are loaded into it.

    Attributes:
        wanted: the names of the data's classes; empty if they have none.
        given: those of the file's classes; None if it has none.
        match: how the two go together; None where the head is taken as it is, or not at all.
        initial: the values of the head's variables with an entry for each class before the load, by path.
    """

    wanted: tuple[str, ...]
    given: tuple[str, ...] | None
    match: ClassMatch | None
    initial: Mapping[str, np.ndarray]

    def view(self, source: TensorSource) -> TensorSource:
        """The file with its head in the order of the data's classes."""
        return source if self.match is None else InClassOrder(source, self.match, self.initial)

    def describe(self, model: Model, file: PathLike, ledger: Ledger | None) -> str:
        """What was done with the classes, after the load; "" if there is nothing to say.

        Raises PortError if rules of the user's own loaded a head with other classes.
        """
        if self.match is not None:
            return self.match.text
        if ledger is not None:
            loaded = {entry.target for entry in ledger.loaded} & set(self.initial)
        else:
            now = name_variables(model.network).by_path()
            loaded = {path for path, value in self.initial.items() if (now[path].variable.numpy() != value).any()}
        if not loaded:
            return ""
        if self.given is None:
            names = f" for {join_words(self.wanted)}, in this order" if self.wanted else " as it is"
            return f"the file does not name its classes, so its head is taken{names}"
        if not self.wanted:
            return f"the data do not name their classes, so the head for {join_words(self.given)} is taken as it is"
        if not same_names(self.given, self.wanted):
            raise PortError(
                f"{file}: its head is for {join_words(self.given)}, the data have {join_words(self.wanted)}; with rules of "
                "your own the two cannot be matched by name, so add the line `fresh head/.*`, which starts the head anew"
            )
        return ""


def compare_classes(
    model: Model,
    file: PathLike,
    wanted: Sequence[str],
    *,
    image_shape: tuple[int, ...],
    own_rules: bool,
) -> HeadClasses:
    """Compares the classes in a weights file with those of the data, before the file is loaded into the model.

    With ``own_rules``, names in the file are not the model's, so nothing can be matched. Raises PortError if the file
    is damaged, or the classes cannot be matched.
    """
    entries = [
        entry
        for entry in name_variables(model.network)
        if "head" in entry.groups and tuple(entry.variable.shape)[-1:] == (model.outputs,)
    ]
    initial = {entry.path: entry.variable.numpy() for entry in entries}
    try:
        given = read_class_names(file)
        if given is None or not wanted or own_rules:
            return HeadClasses(tuple(wanted), given, None, initial)
        with open_tensors(file) as source:
            held = {name: source.shape(name) for name in source.names()}
    except FileError as error:
        raise PortError(str(error)) from None
    known = [each for each in entries if each.path in held and held[each.path][:-1] == tuple(each.variable.shape)[:-1]]
    if not known:
        return HeadClasses(tuple(wanted), given, None, initial)
    count = held[known[-1].path][-1]
    match = match_classes(pathlib.Path(file), given, wanted, outputs=(count, model.outputs))
    if match is not None and len(known) < sum(entry.path in held for entry in entries):
        match = ClassMatch((), 1, "the head starts anew, since it is for other classes and has other shapes")
    elif match is not None:
        last = [entry for entry in known if _parent(entry) == _parent(known[-1])]
        alike = [entry for entry in known if held[entry.path][-1] == count]
        found = next((some for some in (last, alike) if decide_outputs(model, some, image_shape)), None)
        if found is None:
            raise PortError(
                f"{file}: its head is for {join_words(given)}, the data have {join_words(wanted)}, but it cannot be told "
                f"which weights of the head belong to which class{WAY_OUT}"
            )
        initial = {entry.path: initial[entry.path] for entry in found}
    return HeadClasses(tuple(wanted), given, match, initial)


def compare_own_classes(model: Model, wanted: Sequence[str]) -> str:
    """What is said of the classes of a head that came with the model's own file; "" if there is nothing to say.

    Raises PortError if the file names other classes than the data have, or has them in another order.
    """
    if model.own_file is None:
        return ""
    given = _read_own_names(pathlib.Path(model.own_file))
    name = pathlib.Path(model.own_file).name
    if given is None:
        names = (
            f"for {join_words(wanted)}, in this order; whether it is the file's cannot be checked"
            if wanted
            else "as it is"
        )
        return f"{name} does not name its classes, so its own head is taken {names}"
    if wanted and not same_names(given, wanted):
        raise PortError(
            f"model={model.name!r}: its head is for {join_words(given)}, the data have {join_words(wanted)}; "
            f"{'without head=own it starts anew' if model.own_file.endswith('.json') else '--head=gap gives it a new head'}"
        )
    return (
        "" if wanted else f"the data do not name their classes, so the head for {join_words(given)} is taken as it is"
    )


def _read_own_names(file: pathlib.Path) -> tuple[str, ...] | None:
    """The names of the classes of the model's own file; of a folder of an encoder, those in its config."""
    if file.suffix != ".json":
        return read_class_names(file)
    found = read_json(file, _LARGEST)
    named = found.get("id2label") if isinstance(found, dict) else None
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        return None
    names = tuple(named.get(str(number), "") for number in range(len(named)))
    return None if names == tuple(f"LABEL_{number}" for number in range(len(names))) else names


def decide_outputs(model: Model, entries: Sequence[NamedVariable], image_shape: tuple[int, ...]) -> bool:
    """Whether the outputs follow the last axis of these variables: with it reversed, they come in reverse.

    The variables have their values again afterwards.
    """
    rng, before = np.random.default_rng(0), [entry.variable.numpy() for entry in entries]
    if model.draw_inputs is not None:
        inputs = model.draw_inputs(rng)
    else:
        inputs = model.normalise(tf.constant(rng.random((2, *image_shape)), tf.float32))
    given = {"training": False} if "training" in accepted_keywords(model.network) else {}
    values = [rng.standard_normal(value.shape) for value in before]
    found = []
    try:
        for step in (1, -1):
            for entry, value in zip(entries, values, strict=True):
                entry.variable.assign(
                    (value[..., ::step] * (step if value.shape[-1] == 1 else 1)).astype(
                        entry.variable.dtype.as_numpy_dtype
                    )
                )
            found.append(np.asarray(model.network(inputs, **given), np.float64))
    finally:
        for entry, value in zip(entries, before, strict=True):
            entry.variable.assign(value)
    one, other = found
    wanted = -one if one.shape[-1] == 1 else one[..., ::-1]
    close = np.abs(other - wanted).max() <= 0.02 * np.abs(one).max()
    return bool(close and np.abs(other - one).max() > 0.1 * np.abs(one).max())


def _parent(entry: NamedVariable) -> str:
    return entry.path.rpartition("/")[0]
