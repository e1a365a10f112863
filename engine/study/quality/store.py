"""What a quality study keeps in its folder, so that it goes on where it was stopped: OUT/quality."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from engine import writing
from engine.files import FileError, Npz, write_json, write_npz
from engine.recipes.config import FREE, FinetuneConfig
from engine.runs.records import replace_non_finite
from engine.study.job import StudyError, read_record
from engine.study.quality.trial import Trial
from engine.study.results import FORMAT
from engine.text import join_some

# Fields that do not decide what a trial trains, and those of which job.json has the digests, since files may be moved.
_FREE = {*FREE, "cache", "data", "weights", "image_size"}


class Store:
    """The folders trials, weights (of trials until they are judged), ranges and judged."""

    def __init__(self, out: pathlib.Path) -> None:
        self.out = out / "quality"

    def prepare(self) -> None:
        """Creates the folders, and removes what a writer that was killed has left."""
        for name in ("trials", "weights", "ranges", "judged"):
            (self.out / name).mkdir(parents=True, exist_ok=True)
            writing.sweep(self.out / name, lambda name: name.endswith((".json", ".npz")))

    def read_trial(self, trial: Trial, config: FinetuneConfig) -> dict[str, Any] | None:
        """What is kept of a trial; None if nothing is.

        Raises StudyError if a strategy of the same name trained something else.
        """
        path = self.out / "trials" / f"{trial.name}.json"
        found = read_record(path)
        if found is None:
            return None
        self._check(found, config, f"a trial of a strategy {trial.strategy!r}", trial.strategy)
        return found

    def write_trial(
        self, trial: Trial, config: FinetuneConfig, record: Mapping[str, Any], values: Mapping[str, np.ndarray] | None
    ) -> dict[str, Any]:
        """Keeps a trial, with the values that it has trained unless they are None; returns what is kept."""
        if values is not None:
            write_npz(self._weights(trial), values.items())
        given = {"strategy": trial.strategy, "learning_rate": trial.learning_rate, "seed": trial.seed}
        found = {"format": FORMAT, **given, "origin": trial.origin, "config": _decides(config), **record}
        found = replace_non_finite(found)
        write_json(self.out / "trials" / f"{trial.name}.json", found)
        return found

    def has_values(self, trial: Trial) -> bool:
        """Whether the values that a trial has trained are kept."""
        return self._weights(trial).exists()

    def read_values(self, trial: Trial) -> dict[str, np.ndarray]:
        """The values that a trial has trained."""
        with Npz(self._weights(trial)) as file:
            return {path: file.read(path) for path in file.names()}

    def drop_values(self, trials: Iterable[Trial]) -> None:
        """Removes the weights of trials that nothing needs any more."""
        for trial in trials:
            self._weights(trial).unlink(missing_ok=True)

    def read(self, folder: str, strategy: str, config: FinetuneConfig) -> dict[str, Any] | None:
        """What is kept of a strategy in ``ranges`` or ``judged``, for a configuration; None if nothing is.

        Raises StudyError as ``read_trial``.
        """
        found = read_record(self.out / folder / f"{strategy}.json")
        if found is not None:
            self._check(found, config, f"a strategy {strategy!r}", strategy)
        return found

    def is_judged(self, strategy: str) -> bool:
        """Whether a strategy has been judged."""
        return (self.out / "judged" / f"{strategy}.json").exists()

    def write(self, folder: str, strategy: str, config: FinetuneConfig, record: Mapping[str, Any]) -> dict[str, Any]:
        """Keeps what ``read`` returns."""
        found = replace_non_finite({"format": FORMAT, "config": _decides(config), **record})
        write_json(self.out / folder / f"{strategy}.json", found)
        return found

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        path = self.out / "judged" / f"{name}.npz"
        try:
            with Npz(path) as file:
                return {key: file.read(key) for key in file.names()}
        except FileError as error:
            again = f"remove it and {path.with_suffix('.json').name} beside it, and the strategy is judged again"
            raise StudyError(f"{error}; {again}") from None

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        write_npz(self.out / "judged" / f"{name}.npz", arrays.items())

    def _check(self, found: Mapping[str, Any], config: FinetuneConfig, what: str, strategy: str) -> None:
        own, kept = _decides(config), found.get("config") or {}
        differing = [
            f"{name}={kept.get(name)!r} there, {value!r} now" for name, value in own.items() if kept.get(name) != value
        ]
        if differing:
            raise StudyError(
                f"out={self.out.parent}: it holds {what} that trained otherwise ({join_some(differing, most=4)}); give "
                f"{strategy} another name, or choose another out="
            )

    def _weights(self, trial: Trial) -> pathlib.Path:
        return self.out / "weights" / f"{trial.name}.npz"


def _decides(config: FinetuneConfig) -> dict[str, Any]:
    """The fields that decide what a trial trains, as JSON keeps them."""
    return {name: value for name, value in config.to_json().items() if name not in _FREE}
