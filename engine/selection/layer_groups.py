"""A model as a row of parts, from the images to the loss: what pictures of it are drawn from."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from engine.selection.variables import ModelVariables
from engine.text import shorten

# the part of a Keras layer's name that says which block it belongs to: conv4_block6_2_bn, block_16_project_BN
_STEM = re.compile(r".*(?:block|stage|layer|unit|cell|group|mixed)_?\d+[a-z]?(?=_|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """A piece of a model that is drawn as one.

    Attributes:
        name: such as ``blocks/3``, ``head``, ``MobileNetV2/block_16``.
        paths: of its variables, in model order.
        parameters: how many these have together.
    """

    name: str
    paths: tuple[str, ...]
    parameters: int

    @property
    def short(self) -> str:
        """The name without the models around it."""
        *around, last = self.name.split("/")
        return f"{around[-1]}/{last}" if around and last.isdigit() else last


def part_names(variables: ModelVariables) -> dict[str, str]:
    """Path of every variable -> name of the part of the model that it lies in.

    That is the numbered module or the block that its path names; else its Keras layer; else the first component of
    its path that is not the same for all.
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


def parts(rows: Iterable[tuple[str, int, str]]) -> tuple[Part, ...]:
    """The parts of a model, in the order of their first variables.

    Args:
        rows: (path, parameters, name of the part) of each variable, in model order.
    """
    found: dict[str, list[tuple[str, int]]] = {}
    for path, parameters, name in rows:
        found.setdefault(name, []).append((path, parameters))
    return tuple(
        Part(name, tuple(path for path, _ in inside), sum(size for _, size in inside)) for name, inside in found.items()
    )


def runs(row: Sequence[Part], key: Callable[[Part], tuple[Hashable, ...]], *, most: int) -> list[tuple[Part, ...]]:
    """Neighbours of equal ``key`` together; then those whose keys differ least, small ones first, until ``most`` are left."""
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


def label(run: Sequence[Part], *, most: int = 40) -> str:
    """What a run of parts is called: ``patch, class_token, blocks/0-3``, or its ends where that is too long."""
    names = [part.short for part in run]
    text = _numbered(names) or shorten(names, most=len(names))
    if len(text) > most and len(names) > 1:
        text = f"{names[0]} … {names[-1]}"
    return middle_out(text, most)


def _numbered(names: Sequence[str]) -> str | None:
    """``block_11-14`` for names that only count up."""
    found = [re.fullmatch(r"(.*?)(\d+)", name) for name in names]
    pairs = [(match.group(1), int(match.group(2))) for match in found if match]
    first = pairs[0] if pairs else ("", 0)
    if len(names) < 2 or pairs != [(first[0], first[1] + n) for n in range(len(names))]:
        return None
    return f"{names[0]}-{pairs[-1][1]}"


def middle_out(text: str, most: int) -> str:
    """A text of at most so many characters: the middle of a longer one is left out."""
    if len(text) <= most:
        return text
    kept = max(most - 1, 2)
    return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
