"""Reads the layers that a weights file of Keras lists: old ``.h5`` files, ``.weights.h5`` files and TensorFlow checkpoints."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from engine import keras_private
from engine.models.keras.leaves import Leaf, Leaves, modern_name
from engine.porting import PortError
from engine.porting.readers.h5_file import KerasH5

_STATES = re.compile(r"(^|/)(seed_generator|random_generator)(/|$)|(^|/)seed_generator_state$")


@functools.cache
def _known_kinds() -> frozenset[str]:
    import keras

    classes = (value for value in vars(keras.layers).values() if isinstance(value, type))
    models = {"model", "functional", "sequential"}  # what holds layers is none itself
    return frozenset(keras_private.snake_case(each.__name__) for each in classes) - models


def find_kind(name: str) -> str:
    """The class that an automatic name stands for, in snake case (``conv2d`` for ``conv2d_3``); "" for another name."""
    if name.startswith(("tf.", "tf_op_layer")):
        return "tf_op_lambda"
    stem = re.sub(r"_\d+$", "", name)
    return "input_layer" if stem == "input" else stem if stem in _known_kinds() else ""


def read_old_h5(source: KerasH5, ours: Leaves) -> Leaves:
    """The leaves of a file in the layout from before Keras 3, as its ``layer_names`` and ``weight_names`` list them.

    A nested model is a single entry there, with the names of all its weights: those of trainable weights come first. The
    layers inside are told apart by the names of the model's own layers, and by automatic names. Raises PortError if the
    file names weights that it does not hold.
    """
    tensors = set(source.names())
    own = {leaf.name for leaf in ours.weighted}
    found: list[Leaf] = []
    opaque = set()
    for group in source.strings("", "layer_names"):
        names = source.strings(group, "weight_names")
        keys = [f"{group}/{name}".removesuffix(":0") for name in names]
        if lost := [key for key in keys if key not in tensors]:
            raise PortError(f"{source.path}: the file names weights that it does not hold, such as {lost[0]}")
        parts = [_join_parts(name.removesuffix(":0").split("/"), own) for name in names]
        inside = _split_group(group, parts, own)
        if any(path for path, _, _ in inside):
            opaque.add((group,))
        found += _collect(inside, keys, source) if inside else [Leaf(group, find_kind(group))]
    if not any(leaf.arrays for leaf in found):
        raise PortError(f"{source.path}: the file holds no weights of layers")
    return Leaves(tuple(found), opaque=frozenset(opaque))


_Place = tuple[tuple[str, ...], str, str]  # the models around a layer, the layer's name, the array's name within it


def _split_group(group: str, names: Sequence[list[str]], own: set[str]) -> list[_Place]:
    """Where each array of a file's entry belongs: to a single layer, or to a layer inside a nested model."""
    if not names:
        return []
    firsts = {name[0] for name in names}
    single = len(firsts) == 1 and all(len(name) > 1 for name in names)
    same_kind = find_kind(group) != "" and {find_kind(first) for first in firsts} == {find_kind(group)}
    if group in own or modern_name(group) in own or (single and same_kind):
        return [((), group, "/".join(name[1:] if single else name)) for name in names]
    # a layer built by the model around it has that model's name first: sequential_1/dense_2/kernel in the entry dense_2
    inner = [name[name.index(group) + 1 :] if group in name[:-1] else [] for name in names]
    if all(inner) and (find_kind(group) or all(len(name) == 1 for name in inner)):
        return [((), group, "/".join(name)) for name in inner]
    places = [_find_layer(name, own, start=1 if name[0] == group else 0) for name in names]
    if all(place is None for place in places) and (single or all(len(name) == 1 for name in names)):
        return [((), group, "/".join(name[1:] or name)) for name in names]
    split: list[_Place] = []
    for name, place in zip(names, places, strict=True):
        at = place if place is not None else max(len(name) - 2, 0)
        split.append(((group, *name[:at]), name[at], "/".join(name[at + 1 :]) or name[at]))
    return split


def _join_parts(parts: list[str], own: set[str]) -> list[str]:
    """The parts of an array's name, in which those that make up one of the model's own names, as it is today, are one."""
    for first in range(len(parts) - 1):
        for end in range(len(parts) - 1, first + (parts[first] in own), -1):
            if (name := modern_name("/".join(parts[first:end]))) in own:
                return [*parts[:first], name, *parts[end:]]
    return parts


def _find_layer(name: Sequence[str], own: set[str], *, start: int = 0) -> int | None:
    """The position of a layer's name in an array's name: one of the model's own, or an automatic one."""
    inner = range(start, len(name) - 1)
    by_name = next((at for at in inner if name[at] in own), None)
    return by_name if by_name is not None else next((at for at in inner if find_kind(name[at])), None)


