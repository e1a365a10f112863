"""Filters: predicates on named variables, their algebra, and their text form for flags.

In Python: ``path(r"head/.*") | blocks[-2:] & ~group("norm")``. In text: items separated by white
space, read left to right, the last that matches decides (as in .gitignore); an item is
``[!]regex`` or ``[!]@group``; a regex must match the whole path:
``head/.* @blocks[-2:] !@norm``.

A filter only says what it matches. What then trains is decided in selection.py, nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from engine.errors import InputError
from engine.selection.groups import GROUPS
from engine.selection.variables import NamedVariable
from engine.text import nearest


class FilterError(InputError):
    """A filter that cannot mean what was meant. Names the item, its position and the rule."""


class Filter:
    """A predicate on ``NamedVariable``. Combine with ``&``, ``|`` and ``~``."""

    def __call__(self, variable: NamedVariable) -> bool:
        raise TypeError(f"{type(self).__name__} must define __call__(variable) -> bool")

    def __and__(self, other: Filter) -> Filter:
        return And(self, other)

    def __or__(self, other: Filter) -> Filter:
        return Or(self, other)

    def __invert__(self) -> Filter:
        return Not(self)

    def parts(self) -> Iterator[Filter]:
        """The smallest filters inside this one, from left to right."""
        yield self


@dataclass(frozen=True)
class Path(Filter):
    """Variables one of whose paths matches ``pattern`` as a whole."""

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise FilterError(f"`{self.pattern}` is no regular expression: {error}") from None

    def __call__(self, variable: NamedVariable) -> bool:
        return any(re.fullmatch(self.pattern, path) for path in variable.paths)

    def __str__(self) -> str:
        return self.pattern


@dataclass(frozen=True)
class Group(Filter):
    """Variables of a named group (``engine.selection.groups.GROUPS``)."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in GROUPS:
            known = [f"@{name}" for name in GROUPS] + ["@blocks[i:j]", "@layers[i:j]"]
            raise FilterError(f"`@{self.name}` is no group{nearest('@' + self.name, known)}; groups: {' '.join(known)}")

    def __call__(self, variable: NamedVariable) -> bool:
        return self.name == "all" or self.name in variable.groups

    def __str__(self) -> str:
        return f"@{self.name}"


@dataclass(frozen=True)
class Blocks(Filter):
    """Variables in the blocks ``[start:stop:step]`` of a ViT, sliced as Python slices a list."""

    start: int | None = None
    stop: int | None = None
    step: int | None = None

    def __call__(self, variable: NamedVariable) -> bool:
        if variable.block is None:
            return False
        index, count = variable.block
        return index in range(count)[self.start : self.stop : self.step]

    def __str__(self) -> str:
        return f"@blocks{_slice_text(self)}"


@dataclass(frozen=True)
class Layers(Filter):
    """Variables in ``model.layers[start:stop:step]`` of a Keras model, weightless layers counted.

    ``model`` is the name of a sub-model; "" means the only sub-model, else the model itself.
    """

    start: int | None = None
    stop: int | None = None
    step: int | None = None
    model: str = ""

    def __call__(self, variable: NamedVariable) -> bool:
        return any(
            name == self.model and index in range(count)[self.start : self.stop : self.step]
            for name, index, count in variable.layers
        )

    def __str__(self) -> str:
        return f"@layers{f'({self.model})' if self.model else ''}{_slice_text(self)}"


@dataclass(frozen=True)
class And(Filter):
    left: Filter
    right: Filter

    def __call__(self, variable: NamedVariable) -> bool:
        return self.left(variable) and self.right(variable)

    def parts(self) -> Iterator[Filter]:
        yield from self.left.parts()
        yield from self.right.parts()

    def __str__(self) -> str:
        return f"({self.left} & {self.right})"


@dataclass(frozen=True)
class Or(Filter):
    left: Filter
    right: Filter

    def __call__(self, variable: NamedVariable) -> bool:
        return self.left(variable) or self.right(variable)

    def parts(self) -> Iterator[Filter]:
        yield from self.left.parts()
        yield from self.right.parts()

    def __str__(self) -> str:
        return f"({self.left} | {self.right})"


@dataclass(frozen=True)
class Not(Filter):
    inner: Filter

    def __call__(self, variable: NamedVariable) -> bool:
        return not self.inner(variable)

    def parts(self) -> Iterator[Filter]:
        yield from self.inner.parts()

    def __str__(self) -> str:
        return f"~{self.inner}"


