"""A GraphDef as nodes and edges, its functions written out: read as data, so that nothing of the graph is run.

Importing a graph is not reading it: TensorFlow evaluates constants that shapes depend on, and whatever lies between.
Here only the registry of ops is asked, for what an op takes and gives.

A call (If, While, Case, PartitionedCall, a function used as an op ...) becomes its bodies: arguments and results are
nodes of their own, so that a variable or a gradient is followed through them as through any other edge. Each call has
its own copy; a node in it is named ``CALL:NODE``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from engine import tensorflow_private
from engine.errors import InputError

MOST_NODES = 300_000  # beyond those of the graph itself: what functions may come to, one copy for each call
_CALLS = frozenset(["PartitionedCall", "StatefulPartitionedCall"])
_BRANCHES = {"If": 1, "StatelessIf": 1, "Case": 1, "StatelessCase": 1}
_LOOPS = frozenset(["While", "StatelessWhile"])
RESOURCE = tf.resource.as_datatype_enum


class FlatGraphError(InputError):
    """A graph that contradicts itself: an edge to nowhere, an op with the wrong number of inputs."""


class Tensor(NamedTuple):
    """One output of a node."""

    node: Node
    output: int


class Node:
    """One op.

    Attributes:
        name: unique; in a function's body ``CALL:NODE``.
        op: its type; "_Arg", "_Loop" and "_Ret" are arguments and results of bodies: what comes out is what goes in.
        definition: its NodeDef; None of arguments and results.
        inputs: tensors it takes.
        controls: nodes that run before it.
        body: of a call, what runs within it.
        takes, gives: data types (enums) of inputs and outputs; () where they are those of the inputs.
        references: positions of inputs that it takes by reference.
        stateful: as registered.
        results: of a call, a node for each output; others read these, not the call.
    """

    __slots__ = (
        "body",
        "controls",
        "definition",
        "gives",
        "inputs",
        "name",
        "op",
        "references",
        "results",
        "stateful",
        "takes",
    )

    def __init__(self, name: str, op: str, definition: Any = None) -> None:
        self.name, self.op, self.definition = name, op, definition
        self.inputs: list[Tensor] = []
        self.controls: list[Node] = []
        self.body: list[Node] = []
        self.results: list[Node] = []
        self.takes: list[int] = []
        self.gives: list[int] = []
        self.references: frozenset[int] = frozenset()
        self.stateful = False

    def __repr__(self) -> str:
        return f"<{self.op} {self.name}>"

    @property
    def passes(self) -> bool:
        """An argument or result: what comes out is what goes in."""
        return self.op in ("_Arg", "_Loop", "_Ret")

    def attr(self, name: str) -> Any:
        """An attribute (AttrValue), or None."""
        return self.definition.attr[name] if self.definition is not None and name in self.definition.attr else None


class FlatGraph:
    """All nodes of a GraphDef, those of its functions once for each call.

    Raises:
        FlatGraphError: the graph contradicts itself, or is too large when its functions are written out.
    """

    def __init__(self, definition: Any) -> None:
        self.nodes: list[Node] = []
        self._functions = {function.signature.name: function for function in definition.library.function}
        self._pending: list[tuple[Node, tuple[str, ...]]] = []
        self._own = len(definition.node)
        self.top = self._wire(definition.node, "", {}, ())
        while self._pending:
            self._expand(*self._pending.pop())
        self._readers: dict[Node, list[Node]] | None = None

    def outputs(self, name: str) -> list[Tensor]:
        """The tensors of a node by name; of a call, its results. Empty when there is no such node."""
        node = self._by_name.get(name)
        if node is None:
            return []
        return [Tensor(result, 0) for result in node.results] or [Tensor(node, n) for n in range(len(node.gives))]

    @property
    def _by_name(self) -> dict[str, Node]:
        if not hasattr(self, "_names"):
            self._names = {node.name: node for node in self.nodes if node.op != "_Ret"}
        return self._names

    def node(self, name: str) -> Node | None:
        return self._by_name.get(name)

    def readers(self, node: Node) -> list[Node]:
        """Nodes that take an output of this one."""
        if self._readers is None:
            self._readers = {}
            for other in self.nodes:
                for source in dict.fromkeys(tensor.node for tensor in other.inputs):
                    self._readers.setdefault(source, []).append(other)
        return self._readers.get(node, [])

    def runs(self, roots: Iterable[Node]) -> set[Node]:
        """What runs when these are fetched: what they depend on by data or control, and the bodies of calls among it.

        A dataset's function runs when something takes from an iterator: which dataset that is, is not followed.
        """
        found = ancestors(roots)
        if any("GetNext" in node.op for node in found):
            found |= ancestors(node for node in self.nodes if node.body and "Dataset" in node.op)
        return found

    # ---- how it is built

    def _wire(
        self, definitions: Iterable[Any], prefix: str, arguments: Mapping[str, Node], within: tuple[str, ...]
    ) -> dict[str, Node]:
        """Nodes for NodeDefs, with their edges; calls are put down to be expanded. Returns them by their own names."""
        made: dict[str, Node] = {}
        for one in definitions:
            if one.name in made:
                raise FlatGraphError(f"{prefix}{one.name}: two nodes have this name")
            made[one.name] = self._node(one, prefix)
        if within and len(self.nodes) > self._own + MOST_NODES:
            raise FlatGraphError(f"its functions, written out for each call, are more than {MOST_NODES} nodes")
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
            if len(one.inputs) != len(one.takes):
                raise FlatGraphError(f"{one.name}: {one.op} takes {len(one.takes)} inputs, it has {len(one.inputs)}")
            if self._bodies(one):
                self._pending.append((one, within))
        return made

    def _node(self, definition: Any, prefix: str) -> Node:
        node = Node(prefix + definition.name, definition.op, definition)
        self.nodes.append(node)
        function = self._functions.get(definition.op)
        signature = function.signature if function is not None else tensorflow_private.op_definition(definition.op)
        if signature is None:
            raise FlatGraphError(f"{node.name}: {definition.op} is no op that TensorFlow {tf.__version__} knows")
        node.stateful = signature.is_stateful
        node.takes, references = _types(definition, signature, signature.input_arg)
        node.references = frozenset(references)
        node.gives, _ = _types(definition, signature, signature.output_arg)
        if self._is_call(node):
            node.results = [self._pass(node.name, "_Ret", [], [node]) for _ in node.gives]
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
            index = self._offset(node, rest[0]) + int(rest[1]) if len(rest) == 2 else int(rest[0]) if rest else 0
        except ValueError:
            raise FlatGraphError(f"{reader.name}: its input {text} cannot be read") from None
        if not 0 <= index < len(node.gives):
            raise FlatGraphError(f"{reader.name}: its input {text}: {node.op} has {len(node.gives)} outputs")
        return Tensor(node.results[index], 0) if node.results else Tensor(node, index)

    def _offset(self, node: Node, output: str) -> int:
        """In function bodies outputs are named: ``node:output:number``."""
        function = self._functions.get(node.op)
        signature = function.signature if function is not None else tensorflow_private.op_definition(node.op)
        start = 0
        for argument in signature.output_arg:
            if argument.name == output:
                return start
            start += len(_types(node.definition, signature, [argument])[0])
        raise ValueError(output)

    def _bodies(self, node: Node) -> list[tuple[str, str]]:
        """(attribute, library function) of the functions that a node calls; a function used as an op has no attribute."""
        found = [("", node.op)]
        for name in sorted(node.definition.attr):  # a map has no order of its own
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
                    raise FlatGraphError(f"{call.name}: {name} takes {len(wanted)} arguments")
                sources = [[tensor] for tensor in call.inputs[first:]]
            else:  # how such an op hands its inputs on is its own affair: each argument may be any of its kind
                sources = [
                    [t for t, kind in zip(call.inputs, call.takes, strict=True) if (kind == RESOURCE) == is_handle]
                    for is_handle in (argument.type == RESOURCE for argument in wanted)
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
                raise FlatGraphError(f"{call.name}: {name} takes another number of arguments")
            returned = self._body(call, name, f"{call.name}:{label}:", state, within)
            if label == "body":
                for one, tensor in zip(state, returned, strict=False):
                    one.inputs.append(tensor)
        for result, one in zip(call.results, state, strict=False):
            result.inputs.append(Tensor(one, 0))

    def _body(self, call: Node, name: str, label: str, arguments: list[Node], within: tuple[str, ...]) -> list[Tensor]:
        """Writes a function out for one call; returns its results."""
        if name in within:
            raise FlatGraphError(f"{call.name}: {name} calls itself; such functions are not audited")
        function = self._functions[name]
        signature = function.signature
        given = {argument.name: node for argument, node in zip(signature.input_arg, arguments, strict=True)}
        made = self._wire(function.node_def, label, given, (*within, name))
        # what has effects runs even where no result depends on it
        call.body += [node for node in made.values() if node.stateful or node.results or node.body]
        for node in function.control_ret.values():
            if node not in made:
                raise FlatGraphError(f"{name}: {node} is not in the function")
            call.body.append(made[node])
        return [self._tensor(call, function.ret[output.name], made, given) for output in signature.output_arg]


def ancestors(roots: Iterable[Node]) -> set[Node]:
    """All nodes that these need by data or control, bodies of calls and themselves included."""
    found: set[Node] = set()
    pending = list(roots)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(tensor.node for tensor in node.inputs)
            pending.extend(node.controls)
            pending.extend(node.body)
    return found


def data_ancestors(tensors: Iterable[Tensor]) -> set[Node]:
    """All nodes whose values are in these tensors; their own included."""
    found: set[Node] = set()
    pending = [tensor.node for tensor in tensors]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(tensor.node for tensor in node.inputs)
    return found


def _types(definition: Any, signature: Any, arguments: Iterable[Any]) -> tuple[list[int], list[int]]:
    """Data types of a node's inputs or outputs, and the positions of those that are references."""
    kinds: list[int] = []
    references: list[int] = []
    for argument in arguments:
        if argument.type_list_attr:
            here = list(_attr(definition, signature, argument.type_list_attr).list.type)
        else:
            count = _attr(definition, signature, argument.number_attr).i if argument.number_attr else 1
            if not 0 <= count <= 1_000_000:
                raise FlatGraphError(f"{definition.name}: {count} inputs or outputs are not believable")
            kind = argument.type or _attr(definition, signature, argument.type_attr).type
            here = [kind] * count
        if argument.is_ref:
            references.extend(range(len(kinds), len(kinds) + len(here)))
        kinds += here
    return kinds, references


def _attr(definition: Any, signature: Any, name: str) -> Any:
    if name in definition.attr:
        return definition.attr[name]
    for one in signature.attr:
        if one.name == name and one.HasField("default_value"):
            return one.default_value
    raise FlatGraphError(f"{definition.name}: {definition.op} needs the attribute {name}")


def argument_names(node: Node) -> Iterator[str]:
    """The registered name of each input, such as "var" or "grad"."""
    signature = tensorflow_private.op_definition(node.op)
    for argument in signature.input_arg if signature is not None else ():
        for _ in _types(node.definition, signature, [argument])[0]:
            yield argument.name
