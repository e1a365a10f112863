"""Digests of what a traced graph computes: the same in another process, another trace, under other node names.

A tensor's digest is made of its operation, the attributes that count, and the digests of what it reads. So equal
digests are equal functions of equal leaves; what a leaf is (a variable's value, or just which variable), the caller says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from engine.errors import InputError

# They give what they are given.
_PASSES = frozenset(["Identity", "IdentityN", "StopGradient", "PreventGradient", "Snapshot"])

Leaf = Callable[[Any], str | None]


class FingerprintError(InputError):
    """A graph with a cycle: a loop as TensorFlow 1 wrote it."""


class Digests:
    """Digests of a graph's tensors.

    Args:
        graph: the traced graph.
        leaf: tensor of an operation without inputs -> text that stands for it, as for an input or a variable; None where
            the operation says it all.
    """

    def __init__(self, graph: Any, leaf: Leaf) -> None:
        self._leaf = leaf
        self._found: dict[Any, str] = {}
        self._library = {f.signature.name: f for f in graph.as_graph_def().library.function}
        self._functions: dict[str, str] = {}

    def of(self, tensors: Iterable[Any]) -> list[str]:
        """SHA-256 (hexadecimal) of each tensor.

        Raises:
            FingerprintError: one depends on a loop whose operations are in the graph itself.
        """
        tensors = list(tensors)
        opened: set[Any] = set()
        pending = [tensor.op for tensor in tensors]
        while pending:
            op = pending[-1]
            waiting = [tensor.op for tensor in op.inputs if tensor.op not in self._found]
            if op in self._found or not waiting:
                pending.pop()
                self._found.setdefault(op, self._op(op) if not waiting else "")
            elif op in opened:
                raise FingerprintError(f"{op.name} is in a loop of TF1's control flow, which has no digest")
            else:
                opened.add(op)
                pending.extend(waiting)
        return [self._tensor(tensor) for tensor in tensors]

    def _tensor(self, tensor: Any) -> str:
        while tensor.op.type in _PASSES:
            tensor = tensor.op.inputs[tensor.value_index]
        return f"{self._found[tensor.op]}:{tensor.value_index}"

    def _op(self, op: Any) -> str:
        if not op.inputs and op.outputs and (text := self._leaf(op.outputs[0])) is not None:
            return _sha("leaf", text)
        return _sha(op.type, *self._attributes(op.node_def), *(self._tensor(tensor) for tensor in op.inputs))

    def _attributes(self, node: Any) -> list[str]:
        found = []
        for name in sorted(node.attr):  # a map has no order of its own
            value = node.attr[name]
            if name.startswith("_") or name in ("output_shapes", "shared_name", "config", "config_proto"):
                continue
            if value.WhichOneof("value") == "func":
                found.append(f"{name}={self._function(value.func.name)}")
            elif value.list.func:
                found.append(f"{name}={[self._function(function.name) for function in value.list.func]}")
            else:
                found.append(f"{name}={value.SerializeToString(deterministic=True).hex()}")
        return found

    def _function(self, name: str) -> str:
        """Of a library function: its body under names that count from 0 in the order of what its results need."""
        if name not in self._functions:
            self._functions[name] = "itself"  # functions may call themselves
            self._functions[name] = self._body(self._library[name]) if name in self._library else name
        return self._functions[name]

    def _body(self, function: Any) -> str:
        nodes = {node.name: node for node in function.node_def}
        made = {
            argument.name: f"argument {n} {argument.type}" for n, argument in enumerate(function.signature.input_arg)
        }
        roots = [function.ret[output.name] for output in function.signature.output_arg]
        controls = [function.control_ret[key] for key in sorted(function.control_ret)]

        def source(text: str) -> str:
            name, _, rest = text.lstrip("^").partition(":")
            return f"{made[name]} {rest}"

        pending = [text.lstrip("^").partition(":")[0] for text in (*roots, *controls)]
        while pending:
            name = pending[-1]
            if name in made:
                pending.pop()
                continue
            node = nodes[name]
            before = [text.lstrip("^").partition(":")[0] for text in node.input]
            waiting = [other for other in before if other not in made]
            if waiting:
                pending.extend(waiting)
                continue
            data = [source(text) for text in node.input if not text.startswith("^")]
            waits = sorted(source(text) for text in node.input if text.startswith("^"))
            made[name] = _sha(node.op, *self._attributes(node), *data, *waits)
            pending.pop()
        return _sha(*(source(text) for text in roots), *sorted(made[name] for name in controls))


def _sha(*parts: str) -> str:
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(f"{len(part)}:{part}".encode())
    return hasher.hexdigest()
