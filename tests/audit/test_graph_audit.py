"""The audit: how the train op is found, what is expected to be frozen, the engine's own steps and runs."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, models, select
from engine.audit.findings import RULES
from engine.audit.graph_audit import AuditError, audit_graph, with_moved
from engine.audit.graph_collections import GraphFacts
from engine.audit.training_audit import audit_run, audit_step
from engine.digests import digest
from engine.graphs import graphdef
from engine.graphs.graphdef import FlatGraph
from engine.graphs.nodes import FlatGraphError
from engine.selection.filters import FilterError
from engine.selection.proof import digests
from engine.training import losses, optimizers
from engine.training.losses import Loss

v1 = tf.compat.v1


def small(*, train: bool = True) -> tf.Graph:
    """Two layers with Momentum, trained by the op "train"."""
    with tf.Graph().as_default() as made:
        x = v1.placeholder(tf.float32, [None, 3], name="x")
        with v1.variable_scope("body"):
            kernel = v1.get_variable("kernel", [3, 4])
            bias = v1.get_variable("bias", [4])
        with v1.variable_scope("head"):
            head = v1.get_variable("kernel", [4, 1])
        loss = tf.reduce_mean(tf.square((x @ kernel + bias) @ head))
        if train:
            v1.train.MomentumOptimizer(0.1, 0.9).minimize(
                loss, name="train", global_step=v1.train.get_or_create_global_step()
            )
        else:
            tf.identity(loss, name="loss")
    return made


def facts(graph: tf.Graph) -> GraphFacts:
    return GraphFacts.from_graph(graph)


# --- audit.json


def test_the_json_has_the_keys_of_the_contract() -> None:
    found = audit_graph(facts(small())).to_json()
    assert list(found) == ["source", "train_op", "variables", "findings"]
    assert (found["source"], found["train_op"], found["findings"]) == ("graph", "train", [])
    assert found["variables"][0] == {
        "path": "body/kernel",
        "written": True,
        "by": [{"op": "train/update_body/kernel/ResourceApplyMomentum", "kind": "optimizer apply"}],
        "gradient": "yes",
        "trainable_collection": True,
        "slots": ["body/kernel/Momentum"],
    }
    assert json.loads(json.dumps(found)) == found


# --- the train op


def test_the_train_op_is_found_by_its_collection_or_by_what_nothing_waits_for() -> None:
    made = small()
    assert audit_graph(facts(made)).train_op == "train"
    assert audit_graph(dataclasses.replace(facts(made), train_ops=())).train_op == "train"


def test_several_train_ops_are_listed() -> None:
    made = small()
    with made.as_default():
        loss = tf.reduce_sum(v1.trainable_variables()[0])
        v1.train.GradientDescentOptimizer(0.1).minimize(loss, name="other")
    for given in (facts(made), dataclasses.replace(facts(made), train_ops=())):
        with pytest.raises(AuditError, match=r"2 ops may be the train op; name one of: train, other"):
            audit_graph(given)
        both = audit_graph(given, ["train", "other"])
        assert both.train_op == "train, other"
        assert len(both.row("body/kernel").by) == 2


def estimator(*, use_resource: bool = True, last: str = "") -> tf.Graph:
    """Two optimizers and moving averages below an op that adds 1 to global_step, as an Estimator's head builds it."""
    with tf.Graph().as_default() as made, v1.variable_scope("", use_resource=use_resource):
        x = v1.placeholder(tf.float32, [None, 3])
        with v1.variable_scope("linear"):
            linear = v1.get_variable("kernel", [3, 1])
        with v1.variable_scope("dnn"):
            deep = [v1.get_variable(f"kernel{n}", shape) for n, shape in enumerate(([3, 4], [4, 1]))]
        mean = v1.get_variable("bn/moving_mean", [3], trainable=False)
        v1.add_to_collection(v1.GraphKeys.UPDATE_OPS, v1.assign(mean, tf.reduce_mean(x, 0)).op)
        loss = tf.reduce_mean(tf.square(x @ linear + tf.tanh(x @ deep[0]) @ deep[1]))
        step = v1.train.get_or_create_global_step()
        trained = [
            v1.train.FtrlOptimizer(0.1).minimize(loss, var_list=[linear]),
            v1.train.AdagradOptimizer(0.1).minimize(loss, var_list=deep),
        ]
        with tf.control_dependencies([*trained, *v1.get_collection(v1.GraphKeys.UPDATE_OPS)]):
            train = v1.assign_add(step, 1, name="count")
        if last:
            with tf.control_dependencies([train]):
                tf.identity(loss, name=last)
    return made


