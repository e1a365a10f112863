"""The tasks of data whose examples have several labels, each seen as data with one label."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from engine.data.batch_names import LABEL, WEIGHT, label_name, weight_name
from engine.data.part import DataError, Part, Source, Target
from engine.text import join_words, nearest


def find_target(source: Source, task: str) -> Target:
    """What the data say of the labels of a task; DataError if they have no such task."""
    known = {target.name: target for target in source.tasks}
    if task not in known:
        what = f"its tasks are {join_words(known)}" if known else "it has one label for each example, without a name"
        raise DataError(f"data={source.name}: it has no labels of {task!r}; {what}{nearest(task, list(known))}")
    return known[task]


def view_task(source: Source, task: str) -> Source:
    """Data with the labels of one task alone, named as data with one label name theirs; DataError if there is no such task."""
    target = find_target(source, task)
    parts: dict[str, Any] = {
        name: view_part(part, task) for name in ("train", "eval", "test") if (part := getattr(source, name)) is not None
    }
    if source.eval is source.train:
        parts["eval"] = parts["train"]
    named = target.named and bool(target.classes)
    return replace(source, classes=target.classes, columns=target.columns, named=named, tasks=(), **parts)


def view_part(part: Part, task: str) -> Part:
    """A part with the labels and weights of one task alone, as "label" and "weight"."""
    name = label_name(task)
    if name != part.label_name and name not in part.columns:
        raise DataError(f"columns: there is no {name!r}, only {join_words([part.label_name, *part.columns])}")
    labels = part.labels if name == part.label_name else part.columns[name]
    weights = find_weights(part, task)
    return replace(part, labels=labels, label_name=LABEL, columns={} if weights is None else {WEIGHT: weights})


def find_weights(part: Part, task: str = "") -> np.ndarray | None:
    """The weights of the examples of a task, 0 where its label is missing; None if all are 1.

    With several tasks, the weights of the examples themselves are part of them.
    """
    own, general = part.columns.get(weight_name(task)), part.columns.get(WEIGHT)
    if own is None or general is None or not task:
        return own if own is not None else general
    return own.astype(np.float32) * general.astype(np.float32)


def has_label(part: Part, task: str = "") -> np.ndarray:
    """Which examples have a label of a task that counts, bool [m]."""
    weights = find_weights(part, task)
    return np.ones(len(part), bool) if weights is None else weights > 0
