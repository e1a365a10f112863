"""What the conversion refuses and what it leaves alone: names, order, damaged graphs."""

from __future__ import annotations

import pathlib
import random as dice
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from old_graphs import PLAIN, Old, assert_same, cond, loss_of, old_control_flow, random, variable
from test_functional_rnn import lstm

from compat_v1.errors import GraphError
from compat_v1.graphs import extract, functional, metagraph
from engine import tensorflow_private
from engine.graphs import safety

v1 = tf.compat.v1


def define(build: Callable[..., Any]) -> Any:
    """The GraphDef of an old graph on ``x`` [3] and the condition ``p``, with the output ``out``."""
    with old_control_flow(), tf.Graph().as_default() as graph:
        x, p = v1.placeholder(tf.float64, [3], name="x"), v1.placeholder(tf.bool, [], name="p")
        tf.identity(build(x, p), name="out")
        return graph.as_graph_def()


def loop(x: Any, body: Callable[[Any], Any]) -> Any:
    return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, body(y)), [0, x])[1]


def count(x: Any, *, resource: bool) -> Any:
    total = v1.get_variable("total", [], tf.float64, v1.zeros_initializer(), use_resource=resource)
    return x * (total.assign_add(1.0, read_value=True) if resource else v1.assign_add(total, 1.0))


def switch(x: Any, p: Any) -> Any:
    return tf.raw_ops.Switch(data=x, pred=p)


def array(x: Any, **options: Any) -> Any:
    return tf.TensorArray(tf.float64, 3, **options).unstack(x)


REFUSED: dict[str, tuple[Callable[[Any, Any], Any], str, str]] = {
    "loop": (
        lambda x, p: loop(x, lambda y: tf.sin(y, "inner")),
        "while/inner",
        r"while/inner \(Sin\): it is in a loop",
    ),
    "inner loop": (
        lambda x, p: loop(x, lambda y: loop(y, tf.sin)),
        "while/while/Exit",
        r"while/while/Exit \(Exit\): it is in a loop",
    ),
    "entry": (lambda x, p: loop(x, tf.sin), "while/Enter", r"while/Enter \(Enter\): it is in a loop"),
    "branch": (
        lambda x, p: cond(p, lambda: tf.sin(x, "inner"), lambda: x),
        "cond/inner",
        "in a branch and has no value",
    ),
    "dead": (lambda x, p: tf.sin(switch(x, p)[1]), "out", r"out \(Identity\): it is in a branch"),
    "no cond": (
        lambda x, p: tf.raw_ops.Merge(inputs=[x, switch(x, p)[1]])[0],
        "out",
        r"Merge \(Merge\): it does not choose",
    ),
    "one side": (
        lambda x, p: tf.raw_ops.Merge(inputs=[switch(x, p)[1], switch(x, p)[1]])[0],
        "out",
        "it does not choose",
    ),
    "reference": (
        lambda x, p: loop(x, lambda y: count(y, resource=False)),
        "out",
        r"AssignAdd\): it changes a reference",
    ),
    "reference in a branch": (
        lambda x, p: cond(p, lambda: count(x, resource=False), lambda: x),
        "out",
        r"AssignAdd\): it changes a reference",
    ),
    "gradients": (
        lambda x, p: v1.gradients(loop(x, tf.sin), [x])[0],
        "out",
        "gradients that the graph computes itself; name outputs",
    ),
    "array gradients": (lambda x, p: v1.gradients(array(x).read(1), [x])[0], "out", "GradV3.*gradients that the graph"),
    "flow": (lambda x, p: array(x).flow, "out", "the flow of a TensorArray"),
    "flow as number": (lambda x, p: array(x).flow + 1.0, "out", "reads the flow of a TensorArray as a number"),
    "handle": (lambda x, p: array(x).handle, "out", "is a TensorArray; name a tensor"),
    "growing": (
        lambda x, p: tf.TensorArray(tf.float64, 3, dynamic_size=True, infer_shape=False).split(x, [1, 2]).concat(),
        "out",
        "may have more elements already",
    ),
    "another flow": (
        lambda x, p: tf.raw_ops.TensorArrayReadV3(
            handle=array(x).handle, index=1, flow_in=array(x * 2.0).flow, dtype=tf.float64
        ),
        "out",
        "its flow is not that of its TensorArray",
    ),
    "no order": (lambda x, p: write_twice(x), "out", "write to a TensorArray in no order"),
    "waited for": (lambda x, p: write_and_wait(x), "out", "nothing reads the flow that it returns"),
    "random twice": (
        lambda x, p: choose_in_turn(x, p, tf.random.uniform([3], dtype=tf.float64)),
        "out",
        r"RandomUniform\): two conditions in turn need it",
    ),
}