def _collect(places: Sequence[_Place], keys: Sequence[str], source: Any) -> list[Leaf]:
    grouped: dict[tuple[tuple[str, ...], str], dict[str, str]] = {}
    numbers: dict[tuple[tuple[str, ...], str], list[int]] = {}
    for number, ((path, layer, name), key) in enumerate(zip(places, keys, strict=True)):
        grouped.setdefault((path, layer), {})[name] = key
        numbers.setdefault((path, layer), []).append(number)
    return [
        Leaf(
            name=layer,
            kind=find_kind(layer),
            path=path,
            arrays={name: tuple(source.shape(key)) for name, key in arrays.items() if not _STATES.search(name)},
            values=arrays,
            places=tuple(numbers[path, layer]),
        )
        for (path, layer), arrays in grouped.items()
    ]


def read_weights_h5(source: KerasH5) -> Leaves:
    """The leaves of a ``.weights.h5`` file, which lists layers by class; Keras 3 adds their names."""
    groups, found = set(source.groups()), list[Leaf]()
    arrays: dict[str, list[str]] = {}
    for name in source.names():
        if not name.startswith("optimizer/") and not _STATES.search(name):
            parts = name.split("/")
            depth = next((at for at in range(0, len(parts), 2) if parts[at] != "layers"), len(parts))
            arrays.setdefault("/".join(parts[: max(depth, 1)]), []).append(name)

    def walk(key: str, path: tuple[str, ...]) -> None:
        start = f"{key}/layers/" if key else "layers/"
        children = [group for group in groups if group.startswith(start) and "/" not in group[len(start) :]]
        for child in sorted(children, key=_by_class_and_number):
            stem, _ = _by_class_and_number(child)
            name = "".join(source.strings(f"{child}/vars", "name"))
            if f"{child}/layers" in groups:
                walk(child, (*path, name or child.rpartition("/")[2]))
                continue
            held = {each[len(child) + 1 :]: each for each in arrays.pop(child, ())}
            shapes = {each: tuple(source.shape(whole)) for each, whole in held.items()}
            found.append(Leaf(name, stem.rpartition("/")[2], path, child, shapes, held))

    walk("", ())
    for key, names in arrays.items():  # a model of the user's own class: its layers are under the names of attributes
        held = {name[len(key) + 1 :]: name for name in names}
        found.append(Leaf(key, "", (), key, {each: tuple(source.shape(whole)) for each, whole in held.items()}, held))
    return Leaves(tuple(found), ordered=False)


def number_of(key: str) -> int:
    """The number of a layer among those of its class in a ``.weights.h5``: 3 for ``layers/conv2d_3``."""
    return _by_class_and_number(key)[1]


def _by_class_and_number(key: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*?)(?:_(\d+))?", key)
    assert match is not None
    return match.group(1), int(match.group(2) or 0)


def read_checkpoint(source: Any, nodes: Any, ours: Leaves) -> Leaves:
    """The leaves of a checkpoint that Keras 2 wrote (``save_weights`` without ``.h5``, or a SavedModel's variables).

    ``nodes`` are those of the saved object graph. Layers are listed in order, with those without weights, of which the file
    says no more than that they exist.
    """
    own = {leaf.name for leaf in ours.weighted}
    found: list[Leaf] = []

    def walk(number: int, path: tuple[str, ...]) -> None:
        children = {child.local_name: child.node_id for child in nodes[number].children}
        for name in sorted((n for n in children if re.fullmatch(r"layer-\d+", n)), key=lambda n: int(n[6:])):
            node = children[name]
            if has_layers(node):
                walk(node, (*path, name))
            else:
                found.append(_checkpoint_leaf(source, nodes, node, path, own))

    def has_layers(number: int) -> bool:
        return any(re.fullmatch(r"layer-\d+", child.local_name) for child in nodes[number].children)

    roots = [0, *(child.node_id for child in nodes[0].children)] if nodes else []
    model = next((number for number in roots if has_layers(number)), None)  # or what a Checkpoint names, such as model=
    if model is not None:
        walk(model, ())
    return Leaves(tuple(found))


def _checkpoint_leaf(source: Any, nodes: Any, start: int, path: tuple[str, ...], own: set[str]) -> Leaf:
    queue, seen = [start], {start}
    held: list[tuple[list[str], str]] = []
    for number in queue:
        for attribute in nodes[number].attributes:
            if attribute.name == "VARIABLE_VALUE":
                key = attribute.checkpoint_key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")
                held.append(((attribute.full_name or key).split("/"), key))
        fresh = [child.node_id for child in nodes[number].children if child.node_id not in seen]
        seen.update(fresh)
        queue += fresh
    if not held:
        return Leaf("", path=path)
    first = held[0][0]
    at = _find_layer(first, own) or 0
    names = ["/".join(name[at + 1 :]) or name[-1] for name, _ in held]
    arrays = {name: key for name, (_, key) in zip(names, held, strict=True) if not _STATES.search(name)}
    shapes = {name: tuple(source.shape(key)) for name, key in arrays.items()}
    return Leaf(first[at], find_kind(first[at]), path, arrays=shapes, values=arrays)
