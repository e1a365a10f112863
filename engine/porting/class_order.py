"""A weights file whose head is seen with the classes of a model: matched by name, in the model's order."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.data.class_names import normal_form, same_names
from engine.porting.errors import PortError
from engine.porting.readers.closing import Closing
from engine.porting.readers.source import TensorSource
from engine.text import join_words

WAY_OUT = "; --rules=FILE with the lines `(?!head/).* <- \\0`, `skip? head/.*` and `fresh head/.*` in the file starts the head anew"


@dataclass(frozen=True)
class ClassMatch:
    """Which output of a file's head becomes which output of a model's.

    Attributes:
        taken: pairs (output of the model, output in the file); all other outputs of the model start anew.
        sign: -1 for a single output (yes or no) whose two classes have changed places.
        text: what is said about it.
    """

    taken: tuple[tuple[int, int], ...]
    sign: int
    text: str


def match_classes(
    path: pathlib.Path, given: Sequence[str], wanted: Sequence[str], *, outputs: tuple[int, int]
) -> ClassMatch | None:
    """Matches the classes ``given`` by a file to those ``wanted``; None where the head can be taken as it is.

    ``outputs`` are the numbers of outputs in the file and of the model: one for each class, a single one for two classes,
    or more, of which the last have no names; these keep their places. Raises PortError if the names cannot decide.
    """
    before, after = outputs
    if same_names(given, wanted) and before == after:
        return None
    given, wanted = normal_form(given), normal_form(wanted)
    for names, count, where in ((given, before, f"{path} names"), (wanted, after, "the data have")):
        if len(names) > count and (count, len(names)) != (1, 2):
            raise PortError(f"{path}: {where} {len(names)} classes, but the head has {count} outputs{WAY_OUT}")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise PortError(f"{path}: {where} the class {twice!r} twice, so its outputs cannot be told apart{WAY_OUT}")
    if (before == 1) != (after == 1):
        return None  # of other shapes: the head starts anew, whatever the names
    if after == 1:
        if set(given) != set(wanted):
            return ClassMatch((), 1, _anew(given, wanted))
        return ClassMatch(
            ((0, 0),), -1, f"the single output changes its sign, since it stood for {given[1]}, not {wanted[1]}"
        )
    taken = [(place, given.index(name)) for place, name in enumerate(wanted) if name in given]
    if not taken:
        return ClassMatch((), 1, _anew(given, wanted))
    text = "the head's classes are matched by name"
    sources = [source for _, source in taken]
    if sources != sorted(sources):
        text += ", since their order differs"
    if new := [name for name in wanted if name not in given]:
        text += f"; {join_words(new)} {'starts' if len(new) == 1 else 'start'} anew"
    if gone := [name for name in given if name not in wanted]:
        text += f"; the data do not have {join_words(gone)}"
    rest = [(place, place) for place in range(len(wanted), after) if len(given) <= place < before]
    return ClassMatch((*taken, *rest), 1, text)


def _anew(given: Sequence[str], wanted: Sequence[str]) -> str:
    return f"the head starts anew, since its classes ({join_words(given)}) are not those of the data ({join_words(wanted)})"


class InClassOrder(Closing):
    """A TensorSource like another one, but with the head's outputs as a ``ClassMatch`` says.

    ``initial`` maps the paths of the variables with an entry for each output, along their last axis, to the values from
    which new outputs start. Their optimizer slots follow, unless an output starts anew or changes its sign.
    """

    def __init__(self, source: TensorSource, match: ClassMatch, initial: Mapping[str, np.ndarray]) -> None:
        self.path: pathlib.Path = source.path
        self.checksums: bool = source.checksums
        self._source, self._match, self._initial = source, match, initial
        whole = all(len(match.taken) == value.shape[-1] for value in initial.values()) and match.sign == 1
        self._slots: dict[str, str] = {}  # slot -> the variable that it belongs to
        self._hidden = set() if match.taken else set(initial)
        for name in source.names():
            owner, _, slot = name.removeprefix("optimizer/").rpartition("/")
            if name.startswith("optimizer/") and owner in initial:
                if not whole:
                    self._hidden.add(name)
                elif slot != "t":
                    self._slots[name] = owner

    def names(self) -> list[str]:
        return [name for name in self._source.names() if name not in self._hidden]

    def shape(self, name: str) -> tuple[int, ...]:
        like = self._like(name)
        return self._source.shape(name) if like is None else like.shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._source.dtype(name)

    def read(self, name: str) -> np.ndarray:
        array, like = self._source.read(name), self._like(name)
        if like is None:
            return array
        made = like.astype(array.dtype)
        for place, source in self._match.taken:
            made[..., place] = array[..., source] * self._match.sign
        return made

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._source.read_slice(name, start, stop) if self._like(name) is None else self.read(name)[start:stop]

    def close(self) -> None:
        self._source.close()

    def _like(self, name: str) -> np.ndarray | None:
        return self._initial.get(self._slots.get(name, name))
