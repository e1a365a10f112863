"""A GraphDef as nodes and edges with its functions inlined; it is read as data, so nothing in the graph is run.

Importing a graph is not just reading it: TensorFlow evaluates constants that shapes depend on, with everything they need.
A call (If, While, Case, PartitionedCall, a function used as an op, ...) becomes its own copy of its bodies, whose nodes are
named ``CALL:NODE``. Arguments and results are nodes too, which are followed like any others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import tensorflow as tf

from engine import tensorflow_private
from engine.graphs.nodes import RESOURCE, FlatGraphError, Node, Tensor, find_ancestors, find_types

MOST_NODES = 300_000  # the most nodes that functions may add to the graph, with one copy per call
_CALLS = frozenset(["PartitionedCall", "StatefulPartitionedCall"])
_BRANCHES = {"If": 1, "StatelessIf": 1, "Case": 1, "StatelessCase": 1}
_LOOPS = frozenset(["While", "StatelessWhile"])


class FlatGraph:
    """All ``nodes`` of a GraphDef, with one copy of a function's nodes per call; ``top`` are its own nodes, by name.

    Raises FlatGraphError if the graph contradicts itself, is too large once its functions are inlined, or has an operation
    that this TensorFlow does not know; with ``unknown``, such operations are nodes like others, whose types are not known.
    """

    def __init__(self, definition: Any, *, unknown: bool = False) -> None:
        self._unknown = unknown
        self.nodes: list[Node] = []
        self._functions = {function.signature.name: function for function in definition.library.function}
        self._pending: list[tuple[Node, tuple[str, ...]]] = []
        self._own = len(definition.node)
        self.top = self._wire(definition.node, "", {}, ())
        while self._pending:
            self._expand(*self._pending.pop())
        self._readers: dict[Node, list[Node]] | None = None

    def outputs(self, name: str) -> list[Tensor]:
        """The output tensors of a node, or the results of a call; empty if there is no such node."""
        node = self._by_name.get(name)
        if node is None:
            return []
        return [Tensor(result, 0) for result in node.results] or [
            Tensor(node, n) for n in range(len(node.output_types))
        ]

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes if node.op != "_Ret"}

    def node(self, name: str) -> Node | None:
        """The node of a name, or None."""
        return self._by_name.get(name)

    def readers(self, node: Node) -> list[Node]:
        """The nodes that take an output of this one."""
        if self._readers is None:
            self._readers = {}
            for other in self.nodes:
                for source in dict.fromkeys(tensor.node for tensor in other.inputs):
                    self._readers.setdefault(source, []).append(other)
        return self._readers.get(node, [])

    def find_running(self, roots: Iterable[Node]) -> set[Node]:
        """The nodes that run when ``roots`` are fetched: all that they depend on by data or control, and bodies of calls.

        The functions of all datasets count as run if anything reads from an iterator, whichever dataset that is of.
        """
        found = find_ancestors(roots)
        if any("GetNext" in node.op for node in found):
            found |= find_ancestors(node for node in self.nodes if node.body and "Dataset" in node.op)
        return found

    # ---- construction

    def _wire(
        self, definitions: Iterable[Any], prefix: str, arguments: Mapping[str, Node], within: tuple[str, ...]
    ) -> dict[str, Node]:
        """Builds nodes and edges for NodeDefs, and queues calls for expansion; returns the nodes by their own names."""
        made: dict[str, Node] = {}
        for one in definitions:
            if one.name in made:
                raise FlatGraphError(f"{prefix}{one.name}: two nodes have this name")
            made[one.name] = self._node(one, prefix)
        if within and len(self.nodes) > self._own + MOST_NODES:
            raise FlatGraphError(f"inlining every call of the graph's functions takes more than {MOST_NODES} nodes")
        for one in made.values():
            for source in one.definition.input:
                if source.startswith("^"):
                    name = source[1:]
                    before = made.get(name) or arguments.get(name)
                    if before is None:
                        raise FlatGraphError(f"{one.name}: its control input {name} is not in the graph")
                    one.controls.append(before)
                else:
                    one.inputs.append(self._tensor(one, source, made, arguments))
            if len(one.inputs) != len(one.input_types):
                raise FlatGraphError(
                    f"{one.name}: {one.op} takes {len(one.input_types)} inputs, but it has {len(one.inputs)}"
                )
            if self._bodies(one):
                self._pending.append((one, within))
        return made

    def _node(self, definition: Any, prefix: str) -> Node:
        node = Node(prefix + definition.name, definition.op, definition)
        self.nodes.append(node)
        function = self._functions.get(definition.op)
        signature = function.signature if function is not None else tensorflow_private.op_definition(definition.op)
        if signature is None and not self._unknown:
            raise FlatGraphError(f"{node.name}: TensorFlow {tf.__version__} has no op {definition.op}")
        if signature is None:
            node.stateful, node.known = True, False
            node.input_types = [0] * sum(not text.startswith("^") for text in definition.input)
            return node
        node.stateful = signature.is_stateful
        node.input_types, references = find_types(definition, signature, signature.input_arg)
        node.references = frozenset(references)
        node.output_types, _ = find_types(definition, signature, signature.output_arg)
        if self._is_call(node):
            node.results = [self._pass(node.name, "_Ret", [], [node]) for _ in node.output_types]
        return node

    def _is_call(self, node: Node) -> bool:
        return node.op in self._functions or node.op in _CALLS or node.op in _BRANCHES or node.op in _LOOPS

    def _pass(self, name: str, op: str, inputs: list[Tensor], controls: list[Node]) -> Node:
        node = Node(name, op)
        node.inputs, node.controls = inputs, controls
        self.nodes.append(node)
        return node

    def _tensor(self, reader: Node, text: str, made: Mapping[str, Node], arguments: Mapping[str, Node]) -> Tensor:
        name, *rest = text.split(":")
        if name in arguments and len(rest) < 2:
            return Tensor(arguments[name], 0)
        node = made.get(name)
        if node is None:
            raise FlatGraphError(f"{reader.name}: its input {text} is not in the graph")
        try:
            if not node.known:
                return Tensor(node, int(rest[-1]) if rest else 0)
            index = self._offset(node, rest[0]) + int(rest[1]) if len(rest) == 2 else int(rest[0]) if rest else 0
        except ValueError:
            raise FlatGraphError(f"{reader.name}: its input {text} cannot be read") from None
        if not 0 <= index < len(node.output_types):
            raise FlatGraphError(
                f"{reader.name}: its input {text} does not exist: {node.op} has {len(node.output_types)} outputs"
            )
        return Tensor(node.results[index], 0) if node.results else Tensor(node, index)

    def _offset(self, node: Node, output: str) -> int:
        """The number of a named output: in function bodies tensors are written ``node:output:number``."""
        function = self._functions.get(node.op)
        signature = function.signature if function is not None else tensorflow_private.op_definition(node.op)
        start = 0
        for argument in signature.output_arg:
            if argument.name == output:
                return start
            start += len(find_types(node.definition, signature, [argument])[0])
        raise ValueError(output)

    def _bodies(self, node: Node) -> list[tuple[str, str]]:
        """Pairs (attribute, library function) that a node calls; for a function used as an op, the attribute is ""."""
        found = [("", node.op)]
        for name in sorted(node.definition.attr):  # the order of a protobuf map is undefined
            value = node.definition.attr[name]
            kind = value.WhichOneof("value")
            found += [(name, value.func.name)] if kind == "func" else []
            found += [(f"{name} {n}", f.name) for n, f in enumerate(value.list.func)] if kind == "list" else []
        return [(label, name) for label, name in found if name in self._functions]

    def _expand(self, call: Node, within: tuple[str, ...]) -> None:
        if call.op in _LOOPS:
            self._expand_loop(call, within)
            return
        first = _BRANCHES.get(call.op, 0)
        bodies = self._bodies(call)
        for label, name in bodies:
            wanted = self._functions[name].signature.input_arg
            if self._is_call(call):
                if len(wanted) != len(call.inputs) - first:
                    raise FlatGraphError(
                        f"{call.name}: {name} takes {len(wanted)} arguments, not {len(call.inputs) - first}"
                    )
                sources = [[tensor] for tensor in call.inputs[first:]]
            else:  # how such an op passes its inputs on is unknown: each argument may be any input of its kind
                given = list(zip(call.inputs, call.input_types, strict=True))
                sources = [
                    [t for t, kind in given if (kind == RESOURCE) == (argument.type == RESOURCE)] for argument in wanted
                ]
            label = f"{call.name}:" if len(bodies) == 1 else f"{call.name}:{label}:"
            arguments = [self._pass(f"{label}argument {n}", "_Arg", tensors, []) for n, tensors in enumerate(sources)]
            returned = self._body(call, name, label, arguments, within)
            for result, tensor in zip(call.results, returned, strict=False):
                result.inputs.append(tensor)

    def _expand_loop(self, call: Node, within: tuple[str, ...]) -> None:
        state = [self._pass(f"{call.name}:variable {n}", "_Loop", [tensor], []) for n, tensor in enumerate(call.inputs)]
        for label in ("cond", "body"):
            name = call.definition.attr[label].func.name
            if name not in self._functions:
                raise FlatGraphError(f"{call.name}: its function {name!r} is not in the graph")
            if len(self._functions[name].signature.input_arg) != len(state):
                raise FlatGraphError(f"{call.name}: {name} does not take {len(state)} arguments")
            returned = self._body(call, name, f"{call.name}:{label}:", state, within)
            if label == "body":
                for one, tensor in zip(state, returned, strict=False):
                    one.inputs.append(tensor)
        for result, one in zip(call.results, state, strict=False):
            result.inputs.append(Tensor(one, 0))

    def _body(self, call: Node, name: str, label: str, arguments: list[Node], within: tuple[str, ...]) -> list[Tensor]:
        """Inlines a function for one call; returns its results."""
        if name in within:
            raise FlatGraphError(f"{call.name}: {name} calls itself; a recursive function cannot be read")
        function = self._functions[name]
        signature = function.signature
        given = {argument.name: node for argument, node in zip(signature.input_arg, arguments, strict=True)}
        made = self._wire(function.node_def, label, given, (*within, name))
        # nodes with effects run even if no result depends on them
        call.body += [node for node in made.values() if node.stateful or node.results or node.body]
        for node in function.control_ret.values():
            if node not in made:
                raise FlatGraphError(f"{name}: {node} is not in the function")
            call.body.append(made[node])
        return [self._tensor(call, function.ret[output.name], made, given) for output in signature.output_arg]
