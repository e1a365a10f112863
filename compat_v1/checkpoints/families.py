"""Groups what belongs together in a checkpoint: a variable, its moving average and its optimizer slots.

| written by | slot of VAR |
|---|---|
| tf.compat.v1 optimizers | ``VAR/Adam``, ``VAR/Adam_1``, ``VAR/Momentum`` ..., also below a scope: ``training/VAR/Adam`` |
| BERT's own AdamW, LAMB | ``VAR/adam_m``, ``VAR/adam_v``; ``VAR/lamb_m``, ``VAR/lamb_v`` |
| Adafactor of tensor2tensor, Mesh TensorFlow | ``VAR/Adafactor``; ``VAR_slot_v``, or ``VAR_slot_vr``, ``VAR_slot_vc`` |
| OptimizerV2 (Keras 2) | ``training/Adagrad/VAR/accumulator``, ``Adam/VAR/m`` |
| tf.train.Checkpoint | ``VAR/.OPTIMIZER_SLOT/optimizer/m`` |
| Frostline | ``optimizer/VAR/m``, ``optimizer/VAR/t``; averages ``ema/VAR`` |

A name alone proves nothing: a slot or average is recognised only if VAR is there with the same shape (Adafactor's row
and column means lack one axis). So a scope or a variable that is merely called ``Adam`` stays what it is. The ``:0`` of
a tensor's name is ignored.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from engine.porting import slot_names
from engine.porting.readers.source import TensorSource
from engine.training.optimizer_base import START

_V1_SLOT = re.compile(rf"({'|'.join(slot_names.V1_SLOTS)})(?:_(\d+))?")
_STATE = re.compile(r"(beta1_power|beta2_power|global_step)(?:_\d+)?")


@dataclass
class Family:
    """A variable and what belongs to it.

    Attributes:
        ema: the name of its exponential moving average, or None.
        slots: optimizer (``Adam``, ``Momentum``, ``RMSProp``, ``Adagrad``, ``Ftrl``, ``Adadelta``, ``Adafactor`` and so
            on; a second Adam is ``Adam#2``) -> slot -> name. Slots are named as in the sources of the optimizers: m, v;
            momentum; rms, mg, momentum; accumulator; accumulator, linear; vr, vc.
        others: anything else kept for the variable (Frostline's ``t``, or ``biased`` and ``local_step`` of a
            zero-debiased average) -> name.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    ema: str | None = None
    slots: dict[str, dict[str, str]] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)

    def members(self) -> list[str]:
        """Returns every name except the variable's own."""
        found = [self.ema] if self.ema is not None else []
        return found + [name for slots in self.slots.values() for name in slots.values()] + [*self.others.values()]


@dataclass(frozen=True)
class Families:
    """All names of a source, each in exactly one place.

    The variables are in the order of the source; every tensor that is nothing else is one. ``state`` has the scalars of
    optimizers (``beta1_power``, ``beta2_power``, ``global_step``, ``iter``, ``learning_rate`` and so on) -> their
    names.
    """

    variables: tuple[Family, ...]
    state: Mapping[str, tuple[str, ...]]

    def kinds(self) -> dict[str, int]:
        """Returns optimizer -> the number of variables that have its slots."""
        return dict(Counter(kind for family in self.variables for kind in family.slots))

    def get(self, name: str) -> Family | None:
        """Returns the family whose variable or average has this name, or None."""
        return self._by_name.get(name)

    @functools.cached_property
    def _by_name(self) -> dict[str, Family]:
        found = {family.ema: family for family in self.variables if family.ema is not None}
        return found | {family.name: family for family in self.variables}


class _Claim(NamedTuple):
    """What a name seems to be."""

    variable: str
    kind: str  # the optimizer; "" for an average, "?" for anything else
    slot: str


def group_families(source: TensorSource) -> Families:
    """Groups the names of a source."""
    real = {name.removesuffix(":0"): name for name in source.names()}  # np.savez(**{v.name: value}) keeps the ":0"
    if len(real) < len(source.names()):
        real = {name: name for name in source.names()}
    names = list(real)
    shapes = {name: source.shape(real[name]) for name in names}
    claims = {name: claim for name in names if (claim := _claim(name, shapes)) is not None}
    state: dict[str, tuple[str, ...]] = {}
    for name in names:
        if name not in claims and (role := _state(name, shapes)) is not None:
            state[role] = (*state.get(role, ()), real[name])
    scalars = {name for group in state.values() for name in group}
    found = {
        name: Family(real[name], shapes[name], source.dtype(real[name]))
        for name in names
        if name not in claims and real[name] not in scalars
    }
    for name, claim in claims.items():
        family = found.get(claim.variable)
        if family is None:  # the slot of a slot is a variable after all
            found[name] = Family(real[name], shapes[name], source.dtype(real[name]))
        elif claim.kind == "" and family.ema is None:
            family.ema = real[name]
        elif claim.kind in ("", "?"):
            family.others[claim.slot if claim.slot and claim.slot not in family.others else name] = real[name]
        else:
            kinds = itertools.chain(
                [claim.kind], (f"{claim.kind.split('#')[0]}#{number}" for number in itertools.count(2))
            )
            kind = next(kind for kind in kinds if claim.slot not in family.slots.get(kind, {}))
            family.slots.setdefault(kind, {})[claim.slot] = real[name]
    return Families(tuple(found[name] for name in names if name in found), state)


