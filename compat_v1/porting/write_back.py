"""Writes a model's weights and optimizer slots into a checkpoint that the old graph's own Saver restores."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compat_v1.checkpoints.export import Exported, export_checkpoint
from compat_v1.checkpoints.families import group_families
from compat_v1.checkpoints.reader import open_checkpoint
from compat_v1.checkpoints.replace import check_form
from compat_v1.checkpoints.writer import Version
from compat_v1.graphs import metagraph, saver_keys
from compat_v1.porting.slots_back import export_slots
from engine.errors import InputError
from engine.files import PathLike, write_json
from engine.porting import open_tensors
from engine.porting.readers.locate import locate
from engine.porting.reverse import KnownShapes, Reverse
from engine.porting.rules.language import Rules
from engine.selection.variables import name_variables


@dataclass(frozen=True)
class WriteBack:
    """The tensors of a model under the names of its old checkpoint: ``compat_v1.checkpoints.export.Values``.

    ``left_out`` is variable or slot -> the reason why the checkpoint has no place for it. ``base`` is the prefix of the
    old checkpoint, or None.
    """

    reverse: Reverse
    slots: Mapping[str, np.ndarray]
    left_out: Mapping[str, str]
    base: str | None

    def names(self) -> list[str]:
        return [*self.reverse.names(), *self.slots]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.slots[name].shape if name in self.slots else self.reverse.shape(name)

    def dtype(self, name: str) -> np.dtype[Any]:
        return self.slots[name].dtype if name in self.slots else self.reverse.dtype(name)

    def read(self, name: str) -> np.ndarray:
        return self.slots[name] if name in self.slots else self.reverse.read(name)

    def write(
        self,
        prefix: pathlib.Path,
        *,
        graph: str | None = None,
        tags: Collection[str] | None = None,
        version: Version = "V2",
    ) -> Exported:
        """Writes the checkpoint; without a change, each tensor keeps the bits that it has in the base.

        Every key that the Saver of the old graph (.meta, or a SavedModel with these tags) restores must be in the
        checkpoint.
        """
        wanted = []
        if graph is not None:
            wanted = saver_keys.list_wanted(metagraph.read_metagraph(graph, tags=tags).definition)
        return export_checkpoint(self, prefix, base=self.base, wanted=wanted, version=version)

    def changed(self) -> list[str]:
        """Returns the tensors whose values differ from the base's, once the checkpoint is written."""
        return list(self.reverse.changed if self.base is not None else self.reverse.names())

    def write_ledger(self, path: PathLike, exported: Exported, *, source: str, target: str, rules: Rules) -> None:
        """Writes a JSON file that says what became of every tensor."""
        ledger = {
            "source": source,
            "target": target,
            "rules": rules.name,
            "base": self.base,
            "written": list(exported.written),
            "changed": self.changed(),
            "copied": list(exported.copied),
            "left_out": dict(self.left_out),
            "slots": list(self.slots),
        }
        write_json(path, ledger)


@contextlib.contextmanager
def plan_write_back(
    network: Any,
    rules: Rules,
    *,
    base: str | None = None,
    slots: str | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Iterator[WriteBack]:
    """Within this scope, a model's weights can be written into a checkpoint by the rules that ported them.

    What did not change, and what no rule touches, is copied from ``base``, the old checkpoint, if there is one.
    ``slots`` is an .npz file with optimizer slots, or None; ``betas`` are of the Adam that computed them. Raises
    PortError if the rules do not fit the model and the base.
    """
    variables = name_variables(network)
    with contextlib.nullcontext() if base is None else open_checkpoint(base) as opened:
        known = KnownShapes.from_rules(variables, rules) if opened is None else opened
        reverse = Reverse(network, rules, known, grid=getattr(network, "grid", None))
        values: dict[str, Any] = {}
        left: dict[str, str] = {}
        if slots is not None:
            held = None if opened is None else group_families(opened)
            with open_tensors(slots) as source:
                values, left = export_slots(variables, rules, source, opened, held, betas=betas)
        yield WriteBack(reverse, values, dict(reverse.left_out) | left, base)


def check_prefix(prefix: pathlib.Path, base: str | None, *, version: Version = "V2") -> None:
    """Raises InputError if a prefix is not the name of a new checkpoint, is the base itself, or cannot be replaced."""
    check_form(str(prefix), version=version)
    if str(prefix).endswith((".npz", ".h5", ".index")):
        raise InputError(f"out='{prefix}': expected the prefix of a checkpoint, such as model.ckpt")
    found = None if base is None else locate(base)
    if found is not None and pathlib.Path(found.prefix).resolve() == prefix.resolve():
        raise InputError(f"out='{prefix}' is the base itself; choose another prefix")
