"""Strictly restores a ``tf.train.Checkpoint`` (object-based, as TF2 writes it) into a model.

TensorFlow matches by attribute names and says little when something is left over. Here every variable
of the model must meet a value of the checkpoint and the reverse; otherwise the error names both sides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from engine.files import FileError, PathLike
from engine.porting.both_sides import Differences
from engine.porting.errors import PortError
from engine.porting.readers.checkpoint_file import Checkpoint, readable_name
from engine.selection.variables import name_variables
from engine.text import compile_pattern

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def restore_strict(
    model: Any, prefix: PathLike, *, root: str | None = None, skip: Sequence[str] = ()
) -> tuple[str, ...]:
    """Restores a model (tf.Module or Keras 3) from a checkpoint of another program, or of a model of equal structure.

    Args:
        prefix: the prefix of the checkpoint's files, without ``.index``.
        root: the keyword under which the model was saved, as in ``Checkpoint(model=...)``; "" for the
            checkpoint's root itself; None takes the one under which most variables match.
        skip: regular expressions; values of the checkpoint whose whole name matches one may be left over, such as
            ``r"optimizer/.*"`` or ``r".*/\\.OPTIMIZER_SLOT/.*"``. The save counter always may be.

    Returns the restored paths, in model order. Raises PortError, and assigns nothing, if there is no such checkpoint,
    it is name-based or damaged, a variable of the model is missing or has another shape or dtype, or a value is left
    over.
    """
    try:
        source = Checkpoint(prefix)
        nodes = source.object_graph()
    except FileError as error:
        raise PortError(str(error)) from None
    if not nodes:
        raise PortError(
            f"{prefix}: this checkpoint is name-based (tf.compat.v1.train.Saver), without the object graph that "
            "tf.train.Checkpoint writes; port it with rules (frostline port-checkpoint)"
        )
    variables = name_variables(model)
    # TensorFlow does not track the seed generators of Keras' dropout layers, so no such checkpoint has them
    names = {id(entry.variable): entry.path for entry in variables}
    targets = {entry.path: entry.variable for entry in variables}
    starts = {"": 0} | {child.local_name: child.node_id for child in nodes[0].children}
    if root is not None and root not in starts:
        raise PortError(
            f"root={root!r}: the checkpoint {prefix} has no such root; it has {', '.join(repr(name) for name in starts)}"
        )
    found = max((_match(model, nodes, starts[name], names) for name in starts if root in (None, name)), key=len)
    _check(source, targets, found, skip)
    try:
        for key in found.values():  # a first pass, so that a damaged file does not change the model
            source.read(readable_name(key))
        for path, key in found.items():
            targets[path].assign(source.read(readable_name(key)))
    except FileError as error:
        raise PortError(str(error)) from None
    variables.refresh()
    return tuple(path for path in targets if path in found)


def _match(model: Any, nodes: Any, start: int, names: dict[int, str]) -> dict[str, str]:
    """Returns path -> key, walking the model and the saved object graph together by attribute names."""
    view = tf.train.TrackableView(model)
    found: dict[str, str] = {}
    queue, seen = deque([(model, start)]), set()
    while queue:
        obj, number = queue.popleft()
        if (id(obj), number) in seen:
            continue
        seen.add((id(obj), number))
        variable = obj if isinstance(obj, tf.Variable) else getattr(obj, "value", None)
        keys = [a.checkpoint_key for a in nodes[number].attributes if a.checkpoint_key.endswith(_VALUE)]
        if id(variable) in names and keys:
            found.setdefault(names[id(variable)], keys[0])
            continue
        saved = {child.local_name: child.node_id for child in nodes[number].children}
        queue.extend((child, saved[name]) for name, child in view.children(obj).items() if name in saved)
    return found


def _check(source: Checkpoint, targets: dict[str, Any], found: dict[str, str], skip: Sequence[str]) -> None:
    left_out = [compile_pattern(each, name="skip") for each in skip]
    entries = source.entries
    wrong = []
    for path, key in found.items():
        if key not in entries:
            raise PortError(f"{source.path}: the object graph names {key}, which the checkpoint does not have")
        ours, theirs = targets[path], (list(entries[key].shape), entries[key].dtype.name)
        if (list(ours.shape), ours.dtype.name) != theirs:
            wrong.append(
                f"{path}: {list(ours.shape)} {ours.dtype.name} in the model, {theirs[0]} {theirs[1]} in the file"
            )
    taken = {*found.values(), "save_counter" + _VALUE}
    left = [key.removesuffix(_VALUE) for key in sorted(entries) if key.endswith(_VALUE) and key not in taken]
    difference = Differences(
        missing=tuple(f"{path} {list(targets[path].shape)}" for path in targets if path not in found),
        unused=tuple(
            f"{name} {list(entries[name + _VALUE].shape)}"
            for name in left
            if not any(each.fullmatch(name) for each in left_out)
        ),
        wrong=tuple(wrong),
    )
    if difference:
        raise PortError(f"{source.path}: the checkpoint does not fit the model{difference}")
