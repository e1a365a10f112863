"""Ported weights as tensors of the old checkpoint again: the rules, read from right to left.

A tensor is changed only where its variable's value is not what the rule makes of the base. So what did not change
keeps its bits, whatever the transforms, and only what did change must be undone.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from compat_v1.graphs import saver_keys
from compat_v1.graphs.endpoints import shape_of
from engine.files import FileError, PathLike
from engine.porting.errors import PortError
from engine.porting.plan import Plan, Step, resolve
from engine.porting.readers.source import TensorSource
from engine.porting.rules import detect, transforms
from engine.porting.rules.inverse import invert, source_shape
from engine.porting.rules.language import Rules
from engine.porting.rules.transforms import Spec
from engine.selection.variables import ModelVariables, name_variables
from engine.text import listed

_COMPARED = 1 << 22  # elements that are compared at a time


class Known:
    """Tensors of which only shapes and dtypes are known: a TensorSource of zeros.

    ``graph(meta)`` takes them from an old graph, ``rules(...)`` from the rules alone.
    """

    checksums = False

    def __init__(self, specs: Mapping[str, Spec], path: PathLike = "no base") -> None:
        self._specs = dict(specs)
        self.path = pathlib.Path(path)

    @classmethod
    def graph(cls, meta: Any, path: PathLike) -> Known:
        """What the Saver of a MetaGraphDef wants, as far as its variables say shapes."""
        nodes = {node.name: node for node in meta.graph_def.node}
        specs = {}
        for each in saver_keys.wanted(meta):
            node = nodes.get(each.variable)
            shape = each.part.full if each.part is not None else shape_of(node) if node is not None else None
            if shape is not None and None not in shape and each.dtype is not None:
                dtype = np.dtype(each.dtype.base_dtype.as_numpy_dtype)
                specs[each.key] = Spec(tuple(int(length or 0) for length in shape), dtype)
        return cls(specs, path)

    @classmethod
    def rules(cls, variables: ModelVariables, rules: Rules) -> Known:
        """Names and shapes as the rules alone tell them.

        Raises:
            PortError: a rule's transforms do not tell the shape of their source.
        """
        specs = {}
        for entry in variables:
            for rule in rules.rules:
                match = next((m for path in entry.paths if (m := rule.pattern.fullmatch(path))), None)
                if match is None or rule.optional:
                    continue
                shape, dtype = tuple(entry.variable.shape), np.dtype(entry.variable.dtype.as_numpy_dtype)
                try:
                    if len(rule.sources) > 1:
                        raise ValueError("`concat` does not tell how long each was")
                    specs[rule.expand(match)[0]] = Spec(source_shape(shape, rule.transforms), dtype)
                except ValueError as error:
                    raise PortError(f"{rule.where}: {error}; a base, or the old graph, does") from None
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

    def close(self) -> None:
        pass

    def __enter__(self) -> Known:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


class Reverse:
    """A model's weights under the names of its old checkpoint, read one at a time.

    Args:
        model: a tf.Module, Keras model or list of variables.
        rules: those that ported the checkpoint.
        base: the checkpoint (partitioned tensors whole), or ``Known`` for none.
        grid: the model's patch grid.

    Attributes:
        left_out: variables that have no place in the checkpoint, with the reason: of the head, or by rule.
        changed: tensors whose values were found to be others than the base's, as they were read.

    Raises:
        PortError: the rules do not fit the model and the base, or a variable has no place there.
    """

    def __init__(
        self,
        model: Any,
        rules: Rules | PathLike,
        base: TensorSource | Known,
        *,
        grid: tuple[int, int] | None = None,
    ) -> None:
        chosen = detect.named(rules)
        if isinstance(base, Known):
            chosen = dataclasses.replace(chosen, skip=tuple(dataclasses.replace(s, optional=True) for s in chosen.skip))
        plan = resolve(name_variables(model), base, chosen, grid=grid)
        if plan.missing or plan.wrong:
            raise PortError(
                f"{base.path}: the model does not go back into it (rules: {chosen.name})"
                + listed("in the model, without a place in the checkpoint", plan.missing)
                + listed("of another shape or type", plan.wrong)
            )
        self.left_out = dict(plan.fresh)
        self.changed: list[str] = []
        self._base = base
        self._steps = _by_source(plan)
        if isinstance(base, Known):
            for name, steps in self._steps.items():
                covered = sum(_share(step) for step in steps)
                if covered < 1:
                    raise PortError(
                        f"{steps[0].rule.where}: only a part of {name} is in the model, and there is no base"
                    )

    def names(self) -> list[str]:
        """Tensors that a rule touches."""
        return list(self._steps)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._base.dtype(name)

    def read(self, name: str) -> np.ndarray:
        """The tensor, of the base's shape and dtype; where nothing changed, the base's bits.

        Raises:
            PortError: a value changed that the rule cannot carry back, or two variables disagree; names the line.
            FileError: the base is damaged.
        """
        if name not in self._steps:
            raise FileError(f"{self._base.path}: no rule touches {name}")
        array = self._base.read(name)
        known = isinstance(self._base, Known)
        moved = [
            step for step in self._steps[name] if known or not _same(self._forward(step, {name: array}), _value(step))
        ]
        for step in moved:
            array = self._back(step, name, array)
        if moved:
            self.changed.append(name)
            if len(self._steps[name]) > 1:
                self._check(name, array)
        return array

    def _forward(self, step: Step, instead: Mapping[str, np.ndarray]) -> np.ndarray:
        """What the rule makes of the base, with some tensors replaced."""
        arrays = [instead[name] if name in instead else self._base.read(name) for name in step.sources]
        made = transforms.run(arrays, step.rule.transforms, step.target)
        return made.astype(step.entry.variable.dtype.as_numpy_dtype, copy=False)

    def _back(self, step: Step, name: str, array: np.ndarray) -> np.ndarray:
        specs = [Spec(self._base.shape(each), self._base.dtype(each)) for each in step.sources]

        def read(number: int) -> np.ndarray:
            return array if step.sources[number] == name else self._base.read(step.sources[number])

        try:
            found = invert(_value(step), specs, step.rule.transforms, step.target, read=read)
        except ValueError as error:
            raise PortError(f"{step.rule.where}: {step.entry.path} has changed, and {error}") from None
        return found[step.sources.index(name)]

    def _check(self, name: str, array: np.ndarray) -> None:
        """Several variables share the tensor: what it says now must be what each of them says."""
        for step in self._steps[name]:
            if len(step.sources) > 1:
                continue
            dtype = self._base.dtype(name)
            wanted = _value(step).astype(dtype).astype(step.entry.variable.dtype.as_numpy_dtype)
            if not _same(self._forward(step, {name: array}), wanted):
                others = ", ".join(each.entry.path for each in self._steps[name] if each is not step)
                raise PortError(f"{step.rule.where}: {step.entry.path} and {others} give {name} different values")


def _by_source(plan: Plan) -> dict[str, list[Step]]:
    found: dict[str, list[Step]] = {}
    for step in plan.steps:
        for name in dict.fromkeys(step.sources):
            found.setdefault(name, []).append(step)
    return found


def _share(step: Step) -> float:
    """How much of its source a variable holds."""
    parts = [each.arguments[1] for each in step.rule.transforms if each.name == "split"]
    return 1 / math.prod(parts)


def _value(step: Step) -> np.ndarray:
    value = step.entry.variable.read_value()
    return np.asarray(value.__array__())  # numpy() would make a second copy


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether all values are equal, not-a-number to itself; a few rows at a time, as the masks take memory too."""
    if one.ndim == 0:
        return bool(one == other or (one != one and other != other))
    rows = max(1, _COMPARED // max(1, one[:1].size))
    for start in range(0, len(one), rows):
        a, b = one[start : start + rows], other[start : start + rows]
        equal = a == b
        if not equal.all() and not (equal | ((a != a) & (b != b))).all():
            return False
    return True
