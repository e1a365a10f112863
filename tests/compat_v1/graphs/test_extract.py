"""An extracted graph gives, bit for bit, what its Session and Saver gave."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from compat_v1.checkpoints.reader import open_checkpoint
from compat_v1.errors import GraphError
from compat_v1.graphs import extract, input_text, metagraph
from compat_v1.graphs.original import Original
from engine.graphs.safety import UnsafeGraphError

v1 = tf.compat.v1
X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
PLAIN = tf.compat.v1.ConfigProto()  # the graph as it is written, as Original runs it
PLAIN.graph_options.rewrite_options.disable_meta_optimizer = True


@pytest.fixture(params=[True, False], ids=["v2", "v1"])
def control_flow(request: pytest.FixtureRequest) -> Iterator[None]:
    """Loops and conditions as functions, or as Switch and Merge."""
    was = v1.control_flow_v2_enabled()
    (v1.enable_control_flow_v2 if request.param else v1.disable_control_flow_v2)()
    yield
    (v1.enable_control_flow_v2 if was else v1.disable_control_flow_v2)()


class Made:
    """A small TF1 graph, trained for nothing, saved, and its outputs as its Session gives them."""

    def __init__(self, folder: pathlib.Path, build: Callable[[], None]) -> None:
        self.prefix = folder / "model.ckpt"
        self.graph = tf.Graph()
        with self.graph.as_default():
            v1.set_random_seed(1)
            build()
            self.saver = v1.train.Saver() if v1.global_variables() else None
            with v1.Session() as session:
                session.run([v1.global_variables_initializer(), v1.tables_initializer()])
                if self.saver is not None:
                    self.saver.save(session, str(self.prefix))
                else:
                    v1.train.export_meta_graph(f"{self.prefix}.meta")
        self.definition = metagraph.read_metagraph(f"{self.prefix}.meta").definition

    def session(self, outputs: Any, feeds: Mapping[str, Any]) -> Any:
        with self.graph.as_default(), v1.Session() as session:
            session.run(v1.tables_initializer())
            if self.saver is not None:
                self.saver.restore(session, str(self.prefix))
            return session.run(outputs, feeds)

    def extracted(self, **arguments: Any) -> extract.Extracted:
        return extract.extract(self.definition, path="model.meta", **arguments)

    def original(self, time_limit: float = 60.0, **arguments: Any) -> Original:
        part = self.extracted(**arguments)
        if self.saver is None:
            return Original(part, Nothing(), time_limit=time_limit)  # type: ignore[arg-type]
        return Original(part, open_checkpoint(self.prefix), time_limit=time_limit)

    def check(self, feeds: Mapping[str, Any], **arguments: Any) -> Original:
        original = self.original(**arguments)
        found = original(feeds)
        wanted = self.session(list(found), {**feeds, **original.extracted.fixed})
        for value, (name, got) in zip(wanted, found.items(), strict=True):
            np.testing.assert_array_equal(got, value, err_msg=name)
        return original


class Nothing:
    """A checkpoint without a tensor."""

    path = pathlib.Path("nothing")

    def names(self) -> list[str]:
        return []


def placeholder(shape: Any = (None, 4)) -> Any:
    return v1.placeholder(tf.float32, shape, name="x")


def dense(x: Any, units: int, name: str, *, resource: bool, **more: Any) -> Any:
    with v1.variable_scope(name, use_resource=resource, **more):
        kernel = v1.get_variable("kernel", [x.shape[-1], units])
        bias = v1.get_variable("bias", [units], initializer=v1.random_normal_initializer())
        return x @ kernel + bias


@pytest.mark.parametrize("resource", [True, False])
def test_variables_of_both_kinds_and_training_that_is_left_out(tmp_path: pathlib.Path, resource: bool) -> None:
    def build() -> None:
        out = tf.nn.relu(dense(placeholder(), 5, "one", resource=resource))
        out = tf.identity(dense(out, 2, "two", resource=resource), name="out")
        label = v1.placeholder(tf.float32, [None, 2], name="label")
        loss = tf.reduce_mean((out - label) ** 2, name="loss")
        v1.train.AdamOptimizer().minimize(loss)

    made = Made(tmp_path, build)
    original = made.check({"x:0": X})
    assert [each.name for each in original.extracted.inputs] == ["x:0"]
    assert original.extracted.outputs == ("out:0",)
    kept = {each.node for each in original.extracted.variables}
    assert kept == {"one/kernel", "one/bias", "two/kernel", "two/bias"}
    ops = {node.op for node in original.extracted.definition.node}
    assert not ops & {"SaveV2", "RestoreV2", "ApplyAdam", "ResourceApplyAdam", "VariableV2", "VarHandleOp"}


@pytest.mark.parametrize("resource", [True, False])
def test_partitioned_variables(tmp_path: pathlib.Path, resource: bool) -> None:
    def build() -> None:
        parts = v1.fixed_size_partitioner(3)
        dense(placeholder(), 5, "one", resource=resource, partitioner=parts)
        tf.nn.embedding_lookup(
            v1.get_variable("table", [10, 4], partitioner=parts, use_resource=resource),
            v1.placeholder(tf.int64, [None], name="ids"),
            name="rows",
        )

    made = Made(tmp_path, build)
    with open_checkpoint(made.prefix, merge_parts=False) as source:
        assert "one/kernel" in source.names()  # stored as slices under the whole's name
    made.check({"x:0": X}, outputs=["one/add"])
    made.check({"ids:0": np.array([0, 3, 4, 9])}, outputs=["rows"])


def test_a_saver_with_a_dict_says_itself_which_key_is_which_variable(tmp_path: pathlib.Path) -> None:
    with tf.Graph().as_default():
        out = dense(placeholder(), 2, "one", resource=True)
        tf.identity(out, name="out")
        average = v1.train.ExponentialMovingAverage(0.5)
        average.apply(v1.trainable_variables())
        saver = v1.train.Saver(average.variables_to_restore(v1.trainable_variables()))
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            wanted = session.run(out, {"x:0": X})
            saver.save(session, str(tmp_path / "model.ckpt"))
    part = extract.extract(metagraph.read_metagraph(tmp_path / "model.ckpt.meta").definition, path="m", outputs=["out"])
    assert {each.saved.key for each in part.variables} == {
        f"one/{name}/ExponentialMovingAverage" for name in ("kernel", "bias")
    }
    found = Original(part, open_checkpoint(tmp_path / "model.ckpt"))({"x:0": X})
    np.testing.assert_array_equal(found["out:0"], wanted)


@pytest.mark.usefixtures("control_flow")
@pytest.mark.parametrize("resource", [True, False])
def test_conditions_and_loops_around_variables(tmp_path: pathlib.Path, resource: bool) -> None:
    def build() -> None:
        x = placeholder([3, 4])
        with v1.variable_scope("s", use_resource=resource):
            w = v1.get_variable("w", [4, 4])
        grown = tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, tf.tanh(y @ w)), [0, x])[1]
        chosen = tf.cond(tf.reduce_sum(x) > 0, lambda: grown + w[0], lambda: grown - w[1])
        tf.identity(chosen, name="out")

    made = Made(tmp_path, build)
    made.check({"x:0": X}, outputs=["out"])
    made.check({"x:0": -X}, outputs=["out"])


@pytest.mark.usefixtures("control_flow")
def test_a_branch_of_a_known_condition_is_not_taken_in(tmp_path: pathlib.Path) -> None:
    """The way of old batch normalisation: in training the branch itself updates averages."""

    def build() -> None:
        x = placeholder()
        training = v1.placeholder(tf.bool, [], name="is_training")
        mean = v1.get_variable(
            "mean", [4], initializer=v1.random_normal_initializer(), trainable=False, use_resource=True
        )

        def update() -> Any:
            batch = tf.reduce_mean(x, 0)
            with tf.control_dependencies([v1.assign(mean, batch)]):
                return tf.identity(batch)

        tf.subtract(x, tf.cond(training, update, lambda: tf.identity(mean)), name="out")

    made = Made(tmp_path, build)
    original = made.check({"x:0": X}, inputs={"is_training": False}, outputs=["out"])
    assert not [node for node in original.extracted.definition.node if node.op in ("Merge", "If")]
    with pytest.raises(UnsafeGraphError, match="it changes variables"):
        made.extracted(inputs={"is_training": True}, outputs=["out"])
    with pytest.raises(
        GraphError, match=r"also need the bool placeholder is_training; fix its value with inputs=is_training=False"
    ):
        made.extracted(outputs=["out"])


@pytest.mark.usefixtures("control_flow")
def test_a_placeholder_with_a_default_has_it_unless_it_is_fed(tmp_path: pathlib.Path) -> None:
    def build() -> None:
        x = placeholder()
        scale = v1.placeholder_with_default(2.0, [], name="scale")
        training = v1.placeholder_with_default(False, [], name="is_training")
        tf.cond(training, lambda: v1.nn.dropout(x, rate=0.5), lambda: x * scale, name="out")
        tf.identity(x + scale, name="sum")

    made = Made(tmp_path, build)
    original = made.check({"x:0": X}, outputs=["sum"])
    assert original.extracted.random == ()
    made.check({"x:0": X, "scale:0": np.float32(3.0)}, inputs=["x", "scale"], outputs=["sum"])
    made.check({"x:0": X}, inputs={"x": None, "scale:0": 0.25}, outputs=["sum"])


def test_batch_normalisation_in_inference_mode(tmp_path: pathlib.Path) -> None:
    def build() -> None:
        x = placeholder([None, 2, 2, 1])
        args = [v1.get_variable(name, [1], initializer=v1.random_uniform_initializer(0.5, 2.0)) for name in "sovm"]
        out, _, _ = v1.nn.fused_batch_norm(x, args[0], args[1], args[3], args[2], is_training=False)
        tf.identity(out, name="out")

    Made(tmp_path, build).check({"x:0": X.reshape(3, 2, 2, 1)}, outputs=["out"])


def test_tables_are_filled_and_two_graphs_do_not_share_one(tmp_path: pathlib.Path) -> None:
    def build(values: list[int]) -> Callable[[], None]:
        def inner() -> None:
            initial = (
                v1.lookup.KeyValueTensorInitializer if hasattr(v1, "lookup") else tf.lookup.KeyValueTensorInitializer
            )
            table = tf.lookup.StaticHashTable(initial(tf.constant(["a", "b"]), tf.constant(values)), -1)
            words = v1.placeholder(tf.string, [None], name="words")
            tf.identity(table.lookup(words), name="out")

        return inner

    words = np.array([b"a", b"b", b"c"], object)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = Made(tmp_path / "one", build([1, 2])), Made(tmp_path / "two", build([7, 8]))
    first, second = one.check({"words:0": words}, outputs=["out"]), two.check({"words:0": words}, outputs=["out"])
    assert first({"words:0": words})["out:0"].tolist() == [1, 2, -1]
    assert second({"words:0": words})["out:0"].tolist() == [7, 8, -1]


def test_library_functions_are_kept_as_far_as_they_are_used(tmp_path: pathlib.Path) -> None:
    def build() -> None:
        x = placeholder()
        with v1.variable_scope("s", use_resource=True):
            w = v1.get_variable("w", [4, 4])

        @tf.function(autograph=False)
        def inner(y: Any) -> Any:
            return tf.tanh(y @ w)

        @tf.function(autograph=False)
        def outer(y: Any) -> Any:
            return inner(y) + inner(2 * y)

        @tf.function(autograph=False)
        def unused(y: Any) -> Any:
            return tf.io.read_file(y)

        tf.identity(outer(x), name="out")
        unused(tf.constant("x"))

    made = Made(tmp_path, build)
    original = made.check({"x:0": X}, outputs=["out"])
    functions = original.extracted.definition.library.function
    assert len(made.definition.graph_def.library.function) > len(functions) == 2
    assert not original.extracted.definition.library.gradient


def test_any_tensor_can_be_an_input(tmp_path: pathlib.Path) -> None:
    def build() -> None:
        queue = v1.FIFOQueue(8, [tf.float32, tf.int32], [[4], []], name="queue")
        images, _ = queue.dequeue_many(3, name="batch")
        dense(images, 2, "one", resource=False)

    made = Made(tmp_path, build)
    with pytest.raises(GraphError, match=r"batch:0 .QueueDequeueManyV2.*feed it with inputs=batch:0"):
        made.extracted(outputs=["one/add"], inputs={"one/kernel/read": None})
    made.check({"batch:0": X}, inputs=["batch:0"], outputs=["one/add"])
    made.check({"one/matmul:0": X[:, :2]}, inputs=["one/matmul"], outputs=["one/add:0"])


@pytest.mark.parametrize("use", ["log", "argmax", "top", "summary", "identity", "attention"])
def test_the_last_activation_is_among_the_outputs_whatever_reads_it(tmp_path: pathlib.Path, use: str) -> None:
    def build() -> None:
        logits = dense(placeholder(), 3, "logits", resource=True)
        softmax = tf.nn.softmax(logits, name="softmax")
        if use == "log":
            labels = v1.placeholder(tf.float32, [None, 3], name="labels")
            tf.reduce_sum(labels * tf.math.log(softmax + 1e-6, name="log"), name="by_hand")
        elif use == "argmax":
            tf.cast(tf.argmax(softmax, 1), tf.float32, name="class")
        elif use == "top":
            tf.nn.top_k(softmax, name="top")
        elif use == "summary":
            v1.summary.histogram("probabilities", softmax)
        elif use == "identity":
            tf.identity(softmax, name="probabilities")
        else:
            dense(softmax * logits, 2, "last", resource=True)

    made = Made(tmp_path, build)
    if use in ("summary", "identity", "attention"):
        outputs = {"summary": "softmax:0", "identity": "probabilities:0", "attention": "last/add:0"}
        assert made.extracted(inputs=["x"]).outputs == (outputs[use],)
        return
    with pytest.raises(GraphError, match=r"2 candidates; choose from: .*softmax:0"):
        made.extracted(inputs=["x"])


def test_what_is_given_by_itself_several_times_is_listed(tmp_path: pathlib.Path) -> None:
    def build() -> None:
        x, other = placeholder(), v1.placeholder(tf.float32, [None, 4], name="other")
        first = dense(x, 2, "first", resource=True)
        tf.identity(first + 1, name="a")
        tf.identity(first - 1, name="b")
        tf.add(first, dense(other, 2, "second", resource=True), name="both")

    made = Made(tmp_path, build)
    with pytest.raises(GraphError, match="2 inputs; name them: x:0, other:0"):
        made.extracted(outputs=["both"])
    with pytest.raises(GraphError, match="2 candidates; choose from: a:0, b:0"):
        made.extracted(inputs=["x"])
    both = made.check({"x:0": X, "other:0": X}, inputs=["x", "other"], outputs=["both"])
    assert both.extracted.outputs == ("both:0",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"outputs": ["ouy"]}, "outputs=ouy: model.meta has no operation ouy; nearest: out"),
        ({"outputs": ["out:1"]}, "has 1 outputs"),
        ({"inputs": ["y"]}, "inputs=y: model.meta has no operation y"),
        ({"inputs": {"flag": 0.5}, "outputs": ["out"]}, "inputs=flag:0=0.5: expected a value of dtype bool"),
        ({"inputs": {"x": True}, "outputs": ["out"]}, "inputs=x:0=True: expected a value of dtype float32"),
    ],
)
def test_bad_names_and_values_are_said(tmp_path: pathlib.Path, arguments: Any, message: str) -> None:
    def build() -> None:
        v1.placeholder(tf.bool, [], name="flag")
        tf.identity(placeholder() * 2, name="out")

    with pytest.raises(GraphError) as caught:
        Made(tmp_path, build).extracted(**arguments)
    assert message in str(caught.value)


def test_feeds_and_checkpoints_that_do_not_fit_are_said(tmp_path: pathlib.Path) -> None:
    made = Made(tmp_path, lambda: tf.identity(dense(placeholder(), 2, "one", resource=True), name="out"))
    original = made.original(outputs=["out"])
    with pytest.raises(GraphError, match=r"inputs=x:0: got \[3, 5\] float32, expected \['\?', 4\] float32"):
        original({"x:0": np.zeros((3, 5), np.float32)})
    with pytest.raises(GraphError, match="expects x:0"):
        original({})
    with pytest.raises(GraphError, match=r"there is no one/kernel, which the graph model.meta reads"):
        Original(original.extracted, Nothing())  # type: ignore[arg-type]


@pytest.mark.usefixtures("control_flow")
def test_a_loop_that_never_ends_is_stopped(tmp_path: pathlib.Path) -> None:
    def build() -> None:
        tf.identity(
            tf.while_loop(lambda y: tf.reduce_sum(y) < 1e9, lambda y: y * 1.0, [placeholder([])])[0], name="out"
        )

    made = Made(tmp_path, build)
    with pytest.raises(GraphError, match="did not finish within 1 seconds and was stopped"):
        made.original(outputs=["out"], time_limit=1.0)({"x:0": np.float32(1.0)})


def test_a_saved_model_says_itself_what_goes_in_and_out(tmp_path: pathlib.Path) -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        x = placeholder()
        out = dense(x, 2, "one", resource=True)
        session.run(v1.global_variables_initializer())
        wanted = session.run(out, {"x:0": X})
        v1.saved_model.simple_save(session, str(tmp_path / "saved"), {"images": x}, {"scores": out})
    part = extract.extract(metagraph.read_metagraph(tmp_path / "saved").definition, path="saved")
    assert ([each.name for each in part.inputs], part.outputs) == (["x:0"], ("one/add:0",))
    found = Original(part, open_checkpoint(tmp_path / "saved"))({"x:0": X})
    np.testing.assert_array_equal(found["one/add:0"], wanted)


@pytest.mark.parametrize(
    ("attribute", "message"), [("dtype", "has the dtype 0"), ("num", "declares 1,152,921,504,606,846,976 outputs")]
)
def test_damaged_attributes_are_said(attribute: str, message: str) -> None:
    with tf.Graph().as_default() as graph:
        v1.get_variable("w", [2], use_resource=True)
        tf.unstack(placeholder([2]), name="parts")
    meta = v1.MetaGraphDef(graph_def=graph.as_graph_def())
    for node in meta.graph_def.node:
        if node.op == "VarHandleOp" and attribute == "dtype":
            del node.attr["dtype"]
        elif node.op == "Unpack" and attribute == "num":
            node.attr["num"].i = 1 << 60
    with pytest.raises(GraphError, match=message):
        extract.extract(meta, path="m", outputs=["w/Read/ReadVariableOp" if attribute == "dtype" else "parts"])


def test_inputs_are_parsed_from_text(tmp_path: pathlib.Path) -> None:
    parse = input_text.parse_inputs
    assert parse("a/b, c:1=False,d=0.5,e=3") == {"a/b": None, "c:1": False, "d": 0.5, "e": 3}
    assert parse("") == {}
    assert parse("x[None,32, ?,3],y[],z [-1]") == {"x": (None, 32, None, 3), "y": (), "z": (None,)}
    assert parse("n=[300, 280],m=[[1,2],[3,4]],k=[],mode='a,[b'") == {
        "n": [300, 280], "m": [[1, 2], [3, 4]], "k": [], "mode": "a,[b",
    }  # fmt: skip
    np.savez(tmp_path / "side.npz", lengths=np.int32([5, 6]), other=np.zeros(1))
    np.savez(tmp_path / "one.npz", anything=np.int32([7]))
    np.testing.assert_array_equal(parse(f"x,lengths:0={tmp_path}/side.npz")["lengths:0"], [5, 6])
    np.testing.assert_array_equal(parse(f"lengths={tmp_path}/one.npz")["lengths"], [7])
    for text in ("a=yes", "a=[1", "a=", "a=__import__('os')", "a={}", "a=[1]]"):
        with pytest.raises(GraphError, match="a number, True or False, a list"):
            parse(text)
    for text, said in (
        ("a[x]", "x is not a valid length"), ("a[3]=4", "expected NAME, NAME"), ("a,a", "a is given twice"),
        (f"a={tmp_path}/side.npz", "holds 2 arrays and none called a"), ("a=none.npz", "there is no such file"),
    ):  # fmt: skip
        with pytest.raises(GraphError, match=said):
            parse(text)


def test_side_inputs_that_are_arrays_are_fixed(tmp_path: pathlib.Path) -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, [None, None, 2], name="x")
        lengths = v1.placeholder(tf.int32, [None], name="lengths")
        mode = v1.placeholder(tf.string, [], name="mode")
        mask = tf.cast(tf.sequence_mask(lengths, tf.shape(x)[1]), tf.float32)
        tf.reduce_sum(x * mask[..., None] * tf.cast(tf.strings.length(mode), tf.float32), 1, name="out")

    made = Made(tmp_path, build)
    x = np.random.default_rng(1).standard_normal((2, 5, 2)).astype(np.float32)
    given = input_text.parse_inputs("x[None,5,2],lengths=[3, 5],mode='ab'")
    original = made.check({"x:0": x}, inputs=given, outputs=["out"])
    assert original.extracted.inputs[0].shape == (None, 5, 2)
    assert "x:0 [?, 5, 2] float32, lengths:0=[3, 5], mode:0=ab -> out:0" in original.extracted.summary()
    np.testing.assert_allclose(original({"x:0": x})["out:0"][0], 2 * x[0, :3].sum(0), rtol=1e-5)
    for text, said in (
        ("x,lengths=3,mode=''", r"inputs=lengths:0=3: got the shape \[\], expected \[\?\]"),
        ("x,lengths=[0.5],mode=''", "expected a value of dtype int32"),
        ("x,lengths=[3000000000],mode=''", "does not fit into int32"),
        ("x,lengths=[[1],[2,3]],mode=''", "lists in it have different lengths"),
        ("x[None,5],lengths=[3],mode=''", r"inputs=x:0\[\?, 5\]: the graph model.meta has it as \[\?, \?, 2\]"),
        ("x[2,5,3],lengths=[3],mode=''", r"has it as \[\?, \?, 2\]"),
    ):
        with pytest.raises(GraphError, match=said):
            made.extracted(inputs=input_text.parse_inputs(text), outputs=["out"])


def test_an_unknown_operation_is_refused_only_where_it_is_needed(tmp_path: pathlib.Path) -> None:
    made = Made(tmp_path, lambda: tf.identity(dense(placeholder(), 2, "one", resource=True), name="out"))
    made.definition.graph_def.node.add(name="warp", op="ZeroOutCustom", input=["x"])
    made.definition.graph_def.node.add(name="after", op="Identity", input=["warp"]).attr["T"].type = 1
    made.check({"x:0": X}, outputs=["out"])
    with pytest.raises(UnsafeGraphError, match=r"warp \(ZeroOutCustom\): no such operation is registered"):
        made.extracted(outputs=["after"])


REAL = [
    (
        "mtcnn_PNet_landmark/PNet-18.meta",
        "mtcnn_PNet_landmark/PNet-18",
        None,
        ["Reshape_4", "bbox_pred", "landmark_pred"],
    ),
    ("musicnn_MTT_vgg/.meta", "musicnn_MTT_vgg/", {"model/Placeholder_2": False}, None),
    ("made_ema_bn_momentum/model.ckpt-20.meta", "made_ema_bn_momentum/model.ckpt-20", None, None),
    ("made_partitioned_adam/sliced.ckpt-3.meta", "made_partitioned_adam/sliced.ckpt-3", None, None),
    ("tf2onnx_regression/model.meta", "tf2onnx_regression/model", None, None),
    ("serving_half_plus_two_v1format/export.meta", "serving_half_plus_two_v1format/export", {"x": None}, ["y"]),
]


@pytest.mark.parametrize(
    ("graph", "checkpoint", "inputs", "outputs"), REAL, ids=[each[0].split("/")[0] for each in REAL]
)
def test_real_graphs_give_what_their_session_gives(
    real: pathlib.Path, graph: str, checkpoint: str, inputs: Any, outputs: Any
) -> None:
    meta = metagraph.read_metagraph(real / graph).definition
    part = extract.extract(meta, path=graph, inputs=inputs, outputs=outputs)
    with open_checkpoint(f"{real}/{checkpoint}") as source:
        original = Original(part, source)
    generator = np.random.default_rng(0)
    feeds = {
        each.name: generator.standard_normal([n or 3 for n in each.shape] if each.shape is not None else [3]).astype(
            "f"
        )
        for each in part.inputs
    }
    if "serving" in graph:
        feeds = {"x:0": feeds["x:0"][:, None]}
    found = original(feeds)
    prefix = f"{real}/{checkpoint}" + ("-?????-of-?????" if "serving" in graph else "")
    with tf.Graph().as_default(), v1.Session(config=PLAIN) as session:
        saver = v1.train.import_meta_graph(meta)
        if "serving" in graph:  # its sharded V1 Saver builds the file name itself
            reader = v1.train.NewCheckpointReader(prefix)
            for variable in v1.global_variables():
                if reader.has_tensor(variable.op.name):
                    session.run(
                        variable.initializer, {variable.initializer.inputs[1]: reader.get_tensor(variable.op.name)}
                    )
        else:
            saver.restore(session, prefix)
        wanted = session.run(list(found), {**feeds, **part.fixed})
    for value, (name, got) in zip(wanted, found.items(), strict=True):
        np.testing.assert_array_equal(got, value, err_msg=name)
        assert np.ptp(got) > 0 or got.size == 1
