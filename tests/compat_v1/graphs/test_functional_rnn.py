"""Recurrent networks of TensorFlow 1, with TensorArrays of all versions, become functional."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from old_graphs import Old, assert_same, random, variable

from compat_v1.graphs import functional

v1 = tf.compat.v1
FOLDER = pathlib.Path(__file__).parent
LENGTHS = ([4, 2], [0, 3])


@pytest.mark.parametrize("cell", ["lstm", pytest.param("gru", marks=pytest.mark.slow)])
def test_a_real_dynamic_rnn(cell: str) -> None:
    """``tf.compat.v1.nn.dynamic_rnn`` itself, which needs the legacy Keras, wrote these graphs."""
    meta = text_format.Parse((FOLDER / f"dynamic_rnn_{cell}.pbtxt").read_text(), v1.MetaGraphDef())
    names = [node.name for node in meta.graph_def.node if node.op == "VariableV2"]

    def build(x: Any, n: Any) -> Any:
        given = {"x:0": x, "n:0": n}
        for number, name in enumerate(names):
            node = next(node for node in meta.graph_def.node if node.name == name)
            shape = [dim.size for dim in node.attr["shape"].shape.dim]
            given[f"{name}:0"] = variable(f"v{number}", *shape, resource=False, dtype=np.float32)
        v1.train.import_meta_graph(meta, import_scope="old", input_map=given)
        graph = v1.get_default_graph()
        return graph.get_tensor_by_name("old/y:0"), graph.get_tensor_by_name("old/h:0")

    old = Old(build, *({"x": random(2, 4, 3, dtype=np.float32), "n": np.int32(n)} for n in LENGTHS))
    new = assert_same(old)
    assert {"StatelessWhile", "TensorListFromTensor", "TensorListStack"} <= new.kinds()


def lstm(x: Any, lengths: Any, *, resource: bool) -> Any:
    """An LSTM over [batch, time, features] as TensorFlow 1 wrote it: time first, arrays, and a cond around the cell."""
    w, b = variable("kernel", 5, 8, resource=resource), variable("bias", 8, resource=resource, seed=2)
    inputs = tf.TensorArray(tf.float64, 4, tensor_array_name="input").unstack(tf.transpose(x, [1, 0, 2]))
    outputs = tf.TensorArray(tf.float64, 4, element_shape=[2, 2], tensor_array_name="output")
    longest = tf.reduce_max(lengths)

    def step(time: Any, array: Any, c: Any, h: Any) -> Any:
        def cell() -> Any:
            i, j, f, o = tf.split(tf.concat([inputs.read(time), h], 1) @ w + b, 4, axis=1)
            new_c = c * tf.sigmoid(f + 1.0) + tf.sigmoid(i) * tf.tanh(j)
            new_h = tf.tanh(new_c) * tf.sigmoid(o)
            alive = tf.broadcast_to((time < lengths)[:, None], [2, 2])
            return tf.where(alive, new_h, tf.zeros_like(h)), tf.where(alive, new_c, c), tf.where(alive, new_h, h)

        output, c, h = v1.cond(time < longest, cell, lambda: (tf.zeros_like(h), c, h))
        return time + 1, array.write(time, output), c, h

    zeros = tf.zeros([2, 2], tf.float64)
    _, outputs, _, h = tf.while_loop(lambda time, *rest: time < 4, step, (0, outputs, zeros, zeros))
    return tf.transpose(outputs.stack(), [1, 0, 2]), h


@pytest.mark.parametrize("resource", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_lstm_with_lengths(resource: bool) -> None:
    def build(x: Any, n: Any) -> Any:
        return lstm(x, n, resource=resource)

    assert_same(Old(build, *({"x": random(2, 4, 3), "n": np.int32(n)} for n in LENGTHS)), tape=resource)


@pytest.mark.slow
def test_an_lstm_is_compiled() -> None:
    """Loop, condition and arrays, with their gradients, by XLA."""
    feeds = ({"x": random(2, 4, 3), "n": np.int32(n)} for n in LENGTHS)
    assert_same(Old(lambda x, n: lstm(x, n, resource=True), *feeds), compiled=True)


@pytest.mark.parametrize("version", ["", pytest.param("V2", marks=pytest.mark.slow)])
def test_arrays_of_the_versions_before_tensorflow_1_0(version: str) -> None:
    """Their flow began as a constant, and their handle was a string."""
    old = Old(lambda x, n: lstm(x, n, resource=True), {"x": random(2, 4, 3), "n": np.int32([4, 2])})
    creators = []
    for node in old.definition.node:
        if re.fullmatch("TensorArray.*V3", node.op):
            node.op = node.op.removesuffix("V3") + version
        if node.op == f"TensorArray{version}":
            creators.append(node.name)
        if not version and node.op in ("TensorArrayScatter", "TensorArrayGather") and node.name.endswith("V3"):
            node.op = {"TensorArrayScatter": "TensorArrayUnpack", "TensorArrayGather": "TensorArrayPack"}[node.op]
            del node.input[1]
    for name in creators:
        flow = old.definition.node.add(name=f"{name}/flow", op="Const")
        flow.attr["dtype"].type = tf.float32.as_datatype_enum
        flow.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(0.0))
        for node in old.definition.node:
            node.input[:] = [f"{name}/flow" if text == f"{name}:1" else text for text in node.input]
    assert functional.needs_conversion(old.definition)
    assert_same(old)
