"""Weights from files into models, with a ledger of what came from where."""

from engine.porting.load import Ledger, PortError, load_npz
from engine.porting.tf_checkpoint import restore_strict

__all__ = ["Ledger", "PortError", "load_npz", "restore_strict"]
