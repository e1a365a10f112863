"""What rules expect of the graph that weights belong to: holds, contradicts, or cannot be checked."""

from __future__ import annotations

import pathlib

import pytest
import tensorflow as tf

from engine.porting import PortError
from engine.porting.readers.graph_file import GraphFile, find_graph_file, read_graph_file
from engine.porting.rules import facts, language

v1 = tf.compat.v1


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> GraphFile:
    """A network with two pools, a leaky activation and a constant, beside a checkpoint called m."""
    path = tmp_path_factory.mktemp("graph") / "m.meta"
    with tf.Graph().as_default() as made:
        x = v1.placeholder(tf.float32, [None, 8, 8, 3], name="net/x")
        for number in range(2):
            x = tf.nn.max_pool2d(x, 2, 2 - number, "SAME", name=f"net/pool{number}")
        x = tf.nn.leaky_relu(x, 0.2, name="net/leaky")
        tf.multiply(x, tf.constant([0.5, 1, 2], name="net/scale"), name="net/out")
        v1.train.export_meta_graph(str(path), graph=made)
    return read_graph_file(path)


def check(graph: GraphFile, *lines: str, weights: str = "m") -> str:
    rules = language.parse_rules("\n".join(lines), name="my.rules")
    return facts.check_expected(rules, graph.path.with_name(weights))


def test_facts_of_every_kind_hold(graph: GraphFile) -> None:
    found = check(
        graph,
        "expect .*/pool\\d ksize 1,2,2,1",
        "expect net/pool1 strides 1,1,1,1",
        "expect net/pool0 padding SAME",
        "expect net/leaky alpha 0.2",
        "expect net/leaky T float32",
        "expect net/leaky op LeakyRelu",
        "expect net/x shape ?,8,8,3",
        "expect? net/scale value 0.5,1,2",
    )
    assert found == f"what my.rules expects of the graph holds (8 lines, {graph.path})"
    assert check(graph, "w <- v") == ""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("expect .*/pool\\d strides 1,2,2,1", r"net/pool1 \(MaxPool\): strides is 1,1,1,1, not 1,2,2,1 \(my.rules:1\)"),
        ("expect? net/leaky alpha 0.3", r"alpha is 0.2\d*, not 0.3"),
        ("expect net/leaky op Relu", "op is LeakyRelu, not Relu"),
        ("expect net/pool2 ksize 1,2,2,1", r"no operation net/pool2 \(my.rules:1; nearest: net/pool\d\)"),
        ("expect net/pool0 size 2", "net/pool0 .MaxPool. has no size"),
        ("expect net/scale value 0.5,1", "value is 0.5,1.0,2.0, not 0.5,1"),
        ("expect net/pool0 ksize 1,2,two,1", "ksize is 1,2,2,1, not 1,2,two,1"),
    ],
)
def test_a_contradiction_is_another_network(graph: GraphFile, line: str, said: str) -> None:
    with pytest.raises(PortError, match=rf"(?s)m.meta: the weights belong to another network than my.rules .*{said}"):
        check(graph, line)


def test_without_a_graph_it_is_an_error_or_said(graph: GraphFile) -> None:
    line = "net/pool0 ksize 1,2,2,1"
    with pytest.raises(
        PortError, match=r"^my.rules:1: `net/pool0 .*` must hold .* there is no graph beside .*other; give"
    ):
        check(graph, f"expect {line}", weights="other")
    assert (
        check(graph, f"expect? {line}", weights="other") == f"not checked: what my.rules expects of the graph ({line})"
    )


def test_the_graph_beside_a_checkpoint_is_found(tmp_path: pathlib.Path) -> None:
    for prefix, meta in (("m", "m.meta"), ("dir", "dir/.meta"), ("saved/variables/variables", "saved/saved_model.pb")):
        assert find_graph_file(tmp_path / prefix) is None
        (tmp_path / meta).parent.mkdir(exist_ok=True)
        (tmp_path / meta).touch()
        assert find_graph_file(tmp_path / prefix) == tmp_path / meta
    assert find_graph_file(tmp_path / "saved/other/m") is None, "only the folder variables belongs to a SavedModel"
