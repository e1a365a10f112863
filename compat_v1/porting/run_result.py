"""Loads what a run trained into its model: from a delta and the file that has the rest, or from whole weights."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from compat_v1.checkpoints.reader import open_base
from compat_v1.porting.port import Weights, plan_port
from engine.files import FileError, Npz, PathLike
from engine.porting import TensorSource, open_tensors
from engine.porting.apply import read_values
from engine.porting.deltas.onto import check_base
from engine.porting.deltas.record import read_record
from engine.porting.errors import PortError
from engine.porting.plan import Assignment, Plan, build_plan
from engine.porting.rules import detect
from engine.porting.rules.language import Rules
from engine.selection.variables import name_variables
from engine.text import join_some
from engine.training.checkpoint_names import describe_whole_files, list_checkpoints


def load_result(network: Any, source: PathLike, *, rules: Rules, base: str | None, force_base: bool = False) -> str:
    """Loads every variable of a network from a run's ``trained.npz``, a checkpoint or other weights; says what it did.

    A delta has only what the run trained. The rest is read from a checkpoint of the same run, in which it is as the run
    had it, if the file lies in a run directory; otherwise from ``base``, the old checkpoint, by the ``rules`` that ported
    it. Nothing keeps its initial value, unless ``rules`` say that the old checkpoint has no place for it. The rest must be
    what the delta belongs to (engine.porting.deltas), as far as the delta says so, unless ``force_base`` is True.

    Raises:
        PortError: the file is not of this model, the rest is nowhere to be found, or it is not the base of the delta.
    """
    path, variables = pathlib.Path(source), name_variables(network)
    grid = getattr(network, "grid", None)
    try:
        with open_tensors(path) as file:
            plan = build_plan(variables, file, detect.get_rules("frostline"), grid=grid)
            _check(plan, file)
            known = {made.entry.path for made in plan.assignments}
            placeless = [line.pattern for line in rules.fresh]
            rest = [
                entry.path
                for entry in variables
                if entry.path not in known and not any(p.fullmatch(name) for p in placeless for name in entry.paths)
            ]
            said = f"{len(known)} variables"
            if rest:
                with _open_rest(path, base, len(known), rest) as other:
                    if isinstance(other, Weights):
                        found = plan_port(other, variables, rules, grid=grid).plan
                    else:
                        found = build_plan(variables, other, detect.get_rules("frostline"), grid=grid)
                    chosen = [made for made in found.assignments if made.entry.path in rest]
                    if len(chosen) < len(rest):
                        lacking = sorted(set(rest) - {made.entry.path for made in chosen})
                        raise PortError(f"{path}: neither it nor {other.path} has {join_some(lacking)}")
                    _assign(chosen, other)
                    record = read_record(file) if isinstance(file, Npz) else None
                    if record is not None and not force_base:
                        left = {entry.path for entry in variables} - known - set(rest)
                        given: Any = {"held": known, "base": str(other.path), "ignore": left, "cast": True}
                        check_base(path, record, variables, **given)
                    said += f"; the other {len(rest)} from {other.path}"
            _assign(plan.assignments, file)
    except FileError as error:
        raise PortError(str(error)) from None
    variables.refresh()
    return said


def _check(plan: Plan, file: TensorSource) -> None:
    """Raises PortError if a tensor of the file is not of this model; one that the file lacks is not an error here."""
    other = [f"{path}: {why}" for path, why in plan.fresh.items() if why != "not in the file"]
    if other:
        raise PortError(
            f"{file.path}: the file does not fit the model: {join_some(other)}; the option classes=N of --target sets the "
            "number of outputs"
        )
    if plan.unused or plan.wrong:
        plan.check(file, detect.get_rules("frostline"))


@contextlib.contextmanager
def _open_rest(path: pathlib.Path, base: str | None, known: int, rest: Sequence[str]) -> Iterator[TensorSource]:
    """Opens the file that has what a delta lacks."""
    checkpoints = list_checkpoints(path.parent / "checkpoints")
    if checkpoints:
        with open_tensors(checkpoints[0]) as file:
            yield file
    elif base is not None:
        with open_base(base) as opened:
            yield Weights(opened)
    else:
        raise PortError(
            f"{path}: it holds only {known} variables of the model, as what a run trained does, and lacks {len(rest)} "
            f"({join_some(rest, most=3)}); --base=CHECKPOINT, the old checkpoint, has the rest, or give a checkpoint of the "
            f"run as --source ({describe_whole_files(path.parent)})"
        )


def _assign(assignments: Sequence[Assignment], source: TensorSource) -> None:
    for assignment, array in read_values(assignments, source):
        assignment.entry.variable.assign(tf.constant(array))
