"""A legacy checkpoint into a file of this project: planned on names and shapes, then streamed tensor by tensor."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compat_v1.checkpoints.families import Families, families
from compat_v1.porting.slots import SlotPlan, SlotSteps, plan_slots, steps_trained
from engine import text
from engine.files import FileError, PathLike, write_npz
from engine.porting import apply, plan
from engine.porting.errors import PortError
from engine.porting.ledger import Ledger
from engine.porting.readers import verify
from engine.porting.readers.source import TensorSource
from engine.porting.rules.language import PatternLine, Rules
from engine.selection.variables import ModelVariables


class Weights:
    """A checkpoint as rules should see it: of its variables, averages and optimizer state, the variables' names.

    A TensorSource. What is hidden is in ``hidden``, with the reason. With ``averages`` a variable's name
    gives the value of its exponential moving average, where it has one.

    Raises:
        PortError: averages are asked for, and there are none.
    """

    def __init__(self, source: TensorSource, *, averages: bool = False) -> None:
        self.source = source
        self.path: pathlib.Path = source.path
        self.checksums: bool = source.checksums
        self.families: Families = families(source)
        self.hidden: dict[str, str] = {}
        self._real: dict[str, str] = {}
        for family in self.families.variables:
            taken = family.ema if averages and family.ema is not None else family.name
            self._real[family.name] = taken
            for name in (family.name, *family.members()):
                if name != taken:
                    self.hidden[name] = f"belongs to {family.name}" + (f"; {taken} is taken" if averages else "")
        for role, names in self.families.state.items():
            self.hidden |= dict.fromkeys(names, f"state of an optimizer ({role})")
        if averages and not any(family.ema for family in self.families.variables):
            raise PortError(f"take_ema: {source.path} holds no exponential moving averages")

    def real(self, name: str) -> str:
        """The name in the file."""
        if name not in self._real:
            raise FileError(f"{self.path}: it has no variable {name}")
        return self._real[name]

    def names(self) -> list[str]:
        return list(self._real)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(self.real(name))

    def dtype(self, name: str) -> np.dtype[Any]:
        return self.source.dtype(self.real(name))

    def read(self, name: str) -> np.ndarray:
        return self.source.read(self.real(name))

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        return self.source.read_slice(self.real(name), start, stop)

    def check(self, name: str) -> None:
        verify.check(self.source, self.real(name))

    def close(self) -> None:
        self.source.close()

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


@dataclass(frozen=True)
class Port:
    """A port that is decided, but not carried out.

    Attributes:
        weights: what is read.
        variables: of the target.
        rules: how names correspond.
        plan: of the weights, without problems.
        slots: of the optimizer, or None.
        steps: the slots' step count, or None.
        confidence: target -> how sure a proposed line is; others are 1.0.
    """

    weights: Weights
    variables: ModelVariables
    rules: Rules
    plan: plan.Plan
    slots: SlotPlan | None
    steps: SlotSteps | None
    confidence: Mapping[str, float]

    def ledger(self, *, target: str, parity: Any = None) -> dict[str, Any]:
        """The content of ledger.json; nothing is unexplained in it."""
        found: Ledger = apply.ledger(self.plan, self.weights, self.rules)
        loaded = tuple(
            dataclasses.replace(
                entry,
                source=tuple(self.weights.real(name) for name in entry.source),
                confidence=self.confidence.get(entry.target, 1.0),
            )
            for entry in found.loaded
        )
        used = {port for slot in (self.slots.ports if self.slots else ()) for port in slot.step.sources}
        value = dataclasses.replace(found, loaded=loaded).to_json(target=target)
        value["skipped"] += [
            {"name": name, "rule": reason} for name, reason in self.weights.hidden.items() if name not in used
        ]
        if self.slots is not None and self.steps is not None:
            value["slots"] = self.slots.to_json(self.steps.t)
        value["parity"] = parity
        return value

    def check(self, tell: Any = None) -> None:
        """Reads all that is taken, and forgets it.

        Raises:
            PortError: tensors are damaged; each is named.
        """
        names = [self.weights.real(name) for step in self.plan.steps for name in step.sources]
        names += [name for port in (self.slots.ports if self.slots else ()) for name in port.step.sources]
        if bad := verify.damaged(self.weights.source, dict.fromkeys(names), tell=tell):
            raise _damaged(self.weights.path, bad)

    def write_npz(self, path: PathLike, tell: Any = None) -> None:
        """Writes ``path -> array`` and slots, each tensor read, written and forgotten; the next is read meanwhile.

        Args:
            tell: called with each name that is written.

        Raises:
            PortError: tensors are damaged; each is named, and nothing is written.
        """
        try:
            write_npz(path, self._arrays(tell))
        except FileError:
            if self.weights.checksums:
                self.check()  # names them all
            raise

    def _arrays(self, tell: Any) -> Iterator[tuple[str, np.ndarray]]:
        for step, array in apply.values(self.plan.steps, self.weights, ahead=1):
            yield step.entry.path, array
            if tell is not None:
                tell(step.entry.path)
        if self.slots is not None and self.steps is not None:
            for name, array in self.slots.arrays(self.weights.source, self.steps.t):
                yield name, array
                if tell is not None:
                    tell(name)


def make(
    weights: Weights,
    variables: ModelVariables,
    rules: Rules,
    *,
    grid: tuple[int, int] | None = None,
    slots: str | None = None,
    adam_step: int | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    confidence: Mapping[str, float] | None = None,
) -> Port:
    """Decides what becomes of every tensor and every variable, and of the slots.

    Args:
        rules: also such as skip or detect what ``weights`` hides: those lines hold all the same.
        grid: the model's patch grid (rows, columns), for position embeddings.
        slots: the optimizer's kind (Adam, Momentum, RMSProp, Adagrad ...), "auto" for the only one, None for none.
        adam_step: the slots' step count, where nothing in the file tells.
        betas: of the Adam that made them.

    Raises:
        PortError: something is unexplained or does not fit; both sides are listed.
        SlotError: there are no such slots, or nothing tells their step count.
    """
    hidden = list(weights.hidden)
    kept = [line for line in rules.skip if line.optional or not any(_fits(line, rules, name) for name in hidden)]
    relaxed = [dataclasses.replace(line, optional=True) for line in rules.skip if line not in kept]
    rules = dataclasses.replace(rules, skip=(*kept, *relaxed))
    found = plan.resolve(variables, weights, rules, grid=grid)
    found.check(weights, rules)
    slot_plan = told = None
    if slots is not None:
        slot_plan = plan_slots(found.steps, weights.families, None if slots == "auto" else slots)
        told = steps_trained(
            weights.source, weights.families, slot_plan.kind, given=adam_step, beta1=betas[0], beta2=betas[1]
        )
    return Port(weights, variables, rules, found, slot_plan, told, confidence or {})


def _fits(line: PatternLine, rules: Rules, name: str) -> bool:
    return re.fullmatch(line.pattern, rules.without_prefix(name)) is not None


def _damaged(path: pathlib.Path, bad: list[verify.Damage]) -> PortError:
    if len(bad) == 1:
        return PortError(bad[0].reason)
    return PortError(
        f"{path}: {len(bad)} tensors are damaged" + text.listed("damaged", [entry.reason for entry in bad])
    )
