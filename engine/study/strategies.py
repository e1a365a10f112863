"""Freezing strategies as data: a name, and the phases (filter text, share of the steps, rates) that it stands for.

A strategy refers to the parts of a model (engine.selection.levels), from the input to the head: the blocks of a ViT;
groups of layers of a Keras model (``block_16_expand`` ... ``block_16_project_BN`` are one); otherwise what lies at the top
of a tf.Module.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import InputError
from engine.models.adapters.attach import choose as choose_targets
from engine.models.adapters.language import parse_adapters
from engine.selection import filters
from engine.selection.levels import find_freezable, find_parts
from engine.selection.selection import Selection, Statistics, select
from engine.selection.variables import ModelVariables
from engine.text import nearest
from engine.training.auto_freeze import ON
from engine.training.optimizers import layer_factors
from engine.training.phases import Phase

PLATEAU_DELTA = 0.02  # a loss that improves by less from one evaluation to the next is on a plateau
OPTIMIZER = "adam"  # of all strategies that do not say otherwise
LOWEST_RATE = 1 / 32  # of layer_decay: the factor on the learning rate of the layer nearest to the input
LOWER_RATE = 0.03  # of lp_ft: the factor on the learning rate once the head is trained
HEAD_SHARE = 0.5  # of lp_ft: the share of the steps that the head may take
PULL = 0.1  # of l2_sp: the weight decay toward the start
ADAPTER_SIZE = 4  # of lora (the rank) and adapter, unless their names say otherwise
_ADAPTERS = ("lora", "ssf", "adapter")
_INNER = {"lora": ("attention",), "adapter": ("mlp",)}  # what is adapted, in models that have it; in others all kernels
_GROUPS = {"norms": "norm", "bias": "bias", "attention": "attention"}
_ON_REQUEST = ("first_N", "layer_decay", "lp_ft", "l2_sp", "auto_freeze", *_ADAPTERS, "wise_ft")  # not run by default
WISE_FT = "wise_ft"  # after a + behind the name of a strategy, or alone for that of full
_FAMILIES = ("head", "last_N", *_GROUPS, "gradual", "gradual_plateau", "full", *_ON_REQUEST)
_NAME = r"[A-Za-z][\w.+-]{0,63}"


class StrategyError(InputError):
    """A strategy that does not exist or cannot be parsed. One that a model does not have raises a FilterError."""


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
    """A name for a selection, or for several in succession.

    Attributes:
        optimizer: with its options, as for finetune.
        adapt: the adapters that the model has, as for finetune; None if it has none.
        interpolated: the name of the strategy whose weights are averaged with those that it started from (WiSE-FT,
            arXiv:2109.01903), after it has trained as this one says; None if they stay as they are.
        auto_freeze: the text of that flag of finetune: the first phase is planned, and the run decides the others; None if
            all of them are planned.
    """

    name: str
    planned: tuple[PlannedPhase, ...]
    optimizer: str = OPTIMIZER
    adapt: str | None = None
    interpolated: str | None = None
    auto_freeze: str | None = None

    @property
    def budget(self) -> bool:
        """Whether evaluations decide when phases end, so that the steps are counted over all phases together."""
        return any(phase.plateau for phase in self.planned)

    def averaged(self, name: str) -> Strategy:
        """The strategy of this name that averages the weights of this one; StrategyError if this one does so itself."""
        if self.interpolated is not None:
            raise StrategyError(f"strategies={name!r}: {WISE_FT} appears twice")
        return dataclasses.replace(self, name=name, interpolated=self.name)

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
        pairs = zip(self.planned, self._divide(steps), strict=True)
        return [phase(planned, steps=length) for planned, length in pairs if length]

    def phases_of_run(self, steps: int, *, learning_rate: float) -> list[Phase]:
        """The phases of a run of at most ``steps`` steps as finetune takes them: each has a length of its own.

        A phase that a plateau may end takes its share of the steps at most; what it leaves is not trained.
        """
        plateau = {"until": "plateau", "patience": 1, "min_delta": PLATEAU_DELTA}
        found = []
        for planned, count in zip(self.planned, self._divide(steps), strict=True):
            length = plateau | {"max_steps": count} if planned.plateau else {"steps": count}
            rate = None if planned.rate == 1.0 else planned.rate * learning_rate
            given: dict[str, Any] = {"learning_rate": rate, "layer_decay": planned.layer_decay, **length}
            found += [Phase(name=planned.name, train=planned.train, **given)] if count else []
        return found

    def _divide(self, steps: int) -> list[int]:
        """The steps of each phase, by their shares; all go to the last one if it would have none."""
        shares = [phase.share for phase in self.planned]
        if (left := 1.0 - sum(shares[:-1])) > 0:
            shares[-1] = left
        ends = [round(steps * share / sum(shares)) for share in itertools.accumulate(shares)]
        ends[-1] = steps
        lengths = [end - start for start, end in itertools.pairwise([0, *ends])]
        return lengths if lengths[-1] else [0] * (len(lengths) - 1) + [steps]


def list_flags(phases: Sequence[Mapping[str, Any]], optimizer: str, *, auto_freeze: str | None = None) -> list[str]:
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
        *([f"--auto_freeze={auto_freeze}"] if auto_freeze is not None else []),
    ]


class ModelStrategies:
    """The strategies of one model, of which these are the variables and the ``engine.models.Model.statistics``.

    Attributes:
        parts: the parts from the input to the output, without the head.
        head: the filter text of the head; "" if the model has none.
        ladder: the default values of N in last_N: every N up to 4 parts; 1, 2, 4, 8 ... and all up to 12 parts; otherwise
            1, 4, 16 ... and all.

    ``network`` is the model's, which says whether it has layers for adapters; without it, it has none.
    """

    def __init__(self, variables: ModelVariables, statistics: Statistics, *, network: Any = None) -> None:
        self.variables, self.statistics, self._network = variables, statistics, network
        self.head = "@head" if any("head" in entry.groups for entry in variables) else ""
        self.parts = find_parts(variables)
        count = len(self.parts)
        factor = 2 if count <= 12 else 4
        rungs = itertools.takewhile(lambda n: n < count, (factor**power for power in itertools.count()))
        self.ladder = tuple(range(1, count + 1)) if count <= 4 else (*rungs, count)

    def names(self) -> list[str]:
        """The names of all strategies that this model has; of last_N and first_N, only those on the ladder."""
        firsts = [f"first_{n}" for n in self.ladder if self.head or n < len(self.parts)]
        adapters = [] if self._network is None else [name for name in _ADAPTERS if self._can_adapt(name)]
        freezing = ["auto_freeze"] if self.parts else []
        own = ["layer_decay", *(["lp_ft"] if self.head else []), "l2_sp", *freezing, *adapters, WISE_FT]
        return [*self._usual(), *firsts, *own]

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

        ``NAME+wise_ft`` is a strategy whose weights are averaged after training with those that it started from.

        Raises StrategyError if the name is unknown or taken or the filter cannot be parsed, FilterError if the strategy
        matches or trains nothing on this model, and AdapterError if it adapts none of its layers.
        """
        if "=" not in text and (text == WISE_FT or text.endswith(f"+{WISE_FT}")):
            return self.strategy(text.rpartition("+")[0] or "full").averaged(text)
        name, equals, rule = text.partition("=")
        if equals:
            if not re.fullmatch(_NAME, name):
                raise StrategyError(
                    f"strategies={text!r}: the name before = must begin with a letter and have at most 64 letters, digits and "
                    "_ . + -"
                )
            if name in _FAMILIES or re.fullmatch(rf"(last|first|lora|adapter)_\d+|.*\+{WISE_FT}", name):
                raise StrategyError(
                    f"strategies={text!r}: {name} is the name of another strategy already; choose another name"
                )
            try:
                found = Strategy(name, (PlannedPhase("train", str(filters.parse_filter(rule)), 1.0),))
            except filters.FilterError as error:
                raise StrategyError(f"strategies={text!r}: {error}") from None
        else:
            pull = f"adamw,weight_decay={PULL:g},decay_toward=start"
            own: dict[str, Any] = {"adapt": self._adapt(name)}
            own |= {"optimizer": pull} if name == "l2_sp" else {"auto_freeze": ON} if name == "auto_freeze" else {}
            found = Strategy(name, tuple(self._plan(name)), **own)
            if found.adapt is not None:
                choose_targets(self._network, parse_adapters(found.adapt))
                return found
        for phase in found.planned:
            try:
                self.select(phase.train)
            except filters.FilterError as error:
                raise filters.FilterError(f"strategy {name}, train='{phase.train}': {error}") from None
        return found

    def select(self, train: str) -> Selection:
        """Resolves a filter text against the model."""
        return select(self.variables, train, statistics=self.statistics)

    def _adapt(self, name: str) -> str | None:
        """The adapters that a strategy puts into the model; None if it has none."""
        match = re.fullmatch(r"(lora|ssf|adapter)(?:_(\d{1,5}))?", name)
        if match is None or self._network is None or (match[1] == "ssf" and match[2]):
            return None
        kind, size = match[1], match[2] or str(ADAPTER_SIZE)
        if kind == "ssf":
            return "ssf @kernel @norm"
        inner = next((g for g in _INNER[kind] if any(g in e.groups for e in self.variables)), "kernel")
        return f"{kind}:{'rank' if kind == 'lora' else 'size'}={size} @{inner}"

    def _can_adapt(self, name: str) -> bool:
        adapt = self._adapt(name)
        try:
            choose_targets(self._network, parse_adapters(adapt or ""))
        except InputError:
            return False
        return True

    def _plan(self, name: str) -> list[PlannedPhase]:
        if self._adapt(name) is not None:
            return [PlannedPhase(name, f"@adapters {self.head}".strip(), 1.0)]
        if name in ("full", "head"):
            return [PlannedPhase(name, "@all" if name == "full" else "@head", 1.0)]
        if name in _GROUPS:
            return [PlannedPhase(name, f"@{_GROUPS[name]} {self.head}".strip(), 1.0)]
        if match := re.fullmatch(r"(last|first)_(\d{1,6})", name):
            return [PlannedPhase(name, self._some(name, match[1], int(match[2])), 1.0)]
        if name == "auto_freeze" and not find_freezable(self.variables, "@all", self.statistics):
            raise filters.FilterError("strategy auto_freeze: this model has no part that could be frozen below another")
        if name in ("l2_sp", "auto_freeze"):
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
