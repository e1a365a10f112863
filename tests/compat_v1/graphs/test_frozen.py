"""A frozen graph whose constants became variables computes what it did, bit for bit, and what it should with new values."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import frozen_graphs
import numpy as np
import pytest
import tensorflow as tf
from frozen_graphs import FrozenGraph, freeze
from tensorflow.core.protobuf import meta_graph_pb2

from compat_v1.errors import GraphError
from compat_v1.graphs.extract import extract
from compat_v1.graphs.frozen import summarise, thaw
from compat_v1.graphs.original import Original
from engine.porting.frozen_writer import write_frozen
from engine.porting.readers.frozen_file import FrozenFile

v1 = tf.compat.v1
SHARED = pathlib.Path(os.environ.get("FROSTLINE_SHARED", pathlib.Path(__file__).resolve().parents[4] / "shared"))
GRAPHS = SHARED / "models" / "graphdef"
# With oneDNN, a convolution of an image does not give the same bits twice; what the test can ask depends on it.
EXACT = os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0"
real = pytest.mark.skipif(not GRAPHS.is_dir(), reason="the real frozen graphs are not beside the project")


class Given:
    """Arrays as a TensorSource."""

    path = pathlib.Path("given")
    checksums = False

    def __init__(self, values: Mapping[str, np.ndarray]) -> None:
        self._values = values

    def names(self) -> list[str]:
        return list(self._values)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._values[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._values[name].dtype

    def read(self, name: str) -> np.ndarray:
        return self._values[name]


def compute(
    definition: Any, outputs: tuple[str, ...], feeds: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    meta = meta_graph_pb2.MetaGraphDef(graph_def=definition)
    part = extract(meta, path="model.pb", inputs=list(feeds), outputs=outputs)
    assert {variable.node for variable in part.variables} == set(values)
    found = Original(part, Given(values))(feeds)  # type: ignore[arg-type]
    return [found[name] for name in outputs]


def quantised(*, cast: bool = False) -> FrozenGraph:
    """Weights in 8 bits with their dequantisation by an operation and by arithmetic, and in 16 bits."""

    def build() -> dict[str, Any]:
        rng = np.random.default_rng(6)
        x = v1.placeholder(tf.float32, [2, 4], "x")
        if not cast:
            q = tf.bitcast(tf.constant(rng.integers(0, 255, (4, 5), np.uint8), name="one_quantized_const"), tf.quint8)
            x = x @ tf.quantization.dequantize(q, -0.7, 0.9, mode="MIN_FIRST", name="one")
            held = tf.constant(rng.integers(-127, 127, (5, 6), np.int8), name="int8")
            scale = tf.constant(rng.uniform(1e-3, 2e-3, 6).astype(np.float32), name="scale")
            x = x @ tf.multiply(tf.cast(held, tf.float32) - 3.0, scale, name="two")
            return {"y": x}
        half = tf.constant(rng.standard_normal((4, 5)).astype(np.float16), name="half")
        x = x @ tf.cast(half, tf.float32, name="half/cast") + tf.reduce_sum(x @ tf.cast(half, tf.float32, name="again"))
        return {"y": tf.nn.bias_add(x, tf.constant(rng.standard_normal(5).astype(np.float32), name="bias"))}

    made = freeze(build, {"x:0": np.random.default_rng(3).standard_normal((2, 4)).astype(np.float32)})
    for node in made.definition.node:  # the constant itself is quantised, as tools write it
        if node.name == "one_quantized_const":
            node.attr["dtype"].type = node.attr["value"].tensor.dtype = tf.quint8.as_datatype_enum
    for number, node in enumerate(made.definition.node):
        if node.op == "Bitcast":
            dequantise = next(each for each in made.definition.node if each.name == "one")
            dequantise.input[0] = "one_quantized_const"
            del made.definition.node[number]
            break
    return made


def folded_into_loop() -> FrozenGraph:
    """A loop and a branch of TensorFlow 1 whose kernels an optimiser made constants of the loop and of the branch."""
    made = frozen_graphs.recurrent()
    definition = v1.GraphDef.FromString(made.definition.SerializeToString())
    made = FrozenGraph(definition, made.outputs, made.values, made.feeds)
    inside = {node.input[0]: node for node in made.definition.node if node.op == "Enter" and "read" in node.input[0]}
    nodes = {node.name: node for node in made.definition.node}
    pivot = next(node.name for node in made.definition.node if node.op == "Switch")
    values = dict(made.values)
    for read, enter in inside.items():
        constant = nodes[nodes[read].input[0]]
        name = enter.name
        enter.CopyFrom(constant)
        enter.name = name
        enter.input.append(f"^{pivot}_identity")
        values[name] = values.pop(constant.name)
    identity = made.definition.node.add(name=f"{pivot}_identity", op="Identity", input=[f"{pivot}:1"])
    identity.attr["T"].type = nodes[pivot].attr["T"].type
    return FrozenGraph(made.definition, made.outputs, values, made.feeds)


MADE: dict[str, Callable[[], FrozenGraph]] = {
    "single operations": lambda: frozen_graphs.convolutional(fused=False),
    "fused": lambda: frozen_graphs.convolutional(fused=True),
    "old loop": frozen_graphs.recurrent,
    "loop of functions": lambda: frozen_graphs.recurrent(old=False),
    "old branch": frozen_graphs.branching,
    "branch of functions": lambda: frozen_graphs.branching(old=False),
    "attention": frozen_graphs.attention,
    "quantised": quantised,
    "half": lambda: quantised(cast=True),
    "constants inside a loop": folded_into_loop,
}


@pytest.mark.parametrize("name", MADE)
def test_a_thawed_graph_computes_the_same_bits_and_the_written_graph_what_new_values_give(
    name: str, tmp_path: pathlib.Path
) -> None:
    made = MADE[name]()
    thawed = thaw(made.definition, where="model.pb", outputs=made.outputs)
    assert thawed.values
    before = compute(made.definition, made.outputs, made.feeds, {})
    for one, other in zip(before, compute(thawed.definition, made.outputs, made.feeds, thawed.values), strict=True):
        np.testing.assert_array_equal(one, other)

    new = {key: (value * 1.25 + 0.01).astype(value.dtype) for key, value in thawed.values.items()}
    after = compute(thawed.definition, made.outputs, made.feeds, new)
    assert not np.array_equal(after[0], before[0])
    (tmp_path / "old.pb").write_bytes(made.definition.SerializeToString())
    with FrozenFile(tmp_path / "old.pb") as source:
        assert source.names() == [weight.name for weight in thawed.weights]
        written = write_frozen(tmp_path / "new.pb", source, Given(new))
    assert written.changed == tuple(new)
    definition = v1.GraphDef.FromString((tmp_path / "new.pb").read_bytes())
    for one, other in zip(after, compute(definition, made.outputs, made.feeds, {}), strict=True):
        np.testing.assert_array_equal(one, other)
    with FrozenFile(tmp_path / "new.pb") as source:
        for key, value in new.items():
            np.testing.assert_array_equal(source.read(key), value)


def test_quantised_weights_have_the_values_that_the_graph_computes_with_and_their_float_names() -> None:
    thawed = thaw(quantised().definition, where="model.pb")
    assert {(each.name, each.dtype.name, each.stored) for each in thawed.weights} == {
        ("one", "float32", "kept as quint8, made float32 by Dequantize"),
        ("two", "float32", "kept as int8, made float32 by a cast and arithmetic"),
    }
    assert not thawed.unclear
    half = thaw(quantised(cast=True).definition, where="model.pb")
    assert [each.name for each in half.weights] == ["half", "bias"]
    assert half.weights[0].stored == "kept as float16, which the graph casts to float32"
    assert any("1 weights are stored in fewer bits (half)" in note for note in half.notes)


def test_a_graph_without_a_known_weight_is_refused_with_what_its_constants_are() -> None:
    def build() -> dict[str, Any]:
        x = v1.placeholder(tf.float32, [2, 6], "x")
        return {"y": (x - tf.constant(np.arange(6, dtype=np.float32), name="offsets")) * 0.5}

    made = freeze(build, {})
    with pytest.raises(
        GraphError, match=r"(?s)model\.pb: no constant .*unclear \(1\):\n +offsets \[6\].*mul/y: a single"
    ) as error:
        thaw(made.definition, where="model.pb")
    assert "choose those that are by their names" in str(error.value)
    assert [each.name for each in thaw(made.definition, where="model.pb", chosen="offsets").weights] == ["offsets"]


@real
@pytest.mark.parametrize(("file", "count", "numbers"), [("posenet.pb", 62, 1_258_195), ("emotion.pb", 22, 205_127)])
def test_all_weights_of_a_real_graph_become_variables_and_go_back(
    file: str, count: int, numbers: int, tmp_path: pathlib.Path
) -> None:
    definition = v1.GraphDef.FromString((GRAPHS / file).read_bytes())
    thawed = thaw(definition, where=file)
    floating = [node for node in definition.node if node.op == "Const" and node.attr["dtype"].type == 1]
    assert {weight.name for weight in thawed.weights} == {node.name for node in floating}
    assert summarise(thawed) == f"{count} constants became variables ({numbers:,} numbers)"
    source = next(node for node in definition.node if node.op == "Placeholder")
    shape = [max(1, dim.size) for dim in source.attr["shape"].shape.dim]
    feeds = {f"{source.name}:0": np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)}
    read = {text.split(":")[0] for node in definition.node for text in node.input}
    outputs = tuple(f"{node.name}:0" for node in definition.node if node.name not in read)
    before = compute(definition, outputs, feeds, {})
    check_equal(before, compute(thawed.definition, outputs, feeds, thawed.values))
    changed = dict(list(thawed.values.items())[:3])
    changed = {name: value + np.float32(0.1) for name, value in changed.items()}
    with FrozenFile(GRAPHS / file) as opened:
        write_frozen(tmp_path / "new.pb", opened, Given(changed))
    after = compute(thawed.definition, outputs, feeds, {**thawed.values, **changed})
    made = v1.GraphDef.FromString((tmp_path / "new.pb").read_bytes())
    check_equal(after, compute(made, outputs, feeds, {}))
    assert max(np.abs(one - other).max() for one, other in zip(before, after, strict=True)) > 1e-3
    for old, new in zip(definition.node, made.node, strict=True):
        assert new.name in changed or old == new


def check_equal(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=0 if EXACT else 1e-5 * max(1, np.abs(other).max()))


@real
@pytest.mark.slow
def test_real_graphs_give_the_same_bits_without_onednn() -> None:
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "real_graph_become",
    ]
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
    root = pathlib.Path(__file__).resolve().parents[3]
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
