"""Compares a ported model with the graph file of its original, both on the same input."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from compat_v1.graphs.extract import Extracted
from compat_v1.graphs.metagraph import MetaGraph
from compat_v1.porting import parity
from compat_v1.porting.apart import TIME_LIMIT, Apart, Job
from engine.files import Npz, PathLike

_EXAMPLES = 4


def compare_with_graph(
    source: PathLike,
    model: Any,
    graph: MetaGraph,
    *,
    inputs: str | None = None,
    outputs: str | None = None,
    feed: PathLike | None = None,
    examples: int | None = None,
    seed: int = 0,
    time_limit: float = TIME_LIMIT,
    say: Callable[[str], None] = print,
) -> parity.Parity:
    """Runs the part of an old graph between inputs and outputs, with a checkpoint's weights, and the ported model.

    The graph runs in a process of its own. Inputs and outputs are as the flags of port_checkpoint, None for the only
    candidates. It may take ``time_limit`` seconds. ``feed`` is an .npz file with values for the inputs; None draws a batch of random ones, of ``examples``
    or else as many as the fixed inputs that are arrays have, or 4. ``say`` gets a line that describes the part. Raises
    GraphError if there is no such part, its values do not fit, or it fails.
    """
    compared = parity.parse_outputs(outputs) if outputs else None
    names = [each.name for each in compared] if compared else None
    job = Job(os.fspath(source), str(graph.path), graph.tags, inputs, names, time_limit)
    part = job.extract(graph)
    say(f"graph:   {part.summary()}")
    if feed:
        with Npz(feed) as given:
            feeds = parity.feeds_by_name(part.inputs, {name: given.read(name) for name in given.names()})
    else:
        feeds = parity.make_feeds(part.inputs, examples=examples or _lengths(part), seed=seed)
    return parity.compare_outputs(Apart(job, part), model, feeds=feeds, outputs=compared)


def _lengths(part: Extracted) -> int:
    """Returns the number of examples that the fixed inputs have, if they agree, else the default."""
    lengths = {np.shape(value)[0] for value in part.fixed.values() if np.ndim(value)}
    return int(lengths.pop()) if len(lengths) == 1 else _EXAMPLES
