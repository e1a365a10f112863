"""Reads the weights of a frozen graph: a GraphDef (``.pb``, ``.pbtxt``) whose weights are constants."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np

from engine.errors import InputError
from engine.files import FileError, PathLike
from engine.graphs.graph_variables import HOLDERS
from engine.porting.frozen.find import FrozenWeights, find_weights
from engine.porting.frozen.naming import name_weights
from engine.porting.readers.closing import Closing
from engine.porting.readers.graph_file import read_graph_file
from engine.reading import check_memory, check_total
from engine.text import join_some, listed


class FrozenFile(Closing):
    """A frozen graph as a TensorSource (engine.porting.readers.source).

    The tensors are the constants that are weights (engine.porting.frozen.find), under the names of the graph.
    ``show`` adds others. ``found`` says why each is one, ``definition`` is the GraphDef, and ``bare`` says whether the file
    holds nothing else. Raises FileError if the file is not a graph, is damaged, has no constant that is known to be a weight
    (as a graph with variables), or computes with integers.
    """

    checksums = False

    def __init__(self, path: PathLike) -> None:
        self.path = pathlib.Path(path)
        try:
            meta = read_graph_file(self.path).definition
            self.definition: Any = meta.graph_def
            self.bare: bool = [field.name for field, _ in meta.ListFields()] == ["graph_def"]
            self.found: FrozenWeights = find_weights(self.definition, where=str(self.path))
        except FileError:
            raise
        except InputError as error:  # not a graph, or one of integers
            raise FileError(str(error)) from None
        self._names = [weight.name for weight in self.found.weights]
        if not self._names:
            self._refuse()
        check_total(self.path, (self._size(name) for name in self._names))

    def names(self) -> list[str]:
        return list(self._names)

    def show(self, names: Iterable[str]) -> None:
        """Adds floating-point constants that are not known to be weights, because rules or a run name them."""
        known = set(self._names)
        self._names += [name for name in dict.fromkeys(names) if name in self.found.stored and name not in known]

    def narrow(self, names: Iterable[str]) -> None:
        """Leaves only these constants, which may be any floating-point ones, in the order of the graph."""
        wanted = set(names)
        self._names = [name for name in self.found.stored if name in wanted]

    def hidden(self) -> list[str]:
        """The floating-point constants that ``show`` could add."""
        known = set(self._names)
        return [name for name in self.found.stored if name not in known]

    def shape(self, name: str) -> tuple[int, ...]:
        self._check(name)
        return self.found.stored[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        self._check(name)
        return self.found.stored[name].dtype

    def read(self, name: str) -> np.ndarray:
        self._check(name)
        check_memory(self.path, self._size(name), name)
        try:
            return self.found.read(name)
        except ValueError as error:
            raise FileError(f"{self.path}: {name}: {error}; the file is damaged") from None

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        shape = self.shape(name)
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise FileError(f"{self.path}: {name}: rows {start} to {stop} of shape {list(shape)}")
        return self.read(name)[start:stop].copy()

    def describe(self, name: str) -> str:
        """What a tensor is in the graph, for a list."""
        weight = next((each for each in self.found.weights if each.name == name), None)
        if weight is None:
            return "chosen"
        return "  ".join(filter(None, ["statistic:" * (weight.kind == "statistic"), weight.rule, weight.stored]))

    def readable_names(self) -> dict[str, str]:
        """Names that say what the tensors are, where those of the graph do not (engine.porting.frozen.naming)."""
        return {name: text for name, text in name_weights(self.found.weights).items() if name in set(self._names)}

    def remarks(self) -> list[str]:
        """What else there is to say of the graph, a line each."""
        lines = [f"note: {note}" for note in self.found.notes]
        if self.found.unclear:
            lines.append(f"unclear, and taken for constants ({len(self.found.unclear)}):")
            lines += [
                f"    {each.name} {list(each.shape)} {each.dtype.name}: {each.reason}" for each in self.found.unclear
            ]
        return lines

    def _check(self, name: str) -> None:
        if name not in self.found.stored:
            raise FileError(f"{self.path}: the graph has no floating-point constant {name}")

    def _size(self, name: str) -> int:
        stored = self.found.stored[name]
        return math.prod(stored.shape) * stored.dtype.itemsize

    def _refuse(self) -> NoReturn:
        """Says why there are no tensors."""
        held = [node.name for node in self.definition.node if node.op in HOLDERS]
        if held:
            raise FileError(
                f"{self.path}: this is a graph, not a checkpoint: it has {len(held)} variables without values "
                f"({join_some(held, most=3)}); expected the weights that belong to it, such as "
                f"{self.path.stem}.index and its data files"
            )
        unclear = [f"{each.name} {list(each.shape)}: {each.reason}" for each in self.found.unclear]
        others = [f"{name}: {reason}" for name, reason in self.found.others.items()]
        raise FileError(
            f"{self.path}: no constant of this graph is known to be a weight"
            + listed("unclear", unclear)
            + listed("taken for constants", others)
        )