@pytest.mark.parametrize("use_resource", [True, False], ids=["resource", "reference"])
@pytest.mark.parametrize("last", ["", "loss_after"])
def test_an_estimators_train_op_is_the_one_that_counts_steps(use_resource: bool, last: str) -> None:
    made = estimator(use_resource=use_resource, last=last)
    assert len(facts(made).train_ops) == 2
    found = audit_graph(facts(made))
    assert found.train_op == ("AssignAddVariableOp" if use_resource else "count")
    assert all(row.written for row in found.variables)
    assert not found.notes
    part = audit_graph(facts(made), facts(made).train_ops[0])
    assert part.notes == (
        f"{found.train_op} runs {part.train_op} too, and may write {len(found.variables) - 3} more variables",
    )


def test_optimizers_in_a_group_are_one_train_op_and_in_two_groups_are_listed_with_what_they_write() -> None:
    with tf.Graph().as_default() as made:
        one, other = (v1.get_variable(name, [3]) for name in ("one", "other"))
        loss = tf.reduce_sum(one * other)
        optimizer = v1.train.MomentumOptimizer(0.1, 0.9)
        each = [optimizer.minimize(loss, var_list=[v], name=f"train_{v.op.name}") for v in (one, other)]
    with pytest.raises(AuditError) as told:
        audit_graph(facts(made))
    assert "train_one would write 2 of 4 variables; an optimizer moves one and one/Momentum" in str(told.value)
    assert "train_other would write 2 of 4 variables; an optimizer moves other and other/Momentum" in str(told.value)
    with made.as_default():
        tf.group(*each, name="both")
        with tf.control_dependencies(each[:1]):
            tf.identity(loss, name="half")
    found = audit_graph(facts(made))
    assert found.train_op == "both"
    assert found.notes == ("both runs more updates than half; --train_op chooses another",)


def test_of_ops_with_the_same_writes_the_last_collected_one_is_named() -> None:
    made = small()
    with made.as_default():
        with tf.control_dependencies([made.get_operation_by_name("train")]):
            after = tf.identity(made.get_tensor_by_name("Mean:0"), name="train_op")  # as slim does
        assert audit_graph(facts(made)).train_op == "train"
        v1.add_to_collection(v1.GraphKeys.TRAIN_OP, after)
    assert audit_graph(facts(made)).train_op == "train_op"


def test_updates_without_a_kernel_are_found_and_a_collected_op_without_updates_too() -> None:
    with tf.Graph().as_default() as made:
        weight = v1.get_variable("weight", [3])
        count = v1.get_variable("count", [], trainable=False)
        (gradient,) = tf.gradients(tf.reduce_sum(tf.square(weight)), [weight])
        step = v1.assign(weight, weight - 0.1 * gradient).op
        tf.group(step, name="by_hand")
    assert audit_graph(facts(made)).train_op == "by_hand"
    with made.as_default():
        v1.add_to_collection(v1.GraphKeys.TRAIN_OP, v1.assign_add(count, 1.0).op)
    with pytest.raises(AuditError, match="2 ops may be the train op; name one of: AssignAddVariableOp, by_hand"):
        audit_graph(facts(made))


def test_a_missing_train_op_is_reported_with_the_candidates() -> None:
    with pytest.raises(AuditError, match=r"train_op='trian': graph has no such op; candidates: train"):
        audit_graph(facts(small()), "trian")
    with pytest.raises(AuditError, match=r"train_op='los': graph has no such op; nearest: loss"):
        audit_graph(facts(small(train=False)), "los")
    with pytest.raises(AuditError, match="no train op was found, since the graph has no optimizer's op"):
        audit_graph(facts(small(train=False)))
    with pytest.raises(AuditError, match="expected at least one op"):
        audit_graph(facts(small()), [])


def test_what_is_fetched_may_be_a_tensor_or_write_nothing() -> None:
    assert not any(row.written for row in audit_graph(facts(small(train=False)), "loss:0").variables)


# --- expect_frozen


def test_each_variable_expected_frozen_that_is_written_is_a_finding_with_a_fix() -> None:
    found = audit_graph(facts(small()), expect_frozen="body/.* !.*/bias")
    assert [(f.path, f.rule, f.fix) for f in found.findings] == [
        (
            "body/kernel",
            "frozen but written: by train/update_body/kernel/ResourceApplyMomentum (optimizer apply)",
            "take it out of var_list, or cut its gradient and leave it out of apply_gradients",
        )
    ]
    assert found.findings[0].rule.partition(":")[0] in RULES
    assert f"finding: body/kernel: {found.findings[0].rule}" in found.table()


