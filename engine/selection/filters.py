"""Filters: predicates on named variables, their algebra, and their text form for flags.

In Python, filters are combined with operators: ``path(r"head/.*") | blocks[-2:] & ~group("norm")``.

As text, a filter is a list of items separated by white space, such as ``head/.* @blocks[-2:] !@norm``. An item is
``[!]regex``, where the regular expression must match the whole path, or ``[!]@group``. As in .gitignore, the last item
that matches a variable decides.

A filter only says which variables it matches. What then trains is decided in selection.py and nowhere else.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import InputError
from engine.patterns import Pattern, PatternError
from engine.selection.groups import GROUPS
from engine.text import cut, nearest

if TYPE_CHECKING:  # a filter can be read without TensorFlow
    from engine.selection.variables import NamedVariable


MOST_ITEMS = 10_000


class FilterError(InputError):
    """A filter is malformed, matches nothing or has an item without effect.

    The message names the item, its position and the rule, and the nearest names in the model.

    Example:
        >>> import tensorflow as tf
        >>> from engine import FilterError, select
        >>> try:
        ...     select({"kernel": tf.Variable([0.0])}, "kernal")
        ... except FilterError as error:
        ...     print(error)
        item 1 `kernal` matches nothing: a regular expression must match a whole variable path; nearest: kernel
    """


class Filter:
    """A predicate on the variables of a model, which says what trains.

    Filters are made by ``path``, ``group``, ``blocks``, ``layers`` and ``parse_filter``, and combined with ``&``, ``|``
    and ``~``. They are frozen dataclasses with equality and hash. A subclass of your own only needs ``__call__``.

    Example:
        >>> from engine import blocks, group
        >>> print(blocks[-2:] & ~group("norm"))
        (@blocks[-2:] & ~@norm)
    """

    def __call__(self, variable: NamedVariable) -> bool:
        raise TypeError(f"{type(self).__name__} must define __call__(variable) -> bool")

    def __and__(self, other: Filter) -> Filter:
        return And(self, other)

    def __or__(self, other: Filter) -> Filter:
        return Or(self, other)

    def __invert__(self) -> Filter:
        return Not(self)

    def parts(self) -> Iterator[Filter]:
        """Yields the elementary filters inside this one, from left to right."""
        yield self


@functools.lru_cache(maxsize=4096)
def _compile(pattern: str) -> Pattern:
    return Pattern(pattern, f"`{cut(pattern)}`")


@dataclass(frozen=True)
class Path(Filter):
    """Matches variables with a path that ``pattern`` matches as a whole."""

    pattern: str

    def __post_init__(self) -> None:
        try:
            _compile(self.pattern)
        except PatternError as error:
            raise FilterError(f"`{cut(self.pattern)}` is not a valid regular expression: {error}") from None

    def __call__(self, variable: NamedVariable) -> bool:
        pattern = _compile(self.pattern)
        try:
            return any(pattern.fullmatch(path) for path in variable.paths)
        except PatternError as error:
            raise FilterError(str(error)) from None

    def __str__(self) -> str:
        return self.pattern


@dataclass(frozen=True)
class Group(Filter):
    """Matches the variables of a named group (``engine.selection.groups.GROUPS``); if ``optional``, there need be none."""

    name: str
    optional: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if self.name not in GROUPS:
            known = [f"@{name}" for name in GROUPS] + ["@blocks[i:j]", "@layers[i:j]"]
            raise FilterError(
                f"`@{self.name}` is not a group{nearest('@' + self.name, known)}; groups: {' '.join(known)}"
            )

    def __call__(self, variable: NamedVariable) -> bool:
        return self.name == "all" or self.name in variable.groups

    def __str__(self) -> str:
        return f"@{self.name}"


@dataclass(frozen=True)
class Blocks(Filter):
    """Matches the variables in the blocks ``[start:stop:step]`` of a ViT, sliced like a Python list."""

    start: int | None = None
    stop: int | None = None
    step: int | None = None

    def __call__(self, variable: NamedVariable) -> bool:
        index, count = variable.block or (0, 0)
        return index in range(count)[self.start : self.stop : self.step]

    def __str__(self) -> str:
        return f"@blocks{_slice_text(self)}"


@dataclass(frozen=True)
class Layers(Filter):
    """Matches the variables in ``model.layers[start:stop:step]`` of a Keras model. Layers without weights count.

    ``model`` is the name of a sub-model; "" means the only sub-model if there is just one, else the model itself.
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
class _Pair(Filter):
    left: Filter
    right: Filter

    def parts(self) -> Iterator[Filter]:
        yield from self.left.parts()
        yield from self.right.parts()


