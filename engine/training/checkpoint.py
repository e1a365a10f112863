"""Checkpoints: the whole state of a run in one file each, written atomically and verified by digests.

``checkpoints/step-00000120.npz`` holds every variable under its path (so it is also a weights file), optimizer slots
under ``optimizer/<path>/<slot>``, averages under ``ema/<path>``, weights that ``--auto_freeze`` compares with under
``auto_freeze/<path>``, and a text member ``state.json``. If the newest
checkpoint is damaged, a warning names it and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.data.class_names import Names, as_texts
from engine.digests import digest
from engine.errors import InputError
from engine.files import Npz, PathLike, write_npz
from engine.selection.variables import ModelVariables
from engine.training.auto_freeze import ARRAYS, AutoFreezeState
from engine.training.checkpoint_names import list_checkpoints as list_checkpoints
from engine.training.loop import State

_FORMAT = 2  # format 1, of Frostline 0.1, had other keys in its state


class CheckpointError(InputError):
    """A checkpoint is damaged, of another format, or does not fit the model."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read and verified; ``state`` is what the run saved besides arrays."""

    path: pathlib.Path
    step: int
    state: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of a run, besides arrays, in its checkpoints.

    Attributes:
        settings: the settings that decide the course of the run, by name; a resume must not contradict them.
        loop: the state of the loop.
        step: the state of the step (``TrainStep.state``).
        plan: how steps are computed (``engine.memory.planner.Plan.to_json``); a resume follows it.
        computing: the device, XLA and the precision (``engine.recipes.computing``); empty if the run did not record them.
        images: the preprocessing that the run's first weights expect; None for that of the model.
        cache: for each phase, whether it trains from cached features; None if the run did not record it.
        since_line: sums of the metrics since the last line of metrics.jsonl (``engine.runs.step_means``).
        auto_freeze: what --auto_freeze has measured and decided; None without it.
    """

    settings: Mapping[str, Any]
    loop: State
    step: Mapping[str, Any]
    plan: Mapping[str, Any]
    images: str | None
    cache: Sequence[bool] | None
    since_line: Mapping[str, Any] = field(default_factory=dict)
    computing: Mapping[str, Any] = field(default_factory=dict)
    auto_freeze: AutoFreezeState | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the content of a checkpoint's ``state``."""
        return {
            "settings": dict(self.settings),
            "loop": self.loop.to_json(),
            "step": dict(self.step),
            "decided": {
                "plan": dict(self.plan),
                "images": self.images,
                "cache": self.cache,
                "computing": dict(self.computing),
            },
            "since_line": dict(self.since_line),
            **({} if self.auto_freeze is None else {"auto_freeze": self.auto_freeze.to_json()}),
        }

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the names and values of the arrays that the state has."""
        if self.auto_freeze is not None:
            yield from self.auto_freeze.arrays()

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> RunState:
        """Reads the state that a run has saved in a checkpoint; raises CheckpointError if no run has saved it."""
        try:
            state, decided = checkpoint.state, checkpoint.state["decided"]
            freezing = state.get("auto_freeze")
            return cls(
                settings=state["settings"],
                loop=State.from_json(state["loop"]),
                step=state["step"],
                plan=decided["plan"],
                images=decided["images"],
                cache=decided.get("cache"),
                since_line=state.get("since_line", {}),
                computing=decided.get("computing", {}),
                auto_freeze=None if freezing is None else AutoFreezeState.from_json(freezing, checkpoint.arrays),
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{checkpoint.path}: does not hold the state of a run ({error!r})") from None


def save(
    folder: PathLike,
    step: int,
    *,
    variables: ModelVariables,
    arrays: Callable[[], Iterable[tuple[str, np.ndarray]]],
    state: Mapping[str, Any],
    name: str | None = None,
    class_names: Names | None = None,
) -> pathlib.Path:
    """Writes ``step-N.npz`` (or ``name``) into a folder, which is created if necessary, and returns its path.

    ``arrays`` returns the (name, array) pairs to save besides the variables, as ``TrainStep.arrays`` does; ``state`` is
    further state, as JSON values. ``class_names`` are kept for those who use the file as weights.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def everything() -> Iterator[tuple[str, np.ndarray]]:  # one at a time: together they may not fit into memory
        for entry in variables:
            yield entry.path, entry.variable.numpy()
        for name, variable in variables.bookkeeping.items():
            yield name, variable.numpy()
        yield from arrays()

    digests = {key: digest(key, array) for key, array in everything()}
    body = {"format": _FORMAT, "step": step, "digests": digests, "state": dict(state)}
    text = json.dumps(body, sort_keys=True)
    signed = json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "body": text})
    target = folder / (name or f"step-{step:08d}.npz")
    write_npz(target, everything(), texts={"state.json": signed, **as_texts(class_names)})
    return target


