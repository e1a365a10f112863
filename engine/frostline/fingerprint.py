"""Digests of what a traced graph computes: the same in another process or trace, and under other node names.

The digest of a tensor covers its operation, the attributes that matter, and the digests of the operation's inputs. Equal
digests thus mean equal functions of equal leaves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from engine.errors import InputError

# Operations that return their input unchanged.
_PASSES = frozenset(["Identity", "IdentityN", "StopGradient", "PreventGradient", "Snapshot"])


class FingerprintError(InputError):
    """A graph with a cycle, that is, a loop of TensorFlow 1's control flow."""


class Digests:
    """Digests of a traced graph's tensors.

    ``leaf`` maps the tensor of an operation without inputs, such as an input or a variable, to the text that identifies it
    (a variable's value, or just which one it is); None if the operation and its attributes suffice.
    """

    def __init__(self, graph: Any, leaf: Callable[[Any], str | None]) -> None:
        self._leaf = leaf
        self._found: dict[Any, str] = {}
        self._library = {f.signature.name: f for f in graph.as_graph_def().library.function}
        self._functions: dict[str, str] = {}

    def compute(self, tensors: Iterable[Any]) -> list[str]:
        """The SHA-256 (hexadecimal) of each tensor; FingerprintError if one depends on a loop in the graph itself."""
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
                raise FingerprintError(f"{op.name} is part of a loop of TF1's control flow, which has no digest")
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
        for name in sorted(node.attr):  # the order of a protobuf map is undefined
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
        """The digest of a library function, independent of the names in its body."""
        if name not in self._functions:
            self._functions[name] = "itself"  # a function may call itself
            self._functions[name] = self._body(self._library[name]) if name in self._library else name
        return self._functions[name]

    def _body(self, function: Any) -> str:
        nodes = {node.name: node for node in function.node_def}
        made = {one.name: f"argument {n} {one.type}" for n, one in enumerate(function.signature.input_arg)}
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
            if waiting := [other for other in before if other not in made]:
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
