"""How a weight of a frozen graph is kept: as it is, in fewer bits with a cast, or quantised.

What is computed from the stored numbers before the network reads them is computed once, by the same operations of
TensorFlow, so that the weight has the very values that the frozen graph computes with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine.graphs.constants import measure_constant, read_constant, shape_of_constant
from engine.graphs.nodes import Node, Tensor
from engine.porting.frozen.constant_graph import ConstantGraph

_WAYS = frozenset(["Identity", "Enter", "StopGradient", "Snapshot", "Switch", "PreventGradient", "GuaranteeConst"])
_ARITHMETIC = {"Add": np.add, "AddV2": np.add, "Sub": np.subtract, "Mul": np.multiply, "RealDiv": np.divide}
_QUANTISED = {"quint8": np.uint8, "qint8": np.int8, "quint16": np.uint16, "qint16": np.int16, "qint32": np.int32}
_FLOATS = ("float32", "float64", "float16", "bfloat16")
_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32")


@dataclass(frozen=True, eq=False)
class Stored:
    """Where the values of a weight are in the graph.

    Attributes:
        node: the node that has the weight's value, and whose name it has.
        constant: the constant that holds the stored numbers: the node itself, or one before it.
        shape, dtype: of the weight.
        casts: nodes behind a constant that is kept in fewer bits: those that pass it on, and the casts themselves.
        text: how it is stored, "" for a constant that is the weight.
    """

    node: Node
    constant: Node
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    casts: tuple[Node, ...] = ()
    text: str = ""

    def read(self) -> np.ndarray:
        """Computes the weight; raises ValueError if the graph contradicts itself."""
        value = _compute(self.node)
        if value.shape != self.shape:
            raise ValueError(f"a constant of shape {list(value.shape)}, expected {list(self.shape)}")
        return value.astype(self.dtype) if self.casts else value


def find_stored(graph: ConstantGraph, leaf: Node) -> Stored | None:
    """How a constant would be a weight; None if it holds neither numbers nor quantised ones.

    Raises ValueError if the constant is damaged.
    """
    declared, value = leaf.attr("dtype"), leaf.attr("value")
    if declared is None or value is None or declared.type != value.tensor.dtype:
        raise ValueError("a constant without a value of its dtype")
    proto = value.tensor
    _, problem = measure_constant(proto)
    if problem:
        raise ValueError(problem)
    kind, shape = tf.as_dtype(proto.dtype), shape_of_constant(proto)
    if kind.name in _FLOATS:
        casts = _find_casts(graph, leaf) if kind.name in ("float16", "bfloat16") else ()
        wide = tf.as_dtype(casts[-1].attr("DstT").type) if casts else kind
        text = f"kept as {kind.name}, which the graph casts to {wide.name}" if casts else ""
        return Stored(leaf, leaf, shape, np.dtype(wide.as_numpy_dtype), casts, text)
    if kind.name in _QUANTISED or (kind.name in _INTEGERS and math.prod(shape) > 1):
        return _find_dequantised(graph, leaf, shape, kind.name)
    return None


def _find_casts(graph: ConstantGraph, leaf: Node) -> tuple[Node, ...]:
    """What passes a constant on and casts it to one wider type; () if anything reads it as it is. A cast comes last."""
    passed, casts, pending = dict[Node, None](), dict[Node, None](), [leaf]
    while pending:
        for reader in graph.readers(pending.pop()):
            if reader.op == "Cast":
                casts[reader] = None
            elif reader.op in _WAYS and reader not in graph.varying and reader.definition is not None:
                if reader not in passed:
                    passed[reader] = None
                    pending.append(reader)
            else:
                return ()
    widths = {_name_type(each, "DstT") for each in casts}
    inside = [node for node in (*passed, *casts) if ":" in node.name]
    if len(widths) != 1 or inside or not widths <= {"float32", "float64"}:
        return ()
    return (*passed, *casts)


def _find_dequantised(graph: ConstantGraph, leaf: Node, shape: tuple[int, ...], kind: str) -> Stored | None:
    """The node where a chain of known operations turns stored integers into a weight."""
    node, first = leaf, None
    for _ in range(16):
        readers = [reader for reader in graph.readers(node) if reader not in graph.varying]
        if len(readers) != 1 or len(graph.readers(node)) != 1:
            break
        (after,) = readers
        if after.op in _WAYS and first is None:
            node = after
            continue
        if first is None and not (
            (after.op == "Dequantize" and after.inputs[0].node is node)
            or (after.op == "Cast" and _name_type(after, "DstT") in _FLOATS)
        ):
            break
        if first is not None and not (after.op in _ARITHMETIC and _has_constant_beside(graph, after, node)):
            break
        node, first = after, first or after
    if first is None or ":" in node.name:
        return None
    dtype = _float_type(first)
    if dtype is None:
        return None
    how = "Dequantize" if first.op == "Dequantize" else f"a cast{' and arithmetic' if node is not first else ''}"
    return Stored(node, leaf, shape, np.dtype(dtype), (), f"kept as {kind}, made {np.dtype(dtype).name} by {how}")


def _has_constant_beside(graph: ConstantGraph, node: Node, chain: Node) -> bool:
    """Whether the other operand is a constant no larger than the chain's: a zero point or a scale."""
    others = [tensor for tensor in node.inputs if tensor.node is not chain]
    return len(others) == 1 and _origin_constant(others[0]) is not None