def prune(folder: PathLike, keep: int, *, last: int | None = None) -> None:
    """Deletes all numbered checkpoints except the newest ``keep``; those after step ``last`` do not count, and stay."""
    paths = list_checkpoints(folder)
    if last is not None:
        paths = [path for path in paths if path.name <= f"step-{last:08d}.npz"]
    for path in paths[keep:]:
        path.unlink(missing_ok=True)


def read_newest(folder: PathLike, *, warn: Callable[[str], None]) -> Checkpoint | None:
    """Reads the newest usable checkpoint, and calls ``warn`` with a message about each newer, unusable one.

    Returns None if the folder has no checkpoints, and raises CheckpointError if none of them can be used.
    """
    paths = list_checkpoints(folder)
    for path in paths:
        try:
            return read(path)
        except CheckpointError as error:
            warn(f"checkpoint {error}; trying the one before it")
    if paths:
        raise CheckpointError(
            f"{folder}: none of the {len(paths)} checkpoints can be used; start again in another folder"
        )
    return None


def read(path: PathLike, *, keep: Callable[[str], bool] = lambda name: True) -> Checkpoint:
    """Reads one checkpoint and verifies every array that ``keep`` says of its name is needed.

    Raises CheckpointError if it is damaged or of another format.
    """
    try:
        with Npz(path) as npz:
            signed = json.loads(npz.text("state.json"))
            if hashlib.sha256(signed["body"].encode()).hexdigest() != signed["sha256"]:
                raise CheckpointError(f"{path}: the state does not match its digest")
            body = json.loads(signed["body"])
            if body["format"] != _FORMAT:
                raise CheckpointError(
                    f"{path}: format {body['format']}, written by {'Frostline 0.1' if body['format'] == 1 else 'another version'}; "
                    f"this version resumes only from format {_FORMAT}. Start again, or use the file as weights with "
                    f"--weights={path}"
                )
            arrays = {name: npz.read(name) for name in body["digests"] if keep(name)}
            for name, array in arrays.items():
                if digest(name, array) != body["digests"][name]:
                    raise CheckpointError(f"{path}: {name} does not match its digest")
            return Checkpoint(pathlib.Path(path), int(body["step"]), body["state"], arrays)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise error if isinstance(error, CheckpointError) else CheckpointError(f"{path}: damaged ({error})") from None


def restore(checkpoint: Checkpoint, variables: ModelVariables) -> None:
    """Assigns a checkpoint's values to all variables and generator states of a model.

    Raises:
        CheckpointError: a variable is missing, has another shape or dtype, or is not part of the model.
    """
    wanted = {entry.path: entry.variable for entry in variables}
    wanted |= variables.bookkeeping
    have = {name for name in checkpoint.arrays if not name.startswith(("optimizer/", "ema/", ARRAYS))}
    if have != set(wanted):
        odd = sorted(have ^ set(wanted))
        raise CheckpointError(
            f"{checkpoint.path}: the checkpoint is of another model; {len(odd)} variables differ, such as {odd[0]}"
        )
    for name, variable in wanted.items():
        array = checkpoint.arrays[name]
        if tuple(array.shape) != tuple(variable.shape) or array.dtype != variable.dtype.as_numpy_dtype:
            raise CheckpointError(
                f"{checkpoint.path}: {name} is {array.dtype.name} {list(array.shape)}, but the model's is "
                f"{variable.dtype.name} {list(variable.shape)}"
            )
    for name, variable in wanted.items():
        variable.assign(checkpoint.arrays[name])
    variables.refresh()
