"""Small networks of TensorFlow 1, frozen: their variables are constants."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1


@dataclass(frozen=True, eq=False)
class FrozenGraph:
    """A frozen graph, the values that its variables had, and what to feed."""

    definition: Any
    outputs: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    feeds: Mapping[str, np.ndarray] = field(default_factory=dict)


@contextlib.contextmanager
def old_control_flow() -> Iterator[None]:
    """Within this scope, loops and branches are built from Switch, Merge and Enter."""
    was = v1.control_flow_v2_enabled()
    v1.disable_control_flow_v2()
    yield
    if was:
        v1.enable_control_flow_v2()


def freeze(
    build: Callable[[], Mapping[str, Any]], feeds: Mapping[str, np.ndarray], *, resource: bool = False
) -> FrozenGraph:
    """Builds a network with random variables and freezes it. ``build`` returns output name -> tensor."""
    rng = np.random.default_rng(0)
    graph = tf.Graph()
    with graph.as_default(), v1.variable_scope("", use_resource=resource):
        outputs = {name: tf.identity(tensor, name=name) for name, tensor in build().items()}
        variables = v1.global_variables()
        with v1.Session() as session:
            values = {}
            for variable in variables:
                value = rng.standard_normal(variable.shape).astype(variable.dtype.base_dtype.as_numpy_dtype) / 2
                values[variable.op.name] = np.abs(value) + 0.5 if "variance" in variable.op.name else value
                variable.load(values[variable.op.name], session)
            definition = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), list(outputs))
    return FrozenGraph(definition, tuple(f"{name}:0" for name in outputs), values, feeds)


def anonymise(definition: Any) -> tuple[Any, dict[str, str]]:
    """The graph as optimisers leave it: no Identity behind a constant, and constants called ``Const_N``; and the new names."""
    made = v1.GraphDef()
    made.CopyFrom(definition)
    nodes = {node.name: node for node in made.node}
    renamed = {
        node.name: f"Const_{n}" for n, node in enumerate(made.node) if node.op == "Const" and not list(node.input)
    }
    through = {
        node.name: node.input[0]
        for node in made.node
        if node.op == "Identity" and len(node.input) == 1 and nodes[node.input[0].split(":")[0]].op == "Const"
    }
    for node in made.node:
        for place, text in enumerate(node.input):
            text = through.get(text, text)
            name = text.removeprefix("^")
            node.input[place] = text[: text.startswith("^")] + renamed.get(name, name)
        node.name = renamed.get(node.name, node.name)
        if "_class" in node.attr:
            del node.attr["_class"]
    return made, renamed


def get(name: str, shape: list[int], dtype: Any = tf.float32) -> Any:
    return v1.get_variable(name, shape, dtype)


def images(size: int = 8, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (2, size, size, 3)).astype(np.float32)


@functools.cache
def convolutional(*, fused: bool) -> FrozenGraph:
    """A stem that normalises its images, convolutions with batch normalisation, a PReLU, and a dense head by hand."""

    def build() -> dict[str, Any]:
        x = v1.placeholder(tf.float32, [None, 8, 8, 3], "images")
        x = (x - tf.constant([123.7, 116.3, 103.5], name="mean")) / tf.constant([58.4, 57.1, 57.4], name="deviation")
        for number, width in enumerate((6, 5)):
            with v1.variable_scope(f"conv{number}"):
                x = tf.nn.conv2d(x, get("kernel", [3, 3, x.shape[-1], width]), 1, "SAME")
                names = ("gamma", "beta", "moving_mean", "moving_variance")
                gamma, beta, mean, variance = (get(name, [width]) for name in names)
                if fused:
                    x = v1.nn.fused_batch_norm(x, gamma, beta, mean, variance, is_training=False)[0]
                else:
                    x = tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)
                x = tf.nn.relu(x) + get("alphas", [width]) * (x - tf.abs(x)) * 0.5
        x = tf.reduce_mean(x, [1, 2])
        return {"logits": tf.matmul(x, get("head/weights", [5, 2])) + get("head/biases", [2])}

    return freeze(build, {"images:0": images()}, resource=fused)


CELL = 5


@functools.cache
def recurrent(*, old: bool = True) -> FrozenGraph:
    """Word embeddings, an LSTM in a loop, and logits by the transposed table, which is one variable in two places."""

    def build() -> dict[str, Any]:
        words = v1.placeholder(tf.int32, [2, 4], "words")
        table = get("embedding", [7, CELL])
        x = tf.transpose(tf.nn.embedding_lookup(table, words), [1, 0, 2])
        kernel, bias = get("rnn/lstm_cell/kernel", [2 * CELL, 4 * CELL]), get("rnn/lstm_cell/bias", [4 * CELL])
        peephole = get("rnn/lstm_cell/w_f_diag", [CELL])
        rows = tf.TensorArray(tf.float32, 4).unstack(x)
        zero = tf.zeros([2, CELL])

        def body(step: Any, state: Any, output: Any) -> tuple[Any, Any, Any]:
            gates = tf.nn.bias_add(tf.matmul(tf.concat([rows.read(step), output], 1), kernel), bias)
            i, j, f, o = tf.split(gates, 4, 1)
            state = tf.sigmoid(f + 1.0 + peephole * state) * state + tf.sigmoid(i) * tf.tanh(j)
            return step + 1, state, tf.sigmoid(o) * tf.tanh(state)

        *_, output = tf.while_loop(lambda step, *_: step < 4, body, [0, zero, zero])
        return {"logits": tf.matmul(output, table, transpose_b=True)}

    with old_control_flow() if old else contextlib.nullcontext():
        return freeze(build, {"words:0": np.array([[1, 2, 3, 4], [0, 6, 5, 1]], np.int32)}, resource=not old)


@functools.cache
def branching(*, old: bool = True) -> FrozenGraph:
    """A branch with other kernels on either side, and constants that were folded into the branches."""

    def build() -> dict[str, Any]:
        x, deep = v1.placeholder(tf.float32, [2, 4], "x"), v1.placeholder(tf.bool, [], "deep")
        one, other = get("one/kernel", [4, 3]), get("other/kernel", [4, 3])
        x = tf.cond(deep, lambda: tf.matmul(x, one), lambda: tf.matmul(tf.tanh(x), other))
        return {"y": tf.nn.bias_add(x, get("bias", [3]))}

    x = np.random.default_rng(2).standard_normal((2, 4)).astype(np.float32)
    with old_control_flow() if old else contextlib.nullcontext():
        return freeze(build, {"x:0": x, "deep:0": np.array(True)})


@functools.cache
def attention() -> FrozenGraph:
    """Position embeddings, layer normalisation as TensorFlow 1 wrote it, attention, and a class token."""

    def build() -> dict[str, Any]:
        words = v1.placeholder(tf.int32, [2, 4], "words")
        x = tf.gather(get("bert/word_embeddings", [9, 6]), words)
        x += tf.expand_dims(tf.slice(get("bert/position_embeddings", [16, 6]), [0, 0], [tf.shape(x)[1], -1]), 0)
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        x = tf.nn.batch_normalization(x, mean, variance, get("norm/beta", [6]), get("norm/gamma", [6]), 1e-12)
        flat = tf.reshape(x, [-1, 6])
        q, k = (
            tf.reshape(tf.matmul(flat, get(f"{name}/kernel", [6, 6])) + get(f"{name}/bias", [6]), [2, 4, 2, 3])
            for name in "qk"
        )
        scores = tf.matmul(tf.transpose(q, [0, 2, 1, 3]), tf.transpose(k, [0, 2, 1, 3]), transpose_b=True) * 0.577
        mask = tf.constant(np.triu(np.full((4, 4), -1e4, np.float32), 1), name="causal")
        return {"scores": tf.nn.softmax(scores + mask)}

    return freeze(build, {"words:0": np.array([[1, 2, 3, 4], [0, 6, 5, 1]], np.int32)})