def _origin_constant(tensor: Tensor) -> Node | None:
    node = tensor.node
    for _ in range(16):
        if node.op == "Const":
            return node
        if node.op not in (*_WAYS, "Cast", "Reshape", "ExpandDims") or not node.inputs:
            return None
        node = node.inputs[0].node
    return None


def _float_type(node: Node) -> Any:
    """The floating-point type that a Cast or a Dequantize makes, as numpy calls it; None for any other."""
    kind = _type_of(node, "dtype" if node.op == "Dequantize" else "DstT")
    if kind is None and node.op == "Dequantize" and node.attr("dtype") is None:
        kind = tf.float32  # graphs from before the attribute existed
    return kind.as_numpy_dtype if kind is not None and kind.name in _FLOATS else None


def _type_of(node: Node, name: str) -> tf.DType | None:
    """The dtype in an attribute; None if there is none, or no such dtype."""
    value = node.attr(name)
    try:
        return None if value is None else tf.as_dtype(value.type)
    except TypeError:
        return None


def _name_type(node: Node, name: str) -> str:
    kind = _type_of(node, name)
    return "" if kind is None else kind.name


def _compute(node: Node) -> np.ndarray:
    """The value of a node of a chain, by a few known operations."""
    if node.op == "Const":
        return read_constant(node.definition.attr["value"].tensor)
    values = [_compute(tensor.node) for tensor in node.inputs[: 1 if node.op in _WAYS else None]]
    if node.op in _WAYS:
        return values[0]
    if node.op == "Cast" and (kind := _type_of(node, "DstT")) is not None:
        return values[0].astype(kind.as_numpy_dtype)
    if node.op in _ARITHMETIC:
        return np.asarray(_ARITHMETIC[node.op](*values), dtype=np.result_type(*values))
    if node.op in ("Reshape", "ExpandDims"):
        return values[0].reshape(values[1].tolist()) if node.op == "Reshape" else np.expand_dims(*values)
    if node.op == "Dequantize":
        return _dequantise(node, values)
    raise ValueError(f"{node.name} ({node.op}) cannot be computed beforehand")


def _dequantise(node: Node, values: Sequence[np.ndarray]) -> np.ndarray:
    kind = _type_of(node, "T")
    mode, narrow, axis = (node.attr(name) for name in ("mode", "narrow_range", "axis"))
    if kind is None or len(values) != 3:
        raise ValueError(f"{node.name}: its stored numbers cannot be dequantised")
    try:
        with tf.device("CPU:0"):
            made = tf.raw_ops.Dequantize(
                input=tf.bitcast(tf.constant(values[0]), kind),
                min_range=tf.constant(values[1]),
                max_range=tf.constant(values[2]),
                mode="MIN_COMBINED" if mode is None else mode.s.decode(errors="replace"),
                narrow_range=narrow is not None and narrow.b,
                axis=-1 if axis is None else axis.i,
                dtype=tf.as_dtype(_float_type(node)),
            )
        return np.asarray(made.numpy())
    except (ValueError, TypeError, IndexError, tf.errors.OpError) as error:
        raise ValueError(f"{node.name}: its stored numbers cannot be dequantised ({str(error)[:120]})") from None


def absorbed(stored: Stored) -> set[Node]:
    """The constants that a dequantised weight is computed from: its integers, zero point and scale."""
    if stored.node is stored.constant:
        return set()
    found, pending = set[Node](), [stored.node]
    while pending:
        node = pending.pop()
        found.add(node)
        pending += [tensor.node for tensor in node.inputs if tensor.node not in found]
    return {node for node in found if node.op == "Const"}
