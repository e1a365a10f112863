"""Explains why there is no frost line, or why it is not higher: the operation or setting, and what would change that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.frostline.analysis import Analysis, Crossing
from engine.frostline.dependence import Cause
from engine.graphs.batch_shapes import SHAPES
from engine.graphs.tracing import find_calls
from engine.text import join_some


def explain_refusal(analysis: Analysis, chosen: Sequence[Crossing] | None) -> tuple[str, ...]:
    """Explains why there is no cut (``chosen`` is None), or only one at the images."""
    reasons = list(explain_height(analysis))
    if not reasons and analysis.find_mixing_ops():
        reasons = [_explain_mixing(analysis)]
    if not reasons:
        boundary = analysis.find_boundary()
        given = {id(tensor) for tensor in analysis.examples}
        reads = [op for tensor, op in boundary if id(tensor) in given or tensor.op.type in ("Cast", "Reshape")]
        first = reads[0] if reads else next((op for _, op in boundary), None)
        causes = analysis.dependence.find_causes(first) if first is not None else []
        trained = [cause.name for cause in causes if cause.kind == "trained"]
        if chosen is None:
            name = f": {trained[0]} trains and reads them" if trained else ""
            reasons = [f"between the images and the trained part no tensor has one row for each example{name}"]
        else:
            name = f": {trained[0]} trains and reads the images" if trained else ""
            reasons = [
                "no frozen tensor between the images and the trained part is cheaper to cache than the images "
                f"themselves{name}; train fewer of the lower layers"
            ]
    return (*reasons, *_explain_calls(analysis))


def _explain_calls(analysis: Analysis) -> tuple[str, ...]:
    """What was not looked into: functions that are compiled as a whole, or must not be inlined."""
    calls = [op.name for op in find_calls(analysis.live)]
    if not calls:
        return ()
    return (f"{join_some(calls)}: a frozen part inside such a function, compiled as a whole, was not looked for",)


def explain_height(analysis: Analysis) -> tuple[str, ...]:
    """Explains what keeps the line lower than the selection alone would, one sentence each."""
    reasons: dict[str, list[Any]] = {}
    for tensor, op in analysis.find_boundary():
        if op is None or op in analysis.dependence.by_training or op.type in SHAPES:
            continue
        for cause in analysis.dependence.find_causes(op):
            if not analysis.dependence.is_training(cause):
                reasons.setdefault(_explain_cause(cause), []).append(tensor)
    found = []
    for text, tensors in reasons.items():
        path = analysis.last_variable(tensors[0])
        where = f" (the first after {path})" if path else ""
        found.append(text.format(count=len(tensors), where=where))
    return tuple(found) + ((_explain_mixing(analysis),) if found == [] and _is_blocked(analysis) else ())


def _is_blocked(analysis: Analysis) -> bool:
    """Whether a tensor that varying operations read must not cross because it mixes examples."""
    return any(
        tensor.op in analysis.tainted or id(tensor) in analysis.forbidden for tensor, _ in analysis.find_boundary()
    )


def _explain_mixing(analysis: Analysis) -> str:
    forbidden = list(analysis.forbidden.values())
    if ops := analysis.find_mixing_ops():
        where = _where(analysis, ops[0].inputs[0])
        what = f"{ops[0].name} ({ops[0].type}){where} computes its output from the whole batch"
    elif forbidden:
        op = forbidden[0].op
        what = f"{op.name} ({op.type}){_where(analysis, forbidden[0])} had other values for the same example in another batch"
    else:
        return "the trained part reads tensors that do not have one row for each example"
    return (
        f"{what}: values that depend on the other examples of a batch cannot be cached (run BatchNorm in inference mode: "
        "`!@stats`)"
    )


def _where(analysis: Analysis, tensor: Any) -> str:
    path = analysis.last_variable(tensor)
    return f" after {path}" if path else ""


def _explain_cause(cause: Cause) -> str:
    """A sentence with the fields ``count`` and ``where``."""
    if cause.kind == "input":
        return (
            "{count} operation(s) below the trained part draw from the examples' seeds, which differ in every epoch{where}: "
            "dropout or drop path; without them in the frozen part the line would be higher"
        )
    if cause.kind == "random":
        return f"{cause.name} draws its own random numbers below the trained part{{where}}; without it the line would be higher"
    if cause.kind == "written":
        name = cause.name.replace("{", "{{").replace("}", "}}")
        what = "a random layer" if "seed_generator" in name else "state that the step itself changes"
        return f"{name} is {what} below the trained part{{where}}; without it, or in inference mode, the line would be higher"
    return f"{cause.name} has an effect below the trained part{{where}}, so it must run in every step"
