"""Compares the graph that a file describes with the one that it is loaded into: also where layers have no weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from engine import keras_private
from engine.models.keras.leaves import Leaf, Leaves, is_graph
from engine.models.keras.matching import Pairs
from engine.text import join_some

POOLS = re.compile(r"global_(average|max)_pooling\dd|flatten")
_HEAD_KINDS = re.compile(rf"{POOLS.pattern}|activation|softmax|re_lu|dense|reshape")
# What neither changes a layer's result in inference nor its weights.
_NO_MATTER = re.compile(
    r"name|trainable|dtype|seed|rate|momentum|autocast|synchronized|unroll|implementation|noise_shape|build_config|"
    r"batch_(input_)?shape|sparse|ragged|optional|registered_name|\w*(initializer|regularizer|constraint)|lora_\w+|quantization_config"
)


@dataclass(frozen=True)
class GraphDifferences:
    """How the graph of a file differs from the model's: differences that change results, and what could not be compared."""

    lines: tuple[str, ...]
    notes: tuple[str, ...]


def compare_graphs(ours: Sequence[Leaf], theirs: Leaves, pairs: Pairs, *, new_head: bool) -> GraphDifferences:
    """Compares the layers of a model (or its backbone) with those that surround their partners in a file.

    ``pairs`` are the layers with weights and their partners. With a new head, layers that belong to the file's head, after
    the last partner, do not count.
    """
    partners = {id(leaf) for _, leaf in pairs}
    common = _common_path([leaf.path for _, leaf in pairs])
    scope = [leaf for leaf in theirs if leaf.path[: len(common)] == common and not leaf.neutral]
    containers = {mine.path: leaf.path for mine, leaf in pairs}
    hidden = {path for path, place in containers.items() if place[:1] in theirs.opaque}
    mine = [leaf for leaf in ours if not leaf.arrays and not leaf.neutral and leaf.path not in hidden]
    idle = {leaf.name for leaf in ours if leaf.neutral}
    given = [leaf for leaf in scope if not leaf.arrays and (leaf.kind or leaf.name not in idle)]
    anonymous = theirs.ordered and any(not leaf.name for leaf in given)
    notes = []
    if hidden:
        names = sorted({"/".join(path) or "the model" for path in hidden})
        notes.append(f"the file does not list the layers without weights inside {join_some(names, most=2)}")
    if operations := [leaf for leaf in given if leaf.kind == "tf_op_lambda"]:
        notes.append(f"{len(operations)} operations of TensorFlow in the file were not compared")
        given = [leaf for leaf in given if leaf.kind != "tf_op_lambda"]
    if anonymous:
        lines = _compare_counts(ours, list(theirs), pairs, common, new_head=new_head)
        return GraphDifferences(tuple(lines), tuple(notes))
    same, only_ours, only_theirs = pair_layers(mine, given)
    final = _final(theirs)
    only_theirs = [leaf for leaf in only_theirs if id(leaf) not in final]
    if new_head:
        of_head = [leaf for leaf in only_theirs if id(leaf) in _head_of(theirs, partners, common)]
        only_theirs = [leaf for leaf in only_theirs if leaf not in of_head]
        only_ours = [leaf for leaf in only_ours if not POOLS.fullmatch(leaf.kind) or leaf.path]
        if unsure := [leaf.full_name for leaf in of_head if not POOLS.fullmatch(leaf.kind)]:
            notes.append(f"taken as part of the file's own head: {join_some(unsure, most=3)}")
    lines = [f"{leaf.full_name} ({leaf.kind}): only in the model" for leaf in only_ours]
    lines += [f"{leaf.full_name}{f' ({leaf.kind})' if leaf.kind else ''}: only in the file" for leaf in only_theirs]
    lines += [line for pair in [*pairs, *same] for line in _compare_layers(*pair)]
    return GraphDifferences(tuple(lines), tuple(notes))


def _head_of(theirs: Leaves, partners: set[int], common: tuple[str, ...]) -> set[int]:
    """The file's layers that belong to a head of its own: from the first pooling after the model's layers on.

    Where the order is unknown, these are poolings, and no more activations than there are other layers with weights.
    """
    if not theirs.ordered:
        own = len([leaf for leaf in theirs.weighted if id(leaf) not in partners])
        scope = [leaf for leaf in theirs if not leaf.arrays and leaf.path[: len(common)] == common]
        pools = [leaf for leaf in scope if POOLS.fullmatch(leaf.kind)]
        return {id(leaf) for leaf in [*pools, *[x for x in scope if _HEAD_KINDS.fullmatch(x.kind)][-own:] * bool(own)]}
    last = max((number for number, leaf in enumerate(theirs) if id(leaf) in partners), default=-1)
    after = theirs.all[last + 1 :]
    starts = (n for n, leaf in enumerate(after) if leaf.arrays or not leaf.kind or POOLS.fullmatch(leaf.kind))
    return {id(leaf) for leaf in after[next(starts, len(after)) :]}


def same_heads(ours: Leaves, theirs: Leaves, pairs: Pairs) -> bool:
    """Whether a file and a model that agree in all layers with weights also agree in the others, dropouts included."""
    hidden = {mine.path for mine, leaf in pairs if leaf.path[:1] in theirs.opaque}
    mine = [leaf for leaf in ours if not leaf.arrays and not leaf.is_input and leaf.path not in hidden]
    given = [leaf for leaf in theirs if not leaf.arrays and not leaf.is_input and leaf.kind != "tf_op_lambda"]
    if any(not leaf.name and not leaf.kind for leaf in given):  # a checkpoint, which names no such layer
        heads = {id(leaf) for leaf in ours.weighted if leaf.head}
        names = {id(a): a.full_name for a, _ in pairs}
        here, there = _gaps(ours, names), _gaps(theirs, {id(b): a.full_name for a, b in pairs})
        return all(len(here[names[each]]) == len(there[names[each]]) for each in heads)
    _, only_ours, only_theirs = pair_layers(mine, given)
    final = _final(theirs)
    return not only_ours and all(id(leaf) in final for leaf in only_theirs)


