"""Frostline's engine: fine-tuning in TensorFlow 2 under explicit control of what moves.

The way through it: ``select`` resolves a filter against a model; ``TrainStep`` trains that selection
and nothing else; a ``FreezeProof`` shows it.
"""

from engine.selection.filters import FilterError, blocks, group, layers, parse, path
from engine.selection.selection import FreezeProof, Selection, select
from engine.selection.variables import name_variables
from engine.training.step import TrainStep, Window

__all__ = [
    "FilterError",
    "FreezeProof",
    "Selection",
    "TrainStep",
    "Window",
    "blocks",
    "group",
    "layers",
    "name_variables",
    "parse",
    "path",
    "select",
]
