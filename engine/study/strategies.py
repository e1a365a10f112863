"""Freezing strategies as data: a name, and the phases (filter text, share of the steps, rates) that it stands for.

A strategy refers to the parts of a model (engine.selection.layer_groups), from the input to the head: the blocks of a ViT;
groups of layers of a Keras model (``block_16_expand`` ... ``block_16_project_BN`` are one); otherwise what lies at the top
of a tf.Module.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import InputError
from engine.selection import filters
from engine.selection.layer_groups import part_names
from engine.selection.selection import Selection, Statistics, select
from engine.selection.variables import ModelVariables, NamedVariable
from engine.text import nearest
from engine.training.optimizers import layer_factors
from engine.training.phases import Phase

PLATEAU_DELTA = 0.02  # a loss that improves by less from one evaluation to the next is on a plateau
OPTIMIZER = "adam"  # of all strategies that do not say otherwise
LOWEST_RATE = 1 / 32  # of layer_decay: the factor on the learning rate of the layer nearest to the input
LOWER_RATE = 0.1  # of lp_ft: the factor on the learning rate once the head is trained
HEAD_SHARE = 0.5  # of lp_ft: the share of the steps that the head may take
PULL = 0.1  # of l2_sp: the weight decay toward the start
_GROUPS = {"norms": "norm", "bias": "bias", "attention": "attention"}
_ON_REQUEST = ("first_N", "layer_decay", "lp_ft", "l2_sp")  # not among those that are run by default
_FAMILIES = ("head", "last_N", *_GROUPS, "gradual", "gradual_plateau", "full", *_ON_REQUEST)
_NAME = r"[A-Za-z][\w.+-]{0,63}"
_FEWEST_GROUPS, _EQUAL_GROUPS = 3, 12


class StrategyError(InputError):
    """A strategy that does not exist or cannot be parsed. One that a model does not have raises a FilterError."""


@dataclass(frozen=True)
class Level:
    """A part of a model, such as ``blocks/3``.

    Attributes:
        from_here: the filter text of it and all parts after it, without the head.
        up_to_here: the filter text of it and all parts before it.
    """

    name: str
    from_here: str
    up_to_here: str


@dataclass(frozen=True)
class PlannedPhase:
    """A phase of a strategy.

    Attributes:
        train: the filter text of what it trains.
        share: its share of all steps; if a plateau ends phases of the strategy, the share that it may take at most.
        plateau: whether a plateau ends it.
        rate: the factor on the learning rate of the study.
        layer_decay: as in ``engine.training.phases.Phase``.
    """

    name: str
    train: str
    share: float
    plateau: bool = False
    rate: float = 1.0
    layer_decay: float | None = None


@dataclass(frozen=True)
class Strategy:
    """A name for a selection, or for several in succession; ``optimizer`` is one, with its options, as for finetune."""

    name: str
    planned: tuple[PlannedPhase, ...]
    optimizer: str = OPTIMIZER

    @property
    def budget(self) -> bool:
        """Whether evaluations decide when phases end, so that the steps are counted over all phases together."""
        return any(phase.plateau for phase in self.planned)

    def phases(self, steps: int, *, learning_rate: float = 1e-3) -> list[Phase]:
        """The phases of a run of ``steps`` steps in a study with this learning rate.

        With a ``budget`` each phase may take all of them, and the run ends when they are used up. Without one, a phase
        that would have no steps is dropped, except the last.
        """

        def phase(of: PlannedPhase, **length: Any) -> Phase:
            rate = None if of.rate == 1.0 else of.rate * learning_rate
            return Phase(name=of.name, train=of.train, learning_rate=rate, layer_decay=of.layer_decay, **length)

        if self.budget:
            plateau = {"until": "plateau", "patience": 1, "min_delta": PLATEAU_DELTA}
            most = [int(steps * planned.share) for planned in self.planned]
            return [
                phase(planned, **(plateau | {"max_steps": count} if planned.plateau else {"steps": count}))
                for planned, count in zip(self.planned, most, strict=True)
                if count
            ]
        ends = [round(steps * share) for share in itertools.accumulate(phase.share for phase in self.planned)]
        ends[-1] = steps
        lengths = [end - start for start, end in itertools.pairwise([0, *ends])]
        if not lengths[-1]:
            lengths = [0] * (len(lengths) - 1) + [steps]
        pairs = zip(self.planned, lengths, strict=True)
        return [phase(planned, steps=length) for planned, length in pairs if length]


def list_flags(phases: Sequence[Mapping[str, Any]], optimizer: str) -> list[str]:
    """The flags of finetune that a strategy needs besides --train and --learning_rate, by the fields of its phases.

    Example:
        >>> list_flags([{"layer_decay": 0.75}], "adamw,weight_decay=0.1,decay_toward=start")
        ['--optimizer=adamw', '--weight_decay=0.1', '--decay_toward=start', '--layer_decay=0.75']
    """
    name, *options = optimizer.split(",")
    decays = dict.fromkeys(phase["layer_decay"] for phase in phases if phase.get("layer_decay") is not None)
    return [
        *([f"--optimizer={name}"] if optimizer != OPTIMIZER else []),
        *(f"--{option}" for option in options),
        *(f"--layer_decay={decay!r}" for decay in decays),
    ]


class ModelStrategies:
    """The strategies of one model, of which these are the variables and the ``engine.models.Model.statistics``.

    Attributes:
        parts: the parts from the input to the output, without the head.
        head: the filter text of the head; "" if the model has none.
        ladder: the default values of N in last_N: every N up to 4 parts; 1, 2, 4, 8 ... and all up to 12 parts; otherwise
            1, 4, 16 ... and all.
    """

    def __init__(self, variables: ModelVariables, statistics: Statistics) -> None:
        self.variables, self.statistics = variables, statistics
        self.head = "@head" if any("head" in entry.groups for entry in variables) else ""
        self.parts = find_parts(variables)
        count = len(self.parts)
        factor = 2 if count <= 12 else 4
        rungs = itertools.takewhile(lambda n: n < count, (factor**power for power in itertools.count()))
        self.ladder = tuple(range(1, count + 1)) if count <= 4 else (*rungs, count)

    def names(self) -> list[str]:
        """The names of all strategies that this model has; of last_N and first_N, only those on the ladder."""
        firsts = [f"first_{n}" for n in self.ladder if self.head or n < len(self.parts)]
        return [*self._usual(), *firsts, "layer_decay", *(["lp_ft"] if self.head else []), "l2_sp"]

    def _usual(self) -> list[str]:
        lasts = [f"last_{n}" for n in self.ladder]
        has = {group for entry in self.variables if entry.kind == "weight" for group in entry.groups}
        groups = [name for name, group in _GROUPS.items() if group in has]
        gradual = ["gradual", "gradual_plateau"] if self.parts else []
        return [*(["head"] if self.head else []), *lasts, *groups, *gradual, "full"]

    def defaults(self) -> list[Strategy]:
        """The strategies that are run by default; of two that train the same throughout, the second is kept."""
        found: dict[tuple[Selection, ...], Strategy] = {}
        for name in self._usual():
            strategy = self.strategy(name)
            key = tuple(self.select(phase.train) for phase in strategy.planned)
            if not strategy.budget:
                found.pop(key, None)
                found[key] = strategy
            else:
                found[(*key, key[0])] = strategy  # the same selections as gradual, at other times
        return list(found.values())

    def strategy(self, text: str) -> Strategy:
        """Parses the name of a strategy, or ``name=FILTER``.

        Raises StrategyError if the name is unknown or taken or the filter cannot be parsed, and FilterError if the strategy
        matches or trains nothing on this model.
        """
        name, equals, rule = text.partition("=")
        if equals:
            if not re.fullmatch(_NAME, name):
                raise StrategyError(
                    f"strategies={text!r}: the name before = must begin with a letter and have at most 64 letters, digits and "
                    "_ . + -"
                )
            if name in _FAMILIES or re.fullmatch(r"(last|first)_\d+", name):
                raise StrategyError(
                    f"strategies={text!r}: {name} is the name of another strategy already; choose another name"
                )
            try:
                found = Strategy(name, (PlannedPhase("train", str(filters.parse_filter(rule)), 1.0),))
            except filters.FilterError as error:
                raise StrategyError(f"strategies={text!r}: {error}") from None
        else:
            pull = f"adamw,weight_decay={PULL:g},decay_toward=start"
            found = Strategy(name, tuple(self._plan(name)), pull if name == "l2_sp" else OPTIMIZER)
        for phase in found.planned:
            try:
                self.select(phase.train)
            except filters.FilterError as error:
                raise filters.FilterError(f"strategy {name}, train='{phase.train}': {error}") from None
        return found

    def select(self, train: str) -> Selection:
        """Resolves a filter text against the model."""
        return select(self.variables, train, statistics=self.statistics)

    def _plan(self, name: str) -> list[PlannedPhase]:
        if name in ("full", "head"):
            return [PlannedPhase(name, "@all" if name == "full" else "@head", 1.0)]
        if name in _GROUPS:
            return [PlannedPhase(name, f"@{_GROUPS[name]} {self.head}".strip(), 1.0)]
        if match := re.fullmatch(r"(last|first)_(\d{1,6})", name):
            return [PlannedPhase(name, self._some(name, match[1], int(match[2])), 1.0)]
        if name == "l2_sp":
            return [PlannedPhase(name, "@all", 1.0)]
        if name == "layer_decay":
            return [PlannedPhase(name, "@all", 1.0, layer_decay=self._choose_layer_decay())]
        if name == "lp_ft":
            full = PlannedPhase("full", "@all", 1.0, rate=LOWER_RATE)
            return [PlannedPhase("head", "@head", HEAD_SHARE, plateau=True), full]
        if name in ("gradual", "gradual_plateau") and not self.parts:
            raise filters.FilterError(
                f"strategy {name}: this model has no parts below its head that could be unfrozen one after the other"
            )
        if name == "gradual":
            return self._downward([(len(self.parts) + 1) // 2], plateau=False)
        if name == "gradual_plateau":
            return self._downward(range(1, len(self.parts) + 1), plateau=True)
        known = self.names()
        raise StrategyError(
            f"strategies={name!r} is not a strategy of this model; expected {', '.join(known)}{self._others()}, or "
            f"name=FILTER{nearest(name, known)}"
        )

    def _downward(self, depths: Sequence[int], *, plateau: bool) -> list[PlannedPhase]:
        """First the head, then more and more of the last parts, then everything; each selection once."""
        texts = [("head", self.head)] if self.head else []
        texts += [(f"last_{n}", self._some("gradual", "last", n)) for n in depths] + [("full", "@all")]
        chosen = {self.select(text): (name, text) for name, text in texts}
        share = 1.0 if plateau else 1.0 / len(chosen)
        return [PlannedPhase(name, text, share, plateau) for name, text in chosen.values()]

    def _some(self, name: str, which: str, count: int) -> str:
        """The filter text of the last or first parts, and the head."""
        if not 1 <= count <= len(self.parts):
            has = f"it has {which}_1 to {which}_{len(self.parts)}" if self.parts else "it has no parts besides its head"
            raise filters.FilterError(f"strategy {name}: this model has no such parts; {has}")
        chosen = self.parts[-count].from_here if which == "last" else self.parts[count - 1].up_to_here
        return f"{chosen} {self.head}".strip()

    def _choose_layer_decay(self) -> float:
        """The factor per layer with which the lowest layer learns at ``LOWEST_RATE``: as strong in deep models as in flat ones."""
        depth = -math.log2(min(layer_factors(self.variables, 0.5).values()))
        if depth < 1:
            raise filters.FilterError(
                "strategy layer_decay: this model has one layer only, so there is nothing to grade"
            )
        return float(LOWEST_RATE ** (1 / depth))

    def _others(self) -> str:
        between, count = len(self.parts) > len(self.ladder), len(self.parts)
        return f" (any last_N from last_1 to last_{count}, and first_N likewise)" if between else ""


def split_items(texts: Sequence[str]) -> list[str]:
    """Splits texts with comma-separated strategies into single ones.

    A comma separates only where a name follows, so that a filter may contain ``{1,2}``. Raises StrategyError if an item is
    empty or a name appears twice.
    """
    found = [item.strip() for text in texts for item in re.split(rf",(?=\s*{_NAME}\s*(?:=|,|$))", text)]
    if not found or not all(found):
        raise StrategyError(f"strategies={','.join(texts)!r}: expected names, or name=FILTER, separated by commas")
    names = [item.partition("=")[0] for item in found]
    for name in names:
        if names.count(name) > 1:
            raise StrategyError(f"strategies={','.join(texts)!r}: {name} appears twice")
    return found


def find_parts(variables: ModelVariables) -> list[Level]:
    """Finds the parts of a model from the input to the output; each has a weight outside the head."""
    body = [entry for entry in variables if entry.kind == "weight" and "head" not in entry.groups]
    if any(entry.block for entry in body):
        count = max(entry.block[1] for entry in body if entry.block)
        return [Level(f"blocks/{n}", f"@blocks[{n - count}:]", f"@blocks[:{n + 1}]") for n in range(count)]
    names = part_names(variables)
    if any(name == "" for entry in body for name, _, _ in entry.layers):
        return _layer_groups(body, names)
    found = list(dict.fromkeys(names[entry.path] for entry in body))
    texts = [_pattern(name, body) for name in found]
    return [Level(name, " ".join(texts[number:]), " ".join(texts[: number + 1])) for number, name in enumerate(found)]


def _pattern(name: str, body: Sequence[NamedVariable]) -> str:
    """The filter item for the variables under a name, or for the variable of that name."""
    under = any(entry.path.startswith(f"{name}/") for entry in body)
    return re.sub(r"\\?\s", r"\\s", re.escape(name)) + ("/.*" if under else "")


def _layer_groups(body: Sequence[NamedVariable], names: Mapping[str, str]) -> list[Level]:
    """Groups neighbouring layers by part, or into groups of equal size where their names say nothing about parts."""
    at: dict[int, NamedVariable] = {}  # index in the model's layers -> a weight of that layer
    count = 0
    for entry in body:
        for name, index, length in entry.layers:
            if name == "":
                at.setdefault(index, entry)
                count = length
    indices = sorted(at)
    starts: dict[int, str] = {}
    previous: str | None = ""
    for index in indices:
        entry = at[index]
        part = names[entry.path]
        stem = None if part == entry.layer else part  # a layer that is a part on its own: such neighbours go together
        if stem != previous:
            starts[index] = part.rpartition("/")[2]
        previous = stem
    if len(starts) < min(_FEWEST_GROUPS, len(indices)):
        groups = min(_EQUAL_GROUPS, len(indices))
        chosen = [indices[len(indices) * number // groups] for number in range(groups)]
        starts = {index: names[at[index].path].rpartition("/")[2] for index in chosen}
    ends = [*(f"{index - count}" for index in list(starts)[1:]), ""]
    return [
        Level(name, f"@layers[{index - count}:]", f"@layers[:{end}]")
        for (index, name), end in zip(starts.items(), ends, strict=True)
    ]
