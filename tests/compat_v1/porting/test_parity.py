"""Both models on one input: what is fed, what is compared with what, and how far it is off."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from compat_v1.errors import GraphError
from compat_v1.graphs import extract
from compat_v1.graphs.extract import Input
from compat_v1.graphs.original import Original
from compat_v1.porting import parity

v1 = tf.compat.v1


class Nothing:
    """A checkpoint without a tensor."""

    path = pathlib.Path("nothing")

    def names(self) -> list[str]:
        return []


@pytest.fixture(scope="module")
def original() -> Original:
    """x [?, 4] -> sum [?], twice [?, 4], log [?, 4] (not finite below zero), ids."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 4], name="x")
        tf.reduce_sum(x, 1, name="sum")
        tf.multiply(x, 2.0, name="twice")
        tf.math.log(x, name="log")
        tf.argmax(x, 1, name="largest")
        tf.as_string(x, name="text")
        tf.random.uniform(tf.shape(x), name="noise")
    meta = v1.MetaGraphDef(graph_def=graph.as_graph_def())
    outputs = ["sum", "twice", "log", "largest", "text"]
    part = extract.extract(meta, path="old.meta", inputs=["x"], outputs=outputs)
    return Original(part, Nothing())  # type: ignore[arg-type]


X = {"x:0": np.arange(-4, 8, dtype=np.float32).reshape(3, 4)}


def run(original: Original, model: Any, outputs: str, feeds: Any = X) -> parity.Parity:
    return parity.compare_outputs(original, model, feeds=feeds, outputs=parity.parse_outputs(outputs))


def test_equal_models_differ_by_nothing_and_one_number_is_found_where_it_is(original: Original) -> None:
    def model(x: Any) -> Any:
        return tf.reduce_sum(x, 1), 2 * x + tf.constant([[0.0] * 4, [0, 0, 0.25, 0], [0.0] * 4])

    found = run(original, model, "sum,twice")
    assert found.outputs[0].max_abs_difference == 0.0
    second = found.outputs[1]
    assert (second.max_abs_difference, second.at, second.original, second.ported) == (0.25, (1, 2), 4.0, 4.25)
    assert second.scale == 14.0
    assert found.max_abs_difference == 0.25
    assert not found.holds()
    assert found.holds(0.25)
    assert "largest difference 0.25 at [1, 2]: 4, ported 4.25" in found.summary()
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert written["max_abs_difference"] == 0.25
    assert [(each["name"], each["shape"]) for each in written["outputs"]] == [("sum:0", [3]), ("twice:0", [3, 4])]
    assert written["inputs"] == {"x:0": [3, 4]}


def test_outputs_are_paired_by_name_number_or_order_and_brought_into_layout(original: Original) -> None:
    def by_name(x: Any) -> Any:
        return {"other": x, "both": 2 * tf.transpose(x), "total": tf.reduce_sum(x, 1, keepdims=True)}

    found = run(original, by_name, "twice=both | transpose, sum=total | reshape(-1, 1)")
    assert [each.key for each in found.outputs] == ["both", "total"]
    assert found.max_abs_difference == 0.0
    by_number = run(original, lambda x: [x, tf.reduce_sum(x, 1)], "sum=1")
    assert by_number.max_abs_difference == 0.0


def test_keras_and_modules_run_in_inference_mode(original: Original) -> None:
    import keras

    inputs = keras.Input([4])
    outputs = keras.layers.Dropout(0.9)(inputs) * 2.0
    assert run(original, keras.Model(inputs, outputs), "twice").max_abs_difference == 0.0

    class Module(tf.Module):
        def __call__(self, x: Any, *, training: bool = True) -> Any:
            return x * (0.0 if training else 2.0)

    assert run(original, Module(), "twice").max_abs_difference == 0.0


def test_what_is_not_finite_is_no_proof(original: Original) -> None:
    with pytest.raises(GraphError, match="values are not finite on this input"):
        run(original, tf.math.log, "log")
    found = run(original, lambda x: x * np.nan, "twice")
    assert found.max_abs_difference == np.inf
    assert not found.holds(1e30)
    assert found.to_json()["max_abs_difference"] is None


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ("sum,twice", r"old.meta has 2 .*sum:0 \[3\].*, but the new model has 1 \(0 \[3, 4\]\)"),
        (
            "sum",
            r"outputs=sum:0: the shape is \[3\] in the old graph, \[3, 4\] in the new model \(0\); pair another output with OP=KEY",
        ),
        ("twice=logits", "outputs=twice=logits: the new model has no such output; it has 0"),
        ("noise", "outputs=noise: this was not extracted from old.meta"),
        ("twice | transpose(1, 0, 2)", "expected 3 axes"),
        ("text", "the output of the old graph has dtype object; only numbers can be compared"),
    ],
)
def test_outputs_that_do_not_fit_are_said(original: Original, outputs: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        run(original, lambda x: 2 * x, outputs)


def test_a_model_that_fails_or_an_empty_input_is_said(original: Original) -> None:
    with pytest.raises(GraphError, match=r"the new model, called on \[3, 4\], raised"):
        run(original, lambda x: tf.matmul(x, x), "twice")
    with pytest.raises(GraphError, match="both outputs are empty"):
        run(original, lambda x: 2 * x, "twice", {"x:0": np.zeros((0, 4), np.float32)})


def test_random_operations_are_noted() -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [2], name="x")
        tf.add(x, tf.random.uniform([2], name="draw"), name="out")
    meta = v1.MetaGraphDef(graph_def=graph.as_graph_def())
    noisy = Original(extract.extract(meta, path="old", outputs=["out"]), Nothing())  # type: ignore[arg-type]
    found = parity.compare_outputs(noisy, lambda x: x, feeds={"x:0": np.zeros(2, np.float32)})
    assert "draws random numbers (draw/" in found.notes[0]


