"""Converts loops of TensorFlow 1 (Enter, Merge, Switch, NextIteration, Exit) to While with functions.

A loop is what one LoopCond governs. Its variables are the Merges of an Enter and a NextIteration: the Enter has the
first value, the NextIteration the next one, and the Switch of a Merge leads into the next iteration or to an Exit. An
Enter that is constant is an invariant of the loop. Loops within loops are converted first. What no output needs is
left out, as a Session does.

The first two variables of a While are the number of iterations and a limit (-1 for none), since the gradient that
TensorFlow registers for While reads them.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from compat_v1.graphs import conds
from compat_v1.graphs.counting import constant_of, is_number
from compat_v1.graphs.draft import Draft, call_function, control_inputs, data_inputs, make_node
from compat_v1.graphs.endpoints import producer
from compat_v1.graphs.function_parts import Part, Place

Frame = tuple[str, ...]
_ITERATIONS, _LIMIT = "iterations", "limit"  # the keys of the first two arguments; the others are tuples

_PARALLEL = 10  # iterations, unless an Enter states another number


def convert_loops(draft: Draft) -> None:
    """Replaces every loop by a While. Raises GraphError if one is not built as ``tf.while_loop`` builds them."""
    frames = find_frames(draft)
    loops = [name for name, node in draft.nodes.items() if node.op == "LoopCond"]
    for name in sorted(loops, key=lambda name: -len(frames[name])):
        if name in draft.nodes:  # still, if the others need it
            _Loop(draft, name).convert()
    draft.prune()
    for node in draft.nodes.values():
        if node.op in ("Enter", "Exit", "NextIteration", "LoopCond"):
            raise draft.refusal(node, "it is not part of a loop as tf.while_loop builds it; name outputs without it")


def find_frames(draft: Draft) -> dict[str, Frame]:
    """Returns node -> the loops in which it runs, outermost first, by the names that their Enters give.

    An Enter runs outside of its loop, an Exit inside. Raises GraphError if a node has inputs from different loops.
    """
    readers, made = draft.readers(), draft.constants
    frames: dict[str, Frame] = {
        name: () for name in draft.nodes if name not in made and made.issuperset(draft.producers(name))
    }
    pending = list(frames)
    for name in pending:  # grows
        node, frame = draft.nodes[name], frames[name]
        if node.op == "Enter":
            frame = (*frame, node.attr["frame_name"].s.decode(errors="replace"))
        elif node.op == "Exit":
            if not frame:
                raise draft.refusal(node, "it is not in a loop; the graph is damaged")
            frame = frame[:-1]
        for reader in readers.get(name, ()):
            if reader.name not in frames:
                frames[reader.name] = frame
                pending.append(reader.name)
            elif frames[reader.name] != frame:
                raise draft.refusal(reader, "its inputs are in different loops; the graph is damaged")
    for name, node in draft.nodes.items():
        if name in made:
            frames[name] = ()
        elif name not in frames:
            raise draft.refusal(node, "it waits for itself; the graph is damaged")
        elif frames[name] and any(producer(text) not in draft.nodes for text in node.input):
            raise draft.refusal(node, "its inputs are in different loops; feed or name tensors outside of loops")
    for tensor in draft.keep:
        kept = draft.nodes.get(producer(tensor))
        if kept is not None and (kept.op == "Enter" or len(frames[kept.name]) > (kept.op == "Exit")):
            raise draft.refusal(kept, "it is in a loop and has no single value; name a tensor outside")
    return frames


class _Loop:
    """The loop that one LoopCond governs."""

    def __init__(self, draft: Draft, name: str) -> None:
        self._draft, self._name = draft, name
        self._arguments: dict[Any, int] = {_ITERATIONS: 0, _LIMIT: 1}
        self._enters: dict[str, Any] = {}
        self._switches: list[Any] = []
        self._owners: dict[str, set[str]] = {}  # Merge -> the LoopConds of its Switches
        for node in draft.nodes.values():
            owner = draft.nodes.get(producer(node.input[1])) if node.op == "Switch" and len(node.input) > 1 else None
            if owner is not None and owner.op == "LoopCond":
                self._owners.setdefault(producer(node.input[0]), set()).add(owner.name)
                if owner.name == name:
                    self._switches.append(node)

    def convert(self) -> None:
        """Replaces the loop by a While of the LoopCond's name, and its Exits by Identities."""
        draft = self._draft
        switches = {node.name for node in self._switches}
        exits = [node for node in draft.nodes.values() if node.op == "Exit" and producer(node.input[0]) in switches]
        self._wait_in_condition()
        test, body = (
            Part(draft, draft.nodes, self._arguments, place=self._place, place_control=self._place_control)
            for _ in range(2)
        )
        goes_on = test.add(f"{self._name}:0")
        ends = {node.name: self._find_exit(node) for node in exits}
        for key in ends.values():
            self._arguments.setdefault(key, len(self._arguments))
        results = self._add_body(body)
        for name in set(test.originals) & set(body.originals):
            if not draft.is_repeatable(draft.nodes[name]):
                raise draft.refusal(draft.nodes[name], "it runs in the condition and in the body of a loop")
        inputs = [self._first_value(key) for key in self._arguments]
        types = [draft.type_of(tensor) for tensor in inputs]
        functions = []
        for stem, part, wanted in (("condition", test, [goes_on]), ("body", body, results)):
            nodes = conds.convert_conds(draft, part.nodes, wanted)
            functions.append(draft.add_function(f"{self._name}_{stem}", nodes, types, wanted))
        inside = [*test.nodes.values(), *body.nodes.values()]
        in_order = all(draft.is_repeatable(node) for node in inside)
        waits = [text for enter in self._enters.values() for text in control_inputs(enter)]
        loop = make_node(
            self._name,
            "While" if any(draft.is_stateful(node) for node in inside) else "StatelessWhile",
            [*inputs, *dict.fromkeys(waits)],
            T=types,
            cond=call_function(functions[0]),
            body=call_function(functions[1]),
            parallel_iterations=max(self._parallel(), 1) if in_order else 1,
            _lower_using_switch_merge=True,
        )
        for index in range(len(types)):
            loop.attr["output_shapes"].list.shape.add().unknown_rank = index > 1
        for node in exits:
            index = self._arguments[ends[node.name]]
            draft.nodes[node.name] = make_node(node.name, "Identity", [f"{self._name}:{index}"], T=types[index])
        draft.nodes[self._name] = loop
        draft.prune()

    def _wait_in_condition(self) -> None:
        """Lets the condition wait for what a Merge or a Switch of the loop waits for."""
        condition = self._draft.nodes[self._name]
        waits = [text for node in self._switches for text in control_inputs(node)]
        for node in self._switches:
            source = self._draft.nodes[producer(node.input[0])]
            waits += control_inputs(source) if source.op == "Merge" else []
        condition.input.extend(text for text in dict.fromkeys(waits) if text not in condition.input)

    def _place(self, tensor: str) -> Place:
        node = self._draft.nodes[producer(tensor)]
        if node.op == "Switch" and producer(node.input[1]) == self._name:
            if tensor.endswith(":0"):
                raise self._draft.refusal(node, "the loop reads its value after the last iteration")
            tensor = node.input[0]
            node = self._draft.nodes[producer(tensor)]
        if node.op == "Enter":
            return self._place_invariant(node)
        if not self._is_variable(node):
            return Place(tensor)
        if tensor.endswith(":1"):
            raise self._draft.refusal(node, "the loop asks whether this is the first iteration (value_index)")
        if not self._owners.get(node.name, {self._name}) <= {self._name}:
            raise self._draft.refusal(node, "two loops share it; the graph is damaged")
        return Place(tensor, ("variable", node.name))

    def _place_invariant(self, enter: Any) -> Place:
        draft, source = self._draft, enter.input[0]
        if not enter.attr["is_constant"].b:
            raise draft.refusal(enter, "the loop reads it in its first iteration only; the graph is damaged")
        while (outer := draft.nodes.get(producer(source))) is not None and outer.op == "Enter":
            source = outer.input[0]
        if draft.is_copied(draft.nodes, source):
            return Place(source)
        self._enters[enter.name] = enter
        return Place(f"{enter.name}:0", ("invariant", enter.input[0]))

    def _place_control(self, name: str) -> str | None:
        nodes = self._draft.nodes
        source = nodes[producer(self._draft.follow_identities(nodes, f"{name}:0"))]
        governed = source.op == "Switch" and producer(source.input[1]) == self._name
        # A While has all of these before it begins an iteration.
        begun = governed or source.op in ("Enter", "LoopCond") or self._is_variable(source)
        return None if begun else ""

    def _is_variable(self, node: Any) -> bool:
        """Whether a node is a Merge of a first value and a next one."""
        sources = [self._draft.nodes.get(producer(text)) for text in data_inputs(node)] if node.op == "Merge" else []
        return any(source is not None and source.op == "NextIteration" for source in sources)

    def _find_exit(self, node: Any) -> tuple[str, str]:
        """Returns the key of the argument whose last value an Exit returns."""
        draft, switch = self._draft, self._draft.nodes[producer(node.input[0])]
        if node.input[0].endswith(":0") and not control_inputs(node):
            source = draft.nodes[producer(switch.input[0])]
            if self._is_variable(source) or source.op == "Enter":
                key = self._place(f"{switch.name}:1").key
                return key if key is not None else self._keep_copied(source)
        raise draft.refusal(node, "it does not return a variable of its loop as it is; name outputs without it")

    def _keep_copied(self, enter: Any) -> tuple[str, str]:
        self._enters[enter.name] = enter
        return ("invariant", enter.input[0])

    def _add_body(self, body: Part) -> list[str]:
        """Copies what computes the next values; returns the results of the body, in the order of the arguments."""
        draft, results = self._draft, list[str]()
        while len(results) < len(self._arguments):  # which grow
            key = list(self._arguments)[len(results)]
            if key == _ITERATIONS:
                before = body.pass_argument(key, tf.int32)
                one = body.add_constant(f"{self._name}/one", 1)
                name = draft.new_name(f"{self._name}/next")
                body.nodes[name] = make_node(name, "AddV2", [before, one], T=tf.int32)
                results.append(f"{name}:0")
            elif key == _LIMIT:
                results.append(body.pass_argument(key, tf.int32))
            elif key[0] == "invariant":
                results.append(body.pass_argument(key, draft.type_of(key[1])))
            else:
                results.append(self._add_next(body, key))
        return results

    def _add_next(self, body: Part, key: tuple[str, str]) -> str:
        """Copies what computes the next value of a variable; returns its tensor in the body."""
        nodes = self._draft.nodes
        sources = [nodes[producer(text)] for text in data_inputs(nodes[key[1]])]
        following = next(node for node in sources if node.op == "NextIteration")
        if control_inputs(following):
            return body.add(f"{following.name}:0")
        source = self._draft.follow_identities(nodes, following.input[0])
        # The gradient takes a result that is the argument itself for an invariant.
        return body.add(source if self._place(source).key == key else following.input[0])

    def _first_value(self, key: Any) -> str:
        """Returns the tensor outside of the loop that an argument begins with."""
        draft = self._draft
        if key == _LIMIT:
            return self._find_limit() or draft.add_constant(f"{self._name}/{key}", -1, tf.int32)
        if key == _ITERATIONS:
            return draft.add_constant(f"{self._name}/{key}", 0, tf.int32)
        if key[0] == "invariant":
            return key[1]
        merge = draft.nodes[key[1]]
        sources = [draft.nodes[producer(text)] for text in data_inputs(merge)]
        if sorted(node.op for node in sources) != ["Enter", "NextIteration"]:
            raise draft.refusal(merge, "it is not a first value and a next one; the graph is damaged")
        enter = next(node for node in sources if node.op == "Enter")
        self._enters[enter.name] = enter
        return enter.input[0]

    def _find_limit(self) -> str:
        """Returns the tensor with the most iterations, "" if it is not known; XLA needs it for the gradient."""
        nodes = self._draft.nodes
        pending = list(nodes[self._name].input[:1])
        for tensor in pending:  # grows: all of these must hold for the loop to go on
            node = nodes.get(producer(self._draft.follow_identities(nodes, tensor)))
            if node is None:
                continue
            if node.op == "LogicalAnd":
                pending += data_inputs(node)
            elif node.op == "Less" and self._counts(node.input[0]) and (found := self._limit_of(node.input[1])):
                return found
        return ""

    def _counts(self, tensor: str) -> bool:
        """Whether a tensor counts the iterations from 0."""
        draft = self._draft
        key = self._place(draft.follow_identities(draft.nodes, tensor)).key
        if key is None or key[0] != "variable" or draft.type_of(tensor) != tf.int32:
            return False
        sources = {node.op: node for node in (draft.nodes[producer(text)] for text in draft.nodes[key[1]].input)}
        if set(sources) != {"Enter", "NextIteration"} or not is_number(draft, sources["Enter"].input[0], 0):
            return False
        after = draft.nodes[producer(draft.follow_identities(draft.nodes, sources["NextIteration"].input[0]))]
        if after.op not in ("Add", "AddV2"):
            return False
        before, one = (draft.follow_identities(draft.nodes, text) for text in data_inputs(after))
        return is_number(draft, one, 1) and self._place(before).key == key

    def _limit_of(self, tensor: str) -> str:
        """Returns a tensor outside of the loop with the same value, if it is a constant or a length; else ""."""
        draft, nodes = self._draft, self._draft.nodes
        place = self._place(draft.follow_identities(nodes, tensor))
        outer = place.key[1] if place.key is not None and place.key[0] == "invariant" else place.tensor
        number = constant_of(draft, outer)
        if number is not None:
            fits = number.ndim == 0 and 0 <= number < 1 << 31
            return draft.add_constant(f"{self._name}/{_LIMIT}", int(number), tf.int32) if fits else ""
        node = nodes.get(producer(draft.follow_identities(nodes, outer)))
        source = nodes.get(producer(node.input[0])) if node is not None and node.op == "StridedSlice" else None
        return outer if source is not None and source.op == "Shape" and place.key is not None else ""

    def _parallel(self) -> int:
        stated = (int(enter.attr["parallel_iterations"].i) for enter in self._enters.values())
        return max((number or _PARALLEL for number in stated), default=_PARALLEL)
