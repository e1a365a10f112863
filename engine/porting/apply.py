"""Carries a port out: resolve on shapes, then read, transform and assign; three tensors are under way at most."""

from __future__ import annotations

import collections
import contextlib
import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from engine.files import FileError, PathLike
from engine.porting.errors import PortError
from engine.porting.ledger import Ledger, Loaded
from engine.porting.plan import Plan, Step, resolve
from engine.porting.readers import verify
from engine.porting.readers.source import TensorSource, open_tensors
from engine.porting.rules import detect, transforms
from engine.porting.rules.language import Rules
from engine.selection.variables import ModelVariables, name_variables
from engine.text import listed

_AHEAD = 2  # tensors that are made while one is assigned
_STRIP = 128  # rows of the source that are in the cache together


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
        model: a tf.Module, Keras model or list of variables (engine.selection.variables).
        source: a weights file of any known kind (engine.porting.readers.source), or an open one.
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
        bad = verify.damaged(source, dict.fromkeys(name for step in plan.steps for name in step.sources))
        if len(bad) == 1:
            raise PortError(bad[0].reason)
        if bad:
            raise PortError(
                f"{source.path}: {len(bad)} tensors are damaged" + listed("damaged", [d.reason for d in bad])
            )
    for step, array in values(plan.steps, source):
        with tf.device("CPU:0"):  # one copy, into TensorFlow's memory, which the old value frees; tf.constant makes two
            copied = tf.raw_ops.DeepCopy(x=array)
        step.entry.variable.assign(copied, read_value=False)
    variables.refresh()
    return ledger(plan, source, chosen)


def values(steps: Sequence[Step], source: TensorSource, *, ahead: int = _AHEAD) -> Iterator[tuple[Step, np.ndarray]]:
    """Each step with its variable's new value; while that is used, threads make the next ones.

    Args:
        ahead: how many: so many more tensors are in memory.

    Raises:
        FileError: a tensor cannot be read.
    """
    reading = threading.Lock()  # a source reads for one at a time
    with ThreadPoolExecutor(ahead) as threads:
        coming = collections.deque(threads.submit(value, step, source, reading) for step in steps[:ahead])
        for number, step in enumerate(steps):
            made = coming.popleft().result()
            coming.extend(threads.submit(value, after, source, reading) for after in steps[number + ahead :][:1])
            yield step, made
            del made


def value(
    step: Step, source: TensorSource, reading: contextlib.AbstractContextManager[Any] | None = None
) -> np.ndarray:
    """The variable's new value, in its dtype: reads its tensors, of a leading split along axis 0 only the part.

    Args:
        reading: held while the source is read.

    Raises:
        FileError: a tensor cannot be read.
    """
    reading = reading or contextlib.nullcontext()
    steps = step.rule.transforms
    if steps and steps[0].name == "split" and steps[0].arguments[0] == 0:
        _, parts, index = steps[0].arguments
        each = [source.shape(name)[0] // parts for name in step.sources]
        with reading:
            arrays = [
                source.read_slice(name, index * rows, (index + 1) * rows)
                for name, rows in zip(step.sources, each, strict=True)
            ]
        steps = steps[1:]
    else:
        with reading:
            arrays = [source.read(name) for name in step.sources]
    result = transforms.run(arrays, steps, step.target)
    return _in_order(result.astype(step.entry.variable.dtype.as_numpy_dtype, copy=False))


def _in_order(array: np.ndarray) -> np.ndarray:
    """The array's values in C order.

    A transposed view is copied in strips that stay in the processor's cache: several times faster than
    numpy.ascontiguousarray or tf.transpose on a [3072, 768] kernel.
    """
    if array.flags.c_contiguous:
        return array
    ordered = _aligned(array.shape, array.dtype)
    for start in range(0, array.shape[-1], _STRIP):
        ordered[..., start : start + _STRIP] = array[..., start : start + _STRIP]
    return ordered


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """An empty array at a multiple of 64 bytes, which a TensorFlow op reads in place."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def ledger(plan: Plan, source: TensorSource, rules: Rules) -> Ledger:
    """What carrying out the plan does."""
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
    return Ledger(
        source.path.name, rules.name, tuple(loaded), tuple(plan.skipped), fresh=plan.fresh, images=rules.images
    )


def _grid_of(model: Any) -> tuple[int, int] | None:
    grid = getattr(model, "grid", None)
    return grid if isinstance(grid, tuple) and len(grid) == 2 else None
