"""Names of Keras layers and variables that are the same every time a model is built, in any process."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from engine import keras_private

_ADAPTERS = {"lora_kernel_a": "lora/down", "lora_kernel_b": "lora/up"}


def stable_names(root: Any) -> dict[int, str]:
    """Returns the names of all layers below the root, by id, with automatic names numbered within the model.

    Keras numbers automatic names within a process (``dense``, ``dense_1``, ...), in the order in which layers are
    created. Numbering them by their rank gives a second build the names of a first one.
    """
    layers = keras_private.flatten_layers(root, include_self=False)
    automatic: dict[str, set[int]] = {}
    numbers: dict[int, tuple[str, int]] = {}
    for layer in layers:
        stem = keras_private.snake_case(type(layer).__name__)
        if match := re.fullmatch(re.escape(stem) + r"(?:_(\d+))?", layer.name):
            number = int(match.group(1) or 0)
            automatic.setdefault(stem, set()).add(number)
            numbers[id(layer)] = (stem, number)
    ranks = {stem: {n: rank for rank, n in enumerate(sorted(found))} for stem, found in automatic.items()}
    names = {id(layer): layer.name for layer in layers}
    for key, (stem, number) in numbers.items():
        names[key] = f"{stem}_{rank}" if (rank := ranks[stem][number]) else stem
    return names


def root_name(root: Any) -> str:
    """Returns a root model's name, without the number of an automatic name, which differs between builds."""
    stem = keras_private.snake_case(type(root).__name__)
    return stem if re.fullmatch(re.escape(stem) + r"_\d+", root.name) else root.name


def variable_names(variables: Sequence[Any]) -> list[str]:
    """Returns the variables' own names. Unnamed variables ("variable_7") are numbered within their layer.

    Those of Keras' own ``enable_lora`` have the names that adapters have in every model.
    """
    names, unnamed = [], 0
    for variable in variables:
        name = variable.name.rsplit("/", 1)[-1].removesuffix(":0")  # TFSMLayer keeps it
        if re.fullmatch(r"variable(_\d+)?", name):
            name = "variable" if unnamed == 0 else f"variable_{unnamed}"
            unnamed += 1
        names.append(_ADAPTERS.get(name, name))
    return names