def test_groups_mean_the_variables_of_the_model_not_the_optimizer_s_state() -> None:
    found = audit_graph(facts(small()), expect_frozen="@all")
    assert [f.path for f in found.findings] == ["body/kernel", "body/bias", "head/kernel"]
    assert [f.path for f in audit_graph(facts(small()), expect_frozen="@kernel !@head").findings] == ["body/kernel"]


def test_an_item_that_matches_nothing_is_an_error_with_the_nearest_paths() -> None:
    with pytest.raises(FilterError, match=r"expect_frozen: item 1 `bodi/.\*` matches nothing.*nearest: body/"):
        audit_graph(facts(small()), expect_frozen="bodi/.*")
    with pytest.raises(FilterError, match="step counters and averages do not count as variables of the model"):
        audit_graph(facts(small()), expect_frozen="global_step")


def test_python_code_can_break_a_promise_and_is_reported() -> None:
    with tf.Graph().as_default() as made:
        kernel = v1.get_variable("kernel", [3, 1])
        v1.get_variable("still", [3], trainable=False)
        x = v1.py_func(lambda: np.ones([2, 3], np.float32), [], tf.float32, name="load")
        x.set_shape([2, 3])
        v1.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_sum(tf.square(x @ kernel)), name="train")
    plain = audit_graph(facts(made))
    assert plain.findings == ()
    assert "Python functions run, and they can write any variable: load" in plain.notes
    expected = audit_graph(facts(made), expect_frozen="still")
    assert [(f.path, f.rule.partition(":")[0]) for f in expected.findings] == [("load", "unseen write")]


def test_a_write_through_a_handle_from_elsewhere_is_reported() -> None:
    with tf.Graph().as_default() as made:
        handle = v1.placeholder(tf.resource, [], name="handle")
        tf.raw_ops.AssignAddVariableOp(resource=handle, value=1.0, name="hidden")
    found = audit_graph(facts(made), "hidden")
    assert [(f.path, f.rule.partition(":")[0]) for f in found.findings] == [("hidden", "unseen write")]


# --- slots and unfreezing


def test_what_is_frozen_owns_no_slots_which_an_unfreezing_checkpoint_would_lack() -> None:
    with small(train=False).as_default() as made:
        loss = made.get_tensor_by_name("loss:0")
        head = [v for v in v1.trainable_variables() if v.op.name.startswith("head")]
        v1.train.AdamOptimizer(0.1).minimize(loss, var_list=head, name="train")
    found = audit_graph(facts(made))
    assert found.row("head/kernel").slots == ("head/kernel/Adam", "head/kernel/Adam_1")
    assert found.row("body/kernel").slots == ()


# --- it runs nothing


def test_nothing_of_the_graph_is_run(tmp_path: pathlib.Path) -> None:
    """Ops that leave a trace when they run, also where TensorFlow would evaluate a shape at import."""
    traces = [tmp_path / name for name in ("written", "printed")]
    with tf.Graph().as_default() as made:
        kernel = v1.get_variable("kernel", [3, 1])
        effects = [
            tf.io.write_file(str(traces[0]), "it ran"),
            tf.print("it ran", output_stream=f"file://{traces[1]}"),
            v1.py_func(lambda: np.float32(1 / 0), [], tf.float32),
        ]
        with tf.control_dependencies(effects):
            x = tf.ones([2, 3])
        v1.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_sum(x @ kernel), name="train")
        definition = made.as_graph_def()
    shape = definition.node.add(name="huge", op="Fill", input=["huge/dims", "huge/value"])
    shape.attr["T"].type = tf.int32.as_datatype_enum
    for name, value in (("dims", [1 << 20, 1 << 20]), ("value", 1)):
        node = definition.node.add(name=f"huge/{name}", op="Const")
        node.attr["dtype"].type = tf.int32.as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    reshape = definition.node.add(name="shaped", op="Reshape", input=["kernel/Initializer/random_uniform", "huge"])
    reshape.attr["T"].type = tf.float32.as_datatype_enum
    given = dataclasses.replace(facts(made), definition=definition)
    assert audit_graph(given, "train").row("kernel").written
    assert not any(trace.exists() for trace in traces)


