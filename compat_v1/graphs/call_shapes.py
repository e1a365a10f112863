"""Finds the shapes that loops and branches return, which TensorFlow does not infer from their functions.

A Merge had the shape that both of its inputs have, and an If has none. Without shapes, nothing that depends on them
can be built on the outputs of a graph, such as a new head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from compat_v1.graphs.draft import data_inputs, output_names
from compat_v1.graphs.endpoints import producer, tensor_name, types_of
from engine import tensorflow_private
from engine.graphs.op_kinds import called_functions
from engine.graphs.reach import reach

_LOOPS = frozenset(["While", "StatelessWhile"])
_CALLS = _LOOPS | {"If", "StatelessIf"}
_MOST_ROUNDS = 12  # through a loop, until its shapes stay
_REFUSALS = (ValueError, TypeError, tf.errors.OpError)


def set_call_shapes(definition: Any, feeds: Mapping[str, Any]) -> None:
    """Sets ``output_shapes`` of the While and If of a GraphDef, also in its functions, which each have one caller.

    ``feeds`` are the tensors that are mapped in, by name. A loop whose shapes change returns unknown lengths. The graph
    must have passed ``safety.check_graph``, since TensorFlow computes constants where shapes depend on them.
    """
    if not any(node.op in _CALLS for node in definition.node):
        return
    with tf.Graph().as_default():
        known = {}
        for name, tensor in feeds.items():
            known[name] = tf.compat.v1.placeholder(tensor.dtype, tensor.shape)
            tensorflow_private.copy_handle_data(tensor, known[name])
        shapes = _Shapes(definition)
        shapes.infer(definition.node, known)
    shapes.set_element_shapes()


class _Shapes:
    """Infers shapes in the current graph."""

    def __init__(self, definition: Any) -> None:
        self._versions, self._whole = definition.versions, definition.library
        self._library = {function.signature.name: function for function in definition.library.function}
        # (function, the Const of the shape of an element that is read) -> this shape
        self._elements: dict[tuple[str, str], tf.TensorShape] = {}

    def set_element_shapes(self) -> None:
        """States the shapes of the elements that functions read from lists, which are known only from outside."""
        for function in self._library.values():
            for node in function.node_def:
                shape = self._elements.get((function.signature.name, node.name))
                if shape is not None and node.op == "Const":
                    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(shape.as_list(), tf.int32))

    def infer(self, nodes: Iterable[Any], known: dict[str, Any]) -> None:
        """Adds the tensors of all nodes to ``known``, and sets the shapes of calls."""
        waiting: list[Any] = []
        for node in _sort(list(nodes)):
            if node.op not in _CALLS:
                waiting.append(node)
                continue
            self._import(waiting, known)
            waiting = []
            inputs = [known.get(tensor_name(text)) for text in data_inputs(node)]
            types, shapes = types_of(node, self._library), _unknown(node)
            if all(tensor is not None for tensor in inputs):
                shapes = (self._of_loop if node.op in _LOOPS else self._of_branches)(node, inputs)
            _set_shapes(node, shapes)
            for index, (dtype, shape) in enumerate(zip(types, shapes, strict=True)):
                known[f"{node.name}:{index}"] = tf.compat.v1.placeholder(dtype, shape)
                if node.op in _LOOPS and inputs[index] is not None:
                    tensorflow_private.copy_handle_data(inputs[index], known[f"{node.name}:{index}"])
        self._import(waiting, known)

    def _import(self, nodes: Sequence[Any], known: dict[str, Any]) -> None:
        part = tf.compat.v1.GraphDef(versions=self._versions)
        wanted: list[str] = []
        for node in nodes:
            copy = part.node.add()
            copy.CopyFrom(node)
            copy.input[:] = data_inputs(node)
            wanted += [f"{node.name}:{index}" for index in range(len(types_of(node, self._library)))]
        if any(node.op in self._library or any(called_functions(node)) for node in nodes):
            part.library.CopyFrom(self._whole)
        read = {tensor_name(text) for node in part.node for text in node.input}
        mapped = {name: tensor for name, tensor in known.items() if name in read}
        wanted = [name for name in wanted if name not in known]
        known |= zip(wanted, tf.graph_util.import_graph_def(part, mapped, wanted, name="part"), strict=True)
        for node in part.node:
            if node.op == "TensorListFromTensor":
                known[f"{node.name}:0"] = _list_like(known[tensor_name(node.input[0])], known[f"{node.name}:0"])

    def _results(self, function: str, inputs: Sequence[tuple[Any, tf.TensorShape]]) -> list[tf.TensorShape]:
        """Returns the shapes of the results of a function, given tensors like its arguments, and their shapes."""
        found = self._library[function]
        names = {each.name: f"{each.name}:0" for each in found.signature.input_arg}  # in a function -> in a graph
        for node in found.node_def:
            outputs = output_names(node, self._library)
            names |= {f"{node.name}:{name}": f"{node.name}:{index}" for index, name in enumerate(outputs)}
        nodes = [tf.compat.v1.NodeDef() for _ in found.node_def]
        for node, original in zip(nodes, found.node_def, strict=True):
            node.CopyFrom(original)
            node.input[:] = [names[text] for text in data_inputs(original)]
        with tf.Graph().as_default():
            known = {}
            for argument, (tensor, shape) in zip(found.signature.input_arg, inputs, strict=True):
                known[names[argument.name]] = tf.compat.v1.placeholder(tensor.dtype, shape)
                tensorflow_private.copy_handle_data(tensor, known[names[argument.name]])
            self.infer(nodes, known)
            results = [known[names[found.ret[each.name]]].shape for each in found.signature.output_arg]
        inferred = {node.name: node for node in nodes}
        for node in found.node_def:
            if node.op in _CALLS:
                node.attr["output_shapes"].CopyFrom(inferred[node.name].attr["output_shapes"])
            elif node.op == "TensorListGetItem":
                shape, key = known[f"{node.name}:0"].shape, (function, producer(node.input[2]))
                self._elements.pop(key, None)
                if shape.is_fully_defined():
                    self._elements[key] = shape
        return results

    def _of_branches(self, node: Any, inputs: Sequence[Any]) -> list[tf.TensorShape]:
        given = [(tensor, tensor.shape) for tensor in inputs[1:]]
        names = [node.attr[side].func.name for side in ("then_branch", "else_branch")]
        try:
            sides = [self._results(name, given) for name in names]
        except _REFUSALS:  # such a side is never taken
            self._forget(names)
            return _unknown(node)
        return [_join(first, second) for first, second in zip(*sides, strict=True)]

    def _of_loop(self, node: Any, inputs: Sequence[Any]) -> list[tf.TensorShape]:
        names = [node.attr[part].func.name for part in ("cond", "body")]
        shapes = [tensor.shape for tensor in inputs]
        for number in range(_MOST_ROUNDS + 1):
            if number == _MOST_ROUNDS:
                shapes = _unknown(node)
            try:
                _, after = (self._results(name, list(zip(inputs, shapes, strict=True))) for name in names)
            except _REFUSALS:
                break
            joined = [_join(first, second) for first, second in zip(shapes, after, strict=True)]
            if [shape.as_proto() for shape in joined] == [shape.as_proto() for shape in shapes]:
                return shapes
            shapes = joined
        self._forget(names)
        return _unknown(node)

    def _forget(self, names: Iterable[str]) -> None:
        """Removes the shapes that were found in functions and in those that they call."""

        def called(name: str) -> list[str]:
            return [each for node in self._library[name].node_def for each in called_functions(node)]

        for name in reach(names, called):
            for node in self._library[name].node_def:
                if node.op in _CALLS:
                    _set_shapes(node, _unknown(node))
            self._elements = {key: shape for key, shape in self._elements.items() if key[0] != name}


def _list_like(tensor: Any, made: Any) -> Any:
    """Returns a list of tensors like the rows of a tensor; TensorFlow takes for the shape only what the list states."""
    if tensor.shape.rank is None or not tensor.shape[1:].is_fully_defined():
        return made
    shape = tensor.shape[1:].as_list()
    return tf.raw_ops.TensorListReserve(
        element_shape=tf.constant(shape, tf.int32), num_elements=1, element_dtype=tensor.dtype
    )


def _unknown(node: Any) -> list[tf.TensorShape]:
    """Returns the shapes of a call of which nothing is known but that a loop counts its iterations."""
    types = node.attr["T" if node.op in _LOOPS else "Tout"].list.type
    return [tf.TensorShape([] if node.op in _LOOPS and index < 2 else None) for index in range(len(types))]


def _set_shapes(node: Any, shapes: Iterable[tf.TensorShape]) -> None:
    node.attr["output_shapes"].list.ClearField("shape")
    node.attr["output_shapes"].list.shape.extend(shape.as_proto() for shape in shapes)


def _join(first: tf.TensorShape, second: tf.TensorShape) -> tf.TensorShape:
    """Returns the most precise shape that both have."""
    if first.rank is None or first.rank != second.rank:
        return tf.TensorShape(None)
    return tf.TensorShape([a if a == b else None for a, b in zip(first.as_list(), second.as_list(), strict=True)])


def _sort(nodes: list[Any]) -> list[Any]:
    """Returns nodes, each after those that it reads."""
    names = {node.name: node for node in nodes}
    order: dict[str, Any] = {}
    pending = [node.name for node in reversed(nodes)]
    while pending:
        name = pending[-1]
        missing = [each for each in map(producer, data_inputs(names[name])) if each in names and each not in order]
        if missing and name not in order:
            pending += missing
        else:
            pending.pop()
            order.setdefault(name, names[name])
    return list(order.values())
