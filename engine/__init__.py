"""Frostline's engine: fine-tuning in TensorFlow 2 under explicit control of what moves.

The way through it: ``select`` resolves a filter against a model; ``TrainStep`` trains that selection
and nothing else; a ``FreezeProof`` shows it.
"""

from engine.selection.filters import FilterError, blocks, group, layers, parse_filter, path
from engine.selection.selection import FreezeProof, Selection, select
from engine.selection.variables import name_variables
from engine.training.step import StepResult, TrainStep

__all__ = [
    "FilterError",
    "FreezeProof",
    "Selection",
    "StepResult",
    "TrainStep",
    "blocks",
    "group",
    "layers",
    "name_variables",
    "parse_filter",
    "path",
    "select",
]
