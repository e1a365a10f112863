"""Frostline's engine: fine-tuning in TensorFlow 2 under explicit control of which variables train.

``select`` resolves a filter against a model, ``TrainStep`` trains that selection and nothing else, and a ``FreezeProof``
shows that the rest did not change. ``finetune`` does a whole job; ``Task`` opens its data, model, weights and loss.

Each name is imported when it is first used (PEP 562): ``import engine`` alone does not import TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.audit.graph_audit import audit_graph as audit_graph
    from engine.audit.training_audit import audit_step as audit_step
    from engine.data.source import open_data as open_data
    from engine.errors import InputError as InputError
    from engine.export.run import export_savedmodel as export_savedmodel
    from engine.models.registry import build_model as build_model
    from engine.models.weights import load_weights as load_weights
    from engine.recipes.apply_delta import apply_delta as apply_delta
    from engine.recipes.config import FinetuneConfig as FinetuneConfig
    from engine.recipes.finetune import finetune as finetune
    from engine.recipes.task import Task as Task
    from engine.selection.filters import (
        Filter as Filter,
        FilterError as FilterError,
        blocks as blocks,
        group as group,
        layers as layers,
        parse_filter as parse_filter,
        path as path,
    )
    from engine.selection.proof import FreezeProof as FreezeProof
    from engine.selection.selection import Selection as Selection, select as select
    from engine.training.losses import Loss as Loss, supervised_loss as supervised_loss
    from engine.training.optimizers import (
        SGD as SGD,
        Adadelta as Adadelta,
        Adagrad as Adagrad,
        Adam as Adam,
        AdamW as AdamW,
        Ftrl as Ftrl,
        Momentum as Momentum,
        RMSProp as RMSProp,
    )
    from engine.training.precision import LossScale as LossScale
    from engine.training.rates import parse_rates as parse_rates
    from engine.training.step import TrainStep as TrainStep
    from engine.training.step_result import StepResult as StepResult

_HOMES = {
    "engine.audit.graph_audit": ("audit_graph",),
    "engine.audit.training_audit": ("audit_step",),
    "engine.data.source": ("open_data",),
    "engine.errors": ("InputError",),
    "engine.export.run": ("export_savedmodel",),
    "engine.models.registry": ("build_model",),
    "engine.models.weights": ("load_weights",),
    "engine.recipes.apply_delta": ("apply_delta",),
    "engine.recipes.config": ("FinetuneConfig",),
    "engine.recipes.finetune": ("finetune",),
    "engine.recipes.task": ("Task",),
    "engine.selection.filters": ("Filter", "FilterError", "blocks", "group", "layers", "parse_filter", "path"),
    "engine.selection.proof": ("FreezeProof",),
    "engine.selection.selection": ("Selection", "select"),
    "engine.training.losses": ("Loss", "supervised_loss"),
    "engine.training.optimizers": ("SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Ftrl", "Momentum", "RMSProp"),
    "engine.training.precision": ("LossScale",),
    "engine.training.rates": ("parse_rates",),
    "engine.training.step": ("TrainStep",),
    "engine.training.step_result": ("StepResult",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__version__ = "0.2.0.dev0"  # the one place; pyproject.toml reads it here
__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "testing":  # the test kits of the contracts, a package
        return importlib.import_module("engine.testing")
    if name not in _HOME:
        from engine.text import nearest

        raise AttributeError(f"module 'engine' has no attribute {name!r}{nearest(name, __all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
