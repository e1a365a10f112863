"""Replaces the calls in a traced function by the bodies of the functions that they call.

``engine.graphs.tracing.inlined`` does so while tracing, but cannot for functions that exist only as graphs, such as those of a
SavedModel. Here their nodes are copied: a node ``name`` of a call ``call`` becomes ``call/name``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from engine import tensorflow_private
from engine.errors import GraphError
from engine.graphs import dataflow
from engine.graphs.tracing import CALLS

_PREFIX = "inlined"
_DEPTH = 64  # a function that calls itself ends there
_MOST_NODES = 300_000  # of a graph from a file, with one copy of a function per call


@dataclass(frozen=True)
class Inlined:
    """A concrete function without calls, and where its operations come from.

    Attributes:
        function: a concrete function that computes the same, with the same arguments.
        origin: the name of an operation -> that of the operation of the original function that it was, or was part of.
        renamed: the name of the output of a call that is gone -> that of the tensor that it became.
    """

    function: Any
    origin: Mapping[str, str]
    renamed: Mapping[str, str]

    def find_tensor(self, tensor: Any) -> Any:
        """The copy of a tensor that an operation of the original function computed."""
        return self.function.graph.get_tensor_by_name(f"{_PREFIX}/{self.renamed.get(tensor.name, tensor.name)}")

    def find_copies(self, ops: Iterable[Any]) -> tuple[Any, ...]:
        """The copies of operations of the original function, and of what calls among them did."""
        names = {op.name for op in ops}
        return tuple(op for op in self.function.graph.get_operations() if self.origin.get(op.name) in names)


def inline_calls(function: Any) -> Inlined:
    """Copies a concrete function with its calls, and the calls in these, replaced by what they do.

    Functions that are to be compiled as a whole, or not to be inlined, are left as calls.
    """
    graph = function.graph
    definition, origin, renamed = expand_calls(graph.as_graph_def())
    outputs = graph.structured_outputs
    names = [renamed.get(tensor.name, tensor.name) for tensor in tf.nest.flatten(outputs)]
    given = {tensor.op.name for tensor in graph.inputs}
    kept = [node for node in definition.node if node.name not in given]
    del definition.node[:]
    definition.node.extend(kept)
    captured = dataflow.captured_tensors(graph)
    arguments, _ = function.structured_input_signature

    def inlined(*values: Any) -> Any:
        flat = iter(tf.nest.flatten(values))
        here = tf.compat.v1.get_default_graph()
        feeds = {t.name: here.capture(captured[id(t)]) if id(t) in captured else next(flat) for t in graph.inputs}
        read = {_full(text) for node in definition.node for text in node.input if not text.startswith("^")}
        fed = {name: value for name, value in feeds.items() if name in read}
        wanted = [name for name in names if name not in feeds]
        found = dict(zip(wanted, tf.graph_util.import_graph_def(definition, fed, wanted, name=_PREFIX), strict=True))
        return tf.nest.pack_sequence_as(outputs, [feeds[name] if name in feeds else found[name] for name in names])

    whole = tf.function(inlined, autograph=False).get_concrete_function(*arguments)
    return Inlined(whole, {f"{_PREFIX}/{name}": first for name, first in origin.items()}, renamed)


def _full(text: str) -> str:
    """The name of a tensor with the number of the output, which node inputs leave out for the first."""
    return text if ":" in text else f"{text}:0"


def expand_calls(whole: Any) -> tuple[Any, dict[str, str], dict[str, str]]:
    """A GraphDef without calls; node -> the node of the graph that it came from; output of a call -> what it became.

    Raises GraphError if that would take more nodes than any network has.
    """
    library = {function.signature.name: function for function in whole.library.function}
    nodes = {node.name: node for node in whole.node}
    origin = {name: name for name in nodes}
    renamed: dict[str, str] = {}  # data and control ("^call" -> several)
    controls: dict[str, list[str]] = {}
    for _ in range(_DEPTH):
        calls = [node for node in nodes.values() if _can_inline(node, library)]
        inside = sum(len(library[call.attr["f"].func.name].node_def) for call in calls)
        if len(nodes) + inside > max(_MOST_NODES, len(whole.node)):
            raise GraphError(f"the graph has more than {_MOST_NODES:,} operations once its function calls are expanded")
        if not calls:
            break
        for call in calls:
            body, made, waits = _body(call, library[call.attr["f"].func.name])
            del nodes[call.name]
            nodes |= {node.name: node for node in body}
            origin |= {node.name: origin[call.name] for node in body}
            renamed |= made
            controls[call.name] = waits
    definition = tf.compat.v1.GraphDef(versions=whole.versions, library=whole.library)
    final = {name: _follow(name, renamed) for name in renamed}
    for node in nodes.values():
        texts = [final.get(_full(text), text) for text in node.input if not text.startswith("^")]
        after = [text[1:] for text in node.input if text.startswith("^")]
        texts += [f"^{name}" for name in dict.fromkeys(end for name in after for end in _ends(name, controls))]
        node.ClearField("input")
        node.input.extend(texts)
        definition.node.append(node)
    return definition, origin, final


def _follow(name: str, renamed: Mapping[str, str]) -> str:
    while name in renamed:
        name = renamed[name]
    return name


def _ends(name: str, controls: Mapping[str, list[str]]) -> list[str]:
    """The operations to wait for in place of an operation, which may be a call that is gone."""
    return [end for inner in controls[name] for end in _ends(inner, controls)] if name in controls else [name]


def _can_inline(node: Any, library: Mapping[str, Any]) -> bool:
    if node.op not in CALLS or node.attr["f"].func.name not in library:
        return False
    attributes = library[node.attr["f"].func.name].attr
    return not any(attributes[name].b for name in ("_noinline", "_XlaMustCompile") if name in attributes)


def _body(call: Any, function: Any) -> tuple[list[Any], dict[str, str], list[str]]:
    """The nodes of a call; output of the call -> the tensor that it becomes; and what to wait for instead of the call."""
    definition, flat = tensorflow_private.function_graph(function)
    data = [text for text in call.input if not text.startswith("^")]
    waits = [text for text in call.input if text.startswith("^")]
    given = {argument.name: text for argument, text in zip(function.signature.input_arg, data, strict=True)}

    def inside(text: str) -> str:
        name = text.lstrip("^").partition(":")[0]
        if name in given:
            return f"^{given[name].partition(':')[0]}" if text.startswith("^") else given[name]
        return f"^{call.name}/{text[1:]}" if text.startswith("^") else f"{call.name}/{text}"

    nodes = [node for node in definition.node if node.name not in given]
    for node in nodes:
        texts = [inside(text) for text in node.input]
        found = tensorflow_private.op_definition(node.op)
        node.name = f"{call.name}/{node.name}"
        node.attr.pop("_class", None)  # colocation
        node.ClearField("input")
        node.input.extend(texts + (waits if found is None or found.is_stateful else []))
    made = {
        f"{call.name}:{place}": _full(inside(flat[function.ret[output.name]]))
        for place, output in enumerate(function.signature.output_arg)
    }
    ends = [f"{call.name}/{name}" for name in function.control_ret.values()]
    return nodes, made, ends or [name.partition(":")[0] for name in made.values()]
