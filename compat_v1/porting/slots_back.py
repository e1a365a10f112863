"""Optimizer slots under the names of TensorFlow 1 again: through the same rules as their weights, backwards."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.checkpoints.families import Families
from compat_v1.porting.reverse import Known, Reverse
from compat_v1.porting.slots import SlotError, steps_trained
from engine.files import PathLike
from engine.porting.readers.source import TensorSource
from engine.porting.rules import detect
from engine.porting.rules.language import Rules
from engine.selection.variables import ModelVariables, name_variables

# The slots that tell an optimizer, and what tf.compat.v1.train appends to a variable's name for each.
_NAMES: dict[tuple[str, ...], tuple[str, dict[str, str]]] = {
    ("m", "v"): ("Adam", {"m": "Adam", "v": "Adam_1"}),
    ("momentum",): ("Momentum", {"momentum": "Momentum"}),
    ("momentum", "rms"): ("RMSProp", {"rms": "RMSProp", "momentum": "RMSProp_1"}),
    ("mg", "momentum", "rms"): ("RMSProp", {"rms": "RMSProp", "mg": "RMSProp_1", "momentum": "RMSProp_2"}),
    ("accumulator",): ("Adagrad", {"accumulator": "Adagrad"}),
    ("accumulator", "linear"): ("Ftrl", {"accumulator": "Ftrl", "linear": "Ftrl_1"}),
}


def slots_back(
    variables: ModelVariables,
    rules: Rules | PathLike,
    source: TensorSource,
    base: TensorSource | None,
    held: Families | None,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The slots of a weights file as tensors of the old checkpoint.

    Args:
        variables: of the model.
        rules: those that ported the checkpoint.
        source: has ``optimizer/<path>/<slot>`` and ``optimizer/<path>/t``.
        base, held: the old checkpoint and its families; None for none.
        betas: of Adam, whose powers are written anew where its step count is another than the base's.

    Returns:
        Name -> array, and names of slots that the base has no place for.

    Raises:
        SlotError: slots of no optimizer of tf.compat.v1.train.
        PortError: a slot cannot go back through its rule.
    """
    names = [name for name in source.names() if name.startswith("optimizer/") and not name.endswith("/t")]
    by_path: dict[str, list[str]] = {}
    for name in names:
        path, _, slot = name.removeprefix("optimizer/").rpartition("/")
        by_path.setdefault(path, []).append(slot)
    known = {path for entry in variables for path in entry.paths}
    by_path = {path: slots for path, slots in by_path.items() if path in known}
    if not by_path:
        return {}, []
    kinds = {tuple(sorted(slots)) for slots in by_path.values()}
    if len(kinds) > 1 or not kinds <= set(_NAMES):
        listed = "; ".join(", ".join(kind) for kind in kinds)
        raise SlotError(f"slots: {source.path} has {listed}; those of one optimizer of tf.compat.v1.train go back")
    kind, suffixes = _NAMES[next(iter(kinds))]
    chosen = detect.named(rules)
    chosen = dataclasses.replace(
        chosen,
        rules=tuple(dataclasses.replace(rule, optional=True) for rule in chosen.rules),
        skip=tuple(dataclasses.replace(line, optional=True) for line in chosen.skip),
        fresh=tuple(dataclasses.replace(line, optional=True) for line in chosen.fresh),
    )
    found: dict[str, np.ndarray] = {}
    left: list[str] = []
    for slot, suffix in suffixes.items():
        arrays = {path: source.read(f"optimizer/{path}/{slot}") for path in by_path}
        model = name_variables({path: tf.Variable(array, trainable=True) for path, array in arrays.items()})
        if base is None or held is None:
            back = Reverse(model, chosen, Known.rules(model, detect.named(rules)))
            found |= {f"{name}/{suffix}": back.read(name) for name in back.names()}
            continue
        view = _Slot(base, held, kind, slot)
        placed = name_variables({e.path: e.variable for e in model if _has_place(e.path, variables, chosen, view)})
        left += [f"optimizer/{e.path}/{slot}" for e in model if e.path not in {p.path for p in placed}]
        back = Reverse(placed, chosen, view)
        found |= {view.real(name): back.read(name) for name in back.names()}
    steps = {int(source.read(f"optimizer/{path}/t")) for path in by_path if f"optimizer/{path}/t" in source.names()}
    if kind == "Adam" and len(steps) == 1:
        found |= _powers(next(iter(steps)), base, held, betas)
    return found, left


def _powers(
    t: int, base: TensorSource | None, held: Families | None, betas: tuple[float, float]
) -> dict[str, np.ndarray]:
    """beta**(t + 1), as TensorFlow 1 keeps them; those of a base stay where they tell the same step."""
    values = {f"beta{n}_power": np.float32(beta) ** np.float32(t + 1) for n, beta in enumerate(betas, start=1)}
    if base is None or held is None:
        return {name: np.asarray(value, np.float32) for name, value in values.items()}
    try:
        if steps_trained(base, held, "Adam", beta1=betas[0], beta2=betas[1]).t == t:
            return {}
    except SlotError:
        pass  # nothing told: what is written now does
    tiny = np.finfo(np.float32).tiny  # below it both say the same: so many steps that the power is gone
    return {
        name: np.asarray(value, base.dtype(name))
        for role, value in values.items()
        for name in held.state.get(role, ())
        if value > tiny or base.read(name) > tiny
    }


def _has_place(path: str, variables: ModelVariables, rules: Rules, view: _Slot) -> bool:
    """Whether the base has the slot of what the rule makes this variable of."""
    names = view.names()
    for rule in rules.rules:
        match = rule.pattern.fullmatch(path)
        if match is not None and all(name in names for name in rule.expand(match, names)):
            return True
    return False


class _Slot:
    """One slot of a checkpoint's variables, under the variables' names: a TensorSource."""

    checksums = True

    def __init__(self, base: TensorSource, held: Families, kind: str, slot: str) -> None:
        self.path: pathlib.Path = base.path
        self._base = base
        self._real: Mapping[str, str] = {
            family.name: family.slots[kind][slot] for family in held.variables if slot in family.slots.get(kind, {})
        }

    def real(self, name: str) -> str:
        return self._real[name]

    def names(self) -> list[str]:
        return list(self._real)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(self._real[name])

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._base.dtype(self._real[name])

    def read(self, name: str) -> np.ndarray:
        return self._base.read(self._real[name])

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._base.read_slice(self._real[name], start, stop)

    def close(self) -> None:
        pass

    def __enter__(self) -> _Slot:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()
