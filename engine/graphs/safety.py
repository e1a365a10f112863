"""Checks that an old graph, which is somebody else's program, only computes, before any of it runs.

The check reads the GraphDef alone, including its library functions, since TensorFlow already runs parts of a graph
when it imports it (to infer shapes). A graph that passes consists of allowed operations (engine.graphs.op_allowlist),
names only functions of its own library, without recursion, holds no handle to a resource of this process, and declares
no constant or shape beyond ``MOST_BYTES``. Shapes that are computed from inputs and endless loops cannot be seen
before a run; ``Original.__call__`` (compat_v1.graphs.original) has a time limit for those.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from engine import tensorflow_private
from engine.errors import InputError
from engine.graphs.constants import MOST_BYTES, measure_constant
from engine.graphs.node_editing import producer
from engine.graphs.op_allowlist import FILLS_TABLE, HARMLESS, TABLES, VARIABLES
from engine.graphs.op_kinds import called_functions

_MOST_OPERATIONS = 10_000_000  # with every function call expanded
_DEEPEST = 200  # levels of calls within calls

# Why an operation is refused, by a part of its name; the first match counts.
_REASONS = (
    ("PyFunc PyFuncStateless EagerPyFunc", "it runs Python code"),
    ("Abort Sleep", "it stops the process"),
    ("Print Debug Dump Summary Event", "it writes to files or the console"),
    ("Remote Rpc Send Recv Collective Nccl DataService TPU Xla Worker Outfeed Infeed", "it reaches other processes"),
    (
        "File Reader Record Dataset Iterator Cache Sql LMDB Save Restore Checkpoint ImmutableConst LoadAndRemap Vocab",
        "it reaches files",
    ),
    ("Queue Barrier Stage Mutex Session RandomSeedGenerator", "it reaches state that the process shares"),
    (
        "Proto Decode Encode Serialize Deserialize Prelinearize Audio Mfcc",
        "it is a decoder or encoder, which runs native code on bytes from the file",
    ),
    ("Assign Apply Scatter Inplace Count", "it changes variables"),
    ("SymbolicGradient", "it creates functions by name"),
)
_CHANGES = re.compile(
    r"Assign(Add|Sub)?(VariableOp)?|(Resource)?(Sparse)?Apply\w+|(Resource)?Scatter(Add|Sub|Update)|VarIsInitializedOp"
    r"|[A-Z]\w*(Grad|GradV2|GradV3|BackpropFilter|BackpropInput)|Conv3DBackprop\w+|Optional(FromValue|None|GetValue)"
)
# Operation -> the input that determines the size of its result, if that is a constant.
_SIZE_INPUT = {
    op: position
    for position, ops in enumerate(
        (
            "Fill RandomUniform RandomUniformInt RandomStandardNormal TruncatedNormal StatelessRandomUniform "
            "StatelessRandomUniformV2 StatelessRandomNormal StatelessRandomNormalV2 StatelessTruncatedNormal "
            "StatelessTruncatedNormalV2 TensorArrayV3",
            "BroadcastTo Tile TensorListReserve EmptyTensorList OneHot",
            "LinSpace",
        )
    )
    for op in ops.split()
}


class UnsafeGraphError(InputError):
    """A graph that would do more than compute. The message names the operations and where they are."""


class _Body(NamedTuple):
    """The nodes of a library function, or of the main graph (whose ``function`` is "")."""

    function: str
    nodes: Any

    def place(self, node: Any) -> str:
        return f"{node.name} ({node.op})" + (f" in the function {self.function}" if self.function else "")


def check_graph(definition: Any, *, where: str, changes: bool = False) -> None:
    """Raises unless a GraphDef only computes. Variables and tables may be in its main graph, but not in functions.

    With ``changes`` it may also change variables, as a train op does.

    The UnsafeGraphError names ``where``, the file, and lists up to 8 refused operations, with the reason and function.
    """
    functions = [function.signature.name for function in definition.library.function]
    library = frozenset(functions)
    bodies = [_Body("", definition.node)]
    bodies += [_Body(function.signature.name, function.node_def) for function in definition.library.function]
    problems = [f"the function {name} is defined {n} times" for name, n in Counter(functions).items() if n > 1]
    problems += [f"the function {name} has the name of an operation" for name in functions if _registered(name)]
    calls: dict[str, Counter[str]] = {}
    held = 0
    for body in bodies:
        called = calls.setdefault(body.function, Counter())
        constants = {node.name: node.attr["value"].tensor for node in body.nodes if node.op == "Const"}
        for node in body.nodes:
            reason = (
                "" if changes and _CHANGES.fullmatch(node.op) else _refused(node.op, library, main=not body.function)
            )
            if reason:
                problems.append(f"{body.place(node)}: {reason}")
            if node.op in library:
                called[node.op] += 1
            for name in called_functions(node):
                called[name] += 1
                if name not in library:
                    problems.append(f"{body.place(node)}: it calls {name}, which is not in the graph's library")
            for tensor in _tensors(node):
                size, wrong = measure_constant(tensor)
                held += size
                if wrong:
                    problems.append(f"{body.place(node)}: {wrong}")
            if wrong := _contradiction(node) or _too_large(node, constants):
                problems.append(f"{body.place(node)}: {wrong}")
    if held > MOST_BYTES:
        problems.append(f"its constants declare {held:,} bytes; at most {MOST_BYTES:,} are allowed")
    sizes = {body.function: len(body.nodes) for body in bodies}
    if wrong := _check_calls(calls, sizes, library):
        problems.append(wrong)
    if problems:
        rest = f"\n  ... and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UnsafeGraphError(
            f"{where}: refused, since what the outputs need does more than compute:\n  "
            + "\n  ".join(problems[:8])
            + rest
        )


def check_sizes(graph: Any, *, where: str) -> None:
    """Raises UnsafeGraphError if a tensor of an imported graph is known to have more than ``MOST_BYTES``."""
    for op in graph.get_operations():
        for tensor in op.outputs:
            if tensor.shape.is_fully_defined() and tensor.shape.num_elements() * (tensor.dtype.size or 1) > MOST_BYTES:
                raise UnsafeGraphError(
                    f"{where}: refused, since {tensor.name} ({op.type}) would be {tensor.shape.as_list()} "
                    f"{tensor.dtype.name}, more than {MOST_BYTES:,} bytes"
                )


def _refused(op: str, library: frozenset[str], *, main: bool) -> str:
    """Returns why an operation must not run, "" if it may."""
    if op in HARMLESS or op in library:
        return ""
    if op in VARIABLES | TABLES | FILLS_TABLE:
        return "" if main else "variables and tables of a function reach state that the process shares"
    if not _registered(op):
        return (
            "TensorFlow creates such operations for itself"
            if op.startswith("_")
            else "no such operation is registered; inputs= can feed what is computed from it"
        )
    for parts, reason in _REASONS:
        if any(part in op for part in parts.split()):
            return reason
    if op.startswith("_"):
        return "TensorFlow creates such operations for itself"
    return "it is not among the operations that are allowed"


def _registered(op: str) -> bool:
    return tensorflow_private.op_definition(op) is not None


def _tensors(node: Any) -> Iterator[Any]:
    for value in node.attr.values():
        if value.HasField("tensor"):
            yield value.tensor
        yield from value.list.tensor


def _contradiction(node: Any) -> str:
    """Says that a constant's value has another dtype than its result, or "": TensorFlow would end the process at it."""
    if node.op != "Const":
        return ""
    says, has = node.attr["dtype"].type, node.attr["value"].tensor.dtype
    return "" if says == has else f"its value is {_name(has)}, but its result is {_name(says)}; the file is damaged"


