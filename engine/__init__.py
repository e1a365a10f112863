"""Frostline's engine: fine-tuning in TensorFlow 2 under explicit control of what moves.

The way through it: ``select`` resolves a filter against a model; ``TrainStep`` trains that selection
and nothing else; a ``FreezeProof`` shows it. ``Task`` and ``finetune`` do the whole job.

Names are imported when they are first used (PEP 562), so ``import engine`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.data.source import open_data as open_data
    from engine.errors import InputError as InputError
    from engine.models.registry import build_model as build_model
    from engine.selection.filters import (
        Filter as Filter,
    )
    from engine.selection.filters import (
        FilterError as FilterError,
    )
    from engine.selection.filters import (
        blocks as blocks,
    )
    from engine.selection.filters import (
        group as group,
    )
    from engine.selection.filters import (
        layers as layers,
    )
    from engine.selection.filters import (
        parse_filter as parse_filter,
    )
    from engine.selection.filters import (
        path as path,
    )
    from engine.selection.proof import FreezeProof as FreezeProof
    from engine.selection.selection import Selection as Selection
    from engine.selection.selection import select as select
    from engine.training.losses import Loss as Loss
    from engine.training.losses import supervised_loss as supervised_loss
    from engine.training.optimizers import SGD as SGD
    from engine.training.optimizers import Adam as Adam
    from engine.training.optimizers import AdamW as AdamW
    from engine.training.optimizers import Momentum as Momentum
    from engine.training.precision import LossScale as LossScale
    from engine.training.step import StepResult as StepResult
    from engine.training.step import TrainStep as TrainStep

_HOMES = {
    "engine.data.source": ("open_data",),
    "engine.errors": ("InputError",),
    "engine.models.registry": ("build_model",),
    "engine.selection.filters": ("Filter", "FilterError", "blocks", "group", "layers", "parse_filter", "path"),
    "engine.selection.proof": ("FreezeProof",),
    "engine.selection.selection": ("Selection", "select"),
    "engine.training.losses": ("Loss", "supervised_loss"),
    "engine.training.optimizers": ("SGD", "Adam", "AdamW", "Momentum"),
    "engine.training.precision": ("LossScale",),
    "engine.training.step": ("StepResult", "TrainStep"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__version__ = "0.2.0.dev0"
__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
