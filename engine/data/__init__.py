"""Data: indexed sources, stateless order, augmentation by example, batches by window."""

from engine.data.batches import EvalBatches, Normalise, TrainBatches
from engine.data.source import DataError, Part, Source, open_source

__all__ = ["DataError", "EvalBatches", "Normalise", "Part", "Source", "TrainBatches", "open_source"]
