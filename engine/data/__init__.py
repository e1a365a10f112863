"""Data: indexed sources, stateless order, augmentation by example, batches by step."""

from engine.data.batches import EvalBatches, Normalise, TrainBatches
from engine.data.part import DataError, Part, Source
from engine.data.resize import parse_image_size
from engine.data.source import IMAGE_CACHE, open_data

__all__ = [
    "IMAGE_CACHE",
    "DataError",
    "EvalBatches",
    "Normalise",
    "Part",
    "Source",
    "TrainBatches",
    "open_data",
    "parse_image_size",
]
