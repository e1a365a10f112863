"""Reads variables before the loops and branches that use them, so that these take values and no handles.

A loop of TensorFlow 1 takes the handle of a variable and reads it inside. Where nothing in the graph writes the
variable, its value is the same before the loop; the gradient of a value needs nothing that an imported graph lacks.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from compat_v1.graphs.draft import Draft, control_inputs, data_inputs, make_node
from compat_v1.graphs.endpoints import dtype_of, producer
from engine.graphs.op_kinds import READS
from engine.graphs.reach import reach

_PASSES = frozenset(["Enter", "Identity", "Switch"])
_READS = frozenset(["ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape"])


def hoist_reads(draft: Draft) -> None:
    """Replaces handles that go into loops and branches by the values of their variables, unless these are written."""
    readers = draft.readers()
    for handle in _handles(draft):
        passed = reach([handle], lambda tensor: _pass_on(draft, readers, tensor))
        chain = {producer(tensor) for tensor in passed} - {producer(handle)}
        users = {
            node.name: node
            for tensor in passed
            for node in readers.get(producer(tensor), ())
            if tensor in node.input and node.name not in chain
        }
        inside = {name: node for name, node in users.items() if producer(node.input[0]) in chain}
        kinds = {draft.nodes[name].op for name in users}
        if not inside or not kinds <= READS or not {node.op for node in inside.values()} <= _READS:
            continue
        dtypes = {_dtype(node) for node in users.values() if node.op in _READS - {"VariableShape"}}
        if len(dtypes) == 1:
            _hoist(draft, handle, chain, inside, dtypes.pop())


def _handles(draft: Draft) -> list[str]:
    """Returns the handles of variables: those in the graph, and those that are mapped in."""
    found = {f"{name}:0": None for name, node in draft.nodes.items() if node.op == "VarHandleOp"}
    for node in draft.nodes.values():
        for text in data_inputs(node):
            if producer(text) not in draft.nodes and text not in found and draft.type_of(text) == tf.resource:
                found[text] = None
    return list(found)


def _pass_on(draft: Draft, readers: dict[str, list[Any]], tensor: str) -> list[str]:
    return [
        f"{node.name}:{index}"
        for node in readers.get(producer(tensor), ())
        if node.op in _PASSES and node.input[0] == tensor
        for index in range(2 if node.op == "Switch" else 1)
    ]


def _dtype(node: Any) -> tf.DType:
    return dtype_of(node.attr["dtype"].type)


def _hoist(draft: Draft, handle: str, chain: set[str], inside: dict[str, Any], dtype: tf.DType) -> None:
    read = draft.new_name(f"{producer(handle)}/value")
    draft.nodes[read] = make_node(read, "ReadVariableOp", [handle], dtype=dtype)
    for name in chain:
        node = draft.nodes[name]
        node.attr["T"].type = dtype.as_datatype_enum
        node.input[:] = [f"{read}:0" if text == handle else text for text in node.input]
    for name, node in inside.items():
        value, waits = node.input[0], control_inputs(node)
        if node.op == "ReadVariableOp":
            made = make_node(name, "Identity", [value, *waits], T=dtype)
        elif node.op == "VariableShape":
            made = make_node(name, "Shape", [value, *waits], T=dtype, out_type=node.attr["out_type"])
        elif node.op == "ResourceGatherNd":
            kind = node.attr["Tindices"]
            made = make_node(name, "GatherNd", [value, node.input[1], *waits], Tparams=dtype, Tindices=kind)
        else:
            axis = draft.add_constant(f"{name}/axis", 0, tf.int32)
            made = make_node(
                name,
                "GatherV2",
                [value, node.input[1], axis, *waits],
                Tparams=dtype,
                Taxis=tf.int32,
                Tindices=node.attr["Tindices"],
                batch_dims=node.attr["batch_dims"],
            )
        draft.nodes[name] = made
