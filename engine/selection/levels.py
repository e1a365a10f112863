"""The parts of a model from its input to its head, as what can be frozen or trained up to a height.

The blocks of a ViT; groups of layers of a Keras model (``block_16_expand`` ... ``block_16_project_BN`` are one); otherwise
what lies at the top of a tf.Module.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.selection.filters import parse_filter
from engine.selection.layer_groups import part_names
from engine.selection.selection import Statistics, matching_paths, select
from engine.selection.variables import ModelVariables, NamedVariable

_FEWEST_GROUPS, _EQUAL_GROUPS = 3, 12


@dataclass(frozen=True)
class Level:
    """A part of a model, such as ``blocks/3``.

    Attributes:
        from_here: the filter text of it and all parts after it, without the head.
        up_to_here: the filter text of it and all parts before it.
    """

    name: str
    from_here: str
    up_to_here: str


def find_parts(variables: ModelVariables) -> list[Level]:
    """Finds the parts of a model from the input to the output; each has a weight outside the head."""
    body = [entry for entry in variables if entry.kind == "weight" and "head" not in entry.groups]
    if any(entry.block for entry in body):
        count = max(entry.block[1] for entry in body if entry.block)
        return [Level(f"blocks/{n}", f"@blocks[{n - count}:]", f"@blocks[:{n + 1}]") for n in range(count)]
    names = part_names(variables)
    if any(name == "" for entry in body for name, _, _ in entry.layers):
        return _layer_groups(body, names)
    found = list(dict.fromkeys(names[entry.path] for entry in body))
    texts = [_pattern(name, body) for name in found]
    return [Level(name, " ".join(texts[number:]), " ".join(texts[: number + 1])) for number, name in enumerate(found)]


def _pattern(name: str, body: Sequence[NamedVariable]) -> str:
    """The filter item for the variables under a name, or for the variable of that name."""
    under = any(entry.path.startswith(f"{name}/") for entry in body)
    return _quote(name) + ("/.*" if under else "")


def _quote(name: str) -> str:
    """A regular expression for just this name, without white space, which would end an item of a filter."""
    return re.sub(r"\\?\s", r"\\s", re.escape(name))


def _layer_groups(body: Sequence[NamedVariable], names: Mapping[str, str]) -> list[Level]:
    """Groups neighbouring layers by part, or into groups of equal size where their names say nothing about parts."""
    at: dict[int, NamedVariable] = {}  # index in the model's layers -> a weight of that layer
    count = 0
    for entry in body:
        for name, index, length in entry.layers:
            if name == "":
                at.setdefault(index, entry)
                count = length
    indices = sorted(at)
    starts: dict[int, str] = {}
    previous: str | None = ""
    for index in indices:
        entry = at[index]
        part = names[entry.path]
        stem = None if part == entry.layer else part  # a layer that is a part on its own: such neighbours go together
        if stem != previous:
            starts[index] = part.rpartition("/")[2]
        previous = stem
    if len(starts) < min(_FEWEST_GROUPS, len(indices)):
        groups = min(_EQUAL_GROUPS, len(indices))
        chosen = [indices[len(indices) * number // groups] for number in range(groups)]
        starts = {index: names[at[index].path].rpartition("/")[2] for index in chosen}
    ends = [*(f"{index - count}" for index in list(starts)[1:]), ""]
    return [
        Level(name, f"@layers[{index - count}:]", f"@layers[:{end}]")
        for (index, name), end in zip(starts.items(), ends, strict=True)
    ]


@dataclass(frozen=True)
class FreezablePart:
    """A part that can be frozen once everything below it is.

    Attributes:
        name: that of the part; a second part of the same name has ``#2`` after it.
        freezes: the variables that train until the part is frozen.
        train: the filter text of what trains afterwards.
    """

    name: str
    freezes: tuple[NamedVariable, ...]
    train: str


def find_freezable(variables: ModelVariables, train: str, statistics: Statistics) -> list[FreezablePart]:
    """The parts that can be frozen one after the other, from the input on, if a filter says what trains at first.

    The head is never frozen, nor is the last part if nothing else would train. What comes before the first block, such as
    the embedding of a ViT, belongs to the lowest part. Raises FilterError if ``train`` is not valid for the model.
    """
    active = {entry.path: entry for entry in select(variables, train, statistics=statistics).trained}
    names = part_names(variables)
    has_blocks = any(entry.block for entry in variables)
    stem = list(itertools.takewhile(lambda entry: has_blocks and not entry.block, variables))
    first = list(dict.fromkeys(_pattern(names[entry.path], stem) for entry in stem if "head" not in entry.groups))
    found: list[FreezablePart] = []
    for part in find_parts(variables):
        items = [*first, *part.up_to_here.split()]
        below = matching_paths(variables, parse_filter(" ".join(items)))
        own = tuple(e for path, e in active.items() if path in below and "head" not in e.groups)
        if len(own) == len(active):
            break
        if own:
            active = {path: entry for path, entry in active.items() if entry not in own}
            head = [_quote(path) for path in active if path in below]  # where its layers lie among those of the part
            words = [*train.split(), *(f"!{item}" for item in items), *head]
            count = sum(each.name.partition("#")[0] == part.name for each in found)
            name = f"{part.name}#{count + 1}" if count else part.name
            found.append(FreezablePart(name, own, " ".join(_drop_useless(variables, words))))
    return found


def _drop_useless(variables: ModelVariables, words: Sequence[str]) -> list[str]:
    """The items of a filter without those whose every match is decided by a later one."""
    rule = parse_filter(" ".join(words))
    deciding = {item for entry in variables if (item := rule.deciding(entry)) is not None}
    return [word for word, item in zip(words, rule.items, strict=True) if item in deciding]
