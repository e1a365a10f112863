"""Freezing strategies as data: a name, and the phases (filter text and share of the steps) that it stands for.

A strategy is written for a model's parts (engine.selection.layer_groups), from the input to the head: a ViT's blocks; groups of layers of a
Keras model (``block_16_expand`` ... ``block_16_project_BN`` are one); else what lies at the top of a tf.Module. What a
filter then trains is decided in selection.py, as for every other run.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.errors import InputError
from engine.selection import filters
from engine.selection.layer_groups import part_names
from engine.selection.selection import Selection, Statistics, select
from engine.selection.variables import ModelVariables, NamedVariable
from engine.text import nearest
from engine.training.phases import Phase

PLATEAU_DELTA = 0.02  # a loss that improves by less from one evaluation to the next has reached its plateau
_GROUPS = {"norms": "norm", "bias": "bias", "attention": "attention"}
_FAMILIES = ("head", "last_N", *_GROUPS, "gradual", "gradual_plateau", "full")
_NAME = r"[A-Za-z][\w.+-]{0,63}"
_FEWEST_GROUPS, _EQUAL_GROUPS = 3, 12


class StrategyError(InputError):
    """A strategy that does not exist, or cannot be read. One that a model does not have is a FilterError."""


@dataclass(frozen=True)
class Level:
    """A part of a model, such as a block, and all above it.

    Attributes:
        name: as it is shown, such as ``blocks/3``.
        from_here: filter text of this part and all parts after it, the head apart.
    """

    name: str
    from_here: str


@dataclass(frozen=True)
class Step:
    """A phase as a share of all steps. ``plateau``: it ends when evaluations stop getting better."""

    name: str
    train: str
    share: float
    plateau: bool = False


@dataclass(frozen=True)
class Strategy:
    """A named selection, or several after one another."""

    name: str
    steps: tuple[Step, ...]

    @property
    def budget(self) -> bool:
        """Whether evaluations decide when phases end, so that steps are counted over all of them."""
        return any(step.plateau for step in self.steps)

    def phases(self, steps: int) -> list[Phase]:
        """The phases of a run of so many steps; of a ``budget`` each may take all, and the run ends after them.

        A phase for which no step is left is dropped, the last never.
        """
        if self.budget:
            return [
                Phase(
                    name=step.name,
                    train=step.train,
                    until="plateau",
                    patience=1,
                    min_delta=PLATEAU_DELTA,
                    max_steps=steps,
                )
                for step in self.steps
            ]
        ends = [round(steps * share) for share in itertools.accumulate(step.share for step in self.steps)]
        ends[-1] = steps
        lengths = [end - start for start, end in itertools.pairwise([0, *ends])]
        if not lengths[-1]:
            lengths = [0] * (len(lengths) - 1) + [steps]
        pairs = zip(self.steps, lengths, strict=True)
        return [Phase(name=step.name, train=step.train, steps=length) for step, length in pairs if length]


class ModelStrategies:
    """The strategies of one model.

    Args:
        variables: of the model.
        statistics: what statistics of trained layers do by default (models.Model.statistics).

    Attributes:
        parts: from the input to the output, without the head.
        head: filter text of the head; "" where the model has none.
        ladder: the N of last_N that are run when nobody says which: all up to 4, else 1, 2, 4, 8 ... and all; of more
            than 12 parts 1, 4, 16 ... and all.
    """

    def __init__(self, variables: ModelVariables, statistics: Statistics) -> None:
        self.variables = variables
        self.statistics = statistics
        self.head = "@head" if any("head" in entry.groups for entry in variables) else ""
        self.parts = parts(variables)
        count = len(self.parts)
        factor = 2 if count <= 12 else 4
        rungs = itertools.takewhile(lambda n: n < count, (factor**power for power in itertools.count()))
        self.ladder = tuple(range(1, count + 1)) if count <= 4 else (*rungs, count)

    def names(self) -> list[str]:
        """Of all strategies that this model has, ``last_N`` for the ladder alone."""
        lasts = [f"last_{n}" for n in self.ladder]
        has = {group for entry in self.variables if entry.kind == "weight" for group in entry.groups}
        groups = [name for name, group in _GROUPS.items() if group in has]
        gradual = ["gradual", "gradual_plateau"] if self.parts else []
        return [*(["head"] if self.head else []), *lasts, *groups, *gradual, "full"]

    def usual(self) -> list[Strategy]:
        """What is run when nobody says which; of two that train the same throughout, the second is kept."""
        found: dict[tuple[Selection, ...], Strategy] = {}
        for name in self.names():
            strategy = self.strategy(name)
            key = tuple(self.select(step.train) for step in strategy.steps)
            if not strategy.budget:
                found.pop(key, None)
                found[key] = strategy
            else:
                found[(*key, key[0])] = strategy  # the same selections as gradual, at other times
        return list(found.values())

    def strategy(self, text: str) -> Strategy:
        """A strategy by its name, or ``name=FILTER``.

        Raises:
            StrategyError: unknown name, or a filter that cannot be read.
            FilterError: what it stands for matches nothing on this model, or trains nothing.
        """
        name, equals, rule = text.partition("=")
        if equals:
            if not re.fullmatch(_NAME, name):
                raise StrategyError(
                    f"strategies={text!r}: a name of one's own has letters, digits and _ . + - (at most 64) and begins "
                    "with a letter"
                )
            if name in _FAMILIES or re.fullmatch(r"last_\d+", name):
                raise StrategyError(f"strategies={text!r}: {name} is a strategy already; another name tells them apart")
            try:
                found = Strategy(name, (Step("train", str(filters.parse_filter(rule)), 1.0),))
            except filters.FilterError as error:
                raise StrategyError(f"strategies={text!r}: {error}") from None
        else:
            found = Strategy(name, tuple(self._steps(name)))
        for step in found.steps:
            try:
                self.select(step.train)
            except filters.FilterError as error:
                raise filters.FilterError(f"strategy {name}, train='{step.train}': {error}") from None
        return found

    def select(self, train: str) -> Selection:
        """What a filter text selects of the model."""
        return select(self.variables, train, statistics=self.statistics)

    def _steps(self, name: str) -> list[Step]:
        if name == "full":
            return [Step("full", "@all", 1.0)]
        if name == "head":
            return [Step("head", "@head", 1.0)]
        if name in _GROUPS:
            return [Step(name, f"@{_GROUPS[name]} {self.head}".strip(), 1.0)]
        if match := re.fullmatch(r"last_(\d{1,6})", name):
            return [Step(name, self._last(name, int(match.group(1))), 1.0)]
        if name in ("gradual", "gradual_plateau") and not self.parts:
            raise filters.FilterError(f"strategy {name}: this model has no parts to go down by, beside its head")
        if name == "gradual":
            return self._downward([(len(self.parts) + 1) // 2], plateau=False)
        if name == "gradual_plateau":
            return self._downward(range(1, len(self.parts) + 1), plateau=True)
        known = self.names()
        raise StrategyError(
            f"strategies={name!r}: known are {', '.join(known)}{self._others()}, or name=FILTER{nearest(name, known)}"
        )

    def _downward(self, depths: Sequence[int], *, plateau: bool) -> list[Step]:
        """The head, so many of the last parts, everything; each selection once."""
        texts = [("head", self.head)] if self.head else []
        texts += [(f"last_{n}", self._last("gradual", n)) for n in depths] + [("full", "@all")]
        chosen: dict[Selection, tuple[str, str]] = {}
        for name, text in texts:
            chosen[self.select(text)] = (name, text)
        share = 1.0 / len(chosen)
        return [Step(name, text, share, plateau) for name, text in chosen.values()]

    def _last(self, name: str, count: int) -> str:
        if not 1 <= count <= len(self.parts):
            has = f"it has last_1 to last_{len(self.parts)}" if self.parts else "it has no parts beside its head"
            raise filters.FilterError(f"strategy {name}: this model has no such parts; {has}")
        return f"{self.parts[-count].from_here} {self.head}".strip()

    def _others(self) -> str:
        between = len(self.parts) > len(self.ladder)
        return f" (any last_N from last_1 to last_{len(self.parts)})" if between else ""


def split(texts: Sequence[str]) -> list[str]:
    """The items of a flag that is given several times, each with items between commas.

    A comma separates only where a name follows, so that a filter may have ``{1,2}`` in it.

    Raises:
        StrategyError: an empty item, or one name twice.
    """
    found = [item.strip() for text in texts for item in re.split(rf",(?=\s*{_NAME}\s*(?:=|,|$))", text)]
    if not found or not all(found):
        raise StrategyError(f"strategies={','.join(texts)!r}: names, or name=FILTER, with commas between them")
    names = [item.partition("=")[0] for item in found]
    for name in names:
        if names.count(name) > 1:
            raise StrategyError(f"strategies={','.join(texts)!r}: {name} is there twice")
    return found


def parts(variables: ModelVariables) -> list[Level]:
    """The parts of a model (engine.selection.layer_groups) from the input to the output; each has a weight that is not the head's."""
    body = [entry for entry in variables if entry.kind == "weight" and "head" not in entry.groups]
    if any(entry.block for entry in body):
        count = max(entry.block[1] for entry in body if entry.block)
        return [Level(f"blocks/{n}", f"@blocks[{n - count}:]") for n in range(count)]
    names = part_names(variables)
    if any(name == "" for entry in body for name, _, _ in entry.layers):
        return _layer_groups(body, names)
    found = list(dict.fromkeys(names[entry.path] for entry in body))
    texts = [_pattern(name, body) for name in found]
    return [Level(name, " ".join(texts[number:])) for number, name in enumerate(found)]


def _pattern(name: str, body: Sequence[NamedVariable]) -> str:
    """A filter item for what lies under a name, or for the variable of that name."""
    under = any(entry.path.startswith(f"{name}/") for entry in body)
    return re.sub(r"\\?\s", r"\\s", re.escape(name)) + ("/.*" if under else "")


def _layer_groups(body: Sequence[NamedVariable], names: Mapping[str, str]) -> list[Level]:
    """Neighbouring layers of one part; where names say nothing of parts, groups of equally many layers."""
    at: dict[int, NamedVariable] = {}  # index in the model's layers -> a weight of the layer
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
        stem = None if part == entry.layer else part  # a layer that is a part by itself: neighbours like it go together
        if stem != previous:
            starts[index] = part.rpartition("/")[2]
        previous = stem
    if len(starts) < min(_FEWEST_GROUPS, len(indices)):
        groups = min(_EQUAL_GROUPS, len(indices))
        chosen = [indices[len(indices) * number // groups] for number in range(groups)]
        starts = {index: names[at[index].path].rpartition("/")[2] for index in chosen}
    return [Level(name, f"@layers[{index - count}:]") for index, name in starts.items()]
