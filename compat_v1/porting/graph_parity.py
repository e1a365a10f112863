"""Compares a ported model with the graph file of its original, both on the same input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compat_v1.graphs import extract, metagraph
from compat_v1.graphs.original import Original
from compat_v1.porting import parity
from engine.files import Npz, PathLike
from engine.porting.readers.source import TensorSource


def compare_with_graph(
    source: TensorSource,
    model: Any,
    *,
    graph: str,
    inputs: str | None = None,
    outputs: str | None = None,
    feed: PathLike | None = None,
    examples: int = 4,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> parity.Parity:
    """Runs the part of an old graph between inputs and outputs, with a checkpoint's weights, and the ported model.

    The graph is a .meta file or a SavedModel; inputs and outputs are as the flags of port_checkpoint, None for the only
    candidates. ``feed`` is an .npz file with values for the inputs; None draws a batch of ``examples`` random ones.
    ``say`` gets a line that describes the part. Raises GraphError if there is no such part, or its values do not fit.
    """
    compared = parity.parse_outputs(outputs) if outputs else None
    part = extract.extract(
        metagraph.read_metagraph(graph).definition,
        path=graph,
        inputs=extract.parse_inputs(inputs) if inputs else None,
        outputs=[each.name for each in compared] if compared else None,
    )
    say(f"graph:   {part.summary()}")
    if feed:
        with Npz(feed) as given:
            feeds = parity.feeds_by_name(part.inputs, {name: given.read(name) for name in given.names()})
    else:
        feeds = parity.make_feeds(part.inputs, examples=examples, seed=seed)
    return parity.compare_outputs(Original(part, source), model, feeds=feeds, outputs=compared)