def _final(theirs: Leaves) -> set[int]:
    """A softmax or sigmoid after the last layer with weights: the models here give logits."""
    last = max((number for number, leaf in enumerate(theirs) if leaf.arrays), default=0)
    return {
        id(leaf)
        for leaf in theirs.all[last + 1 :]
        if theirs.ordered
        and leaf.kind in ("activation", "softmax")
        and (leaf.config or {}).get("activation", "softmax") in ("softmax", "sigmoid")
    }


def pair_layers(ours: Sequence[Leaf], theirs: Sequence[Leaf]) -> tuple[Pairs, list[Leaf], list[Leaf]]:
    """Pairs layers without weights: by name, then by class in order, then, where the file names no class, in order."""
    rest, left, pairs = list(ours), list(theirs), []

    def take(mine: Leaf, other: Leaf) -> None:
        pairs.append((mine, other))
        rest.remove(mine)
        left.remove(other)

    for mine in ours:
        other = next((x for x in left if x.name == mine.name and mine.rank is None and x.kind in ("", mine.kind)), None)
        if other is not None:
            take(mine, other)
    for mine in list(rest):
        other = next((x for x in left if x.kind == mine.kind), None)
        if other is not None:
            take(mine, other)
    unknown = [leaf for leaf in left if not leaf.kind]
    if len(unknown) == len(rest) == len(left):
        for mine, other in zip(list(rest), unknown, strict=True):
            take(mine, other)
    return pairs, rest, left


def _compare_counts(
    ours: Sequence[Leaf], theirs: Sequence[Leaf], pairs: Pairs, common: tuple[str, ...], *, new_head: bool
) -> list[str]:
    """A checkpoint names no layer without weights: their number between the others is all that can be compared."""
    partner = {id(mine): leaf for mine, leaf in pairs}
    mine = _gaps(ours, {id(leaf): leaf.full_name for leaf in ours if id(leaf) in partner})
    names = {id(partner[id(leaf)]): leaf.full_name for leaf in ours if id(leaf) in partner}
    given = _gaps([leaf for leaf in theirs if leaf.path[: len(common)] == common], names)
    lines = []
    for name, leaves in mine.items():
        most, least = len(leaves), len([leaf for leaf in leaves if not leaf.neutral])
        found = len(given.get(name, ()))
        if name == "" and new_head:  # after the last layer with weights: the file's own head follows
            most = max(most, found)
        if not least <= found <= most:
            where = f"before {name}" if name else "at the end"
            lines.append(f"{where}: {least} layers without weights in the model, {found} in the file")
    return lines


def _gaps(leaves: Iterable[Leaf], names: dict[int, str]) -> dict[str, list[Leaf]]:
    """The layers without weights before each named layer; those behind the last one under ""."""
    found: dict[str, list[Leaf]] = {}
    gap: list[Leaf] = []
    for leaf in leaves:
        if id(leaf) in names:
            found[names[id(leaf)]], gap = gap, []
        elif not leaf.arrays:
            gap.append(leaf)
    return {**found, "": gap}


def _compare_layers(mine: Leaf, theirs: Leaf) -> list[str]:
    """The differences of two layers whose configurations are known."""
    if mine.config is None or theirs.config is None:
        return []
    if mine.kind != theirs.kind:
        return [f"{mine.full_name}: {mine.kind} in the model, {theirs.kind} in the file"]
    lines = []
    for key in sorted(mine.config.keys() | theirs.config.keys()):
        one, other = (_plain(leaf.config.get(key), leaf) for leaf in (mine, theirs))  # type: ignore[union-attr]
        if one != other and not _NO_MATTER.fullmatch(key) and not (key == "activation" and mine.head):
            lines.append(f"{mine.full_name}: {key}={_short(one)} in the model, {_short(other)} in the file")
    inputs = [_inputs(leaf) for leaf in (mine, theirs)]
    if not lines and inputs[0] != inputs[1]:
        lines.append(f"{mine.full_name}: reads {_words(inputs[0])} in the model, {_words(inputs[1])} in the file")
    return lines


def _inputs(leaf: Leaf) -> list[str]:
    """The classes of the layers that a layer of a model reads in its first call; dropouts are passed over."""
    nodes = keras_private.inbound_nodes(leaf.layer) if leaf.layer is not None else ()
    return sorted(_class_of(parent) for parent in (nodes[0].parent_nodes if nodes else ()))


def _class_of(node: Any) -> str:
    kind = "a model" if is_graph(node.operation) else keras_private.snake_case(type(node.operation).__name__)
    if "dropout" in kind and len(node.parent_nodes) == 1:
        return _class_of(node.parent_nodes[0])
    return kind


def _words(kinds: Sequence[str]) -> str:
    return " and ".join(kinds) or "nothing"


def _common_path(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    shared: list[str] = []
    for column in zip(*paths, strict=False):
        if len(set(column)) != 1:
            break
        shared.append(column[0])
    return tuple(shared)


def _plain(value: Any, leaf: Leaf) -> Any:
    """A value of a configuration as JSON has it; a negative axis counts from the end."""
    value = json.loads(json.dumps(value, default=str))
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, int) and value < 0 and leaf.layer is not None and leaf.kind == "batch_normalization":
        return value + len(leaf.layer.output.shape)
    return value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + " ..."
