"""A run with its adapters merged into its other weights: the same model, without adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from engine.models.adapters.merging import find_unmergeable, merge_into
from engine.recipes.reopen import OpenedRun, build_run_model
from engine.selection.variables import name_variables


def merge_run(
    opened: OpenedRun, *, say: Callable[[str], None] = lambda line: None
) -> tuple[OpenedRun, tuple[str, ...]]:
    """An opened run whose adapters are merged, and the paths of the variables that changed.

    One without adapters, or with some that cannot be merged, is returned as it is. ``say`` is called with a line that says
    what became of adapters.
    """
    if opened.model.adapters is None:
        return opened, ()
    if paths := find_unmergeable(opened.network):
        say(
            f"adapters: {len(paths)} bottleneck adapter{'s'[: len(paths) - 1]} cannot be merged, because of the nonlinearity "
            "between their products; the model keeps all of its adapters"
        )
        return opened, ()
    config = dataclasses.replace(opened.config, adapt=None, train=None, phase=())
    model = build_run_model(config, opened.data, opened.numbers)
    changed = merge_into(opened.network, model.network)
    say(f"adapters: merged into {len(changed)} variables; the model has none any more")
    plain = dataclasses.replace(opened, model=model, variables=name_variables(model.network), config=config)
    return plain, tuple(changed)