@dataclass(frozen=True)
class And(_Pair):
    def __call__(self, variable: NamedVariable) -> bool:
        return self.left(variable) and self.right(variable)

    def __str__(self) -> str:
        return f"({self.left} & {self.right})"


@dataclass(frozen=True)
class Or(_Pair):
    def __call__(self, variable: NamedVariable) -> bool:
        return self.left(variable) or self.right(variable)

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
    """One item of a filter's text form; ``position`` counts from 1."""

    position: int
    negated: bool
    filter: Filter

    def __str__(self) -> str:
        return f"item {self.position} `{'!' if self.negated else ''}{self.filter}`"


@dataclass(frozen=True)
class Ordered(Filter):
    """The text form: the last item that matches a variable decides, and a variable without a match is not selected."""

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
    """Makes a filter by Python's own slice syntax."""

    def __init__(self, kind: type[Blocks] | type[Layers], model: str = "") -> None:
        self._kind = kind
        self._options = {"model": model} if model else {}

    def __getitem__(self, index: int | slice) -> Filter:
        if isinstance(index, slice):
            for value in (index.start, index.stop, index.step):
                if value is not None and not isinstance(value, int):
                    raise FilterError(f"index={value!r}: expected whole numbers in a slice")
            if index.step == 0:
                raise FilterError("index=[::0]: the step of a slice must not be 0")
            return self._kind(index.start, index.stop, index.step, **self._options)
        if not isinstance(index, int):
            raise FilterError(f"index={index!r}: expected a whole number or a slice")
        # [-1] is the last one, and [-1:] its slice
        return self._kind(index, index + 1 if index != -1 else None, None, **self._options)


class _Blocks(_Slices):
    """Selects transformer blocks by index, as a Python list is sliced: ``blocks[-2:]`` is the last two.

    Blocks are the variables with ``blocks/N/`` in their paths, as in this project's ViT. Indexing returns a Filter.

    Example:
        >>> import tensorflow as tf
        >>> from engine import blocks, select
        >>> model = {f"blocks/{n}/kernel": tf.Variable([0.0]) for n in range(4)}
        >>> [entry.path for entry in select(model, blocks[-2:]).trained]
        ['blocks/2/kernel', 'blocks/3/kernel']
    """


class _Layers(_Slices):
    """Selects Keras layers by index: ``layers[-3:]`` is the variables in ``model.layers[-3:]``.

    Layers without weights count, as they do in Keras. ``layers("NAME")[i:j]`` indexes the layers of a sub-model. Without
    a name, the only sub-model is indexed if there is just one (the backbone), else the model itself. Indexing returns a
    Filter.

    Example:
        >>> import keras
        >>> from engine import layers, select
        >>> dense = [keras.layers.Dense(2, name=name) for name in ("one", "two")]
        >>> model = keras.Sequential([keras.Input([3]), *dense])
        >>> [entry.path for entry in select(model, layers[-1:]).trained]
        ['two/kernel', 'two/bias']
    """

    def __call__(self, model: str) -> _Slices:
        return _Slices(Layers, model)


blocks = _Blocks(Blocks)
layers = _Layers(Layers)


