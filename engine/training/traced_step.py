"""A compiled step: what a call of it needs, and its graph, with names for the variables behind its inputs, for analysis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from engine.selection.selection import Selection
from engine.training.microbatch import MicroBatch
from engine.training.optimizers import Optimizer
from engine.training.step_batch import StepBatch


class PreparedStep(NamedTuple):
    """A call of a step that is about to run.

    Attributes:
        function, arguments: the compiled function, and what it is called with; nested structures.
        inner: the concrete function that XLA may compile.
        scale: the loss scale.
    """

    selection: Selection
    batch: StepBatch
    function: Any
    inner: Any
    arguments: tuple[Any, ...]
    scale: float
    stopping: bool


@dataclass(frozen=True, eq=False)
class TracedStep:
    """A compiled step as a graph, for analysis, with the micro-batch from which it was built.

    ``handles`` names the variable behind each input of the graph that is a handle: a path of the model, or
    ``optimizer/<path>/<slot>`` or ``ema/<path>`` as in checkpoints.
    """

    graph: Any
    handles: Mapping[str, str]
    micro_batch: MicroBatch


def name_handles(
    graph: Any, selection: Selection, optimizer: Optimizer, *, arrays: int, averaged: bool
) -> dict[str, str]:
    """The variables behind the handles among the inputs of a step's graph, whose batch has this number of ``arrays``."""
    first = arrays + 2  # after the batch, the learning rate and the loss scale
    names = [f"optimizer/{e.path}/{slot}" for e in selection.trained for slot in optimizer.slots]
    handles = dict(zip((tensor.op.name for tensor in graph.inputs[first:]), names, strict=False))
    if averaged:
        inputs = graph.inputs[first + len(names) + 1 :]
        paths = [f"ema/{entry.path}" for entry in selection.trained]
        handles |= dict(zip((tensor.op.name for tensor in inputs), paths, strict=False))
    own = {id(entry.variable.handle): entry.path for entry in selection.variables}
    return handles | {inner.op.name: own[id(outer)] for outer, inner in graph.captures if id(outer) in own}
