"""Follows the numbers of layers in an object-based checkpoint of Keras 2 (``layer_with_weights-3/kernel``).

Such a number counts the layers with weights of a model in its own order, and models in models have one for each level.
So layer after layer takes as many variables of the model as it has, while roles and shapes agree.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from engine.porting.proposals.fitting import Layout, Shape
from engine.porting.proposals.pairing import pair_units
from engine.porting.proposals.proposal import Line
from engine.porting.proposals.units import make_units
from engine.porting.proposals.words import parse_name

_NUMBER = re.compile(r"layer_with_weights-(\d{1,9})/")
_WHOLE, _BELOW_A_TOP, _IN_PART = 0.95, 0.85, 0.6
_TOP_LAYERS, _TOP_VARIABLES = 2, 4  # the most that a new top may replace and have

Entry = tuple[str, Shape, str]  # name, shape, type


def follow_layers(sources: Sequence[Entry], targets: Sequence[Entry]) -> list[Line]:
    """Returns a line for each variable, in the order of the model, as far as the layers of both sides agree.

    Only floating-point entries count. There are no lines if no name has such a number, or if names with different
    beginnings have them, as in a checkpoint of two models.
    """
    layers: dict[tuple[int, ...], list[Entry]] = defaultdict(list)
    roots = set()
    for entry in sources:
        numbers = _NUMBER.findall(entry[0])
        if numbers and entry[2] == "f":
            layers[tuple(map(int, numbers))].append(entry)
            roots.add(entry[0][: entry[0].index("layer_with_weights-")])
    if len(roots) != 1:
        return []
    wanted = [entry for entry in targets if entry[2] == "f"]
    lines: list[Line] = []
    place = done = 0
    for entries in (layers[numbers] for numbers in sorted(layers)):
        found = _match(entries, wanted[place : place + len(entries)], done)
        if found is None:
            break
        lines += found
        place += len(entries)
        done += 1
    left, unmade = len(layers) - done, len(wanted) - place
    sure = _WHOLE if not left and not unmade else _BELOW_A_TOP
    if left > _TOP_LAYERS or unmade > _TOP_VARIABLES:
        sure = _IN_PART
    order = {entry[0]: number for number, entry in enumerate(wanted)}
    return sorted((_doubted(line, sure) for line in lines), key=lambda line: order[line.target])


def _doubted(line: Line, sure: float) -> Line:
    said = {_WHOLE: "", _BELOW_A_TOP: "; the tops differ", _IN_PART: "; other layers do not correspond"}[sure]
    return Line(line.source, line.target, (), round(line.confidence * sure, 4), line.reason + said)


def _match(entries: Sequence[Entry], layer: Sequence[Entry], number: int) -> list[Line] | None:
    """Returns the lines of one layer, with a confidence of 1 unless only words decide; None if it does not correspond."""

    def last(name: str) -> str:
        return name.rpartition("/")[2]

    def role(name: str) -> str:
        return parse_name(name).role

    reason = f"the layer with weights number {number} of both"
    for label in (last, role):  # Keras 2 calls a kernel depthwise_kernel that Keras 3 calls kernel
        left, right = _grouped(entries, label), _grouped(layer, label)
        if Counter({key: len(v) for key, v in left.items()}) == Counter({key: len(v) for key, v in right.items()}):
            lines = []
            for key, names in left.items():
                if len(names) == 1:
                    lines.append(Line((names[0][0],), right[key][0][0], (), 1.0, reason))
                else:
                    lines += _by_words(names, right[key], reason)
            return lines
    return None


def _grouped(entries: Sequence[Entry], label: Callable[[str], str]) -> dict[tuple[str, Shape], list[Entry]]:
    found: dict[tuple[str, Shape], list[Entry]] = defaultdict(list)
    for entry in entries:
        found[label(entry[0]), entry[1]].append(entry)
    return found


def _by_words(entries: Sequence[Entry], others: Sequence[Entry], reason: str, layout: Layout = "tf") -> list[Line]:
    """Pairs variables of one layer that are alike, such as the kernels of query and key, by the words in their names."""
    left, right = make_units(entries), make_units(others)
    pairs = pair_units(left, right, layout)
    return [
        Line(
            (left[p.source].main.name,), right[p.target].main.name, (), p.certainty, f"{reason}, by the words within it"
        )
        for p in pairs
    ]