def path(pattern: str) -> Filter:
    """Selects the variables whose whole path matches a regular expression.

    Raises:
        FilterError: the pattern is not a valid regular expression.

    Example:
        >>> import tensorflow as tf
        >>> from engine import path, select
        >>> model = {name: tf.Variable([0.0]) for name in ("stem/kernel", "head/kernel", "head/bias")}
        >>> [entry.path for entry in select(model, path("head/.*")).trained]
        ['head/kernel', 'head/bias']
    """
    return Path(pattern)


def group(name: str) -> Filter:
    """Selects the variables of a group, such as all normalisation layers.

    The groups are all, none, kernel, bias, norm, embedding, attention, mlp, head, stats, adapters, lora and ssf
    (``engine.selection.groups.GROUPS``).

    Raises:
        FilterError: there is no group of that name.

    Example:
        >>> import tensorflow as tf
        >>> from engine import group, select
        >>> model = {name: tf.Variable([0.0]) for name in ("norm/gamma", "norm/beta", "head/kernel")}
        >>> [entry.path for entry in select(model, ~group("norm")).trained]
        ['head/kernel']
    """
    return Group(name)


_SLICED = re.compile(r"@(blocks|layers)(?:\(([^()]*)\))?(?:\[([^\[\]]*)\])?")


def parse_filter(text: str) -> Ordered:
    """Reads a filter from its text form, which flags use.

    Items are separated by white space. An item is ``[!]regex``, where the regular expression must match the whole path,
    or ``[!]@group``, ``[!]@blocks[i:j]`` or ``[!]@layers(NAME)[i:j]``. The last item that matches a variable decides
    (as in .gitignore), and ``!`` deselects.

    Raises:
        FilterError: there is no item, or an item is not a valid regular expression, group or slice.

    Example:
        >>> import tensorflow as tf
        >>> from engine import parse_filter, select
        >>> model = {name: tf.Variable([0.0]) for name in ("stem/kernel", "head/kernel", "head/bias")}
        >>> [entry.path for entry in select(model, parse_filter("head/.* !@bias")).trained]
        ['head/kernel']
    """
    items = []
    words = text.split()
    if len(words) > MOST_ITEMS:
        raise FilterError(f"the filter has {len(words):,} items; the limit is {MOST_ITEMS:,}")
    for position, word in enumerate(words, start=1):
        try:
            items.append(Item(position, word.startswith("!"), _parse_item(word.removeprefix("!"))))
        except FilterError as error:
            raise FilterError(f"item {position} `{cut(word)}`: {error}") from None
    if not items:
        raise FilterError("the filter is empty; expected items such as `head/.*` or `@blocks[-2:]`")
    return Ordered(tuple(items))


def _parse_item(body: str) -> Filter:
    if not body:
        raise FilterError("expected a regular expression or a group after `!`")
    if not body.startswith("@"):
        return Path(body)
    match = _SLICED.fullmatch(body)
    if match is None:
        if body.startswith(("@blocks", "@layers")):
            raise FilterError("expected @blocks[i:j] or @layers(NAME)[i:j]")
        return Group(body[1:])
    kind, model, index = match.groups()
    if kind == "blocks" and model is not None:
        raise FilterError("@blocks takes no model name; @layers(NAME)[i:j] does")
    if model == "":
        raise FilterError("the name in @layers(NAME) is empty")
    slices = blocks if kind == "blocks" else layers(model) if model else layers
    if index is None:
        return slices[:]
    fields = index.split(":")
    if len(fields) > 3 or not all(re.fullmatch(r"\s*([+-]?\d{1,9})?\s*", field) for field in fields):
        raise FilterError(f"`[{index}]` is not a slice of whole numbers such as [-2:] or [0:3]")
    numbers = [int(field) if field.strip() else None for field in fields]
    if len(numbers) > 1:
        return slices[slice(*numbers)]
    if numbers[0] is None:
        raise FilterError("`[]` is not a slice of whole numbers such as [-2:] or [0:3]")
    return slices[numbers[0]]


def _slice_text(part: Blocks | Layers) -> str:
    start, stop = ("" if n is None else str(n) for n in (part.start, part.stop))
    return f"[{start}:{stop}{'' if part.step is None else f':{part.step}'}]"
