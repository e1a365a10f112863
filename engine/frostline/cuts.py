"""Cuts a training step, and an evaluation, at the frost line.

A step is traced whole first and cut afterwards. After a cut, the same ``TrainStep`` trains on batches that
``FrostLine.below`` made, and the same ``Evaluator`` evaluates them: the part below the line is not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.frostline.line import FrostLine, Refused, cut_micro_batch
from engine.graphs.tracing import batch_tensors, calls_functions
from engine.selection.selection import Selection
from engine.training.evaluation import Evaluator
from engine.training.step import TrainStep


def cut_step(
    step: TrainStep, selection: Selection, batch: Mapping[str, Any], *, most_bytes: int | None = None
) -> FrostLine | Refused:
    """Cuts a step for a selection at its frost line; batches that ``FrostLine.below`` made train the part above.

    Args:
        step: the step that trains; it keeps what is above the line beside the whole.
        selection: what trains.
        batch: any batch with "image", as the step takes it.
        most_bytes: the most bytes that may cross the line for one example; None sets no limit.

    Returns:
        The line; or why there is none.
    """
    micro = step.micro_batch(selection, batch)
    if calls_functions(micro.graph):
        micro = step.micro_batch(selection, batch, inline=True)
    line = cut_micro_batch(micro, selection, most_bytes=most_bytes)
    if isinstance(line, FrostLine):
        step.use_micro_batch(selection, line.specs(step.tensors(batch)), line.suffix)
    return line


def cut_evaluation(
    evaluator: Evaluator, selection: Selection, line: FrostLine, batch: Mapping[str, Any]
) -> Refused | None:
    """Cuts an evaluation at a training step's frost line; batches that ``line.below`` made evaluate the part above.

    Args:
        evaluator: of the same loss.
        selection: the selection that the line is for.
        line: where to cut.
        batch: any batch with images.

    Returns:
        None; or why it cannot be cut there: the frozen part computes something else in inference mode.
    """
    traced = evaluator.traced(selection, batch)
    if calls_functions(traced.function.graph):
        traced = evaluator.traced(selection, batch, inline=True)
    above = line.cut(traced.function)
    if isinstance(above, Refused):
        return above
    evaluator.use_traced(selection, line.specs(batch_tensors(batch)), traced._replace(function=above))
    return None
