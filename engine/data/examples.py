"""The contract of a source that a user writes: examples that are read by position; and the parts that are made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from engine.data.batch_names import LABEL, WEIGHT, is_input
from engine.data.divided import check_names, make_divided
from engine.data.named_weights import check_weights
from engine.data.part import IGNORED, DataError, Part, Source, Target, number_classes
from engine.data.part_names import PARTS
from engine.text import join_words, nearest

_CHUNK = 256  # examples that are read at once, for their labels
_DTYPES = ("uint8", "float32", "int32", "int64", "bool")


@runtime_checkable
class ExampleSet(Protocol):
    """Examples that are read by position: all that ``--data=py:module:name`` needs of a part of the data.

    Beside these three methods it may have an attribute ``classes``: the names of the classes in the order of the labels,
    or, where there are several labels, the names by label (``{"species": ["cat", "dog"]}``). It may also have a method
    ``read_labels``, like ``read`` but without the inputs, so that opening the data need not read these.

    Example:
        >>> class Squares:
        ...     classes = ("even", "odd")
        ...     def __len__(self):
        ...         return 100
        ...     def read(self, positions):
        ...         images = np.zeros([len(positions), 8, 8, 1], np.uint8) + positions[:, None, None, None].astype(np.uint8)
        ...         return {"image": images, "label": positions % 2}
        ...     def fingerprint(self):
        ...         return "squares 1"
        >>> isinstance(Squares(), ExampleSet)
        True
        >>> source = make_source("squares", {"train": Squares(), "val": Squares()})
        >>> len(source.train), source.image_shape, source.classes
        (100, (8, 8, 1), ('even', 'odd'))
    """

    def __len__(self) -> int:
        """The number of examples."""

    def read(self, positions: np.ndarray, /) -> Mapping[str, np.ndarray]:
        """Returns arrays by name for the examples at the int64 ``positions`` [m], in this order; always the same values.

        Each array has the shape [m, ...]. "label" holds the labels: classes (int64 [m], counting from 0) or targets
        (float32 [m] or [m, C]); with several, each is called "label/NAME". "weight", or "weight/NAME", float32 [m], may
        weigh them: 0 is a missing label. Every other array is an input of the model: "image" (uint8, or float32 in
        [0, 1], [m, height, width, channels]), vectors float32 [m, D], tokens int32 [m, T] and so on. The method is called
        from several threads.
        """

    def fingerprint(self) -> str:
        """A text that changes whenever the examples do: a resumed run and the feature cache compare it."""


class ReadInput:
    """One input of an ExampleSet, as ``engine.data.part.Images``: read when it is needed."""

    def __init__(self, reader: Reader, name: str, first: np.ndarray) -> None:
        self._reader, self._name = reader, name
        self.shape, self.dtype = (len(reader), *first.shape[1:]), first.dtype

    def __getitem__(self, numbers: Any) -> np.ndarray:
        return self._reader.read(np.asarray(numbers))[self._name]

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self._reader.fingerprint()}\0{self._name}".encode()).hexdigest()


class Reader:
    """An ExampleSet that is checked at every reading: names, lengths, shapes and dtypes are always those of its first example.

    Raises DataError, which names the part and what is wrong.
    """

    def __init__(self, spec: str, part: str, examples: Any) -> None:
        self._about, self._examples = f"data={spec}: {part}", examples
        missing = [name for name in ("__len__", "read", "fingerprint") if not callable(getattr(examples, name, None))]
        if missing:
            raise DataError(
                f"{self._about} is {type(examples).__name__} without {join_words(missing)}; expected an object with __len__, "
                "read(positions) and fingerprint() (engine.data.examples.ExampleSet)"
            )
        self._count = len(examples)
        if self._count < 1:
            raise DataError(f"{self._about} has no examples")
        self._last: tuple[bytes, Mapping[str, np.ndarray]] | None = None
        self._kinds: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] | None = None
        self.first = self.read(np.zeros(1, np.int64))
        if not self.inputs:
            raise DataError(f"{self._about}: read() returns no input, only {join_words(sorted(self.first))}")
        self._kinds = {name: (array.shape[1:], array.dtype) for name, array in self.first.items()}

    def __len__(self) -> int:
        return self._count

    @property
    def inputs(self) -> list[str]:
        """The names of the inputs: "image" first, the others sorted."""
        return sorted((name for name in self.first if not _is_column(name)), key=lambda name: (name != "image", name))

    def fingerprint(self) -> str:
        found = self._examples.fingerprint()
        if not isinstance(found, str) or not found:
            raise DataError(f"{self._about}: fingerprint() returned {found!r}; expected a text")
        return found

    def read(self, positions: np.ndarray) -> Mapping[str, np.ndarray]:
        """What the examples at these positions are, by name."""
        key, last = positions.tobytes(), self._last
        if last is not None and last[0] == key:  # several inputs are read one after the other
            return last[1]
        found = self._checked("read", self._examples.read(positions), len(positions))
        self._last = (key, found)
        return found

    def read_columns(self) -> dict[str, np.ndarray]:
        """The labels and weights of all examples."""
        own = getattr(self._examples, "read_labels", None)
        read = self._examples.read if own is None else own
        pieces: dict[str, list[np.ndarray]] = {}
        for positions in _chunks(self._count):
            found = self._checked("read" if own is None else "read_labels", read(positions), len(positions))
            for name, array in found.items():
                if _is_column(name):
                    pieces.setdefault(name, []).append(array)
        if not any(name.partition("/")[0] == LABEL for name in pieces):
            raise DataError(f"{self._about}: read() returns no label, only {join_words(sorted(self.first))}")
        return {name: np.concatenate(arrays) for name, arrays in pieces.items()}

    def _checked(self, method: str, given: Any, count: int) -> dict[str, np.ndarray]:
        if not isinstance(given, Mapping) or not given:
            raise DataError(
                f"{self._about}: {method}() returned {type(given).__name__}; expected a dict of arrays by name"
            )
        found = {}
        for name, array in given.items():
            about = f"{self._about}: {method}()[{name!r}]"
            if not isinstance(name, str) or not name or not (is_input(name) or _is_column(name)):
                raise DataError(f"{about} is not a valid name; expected a text that no batch has by itself")
            array = np.asarray(array)
            if array.ndim < 1 or len(array) != count:
                raise DataError(f"{about} has shape {list(array.shape)} for {count} positions; expected [{count}, ...]")
            if _is_column(name):
                array = _as_column(about, name, array)
            elif array.dtype.name not in _DTYPES:
                raise DataError(f"{about} is {array.dtype}; expected {', '.join(_DTYPES)} (use astype)")
            elif array.dtype == np.float32 and array.ndim == 4 and array.size and not _is_unit(array):
                raise DataError(
                    f"{about}: images of float32 with values from {array.min():g} to {array.max():g}; expected 0 to 1"
                )
            if self._kinds is not None and (kind := self._kinds.get(name)) != (array.shape[1:], array.dtype):
                expected = "no such array" if kind is None else f"{list(kind[0])} {kind[1]} an example"
                raise DataError(
                    f"{about} has {list(array.shape[1:])} {array.dtype} an example; the first example has {expected}"
                )
            found[name] = array
        expected_names = {n for n in self._kinds or {} if method == "read" or _is_column(n)}
        if missing := sorted(expected_names - set(found)):
            raise DataError(f"{self._about}: {method}() returned no {join_words(missing)}, which the first example has")
        return found


def make_source(spec: str, given: Any, *, to_train: bool = True) -> Source:
    """A source made of what a user's function returns.

    Args:
        spec: the name of the source, for error messages.
        given: a Source; an ExampleSet, of which an evaluation part is held out; or ExampleSets by part: "train", and
            perhaps "val" and "test".
        to_train: whether there must be a part "train"; data that are only evaluated need none.

    Raises:
        DataError: it is something else, its examples do not fit together, or two names of classes or columns count as equal.
    """
    if isinstance(given, Source):
        return check_names(given)
    sets = dict(given) if isinstance(given, Mapping) else {"train": given}
    if unknown := [name for name in sets if name not in PARTS]:
        raise DataError(
            f"data={spec}: {unknown[0]!r} is not a part; expected {', '.join(PARTS)}{nearest(str(unknown[0]), PARTS)}"
        )
    if "train" not in sets and (to_train or not sets):
        raise DataError(f"data={spec}: there is no part train, only {join_words(sets) or 'nothing'}")
    readers = {name: Reader(spec, name, sets[name]) for name in PARTS if sets.get(name) is not None}
    _check_alike(spec, readers)
    columns = {name: reader.read_columns() for name, reader in readers.items()}
    first = next(iter(readers))
    labels = sorted(name for name in columns[first] if name.partition("/")[0] == LABEL)
    if len(labels) > 1 and LABEL in labels:
        raise DataError(f"data={spec}: there are {join_words(labels)}; with several labels, each is called label/NAME")
    classes = {name: _name_classes(spec, name, sets[first], columns) for name in labels}
    targets = [Target(name.partition("/")[2], classes[name][0], named=classes[name][1]) for name in labels]
    made = {name: _make_part(reader, columns[name], labels) for name, reader in readers.items()}
    names, named = classes[labels[0]]
    return make_divided(spec, names, made, named=named, tasks=tuple(targets) if labels != [LABEL] else ())


def _make_part(reader: Reader, columns: dict[str, np.ndarray], labels: Sequence[str]) -> Part:
    inputs = {name: ReadInput(reader, name, reader.first[name]) for name in reader.inputs}
    first = next(iter(inputs))
    return Part(
        inputs.pop(first),
        columns[labels[0]],
        np.arange(len(reader), dtype=np.int64),
        input_name=first,
        inputs=inputs,
        label_name=labels[0],
        columns={name: values for name, values in columns.items() if name != labels[0]},
    )


def _check_alike(spec: str, readers: Mapping[str, Reader]) -> None:
    """Raises DataError unless all parts have the same arrays."""
    kinds = {
        part: {name: (array.shape[1:], array.dtype) for name, array in reader.first.items()}
        for part, reader in readers.items()
    }
    first = next(iter(kinds))
    for part, found in kinds.items():
        for name in sorted(set(found) ^ set(kinds[first])):
            if not name.startswith(WEIGHT):
                has, lacks = (part, first) if name in found else (first, part)
                raise DataError(f"data={spec}: {has} has {name!r}, which {lacks} has not")
        for name in set(found) & set(kinds[first]):
            if found[name] != kinds[first][name]:
                shapes = [f"{list(kinds[each][name][0])} {kinds[each][name][1]}" for each in (part, first)]
                raise DataError(f"data={spec}: {name!r} is {shapes[0]} in {part}, but {shapes[1]} in {first}")


def _name_classes(
    spec: str, label: str, examples: Any, columns: Mapping[str, Mapping[str, np.ndarray]]
) -> tuple[tuple[str, ...], bool]:
    """The names of the classes of a label, and whether they are the data's own; none for targets."""
    values = {part: found[label] for part, found in columns.items()}
    given = getattr(examples, "classes", None)
    if isinstance(given, Mapping):
        given = given.get(label.partition("/")[2])
    first = next(iter(values.values()))
    if first.dtype.kind == "f":
        return (), False
    if first.ndim == 3:
        values = {part: found[found != IGNORED] for part, found in values.items()}
    largest = max((int(found.max()) for found in values.values() if found.size), default=0)
    names = number_classes(largest + 1) if given is None else tuple(map(str, given))
    for part, found in values.items():
        wrong = np.flatnonzero((found < 0) | (found >= len(names)))
        if len(wrong):
            raise DataError(
                f"data={spec}: {part}: the label of example {wrong[0]} is {found[wrong[0]]}; the classes are 0 to {len(names) - 1}"
            )
    return names, given is not None


def _is_unit(array: np.ndarray) -> bool:
    """Whether all values lie in [0, 1]; NaN does not."""
    return bool(array.min() >= 0.0 and array.max() <= 1.0)


def _is_column(name: str) -> bool:
    return name.partition("/")[0] in (LABEL, WEIGHT)


def _as_column(about: str, name: str, array: np.ndarray) -> np.ndarray:
    """Labels and weights as the losses take them."""
    if array.dtype.kind not in "iufb":
        raise DataError(f"{about} is {array.dtype}; expected classes as whole numbers from 0, or targets as floats")
    if name.partition("/")[0] == WEIGHT:
        return check_weights(about, array, len(array))
    if array.ndim == 3 and array.dtype.kind in "iu":
        return array  # a class for each pixel, of which there are many
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


def _chunks(count: int) -> Iterator[np.ndarray]:
    for start in range(0, count, _CHUNK):
        yield np.arange(start, min(start + _CHUNK, count), dtype=np.int64)
