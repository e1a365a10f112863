"""Trains an old graph twice, in a Session with its own train op and by the engine, for the contract E11."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.graphs.metagraph import MetaGraph
from compat_v1.models.losses import make_loss
from compat_v1.models.network import GraphNetwork
from compat_v1.models.old_graph import OldGraph
from compat_v1.models.weights import read_values
from engine import TrainStep
from engine.graphs.draws import draw

Arrays = Mapping[str, np.ndarray]


def build(
    meta: MetaGraph, checkpoint: str, loss: str, *, dtype: Any = tf.float32, **given: Any
) -> tuple[GraphNetwork, Any]:
    """The network of an old graph, and the loss function of its tensor ``loss``."""
    old = OldGraph(meta, **given)
    tensor = old.tensor(loss, argument="loss")
    variables = old.variables([old.output, tensor], old.find_arrays(tensor))
    network = GraphNetwork(old, variables, read_values(variables, checkpoint, "graph:test"), dtype=dtype)
    return network, make_loss(network, loss)


def masks(network: GraphNetwork, seeds: np.ndarray) -> dict[str, np.ndarray]:
    """What the engine draws in place of the random numbers of the graph, to be fed to the Session."""
    found: dict[str, np.ndarray] = {}
    for runnable in network._runnables.values():
        found |= {name: value.numpy() for name, value in draw(runnable.draws, tf.constant(seeds)).items()}
    return found


def relative(found: Arrays, expected: Arrays) -> float:
    """||a - b|| / ||b|| over all arrays together."""
    keys = list(expected)
    a, b = (np.concatenate([np.ravel(np.asarray(each[k], np.float64)) for k in keys]) for each in (found, expected))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def first_gradient(step: TrainStep, selection: Any, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The gradient of each trained variable, computed from a step of SGD with rate 1 that is undone."""
    before = {entry.path: entry.variable.numpy() for entry in selection.variables}
    micro = step.micro_batch(selection, batch)
    tensors = step.tensors(batch)
    ones = tf.ones([len(micro.terms)], tf.float64)
    result = micro.function(tensors, ones, tf.constant(1.0, tf.float64), tf.constant(1.0, tf.float64))
    for entry in selection.variables:
        entry.variable.assign(before[entry.path])
    return {e.path: g.numpy() for e, g in zip(selection.trained, result["gradients"], strict=True)}
