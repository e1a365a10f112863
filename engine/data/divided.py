"""Makes a source of its parts, also of parts among which there is none to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.data.class_names import check_distinct
from engine.data.features import name_columns
from engine.data.part import DataError, Part, Source


def name_label_columns(spec: str, names: Sequence[str] | None, labels: np.ndarray) -> tuple[str, ...]:
    """The names of the columns of labels [n, C], where a file names them; raises DataError if they are another number."""
    if names is None or labels.ndim != 2:
        return ()
    if len(names) != labels.shape[1]:
        raise DataError(
            f"data={spec}: class_names has {len(names)} names for labels of {labels.shape[1]} columns; expected one for each"
        )
    return tuple(names)


def make_divided(spec: str, classes: Sequence[str], parts: Mapping[str, Part], **more: Any) -> Source:
    """The source of the parts "train", "val" and "test", of which it has one or more; ``more`` are fields of Source.

    Without "val", ``eval`` is ``train``. Without "train", which only data that are evaluated may lack
    (``SourceRequest.to_train``), ``train`` has no examples. Raises DataError as ``check_names`` does.
    """
    train = parts.get("train")
    if train is None:
        train = next(iter(parts.values())).take(np.zeros(0, np.int64))
    return check_names(Source(spec, tuple(classes), train, parts.get("val", train), parts.get("test"), **more))


def check_names(source: Source) -> Source:
    """The source; DataError if two of its classes, columns of labels, tasks or features have names that count as equal."""
    about = f"data={source.name}"
    for task in source.tasks:
        check_distinct(about, f"classes of {task.name}", task.classes)
        check_distinct(about, f"columns of labels of {task.name}", task.columns)
    check_distinct(about, "classes", source.classes)
    check_distinct(about, "columns of labels", source.columns)
    check_distinct(about, "labels", [task.name for task in source.tasks])
    check_distinct(about, "features", name_columns(source))
    return source
