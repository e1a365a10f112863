"""A base and its deltas as plain variables: what whole weights are written from, without the model itself.

A delta declares every variable of its model: those that it holds, and, with dtype and shape, those that it leaves to its
base (engine.porting.deltas.record). So rules can read the base, and be read backwards, without the program that made the model.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine.files import FileError, Npz, PathLike
from engine.porting.apply import load
from engine.porting.deltas import adapters
from engine.porting.deltas.onto import BaseError, Stack
from engine.porting.deltas.record import read_record
from engine.porting.errors import PortError
from engine.porting.plan import take_names
from engine.porting.readers.frozen_file import FrozenFile
from engine.porting.readers.tensor_source import TensorSource
from engine.porting.rules import detect
from engine.porting.rules.language import Rules
from engine.selection.variables import ModelVariables, name_variables

Declared = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


@dataclass(frozen=True, eq=False)
class Merged:
    """Variables with the values of a base and its deltas.

    Attributes:
        variables: all variables of the model, by the paths that the last delta gives them.
        rules: the rules that read the base.
        texts: a line for the base and for each delta, for people.
        held: the paths that deltas hold; all others are as in the base.
    """

    variables: ModelVariables
    rules: Rules
    texts: tuple[str, ...]
    held: frozenset[str]


def merge(
    base: TensorSource,
    deltas: Sequence[PathLike],
    *,
    rules: Rules | PathLike | None = None,
    grid: tuple[int, int] | None = None,
    force: bool = False,
) -> Merged:
    """Reads a base by rules, and puts deltas onto it in their order.

    Args:
        rules: as in ``engine.porting.load``; None chooses by the names in the base.
        grid: the model's patch grid (rows, columns), where position embeddings are resized and it is not square.
        force: whether a delta is put also onto weights that it does not belong to.

    Raises:
        PortError: the rules do not fit, a file is damaged, or a delta does not belong to the weights before it.
    """
    declared = read_declared(deltas[-1])
    for delta in deltas:
        if (asked := adapters.read_at(delta)) is not None:
            raise PortError(
                f"{delta}: its model has adapters ({asked.text}), which only the model itself can merge: apply-delta does so "
                "for a base that is a weights file, with --run=FOLDER of the run, and so does export"
            )
    if rules is None and isinstance(base, FrozenFile) and declared.keys() <= base.found.stored.keys():
        base.narrow(declared)  # the model was a part of this very graph
    variables = name_variables(
        {path: tf.Variable(tf.zeros(shape, dtype), name="merged") for path, (shape, dtype) in declared.items()}
    )
    chosen = detect.choose_rules(take_names(base, variables), variables) if rules is None else detect.get_rules(rules)
    ledger = load(variables, base, chosen, grid=grid)
    texts, held = [f"{base.path}, {ledger.summary()}"], set[str]()
    stack = Stack(variables, [str(base.path)], grid=grid, force=force)
    for delta in deltas:
        found, forced = stack.put(pathlib.Path(delta))
        texts.append(f"{delta}, {len(found.loaded)} of {len(variables)} variables{forced}")
        held |= {each.target for each in found.loaded}
    if unset := set(ledger.fresh) - held:
        raise PortError(
            f"{base.path}: neither it nor a delta holds {', '.join(sorted(unset)[:5])}, which started anew in the run; "
            "give a base that has them, such as a checkpoint of the run"
        )
    return Merged(variables, chosen, tuple(texts), frozenset(held))


def read_declared(delta: PathLike) -> Declared:
    """The shape and dtype of every variable of the model that a delta belongs to, by path.

    Raises BaseError if the file does not declare them, FileError if it is damaged.
    """
    with Npz(delta) as npz:
        record = read_record(npz)
        if record is None:
            raise BaseError(
                f"{delta}: the file does not say which weights it belongs to, as trained.npz of this version does, so the "
                "variables of its model are unknown"
            )
        declared: Declared = {}
        for path, held in record.variables.items():
            try:
                declared[path] = held.shape, np.dtype(tf.as_dtype(held.dtype).as_numpy_dtype)
            except TypeError:
                raise FileError(f"{delta}: base.json: {path}: {held.dtype!r} is not a dtype") from None
        return declared | {name: (npz.shape(name), npz.dtype(name)) for name in npz.names()}
