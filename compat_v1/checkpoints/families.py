"""What belongs together in a checkpoint: a variable, its moving average, its optimizer slots.

| written by | slot of VAR |
|---|---|
| tf.compat.v1 optimizers | ``VAR/Adam``, ``VAR/Adam_1``, ``VAR/Momentum`` ..., also below a scope: ``training/VAR/Adam`` |
| BERT's own AdamW, LAMB | ``VAR/adam_m``, ``VAR/adam_v``; ``VAR/lamb_m``, ``VAR/lamb_v`` |
| OptimizerV2 (Keras 2) | ``training/Adagrad/VAR/accumulator``, ``Adam/VAR/m`` |
| tf.train.Checkpoint | ``VAR/.OPTIMIZER_SLOT/optimizer/m`` |
| this engine | ``optimizer/VAR/m``, ``optimizer/VAR/t``; averages ``ema/VAR`` |

A name alone proves nothing: a slot or average is one only if VAR is there, in the same shape. So a scope, or a
variable, that is merely called ``Adam`` stays what it is.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from engine.porting.readers.source import TensorSource

# Slots of tf.compat.v1 optimizers, in the order in which they are created (numbered _1, _2 ...).
_V1: dict[str, tuple[str, ...]] = {
    "Adam": ("m", "v"),
    "LazyAdam": ("m", "v"),
    "AdamW": ("m", "v"),
    "Nadam": ("m", "v"),
    "Momentum": ("momentum",),
    "MomentumW": ("momentum",),
    "Adagrad": ("accumulator",),
    "Adadelta": ("accum", "accum_update"),
    "Ftrl": ("accumulator", "linear"),  # the first is "accum" there, but "accumulator" in OptimizerV2
    "RMSProp": ("rms", "momentum"),
}
_CENTERED = ("rms", "mg", "momentum")  # RMSProp(centered=True), told by its third slot
_KINDS = {"LazyAdam": "Adam", "AdamW": "Adam", "Nadam": "Adam", "MomentumW": "Momentum"}
_OWN_ADAM = re.compile(r"(adam|lamb)_([mv])")
_V1_SLOT = re.compile(rf"({'|'.join(_V1)})(?:_(\d+))?")
# Slots of OptimizerV2, and what they tell of their optimizer where its name does not.
_V2: dict[str, str] = {
    "m": "Adam",
    "v": "Adam",
    "vhat": "Adam",
    "momentum": "Momentum",
    "rms": "RMSProp",
    "mg": "RMSProp",
    "accumulator": "Adagrad",
    "linear": "Ftrl",
    "accum_grad": "Adadelta",
    "accum_var": "Adadelta",
}
_V2_NAMES = {"adam": "Adam", "sgd": "Momentum", "rmsprop": "RMSProp"} | {
    kind.lower(): kind for kind in ("Adagrad", "Adadelta", "Ftrl", "Nadam", "Adamax")
}
_STATE = re.compile(r"(beta1_power|beta2_power|global_step)(?:_\d+)?")
_V2_STATE = ("iter", "iterations", "beta_1", "beta_2", "learning_rate", "decay", "momentum", "rho", "epsilon")
_OBJECT = "/.OPTIMIZER_SLOT/"


@dataclass
class Family:
    """A variable and what belongs to it.

    Attributes:
        name, shape, dtype: of the variable.
        ema: name of its exponential moving average, or None.
        slots: optimizer (``Adam``, ``Momentum``, ``RMSProp``, ``Adagrad``, ``Ftrl``, ``Adadelta`` ...; a second one of
            a kind ``Adam#2``) -> slot -> name. Slots are called as in the optimizers' sources: m, v; momentum; rms, mg,
            momentum; accumulator; accumulator, linear.
        others: what else is kept for it (``t`` of this engine, ``biased`` and ``local_step`` of zero-debiased
            averages) -> name.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    ema: str | None = None
    slots: dict[str, dict[str, str]] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)

    def members(self) -> list[str]:
        """Every name but the variable's own."""
        found = [self.ema] if self.ema is not None else []
        return found + [name for slots in self.slots.values() for name in slots.values()] + [*self.others.values()]


@dataclass(frozen=True)
class Families:
    """All names of a source, each in one place.

    Attributes:
        variables: in the order of the source; every tensor that is nothing else is a variable.
        state: of optimizers: ``beta1_power``, ``beta2_power``, ``global_step``, ``iter``, ``learning_rate`` ... ->
            names; all scalars.
    """

    variables: tuple[Family, ...]
    state: Mapping[str, tuple[str, ...]]

    def kinds(self) -> dict[str, int]:
        """Optimizer -> number of variables that have its slots."""
        counts: dict[str, int] = {}
        for family in self.variables:
            for kind in family.slots:
                counts[kind] = counts.get(kind, 0) + 1
        return counts

    def of(self, name: str) -> Family | None:
        """The family whose variable, or whose average, has this name."""
        return self._by_name.get(name)

    @functools.cached_property
    def _by_name(self) -> dict[str, Family]:
        found = {family.ema: family for family in self.variables if family.ema is not None}
        return found | {family.name: family for family in self.variables}


