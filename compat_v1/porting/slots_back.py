"""Exports optimizer slots under the names of TensorFlow 1, by the inverted rules of their weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from compat_v1.checkpoints.families import Families, Family
from compat_v1.porting.port import Renamed
from compat_v1.porting.slots import MULTIPLIED, SlotError, count_steps
from engine.files import PathLike
from engine.porting import slot_names
from engine.porting.plan import find_meant
from engine.porting.readers.source import TensorSource
from engine.porting.reverse import KnownShapes, Reverse
from engine.porting.rules import detect
from engine.porting.rules.language import Rules
from engine.porting.rules.transforms import drop_constants, have_slots
from engine.selection.variables import ModelVariables, name_variables
from engine.training.optimizer_base import START


def _sorted(slots: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(slots))


_KINDS = ("Adam", "Momentum", "RMSProp", "Adagrad", "Ftrl", "Adadelta")
_EXPORTED = [(kind, slot_names.V1_SLOTS[kind]) for kind in _KINDS]
_EXPORTED += [("RMSProp", slot_names.CENTERED_RMSPROP)]
_EXPORTED += [("RMSProp", slots) for slots in slot_names.RMSPROP_OF_V2]
# The sorted slots, by which an optimizer is recognised -> its kind, and what it appends to a variable's name for each.
_NAMES = {_sorted(slots): (kind, slot_names.v1_suffixes(slots, kind)) for kind, slots in _EXPORTED}


def export_slots(
    variables: ModelVariables,
    rules: Rules | PathLike,
    source: TensorSource,
    base: TensorSource | None,
    held: Families | None,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Turns the slots of a weights file into tensors of the old checkpoint; also returns what is left out, and why.

    The file has ``optimizer/<path>/<slot>`` and ``optimizer/<path>/t``; ``rules`` are those that ported the checkpoint,
    and ``base`` and ``held`` are that and its families, or None. The powers of Adam's betas are updated if its step
    count differs from that of the base. Raises SlotError if the slots are not those of one optimizer of
    tf.compat.v1.train; PortError if the rule of a slot cannot be inverted.
    """
    by_path = _slots_by_path(source, variables)
    if not by_path:
        return {}, {}
    left: dict[str, str] = {}
    for path in [path for path, slots in by_path.items() if START in slots]:
        left[f"optimizer/{path}/{START}"] = "no optimizer of TensorFlow 1 keeps what a variable decays toward"
        by_path[path].remove(START)
    if not any(by_path.values()):
        return {}, left
    kept, kind, suffixes = _recognise(source, by_path, base)
    chosen = detect.get_rules(rules)
    chosen = dataclasses.replace(
        chosen,
        rules=tuple(
            dataclasses.replace(rule, optional=True, transforms=drop_constants(rule.transforms))
            for rule in chosen.rules
        ),
        skip=tuple(dataclasses.replace(line, optional=True) for line in chosen.skip),
        fresh=tuple(dataclasses.replace(line, optional=True) for line in chosen.fresh),
    )
    found: dict[str, np.ndarray] = {}
    in_base = {f.name: _by_name_here(f, kind) for f in held.variables} if held is not None else {}
    for slot in sorted({slot for slots in in_base.values() for slot in slots} - set(kept)):
        left[f"{kind} {slot}"] = "the file has no such slot; the base's values stay"
    for rule in (rule for rule in chosen.rules if not have_slots(rule.transforms)):
        for path in [path for path in by_path if rule.pattern.fullmatch(path)]:
            left |= {f"optimizer/{path}/{slot}": MULTIPLIED for slot in by_path.pop(path)}
    for slot, suffix in suffixes.items():
        arrays = {path: source.read(f"optimizer/{path}/{slot}") for path in by_path}
        model = name_variables({path: tf.Variable(array, trainable=True) for path, array in arrays.items()})
        if base is None or held is None:
            back = Reverse(model, chosen, KnownShapes.from_rules(model, detect.get_rules(rules)))
            found |= {
                f"{name.removesuffix(f'/{slot_names.AVERAGE}')}/{suffix}": back.read(name) for name in back.names()
            }
            continue
        owners = [f for f in held.variables if slot in in_base[f.name]]
        meant = find_meant(
            model, chosen, [f.ema for f in owners if f.ema is not None]
        )  # rules may name averages instead
        real = {f.ema if f.ema in meant else f.name: in_base[f.name][slot] for f in owners}
        view = Renamed(base, {str(name): there for name, there in real.items()})
        places = {e.path: e.variable for e in model if _has_place(e.path, chosen, view.names())}
        absent = [e.path for e in model if e.path not in places]
        left |= dict.fromkeys((f"optimizer/{path}/{slot}" for path in absent), "the base has no such slot")
        if not places:
            continue
        back = Reverse(name_variables(places), chosen, view)
        found |= {view.real(name): back.read(name) for name in back.names()}
    steps = {int(source.read(f"optimizer/{path}/t")) for path in by_path if f"optimizer/{path}/t" in source.names()}
    if kind == "Adam" and len(steps) == 1:
        found |= _powers(next(iter(steps)), base, held, betas)
    elif kind == "Adam" and steps:
        counts = f"{min(steps)} to {max(steps)} steps"
        reason = f"the variables have made {counts}, but TensorFlow 1 counts the steps of all together"
        left = {"the powers of Adam's betas": reason} | left
    return found, left


