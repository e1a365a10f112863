"""Writes changed weights back into a frozen graph."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from google.protobuf import text_format  # type: ignore[import-untyped]

from engine.errors import InputError
from engine.files import PathLike, write_bytes
from engine.porting.errors import PortError
from engine.porting.frozen.rewrite import make_constant, replace_weights
from engine.porting.frozen.stored import Stored
from engine.porting.readers.frozen_file import FrozenFile
from engine.porting.readers.graph_file import LARGEST

SUFFIXES = (".pb", ".pbtxt")


class Values(Protocol):
    """New values by name; a part of TensorSource (engine.porting.readers.source)."""

    def names(self) -> list[str]: ...

    def read(self, name: str) -> np.ndarray: ...


@dataclass(frozen=True)
class WrittenGraph:
    """What was written: the file, the weights that changed, and those of them that are stored in more bits than before."""

    file: str
    changed: tuple[str, ...]
    widened: tuple[str, ...]


def check_frozen_target(path: PathLike, source: FrozenFile) -> None:
    """Raises InputError unless the graph of a file can be written to a path."""
    if pathlib.Path(path).suffix not in SUFFIXES:
        raise InputError(f"out={path}: expected a name that ends in .pb or .pbtxt for a frozen graph")
    if not source.bare:
        raise InputError(
            f"base={source.path}: only a bare GraphDef is written back, and this file holds more than one; its weights can "
            "be written to a checkpoint (the prefix of one as --out)"
        )
    if pathlib.Path(path).resolve() == source.path.resolve():
        raise InputError(f"out={path}: it is the base itself; choose another name")


def write_frozen(path: PathLike, source: FrozenFile, values: Values) -> WrittenGraph:
    """Writes a frozen graph with new values for some of its weights, atomically.

    A weight whose bits did not change, and all else in the graph, stays as it is. A weight that is stored in fewer bits than it
    is computed with is stored as the new value itself, unless the fewer bits hold it exactly.

    Raises:
        PortError: a value has another shape or dtype than the weight, which a graph cannot change, or the graph would be larger than a file of its
            kind may be. Nothing is written then.
    """
    check_frozen_target(path, source)
    changed: dict[str, np.ndarray] = {}
    for name in values.names():
        new, old = np.asarray(values.read(name)), source.read(name)
        if new.shape != old.shape or new.dtype != old.dtype:
            raise PortError(
                f"{source.path}: {name} is {list(old.shape)} {old.dtype.name} in the graph, and the new value is "
                f"{list(new.shape)} {new.dtype.name}; the operations of a graph are made for one shape"
            )
        if new.tobytes() != old.tobytes():
            changed[name] = new
    exact = {name for name in changed if _fits(source.found.stored[name], changed[name])}
    made = source.definition
    if changed:
        wide = [source.found.stored[name] for name in changed if name not in exact]
        made = replace_weights(made, wide, lambda stored: make_constant(stored, changed[stored.node.name]))
        _replace_values(made, {name: _narrow(source.found.stored[name], changed[name]) for name in exact})
    text = pathlib.Path(path).suffix == ".pbtxt"
    if not text and made.ByteSize() > LARGEST:
        raise PortError(f"out={path}: the graph takes {made.ByteSize():,} bytes; at most {LARGEST:,} are possible")
    content = text_format.MessageToString(made).encode() if text else made.SerializeToString(deterministic=True)
    write_bytes(path, content)
    widened = [name for name in changed if name not in exact and source.found.stored[name].text]
    return WrittenGraph(str(path), tuple(changed), tuple(widened))


def describe_written(written: WrittenGraph) -> Sequence[str]:
    """Lines for people."""
    lines = [f"changed: {len(written.changed)} weights"]
    if written.widened:
        lines.append(
            f"widened: {len(written.widened)} of them, such as {written.widened[0]}, are stored as they are now, since fewer bits "
            "would round them"
        )
    return lines


def _fits(stored: Stored, value: np.ndarray) -> bool:
    """Whether a new value can be kept as the old one is."""
    if stored.node is not stored.constant:
        return False
    return bool((_narrow(stored, value).astype(value.dtype) == value).all()) if stored.casts else True


def _narrow(stored: Stored, value: np.ndarray) -> np.ndarray:
    kind = tf.as_dtype(stored.node.definition.attr["dtype"].type).as_numpy_dtype
    with np.errstate(over="ignore"):
        return value.astype(kind, copy=False)


def _replace_values(definition: Any, values: dict[str, np.ndarray]) -> None:
    """Gives constants new values of the same dtype; nothing else of their nodes changes."""
    for node in definition.node:
        if node.name in values:
            value = values[node.name]
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, shape=value.shape))