# --- graphs that contradict themselves


def test_a_graph_that_contradicts_itself_is_refused() -> None:
    def broken(change: Callable[[Any], Any]) -> Any:
        definition = small().as_graph_def()
        change(definition)
        return definition

    for change, reason in (
        (lambda d: d.node.add(name="a", op="NoOp", input=["^nobody"]), "control input nobody is not in the graph"),
        (lambda d: d.node.add(name="a", op="Abort", input=["nobody"]), "input nobody is not in the graph"),
        (lambda d: d.node.add(name="a", op="AddV2", input=["x"]), "attribute T"),
        (lambda d: d.node.add(name="a", op="NoOp", input=["x"]), "NoOp takes 0 inputs, but it has 1"),
        (lambda d: d.node.add(name="a", op="Unheard"), "TensorFlow .* has no op Unheard"),
        (lambda d: d.node.add(name="x", op="NoOp"), "two nodes have this name"),
    ):
        with pytest.raises(FlatGraphError, match=reason):
            FlatGraph(broken(change))


def test_functions_that_would_fill_memory_when_written_out_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphdef, "MOST_NODES", 1000)
    definition = tf.Graph().as_graph_def()
    for level in range(40):
        function = definition.library.function.add()
        function.signature.name = f"f{level}"
        for number in range(2):
            function.node_def.add(name=f"call{number}", op=f"f{level + 1}" if level < 39 else "NoOp")
    definition.node.add(name="start", op="f0")
    with pytest.raises(FlatGraphError, match="more than 1000 nodes"):
        FlatGraph(definition)


def test_a_recursive_function_is_refused() -> None:
    definition = tf.Graph().as_graph_def()
    function = definition.library.function.add()
    function.signature.name = "again"
    function.node_def.add(name="call", op="again")
    definition.node.add(name="start", op="again")
    with pytest.raises(FlatGraphError, match="start:call: again calls itself"):
        FlatGraph(definition)


# --- the engine's steps


def images() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"image": rng.random((6, 16, 16, 1)).astype(np.float32), "label": np.arange(6) % 3}


def engine_step(name: str, filter: str, **options: Any) -> tuple[Any, Any, TrainStep]:
    network = models.build_model(name, image_shape=(16, 16, 1), outputs=3).network
    selection = select(network, filter)
    return network, selection, TrainStep(losses.supervised_loss(network, "softmax"), optimizers.AdamW(), **options)


@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 4, "ema": 0.9, "loss_scale": True}], ids=["plain", "all"])
@pytest.mark.parametrize(
    ("name", "filter"),
    [
        pytest.param("vit:mini", "head/.* @blocks[:1]", marks=pytest.mark.slow),
        ("cnn:mini", "@norm head/.*"),
    ],
)
def test_a_step_s_rows_agree_with_its_selection_and_with_what_moves(name: str, filter: str, options: Any) -> None:
    from engine.training.precision import LossScale

    options = options | ({"loss_scale": LossScale()} if "loss_scale" in options else {})
    _, selection, step = engine_step(name, filter, **options)
    found = audit_step(step, selection, images())
    moving = {e.path for e in (*selection.trained, *selection.moving)}
    model = {entry.path for entry in selection.variables}
    assert {row.path for row in found.variables if row.written and row.path in model} == moving
    assert {row.path for row in found.variables if row.trainable_collection} == {e.path for e in selection.trained}
    assert found.findings == ()
    trained = found.row(selection.trained[0].path)
    assert "optimizer apply" in {kind for _, kind in trained.by}
    assert trained.slots == tuple(f"optimizer/{trained.path}/{slot}" for slot in ("m", "v"))
    assert all(found.row(entry.path).gradient == "yes" for entry in selection.trained)
    assert {kind for entry in selection.moving for _, kind in found.row(entry.path).by} <= {"UPDATE_OPS"}
    averages = [row for row in found.variables if row.path.startswith("ema/")]
    assert {kind for row in averages for _, kind in row.by} == ({"EMA"} if "ema" in options else set())

    before = digests(selection.variables.entries)
    for _ in range(2):
        step(selection, images(), learning_rate=0.1)
    after = with_moved(found, before, digests(selection.variables.entries))
    assert {row.path for row in after.variables if row.moved} == moving
    assert after.findings == ()


