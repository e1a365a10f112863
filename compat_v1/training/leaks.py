"""Measures what the three freezing methods let through, on a real network and with code as in TF1 programs.

Frostline does not train like this: each leak is provoked in a graph of its own, run and measured.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from compat_v1.training import models
from compat_v1.training.freezing import Freezing
from engine.models import cnn as engine_cnn
from engine.models import vit as engine_vit
from engine.selection.selection import Selection, select
from engine.training import losses

v1 = tf.compat.v1

_RATE, _PENALTY = 0.01, 0.1


class Leak(NamedTuple):
    """One measured leak, and the frozen variables that changed, were lost, or have no slots.

    ``size`` is the largest absolute change of an element; for missing slots, their number.
    """

    name: str
    moved: list[str]
    size: float


@dataclass(frozen=True)
class Subject:
    """What the leaks are measured on: a network that has a TF1 form (compat_v1.training.models), and its training.

    Everything outside of the selection should stay. The batch has the arrays "image" and "label", ``seeds`` is int32
    [B, 2], and the loss is one of engine.training.losses.LOSSES.
    """

    network: Any
    selection: Selection
    batch: Mapping[str, np.ndarray]
    seeds: np.ndarray
    loss: str = "softmax"


def measure_leaks(subject: Subject) -> list[Leak]:
    """Measures all leaks. That of statistics is measured on cnn:mini if the network has none."""
    return [
        _var_list_overrides(subject),
        _regulariser(subject),
        _decay(subject),
        _statistics(subject if any(e.kind == "statistic" for e in subject.selection.variables) else _cnn(subject)),
        _zero_gradient(subject, "Momentum", v1.train.MomentumOptimizer(_RATE, 0.9), steps=3),
        _zero_gradient(subject, "Adam", v1.train.AdamOptimizer(_RATE), steps=3),
        _zero_gradient(subject, "Ftrl", v1.train.FtrlOptimizer(_RATE), steps=0),
        _saver(subject),
        _missing_slots(subject),
    ]


class _Graph:
    """The network in a graph of its own, with its weights from the engine."""

    def __init__(self, subject: Subject, method: str, *, all_statistics: bool = False) -> None:
        self.start = {entry.path: entry.variable.numpy() for entry in subject.selection.variables}
        self.frozen = [entry.path for entry in subject.selection.frozen]
        self.freezing = Freezing(method, subject.selection)
        self.graph = tf.Graph()
        chosen = select(subject.network, "@all") if all_statistics else subject.selection
        with self.graph.as_default(), self.freezing.scope():
            v1.set_random_seed(0)
            batch = {name: tf.constant(value) for name, value in subject.batch.items()}
            network = models.translate_network(subject.network, chosen)
            loss = losses.supervised_loss(network, subject.loss)(batch, training=True, seeds=tf.constant(subject.seeds))
            ((values, _),) = loss.terms.values()
            self.loss = tf.reduce_mean(values)
        self.variables = {variable.op.name: variable for variable in self.graph.get_collection("variables")}

    def weights(self, paths: Iterable[str]) -> list[Any]:
        return [self.variables[path] for path in paths]

    def session(self) -> Any:
        with self.graph.as_default():
            session = v1.Session()
            session.run(v1.global_variables_initializer())
            for path, value in self.start.items():
                initialise = self.variables[path].initializer
                session.run(initialise, {initialise.inputs[1]: value})
        return session

    def moved_by(self, *operations: Any) -> tuple[list[str], float]:
        """Returns the frozen paths that change when the operations run one after another, and the largest change."""
        with self.session() as session:
            for operation in operations:
                session.run(operation)
            return _changes(self.start, dict(zip(self.frozen, session.run(self.weights(self.frozen)), strict=True)))


def _changes(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> tuple[list[str], float]:
    sizes = {path: float(np.max(np.abs(value - before[path]), initial=0.0)) for path, value in after.items()}
    return [path for path, size in sizes.items() if size], max(sizes.values(), default=0.0)


def _var_list_overrides(subject: Subject) -> Leak:
    made = _Graph(subject, "trainable")
    with made.graph.as_default():
        every = [e.path for e in subject.selection.variables if e.kind == "weight"]
        train = v1.train.GradientDescentOptimizer(_RATE).minimize(made.loss, var_list=made.weights(every))
    return Leak("a var_list that names variables created with trainable=False trains them", *made.moved_by(train))


def _regulariser(subject: Subject) -> Leak:
    made = _Graph(subject, "stop_gradient")
    with made.graph.as_default():
        penalty = _PENALTY * tf.add_n([tf.nn.l2_loss(variable) for variable in v1.trainable_variables()])
        train = v1.train.GradientDescentOptimizer(_RATE).minimize(made.loss + penalty)
    return Leak("an L2 term over all weights moves those behind stop_gradient", *made.moved_by(train))


def _decay(subject: Subject) -> Leak:
    made = _Graph(subject, "stop_gradient")
    with made.graph.as_default():
        train = v1.train.GradientDescentOptimizer(_RATE).minimize(made.loss)
        with tf.control_dependencies([train]):
            decay = [v1.assign_sub(v, _RATE * _PENALTY * v).op for v in v1.trainable_variables()]
    return Leak("decoupled decay over trainable_variables() moves those behind stop_gradient", *made.moved_by(decay))


def _statistics(subject: Subject) -> Leak:
    made = _Graph(subject, "var_list", all_statistics=True)
    with made.graph.as_default():
        optimizer = v1.train.GradientDescentOptimizer(_RATE)
        gradients = made.freezing.compute_gradients(optimizer, made.loss)
        with tf.control_dependencies(v1.get_collection(v1.GraphKeys.UPDATE_OPS)):
            train = optimizer.apply_gradients(gradients.applied)
    return Leak(
        "BatchNorm statistics of frozen layers drift, since UPDATE_OPS ignore any filter", *made.moved_by(train)
    )


def _zero_gradient(subject: Subject, name: str, optimizer: Any, *, steps: int) -> Leak:
    """Trains everything for some steps, then makes one with zero gradients for what should stay; measures the last."""
    made = _Graph(subject, "var_list")
    with made.graph.as_default():
        every = made.weights(e.path for e in subject.selection.variables if e.kind == "weight")
        pairs = optimizer.compute_gradients(made.loss, var_list=every)
        train = optimizer.apply_gradients(pairs)
        frozen = set(made.frozen)
        last = optimizer.apply_gradients([(tf.zeros_like(g) if v.op.name in frozen else g, v) for g, v in pairs])
    with made.session() as session:
        for _ in range(steps):
            session.run(train)
        before = dict(zip(made.frozen, session.run(made.weights(made.frozen)), strict=True))
        session.run(last)
        after = dict(zip(made.frozen, session.run(made.weights(made.frozen)), strict=True))
    what = "sets a weight to 0" if not steps else "still moves it by its slots"
    return Leak(f"a gradient of zeros does not freeze: {name} {what}", *_changes(before, after))


def _saver(subject: Subject) -> Leak:
    made = _Graph(subject, "trainable")
    with tempfile.TemporaryDirectory() as folder, made.graph.as_default():
        saver, initialise = v1.train.Saver(v1.trainable_variables()), v1.global_variables_initializer()
        with made.session() as session:
            prefix = saver.save(session, str(pathlib.Path(folder) / "model"))
        with v1.Session() as session:  # a new program: initialise, restore
            session.run(initialise)
            saver.restore(session, prefix)
            after = dict(zip(made.frozen, session.run(made.weights(made.frozen)), strict=True))
        kept = {name for name, _ in tf.train.list_variables(prefix)}
    lost = [path for path in made.frozen if path not in kept]
    return Leak(
        "a Saver over trainable_variables() loses variables created with trainable=False",
        lost,
        _changes(made.start, after)[1],
    )


def _missing_slots(subject: Subject) -> Leak:
    """Finds what a Saver of the unfrozen graph misses in the checkpoint of the frozen one."""
    with tempfile.TemporaryDirectory() as folder:
        saved = pathlib.Path(folder) / "model"
        frozen = _Graph(subject, "trainable")
        with frozen.graph.as_default():
            v1.train.MomentumOptimizer(_RATE, 0.9).minimize(frozen.loss)
            with frozen.session() as session:
                v1.train.Saver().save(session, str(saved))
        unfrozen = _Graph(subject, "var_list")
        with unfrozen.graph.as_default():
            v1.train.MomentumOptimizer(_RATE, 0.9).minimize(unfrozen.loss)
            wanted = {variable.op.name for variable in v1.global_variables()}
            with v1.Session() as session:
                try:
                    v1.train.Saver().restore(session, str(saved))
                except (tf.errors.NotFoundError, ValueError):
                    pass
                else:
                    return Leak("a slot is missing after unfreezing", [], 0.0)
        missing = wanted - {name for name, _ in tf.train.list_variables(str(saved))}
    paths = [path for path in frozen.frozen if f"{path}/Momentum" in missing]
    return Leak(
        "after unfreezing, a Saver of all variables fails on the old checkpoint, which has no slots",
        paths,
        len(missing),
    )


def _cnn(subject: Subject) -> Subject:
    """Builds cnn:mini for the same images, with its last stage and head trained."""
    network = subject.network
    assert isinstance(network, engine_vit.ViT)
    made = engine_cnn.CNN(network.config.image[2], network.config.classes, dtype=network.head.kernel.dtype)
    return Subject(made, select(made, "stages/3/.* head/.*"), subject.batch, subject.seeds, subject.loss)
