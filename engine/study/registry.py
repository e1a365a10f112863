"""The runners that a study can compare: registered by name, imported only when they are needed.

A registration holds ``module:class``, so that processes of runs can import the class themselves, and so that a study
knows runners of rooms that it must not import (TF1 sessions, Keras' fit).
"""

from __future__ import annotations

import importlib
from typing import Any

from engine.errors import InputError
from engine.text import nearest

ENGINE_RUNNERS = ("engine", "engine_cached")
_targets = {"engine": "engine.study.runners:EngineRunner", "engine_cached": "engine.study.runners:CachedRunner"}


class UnknownRunnerError(InputError):
    """The name of a runner that is not registered."""


def register_runner(name: str, target: str) -> None:
    """Makes a runner (``engine.study.runners.Runner``), given as ``module:class``, known under a name, or replaces it."""
    _targets[name] = target


def runner_names() -> tuple[str, ...]:
    """The names of all registered runners, in the order of their registration."""
    return tuple(_targets)


def runner_target(name: str) -> str:
    """``module:class`` of a runner; raises UnknownRunnerError if none of that name is registered."""
    if name not in _targets:
        known = runner_names()
        raise UnknownRunnerError(
            f"runners={name!r} is not a known runner; expected {', '.join(known)}{nearest(name, known)}"
        )
    return _targets[name]


def runner_modules() -> list[str]:
    """The modules of all registered runners."""
    return list(dict.fromkeys(target.partition(":")[0] for target in _targets.values()))


def load_runner(target: str) -> Any:
    """Imports the class of a runner (a subclass or equivalent of ``engine.study.runners.Runner``)."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
