"""A graph from somebody else may compute and nothing more: one of each kind of harm is planted and must be found."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from compat_v1.graphs import extract
from engine.graphs import safety
from engine.graphs.op_allowlist import FAMILIES, FILLS_TABLE, HARMLESS, SUCCESSORS, TABLES, VARIABLES

PLANTED = [
    ("ReadFile", "files"),
    ("WriteFile", "files"),
    ("MatchingFiles", "files"),
    ("ImmutableConst", "files"),
    ("TFRecordReaderV2", "files"),
    ("TensorSliceDataset", "files"),
    ("IteratorGetNext", "files"),
    ("SaveV2", "files"),
    ("RestoreV2", "files"),
    ("MergeV2Checkpoints", "files"),
    ("LoadAndRemapMatrix", "files"),
    ("GenerateVocabRemapping", "files"),
    ("InitializeTableFromTextFileV2", "files"),
    ("AnonymousMemoryCache", "files"),
    ("SqlDataset", "files"),
    ("Abort", "stops the process"),
    ("SleepOp", "stops the process"),
    ("PyFunc", "Python"),
    ("PyFuncStateless", "Python"),
    ("EagerPyFunc", "Python"),
    ("Print", "writes"),
    ("PrintV2", "writes"),
    ("DebugIdentity", "writes"),
    ("DebugIdentityV2", "writes"),
    ("DumpTensor", "writes"),
    ("CreateSummaryFileWriter", "writes"),
    ("ScalarSummary", "writes"),
    ("ImportEvent", "writes"),
    ("RemoteCall", "other processes"),
    ("RpcCall", "other processes"),
    ("_Send", "other processes"),
    ("_Recv", "other processes"),
    ("_HostRecv", "other processes"),
    ("CollectiveReduceV2", "other processes"),
    ("NcclAllReduce", "other processes"),
    ("XlaLaunch", "other processes"),
    ("TPUExecute", "other processes"),
    ("QueueDequeueV2", "shares"),
    ("GetSessionHandleV2", "shares"),
    ("Stage", "shares"),
    ("DecodeProtoV2", "decoder"),
    ("EncodeProto", "decoder"),
    ("DecodeWav", "decoder"),
    ("DecodeJpeg", "decoder"),
    ("ParseTensor", "not among"),
    ("AudioMicrofrontend", "decoder"),
    ("AssignVariableOp", "variables"),
    ("AssignAdd", "variables"),
    ("ResourceApplyAdam", "variables"),
    ("ScatterUpdate", "variables"),
    ("SymbolicGradient", "by name"),
    ("HostConst", "not among"),
    ("Bincount", "not among"),
    ("MapDefun", "not among"),
    ("BatchFunction", "not among"),
    ("NoSuchOperation", "no such operation"),
    ("_ParallelConcatStart", "for itself"),
    ("../../etc/passwd", "no such operation"),
]


def small(nodes: Callable[[], None] = lambda: None) -> Any:
    """A GraphDef x -> y, and what ``nodes`` adds."""
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 2], name="x")
        tf.identity(x * 2.0, name="y")
        nodes()
    return graph.as_graph_def()


def call(definition: Any, function: str) -> None:
    """Lets the main graph call a library function."""
    node = definition.node.add(name="call", op="PartitionedCall")
    node.attr["f"].func.name = function


def function(definition: Any, name: str, *ops: str) -> Any:
    made = definition.library.function.add()
    made.signature.name = name
    for number, op in enumerate(ops):
        made.node_def.add(name=f"n{number}", op=op)
    return made


@pytest.mark.parametrize(("op", "reason"), PLANTED)
@pytest.mark.parametrize("place", ["main", "nested", "while"])
def test_what_does_more_than_compute_is_refused_by_name_wherever_it_hides(op: str, reason: str, place: str) -> None:
    definition = small()
    if place == "main":
        definition.node.add(name="harm", op=op)
    elif place == "nested":
        call(definition, "outer")
        inner = function(definition, "outer", "Const").node_def.add(name="again", op="PartitionedCall")
        inner.attr["f"].func.name = "inner"
        function(definition, "inner", "Const", op)
    else:
        loop = definition.node.add(name="loop", op="While")
        loop.attr["cond"].func.name = "goes_on"
        loop.attr["body"].func.name = "body"
        function(definition, "goes_on", "Const")
        function(definition, "body", op)
    with pytest.raises(safety.UnsafeGraphError) as caught:
        safety.check_graph(definition, where="old.meta")
    text = str(caught.value)
    assert "old.meta: refused" in text
    assert f"({op})" in text
    assert reason in text
    assert {"main": "harm", "nested": "the function inner", "while": "the function body"}[place] in text


def test_a_graph_that_only_computes_passes() -> None:
    safety.check_graph(small(), where="old.meta")


@pytest.mark.parametrize("op", sorted(VARIABLES | TABLES | FILLS_TABLE))
def test_variables_and_tables_are_replaced_in_the_main_graph_and_refused_in_functions(op: str) -> None:
    definition = small()
    definition.node.add(name="kept", op=op)
    safety.check_graph(definition, where="old.meta")
    call(definition, "f")
    function(definition, "f", op)
    with pytest.raises(safety.UnsafeGraphError, match="variables and tables of a function"):
        safety.check_graph(definition, where="old.meta")


def test_a_function_is_called_from_the_graphs_own_library_alone() -> None:
    """Functions of this process have names too: a graph must not run them."""

    @tf.function
    def ours(x: Any) -> Any:
        return x

    name = ours.get_concrete_function(tf.TensorSpec([])).name.decode()
    definition = small()
    call(definition, name)
    with pytest.raises(safety.UnsafeGraphError, match="is not in the graph's library"):
        safety.check_graph(definition, where="old.meta")
    branches = small()
    node = branches.node.add(name="case", op="Case")
    node.attr["branches"].list.func.add(name="missing")
    with pytest.raises(safety.UnsafeGraphError, match="it calls missing"):
        safety.check_graph(branches, where="old.meta")


def test_a_function_named_like_an_operation_is_refused() -> None:
    definition = small()
    function(definition, "MatMul", "Const")
    with pytest.raises(safety.UnsafeGraphError, match="MatMul has the name of an operation"):
        safety.check_graph(definition, where="old.meta")
    twice = small()
    function(twice, "f", "Const")
    function(twice, "f", "NoOp")
    with pytest.raises(safety.UnsafeGraphError, match="2 times"):
        safety.check_graph(twice, where="old.meta")


@pytest.mark.parametrize("length", [1, 2, 3])
def test_functions_that_call_themselves_are_refused(length: int) -> None:
    definition = small()
    call(definition, "f0")
    for number in range(length):
        function(definition, f"f{number}", f"f{(number + 1) % length}")
    with pytest.raises(safety.UnsafeGraphError, match="call themselves"):
        safety.check_graph(definition, where="old.meta")


def test_functions_that_double_at_every_level_and_deep_ones_are_refused() -> None:
    definition = small()
    call(definition, "f0")
    for number in range(40):
        function(definition, f"f{number}", *[f"f{number + 1}"] * 2 if number < 39 else ["Const"])
    with pytest.raises(safety.UnsafeGraphError, match="expanded"):
        safety.check_graph(definition, where="old.meta")
    deep = small()
    call(deep, "f0")
    for number in range(5000):
        function(deep, f"f{number}", f"f{number + 1}" if number < 4999 else "Const")
    with pytest.raises(safety.UnsafeGraphError, match="deep"):
        safety.check_graph(deep, where="old.meta")


def constant(dtype: tf.DType, dims: list[int], content: bytes = b"") -> Any:
    definition = small()
    node = definition.node.add(name="c", op="Const")
    node.attr["dtype"].type = dtype.as_datatype_enum
    tensor = node.attr["value"].tensor
    tensor.dtype = dtype.as_datatype_enum
    tensor.tensor_content = content
    for dim in dims:
        tensor.tensor_shape.dim.add(size=dim)
    return definition


def contradicting(dtype: Any) -> Any:
    """A constant whose value is of another dtype than what reads it expects, at which TensorFlow ends the process."""
    definition = constant(tf.float32, [])
    definition.node[-1].attr["value"].tensor.dtype = getattr(dtype, "as_datatype_enum", dtype)
    return definition


@pytest.mark.parametrize(
    ("definition", "reason"),
    [
        (constant(tf.float32, [1 << 20, 1 << 20]), "bytes are allowed"),
        (constant(tf.float32, [1 << 62, 1 << 62]), "bytes are allowed"),
        (constant(tf.float32, [-1]), r"shape \[-1\]"),
        (constant(tf.float32, [4], b"12"), "with 2 bytes, not 16"),
        (contradicting(tf.int32), "its value is int32, but its result is float32; the file is damaged"),
        (contradicting(0), "a constant of the unknown dtype 0"),
        (constant(tf.resource, []), "reaches objects of this process"),
        (constant(tf.variant, []), "reaches objects of this process"),
    ],
)
def test_a_constant_that_is_not_what_it_says_is_refused_before_it_is_made(definition: Any, reason: str) -> None:
    with pytest.raises(safety.UnsafeGraphError, match=reason):
        safety.check_graph(definition, where="old.meta")


def test_many_constants_that_are_large_together_are_refused() -> None:
    definition = constant(tf.float32, [1 << 28])
    for number in range(3):
        definition.node.append(definition.node[-1])
        definition.node[-1].name = f"more{number}"
    with pytest.raises(safety.UnsafeGraphError, match="constants declare"):
        safety.check_graph(definition, where="old.meta")


@pytest.mark.parametrize(
    "bomb",
    [
        lambda: tf.raw_ops.Fill(dims=[1 << 20, 1 << 20], value=1.0),
        lambda: tf.raw_ops.Tile(input=[1.0], multiples=[1 << 40]),
        lambda: tf.raw_ops.Range(start=np.int64(0), limit=np.int64(1) << 40, delta=np.int64(1)),
        lambda: tf.raw_ops.BroadcastTo(input=1.0, shape=[1 << 20, 1 << 20]),
        lambda: tf.raw_ops.RandomUniform(shape=[1 << 20, 1 << 20], dtype=tf.float32),
    ],
)
def test_a_small_graph_that_asks_for_huge_tensors_is_refused(bomb: Callable[[], Any]) -> None:
    with pytest.raises(safety.UnsafeGraphError, match=r"elements|numbers"):
        safety.check_graph(small(bomb), where="old.meta")


def test_a_huge_tensor_that_only_shapes_show_is_refused_before_a_run() -> None:
    with tf.Graph().as_default() as graph:
        value = tf.ones([64])
        for _ in range(6):
            value = tf.reshape(tf.tile(value[:, None], [1, 64]), [-1])
    safety.check_graph(graph.as_graph_def(), where="old.meta")
    with pytest.raises(safety.UnsafeGraphError, match="would be"):
        safety.check_sizes(graph, where="old.meta")


# Every operation of this TensorFlow that passes was looked at: what is on the list is there by its own name.
def test_what_passes_is_a_list_that_was_looked_at_and_nothing_on_it_reaches_out() -> None:
    suspicious = re.compile(
        "File|Reader|Record|Dataset|Iterator|PyFunc|Remote|Rpc|Send|Recv|Collective|TPU|Xla|Print|Debug|Abort|Cache|Sql|Save|"
        "Restore|Summary|Proto|Decode|Encode|Audio|Queue|Session|Barrier|Mutex|Handle|Nccl|Sleep|Assign|Apply|Event|Host"
    )
    allowed_words = {"UnicodeDecode", "UnicodeDecodeWithOffsets", "UnicodeEncode"}  # text
    allowed_words |= {"CTCBeamSearchDecoder", "CTCGreedyDecoder"}  # of probabilities
    for op in HARMLESS - allowed_words:
        assert hasattr(tf.raw_ops, op), op
        assert not op.startswith("_"), op
        assert not suspicious.search(op), op
    assert sum(map(len, FAMILIES.values())) == len(HARMLESS), "an operation is in two families"


def test_the_stateful_operations_that_pass_are_these() -> None:
    stateful = {op for op in HARMLESS if op_def_registry.get(op).is_stateful}
    variables = {"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "VarIsInitializedOp"}
    control = {"If", "While", "Case", "StatefulPartitionedCall", "Assert", "CheckNumerics", "GuaranteeConst"}
    random = {op for op in FAMILIES["random"] if not op.startswith("Stateless")} | {"StatelessRandomGetAlg"}
    lists = {op for op in FAMILIES["control flow"] if op.startswith(("TensorArray", "Stack"))}
    assert stateful - variables - control - random - lists == {"LookupTableFindV2", "LookupTableSizeV2"}


def test_every_other_registered_operation_is_refused_with_a_reason() -> None:
    names = [name for name in dir(tf.raw_ops) if op_def_registry.get(name) is not None]
    assert len(names) > 1000
    others = [name for name in names if name not in HARMLESS | VARIABLES | TABLES | FILLS_TABLE]
    definition = tf.compat.v1.GraphDef()
    for name in others:
        definition.ClearField("node")
        definition.node.add(name="n", op=name)
        with pytest.raises(safety.UnsafeGraphError, match=rf"n \({name}\): "):
            safety.check_graph(definition, where="old.meta")
    assert not set(SUCCESSORS) & HARMLESS


def test_extracting_checks_what_the_outputs_need_and_only_that() -> None:
    def harm() -> None:
        tf.io.read_file(tf.constant("/etc/passwd"), name="harm")

    meta = tf.compat.v1.MetaGraphDef(graph_def=small(harm))
    assert extract.extract(meta, path="old.meta", outputs=["y"]).outputs == ("y:0",)
    next(node for node in meta.graph_def.node if node.name == "y").input.append("^harm")
    with pytest.raises(safety.UnsafeGraphError, match=r"harm \(ReadFile\): it reaches files"):
        extract.extract(meta, path="old.meta", outputs=["y"])
