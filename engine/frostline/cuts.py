"""Cuts a training step, and an evaluation, at the frost line.

A step is traced as a whole first and cut afterwards. After a cut, the same ``TrainStep`` trains on batches from
``FrostLine.replace_images``, and the same ``Evaluator`` evaluates them: the part below the line is not run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from engine import part_times
from engine.data.batch_names import list_inputs
from engine.frostline.analysis import Analysis
from engine.frostline.line import FrostLine, Refused
from engine.frostline.search import find_cut
from engine.frostline.traced import TracedFunction
from engine.graphs.inlining import inline_calls
from engine.graphs.tracing import batch_tensors, calls_functions
from engine.selection.selection import Selection
from engine.training.evaluation import Evaluator
from engine.training.microbatch import MicroBatch
from engine.training.step import TrainStep


@part_times.part("frost line")
def cut_step(
    step: TrainStep, selection: Selection, batch: Mapping[str, Any], *, most_bytes: int | None = None
) -> FrostLine | Refused:
    """Cuts a step at its frost line for a selection; it then also trains on batches without images.

    ``batch`` is any batch with the model's inputs (engine.data.batch_names), as the step takes it. ``most_bytes`` limits the bytes that may cross the line per
    example. The step keeps the suffix in addition to the whole step. Returns the line; or the reasons why there is none.
    """
    micro = step.micro_batch(selection, batch)
    if calls_functions(micro.graph):
        micro = step.micro_batch(selection, batch, inline=True)
    if calls_functions(micro.graph):
        micro = _without_calls(micro)
    line = cut_micro_batch(micro, selection, most_bytes=most_bytes)
    if isinstance(line, FrostLine):
        step.use_micro_batch(selection, line.specs(step.tensors(batch)), line.suffix)
    return line


def cut_micro_batch(
    micro: MicroBatch, selection: Selection, *, inputs: Sequence[str] | None = None, most_bytes: int | None = None
) -> FrostLine | Refused:
    """Finds the frost line of a micro-batch that was traced for a selection, and cuts it there.

    ``inputs`` are the names of the model's inputs; None means all that are not labels, weights or seeds. What else is in a
    batch is varying. AnalysisError is raised if there is none of such a name. Under a limit on bytes,
    cheaper cuts are tried, down to the one with the fewest bytes.
    """
    traced = TracedFunction(micro.function)
    analysis = Analysis(
        traced, selection, list_inputs(traced.inputs) if inputs is None else inputs, shapes=micro.shapes
    )
    found = find_cut(analysis, most_bytes=most_bytes)
    return found if isinstance(found, Refused) else FrostLine(found, micro)


@part_times.part("frost line")
def cut_evaluation(
    evaluator: Evaluator, selection: Selection, line: FrostLine, batch: Mapping[str, Any]
) -> Refused | None:
    """Cuts an evaluation of the same loss at the frost line of a training step; it then also takes batches without images.

    ``batch`` is any batch with images. Returns None; or the reasons why it cannot be cut there: the frozen part computes
    something else in inference mode.
    """
    traced = evaluator.traced(selection, batch)
    if calls_functions(traced.function.graph):
        traced = evaluator.traced(selection, batch, inline=True)
    whole = traced.function
    if calls_functions(whole.graph):  # those of a SavedModel cannot be inlined while tracing
        whole = inline_calls(whole).function
    above = line.cut_function(whole)
    if isinstance(above, Refused):
        return above
    evaluator.use_traced(selection, line.specs(batch_tensors(batch)), traced._replace(function=above, norms=None))
    return None


def _without_calls(micro: MicroBatch) -> MicroBatch:
    """The micro-batch with its calls replaced by what they do."""
    found = inline_calls(micro.function)
    return dataclasses.replace(
        micro,
        function=found.function,
        weights={n: None if weight is None else found.find_tensor(weight) for n, weight in micro.weights.items()},
        forward=found.find_copies(micro.forward),
        backward=found.find_copies(micro.backward),
    )
