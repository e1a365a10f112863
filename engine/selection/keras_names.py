"""Names of Keras layers and variables that are the same each time a model is built, in whatever process."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from engine import keras_private


def stable_names(root: Any) -> dict[int, str]:
    """Names of all layers below root, automatic ones numbered within the model.

    Keras counts automatic names up within a process (``dense``, ``dense_1``, ...), in the order of
    making. Numbered by rank of that count, a second build gets the names that a first one has.
    """
    layers = keras_private.flatten_layers(root, include_self=False)
    automatic: dict[str, set[int]] = {}
    numbers: dict[int, tuple[str, int]] = {}
    for layer in layers:
        stem = keras_private.snake_case(type(layer).__name__)
        match = re.fullmatch(re.escape(stem) + r"(?:_(\d+))?", layer.name)
        if match:
            number = int(match.group(1) or 0)
            automatic.setdefault(stem, set()).add(number)
            numbers[id(layer)] = (stem, number)
    ranks = {stem: {n: rank for rank, n in enumerate(sorted(found))} for stem, found in automatic.items()}
    names = {}
    for layer in layers:
        if id(layer) in numbers:
            stem, number = numbers[id(layer)]
            rank = ranks[stem][number]
            names[id(layer)] = stem if rank == 0 else f"{stem}_{rank}"
        else:
            names[id(layer)] = layer.name
    return names


def root_name(root: Any) -> str:
    """A root model's name, an automatic one without its number, which counts up within a process."""
    stem = keras_private.snake_case(type(root).__name__)
    return stem if re.fullmatch(re.escape(stem) + r"_\d+", root.name) else root.name


def variable_names(variables: Sequence[Any]) -> list[str]:
    """Own names of a layer's variables; an unnamed one ("variable_7") is numbered in its layer."""
    names, unnamed = [], 0
    for variable in variables:
        name = variable.name.rsplit("/", 1)[-1]
        if re.fullmatch(r"variable(_\d+)?", name):
            name = "variable" if unnamed == 0 else f"variable_{unnamed}"
            unnamed += 1
        names.append(name)
    return names
