"""What a graph says about whole numbers: constants, ranges from 0, and whether two tensors are equal for sure.

Nothing is computed; what cannot be told from the nodes is not known. A tensor that is kept may be fed with any value.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.graphs.draft import Draft, data_inputs
from compat_v1.graphs.endpoints import dtype_of, producer

_DEEPEST, _WIDEST = 6, 4  # nodes in a row that are compared, and inputs of each
_MOST = 4096  # numbers in a constant that is looked at


def constant_of(draft: Draft, tensor: str) -> np.ndarray | None:
    """Returns the value of a small constant of whole numbers, or of one of its numbers; None for anything else."""
    tensor = draft.follow_identities(draft.nodes, tensor)
    node = draft.nodes.get(producer(tensor))
    if node is None or tensor in draft.keep:
        return None
    if node.op == "StridedSlice":
        return _entry(draft, node)
    if node.op != "Const":
        return None
    proto = node.attr["value"].tensor
    dims = [dim.size for dim in proto.tensor_shape.dim]
    if min(dims, default=0) < 0 or math.prod(dims) > _MOST or not dtype_of(proto.dtype).is_integer:
        return None
    try:
        return tf.make_ndarray(proto)
    except (ValueError, TypeError):  # safety.check_graph says what is wrong with it
        return None


def _entry(draft: Draft, node: Any) -> np.ndarray | None:
    """Returns the value of ``constant[i]``, as the length of an axis is written."""
    data = data_inputs(node)
    sources = [draft.nodes.get(producer(draft.follow_identities(draft.nodes, text))) for text in data]
    if any(source is None or source.op != "Const" for source in sources):
        return None
    whole, begin, _, strides = (constant_of(draft, text) for text in data)
    masks = [node.attr[name].i for name in ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask")]
    single = node.attr["shrink_axis_mask"].i == 1 and not any(masks)
    if whole is None or begin is None or strides is None or not single or whole.ndim != 1 or begin.shape != (1,):
        return None
    return whole[begin[0]] if -len(whole) <= begin[0] < len(whole) and strides.shape == (1,) else None


def is_number(draft: Draft, tensor: str, number: int) -> bool:
    """Whether a tensor is this one number."""
    value = constant_of(draft, tensor)
    return value is not None and value.ndim == 0 and int(value) == number


def range_end(draft: Draft, tensor: str) -> str | int | None:
    """Returns the end of the whole numbers from 0 that a tensor holds, as a tensor or a number; None if it may not."""
    tensor = draft.follow_identities(draft.nodes, tensor)
    value = constant_of(draft, tensor)
    if value is not None:
        return len(value) if value.ndim == 1 and np.array_equal(value, np.arange(len(value))) else None
    node = draft.nodes.get(producer(tensor))
    if node is None or node.op != "Range" or tensor in draft.keep:
        return None
    start, end, step = data_inputs(node)
    return end if is_number(draft, start, 0) and is_number(draft, step, 1) else None


def are_equal(draft: Draft, first: str | int, second: str | int, *, depth: int = _DEEPEST) -> bool:
    """Whether two tensors or numbers are equal whatever is fed: the same nodes compute them from the same tensors."""
    if isinstance(first, int) or isinstance(second, int):
        if isinstance(first, int) and isinstance(second, int):
            return first == second
        number, tensor = (first, str(second)) if isinstance(first, int) else (second, first)
        return is_number(draft, tensor, int(number))
    first, second = (draft.follow_identities(draft.nodes, each) for each in (first, second))
    if first == second:
        return True
    value, other_value = constant_of(draft, first), constant_of(draft, second)
    if value is not None and other_value is not None:
        return np.array_equal(value, other_value)
    one, other = draft.nodes.get(producer(first)), draft.nodes.get(producer(second))
    if not depth or one is None or other is None or not draft.keep.isdisjoint([first, second]):
        return False
    inputs, others = data_inputs(one), data_inputs(other)
    return (
        one.op == other.op
        and first.rpartition(":")[2] == second.rpartition(":")[2]
        and one.attr == other.attr
        and len(inputs) == len(others) <= _WIDEST
        and not draft.is_stateful(one)
        and one.op not in ("Enter", "Merge", "Placeholder", "Switch")
        and all(are_equal(draft, a, b, depth=depth - 1) for a, b in zip(inputs, others, strict=True))
    )