class _Claim(NamedTuple):
    """What a name says it is."""

    variable: str
    kind: str  # "" for an average, "?" for others
    slot: str


def families(source: TensorSource) -> Families:
    """Groups the names of a source."""
    names = source.names()
    shapes = {name: source.shape(name) for name in names}
    claims = {name: claim for name in names if (claim := _claim(name, shapes)) is not None}
    state: dict[str, tuple[str, ...]] = {}
    for name in names:
        if name not in claims and (role := _state(name, shapes)) is not None:
            state[role] = (*state.get(role, ()), name)
    told = {name for group in state.values() for name in group}
    found = {
        name: Family(name, shapes[name], source.dtype(name))
        for name in names
        if name not in claims and name not in told
    }
    for name, claim in claims.items():
        family = found.get(claim.variable)
        if family is None:  # the slot of a slot: a variable after all
            found[name] = Family(name, shapes[name], source.dtype(name))
        elif claim.kind == "" and family.ema is None:
            family.ema = name
        elif claim.kind in ("", "?"):
            family.others[claim.slot if claim.slot and claim.slot not in family.others else name] = name
        else:
            kinds = itertools.chain(
                [claim.kind], (f"{claim.kind.split('#')[0]}#{number}" for number in itertools.count(2))
            )
            kind = next(kind for kind in kinds if claim.slot not in family.slots.get(kind, {}))
            family.slots.setdefault(kind, {})[claim.slot] = name
    return Families(tuple(found[name] for name in names if name in found), state)


def _claim(name: str, shapes: Mapping[str, tuple[int, ...]]) -> _Claim | None:
    """What a name is, if the variable that it then belongs to is there in its shape."""

    def variable(of: str, *, below_scope: bool = True, any_shape: bool = False) -> str | None:
        words = of.split("/")
        for start in range(len(words) if below_scope else 1):  # the longest name first
            found = "/".join(words[start:])
            if found != name and found in shapes and (any_shape or shapes[found] == shapes[name]):
                return found
        return None

    if _OBJECT in name:
        of, _, rest = name.partition(_OBJECT)
        slot = rest.rpartition("/")[2]
        return _made(variable(of, below_scope=False), _V2.get(slot, rest), slot)
    before, _, last = name.rpartition("/")
    if name.startswith("ema/"):
        return _made(variable(name.removeprefix("ema/"), below_scope=False), "", "")
    if not before:
        return None
    if last == "ExponentialMovingAverage":
        return _made(variable(before), "", "")
    if last in ("biased", "local_step"):
        return _made(variable(before, any_shape=last == "local_step"), "?", last)
    if before.startswith("optimizer/") and last == "t":
        return _made(variable(before.removeprefix("optimizer/"), below_scope=False, any_shape=True), "?", last)
    if match := _OWN_ADAM.fullmatch(last):
        return _made(variable(before), "Adam", match[2])
    if match := _V1_SLOT.fullmatch(last):
        return _v1_slot(name, match, variable, shapes)
    if last in _V2:
        found = variable(before)
        if found is not None and found != before:  # such slots always lie below the optimizer
            above = map(_optimizer, reversed(before.removesuffix("/" + found).split("/")))
            return _Claim(found, next((_V2_NAMES[word] for word in above if word in _V2_NAMES), _V2[last]), last)
    return None


def _v1_slot(
    name: str, match: re.Match[str], variable: Callable[[str], str | None], shapes: Mapping[str, Any]
) -> _Claim | None:
    before, number = name.rpartition("/")[0], int(match[2] or 0)
    slots, kind = _V1[match[1]], _KINDS.get(match[1], match[1])
    if kind == "RMSProp" and f"{before}/RMSProp_2" in shapes and f"{before}/RMSProp_3" not in shapes:
        slots = _CENTERED
    again = number // len(slots)  # a second optimizer of this kind goes on counting
    return _made(variable(before), kind + (f"#{again + 1}" if again else ""), slots[number % len(slots)])


def _made(variable: str | None, kind: str, slot: str) -> _Claim | None:
    return None if variable is None else _Claim(variable, kind, slot)


def _state(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The role of an optimizer's scalar, or None."""
    before, _, last = name.rpartition("/")
    if shapes[name] != ():
        return None
    if match := _STATE.fullmatch(last):
        return match[1]
    words = [_optimizer(word) for word in before.split("/")]
    return last if last in _V2_STATE and any(word in _V2_NAMES or word == "optimizer" for word in words) else None


def _optimizer(word: str) -> str:
    """``Adam_1`` -> ``adam``."""
    return re.sub(r"_\d+$", "", word).lower()
