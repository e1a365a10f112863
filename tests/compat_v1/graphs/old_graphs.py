"""Graphs with the control flow of TensorFlow 1, run in a Session and, converted, in functions of TensorFlow 2."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.graphs import functional
from compat_v1.graphs.endpoints import Graph, all_nodes
from compat_v1.graphs.subgraph import cut_out, upgrade_ops
from engine import tensorflow_private
from engine.graphs import safety
from engine.graphs.op_allowlist import VARIABLES

v1 = tf.compat.v1
PLAIN = v1.ConfigProto()  # the graph as it is written
PLAIN.graph_options.rewrite_options.disable_meta_optimizer = True


@contextlib.contextmanager
def old_control_flow() -> Iterator[None]:
    """In this scope, loops and conditions become Switch and Merge."""
    was = v1.control_flow_v2_enabled()
    v1.disable_control_flow_v2()
    try:
        yield
    finally:
        (v1.enable_control_flow_v2 if was else v1.disable_control_flow_v2)()


def random(*shape: int, seed: int = 0, dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def variable(name: str, *shape: int, resource: bool = True, seed: int = 1, dtype: Any = np.float64) -> Any:
    return v1.get_variable(name, initializer=0.5 * random(*shape, seed=seed, dtype=dtype), use_resource=resource)


def cond(condition: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    return v1.cond(condition, yes, no)


class Old:
    """A graph that ``build`` makes, and what a Session computes: outputs, and gradients of a loss, for each of its feeds.

    ``build`` gets placeholders and returns the outputs, whose weighted sum is the loss. Feeds are name -> value.
    """

    def __init__(self, build: Callable[..., Any], *feeds: Mapping[str, Any]) -> None:
        self.feeds = [{name: np.asarray(value) for name, value in each.items()} for each in feeds]
        with old_control_flow(), tf.Graph().as_default() as graph:
            v1.set_random_seed(1)
            given = [v1.placeholder(each.dtype, each.shape, name=name) for name, each in self.feeds[0].items()]
            outputs = tf.nest.flatten(build(*given))
            self.outputs = [tf.identity(each, name=f"out{number}").name for number, each in enumerate(outputs)]
            self.definition = graph.as_graph_def()
            variables = v1.global_variables()
            floating = [each for each in given if each.dtype.is_floating]
            found = [graph.get_tensor_by_name(name) for name in self.outputs]
            gradients = v1.gradients(loss_of(found), [*variables, *floating])
            self.differentiable = [each.op.name for each in floating]
            with v1.Session(config=PLAIN) as session:
                session.run([v1.global_variables_initializer(), v1.tables_initializer()])
                self.values = {each.op.name: session.run(each) for each in variables}
                fetched = [found, [tf.convert_to_tensor(each) for each in gradients if each is not None]]
                self.expected, self.gradients = [], []
                for each in self.feeds:
                    values, got = session.run(fetched, {f"{name}:0": value for name, value in each.items()})
                    self.expected.append(values)
                    filled = iter(got)
                    self.gradients.append([None if each is None else next(filled) for each in gradients])

    def convert(self) -> Any:
        upgrade_ops(self.definition)
        graph = Graph(self.definition, where="old.meta")
        part = cut_out(graph, graph.needed(self.outputs))
        made = functional.make_functional(part, keep=[*self.outputs, *self.feeds[0]], where="old.meta")
        assert not functional.needs_conversion(made)
        safety.check_graph(made, where="old.meta")
        return made


def loss_of(outputs: Sequence[Any]) -> Any:
    floating = [each for each in outputs if each.dtype.is_floating]
    return tf.add_n([tf.reduce_sum(tf.sin(tf.cast(each, tf.float64)) * (1 + n)) for n, each in enumerate(floating)])


class New:
    """The converted graph on variables of TensorFlow 2."""

    def __init__(self, old: Old) -> None:
        self.old = old
        self.definition = old.convert()
        self._resource = {node.name: node.op == "VarHandleOp" for node in old.definition.node if node.op in VARIABLES}
        self.variables = {name: tf.Variable(value) for name, value in old.values.items()}
        self.specs = [tf.TensorSpec(each.shape, each.dtype, name=name) for name, each in old.feeds[0].items()]

    def outputs(self, *feeds: Any) -> list[Any]:
        """Imports the graph."""
        graph = v1.get_default_graph()
        read = {name if ":" in name else f"{name}:0" for node in self.definition.node for name in node.input}
        known = {f"{name}:0": tensor for name, tensor in zip(self.old.feeds[0], feeds, strict=True)}
        for name, each in self.variables.items():
            known[f"{name}:0"] = graph.capture(each.handle) if self._resource[name] else each.read_value()
        mapped = {name: tensor for name, tensor in known.items() if name in read}
        kept = tf.compat.v1.GraphDef(versions=self.definition.versions, library=self.definition.library)
        for node in self.definition.node:
            if node.op != "Placeholder":
                copy = kept.node.add()
                copy.CopyFrom(node)
                copy.input[:] = [text for text in node.input if text[0] != "^" or text[1:] not in self.old.feeds[0]]
        return functional.import_functional(kept, mapped, self.old.outputs, name="old")

    def function(self, *, compiled: bool = False) -> Any:
        """Returns a function of the feeds that returns outputs and gradients."""

        def build(*feeds: Any) -> Any:
            outputs = self.outputs(*feeds)
            named = dict(zip(self.old.feeds[0], feeds, strict=True))
            wanted = [*self.variables.values(), *(named[name] for name in self.old.differentiable)]
            gradients = tf.gradients(loss_of(outputs), wanted)
            return outputs, [tf.zeros([0]) if each is None else tf.convert_to_tensor(each) for each in gradients]

        return tf.function(build, input_signature=self.specs, autograph=False, jit_compile=compiled)

    def tape_gradients(self) -> Callable[[Mapping[str, Any]], list[Any]]:
        """Returns a function of the feeds that takes gradients by a tape, over a call of the wrapped graph."""
        function = v1.wrap_function(self.outputs, self.specs)

        def gradients(values: Mapping[str, Any]) -> list[Any]:
            feeds = {name: tf.constant(value) for name, value in values.items()}
            wanted = [*self.variables.values(), *(feeds[name] for name in self.old.differentiable)]
            with tf.GradientTape() as tape:
                tape.watch(wanted)
                loss = loss_of(function(*feeds.values()))
            return [None if each is None else tf.convert_to_tensor(each) for each in tape.gradient(loss, wanted)]

        return gradients

    def kinds(self) -> set[str]:
        """Returns the types of all operations."""
        return {node.op for node in all_nodes(self.definition)}


def assert_same(old: Old, *, tape: bool = False, compiled: bool = False) -> New:
    """Converts a graph and asserts that outputs are equal to the bit, and gradients up to rounding."""
    new = New(old)
    function = new.function()
    for number, feeds in enumerate(old.feeds):
        with tensorflow_private.graph_optimizer_off():
            outputs, gradients = function(*map(tf.constant, feeds.values()))
        for name, got, expected in zip(old.outputs, outputs, old.expected[number], strict=True):
            np.testing.assert_array_equal(got, expected, err_msg=name)
            assert got.dtype == expected.dtype
        check_gradients(gradients, old.gradients[number])
    if tape:
        by_tape = new.tape_gradients()
        for number, feeds in enumerate(old.feeds):
            check_gradients(by_tape(feeds), old.gradients[number])
    if compiled:
        function = new.function(compiled=True)
        for number, feeds in enumerate(old.feeds):
            outputs, gradients = function(*map(tf.constant, feeds.values()))
            for got, expected in zip(outputs, old.expected[number], strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-12)
            check_gradients(gradients, old.gradients[number])
    return new


def check_gradients(gradients: Sequence[Any], expected: Sequence[Any]) -> None:
    for got, wanted in zip(gradients, expected, strict=True):
        if wanted is None:
            assert got is None or not np.any(got)
            continue
        bound = 1e-12 if wanted.dtype == np.float64 else 1e-6
        np.testing.assert_allclose(got, wanted, rtol=bound, atol=bound * np.abs(wanted).max())
