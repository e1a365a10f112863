"""Carries out a port: resolves it on shapes, then reads, transforms and assigns, with at most three tensors in memory."""

from __future__ import annotations

import collections
import contextlib
import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from engine.files import FileError, PathLike
from engine.porting.both_sides import Differences
from engine.porting.errors import PortError
from engine.porting.ledger import Ledger, Loaded
from engine.porting.plan import ABSENT, Assignment, Plan, build_plan, take_names
from engine.porting.readers import verify
from engine.porting.readers.source import TensorSource, open_tensors
from engine.porting.rules import detect, facts, transforms
from engine.porting.rules.language import Rules
from engine.selection.variables import ModelVariables, name_variables

_AHEAD = 2  # tensors that are prepared while one is assigned
_STRIP = 128  # rows of the source that fit into the processor's cache together


def load(
    model: Any,
    source: TensorSource | PathLike,
    rules: Rules | PathLike | None = None,
    *,
    grid: tuple[int, int] | None = None,
) -> Ledger:
    """Assigns every variable of a model from a weights file (engine.porting.readers.source).

    Every variable must get a value, and every tensor must be used or skipped by a rule. Only variables of the head may
    be missing or have another shape, as with another set of classes; they keep their initial values. Nothing is
    assigned unless everything fits; otherwise PortError lists both sides. The memory used besides the model is a few
    times the largest tensor. Float16 and bfloat16 tensors are converted to the variable's dtype.

    Args:
        rules: parsed rules, a rule file, or the name of a shipped one; None chooses by the names in the file.
        grid: the model's patch grid (rows, columns); None takes its attribute ``grid`` if it has one.
    """
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(source, (str, os.PathLike)):
                source = stack.enter_context(open_tensors(source))
            variables = name_variables(model)
            return _load(variables, source, rules, grid or _grid_of(model))
    except FileError as error:
        raise PortError(str(error)) from None


def load_part(variables: ModelVariables, source: TensorSource, *, grid: tuple[int, int] | None = None) -> Ledger:
    """Assigns those variables of a model that a file of this project holds; the others keep their values.

    Variables of the head of another shape keep theirs too; the ledger has them as fresh. PortError: a tensor does not fit,
    or is damaged; nothing is assigned then.
    """
    rules = detect.get_rules(detect.OWN)
    plan = build_plan(variables, source, rules, grid=grid)
    plan = replace(plan, missing=[], fresh={p: why for p, why in plan.fresh.items() if why != ABSENT})
    if differences := Differences((), tuple(plan.unused), tuple(plan.wrong)):
        raise PortError(f"{source.path}: the file does not fit the model{differences}")
    return carry_out(plan, source, rules, variables)


def _load(
    variables: ModelVariables, source: TensorSource, rules: Rules | PathLike | None, grid: tuple[int, int] | None
) -> Ledger:
    if rules is None:
        source = take_names(source, variables)
        chosen = detect.choose_rules(source, variables)
    else:
        chosen = detect.get_rules(rules)
    source = take_names(source, variables, chosen)
    plan = build_plan(variables, source, chosen, grid=grid)
    plan.check(source, chosen)
    fact = facts.check_expected(chosen, source.path)
    return replace(carry_out(plan, source, chosen, variables), fact=fact)


def carry_out(plan: Plan, source: TensorSource, rules: Rules, variables: ModelVariables) -> Ledger:
    """Assigns what a plan says. Raises FileError or PortError, before anything is assigned, if the file is damaged."""
    if source.checksums:  # a first pass, so that a damaged file changes nothing
        bad = verify.find_damage(
            source, dict.fromkeys(name for assignment in plan.assignments for name in assignment.sources)
        )
        if bad:
            raise verify.damage_error(source.path, bad)
    for assignment, array in read_values(plan.assignments, source):
        with tf.device("CPU:0"):  # a single copy into TensorFlow's memory; tf.constant would make two
            copied = tf.raw_ops.DeepCopy(x=array)
        assignment.entry.variable.assign(copied, read_value=False)
    variables.refresh()
    return build_ledger(plan, source, rules)


def read_values(
    assignments: Sequence[Assignment], source: TensorSource, *, ahead: int = _AHEAD
) -> Iterator[tuple[Assignment, np.ndarray]]:
    """Yields each assignment with its variable's new value, while threads prepare the next ones.

    ``ahead`` is the number of values to prepare, and so of additional tensors in memory. Raises FileError if a tensor
    cannot be read.
    """
    reading = threading.Lock()  # a source serves one reader at a time
    with ThreadPoolExecutor(ahead) as threads:
        coming = collections.deque(
            threads.submit(read_value, assignment, source, reading) for assignment in assignments[:ahead]
        )
        for number, assignment in enumerate(assignments):
            made = coming.popleft().result()
            coming.extend(
                threads.submit(read_value, after, source, reading) for after in assignments[number + ahead :][:1]
            )
            yield assignment, made
            del made


def read_value(
    assignment: Assignment, source: TensorSource, reading: contextlib.AbstractContextManager[Any] | None = None
) -> np.ndarray:
    """Reads the tensors of a variable and returns its new value, in its dtype.

    Where the rule begins with a split along axis 0, only that part is read. ``reading`` is a lock to hold while the
    source is read. Raises FileError if a tensor cannot be read.
    """
    reading = reading or contextlib.nullcontext()
    pending = assignment.rule.transforms
    if pending and pending[0].name == "split" and pending[0].arguments[0] == 0:
        _, parts, index = pending[0].arguments
        each = [source.shape(name)[0] // parts for name in assignment.sources]
        with reading:
            arrays = [
                source.read_slice(name, index * rows, (index + 1) * rows)
                for name, rows in zip(assignment.sources, each, strict=True)
            ]
        pending = pending[1:]
    else:
        with reading:
            arrays = [source.read(name) for name in assignment.sources]
    result = transforms.apply_transforms(arrays, pending, assignment.target)
    return _in_order(result.astype(assignment.entry.variable.dtype.as_numpy_dtype, copy=False))


def _in_order(array: np.ndarray) -> np.ndarray:
    """Returns the array in C order; copying in strips is several times faster than numpy.ascontiguousarray."""
    if array.flags.c_contiguous:
        return array
    ordered = _aligned(array.shape, array.dtype)
    for start in range(0, array.shape[-1], _STRIP):
        ordered[..., start : start + _STRIP] = array[..., start : start + _STRIP]
    return ordered


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Returns an empty array aligned to 64 bytes, which TensorFlow can read without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def build_ledger(plan: Plan, source: TensorSource, rules: Rules) -> Ledger:
    """Records what carrying out the plan does."""
    loaded = tuple(
        Loaded(made.sources, made.entry.path, made.done, made.target.shape, made.entry.variable.dtype.name)
        for made in plan.assignments
    )
    return Ledger(
        source.path.name,
        rules.name,
        loaded,
        tuple(plan.skipped),
        fresh=plan.fresh,
        images=rules.images,
        notes=rules.notes,
    )


def _grid_of(model: Any) -> tuple[int, int] | None:
    grid = getattr(model, "grid", None)
    return grid if isinstance(grid, tuple) and len(grid) == 2 else None