def test_a_planted_write_to_a_frozen_variable_is_found_before_a_step_is_run() -> None:
    _, selection, step = engine_step("cnn:mini", "head/.*")
    victim = selection.frozen[0]
    supervised = step.loss_fn

    def planted(batch: Any, *, training: bool, seeds: Any) -> Loss:
        tf.cond(
            tf.constant(True),
            lambda: victim.variable.assign_add(tf.ones_like(victim.variable)),
            lambda: victim.variable,
        )
        return supervised(batch, training=training, seeds=seeds)

    before = victim.variable.numpy().copy()
    found = audit_step(TrainStep(planted, step.optimizer), selection, images())
    assert [(f.path, f.rule.partition(":")[0]) for f in found.findings] == [(victim.path, "frozen but written")]
    assert {kind for _, kind in found.row(victim.path).by} == {"assign"}
    assert np.array_equal(victim.variable.numpy(), before)


def test_a_stopped_gradient_is_seen_in_a_step_too() -> None:
    network = models.build_model("cnn:mini", image_shape=(16, 16, 1), outputs=3).network
    selection = select(network, "head/.*")
    counter = tf.Variable(0.0)

    def loss_fn(batch: Any, *, training: bool, seeds: Any) -> Loss:
        counter.assign_add(1.0)
        value = batch["image"]
        for stage in network.stages:
            value = stage(value, training=training)
        logits = network.head(tf.stop_gradient(tf.reduce_mean(value, axis=[1, 2])))
        values = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=batch["label"], logits=logits)
        return Loss(terms={"classes": (values, None)})

    found = audit_step(TrainStep(loss_fn, optimizers.SGD()), selection, images())
    frozen = next(e.path for e in selection.frozen if e.kind == "weight")
    assert found.row(frozen).gradient.startswith("cut at StopGradient")
    assert not found.row(frozen).written
    (outside,) = [row for row in found.variables if row.path.startswith("outside/")]
    assert outside.written


# --- what moved though nothing writes it


def test_what_moved_although_nothing_writes_it_is_a_finding() -> None:
    found = audit_graph(facts(small(train=False)), "loss")
    before = {"body/kernel": digest("body/kernel", np.zeros(3)), "body/bias": digest("body/bias", np.zeros(3))}
    after = before | {"body/kernel": digest("body/kernel", np.ones(3))}
    moved = with_moved(found, before, after)
    assert {row.path: row.moved for row in moved.variables} == {
        "body/kernel": True,
        "body/bias": False,
        "head/kernel": None,
    }
    assert [(f.path, f.rule.partition(":")[0]) for f in moved.findings] == [("body/kernel", "moved though not written")]
    assert moved.to_json()["variables"][0]["moved"] is True
    assert "moved" not in moved.to_json()["variables"][2]


# --- run directories


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_data: pathlib.Path, finetune: Any) -> pathlib.Path:
    out = tmp_path_factory.mktemp("audit") / "run"
    finetune(
        "--model=cnn:mini", "--weights=none", f"--data=npz:{small_data}", "--eval_fraction=0.2", "--train=head/.*",
        "--steps=4", "--batch_size=8", "--checkpoint_every=2", f"--out={out}",
    )  # fmt: skip
    return out


@pytest.mark.slow
def test_a_run_directory_is_audited_by_its_phases_and_checkpoints(run: pathlib.Path) -> None:
    found = audit_run(run)
    assert {row.path for row in found.variables if row.written} == {"head/kernel", "head/bias"}
    assert {row.path for row in found.variables if row.moved} == {"head/kernel", "head/bias"}
    assert found.findings == ()
    assert {row.gradient for row in found.variables if not row.written} == {"none"}
    assert [f.path for f in audit_run(run, expect_frozen="@kernel").findings] == ["head/kernel"]
    with pytest.raises(FilterError, match="matches nothing"):
        audit_run(run, expect_frozen="tail/.*")


def test_a_run_whose_frozen_variable_moved_is_a_finding(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    said = json.loads((copy / "run.json").read_text())
    said["phases"][0]["trained"].remove("head/bias")
    said["phases"][0]["freeze_proof"]["changed"] = ["head/bias"]
    (copy / "run.json").write_text(json.dumps(said))
    assert [f.path for f in audit_run(copy).findings] == ["head/bias", "head/bias"]  # by proof, and by digest


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"phases": 3}', '{"phases": [{}]}', '{"phases": [{"trained": 1}]}', "[" * 9999]
)
def test_an_invalid_run_json_is_refused(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(AuditError, match=r"run\.json|no checkpoint"):
        audit_run(tmp_path)
