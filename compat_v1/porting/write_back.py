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
from compat_v1.checkpoints.reader import open_base
from compat_v1.checkpoints.replace import check_form
from compat_v1.checkpoints.writer import Version
from compat_v1.graphs import metagraph, saver_keys
from compat_v1.porting.slots_back import export_slots
from engine.errors import InputError
from engine.files import PathLike, write_json
from engine.porting import open_tensors
from engine.porting.frozen_writer import SUFFIXES, check_frozen_target, write_frozen
from engine.porting.plan import take_names
from engine.porting.readers.frozen_file import FrozenFile
from engine.porting.readers.locate import locate
from engine.porting.reverse import KnownShapes, Reverse
from engine.porting.rules.language import Rules
from engine.selection.variables import name_variables


@dataclass(frozen=True)
class WriteBack:
    """The tensors of a model under the names of its old checkpoint: ``engine.porting.outward.Values``.

    ``left_out`` is variable or slot -> the reason why the checkpoint has no place for it. ``base`` is the prefix of the
    old checkpoint, or None. ``frozen`` is the base if it is a frozen graph.
    """

    reverse: Reverse
    slots: Mapping[str, np.ndarray]
    left_out: Mapping[str, str]
    base: str | None
    frozen: FrozenFile | None = None

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
        checkpoint. A frozen graph is written as such if ``prefix`` ends in .pb or .pbtxt; otherwise its weights become a checkpoint, under
        their names.
        """
        if self.frozen is not None:
            return _write_frozen(self, self.frozen, prefix, version)
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
    with contextlib.nullcontext() if base is None else open_base(base) as opened:
        if opened is not None:
            opened = take_names(opened, variables, rules) if isinstance(opened, FrozenFile) else opened
        known = KnownShapes.from_rules(variables, rules) if opened is None else opened
        reverse = Reverse(network, rules, known, grid=getattr(network, "grid", None))
        values: dict[str, Any] = {}
        left: dict[str, str] = {}
        if slots is not None:
            held = None if opened is None else group_families(opened)
            with open_tensors(slots) as source:
                values, left = export_slots(variables, rules, source, opened, held, betas=betas)
        frozen = opened if isinstance(opened, FrozenFile) else None
        yield WriteBack(reverse, {} if frozen is not None else values, dict(reverse.left_out) | left, base, frozen)


def _write_frozen(made: WriteBack, frozen: FrozenFile, path: pathlib.Path, version: Version) -> Exported:
    """Writes a frozen graph with a model's weights, or all of its weights as a checkpoint."""
    names = made.reverse.names()
    rest = [name for name in frozen.names() if name not in set(names)]
    if path.suffix in SUFFIXES:
        written = write_frozen(path, frozen, made.reverse)
        return Exported((written.file,), tuple(names), tuple(rest))
    arrays = {name: frozen.read(name) for name in rest} | {name: made.reverse.read(name) for name in names}
    exported = export_checkpoint(arrays, path, version=version)
    return Exported(exported.files, tuple(names), tuple(rest))


def check_prefix(prefix: pathlib.Path, base: str | None, *, version: Version = "V2") -> None:
    """Raises InputError if a prefix is not the name of a new checkpoint, is the base itself, or cannot be replaced.

    With a frozen graph as the base, it may also be the name of another.
    """
    if prefix.suffix in SUFFIXES and base is not None and pathlib.Path(base).suffix in SUFFIXES:
        with open_base(base) as opened:
            if isinstance(opened, FrozenFile):
                check_frozen_target(prefix, opened)
        return
    check_form(str(prefix), version=version)
    if str(prefix).endswith((".npz", ".h5", ".index", *SUFFIXES)):
        raise InputError(f"out='{prefix}': expected the prefix of a checkpoint, such as model.ckpt")
    found = None if base is None else locate(base)
    if found is not None and pathlib.Path(found.prefix).resolve() == prefix.resolve():
        raise InputError(f"out='{prefix}' is the base itself; choose another prefix")
