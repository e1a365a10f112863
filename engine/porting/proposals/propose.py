"""Proposes rules for a port from names and shapes, each with a calibrated confidence.

The variables of a layer are grouped (``units``) and the order of axes is guessed from all kernels (``fitting``).
Layers that can be paired by shape are compared by words (``similarity``) and by numbers (``numbering``), and the
belief in each pair is what its competitors leave (``pairing``). Two towers of equal shapes that the names do not
distinguish share the belief.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.porting.proposals.fitting import Layout, LayoutGuess, Shape, drop_ones, judge_layout
from engine.porting.proposals.grouping import fit_item, match_roles
from engine.porting.proposals.pairing import Pair, pair_units
from engine.porting.proposals.proposal import Candidate, Left, Line, Missing, Proposal
from engine.porting.proposals.units import Item, Unit, make_units, split_qkv
from engine.porting.proposals.words import COUNTER, GENERIC, canonical_words, is_slot, parse_name
from engine.porting.readers.source import TensorSource
from engine.porting.slot_names import AVERAGE
from engine.selection.variables import NamedVariable

_RECURRENT = frozenset({"lstm", "gru", "rnn", "ih", "hh"})


class SourceEntry(NamedTuple):
    """A tensor as its file lists it."""

    name: str
    shape: Shape
    dtype: np.dtype[Any]


def list_entries(source: TensorSource) -> list[SourceEntry]:
    """Lists the names, shapes and dtypes of a source for ``propose``; no tensor is read."""
    return [SourceEntry(name, tuple(source.shape(name)), source.dtype(name)) for name in source.names()]


def propose(
    sources: Iterable[SourceEntry], variables: Iterable[NamedVariable], *, layout: Layout | None = None
) -> Proposal:
    """Proposes, for every variable, the tensor it is made from, and skips for the tensors that are left.

    Only names, shapes and dtypes are used. Optimizer slots, step counters, and averages of variables that are in the
    source are proposed as skips. Where only the average (``.../ExponentialMovingAverage``) of a variable is there, it
    takes the variable's place. A confidence of 0.9 says that nine of ten such lines are right. It is lower if other
    tensors could be meant as well, if only the order of numbers decides, if the names have nothing in common, and if
    the shape does not decide whether to transpose a kernel.

    Args:
        sources, variables: the tensors, with unique names, and the variables, in model order.
        layout: the order of axes where the kind of file determines it ("tf" for TensorFlow's checkpoints); None
            guesses it from shapes and names.
    """
    sources, variables = list(sources), list(variables)
    aside, called = _set_aside(sources)
    kept = [entry for entry in sources if entry.name not in aside]
    left = make_units((called.get(e.name, e.name), tuple(e.shape), _type(e.dtype)) for e in kept)
    right = make_units((v.path, tuple(v.variable.shape), _type(v.variable.dtype)) for v in variables)
    real = {short: name for name, short in called.items()}
    kernels = (shape for shape, _ in _kernels(right))
    judged = (
        LayoutGuess(layout, 1.0, "as given") if layout else judge_layout(_kernels(left), kernels, named=_named(kept))
    )
    fused = [any("qkv" in unit.words for unit in side) for side in (left, right)]
    if fused[0] and not fused[1]:
        left = split_qkv(left, judged.layout)
    elif fused[1] and not fused[0]:
        right = split_qkv(right, "tf")
    port = _Port(left, right, judged.layout, judged.sure)
    port.take(pair_units(left, right, judged.layout), 1.0)
    port.take_rest()
    return port.proposal(variables, kept, aside, real, judged.why)


def _type(dtype: Any) -> str:
    """Returns "f" for floating point, else the dtype's name; equal ones can be converted."""
    name = getattr(dtype, "name", str(dtype))
    return "f" if name.startswith(("float", "bfloat")) else name


def _kernels(units: Sequence[Unit]) -> Iterable[tuple[Shape, int | None]]:
    for unit in units:
        item = unit.items.get("kernel")
        if item is not None and not (item.table and len(item.shape) == 2):
            bias = unit.items.get("bias")
            yield item.shape, bias.shape[0] if bias is not None and len(bias.shape) == 1 else None


def _named(entries: Sequence[SourceEntry]) -> Layout | None:
    """Guesses the layout from names: ``weight`` after a dot is torch, ``kernel`` or ``weights`` TensorFlow; else None."""
    wide = [entry.name for entry in entries if len(entry.shape) > 1]
    if 2 * sum(bool(re.search(r"\.(\w+_)?weight$", name)) for name in wide) > len(wide):
        return "torch"
    return "tf" if 2 * sum(bool(re.search(r"(kernel|weights)(_\d+)?$", name)) for name in wide) > len(wide) else None


def _set_aside(entries: Sequence[SourceEntry]) -> tuple[dict[str, Left], dict[str, str]]:
    """Returns the tensors that are not weights, and shorter names for averages without their variable."""
    names = {entry.name for entry in entries}
    aside, called = {}, {}
    for name, shape, dtype in entries:
        base, _, last = name.rpartition("/")
        kind = _type(dtype)
        if COUNTER.fullmatch(name) and (not shape or name.count("/") > 1 or "OBJECT" in name):
            aside[name] = Left(name, 0.95, "a counter or the optimizer's own state")
        elif base and is_slot(last):
            parts = base.split("/")
            if any("/".join(parts[cut:]) in names for cut in range(min(len(parts), 4))):
                aside[name] = Left(name, 0.97, "an optimizer slot or average of a variable in the file")
            elif last == AVERAGE:
                called[name] = base
            elif re.fullmatch(r"[A-Z]\w*", last):
                aside[name] = Left(name, 0.85, "named like an optimizer slot")
        elif kind != "f" and not kind.startswith(("int", "uint", "bool")):
            aside[name] = Left(name, 0.95, f"{kind} is not a dtype of weights")
        elif kind != "f" and not shape:
            aside[name] = Left(name, 0.9, "an integer scalar: a counter")
    return aside, called


class _Port:
    """The lines found so far."""

    def __init__(self, sources: list[Unit], targets: list[Unit], layout: Layout, sure: float) -> None:
        self.sources, self.targets, self.layout, self.sure = sources, targets, layout, sure
        self.lines: dict[tuple[str, int | None], Line] = {}  # by path, and the number of the part of three
        self.used: dict[tuple[str, int | None], float] = {}
        self.candidates: dict[str, tuple[Candidate, ...]] = {}
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
        """Pairs the variables of units without a partner one by one, since half a layer may be missing."""
        left = [n for n, u in enumerate(self.sources) if not any(self._taken(item) for item in u.items.values())]
        right = [
            n for n, u in enumerate(self.targets)
            if not any((i.name, i.part and i.part[1]) in self.lines for i in u.items.values())
        ]  # fmt: skip
        one = [s for n in left for s in _single(self.sources[n])]
        other = [t for n in right for t in _single(self.targets[n])]
        if one and other:
            pairs = [pair for pair in pair_units(one, other, self.layout) if pair.shared > 0.5]
            rest = _Port(one, other, self.layout, self.sure)
            rest.take(pairs, 0.9)
            self.lines |= rest.lines
            self.used |= rest.used

    def _taken(self, item: Item) -> bool:
        return (item.name, item.part and item.part[1]) in self.used

    def proposal(
        self,
        variables: Sequence[NamedVariable],
        kept: Sequence[SourceEntry],
        aside: dict[str, Left],
        real: dict[str, str],
        layout: str,
    ) -> Proposal:
        """Builds the proposal: the lines in model order, and what is left on both sides."""
        lines: list[Line] = []
        missing: list[Missing] = []
        axes = {i.name: i.part[0] for unit in self.targets for i in unit.items.values() if i.part}
        for variable in variables:
            line = self.lines.get((variable.path, None)) or self._merged(variable, axes)
            if line is None:
                missing.append(Missing(variable.path, f"no tensor fits {list(variable.variable.shape)}"))
            else:
                lines.append(_renamed(line, real))
        made_of = {name for line in lines for name in line.source}
        rivals = {c.source for line in lines if line.confidence < 0.8 for c in line.candidates}
        shapes = {drop_ones(tuple(sorted(v.variable.shape))) for v in variables if v.path in {m.path for m in missing}}
        skips = []
        for entry in kept:
            if entry.name in made_of:
                continue
            if entry.name in rivals:
                skips.append(Left(entry.name, 0.3, "one of the uncertain lines may mean it"))
            elif drop_ones(tuple(sorted(entry.shape))) in shapes:
                skips.append(Left(entry.name, 0.5, "a variable without a tensor has its shape"))
            else:
                skips.append(Left(entry.name, 0.85, f"no variable is left that could take {list(entry.shape)}"))
        skips += aside.values()
        place = {name: number for number, name in enumerate([*(e.name for e in kept), *aside])}
        return Proposal(tuple(lines), tuple(sorted(skips, key=lambda s: place[s.name])), tuple(missing), layout)

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
    return {"linear": 0.87, "alpha": 0.86}.get(other.kind, 0.6)


def _renamed(line: Line, real: dict[str, str]) -> Line:
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
