"""Test kits: each runs an implementation of a contract through what the engine relies on, and says what it breaks.

Use them in a test of your own source, model, loss, metric, optimizer or schedule (docs/extending.md). Each returns nothing, or
raises ContractError, which is an AssertionError and an InputError.
"""

from engine.testing.contract import ContractError
from engine.testing.losses import check_loss
from engine.testing.metrics import check_metric
from engine.testing.models import check_model
from engine.testing.rules import check_optimizer, check_schedule
from engine.testing.sources import check_source

__all__ = [
    "ContractError",
    "check_loss",
    "check_metric",
    "check_model",
    "check_optimizer",
    "check_schedule",
    "check_source",
]
