"""Carries a port out: resolve on shapes, then read, transform and assign one tensor at a time."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import numpy as np
import tensorflow as tf

from engine.files import FileError, PathLike
from engine.porting import detect, transforms
from engine.porting.errors import PortError
from engine.porting.ledger import Ledger, Loaded
from engine.porting.plan import Plan, Step, resolve
from engine.porting.rules import Rules
from engine.porting.source import TensorSource, open_tensors
from engine.variables import ModelVariables, name_variables


def load(
    model: Any,
    source: TensorSource | PathLike,
    rules: Rules | PathLike | None = None,
    *,
    grid: tuple[int, int] | None = None,
) -> Ledger:
    """Assigns every variable of a model from a weights file.

    Every variable must get a value and every tensor must be used or skipped by a rule; only variables
    of the head may be missing or have another shape, as with other classes: they keep their initial
    values. Nothing is assigned unless everything fits. Memory beyond the model: a few times the largest
    tensor. Half and bfloat16 tensors become the variable's own type.

    Args:
        model: a tf.Module, Keras model or list of variables (engine.variables).
        source: a weights file of any known kind (engine.porting.source), or an open one.
        rules: parsed, a file, or the name of a shipped one; None: chosen by the names in the file.
        grid: the model's patch grid (rows, columns); None: its attribute ``grid`` if it has one.

    Raises:
        PortError: the file cannot be read, the rules say nothing sensible, or something does not fit;
            lists both sides.
    """
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(source, (str, os.PathLike)):
                source = stack.enter_context(open_tensors(source))
            variables = name_variables(model)
            return _load(variables, source, rules, grid or _grid_of(model))
    except FileError as error:
        raise PortError(str(error)) from None


def _load(
    variables: ModelVariables, source: TensorSource, rules: Rules | PathLike | None, grid: tuple[int, int] | None
) -> Ledger:
    chosen = detect.choose(source, variables) if rules is None else detect.named(rules)
    plan = resolve(variables, source, chosen, grid=grid)
    plan.check(source, chosen)
    if source.checksums:  # a first pass, so that a damaged file changes nothing
        for name in dict.fromkeys(name for step in plan.steps for name in step.sources):
            source.read(name)
    for step in plan.steps:
        step.entry.variable.assign(_value(step, source))
    variables.refresh()
    return _ledger(plan, source, chosen)


def _value(step: Step, source: TensorSource) -> Any:
    """The variable's new value: reads its tensors, of a leading split along axis 0 only the part."""
    steps = step.rule.transforms
    if steps and steps[0].name == "split" and steps[0].arguments[0] == 0:
        _, parts, index = steps[0].arguments
        each = [source.shape(name)[0] // parts for name in step.sources]
        arrays = [
            source.read_slice(name, index * rows, (index + 1) * rows)
            for name, rows in zip(step.sources, each, strict=True)
        ]
        steps = steps[1:]
    else:
        arrays = [source.read(name) for name in step.sources]
    value = transforms.run(arrays, steps, step.target)
    return _contiguous(value.astype(step.entry.variable.dtype.as_numpy_dtype, copy=False))


def _contiguous(array: np.ndarray) -> Any:
    """The array's values in order. TensorFlow transposes several times faster than numpy.

    The raw op reads numpy's memory; tf.constant would copy it first.
    """
    order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    base = array.transpose(order)
    if order != list(range(array.ndim)) and base.flags.c_contiguous:
        with tf.device("CPU:0"):
            return tf.raw_ops.Transpose(x=base, perm=np.argsort(order))
    return np.ascontiguousarray(array).reshape(array.shape)


def _ledger(plan: Plan, source: TensorSource, rules: Rules) -> Ledger:
    loaded = [
        Loaded(
            step.sources,
            step.entry.path,
            step.done,
            step.target.shape,
            step.entry.variable.dtype.name,
        )
        for step in plan.steps
    ]
    return Ledger(source.path.name, rules.name, tuple(loaded), tuple(plan.skipped), fresh=plan.fresh)


def _grid_of(model: Any) -> tuple[int, int] | None:
    grid = getattr(model, "grid", None)
    return grid if isinstance(grid, tuple) and len(grid) == 2 else None
