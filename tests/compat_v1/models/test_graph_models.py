"""Old graphs as models of the engine: what is found in them, what is refused, and that everything works on them."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from made_graphs import CLASSES, SIZE, batch_norm, batches, dense, write_graph
from old_training import build, first_gradient, relative

import compat_v1  # noqa: F401 - adds graph: to the engine's models
from compat_v1.errors import GraphError
from compat_v1.graphs.metagraph import read_metagraph
from compat_v1.graphs.original import Original
from compat_v1.models.old_graph import OldGraph
from compat_v1.models.switches import parse_graph_inputs
from engine import SGD, Adam, AdamW, TrainStep, build_model, load_weights, select
from engine.errors import InputError
from engine.graphs.safety import UnsafeGraphError
from engine.models.spec import ModelSpecError
from engine.porting import open_tensors

v1 = tf.compat.v1


def dropped(x: Any, dtype: Any) -> Any:
    """Dropout by a fed probability, a switch for batch norm, and noise that does not belong to examples."""
    training = v1.placeholder(tf.bool, [], name="phase")
    keep = v1.placeholder(dtype, [], name="keep_prob")
    x = tf.nn.relu(batch_norm(dense(x, 5, "first", dtype), training, dtype, form="plain", name="first/bn"))
    return dense(v1.nn.dropout(x, keep_prob=keep), CLASSES, "last", dtype)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_graph(tmp_path_factory.mktemp("dropped"), dropped)


def old(path: pathlib.Path, **given: Any) -> OldGraph:
    return OldGraph(read_metagraph(path), **({"outputs": ["logits"]} | given))


def network(path: pathlib.Path, **given: Any) -> Any:
    return build(read_metagraph(path), str(path.with_suffix("")), "loss", **({"outputs": ["logits"]} | given))


def test_graph_inputs_are_parsed() -> None:
    assert parse_graph_inputs("a=True b=0.8/1.0 c=label d=batch[box]") == (
        {"a": (True, None), "b": (0.8, 1.0)},
        {"c": "label", "d": "box"},
    )
    for text, words in (("a", "NAME=VALUE"), ("a=1 a=2", "twice"), ("a=x", "expected a number")):
        with pytest.raises(GraphError, match=words):
            parse_graph_inputs(text)


def test_a_switch_is_found_by_what_it_does(graph: pathlib.Path) -> None:
    (keep, phase) = old(graph, graph_inputs="keep_prob=0.8").switches
    assert (keep.training, keep.evaluation) == (0.8, 1.0)
    assert (phase.tensor, phase.training, phase.evaluation) == ("phase:0", True, False)


def test_a_reversed_switch_is_found_too(tmp_path: pathlib.Path) -> None:
    def reverse(x: Any, dtype: Any) -> Any:
        inference = v1.placeholder_with_default(False, [], name="inference")
        return batch_norm(dense(x, CLASSES, "first", dtype), tf.logical_not(inference), dtype, form="plain")

    (switch,) = old(write_graph(tmp_path, reverse)).switches
    assert (switch.tensor, switch.training, switch.evaluation) == ("inference:0", False, True)


def test_a_switch_that_shows_nothing_is_asked_about(tmp_path: pathlib.Path) -> None:
    def choice(x: Any, dtype: Any) -> Any:
        which = v1.placeholder(tf.bool, [], name="which")
        return dense(v1.cond(which, lambda: x, lambda: -x), CLASSES, "first", dtype)

    path = write_graph(tmp_path, choice)
    with pytest.raises(GraphError, match=r"which.*nothing shows which of its values is for training"):
        old(path)
    assert old(path, graph_inputs="which=True/True").switches[0].evaluation is True


def test_a_number_without_a_value_is_asked_for(graph: pathlib.Path) -> None:
    with pytest.raises(GraphError, match="keep_prob"):
        old(graph).program(["logits:0"], training=True)


def test_evaluation_equals_the_original_to_the_bit(graph: pathlib.Path) -> None:
    net, _ = network(graph, dtype=tf.float64, graph_inputs="keep_prob=0.8")
    part = net.old.program(["logits:0"], training=False).part
    x = batches(1)[0]["image"]
    with open_tensors(graph.with_suffix("")) as source:
        expected = Original(part, source)({"x:0": x})["logits:0"]
    np.testing.assert_array_equal(net(x, training=False).numpy(), expected)


@pytest.mark.parametrize("filter", ["@all @stats", "last/.*"])
def test_what_is_frozen_stays_and_statistics_follow(graph: pathlib.Path, filter: str) -> None:
    net, loss_fn = network(graph, dtype=tf.float64, graph_inputs="keep_prob=0.8")
    selection = select(net, filter, statistics="frozen")
    before = {entry.path: entry.variable.numpy() for entry in selection.variables}
    step = TrainStep(loss_fn, AdamW(weight_decay=0.1))
    for batch in batches(3):
        step(selection, batch, learning_rate=0.1)
    changed = {entry.path for entry in selection.variables if (entry.variable.numpy() != before[entry.path]).any()}
    assert changed == {entry.path for entry in (*selection.trained, *selection.moving)}
    assert ("first/bn/moving_mean" in changed) == ("@stats" in filter)


def test_micro_batches_are_one_batch_with_dropout(graph: pathlib.Path) -> None:
    """E2: the masks come from the seeds of the examples, so a split does not change them."""
    found = {}
    for size in (None, 2):
        net, loss_fn = network(graph, dtype=tf.float64, graph_inputs="keep_prob=0.7")
        selection = select(net, "@all !@stats")
        step = TrainStep(loss_fn, Adam(), micro_batch_size=size)
        for batch in batches(10):
            step(selection, batch, learning_rate=0.01)
        found[size] = {entry.path: entry.variable.numpy() for entry in selection.trained}
    assert relative(found[2], found[None]) <= 1e-10


def test_the_seeds_decide_what_is_dropped(graph: pathlib.Path) -> None:
    net, _ = network(graph, dtype=tf.float64, graph_inputs="keep_prob=0.5")
    x, seeds = batches(1)[0]["image"], tf.constant([[n, 1] for n in range(5)], tf.int32)
    for scope in net._layers.values():
        scope.update_statistics = False
    once, again = (net(x, training=True, seeds=seeds).numpy() for _ in range(2))
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(net(x[2:4], training=True, seeds=seeds[2:4]).numpy(), once[2:4])
    assert (net(x, training=True, seeds=seeds + 1).numpy() != once).any()
    with pytest.raises(GraphError, match="seeds=None"):
        net(x, training=True)


def test_numbers_that_belong_to_no_example_need_one_seed(tmp_path: pathlib.Path) -> None:
    def noisy(x: Any, dtype: Any) -> Any:
        switch = v1.placeholder(tf.bool, [], name="is_training")
        noise = v1.random_normal([5], dtype=dtype)
        return dense(
            dense(x, 5, "first", dtype) + tf.where(switch, noise, tf.zeros_like(noise)), CLASSES, "last", dtype
        )

    path = write_graph(tmp_path, noisy)
    net, _ = network(path, dtype=tf.float64, graph_inputs="is_training=True")
    x, seeds = batches(1)[0]["image"], tf.constant([[n, 1] for n in range(5)], tf.int32)
    once = net(x, training=True, seeds=seeds).numpy()
    np.testing.assert_array_equal(net(x, training=True, seeds=seeds).numpy(), once)
    assert (net(x, training=True, seeds=seeds + 1).numpy() != once).any()


def test_random_numbers_in_evaluation_are_refused(tmp_path: pathlib.Path) -> None:
    def always(x: Any, dtype: Any) -> Any:
        return dense(v1.nn.dropout(x, keep_prob=0.5), CLASSES, "last", dtype)

    net, _ = network(write_graph(tmp_path, always), dtype=tf.float64)
    with pytest.raises(GraphError, match="random in evaluation too"):
        net(batches(1)[0]["image"], training=False)


def test_a_kernel_without_float64_is_named(tmp_path: pathlib.Path) -> None:
    def fused(x: Any, dtype: Any) -> Any:
        return batch_norm(dense(x, CLASSES, "first", dtype), True, dtype, form="fused")

    path = write_graph(tmp_path, fused, dtype=tf.float32)
    with pytest.raises(GraphError, match=r"FusedBatchNorm.*--precision=float32"):
        network(path, dtype=tf.float64)[0](np.zeros([2, SIZE]), training=False)


def test_a_refused_operation_is_named_with_the_way_out(tmp_path: pathlib.Path) -> None:
    def reading(x: Any, dtype: Any) -> Any:
        text = tf.io.read_file(tf.constant("nowhere"))
        return dense(x, CLASSES, "first", dtype) + tf.cast(tf.strings.length(text), dtype)

    graph = tf.Graph()
    with graph.as_default():
        x = v1.placeholder(tf.float64, [None, SIZE], name="x")
        tf.identity(reading(x, tf.float64), name="logits")
        meta = v1.train.export_meta_graph(graph=graph)
    (tmp_path / "model.meta").write_bytes(meta.SerializeToString())
    with pytest.raises(UnsafeGraphError, match="ReadFile"):
        old(tmp_path / "model.meta").program(["logits:0"], training=False)


def test_outputs_that_depend_on_several_inputs_ask(tmp_path: pathlib.Path) -> None:
    def two(x: Any, dtype: Any) -> Any:
        other = v1.placeholder(dtype, [None, SIZE], name="other")
        return dense(x + other, CLASSES, "first", dtype)

    with pytest.raises(GraphError, match="2 inputs"):
        old(write_graph(tmp_path, two))


def test_classes_become_rows_where_the_graph_takes_rows(tmp_path: pathlib.Path) -> None:
    def network(x: Any, dtype: Any) -> Any:
        logits = dense(x, CLASSES, "first", dtype)
        rows = v1.placeholder(dtype, [None, CLASSES], name="rows")
        tf.reduce_mean(v1.nn.softmax_cross_entropy_with_logits_v2(labels=rows, logits=logits), name="own_loss")
        return logits

    path = write_graph(tmp_path, network)
    found = []
    for loss in ("own_loss", "loss"):
        net, loss_fn = build(
            read_metagraph(path), str(path.with_suffix("")), loss, dtype=tf.float64, outputs=["logits"]
        )
        found.append(float(TrainStep(loss_fn, SGD())(select(net, "@all"), batches(1)[0], learning_rate=0.1).loss))
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_a_lookup_table_is_filled(tmp_path: pathlib.Path) -> None:
    def network(x: Any, dtype: Any) -> Any:
        keys, values = tf.constant([0, 1, 2], tf.int64), tf.constant([5.0, 7.0, 9.0], tf.float32)
        table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), 1.0)
        scale = tf.cast(table.lookup(tf.cast(x[:, 0] > 0, tf.int64)), dtype)
        return dense(x, CLASSES, "first", dtype) * scale[:, None]

    path = write_graph(tmp_path, network)
    net, _ = build(read_metagraph(path), str(path.with_suffix("")), "loss", dtype=tf.float64, outputs=["logits"])
    x = np.ones([1, SIZE])
    plain = x @ net._held["first/kernel"].numpy() + net._held["first/bias"].numpy()
    np.testing.assert_allclose(net(x), 7 * plain, rtol=1e-12)
    np.testing.assert_allclose(net(-x), 5 * (2 * net._held["first/bias"].numpy() - plain), rtol=1e-12)


def test_a_batch_norm_that_cannot_be_held_still_is_refused(tmp_path: pathlib.Path) -> None:
    """It normalises by moments that it keeps apart from those that its statistics average."""

    def network(x: Any, dtype: Any) -> Any:
        y = batch_norm(dense(x, CLASSES, "first", dtype), True, dtype, form="plain", name="bn")
        mean = v1.get_default_graph().get_tensor_by_name("bn/moments/mean:0")
        return y + mean

    path = write_graph(tmp_path, network)
    with pytest.raises(GraphError, match=r"bn cannot run in inference mode.*bn/moments/mean"):
        build(read_metagraph(path), str(path.with_suffix("")), "loss", dtype=tf.float64, outputs=["logits"])


# ---- the model that build_model gives


def images(x: Any, dtype: Any) -> Any:
    kernel = v1.get_variable("conv/kernel", [3, 3, 3, 4], dtype, v1.glorot_uniform_initializer(seed=1, dtype=dtype))
    maps = tf.nn.relu(tf.nn.conv2d(x, kernel, 2, "SAME"), name="features")
    return tf.nn.softmax(dense(tf.reduce_mean(maps, [1, 2]), CLASSES, "last", dtype))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("photos")
    return write_graph(folder, images, dtype=tf.float32, shape=(8, 8, 3), optimizer="momentum")


def model(path: pathlib.Path, *, options: str = ",preprocess=tf", **given: Any) -> Any:
    shape = given.pop("image_shape", (8, 8, 3))
    graph = {"outputs": "logits", "inputs": "x"} | given.pop("graph", {})
    return build_model(
        f"graph:{path}{options}", image_shape=shape, outputs=given.pop("outputs", CLASSES), graph=graph, **given
    )


def test_a_final_softmax_is_left_out_and_said(photos: pathlib.Path) -> None:
    made = model(photos)
    assert "last/BiasAdd" in made.network.old.output
    assert any("softmax was left out" in note for note in made.notes)
    assert model(photos, logits=False).network.old.output == "logits:0"


def test_a_new_head_on_a_named_tensor(photos: pathlib.Path) -> None:
    made = model(photos, outputs=7, head="gap,5,dropout=0.5", graph={"features": "features"})
    assert made.network(np.zeros([2, 8, 8, 3], np.float32)).shape == (2, 7)
    paths = [entry.path for entry in select(made.network, "@head").trained]
    assert paths == ["head/hidden_0/kernel", "head/hidden_0/bias", "head/logits/kernel", "head/logits/bias"]
    seeds = tf.constant([[1, 2], [3, 4]], tf.int32)
    assert made.network(np.ones([2, 8, 8, 3], np.float32), training=True, seeds=seeds).shape == (2, 7)


def test_weights_come_from_the_checkpoint_beside_the_graph_or_another(
    photos: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    made = model(photos)
    assert "3 variables by their names" in load_weights(made).text
    other = write_graph(tmp_path, images, dtype=tf.float32, shape=(8, 8, 3), seed=1)
    load_weights(made, str(other.with_suffix("")))
    with open_tensors(other.with_suffix("")) as source:
        np.testing.assert_array_equal(made.network._held["conv/kernel"].numpy(), source.read("conv/kernel"))


def test_a_checkpoint_that_does_not_fit_is_listed_on_both_sides(photos: pathlib.Path, graph: pathlib.Path) -> None:
    with pytest.raises(
        GraphError, match=r"1 of 3 variables are not in it \(conv/kernel\); of its 22 tensors, 20 .*first/bias"
    ):
        load_weights(model(photos), str(graph.with_suffix("")))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"options": ""}, "preprocess"),
        ({"options": ",preprocess=tf,alpha=1"}, "`alpha` is not an option"),
        ({"outputs": 9}, r"has shape .*expected \[B, 9\]"),
        ({"head": "gap"}, "--features=TENSOR"),
        ({"compute": tf.bfloat16}, "float32 or float64"),
        ({"graph": {"outputs": "logit"}}, "no operation logit; nearest: logits"),
        ({"graph": {"inputs": "y"}}, "no operation y"),
        ({"graph": {"tags": "serve"}}, "tags"),
        ({"graph": {"constants": ".*"}}, "has variables"),
        ({"image_shape": (8, 8, 1)}, "fed with.*--image_size"),
    ],
)
def test_bad_requests_say_what_is_wrong(photos: pathlib.Path, given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        model(photos, **given)


def test_weights_that_a_graph_does_not_have_are_refused(photos: pathlib.Path) -> None:
    for name in ("none", "imagenet"):
        with pytest.raises(InputError, match="has only the weights of a checkpoint"):
            load_weights(model(photos), name)


def test_a_step_on_a_head_changes_only_the_head(photos: pathlib.Path) -> None:
    from engine.training.losses import supervised_loss

    made = model(photos, head="gap", graph={"features": "features"})
    selection = select(made.network, "@head")
    body = {e.path: e.variable.numpy() for e in selection.frozen}
    batch = {"image": np.ones([4, 8, 8, 3], np.float32), "label": np.arange(4, dtype=np.int32)}
    step = TrainStep(supervised_loss(made.network, "softmax"), SGD())
    assert set(first_gradient(step, selection, batch)) == {"head/logits/kernel", "head/logits/bias"}
    step(selection, batch, learning_rate=0.1)
    assert all((e.variable.numpy() == body[e.path]).all() for e in selection.frozen)


def test_compat_v1_must_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.models import outside

    monkeypatch.setattr(outside, "_FINDERS", {})
    with pytest.raises(ModelSpecError, match="import compat_v1"):
        build_model("graph:x.meta", image_shape=(8, 8, 3), outputs=2)


def test_dropout_in_a_loop_keeps_its_generator_and_is_told(tmp_path: pathlib.Path) -> None:
    def network(x: Any, dtype: Any) -> Any:
        keep = v1.placeholder(dtype, [], name="keep_prob")
        _, h = v1.while_loop(
            lambda i, h: i < 2, lambda i, h: (i + 1, v1.nn.dropout(h, keep_prob=keep)), [tf.constant(0), x]
        )
        return dense(h, CLASSES, "first", dtype)

    path = write_graph(tmp_path, network)
    meta, checkpoint = read_metagraph(path), str(path.with_suffix(""))
    net, loss_fn = build(meta, checkpoint, "loss", dtype=tf.float64, outputs=["logits"], graph_inputs="keep_prob=0.5")
    assert any("in a loop or a branch" in note for note in net.notes())
    x = batches(1)[0]["image"]
    np.testing.assert_array_equal(net(x, training=False), net(x, training=False))
    step = TrainStep(loss_fn, SGD())
    found = {float(step(select(net, "@all"), batches(1)[0], learning_rate=1e-12).loss) for _ in range(3)}
    assert len(found) == 3
    always, _ = build(meta, checkpoint, "loss", dtype=tf.float64, outputs=["logits"], graph_inputs="keep_prob=0.5/0.5")
    with pytest.raises(GraphError, match="random in evaluation too"):
        always(x, training=False)


def test_an_export_of_tensorflow_2_is_told_how_it_can_be_trained(tmp_path: pathlib.Path) -> None:
    class Counting(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count, self.kernel = tf.Variable(0.0), tf.Variable(tf.ones([SIZE, CLASSES]))

        @tf.function(input_signature=[tf.TensorSpec([None, SIZE], name="x")])
        def __call__(self, x: Any) -> Any:
            self.count.assign_add(1.0)
            return x @ self.kernel

    made = Counting()
    tf.saved_model.save(made, str(tmp_path / "saved"), signatures=made.__call__)
    with pytest.raises(UnsafeGraphError, match=r"it changes variables.*\n.*py:module:factory"):
        build_model(f"graph:{tmp_path}/saved,preprocess=tf", image_shape=(1, SIZE, 1), outputs=CLASSES)
