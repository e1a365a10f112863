"""Puts deltas onto the weights that a model has, each if these are its base, and matches the classes of its head."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.files import FileError, Npz
from engine.models.adapters.attach import attach_requested
from engine.models.head_classes import HeadClasses, compare_classes
from engine.models.spec import Model
from engine.porting.deltas import adapters
from engine.porting.deltas.chain import Chain
from engine.porting.deltas.onto import Stack
from engine.porting.errors import PortError
from engine.selection.variables import NamedVariable, name_variables
from engine.text import join_some


@dataclass(frozen=True)
class PutDeltas:
    """What ``put_deltas`` did: a text for each delta, the classes of the last head, and the file that it came from."""

    texts: tuple[str, ...]
    classes: HeadClasses | None
    head_from: str | None


def list_head(model: Model) -> list[NamedVariable]:
    """The variables of a model's head."""
    return [entry for entry in name_variables(model.network) if "head" in entry.groups]


def put_deltas(
    model: Model,
    chain: Chain,
    head: Mapping[str, np.ndarray],
    *,
    classes: Sequence[str] | None,
    image_shape: tuple[int, ...] | None,
    force: bool,
) -> PutDeltas:
    """Puts the deltas of a chain onto the weights that a model has, in their order.

    Args:
        head: the values of the variables of the head before the base was loaded. From these the outputs start of which a
            delta holds other classes, as they do where whole weights hold them.
        classes: the names of the data's classes, with which the head is matched; None takes it as it is.
        force: whether a delta is put also onto weights that it does not belong to; the text says so.

    Raises:
        PortError: a file is not a delta, is damaged, or does not belong to the weights before it.
    """
    stack = Stack(name_variables(model.network), [chain.base], grid=_grid_of(model), force=force)
    texts: list[str] = []
    found: HeadClasses | None = None
    head_from: str | None = None
    for text in chain.deltas:
        path, matched = pathlib.Path(text), list[HeadClasses]()
        if _needs_adapters(model, path) and attach_requested(model):
            stack.variables = name_variables(model.network)

        def view(npz: Npz, path: pathlib.Path = path, matched: list[HeadClasses] = matched) -> Any:
            for entry in stack.variables:
                if entry.path in head and entry.path in npz.names():
                    entry.variable.assign(head[entry.path])
            if classes is None or image_shape is None:
                return npz, ()
            matched.append(compare_classes(model, path, classes, image_shape=image_shape, own_rules=False))
            return matched[0].view(npz), () if matched[0].match is None else matched[0].initial.keys()

        ledger, forced = stack.put(path, view)
        text_of = f"then {path}, {len(ledger.loaded)} of {len(stack.variables)} variables{forced}"
        if ledger.fresh:
            text_of += f"; fresh: {join_some([f'{name} ({why})' for name, why in ledger.fresh.items()], most=2)}"
        said = matched[0].describe(model, path, ledger) if matched else ""
        texts.append(f"{text_of}; {said}" if said else text_of)
        if {loaded.target for loaded in ledger.loaded} & set(head):
            found, head_from = (matched[0] if matched else None), text
    return PutDeltas(tuple(texts), found, head_from)


def _needs_adapters(model: Model, path: pathlib.Path) -> bool:
    """Whether a delta belongs to a model with adapters; PortError, with the way out, if there are to be none."""
    try:
        found = adapters.read_at(path)
    except FileError as error:
        raise error if isinstance(error, PortError) else PortError(str(error)) from None
    if found is None:
        return False
    if model.adapters is None:
        raise PortError(f"{path}: it belongs to a model with adapters; give --adapt={found.text!r}")
    return True


def _grid_of(model: Model) -> tuple[int, int] | None:
    grid = getattr(model.network, "grid", None)
    return grid if isinstance(grid, tuple) and len(grid) == 2 else None
