"""A frozen graph is read like any other weights file, and goes back changed in nothing but its weights."""

from __future__ import annotations

import pathlib
from typing import Any

import frozen_graphs
import numpy as np
import pytest
import tensorflow as tf
from frozen_graphs import FrozenGraph
from google.protobuf import text_format  # type: ignore[import-untyped]
from tensorflow.core.protobuf import meta_graph_pb2

from engine import porting
from engine.errors import InputError
from engine.files import FileError
from engine.porting.frozen_writer import write_frozen
from engine.porting.readers.frozen_file import FrozenFile
from engine.porting.readers.source import open_tensors
from engine.porting.rules.language import parse_rules
from engine.selection.variables import name_variables

v1 = tf.compat.v1


@pytest.fixture(scope="module")
def made() -> FrozenGraph:
    return frozen_graphs.convolutional(fused=True)


@pytest.fixture
def file(made: FrozenGraph, tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "model.pb"
    path.write_bytes(made.definition.SerializeToString())
    return path


class Given:
    def __init__(self, **values: Any) -> None:
        self._values = {name.replace("__", "/"): np.asarray(value) for name, value in values.items()}

    def names(self) -> list[str]:
        return list(self._values)

    def read(self, name: str) -> np.ndarray:
        return self._values[name]


def test_the_tensors_of_a_frozen_graph_are_its_weights_in_every_form_of_the_file(
    made: FrozenGraph, file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "frozen_graph").write_bytes(file.read_bytes())  # without a suffix
    (tmp_path / "graph.pbtxt").write_text(text_format.MessageToString(made.definition))
    meta = meta_graph_pb2.MetaGraphDef(graph_def=made.definition)
    meta.meta_info_def.tags.append("serve")
    (tmp_path / "alone.meta").write_bytes(meta.SerializeToString())
    for path in (file, tmp_path / "frozen_graph", tmp_path / "graph.pbtxt", tmp_path / "alone.meta"):
        with open_tensors(path) as source:
            assert isinstance(source, FrozenFile)
            assert sorted(source.names()) == sorted(made.values)
            for name, value in made.values.items():
                assert (source.shape(name), source.dtype(name)) == (value.shape, value.dtype)
                np.testing.assert_array_equal(source.read(name), value)
            np.testing.assert_array_equal(source.read_slice("head/weights", 1, 3), made.values["head/weights"][1:3])
            with pytest.raises(FileError, match="rows 4 to 9"):
                source.read_slice("head/weights", 4, 9)
            with pytest.raises(FileError, match="no floating-point constant nothing"):
                source.read("nothing")


def test_weights_of_a_frozen_graph_are_ported_by_rules_which_may_name_any_constant(file: pathlib.Path) -> None:
    model = {"kernel": tf.Variable(tf.zeros([5, 2])), "mean": tf.Variable(tf.zeros([3]))}
    rules = parse_rules("kernel <- head/weights\nmean <- mean\nskip conv.*\nskip head/biases\n", name="small.rules")
    with FrozenFile(file) as source:
        assert "mean" in source.hidden()
        porting.load(model, source, rules)
    np.testing.assert_array_equal(model["mean"], np.float32([123.7, 116.3, 103.5]))
    assert [entry.path for entry in name_variables(model)]


def test_what_is_written_differs_in_the_values_that_changed_alone(
    made: FrozenGraph, file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with FrozenFile(file) as source:
        same = write_frozen(tmp_path / "same.pb", source, Given(head__biases=made.values["head/biases"]))
        assert same.changed == ()
        new = np.float32([1, -0.0])
        for name in ("new.pb", "new.pbtxt"):
            assert write_frozen(tmp_path / name, source, Given(head__biases=new)).changed == ("head/biases",)
        assert source.read("head/biases").tolist() != new.tolist()  # what was read stays as it is
    assert v1.GraphDef.FromString((tmp_path / "same.pb").read_bytes()) == made.definition
    found = v1.GraphDef.FromString((tmp_path / "new.pb").read_bytes())
    assert text_format.Parse((tmp_path / "new.pbtxt").read_text(), v1.GraphDef()) == found
    assert found.versions == made.definition.versions
    for old, node in zip(made.definition.node, found.node, strict=True):
        assert (old == node) == (node.name != "head/biases")
        if node.name == "head/biases":
            assert tf.make_ndarray(node.attr["value"].tensor).tobytes() == new.tobytes()


def test_what_cannot_be_written_leaves_nothing_and_says_why(
    made: FrozenGraph, file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    before = file.read_bytes()
    with FrozenFile(file) as source:
        for out, values, said in [
            (tmp_path / "new.pb", Given(head__biases=np.zeros(3, np.float32)), "made for one shape"),
            (tmp_path / "new.pb", Given(head__biases=np.zeros(2)), r"\[2\] float64; the operations"),
            (tmp_path / "new.ckpt", Given(), r"ends in \.pb or \.pbtxt"),
            (file, Given(), "it is the base itself"),
        ]:
            with pytest.raises(InputError, match=said):
                write_frozen(out, source, values)
    meta = meta_graph_pb2.MetaGraphDef(graph_def=made.definition)
    meta.meta_info_def.tags.append("serve")
    (tmp_path / "saved.pb").write_bytes(meta.SerializeToString())
    with FrozenFile(tmp_path / "saved.pb") as source, pytest.raises(InputError, match="only a bare GraphDef"):
        write_frozen(tmp_path / "new.pb", source, Given())
    assert not (tmp_path / "new.pb").exists()
    assert file.read_bytes() == before


def half(value: np.ndarray) -> Any:
    def build() -> dict[str, Any]:
        x = v1.placeholder(tf.float32, [2, 2], "x")
        return {"y": x @ tf.cast(tf.constant(value.astype(np.float16), name="kernel"), tf.float32)}

    return frozen_graphs.freeze(build, {}).definition


def test_a_weight_in_16_bits_stays_so_where_they_hold_the_new_value(tmp_path: pathlib.Path) -> None:
    (tmp_path / "half.pb").write_bytes(half(np.eye(2)).SerializeToString())
    with FrozenFile(tmp_path / "half.pb") as source:
        assert source.dtype("kernel") == np.float32
        kept = write_frozen(tmp_path / "kept.pb", source, Given(kernel=np.float32([[0.5, 2], [3, 4]])))
        wide = write_frozen(tmp_path / "wide.pb", source, Given(kernel=np.float32([[0.1, 2], [3, 4]])))
        large = write_frozen(tmp_path / "large.pb", source, Given(kernel=np.float32([[1e9, 2], [3, 4]])))
    assert (kept.widened, wide.widened, large.widened) == ((), ("kernel",), ("kernel",))
    for name, dtype in (("kept", tf.float16), ("wide", tf.float32)):
        nodes = {n.name: n for n in v1.GraphDef.FromString((tmp_path / f"{name}.pb").read_bytes()).node}
        assert nodes["kernel"].attr["dtype"].type == dtype.as_datatype_enum
        assert nodes["Cast"].op == ("Cast" if name == "kept" else "Identity")


def damaged(made: FrozenGraph, how: str) -> bytes:
    definition = v1.GraphDef()
    definition.CopyFrom(made.definition)
    nodes = {node.name: node for node in definition.node}
    tensor = nodes["head/weights"].attr["value"].tensor
    whole = definition.SerializeToString()
    if how == "truncated":
        return whole[: len(whole) // 2]
    if how == "too few bytes":
        tensor.tensor_content = tensor.tensor_content[:-4]
    if how == "enormous":
        tensor.tensor_shape.dim[0].size = 1 << 40
    if how == "negative":
        tensor.tensor_shape.dim[0].size = -5
    if how == "large from one number":
        tensor.ClearField("tensor_content")
        tensor.float_val.append(1)
        tensor.tensor_shape.dim[0].size = 1 << 27
    if how == "too many numbers":
        tensor.ClearField("tensor_content")
        tensor.float_val.extend([1] * 11)
    if how == "unknown type":
        nodes["head/weights"].attr["dtype"].type = tensor.dtype = 99
    if how == "missing input":
        nodes["MatMul"].input[1] = "nowhere"
    if how == "two nodes":
        definition.node.add().CopyFrom(nodes["head/weights"])
    if how == "itself":
        nodes["MatMul/ReadVariableOp"].input[0] = "MatMul/ReadVariableOp"
    if how == "no value":
        del nodes["head/weights"].attr["value"]
    return definition.SerializeToString()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", "not a graph, or a truncated one"),
        ("too few bytes", "head/weights: a constant of shape .5, 2. float32 with 36 bytes, not 40"),
        ("enormous", "head/weights: a constant of shape .*at most"),
        ("negative", "head/weights: a constant of the invalid shape"),
        ("large from one number", "all that it holds takes .*more than the"),
        ("too many numbers", "head/weights: a constant"),
        ("unknown type", "head/weights"),
        ("missing input", "its input nowhere is not in the graph"),
        ("two nodes", "head/weights: two nodes have this name"),
        ("itself", None),
        ("no value", "head/weights"),
    ],
)
def test_damage_is_told_in_words_before_memory_is_taken(
    made: FrozenGraph, how: str, said: str | None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROSTLINE_MEMORY_LIMIT", str(1 << 28))
    path = tmp_path / "model.pb"
    path.write_bytes(damaged(made, how))

    def read_all() -> None:
        with open_tensors(path) as source:
            for name in source.names():
                source.read(name)

    if said is None:
        read_all()
        return
    with pytest.raises(FileError, match=said):
        read_all()


def test_what_is_not_a_frozen_graph_is_told_apart(tmp_path: pathlib.Path) -> None:
    with tf.Graph().as_default() as graph:
        v1.get_variable("net/kernel", [2, 2])
    (tmp_path / "model.pb").write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(
        FileError, match=r"not a checkpoint: it has 1 variables without values \(net/kernel\).*model\.index"
    ):
        open_tensors(tmp_path / "model.pb")
    (tmp_path / "lfs.pb").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(FileError, match="Git LFS pointer"):
        open_tensors(tmp_path / "lfs.pb")
    (tmp_path / "text").write_bytes(b"\nhello, this is a text\n")
    with pytest.raises(FileError, match="not a weights file of a supported kind"):
        open_tensors(tmp_path / "text")
