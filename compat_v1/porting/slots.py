"""Ports the optimizer slots of a legacy checkpoint, transformed like their weights.

The engine uses the fused kernels of the tf.compat.v1 optimizers, so values carry over unchanged. The results are
arrays named ``optimizer/<path>/<slot>`` and ``optimizer/<path>/t``, from which ``finetune`` continues: Adam (m, v),
Momentum (momentum), RMSProp (rms, momentum and, if centered, mg; OptimizerV2 may lack momentum), Adagrad (accumulator),
Ftrl (accumulator, linear) and Adadelta (accum, accum_update).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from compat_v1.checkpoints.families import Families
from engine.errors import InputError
from engine.porting import apply, slot_names
from engine.porting.plan import Assignment
from engine.porting.readers.source import TensorSource
from engine.porting.rules.transforms import drop_constants, have_slots
from engine.text import nearest

_TINY = float(np.finfo(np.float32).tiny)  # below it, powers lose their digits and then become 0
_MOST_STEPS = 200_000  # 0.999**87,000 is 0 in float32

MULTIPLIED = "its weight is multiplied by a constant, which slots do not follow"


class SlotError(InputError):
    """Slots that do not exist, or whose step count is unknown."""


class SlotPort(NamedTuple):
    """One slot of one variable of the model, assigned from the tensors of the slot instead of those of the weight."""

    slot: str
    assignment: Assignment

    @property
    def name(self) -> str:
        return f"optimizer/{self.assignment.entry.path}/{self.slot}"


@dataclass(frozen=True)
class SlotPlan:
    """What becomes of the slots of an optimizer in a checkpoint, in the order of the model.

    ``left_out`` is the path of a ported variable -> why it gets no slots.
    """

    kind: str
    ports: tuple[SlotPort, ...]
    left_out: dict[str, str]

    def arrays(self, source: TensorSource, t: int) -> Iterator[tuple[str, np.ndarray]]:
        """Yields ``optimizer/<path>/<slot>`` one at a time and, at the end, every ``optimizer/<path>/t``.

        Raises FileError if a slot cannot be read.
        """
        for port in self.ports:
            yield port.name, apply.read_value(port.assignment, source)
        for path in dict.fromkeys(port.assignment.entry.path for port in self.ports):
            yield f"optimizer/{path}/t", np.asarray(t, np.int64)

    def to_json(self, t: int) -> list[dict[str, Any]]:
        """Returns the entries of ``slots`` in a ledger."""
        return [
            {
                "source": list(port.assignment.sources),
                "target": port.name,
                "transforms": list(port.assignment.done),
                "t": t,
            }
            for port in self.ports
        ]


def plan_slots(assignments: Sequence[Assignment], found: Families, kind: str | None = None) -> SlotPlan:
    """Decides which slots of the checkpoint become which slots of the model.

    The sources of the weights' assignments may be averages. The kind of optimizer is as named by ``Families.kinds``;
    None takes the only one. Raises SlotError if there are no such slots, or several kinds and none was named.
    """
    kinds = list(found.kinds())
    if kind is None and len(kinds) != 1:
        has = f"slots of {', '.join(kinds)}; name one of them" if kinds else "no optimizer slots"
        raise SlotError(f"slots: the checkpoint has {has}")
    if kind is not None and kind not in kinds:
        has = f"slots of {', '.join(kinds)}{nearest(kind, kinds)}" if kinds else "no optimizer slots"
        raise SlotError(f"slots={kind}: the checkpoint has {has}")
    kind = kind or kinds[0]
    if kind.startswith("Adafactor"):
        raise SlotError(f"slots={kind}: its row and column means cannot be ported; without slots, the weights are")
    ports: list[SlotPort] = []
    left_out: dict[str, str] = {}
    for assignment in assignments:
        held = [family.slots.get(kind, {}) if (family := found.get(name)) else {} for name in assignment.sources]
        wanted = list(held[0])
        if not all(held):
            without = next(name for name, slots in zip(assignment.sources, held, strict=True) if not slots)
            left_out[assignment.entry.path] = f"{without} has no {kind} slots"
        elif any(set(slots) != set(wanted) for slots in held):
            left_out[assignment.entry.path] = (
                f"not all of {' + '.join(assignment.sources)} have the slots {', '.join(wanted)}"
            )
        elif any(text.startswith("resize_grid ") for text in assignment.done):
            left_out[assignment.entry.path] = "its weight is resized, which slots cannot be"
        elif not have_slots(assignment.rule.transforms):
            left_out[assignment.entry.path] = MULTIPLIED
        else:
            rule = dataclasses.replace(assignment.rule, transforms=drop_constants(assignment.rule.transforms))
            done = tuple(text for text in assignment.done if not text.startswith("add("))
            same = dataclasses.replace(assignment, rule=rule, done=done)
            ports += [
                SlotPort(
                    slot_names.SAME_SLOT.get(slot, slot),
                    dataclasses.replace(same, sources=tuple(slots[slot] for slots in held)),
                )
                for slot in wanted
            ]
    if not ports:
        raise SlotError(
            f"slots={kind}: no variable of the model gets any ({next(iter(left_out.values()), 'no variable is ported')})"
        )
    return SlotPlan(kind, tuple(ports), left_out)


class SlotSteps(NamedTuple):
    """The updates that an optimizer has made (the engine's t), where the number comes from, and a remark, or ""."""

    t: int
    origin: str
    note: str = ""


def count_steps(
    source: TensorSource,
    found: Families,
    kind: str,
    *,
    given: int | None = None,
    beta1: float = 0.9,
    beta2: float = 0.999,
) -> SlotSteps:
    """Finds the number of updates behind the slots of a checkpoint, which Adam's bias correction needs.

    TensorFlow 1 keeps beta1_power = beta1**(t + 1), a product in float32. It is 0 after some 830 steps at 0.9;
    beta2_power is 0 after some 87,000 steps at 0.999. So the number is taken from the first of these that has it:
    ``given`` (the value of ``--adam_step``), ``iter`` of OptimizerV2, beta1_power, beta2_power, global_step. Optimizers
    without bias correction do not need it; for them it may be 0. Raises SlotError if the number is unknown, or several
    optimizers have different ones; FileError if a scalar is damaged.
    """
    if given is not None:
        if given < 0:
            raise SlotError(f"adam_step={given}: expected at least 0")
        return SlotSteps(given, "adam_step")
    adam = kind.split("#")[0] == "Adam"
    for role in ("iter", "iterations"):
        if names := found.state.get(role, ()):
            return SlotSteps(_one({name: int(source.read(name)) for name in names}), names[0])
    notes = []
    for role, beta in (("beta1_power", beta1), ("beta2_power", beta2)) if adam else ():
        powers = {name: float(source.read(name)) for name in found.state.get(role, ())}
        known = {name: steps for name, power in powers.items() if (steps := _steps(power, beta)) is not None}
        if known and len(known) == len(powers):
            t = _one(known)
            return SlotSteps(t, f"{role}={next(iter(powers.values())):g}", _check_beta2(source, found, t, beta2))
        notes += [f"{name}={power:g} {_why_not(power, beta)}" for name, power in powers.items()]
    if names := found.state.get("global_step", ()):
        return SlotSteps(_one({name: int(source.read(name)) for name in names}), names[0], "; ".join(notes))
    if not adam:
        return SlotSteps(0, "nothing; this optimizer does not use t")
    raise SlotError(
        f"adam_step: nothing in {source.path} says how many steps Adam has made"
        + (f" ({'; '.join(notes)}; no global_step)" if notes else " (no beta1_power, beta2_power or global_step)")
        + "; state it with --adam_step=N"
    )


def _one(counts: dict[str, int]) -> int:
    if len(set(counts.values())) > 1:
        both = ", ".join(f"{name}: {t}" for name, t in counts.items())
        raise SlotError(
            f"adam_step: the checkpoint has different numbers of steps ({both}); choose one with --adam_step=N"
        )
    return next(iter(counts.values()))


def _steps(power: float, beta: float) -> int | None:
    """Returns t of a power beta**(t + 1), a product in float32; None if it is not such a power."""
    if not _TINY < power < 1:
        return None
    base, now = np.float32(beta), np.float32(beta)
    for t in range(_MOST_STEPS):
        if now == np.float32(power):
            return t
        if now < power:
            break
        now *= base
    t_plus_1 = math.log(power) / math.log(float(base))  # computed in another way, such as in float64
    return round(t_plus_1) - 1 if abs(t_plus_1 - round(t_plus_1)) < 0.01 and t_plus_1 > 0.5 else None


def _why_not(power: float, beta: float) -> str:
    return "has underflowed" if power <= _TINY else f"is not a power of {beta:g}"


def _check_beta2(source: TensorSource, found: Families, t: int, beta2: float) -> str:
    """Returns a note if beta2_power belongs to another beta2 than the given one."""
    for name in found.state.get("beta2_power", ()):
        power = float(source.read(name))
        if _TINY < power < 1 and abs(power - beta2 ** (t + 1)) > 1e-3 * (1 - power) + 1e-6:
            return f"{name}={power:g} implies that beta2 was {power ** (1 / (t + 1)):.4g}, not {beta2:g}"
    return ""
