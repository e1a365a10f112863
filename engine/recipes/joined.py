"""All outputs of a trained model at once: what each means, and one function that computes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from engine.recipes.predictor import Predictor
from engine.recipes.reopen import OpenedRun
from engine.training.precision import widen


def open_predictors(opened: OpenedRun, **given: Any) -> dict[str, Predictor]:
    """A predictor for each output of a model by its name, "" for the only one; ``given`` as for ``OpenedRun.predictor``."""
    views = {name: opened.for_task(name) for name in opened.tasks} or {"": opened}
    return {name: view.predictor(**given) for name, view in views.items()}


def view_whole(opened: OpenedRun, predictors: Mapping[str, Predictor]) -> Predictor:
    """A predictor whose network has all outputs; it prepares, reads and compiles, and only each own one knows what they mean."""
    first = next(iter(predictors.values()))
    return dataclasses.replace(first, network=opened.network) if opened.tasks else first


def join_outputs(opened: OpenedRun, predictors: Mapping[str, Predictor]) -> Any:
    """A compiled function from prepared images to each output of the network, in the order of ``predictors``; it is run once."""
    if not opened.tasks:
        return predictors[""].function
    whole = view_whole(opened, predictors)

    def compute(images: Any) -> list[Any]:
        found = whole.call(images)
        return [widen(found[name]) for name in predictors]

    return whole.compile(compute)