def _name(dtype: int) -> str:
    try:
        return str(tf.as_dtype(dtype).name)
    except TypeError:
        return f"of the unknown dtype {dtype}"


def _too_large(node: Any, constants: dict[str, Any]) -> str:
    """Returns what is wrong with the size of a result that a constant input determines, or ""."""
    if node.op == "Range":
        values = [_numbers(constants.get(producer(name))) for name in node.input[:3]]
        if len(values) == 3 and all(value is not None and value.size == 1 for value in values):
            start, limit, delta = (float(value.reshape(-1)[0]) for value in values if value is not None)
            if delta and (limit - start) / delta > MOST_BYTES / 8:
                return f"a range of {(limit - start) / delta:.0f} numbers is too large"
        return ""
    position = _SIZE_INPUT.get(node.op)
    if position is None or position >= len(node.input):
        return ""
    value = _numbers(constants.get(producer(node.input[position])))
    if value is None or value.dtype.kind not in "iu":
        return ""
    count = math.prod(int(length) for length in value.reshape(-1))
    return f"a result of {value.reshape(-1).tolist()} elements is too large" if count > MOST_BYTES / 8 else ""


def _numbers(tensor: Any) -> np.ndarray | None:
    """Returns the values of a small numeric constant; None for anything else."""
    if tensor is None or math.prod(dim.size for dim in tensor.tensor_shape.dim) > 64:
        return None
    try:
        value = tf.make_ndarray(tensor)
    except (ValueError, TypeError):
        return None
    return value if value.dtype.kind in "iuf" else None


def _check_calls(calls: dict[str, Counter[str]], sizes: dict[str, int], library: frozenset[str]) -> str:
    """Returns what is wrong with the calls (recursion, depth, or too many operations once expanded), or ""."""
    inner = {name: {each: n for each, n in found.items() if each in library} for name, found in calls.items()}
    callers: dict[str, list[str]] = {}
    for name, found in inner.items():
        for each in found:
            callers.setdefault(each, []).append(name)
    waits = {name: len(found) for name, found in inner.items()}
    total, depth = dict(sizes), dict.fromkeys(sizes, 1)
    ready = [name for name, count in waits.items() if not count]
    for name in ready:  # grows: a function is added when all that it calls are done
        total[name] += sum(n * total[each] for each, n in inner[name].items())
        depth[name] = 1 + max((depth[each] for each in inner[name]), default=0)
        if depth[name] > _DEEPEST:
            return f"function calls are nested more than {_DEEPEST} deep: {name}"
        for caller in callers.get(name, ()):
            waits[caller] -= 1
            if not waits[caller]:
                ready.append(caller)
    if len(ready) < len(sizes):
        return f"functions call themselves: {', '.join(sorted(name for name, n in waits.items() if n and name)[:4])}"
    if total[""] > _MOST_OPERATIONS:
        return (
            f"{total['']:,} operations once its function calls are expanded; at most {_MOST_OPERATIONS:,} are allowed"
        )
    return ""
