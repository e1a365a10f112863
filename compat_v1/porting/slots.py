"""Optimizer slots of a legacy checkpoint, made ready for this engine: transformed as their weights were.

The fused kernels of tf.compat.v1 optimizers are the engine's own, so values carry over as they are. What comes
out are arrays named ``optimizer/<path>/<slot>`` and ``optimizer/<path>/t``; ``finetune`` goes on from those
of Adam (m, v) and Momentum (momentum). RMSProp (rms, momentum; centered: mg too), Adagrad (accumulator),
Ftrl (accumulator, linear) and Adadelta are written in the same way for those who have such an optimizer.
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
from engine.porting import apply
from engine.porting.plan import Step
from engine.porting.readers.source import TensorSource
from engine.text import nearest

_TINY = float(np.finfo(np.float32).tiny)  # below it powers lose their digits, then are 0
_MOST_STEPS = 200_000  # 0.999**87,000 is 0 in float32


class SlotError(InputError):
    """Slots that are not there, or whose step count nothing tells."""


class SlotPort(NamedTuple):
    """One slot of one variable of the model.

    Attributes:
        slot: its name in the engine.
        step: the port of the variable with the slot's tensors in place of the weight's.
    """

    slot: str
    step: Step

    @property
    def name(self) -> str:
        return f"optimizer/{self.step.entry.path}/{self.slot}"


@dataclass(frozen=True)
class SlotPlan:
    """What becomes of a checkpoint's slots.

    Attributes:
        kind: the optimizer.
        ports: in the order of the model.
        left_out: path of a ported variable -> why it gets no slots.
    """

    kind: str
    ports: tuple[SlotPort, ...]
    left_out: dict[str, str]

    def arrays(self, source: TensorSource, t: int) -> Iterator[tuple[str, np.ndarray]]:
        """``optimizer/<path>/<slot>`` and, at the end, every ``optimizer/<path>/t``; one at a time.

        Raises:
            FileError: a slot cannot be read.
        """
        for port in self.ports:
            yield port.name, apply.value(port.step, source)
        for path in dict.fromkeys(port.step.entry.path for port in self.ports):
            yield f"optimizer/{path}/t", np.asarray(t, np.int64)

    def to_json(self, t: int) -> list[dict[str, Any]]:
        """The entries of a ledger's ``slots``."""
        return [
            {"source": list(port.step.sources), "target": port.name, "transforms": list(port.step.done), "t": t}
            for port in self.ports
        ]


def plan_slots(steps: Sequence[Step], found: Families, kind: str | None = None) -> SlotPlan:
    """Decides which slots become which.

    Args:
        steps: how the weights are ported (engine.porting.plan); their sources may be averages.
        found: the checkpoint's families.
        kind: the optimizer, as ``Families.kinds`` calls it; None: the only one.

    Raises:
        SlotError: the checkpoint has no such slots, or several kinds and none was named.
    """
    kinds = list(found.kinds())
    if kind is None and len(kinds) != 1:
        has = f"slots of {', '.join(kinds)}; name one of them" if kinds else "no optimizer slots"
        raise SlotError(f"slots: the checkpoint has {has}")
    if kind is not None and kind not in kinds:
        has = f"slots of {', '.join(kinds)}{nearest(kind, kinds)}" if kinds else "no optimizer slots"
        raise SlotError(f"slots={kind}: the checkpoint has {has}")
    kind = kind or kinds[0]
    ports: list[SlotPort] = []
    left_out: dict[str, str] = {}
    for step in steps:
        held = [family.slots.get(kind, {}) if (family := found.of(name)) else {} for name in step.sources]
        wanted = list(held[0])
        if not all(held):
            without = next(name for name, slots in zip(step.sources, held, strict=True) if not slots)
            left_out[step.entry.path] = f"{without} has no {kind} slots"
        elif any(set(slots) != set(wanted) for slots in held):
            left_out[step.entry.path] = f"{' + '.join(step.sources)}: not all have the slots {', '.join(wanted)}"
        elif any(text.startswith("resize_grid ") for text in step.done):
            left_out[step.entry.path] = "its weight is resized; slots cannot be"
        else:
            ports += [
                SlotPort(slot, dataclasses.replace(step, sources=tuple(slots[slot] for slots in held)))
                for slot in wanted
            ]
    if not ports:
        raise SlotError(
            f"slots={kind}: no variable of the model gets any: {next(iter(left_out.values()), 'none is ported')}"
        )
    return SlotPlan(kind, tuple(ports), left_out)


