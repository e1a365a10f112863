"""Makes a source of its parts, also of parts among which there is none to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.data.part import Part, Source


def make_divided(spec: str, classes: Sequence[str], parts: Mapping[str, Part], **more: Any) -> Source:
    """The source of the parts "train", "val" and "test", of which it has one or more; ``more`` are fields of Source.

    Without "val", ``eval`` is ``train``. Without "train", which only data that are evaluated may lack
    (``SourceRequest.to_train``), ``train`` has no examples.
    """
    train = parts.get("train")
    if train is None:
        train = next(iter(parts.values())).take(np.zeros(0, np.int64))
    return Source(spec, tuple(classes), train, parts.get("val", train), parts.get("test"), **more)
