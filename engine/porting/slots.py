"""Continues training from the optimizer slots that a weights file holds along with the weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from engine.porting.readers.source import TensorSource
from engine.selection.selection import Selection
from engine.selection.variables import NamedVariable
from engine.training.optimizer_state import Slots
from engine.training.optimizers import FORMS, OPTIMIZERS, START, Optimizer, build_optimizer


def continue_from(source: TensorSource, slots: Slots, chosen: Selection, optimizer: Optimizer) -> str | None:
    """Takes over ``optimizer/<path>/<slot>`` and ``optimizer/<path>/t`` for the variables of a selection.

    A variable continues only if the file has exactly the slots that its optimizer keeps, in its shape, and their t. All
    others start from new slots and t = 0, as without a file. What a variable decays toward (``decay_toward``) is not needed
    from the file: where it has none, that is the value that the variable has now, and it is dropped where it is not used. ``slots`` are those of a step that has not trained yet.
    Returns a sentence or two that say what was done; None for a file without slots. Raises FileError if one is damaged.
    """
    held: dict[str, set[str]] = {}
    for name in source.names():
        path, _, slot = name.removeprefix("optimizer/").rpartition("/")
        if name.startswith("optimizer/") and path:
            held.setdefault(path, set()).update({slot} if slot != START or START in optimizer.slots else ())
    kinds = {frozenset(names - {"t"}) for names in held.values()} - {frozenset()}
    if not kinds:
        return None
    name = next((name for name, made in OPTIMIZERS.items() if type(optimizer) is made), type(optimizer).__name__)
    wanted = frozenset(optimizer.slots)
    new = "new slots" if optimizer.first_values or START in wanted else "zeros"
    if not kinds & {wanted, wanted - {START}}:
        has = " and of ".join(", ".join(sorted(kind)) for kind in kinds)
        able = [form for form in FORMS if frozenset(build_optimizer(form).slots) in kinds]
        keeps = f"keeps {', '.join(optimizer.slots)}" if wanted else "keeps none"
        hint = f"; {' or '.join(able)} could continue from them" if able else ""
        return f"{source.path.name} has the slots {has}, but {name} {keeps}: it starts from {new}{hint}"
    fresh: dict[str, str] = {}
    taken: list[str] = []
    from_now = 0
    for entry in chosen.trained:
        if (reason := _unfit(source, entry, held, wanted)) is not None:
            fresh[entry.path] = reason
            continue
        start, dtype = f"optimizer/{entry.path}/", entry.variable.dtype.as_numpy_dtype
        arrays = {
            slot: entry.variable.numpy()
            if slot not in held[entry.path]
            else source.read(start + slot).astype(dtype, copy=False)
            for slot in optimizer.slots
        }
        from_now += START in wanted and START not in held[entry.path]
        slots.take(entry, arrays, int(source.read(start + "t")))
        taken.append(entry.path)
    steps = sorted({slots.t[path] for path in taken})
    text = (
        f"{name} continues from {', '.join(optimizer.slots)} of {len(taken)} of {len(chosen.trained)} trained variables"
    )
    if steps:
        text += f" (t = {steps[0]}{f' to {steps[-1]}' if len(steps) > 1 else ''})"
    if from_now:
        text += f"; the file does not say what {from_now} of them decay toward, so it is what they are now"
    if fresh:
        path, reason = next(iter(fresh.items()))
        text += f"; {len(fresh)} start from {new}, such as {path}: {reason}"
    frozen = len(set(held) - {entry.path for entry in chosen.trained})
    return text + (
        f"; the slots of {frozen} others are dropped, since they do not train at the start" if frozen else ""
    )


def _unfit(
    source: TensorSource, entry: NamedVariable, held: Mapping[str, set[str]], wanted: frozenset[str]
) -> str | None:
    """Returns why the file's slots do not suit a variable, None if they do."""
    names = held.get(entry.path)
    if names is None:
        return "the file has no slots for it"
    if names | (wanted & {START}) != wanted | {"t"}:
        return f"the file has {', '.join(sorted(names))}"
    shape = tuple(entry.variable.shape)
    for slot in sorted(wanted & names):
        name = f"optimizer/{entry.path}/{slot}"
        if source.shape(name) != shape:
            return f"{slot} is {list(source.shape(name))}, the variable {list(shape)}"
        if not np.can_cast(source.dtype(name), np.float64) or source.dtype(name).kind in "biu":
            return f"{slot} is {source.dtype(name).name}"
    t = f"optimizer/{entry.path}/t"
    if source.shape(t) != () or source.dtype(t).kind not in "iu" or int(source.read(t)) < 0:
        return "its t is not a number of steps"
    return None
