"""The test kit of sources."""

from __future__ import annotations

import concurrent.futures
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from engine.data.batch_names import LABEL, WEIGHT, is_input
from engine.data.examples import make_source
from engine.data.part import Part, Source
from engine.testing.contract import Arrays, calling, demand, list_some, same_bits

_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")
_DTYPES = ("uint8", "float32", "int32", "int64", "bool")
_PARTS = ("train", "val", "test")


def check_source(source: Any, *, other: Any = None, examples: int = 24) -> None:
    """Checks a source: that examples are read by position, always with the same bits, and that its fingerprint is one.

    Args:
        source: what ``--data=py:module:name`` may give: an object with ``__len__``, ``read(positions)`` and
            ``fingerprint()``; such objects by part ("train", "val", "test"); a ``Source``; or a function that makes one of
            these, which is called twice.
        other: a source with other examples, whose fingerprint must be another one; None does not compare.
        examples: how many examples of each part are read.

    Raises:
        ContractError: the source breaks a rule of the contract; or InputError, as opening it would raise it.

    Example:
        >>> from engine import open_data
        >>> from engine.testing import check_source
        >>> check_source(open_data("fashion_mnist_mini"))
    """
    make = source if _makes_one(source) else None
    given = source if make is None else _call(make)
    parts = _find_parts(given)
    for name, part in parts.items():
        _check_part(name, part, examples)
    if not isinstance(given, (Part, Source)):
        for name, part in _find_parts(make_source("check_source", given)).items():
            _check_part(f"{name}, opened as a run opens it", part, examples)
    if make is not None:
        again = _find_parts(_call(make))
        demand(list(again) == list(parts), f"made again, the source has the parts {list(again)}, not {list(parts)}")
        for name, part in parts.items():
            _check_made_again(name, part, again[name], examples)
    if other is not None:
        compared = _find_parts(_call(other) if _makes_one(other) else other)
        for name, part in parts.items():
            demand(
                name not in compared or compared[name].fingerprint() != part.fingerprint(),
                f"{name}: its fingerprint is that of the source with other examples; a resumed run, or a feature cache, would "
                "take one for the other",
            )


class _View:
    """A part of a source, however it was given."""

    def __init__(self, part: Any, fingerprint: Callable[[], Any]) -> None:
        self.part, self.fingerprint = part, fingerprint
        self.classes = getattr(part, "classes", None)

    def __len__(self) -> int:
        return len(self.part)

    def read(self, positions: Any) -> dict[str, np.ndarray]:
        """The arrays of some examples, checked in names and lengths."""
        given = np.asarray(positions, np.int64)
        with calling(f"read({given[:5].tolist()}{'...' if len(given) > 5 else ''})"):
            found = self.part.read(given)
        demand(
            isinstance(found, Mapping) and found,
            f"read returned {type(found).__name__}; expected a dict of arrays by name",
        )
        for name, array in found.items():
            known = isinstance(name, str) and (is_input(name) or name.partition("/")[0] in (LABEL, WEIGHT, "index"))
            demand(
                known, f"{name!r} is not the name of an input, label or weight; a batch has something else of this name"
            )
            demand(
                getattr(array, "shape", ()) and len(array) == len(given),
                f"{name!r} has shape {list(np.shape(array))} for {len(given)} positions; expected [{len(given)}, ...]",
            )
        return dict(found)


def _makes_one(source: Any) -> bool:
    """Whether it is a function, or a class, that makes a source."""
    return isinstance(source, type) or (callable(source) and not hasattr(source, "read"))


def _call(make: Callable[[], Any]) -> Any:
    with calling("making the source"):
        return make()


def _find_parts(source: Any) -> dict[str, _View]:
    if isinstance(source, Source):
        every = {"train": source.train, "eval": source.eval, "test": source.test}
        return {name: _View(part, source.fingerprint) for name, part in every.items() if part is not None}
    if isinstance(source, Part):
        return {"part": _View(source, lambda: "a part has none")}
    given = dict(source) if isinstance(source, Mapping) else {"train": source}
    demand("train" in given, f"there is no part train, only {list(given) or 'nothing'}")
    for name, part in given.items():
        demand(name in _PARTS, f"{name!r} is not a part; expected train, val or test")
        missing = [each for each in ("__len__", "read", "fingerprint") if not callable(getattr(part, each, None))]
        demand(not missing, f"{name} is {type(part).__name__} without {list_some(missing)}")
    return {name: _View(part, part.fingerprint) for name, part in given.items()}


def _choose(count: int, examples: int) -> np.ndarray:
    """Some positions, with the first and the last."""
    rng = np.random.default_rng(count)
    some = rng.choice(count, size=min(count, max(2, examples)), replace=False)
    return np.unique(np.concatenate([some, [0, count - 1]])).astype(np.int64)


def _check_part(name: str, part: _View, examples: int) -> None:
    with calling(f"{name}: len"):
        count = len(part)
    demand(count >= 1, f"{name} has no examples")
    positions = _choose(count, examples)
    before = _check_fingerprint(name, part)
    first = part.read(positions)
    kept = {key: np.array(value) for key, value in first.items()}
    _check_values(name, part, first)
    rng = np.random.default_rng(0)
    mixed = rng.integers(0, len(positions), 2 * len(positions))
    _compare(name, part.read(positions[mixed]), {k: v[mixed] for k, v in kept.items()}, "in another order, some twice")
    for number in (0, len(positions) - 1):
        alone = part.read(positions[[number]])
        _compare(name, alone, {k: v[[number]] for k, v in kept.items()}, f"alone (position {positions[number]})")
    for key, value in kept.items():
        demand(
            same_bits(first[key], value),
            f"{name}: {key!r} of examples that were read before has changed since; read must return new arrays",
        )
    _compare(name, part.read(positions), kept, "a second time")
    _check_threads(name, part, positions, kept)
    _check_labels_alone(name, part, positions, kept)
    if isinstance(part.part, Part):
        _compare(name, part.part.take(positions).read(np.arange(len(positions))), kept, "through take()")
    demand(len(part) == count, f"{name}: its length was {count}, and is {len(part)} after examples were read")
    demand(part.fingerprint() == before, f"{name}: fingerprint() returns another text after examples were read")


