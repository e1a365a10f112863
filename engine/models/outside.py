"""Families of models that are built outside of the engine, such as ``graph:`` (graphs of TensorFlow 1, in compat_v1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from engine.models.spec import Model, ModelSpecError, Request

FAMILIES = {"graph": "compat_v1"}  # family -> the package that builds it, once it is imported


class Builder(Protocol):
    """What builds the models of a family."""

    def build_model(self, request: Request) -> Model:
        """Builds a model; raises InputError."""

    def native_size(self, name: str) -> tuple[int, int] | None:
        """The (height, width) in pixels that a model is made for; None for any size."""


_FINDERS: dict[str, Callable[[], Builder]] = {}


def register_family(family: str, find: Callable[[], Builder]) -> None:
    """Makes ``build_model`` use a builder for a family; ``find`` is called when it is needed."""
    _FINDERS[family] = find


def find_builder(family: str) -> Builder:
    """The builder of a family; ModelSpecError if the package that has it was not imported."""
    if family not in _FINDERS:
        raise ModelSpecError(
            f"model={family}:...: {FAMILIES[family]} builds such models; write `import {FAMILIES[family]}` before"
        )
    return _FINDERS[family]()
