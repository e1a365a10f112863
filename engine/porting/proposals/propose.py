"""Proposes rules for a port from names and shapes, each with a calibrated confidence.

The variables of a layer are grouped (``units``) and the order of axes is guessed from all kernels (``fitting``).
Numbered layers of Keras 2 are followed in order (``layer_order``), and the cells of TensorFlow 1 are taken as a whole
(``recurrent``). Layers that can be paired by shape are compared by words (``similarity``) and by numbers (``numbering``), and the
belief in each pair is what its competitors leave (``pairing``). Two towers of equal shapes that the names do not
distinguish share the belief.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.porting.proposals.fitting import Layout, LayoutGuess, Shape, judge_layout
from engine.porting.proposals.layer_order import follow_layers
from engine.porting.proposals.lines import Lines
from engine.porting.proposals.pairing import pair_units
from engine.porting.proposals.proposal import Left, Proposal
from engine.porting.proposals.recurrent import Cells, join_cells
from engine.porting.proposals.units import Unit, make_units, split_qkv
from engine.porting.proposals.words import COUNTER, is_slot, without_output
from engine.porting.readers.source import TensorSource
from engine.porting.slot_names import AVERAGE
from engine.selection.variables import NamedVariable


class SourceEntry(NamedTuple):
    """A tensor as its file lists it."""

    name: str
    shape: Shape
    dtype: np.dtype[Any]


def list_entries(source: TensorSource) -> list[SourceEntry]:
    """Lists the names, shapes and dtypes of a source for ``propose``; no tensor is read."""
    return [SourceEntry(name, tuple(source.shape(name)), source.dtype(name)) for name in source.names()]


def propose(
    sources: Iterable[SourceEntry],
    variables: Iterable[NamedVariable],
    *,
    layout: Layout | None = None,
    hidden: Mapping[str, str] | None = None,
    forget_biases: Mapping[str, float | None] | None = None,
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
        hidden: tensors that are in the file but not among the sources, such as an optimizer's state -> the reason.
            Where the rules read the whole file, they skip them.
        forget_biases: what the graph of the weights adds to the forget gates of LSTM cells, by the name of their bias;
            of cells that are not in it, 1 is assumed.
    """
    sources, variables = list(sources), list(variables)
    aside, called = _set_aside(sources)
    kept = [entry for entry in sources if entry.name not in aside]
    one = [(called.get(e.name, e.name), tuple(e.shape), _type(e.dtype)) for e in kept]
    other = [(v.path, tuple(v.variable.shape), _type(v.variable.dtype)) for v in variables]
    ordered = follow_layers(one, other)
    taken = {name for line in ordered for name in (*line.source, line.target)}
    left = make_units(entry for entry in one if entry[0] not in taken)
    right = make_units(entry for entry in other if entry[0] not in taken)
    kernels = (shape for shape, _ in _kernels(right))
    judged = (
        LayoutGuess(layout, 1.0, "as given") if layout else judge_layout(_kernels(left), kernels, named=_named(kept))
    )
    fused = [any("qkv" in unit.words for unit in side) for side in (left, right)]
    if fused[0] and not fused[1]:
        left = split_qkv(left, judged.layout)
    elif fused[1] and not fused[0]:
        right = split_qkv(right, "tf")
    cells = join_cells(left, right) if judged.layout == "tf" else Cells(left, right)
    found = Lines(cells.sources, cells.targets, judged.layout, judged.sure)
    found.take(pair_units(cells.sources, cells.targets, judged.layout), 1.0)
    found.take_rest()
    found.divide(cells, forget_biases or {})
    for line in ordered:
        found.add(line)
    real = {short: name for name, short in called.items()}
    skips = [Left(name, 1.0, reason, hidden=True) for name, reason in (hidden or {}).items()]
    shapes = {entry.name: tuple(entry.shape) for entry in kept}
    return found.propose(variables, shapes, real=real, aside=[*aside.values(), *skips], layout=judged.why)


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
    names = {without_output(entry.name) for entry in entries}
    aside, called = {}, {}
    for name, shape, dtype in entries:
        short = without_output(name)
        base, _, last = short.rpartition("/")
        kind = _type(dtype)
        if COUNTER.fullmatch(short) and (not shape or short.count("/") > 1 or "OBJECT" in short):
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
