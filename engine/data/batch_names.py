"""The names of the arrays in a batch: what is an input of the model, and which labels and weights belong to which task."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

LABEL, WEIGHT = "label", "weight"
CACHED = "frozen"  # the names of tensors at the frost line begin so, and end in a number
_NOT_INPUTS = (LABEL, WEIGHT, "seeds", "index", "examples")
_IS_CACHED = re.compile(rf"{CACHED}_*\d+")


def is_input(name: str) -> bool:
    """Whether an array of this name is an input of the model: any but labels, weights and what identifies examples.

    The tensors that a feature cache has in place of inputs are none.

    Example:
        >>> [is_input(name) for name in ("image", "label", "weight/age", "seeds", "frozen0")]
        [True, False, False, False, False]
    """
    return name.partition("/")[0] not in _NOT_INPUTS and not is_cached(name)


def is_cached(name: str) -> bool:
    """Whether an array of this name is a tensor at the frost line."""
    return _IS_CACHED.fullmatch(name) is not None


def list_inputs(names: Iterable[str]) -> tuple[str, ...]:
    """The inputs of the model among the names in a batch, sorted."""
    return tuple(sorted(name for name in names if is_input(name)))


def join_inputs(batch: Mapping[str, Any]) -> Any:
    """What a model is called with: the only input of a batch itself, or its inputs by name.

    Example:
        >>> join_inputs({"image": 1, "label": 2}), join_inputs({"left": 1, "right": 3, "label": 2})
        (1, {'left': 1, 'right': 3})
    """
    names = list_inputs(batch)
    return batch[names[0]] if len(names) == 1 else {name: batch[name] for name in names}


def label_name(task: str = "") -> str:
    """The name of the labels of a task; that of the labels of data with one task, which has no name, is "label"."""
    return f"{LABEL}/{task}" if task else LABEL


def weight_name(task: str = "") -> str:
    """The name of the weights of the examples of a task."""
    return f"{WEIGHT}/{task}" if task else WEIGHT
