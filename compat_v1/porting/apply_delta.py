"""A checkpoint of TensorFlow 1 with what runs trained, which the Saver of the old graph restores."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from compat_v1.checkpoints.export import export_checkpoint
from compat_v1.checkpoints.reader import open_base
from compat_v1.checkpoints.writer import Version
from compat_v1.porting.port import Weights
from compat_v1.porting.write_back import check_prefix, plan_write_back
from engine.files import PathLike
from engine.porting.deltas.merge import merge
from engine.porting.readers.frozen_file import FrozenFile
from engine.porting.rules import detect
from engine.porting.whole_file import WholeFile


@dataclass(frozen=True)
class AppliedToCheckpoint:
    """What was written: its files, a line for the base and for each delta, and how many tensors it has and what changed."""

    files: tuple[str, ...]
    texts: tuple[str, ...]
    tensors: int
    changed: tuple[str, ...]


def apply_to_checkpoint(
    base: str,
    deltas: Sequence[PathLike],
    out: pathlib.Path,
    *,
    rules: PathLike | None,
    force: bool = False,
    version: Version = "V2",
) -> AppliedToCheckpoint:
    """Writes a checkpoint under the prefix ``out``: all tensors of the base, those changed that the deltas changed.

    The base is a checkpoint, or a frozen graph, whose weights then have the names of their constants.

    Raises:
        InputError: a delta belongs to another base, a value cannot be written back by the rules, or the prefix is not one.
    """
    check_prefix(out, base, version=version)
    with open_base(base) as opened:
        if isinstance(opened, FrozenFile):
            merged = merge(opened, deltas, rules=rules, force=force)
            whole = WholeFile(opened, merged.variables, merged.rules)
            exported = export_checkpoint(whole, out, version=version)
            return AppliedToCheckpoint(exported.files, merged.texts, len(exported.written), tuple(whole.changed))
        chosen = None if rules is None else detect.get_rules(rules)
        if chosen is not None:  # what the view hides, such as slots, need not be skipped
            chosen = replace(chosen, skip=tuple(replace(line, optional=True) for line in chosen.skip))
        merged = merge(Weights(opened), deltas, rules=chosen, force=force)
    with plan_write_back(merged.variables, merged.rules, base=base) as planned:
        exported = planned.write(out, version=version)
        changed = tuple(planned.changed())
    return AppliedToCheckpoint(exported.files, merged.texts, len(exported.written) + len(exported.copied), changed)
