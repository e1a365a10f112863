"""Old MetaGraphs: read as data, repaired, or refused with the reason."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from compat_v1.graphs import metagraph
from compat_v1.graphs.metagraph import MetaGraphError

ROOT = pathlib.Path(__file__).resolve().parents[3]
v1 = tf.compat.v1


def shared(*parts: str) -> pathlib.Path:
    """A file that lies only in the shared folder; the test is skipped without it."""
    folder = pathlib.Path(os.environ.get("FROSTLINE_SHARED") or ROOT.parent / "shared") / "tf1_checkpoints"
    file = folder.joinpath(*parts)
    if not file.exists():
        pytest.skip(f"{'/'.join(parts)} is neither in $FROSTLINE_SHARED nor in ../shared")
    return file


def definition(*, use_resource: bool = True) -> Any:
    """A MetaGraphDef with two variables, of which one trains."""
    with tf.Graph().as_default() as made:
        with v1.variable_scope("layer", use_resource=use_resource):
            kernel = v1.get_variable("kernel", [3, 2], initializer=v1.zeros_initializer())
            frozen = v1.get_variable("frozen", [2], trainable=False, initializer=v1.zeros_initializer())
        v1.get_local_variable("count", [], initializer=v1.zeros_initializer(), use_resource=use_resource)
        loss = tf.reduce_sum(tf.square(kernel + frozen))
        v1.train.GradientDescentOptimizer(0.1).minimize(loss, name="train")
        return v1.train.export_meta_graph(graph=made)


def written(folder: pathlib.Path, content: Any, name: str = "model.meta") -> pathlib.Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return file


@pytest.mark.parametrize("use_resource", [True, False])
def test_variables_are_known_by_name_shape_dtype_and_collection(tmp_path: pathlib.Path, use_resource: bool) -> None:
    found = metagraph.read_metagraph(written(tmp_path, definition(use_resource=use_resource))).variables()
    assert [(v.name, v.node, v.collected, v.shape, v.dtype, v.is_resource) for v in found] == [
        ("layer/kernel", "layer/kernel", True, (3, 2), tf.float32, use_resource),
        ("layer/frozen", "layer/frozen", False, (2,), tf.float32, use_resource),
        ("count", "count", False, (), tf.float32, use_resource),
    ]
    assert found[0].initial.startswith("layer/kernel/Initializer/zeros")


def test_collections_of_nodes_are_read_by_name(tmp_path: pathlib.Path) -> None:
    found = metagraph.read_metagraph(written(tmp_path, definition()))
    assert found.names("train_op") == ("train",)
    assert found.names("update_ops") == ()
    assert found.variable_names("trainable_variables") == ("layer/kernel",)
    assert [repair.split()[0] for repair in found.repairs] == ["_output_shapes"]  # which every export writes


def test_the_graph_is_imported_whole(tmp_path: pathlib.Path) -> None:
    wanted = definition()
    made = metagraph.read_metagraph(written(tmp_path, wanted)).graph()
    assert {op.name for op in made.get_operations()} == {node.name for node in wanted.graph_def.node}


def test_versions_and_shapes_that_old_files_have_are_repaired_and_told(tmp_path: pathlib.Path) -> None:
    old = definition()
    old.meta_info_def.tensorflow_version = "0.12.head"
    wrong = old.graph_def.node[0].attr["_output_shapes"].list.shape.add()
    wrong.dim.add().size = 77
    found = metagraph.read_metagraph(written(tmp_path, old))
    assert found.definition.meta_info_def.tensorflow_version == "1.15.0"
    assert [repair.split()[0] for repair in found.repairs] == ["tensorflow_version", "_output_shapes"]
    assert "'0.12.head'" in found.repairs[0]
    found.graph()


def saved_model(folder: pathlib.Path, *tag_sets: str) -> pathlib.Path:
    saved = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    for tags in tag_sets:
        one = saved.meta_graphs.add()
        one.CopyFrom(definition())
        one.meta_info_def.tags.extend(filter(None, tags.split(",")))
    return written(folder, saved, "saved_model.pb")


def test_a_saved_model_is_read_by_folder_or_file(tmp_path: pathlib.Path) -> None:
    file = saved_model(tmp_path, "serve")
    for place in (tmp_path, file):
        assert metagraph.read_metagraph(place).tags == ("serve",)
        assert len(metagraph.read_metagraph(place).variables()) == 3


@pytest.mark.parametrize(
    ("sets", "serves", "trains"),
    [
        (("serve", "train,gpu"), "serve", "gpu,train"),
        (("", "train"), "", "train"),
        (("serve", "gpu,serve", "train", "train,tpu"), "serve", "train"),
        (("tpu", "train"), "tpu", "train"),
        (("serve", "gpu,serve"), "serve", "serve"),
        (("", "gpu"), "", ""),
    ],
)
def test_of_several_graphs_the_one_that_serves_or_trains_is_taken_and_told(
    tmp_path: pathlib.Path, sets: tuple[str, ...], serves: str, trains: str
) -> None:
    saved_model(tmp_path, *sets)
    for wanted, training in ((serves, False), (trains, True)):
        found = metagraph.read_metagraph(tmp_path, training=training)
        assert ",".join(sorted(found.tags)) == wanted
        which = f"the graph tagged {wanted}, of" if wanted else "the graph without tags, of"
        assert found.note.startswith(which)
        assert "tags= chooses another" in found.note
    for tags in sets:
        found = metagraph.read_metagraph(tmp_path, tags=tags.split(",") if tags else [])
        assert set(found.tags) == set(tags.split(",") if tags else [])


def test_of_several_graphs_of_a_saved_model_the_tags_choose(tmp_path: pathlib.Path) -> None:
    saved_model(tmp_path, "gpu,serve", "serve,tpu", "train")
    with pytest.raises(
        MetaGraphError, match=r"by its tags, such as tags=gpu,serve; the file holds 3 graphs, .*; serve,tpu"
    ):
        metagraph.read_metagraph(tmp_path)
    with pytest.raises(MetaGraphError, match=r"tags=gpu: no graph has these tags; the file holds 3"):
        metagraph.read_metagraph(tmp_path, tags=["gpu"])
    saved_model(tmp_path, "serve", "serve")
    with pytest.raises(MetaGraphError, match=r"tags=serve: 2 graphs have these tags"):
        metagraph.read_metagraph(tmp_path, tags=["serve"])
    assert metagraph.read_metagraph(written(tmp_path, definition()), tags=[]).note == ""
    with pytest.raises(
        MetaGraphError, match=r"tags=train: .*model.meta holds one graph; only a SavedModel has several"
    ):
        metagraph.read_metagraph(tmp_path / "model.meta", tags=["train"])


def test_bare_graphs_and_text_forms_are_read_as_what_they_are(tmp_path: pathlib.Path) -> None:
    meta = definition()
    bare, saved = meta.graph_def, saved_model_pb2.SavedModel(saved_model_schema_version=1, meta_graphs=[meta])
    files = [written(tmp_path, bare, "frozen.pb"), written(tmp_path, saved, "saved_model.pb")]
    for name, message in (("graph.pbtxt", bare), ("meta.pbtxt", meta), ("saved_model.pbtxt", saved)):
        files.append(written(tmp_path, b"# a comment\n" + text_format.MessageToString(message).encode(), name))
    for file in files:
        found = metagraph.read_metagraph(file)
        assert [variable.name for variable in found.variables()] == ["layer/kernel", "layer/frozen", "count"], file
    text = files[2].read_bytes()
    with pytest.raises(MetaGraphError, match=r"graph.pbtxt: this text is not a valid GraphDef, or a truncated one"):
        metagraph.read_metagraph(written(tmp_path, text[: len(text) // 2], "graph.pbtxt"))
    with pytest.raises(MetaGraphError, match=r"a GraphDef .a frozen .pb"):
        metagraph.read_metagraph(written(tmp_path, bare.SerializeToString()[:-3], "frozen.pb"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"\xff\xfe\x00 not a message", "not a graph, or a truncated one; expected a MetaGraph"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS"),
        (b"meta_info_def {\n}\n", "it holds no node"),
        (b"node {\n  name: 3 }\n", "not a valid GraphDef, or a truncated one"),
        (b"\x89HDF\r\n\x1a\n", "a Keras or HDF5 file, not a graph"),
        (b"PK\x03\x04more", "a zip archive"),
        (meta_graph_pb2.MetaGraphDef().SerializeToString() or b"\x0a\x00", "it holds no node"),
    ],
)
def test_what_is_no_meta_graph_is_refused_with_the_reason(tmp_path: pathlib.Path, content: bytes, reason: str) -> None:
    with pytest.raises(MetaGraphError, match=reason):
        metagraph.read_metagraph(written(tmp_path, content))


def test_a_truncated_file_is_refused(tmp_path: pathlib.Path) -> None:
    whole = definition().SerializeToString()
    with pytest.raises(MetaGraphError, match="truncated"):
        metagraph.read_metagraph(written(tmp_path, whole[: len(whole) // 2]))


def test_missing_files_name_what_is_near(tmp_path: pathlib.Path) -> None:
    written(tmp_path, definition(), "model.ckpt-3.meta")
    with pytest.raises(MetaGraphError, match=r"no such file; did you mean .*model.ckpt-3.meta"):
        metagraph.read_metagraph(tmp_path / "model.ckpt-3")
    with pytest.raises(
        MetaGraphError, match=r"holds no saved_model.pb; name a file in it, such as .*model.ckpt-3.meta"
    ):
        metagraph.read_metagraph(tmp_path)


def test_operations_that_are_not_known_are_an_error_where_they_are_needed(tmp_path: pathlib.Path) -> None:
    strange = definition()
    function = strange.graph_def.library.function.add()
    function.signature.name = "body"
    function.node_def.add(name="deep", op="ZeroOutCustom")
    caller = strange.graph_def.library.function.add()
    caller.signature.name = "caller"
    caller.node_def.add(name="call", op="body")
    strange.graph_def.node.add(name="layer/warp", op="WarpCustom", input=["layer/kernel"])
    strange.graph_def.node.add(name="inside", op="PartitionedCall").attr["f"].func.name = "caller"
    strange.graph_def.node.add(name="also", op="NoOp", input=["^layer/warp", "^inside"])
    strange.collection_def["losses"].node_list.value.append("layer/warp:0")
    found = metagraph.read_metagraph(written(tmp_path, strange))
    assert len(found.variables()) == 3
    assert "WarpCustom (at layer/warp), ZeroOutCustom (at deep)" in found.unknown_note()
    facts = found.facts()
    gone = {node.name for node in strange.graph_def.node} - {node.name for node in facts.definition.node}
    assert gone == {"layer/warp", "inside", "also"}
    assert not facts.definition.library.function
    assert (facts.train_ops, facts.losses) == (("train",), ())
    with pytest.raises(MetaGraphError, match=r"also needs 2 kind\(s\) of operation that TensorFlow .* does not know"):
        found.facts(["also"])
    strange.graph_def.node.add(name="train2", op="NoOp", input=["^train", "^also"])
    strange.collection_def["train_op"].node_list.value[:] = ["train2"]
    with pytest.raises(MetaGraphError, match=r"train2 needs .*WarpCustom"):
        metagraph.read_metagraph(written(tmp_path, strange)).facts()
    del strange.collection_def["train_op"]
    with pytest.raises(MetaGraphError, match=r"name the train op with train_op=, since a part of the graph needs"):
        metagraph.read_metagraph(written(tmp_path, strange)).facts()


def test_edges_to_nowhere_and_names_held_twice_are_damage(tmp_path: pathlib.Path) -> None:
    loose = definition()
    loose.graph_def.node.add(name="loose", op="NoOp", input=["^nobody"])
    with pytest.raises(MetaGraphError, match=r"loose: its input \^nobody is not in the graph"):
        metagraph.read_metagraph(written(tmp_path, loose))
    twice = definition()
    twice.graph_def.node.add(name="train", op="NoOp")
    with pytest.raises(MetaGraphError, match="train: two nodes have this name"):
        metagraph.read_metagraph(written(tmp_path, twice))


def test_reading_evaluates_nothing_and_importing_refuses_what_it_would_run(tmp_path: pathlib.Path) -> None:
    """TensorFlow runs stateless ops at import where a shape depends on them; ReadFile is one."""
    secret = tmp_path / "shape.txt"
    secret.write_text("5")
    with tf.Graph().as_default() as made:
        length = tf.strings.to_number(tf.io.read_file(str(secret)), tf.int32)
        shaped = tf.reshape(v1.placeholder(tf.float32, [None]), tf.stack([length, -1]))
        assert shaped.shape[0] == 5  # it was run while the graph was built
        evil = v1.train.export_meta_graph(graph=made)
    secret.unlink()
    found = metagraph.read_metagraph(written(tmp_path, evil))
    with pytest.raises(MetaGraphError, match="importing a graph can run ReadFile"):
        found.graph()


@pytest.mark.parametrize(
    ("parts", "variables", "trainable", "repaired"),
    [
        (("mtcnn_PNet_landmark", "PNet-18.meta"), 31, 15, 1),
        (("musicnn_MTT_vgg", ".meta"), 86, 24, 1),
        (("made_ema_bn_momentum", "model.ckpt-20.meta"), 33, 8, 1),
        (("made_partitioned_adam", "sliced.ckpt-3.meta"), 15, 4, 1),
        (("serving_half_plus_two_v1format", "export.meta"), 3, 3, 2),
        (("tf2onnx_regression", "model.meta"), 2, 2, 1),
        (("bleurt_index_only",), 42, 41, 1),
    ],
)
def test_real_graphs_are_read_and_imported(
    parts: tuple[str, ...], variables: int, trainable: int, repaired: int
) -> None:
    found = metagraph.read_metagraph(shared(*parts))
    listed = found.variables()
    assert len(found.variable_names("variables")) == variables
    assert {v.name for v in listed} >= set(found.variable_names("variables"))
    assert sum(v.collected for v in listed) == trainable
    assert len(found.repairs) == repaired
    assert len(found.graph().get_operations()) == len(found.definition.graph_def.node)