def _check_fingerprint(name: str, part: _View) -> Any:
    with calling(f"{name}: fingerprint"):
        found = part.fingerprint()
    demand(isinstance(found, str) and found, f"{name}: fingerprint() returned {found!r}; expected a text")
    demand(
        _ADDRESS.search(found) is None,
        f"{name}: fingerprint() returned {found!r}, which has an address in memory; every process has another one",
    )
    demand(part.fingerprint() == found, f"{name}: fingerprint() returns another text each time")
    return found


def _compare(name: str, found: Arrays, expected: Arrays, how: str) -> None:
    demand(
        set(found) == set(expected),
        f"{name}: read {how}, examples have {list_some(sorted(found))} instead of {list_some(sorted(expected))}",
    )
    for key, value in expected.items():
        demand(
            same_bits(found[key], value),
            f"{name}: {key!r} differs when it is read {how}; an example must have the same bits, dtype and shape whenever and "
            "with whatever it is read",
        )


def _check_values(name: str, part: _View, arrays: Arrays) -> None:
    names = sorted(arrays)
    demand(
        [each for each in names if is_input(each)], f"{name}: there is no input of the model, only {list_some(names)}"
    )
    demand(
        [each for each in names if each.partition("/")[0] == LABEL],
        f"{name}: there is no label, only {list_some(names)}",
    )
    for key, array in arrays.items():
        about, kind = f"{name}: {key!r}", key.partition("/")[0]
        if kind == LABEL:
            weights = arrays.get(key.replace(LABEL, WEIGHT, 1), arrays.get(WEIGHT))
            _check_label(about, key, part, array, weights)
        elif kind == WEIGHT:
            demand(
                array.ndim == 1 and array.dtype.kind in "fiu",
                f"{about} is {array.dtype} {list(array.shape)}; expected float32 [m]",
            )
            demand(
                np.isfinite(array).all() and (array >= 0).all(), f"{about} has weights that are not finite or below 0"
            )
        elif is_input(key):
            demand(array.dtype.name in _DTYPES, f"{about} is {array.dtype}; expected {', '.join(_DTYPES)}")
            demand(
                array.ndim >= 2,
                f"{about} has shape {list(array.shape)}; expected [m, ...], with an axis after the examples",
            )
            if array.dtype.kind == "f":
                demand(
                    np.isfinite(array).all(),
                    f"{about} has values that are not finite; replace them, or leave the example out",
                )
            if array.ndim == 4 and array.dtype.kind == "f" and key == "image":
                demand(
                    array.min() >= 0 and array.max() <= 1,
                    f"{about} has values from {array.min():g} to {array.max():g}; expected 0 to 1, or uint8",
                )


def _check_label(about: str, key: str, part: _View, array: np.ndarray, weights: np.ndarray | None) -> None:
    demand(array.dtype.kind in "iufb", f"{about} is {array.dtype}; expected whole numbers from 0, or floats")
    present = np.ones(len(array), bool) if weights is None else weights > 0
    if array.dtype.kind == "f":
        demand(
            np.isfinite(array[present]).all(),
            f"{about} has labels that are not finite; give a missing label the weight 0, in {key.replace(LABEL, WEIGHT, 1)!r}",
        )
        return
    demand(not present.any() or array[present].min() >= 0, f"{about} has labels below 0; classes count from 0")
    classes = part.classes.get(key.partition("/")[2]) if isinstance(part.classes, Mapping) else part.classes
    if classes is not None and array.ndim == 1 and present.any():
        largest = int(array[present].max())
        demand(largest < len(classes), f"{about} has the class {largest}, but `classes` has {len(classes)} names")


def _check_threads(name: str, part: _View, positions: np.ndarray, expected: Arrays) -> None:
    """Several threads read at once."""
    turns = [np.roll(np.arange(len(positions)), turn) for turn in range(8)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for turn, found in zip(turns, pool.map(lambda turn: part.read(positions[turn]), turns), strict=True):
            _compare(name, found, {key: value[turn] for key, value in expected.items()}, "from several threads")


def _check_labels_alone(name: str, part: _View, positions: np.ndarray, expected: Arrays) -> None:
    read_labels = getattr(part.part, "read_labels", None)
    if not callable(read_labels):
        return
    with calling(f"{name}: read_labels"):
        found = dict(read_labels(positions))
    wanted = {key: value for key, value in expected.items() if key.partition("/")[0] in (LABEL, WEIGHT)}
    _compare(name, {key: value for key, value in found.items() if key in wanted}, wanted, "by read_labels")


def _check_made_again(name: str, part: _View, again: _View, examples: int) -> None:
    demand(len(again) == len(part), f"{name}: made again, it has {len(again)} examples, not {len(part)}")
    demand(
        again.fingerprint() == part.fingerprint(),
        f"{name}: made again, it has another fingerprint, so a run could not be resumed; compute it from the data, not from a "
        "time or a random number",
    )
    positions = _choose(len(part), examples)
    _compare(name, again.read(positions), part.read(positions), "from a source that is made again")
