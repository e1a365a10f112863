"""Drops the results of branches and loops that nothing reads.

When TensorFlow 2 differentiates a branch or a loop, it makes it return what the gradient needs as well. Without the
gradient these results are of no use, and some of the operations that compute them are not allowed here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from compat_v1.graphs.endpoints import producer, tensor_name
from engine.graphs.reach import reach

_BRANCHES = ("then_branch", "else_branch")
_IFS = frozenset(["If", "StatelessIf"])
_LOOPS = frozenset(["While", "StatelessWhile"])


def drop_unused_results(definition: Any, keep: Iterable[str]) -> None:
    """Changes a GraphDef in place. ``keep`` are the tensors that must stay, as names with a number.

    The names of other results of branches and loops may change, since they are numbered.
    """
    kept = set(keep)
    library = {function.signature.name: function for function in definition.library.function}
    read = kept | {tensor_name(text) for node in definition.node for text in node.input if text[0] != "^"}
    renamed: dict[str, str] = {}
    made: list[Any] = []
    for node in definition.node:
        if node.op not in _IFS | _LOOPS or any(producer(name) == node.name for name in kept):
            continue
        used = sorted(int(name.rpartition(":")[2]) for name in read if producer(name) == node.name)
        left = _trim(node, used, library, made)
        renamed |= {f"{node.name}:{old}": f"{node.name}:{new}" for new, old in enumerate(left)}
    definition.library.function.extend(made)
    for node in definition.node:
        for position, text in enumerate(node.input):
            if text[0] != "^":
                node.input[position] = renamed.get(tensor_name(text), text)


def _trim(node: Any, used: Sequence[int], library: dict[str, Any], made: list[Any]) -> list[int]:
    """Makes a call return only what is used, and what a loop needs for that; returns the numbers that are left."""
    if node.op in _IFS:
        left = list(used)
        for side in _BRANCHES:
            function = library.get(node.attr[side].func.name)
            if function is None or len(left) == len(function.signature.output_arg):
                return list(range(len(node.attr["Tout"].list.type)))
            node.attr[side].func.name = _keep_results(function, left, library, made).signature.name
        _keep_listed(node, ("Tout", "output_shapes"), left)
        return left
    cond, body = (library.get(node.attr[name].func.name) for name in ("cond", "body"))
    every = list(range(len(node.attr["T"].list.type)))
    if cond is None or body is None:
        return every
    left = _needed_by_loop(cond, body, used)
    if left == every:
        return every
    for name, function in (("cond", cond), ("body", body)):
        results = left if name == "body" else [0]
        copied = _keep_results(function, results, library, made)
        arguments = [copied.signature.input_arg[place] for place in left]
        kept = [type(argument)() for argument in arguments]
        for new, old in zip(kept, arguments, strict=True):
            new.CopyFrom(old)
        del copied.signature.input_arg[:]
        copied.signature.input_arg.extend(kept)
        copied.arg_attr.clear()
        copied.resource_arg_unique_id.clear()
        node.attr[name].func.name = copied.signature.name
    _keep_listed(node, ("T", "output_shapes"), left)
    data = [text for text in node.input if text[0] != "^"]
    controls = [text for text in node.input if text[0] == "^"]
    node.input[:] = [data[place] for place in left] + controls
    return left


def _keep_listed(node: Any, names: Sequence[str], left: Sequence[int]) -> None:
    for name in names:
        for listed in (node.attr[name].list.type, node.attr[name].list.shape) if name in node.attr else ():
            if len(listed):
                values = [listed[place] for place in left]
                copies = [
                    value if isinstance(value, int) else type(value).FromString(value.SerializeToString())
                    for value in values
                ]
                del listed[:]
                listed.extend(copies)


def _keep_results(function: Any, left: Sequence[int], library: dict[str, Any], made: list[Any]) -> Any:
    """A copy of a function that returns some of its results, without the nodes that only the others need."""
    copied = type(function)()
    copied.CopyFrom(function)
    copied.signature.name = f"{function.signature.name}_kept_{len(made)}"
    results = [type(each).FromString(each.SerializeToString()) for each in copied.signature.output_arg]
    for place, result in enumerate(results):
        if place not in left:
            del copied.ret[result.name]
    del copied.signature.output_arg[:]
    copied.signature.output_arg.extend(results[place] for place in left)
    needed = _needed(copied, [*copied.ret.values(), *copied.control_ret.values()])
    kept = [type(node).FromString(node.SerializeToString()) for node in copied.node_def if node.name in needed]
    del copied.node_def[:]
    copied.node_def.extend(kept)
    made.append(copied)
    library[copied.signature.name] = copied
    return copied


def _needed(function: Any, ends: Iterable[str]) -> Collection[str]:
    """The nodes and arguments of a function that some of its tensors need."""
    nodes = {node.name: node for node in function.node_def}
    return reach(
        [producer(end) for end in ends],
        lambda name: [producer(text) for text in nodes[name].input] if name in nodes else [],
    ).keys()


def _needed_by_loop(cond: Any, body: Any, used: Sequence[int]) -> list[int]:
    """The loop variables that the condition, the used results, and other such loop variables depend on."""
    places = {
        id(function): {argument.name: place for place, argument in enumerate(function.signature.input_arg)}
        for function in (cond, body)
    }

    def arguments(function: Any, ends: Iterable[str]) -> set[int]:
        return {places[id(function)][name] for name in _needed(function, ends) if name in places[id(function)]}

    # the first two are the counter and its limit, which TensorFlow's gradient of a loop reads
    needed = (
        set(used)
        | set(range(min(2, len(body.signature.input_arg))))
        | arguments(cond, [*cond.ret.values(), *cond.control_ret.values()])
    )
    needed |= arguments(body, body.control_ret.values())
    pending = list(needed)
    while pending:
        result = body.signature.output_arg[pending.pop()].name
        more = arguments(body, [body.ret[result]]) - needed
        needed |= more
        pending += more
    return sorted(needed)
