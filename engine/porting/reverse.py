"""Turns a model's weights back into the tensors of the file that they came from, by the rules read from right to left.

A tensor is changed only where the value of its variable is not what the rule makes from the base. So a weight that did
not change keeps its bits, whatever the transforms, and only those that changed must be inverted.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from engine.files import FileError, PathLike
from engine.porting.errors import PortError
from engine.porting.plan import Assignment, Plan, build_plan
from engine.porting.readers.closing import Closing
from engine.porting.readers.source import TensorSource
from engine.porting.rules import detect, transforms
from engine.porting.rules.inverse import infer_source_shape, invert_transforms, is_folded
from engine.porting.rules.language import Rules
from engine.porting.rules.transforms import Spec
from engine.selection.variables import ModelVariables, name_variables
from engine.text import listed

_COMPARED = 1 << 22  # the number of elements to compare at a time


class KnownShapes(Closing):
    """A TensorSource of zeros, for tensors of which only shapes and dtypes are known.

    ``from_rules`` takes them from the rules alone; ``compat_v1.porting.known_shapes`` from an old graph.
    """

    checksums = False

    def __init__(self, specs: Mapping[str, Spec], path: PathLike = "no base") -> None:
        self._specs = dict(specs)
        self.path = pathlib.Path(path)

    @classmethod
    def from_rules(cls, variables: ModelVariables, rules: Rules) -> KnownShapes:
        """Infers names and shapes from the rules alone; raises PortError if the transforms do not determine them."""
        specs = {}
        for entry in variables:
            for rule in rules.rules:
                match = next((m for path in entry.paths if (m := rule.pattern.fullmatch(path))), None)
                if match is None or rule.optional:
                    continue
                shape, dtype = tuple(entry.variable.shape), np.dtype(entry.variable.dtype.as_numpy_dtype)
                try:
                    if len(rule.sources) > 1:
                        raise ValueError("`concat` does not determine how long each source is")
                    specs[rule.expand(match)[0]] = Spec(infer_source_shape(shape, rule.transforms), dtype)
                except ValueError as error:
                    raise PortError(f"{rule.where}: {error}; give a base or the old graph") from None
        return cls(specs)

    def names(self) -> list[str]:
        return list(self._specs)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._specs[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._specs[name].dtype

    def read(self, name: str) -> np.ndarray:
        return np.zeros(*self._specs[name])

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        return self.read(name)[start:stop]


class Reverse:
    """A model's weights under the names of the file that they came from, read one at a time.

    ``rules`` are those that ported the file; ``base`` is the file (of a checkpoint, with partitioned tensors whole), or
    ``KnownShapes`` if there is none. ``left_out`` has the variables that have no place in the checkpoint, with the
    reason, ``changed`` the tensors read so far whose values differ from those of the base, and ``rounded`` the variables
    whose values lost digits, since the base has a smaller dtype. Raises PortError if the
    rules do not fit the model and the base, or a variable has no place in the checkpoint.
    """

    def __init__(
        self,
        model: Any,
        rules: Rules | PathLike,
        base: TensorSource | KnownShapes,
        *,
        grid: tuple[int, int] | None = None,
    ) -> None:
        chosen = detect.get_rules(rules)
        if isinstance(base, KnownShapes):
            chosen = dataclasses.replace(chosen, skip=tuple(dataclasses.replace(s, optional=True) for s in chosen.skip))
        plan = build_plan(name_variables(model), base, chosen, grid=grid)
        if plan.missing or plan.wrong:
            raise PortError(
                f"{base.path}: the model cannot be written back to it (rules: {chosen.name})"
                + listed("in the model, without a place in the checkpoint", plan.missing)
                + listed("of another shape or type", plan.wrong)
            )
        self.left_out = dict(plan.fresh)
        self.changed: list[str] = []
        self.rounded: list[str] = []
        self._base = base
        self._by_source = _group_by_source(plan)
        if isinstance(base, KnownShapes):
            for name, assignments in self._by_source.items():
                spec = Spec(base.shape(name), base.dtype(name))
                covered = sum(_share(assignment, spec) for assignment in assignments)
                if covered < 1:
                    raise PortError(
                        f"{assignments[0].rule.where}: only a part of {name} is in the model; give a base that has the rest"
                    )

    def names(self) -> list[str]:
        """Returns the tensors that a rule reads."""
        return list(self._by_source)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._base.dtype(name)

    def read(self, name: str) -> np.ndarray:
        """Returns the tensor in the shape and dtype of the base, with the base's bits if nothing changed.

        Raises PortError, which names the line, if a value changed but its rule cannot be inverted, or two variables
        disagree; FileError if the base is damaged.
        """
        if name not in self._by_source:
            raise FileError(f"{self._base.path}: no rule reads {name}")
        array = self._base.read(name)
        known = isinstance(self._base, KnownShapes)
        moved = [
            assignment
            for assignment in self._by_source[name]
            if known or not _same(self._forward(assignment, {name: array}), _value(assignment))
        ]
        whole = [assignment for assignment in moved if not is_folded(assignment.rule.transforms)]
        for assignment in whole:
            array = self._back(assignment, name, array)
        if moved:
            self.changed.append(name)
            if whole and len(self._by_source[name]) > 1:
                self._check(name, array)
        for assignment in moved:  # what is subtracted from a value comes after it
            array = array if assignment in whole else self._back(assignment, name, array)
        return array

    def _forward(self, assignment: Assignment, instead: Mapping[str, np.ndarray]) -> np.ndarray:
        """Applies the rule to the base, with some tensors replaced."""
        arrays = [instead[name] if name in instead else self._base.read(name) for name in assignment.sources]
        made = transforms.apply_transforms(arrays, assignment.rule.transforms, assignment.target)
        return made.astype(assignment.entry.variable.dtype.as_numpy_dtype, copy=False)

    def _back(self, assignment: Assignment, name: str, array: np.ndarray) -> np.ndarray:
        specs = [Spec(self._base.shape(each), self._base.dtype(each)) for each in assignment.sources]

        def read(number: int) -> np.ndarray:
            return array if assignment.sources[number] == name else self._base.read(assignment.sources[number])

        value = _value(assignment)
        with np.errstate(over="ignore"):
            narrow = value.astype(self._base.dtype(name)).astype(value.dtype)
        if not _same(narrow, value):
            if not np.isfinite(narrow[np.isfinite(value)]).all():
                raise PortError(
                    f"{assignment.entry.path}: its values do not fit {self._base.dtype(name).name}, the base's dtype"
                )
            self.rounded.append(assignment.entry.path)
        try:
            found = invert_transforms(value, specs, assignment.rule.transforms, assignment.target, read=read)
        except ValueError as error:
            raise PortError(f"{assignment.rule.where}: {assignment.entry.path} has changed, and {error}") from None
        return found[assignment.sources.index(name)]

    def _check(self, name: str, array: np.ndarray) -> None:
        """Raises PortError unless a tensor that several variables share has the value of each of them."""
        for assignment in self._by_source[name]:
            if len(assignment.sources) > 1 or is_folded(assignment.rule.transforms):
                continue
            dtype = self._base.dtype(name)
            wanted = _value(assignment).astype(dtype).astype(assignment.entry.variable.dtype.as_numpy_dtype)
            if not _same(self._forward(assignment, {name: array}), wanted):
                others = ", ".join(each.entry.path for each in self._by_source[name] if each is not assignment)
                raise PortError(
                    f"{assignment.rule.where}: {assignment.entry.path} and {others} give {name} different values"
                )


def _group_by_source(plan: Plan) -> dict[str, list[Assignment]]:
    found: dict[str, list[Assignment]] = {}
    for assignment in plan.assignments:
        for name in dict.fromkeys(assignment.sources):
            found.setdefault(name, []).append(assignment)
    return found


def _share(assignment: Assignment, spec: Spec) -> Fraction:
    """Returns the share of its source, which has this shape, that a variable holds."""
    share = Fraction(1)
    for transform in assignment.rule.transforms:
        after = transform.infer(spec, assignment.target) if transform.name != "concat" else None
        if after is None:
            break
        if transform.name in ("split", "slice"):
            share *= Fraction(math.prod(after.shape), max(1, math.prod(spec.shape)))
        spec = after
    return share


def _value(assignment: Assignment) -> np.ndarray:
    value = assignment.entry.variable.read_value()
    return np.asarray(value.__array__())  # numpy() would make another copy


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether all values are equal, with NaN equal to NaN; a few rows at a time, since the masks take memory too."""
    if one.ndim == 0:
        return bool(one == other or (one != one and other != other))
    rows = max(1, _COMPARED // max(1, one[:1].size))
    for start in range(0, len(one), rows):
        a, b = one[start : start + rows], other[start : start + rows]
        equal = a == b
        if not equal.all() and not (equal | ((a != a) & (b != b))).all():
            return False
    return True
