"""E11: an old graph trained by the engine equals the same graph trained in a Session, by its own train op."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from made_graphs import CLASSES, SIZE, batch_norm, batches, dense, write_graph
from old_training import build, first_gradient, masks, relative

from compat_v1.graphs.metagraph import read_metagraph
from compat_v1.models.weights import open_slots
from engine import SGD, Adam, Momentum, TrainStep, select
from engine.porting.slots import continue_from
from scripts.baselines.old_graph import OldSession, read_all

v1 = tf.compat.v1
SHARED = pathlib.Path(os.environ.get("FROSTLINE_SHARED", pathlib.Path(__file__).resolve().parents[3] / "shared"))
OLD = SHARED / "tf1_checkpoints"
needs_shared = pytest.mark.skipif(not OLD.is_dir(), reason="needs ../shared/tf1_checkpoints")
LOSS, GRADIENT, TRAJECTORY = 1e-6, 5e-6, 1e-10  # the contract: float32 first step; float64 after 50 steps
OPTIMIZERS = {"sgd": SGD(), "momentum": Momentum(), "adam": Adam()}


class Old(NamedTuple):
    """An old graph, how the engine is told about it, and how the Session trains it."""

    path: pathlib.Path
    checkpoint: str
    loss: str
    train_op: str
    feeds: Mapping[str, str]  # tensor -> the array of a batch
    options: Mapping[str, Any] = {}
    constants: Mapping[str, Any] = {}
    rate: str | float = 0.01  # a number, or the tensor that has it


class Trained(NamedTuple):
    loss: float  # relative difference of the first loss
    gradient: float  # of the first gradient
    losses: float  # the largest relative difference of a loss
    weights: float  # of all variables at the end


def train_both(
    old: Old, filter: str, optimizer: Any, steps: Sequence[Mapping[str, Any]], *, dtype: Any, gradients: bool = True
) -> Trained:
    """Trains an old graph twice from the values in its checkpoint, slots included, and compares."""
    meta = read_metagraph(old.path)
    network, loss_fn = build(meta, old.checkpoint, old.loss, dtype=dtype, **old.options)
    values = read_all(meta, old.checkpoint)
    selection = select(network, filter)
    step = TrainStep(loss_fn, optimizer)
    step.slots.fit(selection, optimizer)
    slots = open_slots(old.checkpoint, network, "auto")
    if slots is not None:
        with slots as file:
            continue_from(file, step.slots, selection, optimizer)
    rates = [old.rate] if isinstance(old.rate, str) else []
    gradient, found = {}, []
    if gradients:
        gradient = first_gradient(step, selection, steps[0])
    with OldSession(meta, [old.loss, old.train_op, *rates], values, dtype=dtype) as session:
        for number, batch in enumerate(steps):
            feeds = {name: batch[key] for name, key in old.feeds.items()} | dict(old.constants)
            rate = session.run(f"{old.rate}:0", {}) if rates else old.rate
            mine = float(step(selection, batch, learning_rate=float(rate)).loss)
            feeds |= masks(network, batch["seeds"])
            fetches = [f"{old.loss}:0", old.train_op]
            if number == 0 and gradients:
                of = session.gradients()
                fetches.append({name: of[name] for name in gradient if name in of})
            theirs, _, *more = session.run(fetches, feeds)
            found.append(abs(mine - theirs) / abs(theirs))
            if number == 0:
                apart = relative(gradient, more[0]) if gradients and more[0] else 0.0
        held = session.values([entry.path for entry in selection.variables])
    now = {entry.path: entry.variable.numpy() for entry in selection.variables}
    return Trained(found[0], apart, max(found), relative(now, held))


def made(path: pathlib.Path, **given: Any) -> Old:
    feeds = {"x:0": "image", "label:0": "label"}
    return Old(
        path,
        str(path.with_suffix("")),
        "loss",
        "train",
        feeds,
        {"outputs": ["logits"]} | given.pop("options", {}),
        **given,
    )


def mlp(x: Any, dtype: Any) -> Any:
    return dense(tf.nn.tanh(dense(x, 5, "first", dtype)), CLASSES, "last", dtype)


def normalised(form: str, *, switch: bool) -> Any:
    def network(x: Any, dtype: Any) -> Any:
        training = v1.placeholder(tf.bool, [], name="is_training") if switch else True
        for number in range(2):
            x = tf.nn.relu(
                batch_norm(dense(x, 5, f"layer{number}", dtype), training, dtype, form=form, name=f"layer{number}/bn")
            )
        return dense(x, CLASSES, "last", dtype)

    return network


TRAINING = {"is_training:0": True}
slow = pytest.mark.slow
_BAKED_OR_SWITCHED = [(form, switch) for form in ("plain", "debiased", "in_place") for switch in (True, False)]
FORMS = [("in_branch", True), *(pytest.param(*each, marks=slow) for each in _BAKED_OR_SWITCHED)]


@pytest.mark.parametrize(("form", "switch"), FORMS)
def test_batch_norm_in_training_mode_trains_as_in_a_session(tmp_path: pathlib.Path, form: str, switch: bool) -> None:
    path = write_graph(tmp_path, normalised(form, switch=switch))
    found = train_both(
        made(path, constants=TRAINING if switch else {}),
        "@all @stats",
        OPTIMIZERS["adam"],
        batches(50),
        dtype=tf.float64,
    )
    assert max(found.gradient, found.losses, found.weights) <= TRAJECTORY, found


@pytest.mark.slow
@pytest.mark.parametrize("switch", [True, False])
def test_a_fused_batch_norm_trains_as_in_a_session(tmp_path: pathlib.Path, switch: bool) -> None:
    path = write_graph(
        tmp_path, normalised("fused", switch=switch), dtype=tf.float32, resource=False, optimizer="momentum"
    )
    old = made(path, constants=TRAINING if switch else {})
    steps = batches(20, dtype=np.float32)
    found = train_both(old, "@all @stats", OPTIMIZERS["momentum"], steps, dtype=tf.float32)
    assert found.loss <= LOSS, found
    assert found.gradient <= GRADIENT, found
    print("after 20 steps:", found)


@pytest.mark.parametrize(
    "form", ["in_place", *(pytest.param(form, marks=slow) for form in ("plain", "debiased", "fused"))]
)
def test_a_frozen_batch_norm_runs_in_inference_mode(tmp_path: pathlib.Path, form: str) -> None:
    """The Session has a graph of its own, whose frozen layers were built for inference."""
    dtype = tf.float32 if form == "fused" else tf.float64

    def twin(x: Any, dtype: Any) -> Any:
        for number in range(2):
            mode = number == 1
            x = tf.nn.relu(
                batch_norm(dense(x, 5, f"layer{number}", dtype), mode, dtype, form=form, name=f"layer{number}/bn")
            )
        return dense(x, CLASSES, "last", dtype)

    for name, switch in (("baked", False), ("switched", True)):
        (tmp_path / name).mkdir()
        path = write_graph(tmp_path / name, normalised(form, switch=switch), dtype=dtype, optimizer="sgd")
        (tmp_path / f"{name}_twin").mkdir()
        other = write_graph(tmp_path / f"{name}_twin", twin, dtype=dtype, optimizer="sgd", train="la")
        meta, theirs = read_metagraph(path), read_metagraph(other)
        network, loss_fn = build(meta, str(path.with_suffix("")), "loss", dtype=dtype, outputs=["logits"])
        values = read_all(theirs, str(path.with_suffix("")))
        selection = select(network, "@all @stats !layer0/.*")
        step, session = TrainStep(loss_fn, SGD()), OldSession(theirs, ["loss", "train"], values, dtype=dtype)
        batch = batches(1, dtype=dtype.as_numpy_dtype)[0]
        gradient = first_gradient(step, selection, batch)
        of = session.gradients()
        loss, expected = session.run(
            ["loss:0", {name: of[name] for name in gradient}], {"x:0": batch["image"], "label:0": batch["label"]}
        )
        before = {entry.path: entry.variable.numpy() for entry in selection.frozen}
        assert float(step(selection, batch, learning_rate=0.01).loss) == pytest.approx(float(loss), rel=1e-6)
        assert relative(gradient, expected) <= (GRADIENT if form == "fused" else TRAJECTORY)
        assert all((entry.variable.numpy() == before[entry.path]).all() for entry in selection.frozen)
        moved = next(entry for entry in selection.moving if entry.path == "layer1/bn/moving_mean")
        assert (moved.variable.numpy() != values[moved.path]).any()
        session.session.close()


@pytest.mark.parametrize(
    ("optimizer", "resource"),
    [("momentum", False), *(pytest.param(name, kind, marks=slow) for name in OPTIMIZERS for kind in (True, False))],
)
def test_optimizers_go_on_as_in_a_session(tmp_path: pathlib.Path, optimizer: str, resource: bool) -> None:
    path = write_graph(tmp_path, mlp, optimizer=optimizer, resource=resource)
    found = train_both(made(path), "@all", OPTIMIZERS[optimizer], batches(50), dtype=tf.float64)
    assert max(found.gradient, found.losses, found.weights) <= TRAJECTORY, found


def embedding(x: Any, dtype: Any) -> Any:
    table = v1.get_variable("table", [7, 5], dtype, v1.glorot_uniform_initializer(seed=2, dtype=dtype))
    rows = tf.nn.embedding_lookup(table, tf.cast(tf.abs(x) * 2, tf.int32) % 7)
    return dense(tf.reduce_mean(rows, axis=1), CLASSES, "last", dtype)


def partitioned(x: Any, dtype: Any) -> Any:
    with v1.variable_scope("parts", partitioner=v1.fixed_size_partitioner(3)):
        kernel = v1.get_variable("kernel", [SIZE, 5], dtype, v1.glorot_uniform_initializer(seed=3, dtype=dtype))
    return dense(tf.nn.tanh(tf.matmul(x, tf.convert_to_tensor(kernel))), CLASSES, "last", dtype)


def branching(x: Any, dtype: Any) -> Any:
    large = tf.reduce_sum(x) > 0
    first = v1.get_variable("first", [SIZE, 5], dtype, v1.glorot_uniform_initializer(seed=4, dtype=dtype))
    second = v1.get_variable("second", [SIZE, 5], dtype, v1.glorot_uniform_initializer(seed=5, dtype=dtype))
    h = v1.cond(large, lambda: tf.nn.tanh(tf.matmul(x, first)), lambda: tf.matmul(x, second) * 2.0)
    return dense(h, CLASSES, "last", dtype)


def looping(x: Any, dtype: Any) -> Any:
    kernel = v1.get_variable("loop/kernel", [SIZE, SIZE], dtype, v1.glorot_uniform_initializer(seed=6, dtype=dtype))
    _, h = v1.while_loop(
        lambda i, h: i < 3, lambda i, h: (i + 1, tf.nn.tanh(tf.matmul(h, kernel))), [tf.constant(0), x]
    )
    return dense(h, CLASSES, "last", dtype)


def recurrent(x: Any, dtype: Any) -> Any:
    """An LSTM over [B, T, features] as dynamic_rnn unrolls it: TensorArrays in a loop, and lengths of sequences."""
    units, steps = 4, int(x.shape[1])
    kernel = v1.get_variable(
        "lstm/kernel", [int(x.shape[2]) + units, 4 * units], dtype, v1.glorot_uniform_initializer(seed=7, dtype=dtype)
    )
    bias = v1.get_variable("lstm/bias", [4 * units], dtype, v1.zeros_initializer(dtype))
    inputs = tf.TensorArray(dtype, size=steps).unstack(tf.transpose(x, [1, 0, 2]))
    outputs = tf.TensorArray(dtype, size=steps)
    length = 1 + tf.cast(tf.abs(x[:, 0, 0]) * 3, tf.int32)
    zeros = tf.zeros([tf.shape(x)[0], units], dtype)

    def body(t: Any, c: Any, h: Any, outputs: Any) -> Any:
        i, j, f, o = tf.split(tf.nn.bias_add(tf.matmul(tf.concat([inputs.read(t), h], 1), kernel), bias), 4, axis=1)
        new_c = tf.sigmoid(f + 1.0) * c + tf.sigmoid(i) * tf.tanh(j)
        new_h = tf.sigmoid(o) * tf.tanh(new_c)
        on = (t < length)[:, None] & tf.ones([1, units], tf.bool)
        c, h = v1.where(on, new_c, c), v1.where(on, new_h, h)
        return t + 1, c, h, outputs.write(t, h)

    _, _, h, outputs = v1.while_loop(lambda t, *_: t < steps, body, [tf.constant(0), zeros, zeros, outputs])
    return dense(h + tf.reduce_mean(outputs.stack(), axis=0), CLASSES, "last", dtype)


NETWORKS = {"embedding": (embedding, (SIZE,)), "partitioned": (partitioned, (SIZE,)), "branching": (branching, (SIZE,)),
            "looping": (looping, (SIZE,)), "recurrent": (recurrent, (3, 2))}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "functional"),
    [("recurrent", False), ("branching", True)]
    + [pytest.param(name, kind, marks=slow) for name in NETWORKS for kind in (False, True)],
)
def test_branches_loops_and_lookups_train_as_in_a_session(tmp_path: pathlib.Path, name: str, functional: bool) -> None:
    network, shape = NETWORKS[name]
    path = write_graph(tmp_path, network, shape=shape, functional=functional, resource=functional)
    steps = batches(50, shape=shape)
    found = train_both(made(path), "@all", OPTIMIZERS["adam"], steps, dtype=tf.float64)
    assert max(found.losses, found.weights) <= TRAJECTORY, found


PNET = Old(
    OLD / "mtcnn_PNet_landmark/PNet-18.meta",
    str(OLD / "mtcnn_PNet_landmark/PNet-18"),
    "add_4",
    "Momentum",
    {"input_image:0": "image", "label:0": "label", "bbox_target:0": "box", "landmark_target:0": "landmark"},
    {
        "outputs": ["Squeeze"],
        "inputs": "input_image",
        "graph_inputs": "label=label bbox_target=batch[box] landmark_target=batch[landmark]",
    },
    rate="PiecewiseConstant/case/cond/Merge",
)


def faces(count: int, dtype: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.standard_normal((256, 12, 12, 3)).astype(dtype),
            "label": rng.choice([1, 0, -1, -2], 256).astype(dtype),
            "box": rng.standard_normal((256, 4)).astype(dtype),
            "landmark": rng.standard_normal((256, 10)).astype(dtype),
            "seeds": np.zeros((256, 2), np.int32),
        }
        for _ in range(count)
    ]


@slow
@needs_shared
def test_pnet_trains_as_in_a_session() -> None:
    optimizer = Momentum(momentum=float(np.float32(0.9)))  # the graph has it in float32
    found = train_both(PNET, "@all", optimizer, faces(50, np.float64), dtype=tf.float64)
    assert max(found.gradient, found.losses, found.weights) <= TRAJECTORY, found


@pytest.mark.slow
@needs_shared
def test_pnet_in_float32() -> None:
    found = train_both(PNET, "@all", Momentum(), faces(20, np.float32), dtype=tf.float32)
    assert found.loss <= LOSS, found
    assert found.gradient <= GRADIENT, found
    print("after 20 steps:", found)


@slow
@needs_shared
def test_musicnn_with_its_dropout_and_statistics() -> None:
    rng = np.random.default_rng(0)
    steps = [
        {
            "image": rng.standard_normal((4, 187, 96)).astype(np.float32),
            "label": (rng.random((4, 50)) < 0.1).astype(np.float32),
            "seeds": rng.integers(0, 2**31 - 1, (4, 2)).astype(np.int32),
        }
        for _ in range(20)
    ]
    old = Old(
        OLD / "musicnn_MTT_vgg/.meta",
        f"{OLD}/musicnn_MTT_vgg/",
        "metrics/add",
        "Adam",
        {"model/Placeholder:0": "image", "model/Placeholder_1:0": "label"},
        {"outputs": ["model/Sigmoid"], "inputs": "model/Placeholder"},
        constants={"model/Placeholder_2:0": True, "Placeholder:0": 1e-3},
        rate=1e-3,
    )
    found = train_both(old, "@all @stats", Adam(), steps, dtype=tf.float32)
    assert found.loss <= LOSS, found
    assert found.gradient <= GRADIENT, found
    print("after 20 steps:", found)
