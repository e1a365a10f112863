"""The old graph in a process of its own: what aborts there is told here in words."""

from __future__ import annotations

import os
import pathlib
import signal
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from compat_v1.errors import GraphError
from compat_v1.graphs import metagraph
from compat_v1.porting import apart
from compat_v1.porting.graph_parity import compare_with_graph
from engine.study import child

v1 = tf.compat.v1


@pytest.fixture
def graph(tmp_path: pathlib.Path) -> metagraph.MetaGraph:
    """A cell of unknown rank, whose kernel ends the process on a vector, and an output that is text; with a variable."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, None, name="x")
        scale = v1.get_variable("scale", initializer=2.0)
        tf.identity(cell(x * scale), name="out")
        tf.as_string(x, name="text")
        session.run(scale.initializer)
        prefix = v1.train.Saver().save(session, str(tmp_path / "m"))
    return metagraph.read_metagraph(f"{prefix}.meta")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run in this process, which is quicker."""
    monkeypatch.setattr(child, "run_job", lambda target, argument, **_: apart.run(argument))


def compare(graph: metagraph.MetaGraph, model: Any, **given: Any) -> Any:
    said: list[str] = []
    return compare_with_graph(graph.path.with_suffix(""), model, graph, say=said.append, **{"outputs": "out", **given})


def cell(x: Any) -> Any:
    state, one = tf.ones([4, 2]), tf.ones([2])
    return tf.raw_ops.LSTMBlockCell(
        x=x, cs_prev=state, h_prev=state, w=tf.ones([5, 8]), wci=one, wcf=one, wco=one, b=tf.ones([8])
    ).h


def scaled(x: Any) -> Any:
    return cell(2.0 * x)


@pytest.mark.usefixtures("here")
def test_the_rank_is_asked_for_and_taken(graph: metagraph.MetaGraph) -> None:
    with pytest.raises(GraphError, match=r"inputs=x:0: its shape is of any rank .* such as inputs=x\[None,32,32,3\]"):
        compare(graph, scaled)
    assert compare(graph, scaled, inputs="x[None,3]").max_abs_difference == 0.0
    assert compare(graph, scaled, inputs="x[4,3]", examples=9).inputs == {"x:0": (4, 3)}
    with pytest.raises(GraphError, match=r"outputs=text:0: the output of the old graph has dtype object; only numbers"):
        compare(graph, scaled, inputs="x[4,3]", outputs="text")


def test_a_kernel_that_aborts_is_told_with_what_it_was_fed_and_the_way_out(
    graph: metagraph.MetaGraph, tmp_path: pathlib.Path
) -> None:
    np.savez(tmp_path / "feed.npz", x=np.ones(4, np.float32))
    with pytest.raises(GraphError) as caught:
        compare(graph, scaled, feed=tmp_path / "feed.npz")
    text = str(caught.value)
    assert "m.meta: TensorFlow failed while it ran the old graph (killed by SIGABRT (Check failed: d < dims()" in text
    assert "It was fed x:0 [4]; check these shapes and state others with inputs=NAME[None,32,32,3]" in text
    assert "@" not in text, "no stack of addresses"


def test_side_inputs_decide_how_many_examples_are_drawn(here: None, tmp_path: pathlib.Path) -> None:
    with tf.Graph().as_default():
        x = v1.placeholder(tf.float32, [None, 3, 2], name="x")
        lengths = v1.placeholder(tf.int32, [None], name="lengths")
        tf.reverse_sequence(x, lengths, seq_axis=1, name="out")
        v1.get_variable("unused", [])
        v1.train.export_meta_graph(str(tmp_path / "m.meta"))
    np.savez(tmp_path / "w.npz", unused=np.float32(0))
    graph = metagraph.read_metagraph(tmp_path / "m.meta")

    def model(x: Any) -> Any:
        return tf.reverse_sequence(x, [3, 1], seq_axis=1)

    given = {"outputs": "out", "inputs": "x,lengths=[3,1]"}
    found = compare_with_graph(tmp_path / "w.npz", model, graph, **given)
    assert (found.max_abs_difference, found.inputs) == (0.0, {"x:0": (2, 3, 2)})
    with pytest.raises(GraphError, match="the graph failed: InvalidArgumentError"):
        compare_with_graph(tmp_path / "w.npz", model, graph, examples=3, **given)


def hostile(tmp_path: pathlib.Path, build: Any) -> metagraph.MetaGraph:
    """A graph that computes ``out`` from ``x``, and a variable that it does not need, so that there is a checkpoint."""
    with tf.Graph().as_default(), v1.Session() as session:
        tf.identity(build(v1.placeholder(tf.float32, [None], name="x")), name="out")
        session.run(v1.get_variable("scale", initializer=2.0).initializer)
        prefix = v1.train.Saver().save(session, str(tmp_path / "m"))
    return metagraph.read_metagraph(f"{prefix}.meta")


def endless(x: Any) -> Any:
    v1.disable_control_flow_v2()
    try:
        return v1.while_loop(lambda y: tf.reduce_sum(y) < 1e9, lambda y: y * 1.0, [x])[0]
    finally:
        v1.enable_control_flow_v2()


def growing(x: Any) -> Any:
    """Its size is computed inside the graph."""
    return tf.reduce_sum(tf.ones([tf.shape(x)[0] * (1 << 15), 1 << 18]), axis=1)[:4]


def joined(x: Any) -> Any:
    """A text that doubles until it has 2**40 bytes."""
    text = tf.as_string(x)
    for _ in range(40):
        text = tf.strings.join([text, text])
    return tf.cast(tf.strings.length(text), tf.float32)


def test_what_cannot_be_interrupted_is_ended_by_the_system() -> None:
    process = os.fork()
    if not process:
        with apart._ended_after(0.1):
            while True:
                pass
    assert os.waitpid(process, 0)[1] == signal.SIGALRM
    with apart._ended_after(30.0):
        pass
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0


@pytest.mark.parametrize(
    ("build", "said"),
    [
        pytest.param(endless, "did not finish within 1 seconds and was stopped", marks=pytest.mark.slow),
        pytest.param(growing, "failed|needs more than", marks=pytest.mark.slow),
        pytest.param(joined, "failed|needs more than", marks=pytest.mark.slow),
    ],
)
def test_a_graph_without_an_end_or_measure_is_stopped(
    build: Any, said: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROSTLINE_MEMORY_LIMIT", str((8 if build is endless else 2) << 30))
    with pytest.raises(GraphError, match=said):
        compare(hostile(tmp_path, build), scaled, time_limit=1.0 if build is endless else 30.0, examples=4)
