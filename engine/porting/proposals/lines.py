"""Turns pairs of units into the lines of a proposal, and accounts for what is left on both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engine.porting.proposals.fitting import Layout, Shape, drop_ones
from engine.porting.proposals.grouping import fit_item, match_roles
from engine.porting.proposals.pairing import Pair, pair_units
from engine.porting.proposals.proposal import SURE, Candidate, Left, Line, Missing, Proposal
from engine.porting.proposals.recurrent import Cells, divide_line
from engine.porting.proposals.units import Item, Unit
from engine.porting.proposals.words import GENERIC, Token, canonical_words, parse_name
from engine.selection.variables import NamedVariable

_OFFERED = 0.5
_HIGHER = 0.95
_MOST_CANDIDATES = 8
_RECURRENT = frozenset({"lstm", "gru", "rnn", "ih", "hh"})


class Lines:
    """The lines found so far."""

    def __init__(self, sources: list[Unit], targets: list[Unit], layout: Layout, sure: float) -> None:
        self.sources, self.targets, self.layout, self.sure = sources, targets, layout, sure
        self.lines: dict[tuple[str, int | None], Line] = {}  # by path, and the number of the part of three
        self.used: dict[tuple[str, int | None], float] = {}
        self.notes: Mapping[str, str] = {}
        widths = {s.main.shape[0] for s in sources if s.kind == "linear" and len(s.main.shape) > 2}
        self.wanted = {drop_ones(i.shape) for t in targets for i in t.items.values() if len(drop_ones(i.shape)) == 2}
        # torch flattens images with channels first, so a transpose alone would mix up the rows
        self.image_widths = frozenset(widths) if layout == "torch" else frozenset()
        self.widths = frozenset(length for s in sources for i in s.items.values() if i.shape for length in i.shape[:1])

    def take(self, pairs: Sequence[Pair], factor: float) -> None:
        """Turns pairs into lines."""
        believed = [pair for pair in pairs if pair.certainty > 0.9]
        leftover = [
            sum(len(drop_ones(u.main.shape)) > 1 for u in units)
            - sum(len(drop_ones(units[n].main.shape)) > 1 for n in taken)
            for units, taken in (
                (self.sources, {pair.source for pair in pairs if pair.certainty > 0.5}),
                (self.targets, {pair.target for pair in pairs if pair.certainty > 0.5}),
            )
        ]
        usual = float(np.median([pair.shared for pair in believed])) if believed else 0.0
        # where most names of a file agree, one that does not is suspicious
        stranger = 0.25 * min(max((usual - 0.5) / 0.4, 0), 1)
        for pair in pairs:
            one, other = self.sources[pair.source], self.targets[pair.target]
            plausible = _least(one, other)
            plausible -= (0.0, 0.1, 0.25)[(leftover[0] > 0) + (leftover[1] > 0)] * (pair.shared < 0.5)
            if pair.shared < 0.34 and one.words - GENERIC and other.words - GENERIC:
                plausible -= stranger
            plausible += (0.99 - plausible) * pair.shared**0.5
            plausible *= 0.5 if pair.clash else 1
            for a, b in match_roles(list(one.items), list(other.items)):
                self._line(one.items[a], other.items[b], pair, plausible * factor)

    def _line(self, source: Item, target: Item, pair: Pair, plausible: float) -> None:
        found = fit_item(source, target, self.layout)
        key, half = (source.name, source.part and source.part[1]), (target.name, target.part and target.part[1])
        if found is None or key in self.used or half in self.lines:
            return
        confidence = pair.certainty * plausible * min(1.0, found.quality + 0.02)
        reasons = [_why(pair)]
        before: tuple[str, ...] = ()
        words = canonical_words(parse_name(source.name).tokens)
        if source.part is not None:
            before = (f"split({source.part[0]}, 3, {source.part[1]})",)
            confidence *= 0.8 if {"query", "key", "value"} <= set(parse_name(source.name).tokens) else 0.95
            reasons.append("query, key and value taken as thirds in this order")
        if not found.decided:
            confidence *= self.sure
            how = "transposed like all kernels of torch" if self.layout == "torch" else "kept as it is"
            reasons.append(f"the shape does not decide whether to transpose: {how}")
        elif source.role == "kernel" and drop_ones(source.shape)[::-1] in self.wanted:
            # transposed, it would fit another variable
            confidence *= max(self.sure, 0.9) if self.sure >= 0.8 else self.sure
        if self.layout == "torch" and len(source.shape) == 2 and "transpose" in "".join(found.transforms):
            rows = source.shape[1]
            if rows not in self.widths and any(rows % w == 0 and w > 1 for w in self.image_widths):
                confidence *= 0.7
                reasons.append("it may read a flattened image, which has channels first in torch")
        if self.layout == "torch" and _RECURRENT & set(words):
            confidence *= 0.75
            reasons.append("recurrent layers of torch order their gates and biases differently")
        if source.shape != target.shape and found.transforms:
            reasons.append(f"{list(source.shape)} to {list(target.shape)}")
        others = tuple(
            Candidate(item.name, round(share * plausible, 2))
            for n, share in pair.rivals
            for item in [self.sources[n].items.get(source.role)]
            if item is not None
        )
        self.used[key] = confidence
        self.lines[half] = Line(
            (source.name,), target.name, before + found.transforms, confidence, "; ".join(reasons), others
        )

    def take_rest(self) -> None:
        """Pairs what is left one by one: half a layer may be missing, or its variables lie in several scopes.

        What only its shape suggests is offered with a confidence of at most 0.5, for the user to decide.
        """
        self._take_siblings()
        for factor, shared in ((0.9, 0.5), (_OFFERED, -1.0)):
            one = [single for unit in self.sources for single in _single(unit) if not self._taken(single.main)]
            other = [single for unit in self.targets for single in _single(unit) if not self._made(single.main)]
            if one and other:
                rest = Lines(one, other, self.layout, self.sure)
                rest.take([pair for pair in pair_units(one, other, self.layout) if pair.shared > shared], factor)
                self.lines |= rest.lines
                self.used |= rest.used

    def _take_siblings(self) -> None:
        """Completes layers whose other variables lie one scope higher: ``conv/depthwise_weights`` and ``conv/biases``."""
        made = {line.source: (path, line) for (path, part), line in self.lines.items() if part is None}
        targets = {item.name: unit for unit in self.targets for item in unit.items.values()}
        scopes: dict[tuple[Token, ...], list[tuple[Line, Unit]]] = {}
        for unit in self.sources:
            *scope, word = unit.tokens or ("",)
            for item in unit.items.values():
                if scope and isinstance(word, str) and (item.name,) in made:  # conv/1 is another layer than conv
                    path, line = made[item.name,]
                    scopes.setdefault(tuple(scope), []).append((line, targets[path]))
        for unit in self.sources:
            for role, item in unit.items.items() if "kernel" not in unit.items else ():
                wanted = [
                    (line, other.items[role].name)
                    for line, other in scopes.get(unit.tokens, ())
                    if role in other.items
                    and not self._made(other.items[role])
                    and other.items[role][1:3] == item[1:3]  # shape and type
                ]
                if len(wanted) == 1 and not self._taken(item):
                    line, path = wanted[0]
                    self.used[item.name, None] = line.confidence
                    confidence = _HIGHER * line.confidence
                    reason = f"next to {line.source[0]}, which becomes the other part of the layer"
                    self.add(Line((item.name,), path, (), confidence, reason))

    def _taken(self, item: Item) -> bool:
        return (item.name, item.part and item.part[1]) in self.used

    def _made(self, item: Item) -> bool:
        return (item.name, item.part and item.part[1]) in self.lines

    def add(self, line: Line) -> None:
        """Adds a line that was found in another way."""
        self.lines[line.target, None] = line

    def divide(self, cells: Cells, forget_biases: Mapping[str, float | None]) -> None:
        """Replaces the lines of whole recurrent cells by those of their variables."""
        self.notes = cells.notes
        for name, cell in cells.layers.items():
            kernel, bias = (self.lines.pop((item, None), None) for item in (name, cell.bias.name))
            if kernel is not None and bias is not None:
                for line in divide_line(cell, cells.fused[kernel.source[0]], kernel, bias, forget_biases):
                    self.add(line)

    def propose(
        self,
        variables: Sequence[NamedVariable],
        shapes: Mapping[str, Shape],
        *,
        real: Mapping[str, str],
        aside: Sequence[Left],
        layout: str,
    ) -> Proposal:
        """Builds the proposal: the lines in model order, and what is left on both sides.

        ``shapes`` are those of the tensors in the file, ``real`` is a shorter name -> the name there, and ``aside`` is
        what is not a weight.
        """
        lines: list[Line] = []
        missing: list[NamedVariable] = []
        axes = {i.name: i.part[0] for unit in self.targets for i in unit.items.values() if i.part}
        for variable in variables:
            line = self.lines.get((variable.path, None)) or self._merged(variable, axes)
            if line is None:
                missing.append(variable)
            else:
                lines.append(_renamed(line, real))
        made_of = {name for line in lines for name in line.source}
        rivals = {c.source for line in lines if line.confidence < SURE for c in line.candidates}
        unmade = {drop_ones(tuple(sorted(variable.variable.shape))) for variable in missing}
        free: dict[Shape, list[str]] = {}
        skips = []
        for name, shape in shapes.items():
            if name in made_of:
                continue
            free.setdefault(drop_ones(tuple(sorted(shape))), []).append(name)
            if name in rivals:
                skips.append(Left(name, 0.3, "one of the uncertain lines may mean it"))
            elif drop_ones(tuple(sorted(shape))) in unmade:
                skips.append(Left(name, 0.5, "a variable without a tensor has its shape"))
            else:
                skips.append(Left(name, 0.85, f"no variable is left that could take {list(shape)}"))
        place = {name: number for number, name in enumerate([*shapes, *(left.name for left in aside)])}
        return Proposal(
            tuple(lines),
            tuple(sorted([*skips, *aside], key=lambda s: place[s.name])),
            tuple(self._missing(variable, free) for variable in missing),
            layout,
        )

    def _missing(self, variable: NamedVariable, free: Mapping[Shape, Sequence[str]]) -> Missing:
        shape = tuple(variable.variable.shape)
        same = free.get(drop_ones(tuple(sorted(shape))), ())
        reason = (
            f"no tensor fits {list(shape)}" if not same else f"no tensor with its role, but {len(same)} of its size"
        )
        if variable.path in self.notes:
            return Missing(variable.path, f"{reason}: {self.notes[variable.path]}")
        return Missing(variable.path, reason, tuple(Candidate(name, 0.1) for name in same[:_MOST_CANDIDATES]))

    def _merged(self, variable: NamedVariable, axes: dict[str, int]) -> Line | None:
        """Returns the line of a variable that holds query, key and value, if all three were found in the same way."""
        parts = [self.lines.get((variable.path, n)) for n in range(3)]
        found = [part for part in parts if part is not None]
        if len(found) < 3 or len({part.transforms for part in found}) > 1:
            return None
        return Line(
            tuple(name for part in found for name in part.source),
            variable.path,
            (*found[0].transforms, f"concat({axes[variable.path]})"),
            0.95 * min(part.confidence for part in found),
            f"{found[0].reason}; query, key and value joined in this order",
        )


def _least(one: Unit, other: Unit) -> float:
    """Returns how plausible a pair is if its names have nothing in common and nothing else has its shapes."""
    if one.kind == other.kind == "norm":
        return (0.6, 0.84, 0.86, 0.87)[min(len(one.items), len(other.items)) - 1]
    if one.kind != other.kind or one.size < 2:
        return 0.5
    return {"linear": 0.87, "cell": 0.87, "alpha": 0.86}.get(other.kind, 0.6)


def _renamed(line: Line, real: Mapping[str, str]) -> Line:
    names = tuple(real.get(name, name) for name in line.source)
    others = tuple(Candidate(real.get(c.source, c.source), c.confidence) for c in line.candidates)
    return Line(names, line.target, line.transforms, round(line.confidence, 4), line.reason, others)


def _single(unit: Unit) -> list[Unit]:
    return [Unit(unit.tokens, unit.ends, unit.words, {role: item}) for role, item in unit.items.items()]


def _why(pair: Pair) -> str:
    names = "names agree" if pair.shared > 0.6 else "names agree in part" if pair.shared > 0.2 else "names differ"
    if pair.alone:
        return f"the only one of its shapes, {names}"
    if pair.certainty > 0.85:
        return f"{names}, others of its shape fit less well"
    return f"{names}, others of its shape fit equally well"
