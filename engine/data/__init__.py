"""Data: indexed sources, a stateless order, augmentation per example, and batches by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.lazy import import_lazily

if TYPE_CHECKING:
    from engine.data.batches import EvalBatches as EvalBatches
    from engine.data.batches import Normalise as Normalise
    from engine.data.batches import TrainBatches as TrainBatches
    from engine.data.part import DataError as DataError
    from engine.data.part import Part as Part
    from engine.data.part import Source as Source
    from engine.data.resize import check_image_size as check_image_size
    from engine.data.resize import parse_image_size as parse_image_size
    from engine.data.source import IMAGE_CACHE as IMAGE_CACHE
    from engine.data.source import open_data as open_data
else:
    __getattr__, __all__ = import_lazily(
        __name__,
        {
            "batches": ("EvalBatches", "Normalise", "TrainBatches"),
            "part": ("DataError", "Part", "Source"),
            "resize": (
                "check_image_size",
                "parse_image_size",
            ),
            "source": ("IMAGE_CACHE", "open_data"),
        },
    )