@dataclass(frozen=True)
class Item:
    """One item of the text form: ``position`` counts from 1."""

    position: int
    negated: bool
    filter: Filter

    def __str__(self) -> str:
        return f"item {self.position} `{'!' if self.negated else ''}{self.filter}`"


@dataclass(frozen=True)
class Ordered(Filter):
    """The text form: the last item that matches decides; what no item matches is not selected."""

    items: tuple[Item, ...]

    def deciding(self, variable: NamedVariable) -> Item | None:
        return next((item for item in reversed(self.items) if item.filter(variable)), None)

    def __call__(self, variable: NamedVariable) -> bool:
        item = self.deciding(variable)
        return item is not None and not item.negated

    def parts(self) -> Iterator[Filter]:
        for item in self.items:
            yield from item.filter.parts()

    def __str__(self) -> str:
        return " ".join(f"{'!' if item.negated else ''}{item.filter}" for item in self.items)


class _Slices:
    """``blocks[-2:]``: makes a filter from Python's own slice syntax."""

    def __init__(self, kind: type[Blocks] | type[Layers], model: str = "") -> None:
        self._kind = kind
        self._options = {"model": model} if model else {}

    def __getitem__(self, index: int | slice) -> Filter:
        if isinstance(index, slice):
            for value in (index.start, index.stop, index.step):
                if value is not None and not isinstance(value, int):
                    raise FilterError(f"index={value!r}: a slice takes whole numbers")
            if index.step == 0:
                raise FilterError("index=[::0]: a slice's step cannot be 0")
            return self._kind(index.start, index.stop, index.step, **self._options)
        if not isinstance(index, int):
            raise FilterError(f"index={index!r}: it takes a whole number or a slice")
        # [-1] is the last one: as a slice it has no end
        return self._kind(index, index + 1 if index != -1 else None, None, **self._options)


class _Layers(_Slices):
    def __call__(self, model: str) -> _Slices:
        return _Slices(Layers, model)


blocks = _Slices(Blocks)
layers = _Layers(Layers)


def path(pattern: str) -> Filter:
    """Variables whose whole path matches the regular expression ``pattern``."""
    return Path(pattern)


def group(name: str) -> Filter:
    """Variables of a group, such as ``group("norm")``; names as in ``engine.selection.groups.GROUPS``."""
    return Group(name)


_SLICED = re.compile(r"@(blocks|layers)(?:\(([^()]*)\))?(?:\[([^\[\]]*)\])?")


def parse_filter(text: str) -> Ordered:
    """Reads the text form.

    Raises:
        FilterError: an item is no regular expression, no known group or no slice; or no item at all.
    """
    items = []
    for position, word in enumerate(text.split(), start=1):
        negated = word.startswith("!")
        body = word.removeprefix("!")
        try:
            items.append(Item(position, negated, _parse_item(body)))
        except FilterError as error:
            raise FilterError(f"item {position} `{word}`: {error}") from None
    if not items:
        raise FilterError("the filter is empty: it takes items such as `head/.*` or `@blocks[-2:]`")
    return Ordered(tuple(items))


def _parse_item(body: str) -> Filter:
    if not body:
        raise FilterError("nothing follows `!`")
    if not body.startswith("@"):
        return Path(body)
    match = _SLICED.fullmatch(body)
    if match is None:
        if body.startswith(("@blocks", "@layers")):
            raise FilterError("a slice is written @blocks[i:j] or @layers(NAME)[i:j]")
        return Group(body[1:])
    kind, model, index = match.groups()
    if kind == "blocks" and model is not None:
        raise FilterError("@blocks takes no model name; @layers(NAME)[i:j] does")
    if model == "":
        raise FilterError("the name in @layers(NAME) is empty")
    made = blocks if kind == "blocks" else layers(model) if model else layers
    if index is None:
        return made[:]
    fields = index.split(":")
    if len(fields) > 3 or not all(re.fullmatch(r"\s*([+-]?\d{1,9})?\s*", field) for field in fields):
        raise FilterError(f"`[{index}]` is no slice of whole numbers, such as [-2:] or [0:3]")
    numbers = [int(field) if field.strip() else None for field in fields]
    if len(numbers) == 1:
        if numbers[0] is None:
            raise FilterError("`[]` is no slice of whole numbers, such as [-2:] or [0:3]")
        return made[numbers[0]]
    return made[slice(*numbers)]


def _slice_text(part: Blocks | Layers) -> str:
    numbers = ["" if n is None else str(n) for n in (part.start, part.stop)]
    if part.step is not None:
        numbers.append(str(part.step))
    return f"[{':'.join(numbers)}]"