class SlotSteps(NamedTuple):
    """How many steps an optimizer has made.

    Attributes:
        t: the engine's t: updates made so far.
        told_by: what says so.
        note: what a user of these slots should know, or "".
    """

    t: int
    told_by: str
    note: str = ""


def steps_trained(
    source: TensorSource,
    found: Families,
    kind: str,
    *,
    given: int | None = None,
    beta1: float = 0.9,
    beta2: float = 0.999,
) -> SlotSteps:
    """The number of updates behind a checkpoint's slots, which Adam's bias correction needs.

    TensorFlow 1 keeps beta1_power = beta1**(t + 1), multiplied up in float32; it is 0 after some 830 steps at 0.9,
    beta2_power after some 87,000 at 0.999. So: ``given``, OptimizerV2's ``iter``, beta1_power, beta2_power, global_step,
    in this order. Optimizers without bias correction need none: 0 if nothing tells.

    Args:
        given: ``--adam_step``.
        beta1, beta2: of the Adam that made the slots.

    Raises:
        SlotError: nothing tells, or several optimizers tell different numbers.
        FileError: a scalar is damaged.
    """
    if given is not None:
        if given < 0:
            raise SlotError(f"adam_step={given}: it must be at least 0")
        return SlotSteps(given, "adam_step")
    adam = kind.split("#")[0] == "Adam"
    for role in ("iter", "iterations"):
        if names := found.state.get(role, ()):
            return SlotSteps(_one({name: int(source.read(name)) for name in names}), names[0])
    notes = []
    for role, beta in (("beta1_power", beta1), ("beta2_power", beta2)) if adam else ():
        powers = {name: float(source.read(name)) for name in found.state.get(role, ())}
        told = {name: steps for name, power in powers.items() if (steps := _steps(power, beta)) is not None}
        if told and len(told) == len(powers):
            t = _one(told)
            return SlotSteps(t, f"{role}={next(iter(powers.values())):g}", _check_beta2(source, found, t, beta2))
        notes += [f"{name}={power:g} {_why_not(power, beta)}" for name, power in powers.items()]
    if names := found.state.get("global_step", ()):
        return SlotSteps(_one({name: int(source.read(name)) for name in names}), names[0], "; ".join(notes))
    if not adam:
        return SlotSteps(0, "nothing: t does not matter to it")
    raise SlotError(
        f"adam_step: nothing in {source.path} tells how many steps Adam has made"
        + (f" ({'; '.join(notes)}; no global_step)" if notes else " (no beta1_power, beta2_power or global_step)")
        + "; --adam_step=N says it"
    )


def _one(told: dict[str, int]) -> int:
    if len(set(told.values())) > 1:
        both = ", ".join(f"{name}: {t}" for name, t in told.items())
        raise SlotError(
            f"adam_step: the checkpoint tells different numbers of steps ({both}); --adam_step=N says which"
        )
    return next(iter(told.values()))


def _steps(power: float, beta: float) -> int | None:
    """t of a power beta**(t + 1) that float32 multiplications made; None where it tells none."""
    if not _TINY < power < 1:
        return None
    base, now = np.float32(beta), np.float32(beta)
    for t in range(_MOST_STEPS):
        if now == np.float32(power):
            return t
        if now < power:
            break
        now *= base
    t_plus_1 = math.log(power) / math.log(float(base))  # made in another way, such as in float64
    return round(t_plus_1) - 1 if abs(t_plus_1 - round(t_plus_1)) < 0.01 and t_plus_1 > 0.5 else None


def _why_not(power: float, beta: float) -> str:
    return "has underflowed" if power <= _TINY else f"is no power of {beta:g}"


def _check_beta2(source: TensorSource, found: Families, t: int, beta2: float) -> str:
    """Says it when beta2_power fits another beta2 than the engine's."""
    for name in found.state.get("beta2_power", ()):
        power = float(source.read(name))
        if _TINY < power < 1 and abs(power - beta2 ** (t + 1)) > 1e-3 * (1 - power) + 1e-6:
            return f"{name}={power:g} says that beta2 was {power ** (1 / (t + 1)):.4g}, not {beta2:g}"
    return ""