def _slots_by_path(source: TensorSource, variables: ModelVariables) -> dict[str, list[str]]:
    """The path of each variable of the model that has slots in the file -> their names."""
    names = [name for name in source.names() if name.startswith("optimizer/") and not name.endswith("/t")]
    by_path: dict[str, list[str]] = {}
    for name in names:
        path, _, slot = name.removeprefix("optimizer/").rpartition("/")
        by_path.setdefault(path, []).append(slot)
    known = {path for entry in variables for path in entry.paths}
    return {path: slots for path, slots in by_path.items() if path in known}


def _recognise(
    source: TensorSource, by_path: dict[str, list[str]], base: TensorSource | None
) -> tuple[tuple[str, ...], str, dict[str, str]]:
    """The slots of each variable, the optimizer that keeps them, and what it appends to a name for each of them."""
    kinds = {_sorted(slots) for slots in by_path.values()}
    if len(kinds) > 1 or not kinds <= set(_NAMES):
        listed = "; ".join(", ".join(kind) for kind in kinds)
        raise SlotError(f"slots: {source.path} has {listed}; expected those of one optimizer of tf.compat.v1.train")
    kept = next(iter(kinds))
    if kept in map(_sorted, slot_names.RMSPROP_OF_V2) and base is None:
        raise SlotError(
            f"slots: {source.path} has {', '.join(kept)} without momentum, which no optimizer of tf.compat.v1.train keeps; "
            "give the old checkpoint as the base"
        )
    return (kept, *_NAMES[kept])


def _by_name_here(family: Family, kind: str) -> dict[str, str]:
    """The slots of a variable in the base, by the names that the engine gives them."""
    return {slot_names.SAME_SLOT.get(slot, slot): name for slot, name in family.slots.get(kind, {}).items()}


def _powers(
    t: int, base: TensorSource | None, held: Families | None, betas: tuple[float, float]
) -> dict[str, np.ndarray]:
    """Returns beta**(t + 1) as TensorFlow 1 keeps them; nothing if those of the base are for the same step."""
    values = {f"beta{n}_power": np.float32(beta) ** np.float32(t + 1) for n, beta in enumerate(betas, start=1)}
    if base is None or held is None:
        return {name: np.asarray(value, np.float32) for name, value in values.items()}
    try:
        if count_steps(base, held, "Adam", beta1=betas[0], beta2=betas[1]).t == t:
            return {}
    except SlotError:
        pass  # the base has no step count, so it is written
    tiny = np.finfo(np.float32).tiny  # below it both mean the same: so many steps that the power has underflowed
    return {
        name: np.asarray(value, base.dtype(name))
        for role, value in values.items()
        for name in held.state.get(role, ())
        if value > tiny or base.read(name) > tiny
    }


def _has_place(path: str, rules: Rules, names: Sequence[str]) -> bool:
    """Whether the base has this slot for all sources of a variable."""
    return any(
        all(name in names for name in rule.expand(match, names))
        for rule in rules.rules
        if (match := rule.pattern.fullmatch(path)) is not None
    )
