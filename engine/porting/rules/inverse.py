"""A rule backwards: from a variable's value to the values of the tensors that it was made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from engine.porting.rules import transforms as forward
from engine.porting.rules.transforms import Spec, Target, Transform


def invert(
    value: np.ndarray,
    specs: Sequence[Spec],
    transforms: Sequence[Transform],
    target: Target,
    *,
    read: Callable[[int], np.ndarray],
) -> list[np.ndarray]:
    """What the sources must be, so that the transforms make ``value`` of them.

    Args:
        value: of the variable; becomes the type that the transforms give.
        specs: shape and dtype of each source, which ``infer`` accepted.
        transforms: of the rule.
        target: the variable.
        read: number of a source -> its value now. Asked only where a ``split`` took a part: the rest stays.

    Returns:
        One array a source, of its shape and dtype. May be views.

    Raises:
        ValueError: a transform loses something; says which.
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
        elif transform.name == "split":
            wholes = []
            for source, part in enumerate(now):
                whole = np.array(forward.run([read(source)], transforms[:number], target))
                transform.run(whole, target)[...] = part
                wholes.append(whole)
            now = wholes
        elif transform.tell is not None and not transform.tell(before[0], target):
            continue
        elif transform.inverse is None:
            raise ValueError(f"`{transform}` cannot be undone")
        else:
            now = [transform.inverse(array, spec) for array, spec in zip(now, before, strict=True)]
    return now


def source_shape(shape: tuple[int, ...], transforms: Sequence[Transform]) -> tuple[int, ...]:
    """The shape of the one source of a variable, where the transforms alone tell it.

    Raises:
        ValueError: they do not; says which.
    """
    now = np.broadcast_to(np.zeros((), bool), shape)  # no memory
    for transform in reversed(transforms):
        if transform.name == "cast":
            continue
        if transform.name != "transpose" or transform.inverse is None:
            raise ValueError(f"`{transform}` does not tell the shape of what it was given")
        now = transform.inverse(now, Spec(now.shape, now.dtype))
    return tuple(now.shape)


def _after(specs: Sequence[Spec], transform: Transform, target: Target) -> list[Spec]:
    groups = [list(specs)] if transform.name == "concat" else [[spec] for spec in specs]
    found = [forward.infer(group, [transform], target) for group in groups]
    for each in found:
        if each.spec is None:
            raise ValueError(each.problem)
    return [each.spec for each in found if each.spec is not None]
