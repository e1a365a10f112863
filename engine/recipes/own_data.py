"""The data of a run, opened again as the run opened them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine import data as sources
from engine.data import DataError, Source
from engine.data.features import order_columns
from engine.recipes.config import FinetuneConfig
from engine.runs.saved_flags import DataFacts


def open_own(
    config: FinetuneConfig, facts: DataFacts, asked: str | None, given: Mapping[str, Any], *, kind: str
) -> Source | None:
    """The data that are ``asked`` for, divided as a run divided its own; None if they cannot be the run's.

    None asks for those that the run names, which must open. Whether they are the run's very data, their fingerprint says. ``given`` are further arguments of ``engine.open_data``, and
    ``kind`` is what the outputs mean (``OpenedRun.loss``).
    """
    spec = asked or config.data
    if facts.fingerprint is None or spec.partition(":")[0] != config.data.partition(":")[0]:
        return None
    try:
        source = sources.open_data(
            spec, eval_fraction=config.eval_fraction, train_examples=config.train_examples, **given
        )
        source = order_columns(source, facts.features, say=given["say"])
    except DataError:
        if asked is None:
            raise
        return None
    return source.with_classes() if kind == "softmax" and not facts.tasks else source
