"""Loads weights from files into models by rules, and keeps a ledger of what came from where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.lazy import import_lazily

if TYPE_CHECKING:
    from engine.porting.apply import load as load
    from engine.porting.errors import PortError as PortError
    from engine.porting.ledger import Ledger as Ledger
    from engine.porting.ledger import Loaded as Loaded
    from engine.porting.ledger import Skipped as Skipped
    from engine.porting.readers.source import TensorSource as TensorSource
    from engine.porting.readers.source import open_tensors as open_tensors
    from engine.porting.rules.language import Rules as Rules
    from engine.porting.slots import continue_from as continue_from
    from engine.porting.tf_checkpoint import restore_strict as restore_strict
else:
    __getattr__, __all__ = import_lazily(
        __name__,
        {
            "apply": ("load",),
            "errors": ("PortError",),
            "ledger": ("Ledger", "Loaded", "Skipped"),
            "readers.source": ("TensorSource", "open_tensors"),
            "rules.language": ("Rules",),
            "slots": ("continue_from",),
            "tf_checkpoint": ("restore_strict",),
        },
    )
