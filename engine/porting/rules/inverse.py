"""Inverts the transforms of a rule: from a variable's value to the values of its source tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from engine.porting.rules import transforms as forward
from engine.porting.rules.transforms import Spec, Target, Transform


def invert_transforms(
    value: np.ndarray,
    specs: Sequence[Spec],
    transforms: Sequence[Transform],
    target: Target,
    *,
    read: Callable[[int], np.ndarray],
) -> list[np.ndarray]:
    """Computes what the sources must be for the transforms of a rule to turn them into ``value``.

    Args:
        value: the variable's value; it is cast to the dtype that the transforms result in.
        specs: the shape and dtype of each source, which ``infer_spec`` accepted.
        read: the number of a source -> its current value. Called only where a ``split`` or ``slice`` took a part,
            since the rest stays as it is, and for ``folded``.

    Returns one array per source, in its shape and dtype; they may be views. Raises ValueError, which names the
    transform, where one loses information.
    """
    stages = [list(specs)]
    for transform in transforms:
        stages.append(_after(stages[-1], transform, target))
    now = [value.astype(stages[-1][0].dtype, copy=False)]
    for number in reversed(range(len(transforms))):
        transform, before = transforms[number], stages[number]
        if transform.name == "concat":
            axis = transform.arguments[0]
            now = np.split(now[0], np.cumsum([spec.shape[axis] for spec in before])[:-1], axis=axis)
        elif transform.name in ("split", "slice"):
            wholes = []
            for source, part in enumerate(now):
                whole = np.array(forward.apply_transforms([read(source)], transforms[:number], target))
                transform.run(whole, target)[...] = part
                wholes.append(whole)
            now = wholes
        elif transform.name == "folded":
            wholes = [forward.apply_transforms([read(each)], transforms[:number], target) for each in range(len(now))]
            now = [np.where(part == 0, whole, whole - part) for whole, part in zip(wholes, now, strict=True)]
        elif transform.describe is not None and not transform.describe(before[0], target):
            continue
        elif transform.inverse is None:
            raise ValueError(f"`{transform}` cannot be inverted")
        else:
            now = [transform.inverse(array, spec) for array, spec in zip(now, before, strict=True)]
    return now


def is_folded(transforms: Sequence[Transform]) -> bool:
    """Whether a rule subtracts its variable from a tensor that another rule makes."""
    return any(transform.name == "folded" for transform in transforms)


def infer_source_shape(shape: tuple[int, ...], transforms: Sequence[Transform]) -> tuple[int, ...]:
    """Infers the shape of a variable's only source from the transforms; raises ValueError if one does not tell."""
    now = np.broadcast_to(np.zeros((), bool), shape)  # no memory
    for transform in reversed(transforms):
        if transform.name in ("cast", "add", "multiply", "reverse", "folded", "lstm_gates", "gru_gates"):
            continue
        if transform.name != "transpose" or transform.inverse is None:
            raise ValueError(f"`{transform}` does not determine the shape of its input")
        now = transform.inverse(now, Spec(now.shape, now.dtype))
    return tuple(now.shape)


def _after(specs: Sequence[Spec], transform: Transform, target: Target) -> list[Spec]:
    groups = [list(specs)] if transform.name == "concat" else [[spec] for spec in specs]
    found = [forward.infer_spec(group, [transform], target) for group in groups]
    for each in found:
        if each.spec is None:
            raise ValueError(each.problem)
    return [each.spec for each in found if each.spec is not None]