def _claim(name: str, shapes: Mapping[str, tuple[int, ...]]) -> _Claim | None:
    """Returns what a name is, if the variable that it belongs to is there with its shape."""

    def variable(of: str, *, below_scope: bool = True, any_shape: bool = False) -> str | None:
        words = of.split("/")
        for start in range(len(words) if below_scope else 1):  # the longest name first
            found = "/".join(words[start:])
            if found != name and found in shapes and (any_shape or shapes[found] == shapes[name]):
                return found
        return None

    if slot_names.OBJECT_SLOT in name:
        of, _, rest = name.partition(slot_names.OBJECT_SLOT)
        slot = rest.rpartition("/")[2]
        kind = slot_names.kind_beside(name.removesuffix(slot), shapes) or slot_names.OBJECT_SLOTS.get(slot, rest)
        slot = "accumulator" if (kind, slot) == ("Ftrl", "accum") else slot  # as V1_SLOTS names it
        return _claim_if(variable(of, below_scope=False), kind, slot)
    if match := slot_names.ADAFACTOR.fullmatch(name):
        return _adafactor(name, match, shapes)
    before, _, last = name.rpartition("/")
    if name.startswith("ema/"):
        return _claim_if(variable(name.removeprefix("ema/"), below_scope=False), "", "")
    if not before:
        return None
    if last == slot_names.AVERAGE:
        return _claim_if(variable(before), "", "")
    if last in slot_names.DEBIASING:
        return _claim_if(variable(before, any_shape=last == "local_step"), "?", last)
    if before.startswith("optimizer/") and last in slot_names.OBJECT_SLOTS:
        kind = slot_names.kind_beside(f"{before}/", shapes) or slot_names.OBJECT_SLOTS[last]
        if (own := variable(before.removeprefix("optimizer/"), below_scope=False)) is not None:
            return _Claim(own, kind, last)
    if before.startswith("optimizer/") and last in ("t", START):
        own = variable(before.removeprefix("optimizer/"), below_scope=False, any_shape=last == "t")
        return _claim_if(own, "?", last)
    if match := slot_names.OWN_ADAM.fullmatch(last):
        return _claim_if(variable(before), "Adam", match[2])
    if match := _V1_SLOT.fullmatch(last):
        return _v1_slot(name, match, variable, shapes)
    if last in slot_names.V2_SLOTS:
        found = variable(before)
        if found is not None and found != before:  # such slots always have the optimizer's scope
            above = map(_optimizer, reversed(before.removesuffix("/" + found).split("/")))
            named = (slot_names.V2_SCOPES[word] for word in above if word in slot_names.V2_SCOPES)
            told = slot_names.kind_beside(f"{before}/", shapes) or slot_names.V2_SLOTS[last]
            return _Claim(found, next(named, told), last)
    return None


def _v1_slot(
    name: str, match: re.Match[str], variable: Callable[[str], str | None], shapes: Mapping[str, Any]
) -> _Claim | None:
    before, number = name.rpartition("/")[0], int(match[2] or 0)
    slots, kind = slot_names.V1_SLOTS[match[1]], slot_names.SAME_RULE.get(match[1], match[1])
    if kind == "RMSProp" and f"{before}/RMSProp_2" in shapes and f"{before}/RMSProp_3" not in shapes:
        slots = slot_names.CENTERED_RMSPROP
    again = number // len(slots)  # a second optimizer of this kind continues the numbers
    return _claim_if(variable(before), kind + (f"#{again + 1}" if again else ""), slots[number % len(slots)])


def _adafactor(name: str, match: re.Match[str], shapes: Mapping[str, tuple[int, ...]]) -> _Claim | None:
    shape, words = shapes[name], match["of"].split("/")
    for of in ("/".join(words[start:]) for start in range(len(words))):
        whole = shapes.get(of)
        if whole is None or not (shape == whole or _lacks_an_axis(shape, whole)):
            continue
        if match["slot"] is not None:
            return _claim_if(of if (shape == whole) == (match["slot"] in "vm") else None, "Adafactor", match["slot"])
        # tensor2tensor numbers what there is: m, then either v, or vr and vc
        numbered = [f"{match['of']}/Adafactor", *(f"{match['of']}/Adafactor_{number}" for number in (1, 2))]
        held = [each for each in numbered if each in shapes]
        means = [each for each in held if shapes[each] != whole]
        slot = ("vr", "vc")[means.index(name) % 2] if name in means else "v" if name == held[-1] else "m"
        return _Claim(of, "Adafactor", slot)
    return None


def _lacks_an_axis(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    return any(shape == whole[:axis] + whole[axis + 1 :] for axis in range(len(whole)) if len(whole) > 1)


def _claim_if(variable: str | None, kind: str, slot: str) -> _Claim | None:
    return None if variable is None else _Claim(variable, kind, slot)


def _state(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Returns the role of a scalar of an optimizer, or None."""
    before, _, last = name.rpartition("/")
    if shapes[name] != ():
        return None
    if match := _STATE.fullmatch(last):
        return match[1]
    words = [_optimizer(word) for word in before.split("/")]
    scoped = any(word in slot_names.V2_SCOPES or word == "optimizer" for word in words)
    return last if last in slot_names.V2_STATE and scoped else None


def _optimizer(word: str) -> str:
    """``Adam_1`` -> ``adam``."""
    return re.sub(r"_\d+$", "", word).lower()
