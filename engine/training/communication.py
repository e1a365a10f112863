"""What the replicas of a step will exchange, known from the selection alone: nothing is traced or run for it."""

from __future__ import annotations

import tensorflow as tf

from engine.distribution.reduction import Communication, count_vectors
from engine.selection.selection import Selection
from engine.training.precision import wide_type

# Numbers in float64 of a loss with one term and one metric, as finetune has: the sums of values and of weights of both, the
# regulariser, and whether to stop.
SCALARS = 6


def expect_communication(selection: Selection, *, scalars: int = SCALARS) -> Communication:
    """What a replica gives into the sums of a step: the gradient of each trained variable, in at least 32 bits, the statistics
    that move, and ``scalars`` numbers in float64.

    ``TrainStep.communication`` counts the same in the graph of a step. That has more where the loss has weights (one number
    for each term, in a collective of its own) or where layers keep counters or generators.
    """
    numbers = [tf.TensorSpec([scalars], tf.float64)]
    summed = [entry.variable for entry in (*selection.trained, *selection.moving)]
    return count_vectors([*numbers, *(tf.TensorSpec(each.shape, wide_type(each.dtype)) for each in summed)])
