"""Compares the graph that a file describes with the one that it is loaded into: also where layers have no weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from engine import keras_private
from engine.data import Normalise
from engine.models.keras.leaves import POOLS, Leaf, Leaves, is_graph
from engine.models.keras.matching import Pairs
from engine.models.keras.operations import describe_uncompared, find_hard_silu, kind_of
from engine.models.keras.outside_layers import judge_outside, name_leaf, prepares_images_alike
from engine.text import join_some

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


def compare_graphs(
    ours: Sequence[Leaf],
    theirs: Leaves,
    pairs: Pairs,
    *,
    new_head: bool,
    head: Sequence[tuple[Leaf, Leaf]] = (),
    whole: bool = False,
    images: Normalise | None = None,
) -> GraphDifferences:
    """Compares the layers of a model (or its backbone) with those that surround their partners in a file.

    ``pairs`` are the layers with weights and their partners, ``head`` those of a head that is loaded too. With a new head,
    layers that belong to the file's head, after the last partner, do not count. ``whole`` says that all weights of the file are taken and the head too, so that layers
    outside of the partners' model make a difference as well; ``images`` is how the model's images are prepared.
    """
    partners = {id(leaf) for _, leaf in pairs}
    common = _common_path([leaf.path for _, leaf in pairs])
    hidden = _hidden_paths(theirs, [*pairs, *head])
    mine = [leaf for leaf in ours if not leaf.arrays and not leaf.neutral and leaf.path not in hidden]
    idle = {leaf.name for leaf in ours if leaf.neutral}
    given = [leaf for leaf in theirs if not leaf.arrays and not leaf.neutral and (leaf.kind or leaf.name not in idle)]
    notes = describe_comparison(theirs)
    if hidden:
        names = sorted({"/".join(path) or "the model" for path in hidden})
        notes.append(f"the file does not list the layers without weights inside {join_some(names, most=2)}")
    operations = [leaf for leaf in given if leaf.kind == "tf_op_lambda"]
    if operations:
        notes.append(f"{len(operations)} operations of TensorFlow in the file were not compared")
        given = [leaf for leaf in given if leaf.kind != "tf_op_lambda"]
    if notes and (unlisted := [leaf.kind for leaf in mine if leaf.is_operation]):
        notes.append(describe_uncompared(unlisted))
        mine = [leaf for leaf in mine if not leaf.is_operation]
    if theirs.ordered and any(not leaf.name for leaf in given):
        lines = _compare_counts(ours, list(theirs), pairs, common, new_head=new_head)
        return GraphDifferences(tuple(lines), (*notes, *_count_before(theirs, partners, common)))
    same, only_ours, only_theirs = pair_layers(mine, given)
    final = _final(theirs) | _drop_composed(only_ours, only_theirs, len(operations), notes)
    only_theirs = [leaf for leaf in only_theirs if id(leaf) not in final]
    strict = whole and not new_head
    outside = judge_outside(only_theirs, theirs, partners, common, strict=strict, images=images)
    only_theirs = [leaf for leaf in only_theirs if id(leaf) not in outside.judged]
    if new_head:
        of_head = [leaf for leaf in only_theirs if id(leaf) in _head_of(theirs, partners, common)]
        only_theirs = [leaf for leaf in only_theirs if leaf not in of_head]
        only_ours = [leaf for leaf in only_ours if not POOLS.fullmatch(leaf.kind) or leaf.path]
        if unsure := [leaf.full_name for leaf in of_head if not POOLS.fullmatch(leaf.kind)]:
            notes.append(f"taken as part of the file's own head: {join_some(unsure, most=3)}")
    lines = [f"{leaf.full_name} ({leaf.kind}): only in the model" for leaf in only_ours]
    lines += [f"{name_leaf(leaf)}: only in the file" for leaf in only_theirs]
    lines += outside.lines
    lines += [line for pair in [*pairs, *same] for line in _compare_layers(*pair)]
    lines += _compare_sides(same, ours, theirs, pairs)
    return GraphDifferences(tuple(lines), (*notes, *outside.notes))


def _hidden_paths(theirs: Leaves, pairs: Pairs) -> set[tuple[str, ...]]:
    """The models of ours of whose layers without weights a file says nothing, since it lists only the model around them."""
    found = set()
    for mine, leaf in pairs:
        if leaf.path[:1] in theirs.opaque:
            start = mine.path.index(leaf.path[0]) if leaf.path[0] in mine.path else 0
            found |= {mine.path, *(mine.path[:end] for end in range(start + 1, len(mine.path)))}
    return found


def _drop_composed(only_ours: list[Leaf], only_theirs: list[Leaf], operations: int, notes: list[str]) -> set[int]:
    """Takes activations out of ``only_ours`` for which a file has a ReLU, a product and two operations of TensorFlow each.

    So Keras 2 writes hard_silu; a file of weights names the layers, but not how they are put together, which is said.
    """
    mine = [leaf for leaf in only_ours if leaf.kind == "activation"]
    parts = [[leaf for leaf in only_theirs if leaf.kind == kind] for kind in ("re_lu", "multiply")]
    hard = all("hard_silu" in json.dumps(leaf.config or {}, default=str) for leaf in mine)
    if not mine or not hard or any(len(part) != len(mine) for part in parts) or operations < 2 * len(mine):
        return set()
    only_ours[:] = [leaf for leaf in only_ours if leaf not in mine]
    notes.append(
        f"the model's {len(mine)} hard_silu activations were taken to be as many ReLUs and products of the file"
    )
    return {id(leaf) for part in parts for leaf in part}


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


def differing_layers(ours: Leaves, theirs: Leaves, pairs: Pairs, *, images: Normalise | None) -> list[str]:
    """Names of layers without weights, dropouts included, in which a file and a model differ that agree in all others."""
    hidden = _hidden_paths(theirs, pairs)
    mine = [leaf for leaf in ours if not leaf.arrays and not leaf.is_input and leaf.path not in hidden]
    given = [leaf for leaf in theirs if not leaf.arrays and not leaf.is_input and leaf.kind != "tf_op_lambda"]
    if describe_comparison(theirs):
        mine = [leaf for leaf in mine if not leaf.is_operation]
    if any(not leaf.name and not leaf.kind for leaf in given):  # a checkpoint, which names no such layer
        heads = {id(leaf) for leaf in ours.weighted if leaf.head}
        names = {id(a): a.full_name for a, _ in pairs}
        here, there = _gaps(ours, names), _gaps(theirs, {id(b): a.full_name for a, b in pairs})
        return [f"some before {names[i]}" for i in heads if len(here[names[i]]) != len(there[names[i]])]
    _, only_ours, only_theirs = pair_layers(mine, given)
    operations = [leaf for leaf in theirs if leaf.kind == "tf_op_lambda"]
    same = _final(theirs) | _drop_composed(only_ours, only_theirs, len(operations), [])
    same |= prepares_images_alike(theirs, {id(leaf) for _, leaf in pairs}, images)
    return [f"{name_leaf(leaf)} of the model" for leaf in only_ours] + [
        f"{name_leaf(leaf)} of the file" for leaf in only_theirs if id(leaf) not in same
    ]


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


def describe_comparison(theirs: Leaves) -> list[str]:
    """What a file without configurations does not tell of its layers, and so was not compared."""
    if any(leaf.layer is not None for leaf in theirs):
        return []
    if any(not leaf.name and not leaf.kind for leaf in theirs):
        known = "names and shapes of weights, and the number of layers without weights,"
    elif theirs.ordered:
        known = "names and order of layers, and shapes of weights,"
    else:
        known = "classes of layers, their numbers and names, and shapes of weights,"
    return [
        f"{known} were compared; strides, activations and other arguments were not, since the file does not hold them"
    ]


def _compare_sides(same: Pairs, ours: Sequence[Leaf], theirs: Leaves, pairs: Pairs) -> list[str]:
    """Layers without weights that come before all layers with weights on one side, and after them on the other."""
    if not theirs.ordered:
        return []
    sides = []
    for leaves, known in ((ours, [mine for mine, _ in pairs]), (theirs.all, [leaf for _, leaf in pairs])):
        number = {id(leaf): place for place, leaf in enumerate(leaves)}
        places = [number[id(leaf)] for leaf in known if id(leaf) in number]
        first, last = min(places, default=0), max(places, default=-1)
        sides.append({i: "before" if n < first else "after" if n > last else "among" for i, n in number.items()})
    found = [(mine, sides[0].get(id(mine), ""), sides[1].get(id(leaf), "")) for mine, leaf in same]
    return [
        f"{mine.full_name}: {here} the layers with weights in the model, {there} them in the file"
        for mine, here, there in found
        if here and there and here != there
    ]


def _count_before(theirs: Leaves, partners: set[int], common: tuple[str, ...]) -> list[str]:
    """What a checkpoint leaves open: an input is as nameless there as any other layer without weights."""
    first = next((number for number, leaf in enumerate(theirs) if id(leaf) in partners), 0)
    count = len([leaf for leaf in theirs.all[:first] if not leaf.arrays])
    where = f" {count} layers without weights come" if count > 1 else " one layer without weights comes"
    return [f"before them{where} in the file, which does not tell an input from, say, a rescaling"] if count else []


def _compare_counts(
    ours: Sequence[Leaf], theirs: Sequence[Leaf], pairs: Pairs, common: tuple[str, ...], *, new_head: bool
) -> list[str]:
    """A checkpoint names no layer without weights: their number between the others is all that can be compared."""
    partner = {id(mine): leaf for mine, leaf in pairs}
    numbers = {id(leaf): leaf.full_name for leaf in ours if id(leaf) in partner}
    names = {id(partner[id(leaf)]): leaf.full_name for leaf in ours if id(leaf) in partner}
    given = _gaps([leaf for leaf in theirs if leaf.path[: len(common)] == common], names)
    own = _common_path([leaf.path for leaf, _ in pairs])
    mine = _gaps([leaf for leaf in ours if leaf.path[: len(own)] == own], numbers)
    lines = _compare_around(ours, theirs, pairs, (own, common))
    for name, leaves in mine.items():
        most, least = len(leaves), len([leaf for leaf in leaves if not (leaf.neutral or leaf.is_operation)])
        found = len(given.get(name, ()))
        if name == "" and new_head:  # after the last layer with weights: the file's own head follows
            most = max(most, found)
        if not least <= found <= most:
            where = f"before {name}" if name else "at the end"
            lines.append(f"{where}: {least} layers without weights in the model, {found} in the file")
    return lines


def _compare_around(
    ours: Sequence[Leaf], theirs: Sequence[Leaf], pairs: Pairs, inner: tuple[tuple[str, ...], tuple[str, ...]]
) -> list[str]:
    """Whether a checkpoint has as many layers around the models that hold all pairs as the model computes with there."""
    counts = []
    for leaves, known, path in zip((ours, theirs), zip(*pairs, strict=True), inner, strict=True):
        number = {id(leaf): place for place, leaf in enumerate(leaves)}
        first = min(number[id(leaf)] for leaf in known)
        outer = [x for x in leaves if not x.arrays and x.path[: len(path)] != path and not (x.layer and x.neutral)]
        outer = [leaf for leaf in outer if not leaf.is_operation and not leaf.head]
        before = len([leaf for leaf in outer if number[id(leaf)] < first])
        counts.append((before, len(outer) - before))
    return [
        f"{where} the model's part in common: {here} layers without weights in the model, {there} in the file"
        for where, here, there in zip(("before", "after"), *counts, strict=True)
        if here > there
    ]


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
    if not lines and not _may_be_same(*inputs):
        lines.append(f"{mine.full_name}: reads {_words(inputs[0])} in the model, {_words(inputs[1])} in the file")
    return lines


def _may_be_same(ours: list[str], theirs: list[str]) -> bool:
    """Whether two layers may read the same: at the border of a nested model, only the border is known."""
    border = {"a model", "input_layer"}
    rest, left = list(ours), list(theirs)
    for kind in ours:
        if kind in left:
            rest.remove(kind)
            left.remove(kind)
    return len(rest) == len(left) and (border.issuperset(rest) or border.issuperset(left))


def _inputs(leaf: Leaf) -> list[str]:
    """The classes of the layers that a layer of a model reads in its first call; dropouts are passed over."""
    nodes = keras_private.inbound_nodes(leaf.layer) if leaf.layer is not None else ()
    within = {id(part) for part in find_hard_silu(leaf.layer)} if nodes else set()
    return sorted(
        _class_of(parent) for parent in (nodes[0].parent_nodes if nodes else ()) if id(parent.operation) not in within
    )


def _class_of(node: Any) -> str:
    kind = "a model" if is_graph(node.operation) else kind_of(node.operation)
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
