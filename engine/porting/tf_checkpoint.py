"""Strictly restores a ``tf.train.Checkpoint`` (object-based, as TF2 writes it) into a model.

TensorFlow matches by attribute names and says little when something is left over. Here every variable
of the model must meet a value of the checkpoint and the reverse; otherwise the error names both sides.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from engine.files import PathLike
from engine.porting.both_sides import Differences
from engine.porting.errors import PortError
from engine.selection.variables import name_variables

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
    reader, nodes = _open(str(prefix))
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
    _check(str(prefix), reader, targets, found, skip)
    try:
        for key in found.values():  # a first pass, so that a damaged file does not change the model
            reader.get_tensor(key)
        for path, key in found.items():
            targets[path].assign(reader.get_tensor(key))
    except (tf.errors.OpError, IndexError, RuntimeError) as error:
        raise PortError(f"{prefix}: the checkpoint is damaged at {key}: {' '.join(str(error).split())[:200]}") from None
    variables.refresh()
    return tuple(path for path in targets if path in found)


def _open(prefix: str) -> tuple[Any, Any]:
    """Returns a reader and the nodes of the saved object graph."""
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    try:
        reader = tf.train.load_checkpoint(prefix)
        graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(
            reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
        )
    except Exception as error:  # depending on the damage: OpError, ValueError, RuntimeError, IndexError, DecodeError
        text = " ".join(str(error).split())
        if "_CHECKPOINTABLE_OBJECT_GRAPH" in text:
            raise PortError(
                f"{prefix}: this checkpoint is name-based (tf.compat.v1.train.Saver), without the object graph that "
                "tf.train.Checkpoint writes; port it with rules (frostline port-checkpoint)"
            ) from None
        raise PortError(f"{prefix}: no checkpoint can be read: {text[:300]}") from None
    return reader, graph.nodes


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


def _check(prefix: str, reader: Any, targets: dict[str, Any], found: dict[str, str], skip: Sequence[str]) -> None:
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    wrong = []
    for path, key in found.items():
        ours, theirs = targets[path], (list(shapes[key]), dtypes[key].name)
        if (list(ours.shape), ours.dtype.name) != theirs:
            wrong.append(
                f"{path}: {list(ours.shape)} {ours.dtype.name} in the model, {theirs[0]} {theirs[1]} in the file"
            )
    taken = {*found.values(), "save_counter" + _VALUE}
    left = [key.removesuffix(_VALUE) for key in sorted(shapes) if key.endswith(_VALUE) and key not in taken]
    difference = Differences(
        missing=tuple(f"{path} {list(targets[path].shape)}" for path in targets if path not in found),
        unused=tuple(
            f"{name} {list(shapes[name + _VALUE])}" for name in left if not any(re.fullmatch(s, name) for s in skip)
        ),
        wrong=tuple(wrong),
    )
    if difference:
        raise PortError(f"{prefix}: the checkpoint does not fit the model{difference}")
