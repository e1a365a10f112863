"""Why the frost line is not there, or not higher: the operation or setting, and what would make it legal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.frostline.analysis import Analysis, Crossing
from engine.frostline.dependence import Cause
from engine.graphs.batch_shapes import SHAPES


def why_not(analysis: Analysis, chosen: Sequence[Crossing] | None) -> tuple[str, ...]:
    """Why there is no cut, or only one at the images."""
    reasons = list(lowered_by(analysis))
    if not reasons and analysis.mixing_ops():
        reasons = [_mixing_words(analysis)]
    if not reasons:
        reads = [
            op for tensor, op in analysis.wanted() if tensor is analysis.images or tensor.op.type in ("Cast", "Reshape")
        ]
        first = reads[0] if reads else next((op for _, op in analysis.wanted()), None)
        why = [c for c in (analysis.dependence.of(first) if first is not None else []) if c.kind == "trained"]
        name = f": {why[0].name} trains, and reads them" if why else ""
        if chosen is None:
            reasons = ["what trains reads the images by ways on which no tensor has one row for each example" + name]
        else:
            reasons = [
                f"nothing frozen lies between the images and what trains that is cheaper to keep than they are{name}; "
                "train fewer of the lower layers"
            ]
    return tuple(reasons)


def lowered_by(analysis: Analysis) -> tuple[str, ...]:
    """What keeps the line below where training alone would have it, a sentence each."""
    words: dict[str, list[Any]] = {}
    for tensor, op in analysis.wanted():
        if op is None or op in analysis.dependence.by_training or op.type in SHAPES:
            continue
        for cause in analysis.dependence.of(op):
            if not analysis.dependence.changes(cause):
                words.setdefault(_words(cause), []).append(tensor)
    found = []
    for text, tensors in words.items():
        path = analysis.after(tensors[0])
        where = f" (the first after {path})" if path else ""
        found.append(text.format(count=len(tensors), where=where))
    return tuple(found) + ((_mixing_words(analysis),) if found == [] and _blocked(analysis) else ())


def _blocked(analysis: Analysis) -> bool:
    """Whether a tensor that varying operations read must not cross because it mixes examples."""
    return any(tensor.op in analysis.tainted or id(tensor) in analysis.forbidden for tensor, _ in analysis.wanted())


def _mixing_words(analysis: Analysis) -> str:
    ops = analysis.mixing_ops()
    forbidden = list(analysis.forbidden.values())
    if ops:
        tensor = ops[0].inputs[0]
        what = f"{ops[0].name} ({ops[0].type}){_where(analysis, tensor)} takes what it gives from the whole batch"
    elif forbidden:
        tensor = forbidden[0]
        what = f"{tensor.op.name} ({tensor.op.type}){_where(analysis, tensor)} gave an example other values in another batch"
    else:
        return "what trains reads tensors without a row for each example"
    return f"{what}: what depends on the other examples cannot be kept (BatchNorm: run it in inference mode, `!@stats`)"


def _where(analysis: Analysis, tensor: Any) -> str:
    path = analysis.after(tensor)
    return f" after {path}" if path else ""


def _words(cause: Cause) -> str:
    if cause.kind == "input":
        return (
            "{count} operation(s) below what trains draw from the examples' seeds, which are others in every epoch{where}: "
            "dropout or drop path; without them in the frozen part the line would lie higher"
        )
    if cause.kind == "random":
        return f"{cause.name} draws random numbers of its own below what trains{{where}}; without it the line would lie higher"
    if cause.kind == "written":
        name = cause.name.replace("{", "{{").replace("}", "}}")
        what = "a random layer" if "seed_generator" in name else "state that the step itself changes"
        return (
            f"{name} is {what} below what trains{{where}}; without it, or in inference mode, the line would lie higher"
        )
    return f"{cause.name} has an effect below what trains{{where}}; it must run in every step"
