"""Ports a legacy checkpoint to a Frostline file: planned on names and shapes, then streamed tensor by tensor."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compat_v1.checkpoints.families import Families, group_families
from compat_v1.porting.slots import SlotPlan, SlotSteps, count_steps, plan_slots
from engine.audit.forget_bias import check_forget_biases
from engine.data.class_names import as_texts, read_class_names
from engine.files import FileError, PathLike, write_npz
from engine.porting import apply, plan
from engine.porting.errors import PortError
from engine.porting.ledger import Ledger
from engine.porting.readers import verify
from engine.porting.readers.closing import Closing
from engine.porting.readers.frozen_file import FrozenFile
from engine.porting.readers.source import TensorSource
from engine.porting.rules.facts import GivenGraph, check_expected
from engine.porting.rules.language import PatternLine, Rules
from engine.selection.variables import ModelVariables


class Renamed(Closing):
    """Some tensors of a TensorSource under other names; ``real`` is name here -> name there."""

    def __init__(self, source: TensorSource, real: Mapping[str, str]) -> None:
        self.source, self._real = source, dict(real)
        self.path: pathlib.Path = source.path
        self.checksums: bool = source.checksums

    def real(self, name: str) -> str:
        """Returns the name in the file."""
        if name not in self._real:
            raise FileError(f"{self.path}: the checkpoint has no variable {name}")
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


class Weights(Renamed):
    """A checkpoint as rules should see it: its variables, without their averages and the optimizer's state.

    This is a TensorSource. ``hidden`` has the names that are left out, with the reason; ``show`` brings some back. With
    ``averages``, the name of a variable stands for its exponential moving average, if there is one; PortError is raised if there are none at all.
    """

    def __init__(self, source: TensorSource, *, averages: bool = False) -> None:
        self.families: Families = group_families(source)
        self.hidden: dict[str, str] = {}
        super().__init__(source, {})
        for family in self.families.variables:
            taken = family.ema if averages and family.ema is not None else family.name
            self._real[family.name] = taken
            for name in (family.name, *family.members()):
                if name != taken:
                    self.hidden[name] = f"belongs to {family.name}" + (f"; {taken} is used" if averages else "")
        for role, names in self.families.state.items():
            self.hidden |= dict.fromkeys(names, f"state of an optimizer ({role})")
        if averages and not any(family.ema for family in self.families.variables):
            raise PortError(f"take_ema: {source.path} has no exponential moving averages")

    def show(self, names: Iterable[str]) -> None:
        """Shows tensors of the file under their own names, because rules name them."""
        for name in names:
            for stands in [stands for stands, real in self._real.items() if real == name]:
                del self._real[stands]
            self._real[name] = name
            self.hidden.pop(name, None)

    def check(self, name: str) -> None:
        verify.check_tensor(self.source, self.real(name))

    def close(self) -> None:
        self.source.close()


@dataclass(frozen=True)
class Port:
    """A port that is planned but not carried out. ``slots`` and ``steps`` are None if it has no slots.

    ``confidence`` is target -> the confidence of a proposed line; all others have 1.0. ``fact`` says what was checked of
    the graph that the weights belong to.
    """

    weights: Weights
    variables: ModelVariables
    rules: Rules
    plan: plan.Plan
    slots: SlotPlan | None
    steps: SlotSteps | None
    confidence: Mapping[str, float]
    fact: str = ""

    def ledger(self, *, target: str, parity: Any = None) -> dict[str, Any]:
        """Returns the content of ledger.json, which accounts for everything."""
        found: Ledger = apply.build_ledger(self.plan, self.weights, self.rules)
        loaded = tuple(
            dataclasses.replace(
                entry,
                source=tuple(self.weights.real(name) for name in entry.source),
                confidence=self.confidence.get(entry.target, 1.0),
            )
            for entry in found.loaded
        )
        used = {port for slot in (self.slots.ports if self.slots else ()) for port in slot.assignment.sources}
        value = dataclasses.replace(found, loaded=loaded).to_json(target=target)
        value["skipped"] += [
            {"name": name, "rule": reason} for name, reason in self.weights.hidden.items() if name not in used
        ]
        if self.slots is not None and self.steps is not None:
            value["slots"] = self.slots.to_json(self.steps.t)
        value["parity"] = parity
        return value

    def check(self, on_tensor: Any = None) -> None:
        """Reads and discards every tensor that the port uses; raises PortError, which names the damaged ones."""
        names = [self.weights.real(name) for assignment in self.plan.assignments for name in assignment.sources]
        names += [name for port in (self.slots.ports if self.slots else ()) for name in port.assignment.sources]
        if bad := verify.find_damage(self.weights.source, dict.fromkeys(names), on_read=on_tensor):
            raise verify.damage_error(self.weights.path, bad)

    def write_npz(self, path: PathLike, on_tensor: Any = None) -> None:
        """Writes the arrays by path, and the slots; one tensor is written while the next is read.

        ``on_tensor`` is called with each name after it was written. Raises PortError, which names each, if tensors are
        damaged; nothing is written then.
        """
        try:
            write_npz(path, self._arrays(on_tensor), texts=as_texts(read_class_names(self.weights.path)))
        except FileError:
            if self.weights.checksums:
                self.check()  # to name all that are damaged
            raise

    def _arrays(self, on_tensor: Any) -> Iterator[tuple[str, np.ndarray]]:
        for assignment, array in apply.read_values(self.plan.assignments, self.weights, ahead=1):
            yield assignment.entry.path, array
            if on_tensor is not None:
                on_tensor(assignment.entry.path)
        if self.slots is not None and self.steps is not None:
            for name, array in self.slots.arrays(self.weights.source, self.steps.t):
                yield name, array
                if on_tensor is not None:
                    on_tensor(name)


def plan_port(
    weights: Weights,
    variables: ModelVariables,
    rules: Rules,
    *,
    grid: tuple[int, int] | None = None,
    slots: str | None = None,
    adam_step: int | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    confidence: Mapping[str, float] | None = None,
    graph: GivenGraph | None = None,
) -> Port:
    """Plans what becomes of every tensor, every variable and the slots.

    Raises PortError, which lists both sides, if something is unaccounted for or does not fit; SlotError if there are no
    such slots, or their step count is unknown.

    Args:
        weights: the checkpoint; what it hides but the rules name, such as an average, is shown from now on.
        rules: how names correspond; a skip may match only names that ``weights`` hides.
        grid: the model's patch grid (rows, columns), for position embeddings.
        slots: the kind of optimizer (Adam, Momentum and so on); "auto" for the only one, None for none.
        adam_step, betas: the step count of the slots, where the file does not have it, and the betas of their Adam.
        confidence: target -> the confidence of a proposed line.
        graph: the graph that the weights belong to, for what the rules expect of it and forget biases; None takes the one beside them.
    """
    if isinstance(weights.source, FrozenFile):
        weights.source.show(plan.find_meant(variables, rules, weights.source.hidden()))
    shown = set(weights.names())
    weights.show(plan.find_meant(variables, rules, [name for name in weights.source.names() if name not in shown]))
    hidden = list(weights.hidden)
    kept = [line for line in rules.skip if line.optional or not any(_fits(line, rules, name) for name in hidden)]
    relaxed = [dataclasses.replace(line, optional=True) for line in rules.skip if line not in kept]
    rules = dataclasses.replace(rules, skip=(*kept, *relaxed))
    found = plan.build_plan(variables, weights, rules, grid=grid)
    found.check(weights, rules)
    loaded = [
        dataclasses.replace(made, source=tuple(map(weights.real, made.source)))
        for made in apply.build_ledger(found, weights, rules).loaded
    ]
    facts = [
        check_expected(rules, weights.path, graph=graph),
        check_forget_biases(loaded, weights.path, graph=graph),
    ]
    rules = dataclasses.replace(rules, expect=())  # done
    slot_plan = steps = None
    if slots is not None:
        slot_plan = plan_slots(found.assignments, weights.families, None if slots == "auto" else slots)
        steps = count_steps(
            weights.source, weights.families, slot_plan.kind, given=adam_step, beta1=betas[0], beta2=betas[1]
        )
    return Port(weights, variables, rules, found, slot_plan, steps, confidence or {}, "; ".join(filter(None, facts)))


def _fits(line: PatternLine, rules: Rules, name: str) -> bool:
    return line.pattern.fullmatch(rules.without_prefix(name)) is not None