def test_drawn_inputs_are_seeded_and_follow_the_rule() -> None:
    inputs = [
        Input("a:0", tf.float32, (None, 3)),
        Input("b:0", tf.int64, (2, 50)),
        Input("c:0", tf.float64, (None,)),
        Input("d:0", tf.int32, (None, None)),
    ]
    drawn = {"shapes": {"d": [4, 6]}, "below": {"d:0": 100}}
    one, same = (parity.make_feeds(inputs, examples=5, seed=1, **drawn) for _ in range(2))
    other = parity.make_feeds(inputs, examples=5, seed=2, **drawn)
    assert [(array.shape, array.dtype.name) for array in one.values()] == [
        ((5, 3), "float32"),
        ((2, 50), "int64"),
        ((5,), "float64"),
        ((4, 6), "int32"),
    ]
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["a:0"], other["a:0"])
    assert set(one["b:0"].ravel()) == {0, 1}
    assert 1 < one["d:0"].max() < 100
    with pytest.raises(
        GraphError, match=r"inputs=d:0: its shape is \[\?,\?\] in the graph; .* inputs=d\[None,32\], or"
    ):
        parity.make_feeds(inputs)
    with pytest.raises(GraphError, match=r"its shape is of any rank .*state it, such as inputs=e\[None,32,32,3\]"):
        parity.make_feeds([Input("e:0", tf.float32, None)])
    with pytest.raises(GraphError, match=r"give the values in an .npz file"):
        parity.make_feeds([Input("huge:0", tf.float32, (1 << 40,))])
    with pytest.raises(
        GraphError, match=r"inputs=flag:0: no value can be drawn for dtype bool; fix it with inputs=flag:0=False"
    ):
        parity.make_feeds([Input("flag:0", tf.bool, ())])


def test_given_inputs_are_matched_by_name() -> None:
    inputs = [Input("a/x:0", tf.float32, None)]
    array = np.ones(3, np.float32)
    assert parity.feeds_by_name(inputs, {"a/x": array})["a/x:0"] is array
    with pytest.raises(GraphError, match="inputs=a/x:0: its value is missing; nearest: a/y:0"):
        parity.feeds_by_name(inputs, {"a/y": array})
    with pytest.raises(GraphError, match="inputs=b:0 is not an input of the graph; expected a/x:0"):
        parity.feeds_by_name(inputs, {"a/x": array, "b": array})


def test_outputs_are_parsed_from_text() -> None:
    one, two, three = parity.parse_outputs("a/b, c:1=cls | transpose(1, 0) | squeeze, d = 2")
    assert (one.name, one.key, one.transforms) == ("a/b", None, ())
    assert (two.name, two.key, [str(each) for each in two.transforms]) == ("c:1", "cls", ["transpose(1, 0)", "squeeze"])
    assert (three.name, three.key) == ("d", "2")
    for text in ("=x", "a | turn", "a | transpose(0, 0)"):
        with pytest.raises(GraphError, match="outputs="):
            parity.parse_outputs(text)


def test_what_the_graph_optimizer_rearranges_is_not_compared(tmp_path: pathlib.Path) -> None:
    """A recurrent network whose two biases the optimizer adds up: that is rounded otherwise, and each step adds to it."""

    def step(h: Any, x: Any) -> Any:
        return tf.sin(10.0 * ((h + x + np.float32(1000)) + np.float32(-999)))

    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 4], name="x")
        _, out = tf.while_loop(
            lambda n, h: n < 10, lambda n, h: (n + 1, step(h, x)), [tf.constant(0), tf.zeros_like(x)]
        )
        tf.identity(out, name="out")
        feed = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
        config = v1.ConfigProto()
        with v1.Session(config=config) as session:
            optimized = session.run("out:0", {x: feed})
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        with v1.Session(config=config) as session:
            wanted = session.run("out:0", {x: feed})
    assert np.abs(optimized - wanted).max() > 1e-3, "otherwise the test shows nothing"
    meta = v1.MetaGraphDef(graph_def=graph.as_graph_def())
    old = Original(extract.extract(meta, path="old", outputs=["out"]), Nothing())  # type: ignore[arg-type]
    np.testing.assert_array_equal(old({"x:0": feed})["out:0"], wanted)

    @tf.function
    def model(x: Any) -> Any:
        h = tf.zeros_like(x)
        for _ in tf.range(10):
            h = step(h, x)
        return h

    assert parity.compare_outputs(old, model, feeds={"x:0": feed}).max_abs_difference == 0.0
    assert np.abs(np.asarray(model(feed)) - wanted).max() > 1e-3, "outside of the comparison it is on"