def function_of(definition: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """A function of these nodes' values that returns the outputs of a converted graph."""
    kept = v1.GraphDef(versions=definition.versions, library=definition.library)
    kept.node.extend(node for node in definition.node if node.op not in ("Placeholder", "VarHandleOp"))

    def run(*given: Any) -> Any:
        named = {f"{name}:0": tensor for name, tensor in zip(inputs, given, strict=True)}
        return functional.import_functional(kept, named, outputs, name="old")

    return tf.function(run, autograph=False)


def write_twice(x: Any) -> Any:
    new = tf.TensorArray(tf.float64, 2, element_shape=[3])
    with tf.control_dependencies([new.write(0, x).flow]):
        second = new.write(1, x)
    return second.stack()[1] + new.write(0, x).read(0)


def write_and_wait(x: Any) -> Any:
    new = tf.TensorArray(tf.float64, 2, element_shape=[3])
    with tf.control_dependencies([new.write(0, x).flow]):
        return new.read(0)


def choose_in_turn(x: Any, p: Any, drawn: Any) -> Any:
    """Two conditions of which the second waits for the first, and whose branches share a random number."""
    no, yes = switch(x, p)
    with tf.control_dependencies([yes]), tf.control_dependencies([tf.identity(yes)]):
        drawn = tf.random.uniform([3], dtype=tf.float64, seed=2)
    first = tf.raw_ops.Merge(inputs=[no, drawn])[0]
    no, yes = switch(first, p)
    return tf.raw_ops.Merge(inputs=[no, yes + drawn])[0]


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused_by_name(case: str) -> None:
    build, keep, message = REFUSED[case]
    definition = define(build)
    with pytest.raises(GraphError, match=message) as caught:
        functional.make_functional(definition, keep=[keep, "x", "p"], where="old.meta")
    assert str(caught.value).startswith("old.meta: ")


def test_control_flow_in_library_functions_is_refused() -> None:
    definition = define(lambda x, p: x)
    made = definition.library.function.add()
    made.signature.name = "old"
    made.node_def.add(name="inner", op="Switch")
    definition.node.add(name="call", op="PartitionedCall").attr["f"].func.name = "old"
    assert functional.needs_conversion(definition)
    functional.make_functional(definition, keep=["out"], where="old.meta")
    with pytest.raises(GraphError, match=r"inner \(Switch\): it is control flow of TensorFlow 1 in the function old"):
        functional.make_functional(definition, keep=["call"], where="old.meta")


def test_a_graph_without_old_control_flow_stays_as_it_is() -> None:
    definition = define(lambda x, p: tf.sin(x) * 2.0)
    assert not functional.needs_conversion(definition)
    made = functional.make_functional(definition, keep=["out", "x"], where="old.meta")
    assert list(made.node) == [node for node in definition.node if node.name != "p"]


def test_kept_tensors_keep_their_names_and_are_fed_in_place_of_what_they_are() -> None:
    """A fed tensor may be an Identity or a constant, through which the conversion must not look."""
    definition = define(lambda x, p: cond(tf.identity(tf.constant(False, name="c"), "fed"), lambda: x, lambda: -x))
    for name in ("fed", "c", "cond/pred_id"):
        made = functional.make_functional(definition, keep=["out", "x", name, "cond/Merge"], where="old.meta")
        run = function_of(made, ["x", name], ["out:0", "cond/Merge:0"])
        for fed, expected in ((True, 2.0), (False, -2.0)):
            results = run(tf.constant(np.full(3, 2.0)), tf.constant(fed))
            assert [float(each[0]) for each in results] == [expected] * 2


def test_writes_in_loops_and_branches_stay_in_order() -> None:
    def build(x: Any, p: Any) -> Any:
        y = tf.while_loop(
            lambda i, y: i < 4, lambda i, y: (i + 1, count(y, resource=True)), [0, x], parallel_iterations=1
        )[1]
        with tf.control_dependencies([y]), v1.variable_scope("", reuse=True):
            return cond(p, lambda: count(y, resource=True), lambda: y)

    definition = define(build)
    made = functional.make_functional(definition, keep=["out", "x", "p"], where="old.meta")
    assert [node.attr["parallel_iterations"].i for node in made.node if node.op == "While"] == [1]
    total = tf.Variable(np.float64(0))
    run = function_of(made, ["x", "p", "total"], ["out:0"])
    assert float(run(tf.ones([3], tf.float64), tf.constant(True), total.handle)[0][0]) == 120.0
    assert float(total.numpy()) == 5.0
    assert float(run(tf.ones([3], tf.float64), tf.constant(False), total.handle)[0][0]) == 6 * 7 * 8 * 9


def test_loops_that_share_a_name_are_told_apart() -> None:
    """Importing a graph twice does not rename the loops in it."""

    def build(x: Any) -> Any:
        first = loop(x, tf.sin)
        return first, loop(first + x, tf.cos), loop(x, lambda y: y * x)

    old = Old(build, {"x": random(3)})
    for node in old.definition.node:
        if node.op == "Enter":
            node.attr["frame_name"].s = b"same"
    assert_same(old)


def damage_attributes(node: Any, rolls: dice.Random) -> None:
    """States impossible shapes, dtypes, numbers or contents."""
    for value in node.attr.values():
        if value.HasField("shape"):
            value.shape.dim.add(size=rolls.choice([-7, 1 << 40]))
        elif value.HasField("type"):
            value.type = rolls.choice([0, 20, 77])
        elif value.HasField("i"):
            value.i = rolls.choice([-(1 << 60), 1 << 60])
        elif value.HasField("tensor"):
            value.tensor.tensor_content = b"123"
            value.tensor.tensor_shape.dim.add(size=rolls.choice([-1, 5, 1 << 60]))


def test_damaged_graphs_are_said_to_be_damaged() -> None:
    def build(x: Any, p: Any) -> Any:
        y = cond(
            p, lambda: loop(x, lambda y: cond(p, lambda: tf.sin(y), lambda: y * x)), lambda: tf.cos(x) * variable("w")
        )
        output, h = lstm(tf.zeros([2, 4, 3], tf.float64), tf.constant([4, 2]), resource=True)
        return y + tf.reduce_sum(output) + tf.reduce_sum(h)

    whole = define(build)
    rolls = dice.Random(5)
    done: dict[bool, int] = {True: 0, False: 0}
    for _ in range(80):
        definition = v1.GraphDef()
        definition.CopyFrom(whole)
        nodes = [node for node in definition.node if node.input]
        for node in rolls.sample(nodes, rolls.choice([1, 2])):
            place = rolls.randrange(len(node.input))
            kind = rolls.randrange(7)
            if kind == 0:
                del node.input[place]
            elif kind == 1:
                node.input[place] = rolls.choice(definition.node).name
            elif kind == 2:
                node.input.append(rolls.choice(["^", ""]) + rolls.choice(definition.node).name)
            elif kind == 3:
                node.input[place] += rolls.choice([":1", ":7", ":x", "^"])
            elif kind == 4:
                node.op = rolls.choice(
                    ["Switch", "Merge", "Enter", "Exit", "NextIteration", "LoopCond", "TensorArrayReadV3"]
                )
            elif kind == 5 and node.attr:
                del node.attr[rolls.choice(list(node.attr))]
            else:
                damage_attributes(rolls.choice(definition.node), rolls)
        try:
            functional.make_functional(definition, keep=["out", "x", "p"], where="old.meta")
            done[True] += 1
        except GraphError:
            done[False] += 1
    assert min(done.values()) > 5, done


def test_a_real_network_with_its_training_switch(real: pathlib.Path) -> None:
    """musicnn: eleven conditions for batch normalisation and dropout, on one placeholder."""
    prefix = f"{real}/musicnn_MTT_vgg/"
    meta = metagraph.read_metagraph(f"{prefix}.meta").definition
    switch = "model/Placeholder_2"
    part = extract.extract(meta, path=".meta", inputs=["model/Placeholder", switch], outputs=["model/Sigmoid"])
    keep = [*part.outputs, "model/Placeholder:0", f"{switch}:0"]
    made = functional.make_functional(part.definition, keep=keep, where=".meta")
    assert sum(node.op in ("If", "StatelessIf") for node in made.node) == 11
    safety.check_graph(made, where=".meta")
    reader = v1.train.NewCheckpointReader(prefix)
    feeds = {"model/Placeholder:0": random(2, 187, 96, dtype=np.float32), f"{switch}:0": np.bool_(False)}
    chosen = next(each.node for each in part.variables if "kernel" in each.node)
    with tf.Graph().as_default() as graph, v1.Session(config=PLAIN) as session:
        v1.train.import_meta_graph(meta).restore(session, prefix)
        output, weights = (graph.get_tensor_by_name(f"{name}:0") for name in ("model/Sigmoid", chosen))
        expected = session.run([output, *v1.gradients(loss_of([output]), [weights])], feeds)

    @tf.function(autograph=False)
    def run(x: Any, is_training: Any) -> Any:
        given = dict(zip(feeds, (x, is_training), strict=True))
        given |= {f"{each.node}:0": tf.constant(reader.get_tensor(each.node)) for each in part.variables}
        (output,) = functional.import_functional(made, given, part.outputs, name="old")
        assert output.shape == [2, 50]
        return output, *tf.gradients(loss_of([output]), [given[f"{chosen}:0"]])

    with tensorflow_private.graph_optimizer_off():
        for got, wanted in zip(run(*map(tf.constant, feeds.values())), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
