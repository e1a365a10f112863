"""Converts branches of TensorFlow 1 (Switch and Merge) to If with functions.

Nothing in a GraphDef says which nodes belong to a branch, so it is judged from the Switches alone, as the executor
does: a node runs if all its inputs are there, the output of a Switch is there if its condition says so, and a Merge
takes the input that is there. What must hold for a node to run is its set of (condition, value). A Merge whose inputs
need opposite values of one condition, and otherwise the same, becomes a result of an If.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from compat_v1.graphs.draft import (
    ARGUMENT,
    Draft,
    Nodes,
    call_function,
    control_inputs,
    data_inputs,
    make_node,
)
from compat_v1.graphs.endpoints import producer
from compat_v1.graphs.function_parts import Part, Place
from engine.graphs.reach import reach

# What must hold for something to run: (condition, value), each condition once. None for what never runs.
Needs = frozenset[tuple[str, int]] | None
_ALWAYS: frozenset[tuple[str, int]] = frozenset()
_DEEPEST = 64  # levels of branches within branches


def convert_conds(draft: Draft, nodes: Nodes, results: Sequence[str]) -> Nodes:
    """Returns the nodes that the results need, in which every Merge is a result of an If.

    ``nodes`` is a graph, or the body of a function with its arguments; names of tensors stay. Raises GraphError if a
    result is there for one value of a condition only, or a Merge is not what ``tf.cond`` builds.
    """
    draft.depth += 1
    if draft.depth > _DEEPEST:
        raise draft.refusal(nodes[producer(results[0])], f"branches are nested more than {_DEEPEST} deep")
    try:
        return _Branches(draft, nodes, results).convert()
    finally:
        draft.depth -= 1


@dataclass(eq=False)
class _Group:
    """The Merges that become results of one If."""

    condition: str
    rank: int
    merges: list[Any] = field(default_factory=list)
    named: set[str] = field(default_factory=set)  # the nodes by which its branches are known


class _Branches:
    """The branches in a graph or in the body of a function."""

    def __init__(self, draft: Draft, nodes: Nodes, results: Sequence[str]) -> None:
        self._draft, self._results = draft, results
        self._nodes = dict(nodes)
        self._all_read = {text for node in nodes.values() for text in node.input}
        self._order = self._sort()
        self._needs: dict[str, Needs] = {}
        self._effects: set[str] = set()  # nodes that have an effect, or wait for one
        for name in self._order:
            self._needs[name] = self._find_needs(self._nodes[name])
            if draft.has_effect(self._nodes[name]) or not self._effects.isdisjoint(self._producers(name)):
                self._effects.add(name)

    def convert(self) -> Nodes:
        draft = self._draft
        for tensor in self._results:
            if self._needs_of(tensor) != _ALWAYS:
                node = self._nodes[producer(tensor)]
                raise draft.refusal(
                    node, "it is in a branch and has no value when the other is taken; name a tensor after the branches"
                )
        copied: dict[str, _Group] = {}
        for group in self._group():
            parts = self._convert_group(group)
            for name in (name for part in parts for name in part.originals):
                if copied.setdefault(name, group) is not group and not draft.is_repeatable(self._nodes[name]):
                    raise draft.refusal(self._nodes[name], "two conditions in turn need it, and it would run twice")
        needed = reach([producer(tensor) for tensor in self._results], self._producers)
        left = {name: node for name, node in self._nodes.items() if name in needed}
        for node in left.values():
            if node.op in ("Switch", "Merge"):
                raise draft.refusal(node, "it is not part of a branch as tf.cond builds it; name outputs without it")
        return left

    def _producers(self, name: str) -> list[str]:
        return [producer(text) for text in self._nodes[name].input if producer(text) in self._nodes]

    def _sort(self) -> list[str]:
        """Returns the nodes that the results need, each after what it reads."""
        order: list[str] = []
        state: dict[str, bool] = {}  # node -> whether it is done
        pending = [producer(tensor) for tensor in self._results if producer(tensor) in self._nodes]
        while pending:
            name = pending[-1]
            if name not in state:
                state[name] = False
                for source in self._producers(name):
                    if state.get(source) is False:
                        raise self._draft.refusal(self._nodes[name], "it waits for itself; the graph is damaged")
                    if source not in state:
                        pending.append(source)
            else:
                pending.pop()
                if not state[name]:
                    state[name] = True
                    order.append(name)
        return order

    def _needs_of(self, tensor: str) -> Needs:
        """Returns what must hold for a tensor (or, with ``^``, an operation) to be there."""
        name, _, index = tensor.removeprefix("^").partition(":")
        needs = self._needs.get(name, _ALWAYS)
        node = self._nodes.get(name)
        if needs is None or node is None or node.op != "Switch" or tensor.startswith("^"):
            return needs
        return _join([needs, frozenset([(self._condition(node), int(index))])])

    def _condition(self, switch: Any) -> str:
        return self._draft.follow_identities(self._nodes, switch.input[1], waiting=True)

    def _find_needs(self, node: Any) -> Needs:
        if node.op != "Merge":
            return _join([self._needs_of(text) for text in node.input])
        alive = [text for text in data_inputs(node) if self._needs_of(text) is not None]
        if len(alive) == 1:  # the other conditions exclude each other
            self._replace_only(node, alive[0])
            return self._needs_of(alive[0])
        if not alive:
            return None
        first, second = (self._needs_of(alive[0]), self._needs_of(alive[1]))
        assert first is not None
        assert second is not None
        differing = sorted(first ^ second)
        opposite = len(differing) == 2 and differing[0][0] == differing[1][0]
        if len(alive) > 2 or not opposite:
            raise self._draft.refusal(
                node, "it does not choose between the two sides of one condition; name outputs that do not need it"
            )
        return first & second

    def _replace_only(self, merge: Any, tensor: str) -> None:
        """Replaces a Merge of which only one input is ever there."""
        if self._is_read(f"{merge.name}:1"):
            raise self._draft.refusal(merge, "only one of its sides can ever be taken; name outputs without it")
        inputs = [tensor, *control_inputs(merge)]
        self._nodes[merge.name] = make_node(merge.name, "Identity", inputs, T=self._draft.type_of(tensor, self._nodes))

    def _group(self) -> list[_Group]:
        """Groups the outermost Merges, so that what a ``tf.cond`` returned is one If and no If waits for itself.

        Merges belong together if their branches have a node in common, or their Switches the Identity that every
        ``tf.cond`` makes of its condition. The rank of a group is higher than that of every group that it waits for; a
        Merge joins a group only if that stays so.
        """
        outermost = [name for name in self._order if self._nodes[name].op == "Merge" and self._needs[name] == _ALWAYS]
        branches = {name: self._find_branches(self._nodes[name]) for name in outermost}
        together = _Sets()
        for name, (condition, found) in branches.items():
            for other in found:
                together.join((condition, name), (condition, other))
        groups: dict[Any, list[_Group]] = {}
        ranks: dict[str, int] = {}
        for name in self._order:
            rank = max((ranks.get(source, 0) for source in self._producers(name)), default=0)
            if name in branches:
                condition, found = branches[name]
                known = groups.setdefault(together.find((condition, name)), [])
                group = next((each for each in known if each.rank > rank), None)
                if group is None:
                    group = _Group(condition, rank + 1)
                    known.append(group)
                group.merges.append(self._nodes[name])
                group.named.update(found)
                rank = group.rank
            ranks[name] = rank
        return sorted((group for known in groups.values() for group in known), key=lambda group: group.rank)

    def _find_branches(self, merge: Any) -> tuple[str, set[str]]:
        """Returns the condition of a Merge, and the nodes by which its branches are known.

        These are the nodes inside, the Switches at the border, and what gives these their condition, unless that is the
        condition itself.
        """
        first, second = (self._needs_of(tensor) for tensor in data_inputs(merge)[:2])
        ((condition, _),) = (first or _ALWAYS) - (second or _ALWAYS)
        found: set[str] = set()

        def inner(name: str) -> list[str]:
            found.add(name)
            node = self._nodes[name]
            if node.op == "Switch" and self._condition(node) == condition:
                found.update(producer(text) for text in node.input[1:2] if text != condition)
                return []
            sources = self._producers(name)
            return [each for each in sources if condition in dict(self._needs[each] or ()) or self._is_switch(each)]

        reach([producer(text) for text in data_inputs(merge)], inner)
        return condition, found

    def _is_switch(self, name: str) -> bool:
        return self._nodes[name].op == "Switch"

    def _convert_group(self, group: _Group) -> tuple[Part, Part]:
        """Replaces Merges of one condition by results of an If; returns the parts of its two branches."""
        draft, nodes = self._draft, self._nodes
        arguments: dict[Any, int] = {}
        sides = (self._part(group, 0, arguments), self._part(group, 1, arguments))
        asked = {name for name in (each.name for each in group.merges) if self._is_read(f"{name}:1")}
        results: tuple[list[str], list[str]] = ([], [])
        waits: dict[str, None] = {}
        for merge in group.merges:
            for index, tensor in enumerate(data_inputs(merge)):
                needs = self._needs_of(tensor)
                if needs is None:
                    raise draft.refusal(merge, "only one of its sides can ever be taken; name outputs without it")
                value = dict(needs)[group.condition]
                results[value].append(self._add_result(sides[value], merge, tensor, value, group))
                if merge.name in asked:
                    results[value].append(sides[value].add_constant(f"{merge.name}/value_index", index))
            waits |= {text: None for text in control_inputs(merge) if self._needs_of(text) == _ALWAYS}
        functions, stateful = [], False
        for stem, part, wanted in zip(("else", "then"), sides, results, strict=True):
            inside = convert_conds(draft, part.nodes, wanted)
            types = [draft.type_of(tensor, nodes) for tensor in arguments]
            functions.append(draft.add_function(f"{group.merges[0].name}_{stem}", inside, types, wanted))
            stateful |= any(draft.is_stateful(node) for node in inside.values())
            waits |= {f"^{name}": None for name in part.waits if name in self._effects}
        conditions = {producer(nodes[name].input[1]) for name in group.named if self._is_switch(name)}
        waits |= {f"^{name}": None for name in sorted(conditions & self._effects)}
        kinds = [
            draft.type_of(f"{merge.name}:{k}", nodes)
            for merge in group.merges
            for k in range(1 + (merge.name in asked))
        ]
        chosen = make_node(
            draft.new_name(f"{group.merges[0].name}/If"),
            "If" if stateful else "StatelessIf",
            [group.condition, *arguments, *waits],
            Tcond=tf.bool,
            Tin=[draft.type_of(tensor, nodes) for tensor in arguments],
            Tout=kinds,
            then_branch=call_function(functions[1]),
            else_branch=call_function(functions[0]),
            _lower_using_switch_merge=True,
        )
        nodes[chosen.name] = chosen
        count = 0
        for merge in group.merges:
            if merge.name in asked:
                texts = [f"{chosen.name}:{count}", f"{chosen.name}:{count + 1}"]
                nodes[merge.name] = make_node(merge.name, "IdentityN", texts, T=kinds[count : count + 2])
            else:
                nodes[merge.name] = make_node(merge.name, "Identity", [f"{chosen.name}:{count}"], T=kinds[count])
            count += 1 + (merge.name in asked)
        return sides

    def _is_read(self, tensor: str) -> bool:
        return tensor in self._results or tensor in self._draft.keep or tensor in self._all_read

    def _add_result(self, part: Part, merge: Any, tensor: str, value: int, group: _Group) -> str:
        """Copies what one side of a Merge needs, and what the Merge waits for on this side; returns its result."""
        result = part.add(tensor)
        inside = (group.condition, value)
        waits = [text for text in control_inputs(merge) if inside in (self._needs_of(text) or ())]
        if not waits:
            return result
        name = self._draft.new_name(f"{merge.name}/result")
        node = make_node(name, "Identity", [result], T=self._draft.type_of(result, part.nodes))
        part.nodes[name] = node
        node.input.extend(text for text in (part.add_control(text) for text in waits) if text)
        return f"{name}:0"

    def _part(self, group: _Group, value: int, arguments: dict[Any, int]) -> Part:
        nodes, draft = self._nodes, self._draft
        inside = (group.condition, value)

        def is_switch(node: Any) -> bool:
            return node is not None and node.op == "Switch" and self._condition(node) == group.condition

        def place(tensor: str) -> Place:
            source = tensor
            while is_switch(nodes.get(producer(source))):
                source = nodes[producer(source)].input[0]
            if draft.is_copied(nodes, source) or inside in (self._needs_of(source) or ()):
                return Place(source)
            return Place(tensor, source)

        def place_control(name: str) -> str | None:
            source = self._draft.follow_identities(nodes, f"{name}:0")
            node = nodes.get(producer(source))
            if is_switch(node):
                return producer(nodes[producer(source)].input[0])
            if node is not None and node.op in (ARGUMENT, "Const") and not node.input:
                return None
            return "" if inside in (self._needs.get(name) or ()) else name

        return Part(draft, nodes, arguments, place=place, place_control=place_control)


class _Sets:
    """Disjoint sets that are joined."""

    def __init__(self) -> None:
        self._parent: dict[Any, Any] = {}

    def find(self, item: Any) -> Any:
        """Returns the member that stands for the set of an item."""
        while (parent := self._parent.setdefault(item, item)) != item:
            self._parent[item] = self._parent[parent]
            item = parent
        return item

    def join(self, first: Any, second: Any) -> None:
        self._parent[self.find(first)] = self.find(second)


def _join(all_needs: Iterable[Needs]) -> Needs:
    """Returns what must hold for all; None if two exclude each other."""
    found: dict[str, int] = {}
    for needs in all_needs:
        if needs is None:
            return None
        for condition, value in needs:
            if found.setdefault(condition, value) != value:
                return None
    return frozenset(found.items())
