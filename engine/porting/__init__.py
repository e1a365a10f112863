"""Weights from files into models, by rules, with a ledger of what came from where."""

from engine.porting.apply import load
from engine.porting.errors import PortError
from engine.porting.ledger import Ledger, Loaded, Skipped
from engine.porting.readers.source import TensorSource, open_tensors
from engine.porting.rules.language import Rules
from engine.porting.slots import continue_from
from engine.porting.tf_checkpoint import restore_strict

__all__ = [
    "Ledger",
    "Loaded",
    "PortError",
    "Rules",
    "Skipped",
    "TensorSource",
    "continue_from",
    "load",
    "open_tensors",
    "restore_strict",
]
