"""Reads the arguments and results of a function in a SavedModel: a nested structure of tensors and plain values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Spec:
    """A tensor in a structure. The shape is None for an unknown rank, and has None for unknown lengths."""

    name: str
    dtype: tf.DType
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Other:
    """A part of a structure that is not read, such as a ragged tensor; ``what`` names it for messages."""

    what: str


def flatten(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The leaves of a StructuredValue with their paths, in the order in which functions take them (``tf.nest.flatten``).

    A leaf is a Spec, a plain value or an Other.
    """
    kind = value.WhichOneof("kind")
    if kind in ("list_value", "tuple_value"):
        for number, each in enumerate(getattr(value, kind).values):
            yield from flatten(each, (*path, number))
    elif kind == "dict_value":
        for key in sorted(value.dict_value.fields):
            yield from flatten(value.dict_value.fields[key], (*path, key))
    elif kind == "named_tuple_value":
        for pair in value.named_tuple_value.values:
            yield from flatten(pair.value, (*path, pair.key))
    else:
        yield path, _read_leaf(value, kind)


def _read_leaf(value: Any, kind: str | None) -> Any:
    if kind in ("tensor_spec_value", "bounded_tensor_spec_value"):
        found = getattr(value, kind)
        try:
            return Spec(found.name, tf.as_dtype(found.dtype), read_shape(found.shape))
        except TypeError:
            return Other(f"a tensor of the unknown dtype {found.dtype}")
    if kind in ("bool_value", "int64_value", "float64_value", "string_value"):
        return getattr(value, kind)
    if kind in ("none_value", None):
        return None
    if kind == "type_spec_value":
        return Other(value.type_spec_value.type_spec_class_name or "a composite tensor")
    return Other(kind.removesuffix("_value"))


def read_shape(shape: Any) -> tuple[int | None, ...] | None:
    """A TensorShapeProto as a tuple, with None for unknown lengths; None for an unknown rank."""
    if shape.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else int(dim.size) for dim in shape.dim)


def argument_names(spec: Any) -> list[str]:
    """The names of the positional arguments in a FunctionSpec, without "self"."""
    leaves = dict(flatten(spec.fullargspec))
    names = [leaf for path, leaf in leaves.items() if path[:1] == ("args",) and isinstance(leaf, str)]
    return names[1:] if names[:1] == ["self"] else names
