"""Gives an old graph the control flow of TensorFlow 2: loops and branches as functions, TensorArrays as lists.

The control flow of TensorFlow 1 (Switch, Merge, Enter, Exit, NextIteration) runs anywhere, but its gradient needs what
a GraphDef does not hold, and is not to be had in a ``tf.function``. While, If and lists of tensors have one everywhere.
Nothing is run or imported for the conversion: it goes from message to message.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import tensorflow as tf

from compat_v1.graphs.array_flows import kind_of
from compat_v1.graphs.call_shapes import set_call_shapes
from compat_v1.graphs.conds import convert_conds
from compat_v1.graphs.draft import Draft
from compat_v1.graphs.endpoints import all_nodes, producer
from compat_v1.graphs.loops import convert_loops
from compat_v1.graphs.tensor_lists import OWN_GRADIENTS, convert_tensor_arrays
from compat_v1.graphs.variable_reads import hoist_reads
from engine import tensorflow_private
from engine.graphs.library_names import make_names_unique
from engine.graphs.op_allowlist import SUCCESSORS

_OLD = frozenset(["Enter", "Exit", "LoopCond", "Merge", "NextIteration", "Switch"])


def needs_conversion(definition: Any) -> bool:
    """Whether a GraphDef, or a function in its library, holds control flow or TensorArrays of TensorFlow 1."""
    return any(_is_old(node) for node in all_nodes(definition))


def make_functional(definition: Any, *, keep: Collection[str], where: str) -> Any:
    """Returns a GraphDef that computes the same with the control flow of TensorFlow 2.

    The result can be differentiated in a ``tf.function``, with respect to what is mapped in and what is fed. It has
    what the tensors in ``keep`` need, under the old names, except for the insides of loops and branches. The variables
    that they read are read before.

    Args:
        definition: the graph; nodes that its inputs name may be missing, if they are mapped in when it is imported.
        keep: the tensors (or operations) that must stay, as ``scope/op:0`` or ``scope/op``: the outputs, and the
            inputs, also those that have a node in the graph.
        where: the file of the graph, for messages.

    Raises:
        GraphError: something cannot be converted. The message names its operation and says what to do.
    """
    draft = Draft(definition, keep=keep, where=where)
    for node in draft.nodes.values():
        if node.op.startswith("Ref"):
            node.op = SUCCESSORS.get(node.op, node.op)
    draft.prune()
    draft.check()
    _refuse(draft)
    kept = {name: draft.nodes[name] for name in map(producer, draft.keep) if name in draft.nodes}
    convert_tensor_arrays(draft)
    hoist_reads(draft)
    convert_loops(draft)
    for name, node in kept.items():
        if name not in draft.nodes:
            raise draft.refusal(node, "it is in a loop or a branch; name a tensor outside")
    draft.nodes = convert_conds(draft, draft.nodes, [f"{name}:0" for name in kept])
    return draft.definition()


def _refuse(draft: Draft) -> None:
    """Raises GraphError for what the old gradients of loops need, and for old control flow in library functions."""
    for node in draft.nodes.values():
        if node.op.startswith("Stack"):
            raise draft.refusal(node, OWN_GRADIENTS)
    for name in draft.called():
        for node in draft.library[name].node_def:
            if _is_old(node):
                raise draft.refusal(
                    node, f"it is control flow of TensorFlow 1 in the function {name}; name outputs without it"
                )


def import_functional(
    definition: Any, input_map: Mapping[str, Any], return_elements: Sequence[str], *, name: str
) -> list[Any]:
    """Imports a converted graph into the current graph, as ``tf.graph_util.import_graph_def`` does, ready for gradients.

    The gradient of a While or an If adds a changed copy of its functions to the process under a name that follows from
    theirs. So a second import, such as that of a second trace, needs functions of other names. They stay in the
    process.
    """
    copy = tf.compat.v1.GraphDef()
    copy.CopyFrom(definition)
    make_names_unique(copy)
    set_call_shapes(copy, input_map)
    tensorflow_private.register_functions(copy.library)
    return tf.graph_util.import_graph_def(copy, dict(input_map), list(return_elements), name=name)


def _is_old(node: Any) -> bool:
    return node.op.removeprefix("Ref") in _OLD or kind_of(node.op) is not None or node.op.startswith("Stack")
