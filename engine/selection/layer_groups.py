"""A model as a sequence of parts, from the images to the loss, for drawing pictures of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from engine.selection.variables import ModelVariables
from engine.text import shorten

# The part of a Keras layer's name that says which block it belongs to: conv4_block6_2_bn, block_16_project_BN.
_STEM = re.compile(r".*(?:block|stage|layer|unit|cell|group|mixed)_?\d+[a-z]?(?=_|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """A part of a model that is drawn as one box.

    Attributes:
        name: a name such as ``blocks/3``, ``head`` or ``MobileNetV2/block_16``.
        paths: the paths of its variables, in model order.
        parameters: the number of their parameters.
    """

    name: str
    paths: tuple[str, ...]
    parameters: int

    @property
    def short(self) -> str:
        """The name without those of the enclosing models."""
        *around, last = self.name.split("/")
        return f"{around[-1]}/{last}" if around and last.isdigit() else last


def part_names(variables: ModelVariables) -> dict[str, str]:
    """Returns, for the path of every variable, the name of the part of the model that the variable belongs to.

    This is the numbered module or the block named in its path; else its Keras layer; else the first component of its
    path that is not the same for all variables.
    """
    split = [entry.path.split("/") for entry in variables]
    depth = 0
    while all(len(words) > depth + 1 for words in split) and len({words[depth] for words in split}) == 1:
        depth += 1
    return {e.path: _part_name(e.path, e.layer if e.layers else None, depth) for e in variables}


def _part_name(path: str, layer: str | None, depth: int) -> str:
    *parents, _ = path.split("/")
    for number, word in enumerate(parents):
        if word.isdigit():
            return "/".join(parents[: number + 1])
        if stem := _STEM.match(word):
            return "/".join([*parents[:number], stem.group()])
    return layer or "/".join(parents[: depth + 1]) or path


def group_parts(rows: Iterable[tuple[str, int, str]]) -> tuple[Part, ...]:
    """Groups the variables of a model into its parts, in the order of their first variables.

    ``rows`` are the path, the number of parameters and the name of the part of each variable, in model order.
    """
    found: dict[str, list[tuple[str, int]]] = {}
    for path, parameters, name in rows:
        found.setdefault(name, []).append((path, parameters))
    return tuple(
        Part(name, tuple(path for path, _ in inside), sum(size for _, size in inside)) for name, inside in found.items()
    )


def merge_neighbours(
    row: Sequence[Part], key: Callable[[Part], tuple[Hashable, ...]], *, most: int
) -> list[tuple[Part, ...]]:
    """Merges neighbouring parts of equal ``key``, and then those whose keys differ least until ``most`` runs are left.

    Of neighbours that differ equally, the smallest are merged first.
    """
    found: list[tuple[Part, ...]] = []
    for part in row:
        if found and key(found[-1][-1]) == key(part):
            found[-1] = (*found[-1], part)
        else:
            found.append((part,))

    def distance(n: int) -> tuple[int, int]:
        pairs = zip(key(found[n][-1]), key(found[n + 1][0]), strict=True)
        return sum(a != b for a, b in pairs), len(found[n]) + len(found[n + 1])

    while len(found) > most:
        at = min(range(len(found) - 1), key=distance)
        found[at : at + 2] = [found[at] + found[at + 1]]
    return found


def label_parts(run: Sequence[Part], *, most: int = 40) -> str:
    """Returns a label for a run of parts, such as ``patch, class_token, blocks/0-3``, or its two ends if too long."""
    names = [part.short for part in run]
    text = _numbered(names) or shorten(names, most=len(names))
    if len(text) > most and len(names) > 1:
        text = f"{names[0]} … {names[-1]}"
    return elide_middle(text, most)


def _numbered(names: Sequence[str]) -> str | None:
    """A range such as ``block_11-14``, for names that differ only in consecutive numbers."""
    found = [re.fullmatch(r"(.*?)(\d+)", name) for name in names]
    pairs = [(match.group(1), int(match.group(2))) for match in found if match]
    first = pairs[0] if pairs else ("", 0)
    if len(names) < 2 or pairs != [(first[0], first[1] + n) for n in range(len(names))]:
        return None
    return f"{names[0]}-{pairs[-1][1]}"


def elide_middle(text: str, most: int) -> str:
    """Shortens a text to at most ``most`` characters by leaving out its middle."""
    if len(text) <= most:
        return text
    kept = max(most - 1, 2)
    return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
