"""The TF1 forms of the engine's networks: same names, same logits, and what TF1 scopes can do to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from compat_v1.training import models as v1_models
from compat_v1.training.models import ModelError
from engine import select
from engine.models import build_model

v1 = tf.compat.v1
SHAPE = (8, 8, 3)
IMAGES = np.random.default_rng(1).standard_normal((3, *SHAPE))
CASES = [
    ("vit:mini,depth=2", "float32"),
    ("vit:mini,depth=1,pool=mean,gelu=tanh,layer_scale=0.1", "float64"),
    ("vit:mini,depth=1,pool=mean,class_token,fc_norm,norm_epsilon=1e-5", "float32"),
    ("vit:mini,depth=2,dropout=0.3,drop_path=0.4", "float64"),
    ("cnn:mini", "float32"),
    ("cnn:mini", "float64"),
]


def values_of(network: Any) -> dict[str, np.ndarray]:
    return {entry.path: entry.variable.numpy() for entry in select(network, "@all").variables}


def assign_all(values: dict[str, np.ndarray]) -> list[Any]:
    made = {variable.op.name: variable for variable in v1.global_variables()}
    assert {n: (tuple(v.shape), v.dtype.base_dtype) for n, v in made.items()} == {
        n: (v.shape, tf.as_dtype(v.dtype)) for n, v in values.items()
    }
    return [v1.assign(made[name], value) for name, value in values.items()]


@pytest.mark.parametrize(("spec", "dtype"), CASES)
def test_weights_exchange_by_name_and_logits_are_equal(spec: str, dtype: str) -> None:
    network = build_model(spec, image_shape=SHAPE, outputs=4, seed=2, dtype=tf.as_dtype(dtype)).network
    selection, seeds = select(network, "@all"), np.arange(6, dtype=np.int32).reshape(3, 2)
    images, values = IMAGES.astype(dtype), values_of(network)
    with tf.Graph().as_default():
        logits = v1_models.translate_network(network, selection)(
            tf.constant(images), training=True, seeds=tf.constant(seeds)
        )
        with v1.variable_scope(v1.get_variable_scope(), reuse=True):
            evaluated = v1_models.translate_network(network, selection)(tf.constant(images))
        assign = assign_all(values)
        with v1.Session() as session:
            session.run(assign)
            found = session.run([logits, evaluated])
    bound = 1e-12 if dtype == "float64" else 2e-6
    for training, value in zip((True, False), found, strict=True):
        if spec == "cnn:mini" and not training:  # the engine has moved its statistics meanwhile
            continue
        with selection.modes():
            wanted = network(tf.constant(images), training=training, seeds=tf.constant(seeds)).numpy()
        assert value.dtype == wanted.dtype
        np.testing.assert_allclose(value, wanted, atol=bound * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize(("spec", "compute"), [("vit:mini,depth=1", "float16"), ("cnn:mini", "bfloat16")])
def test_sixteen_bits_keep_variables_and_logits_in_float32(spec: str, compute: str) -> None:
    network = build_model(spec, image_shape=SHAPE, outputs=4, compute=tf.as_dtype(compute)).network
    exact = build_model(spec, image_shape=SHAPE, outputs=4).network
    values = values_of(network)
    with tf.Graph().as_default():
        logits = v1_models.translate_network(network, select(network, "@all"))(
            tf.constant(IMAGES.astype(np.float32)), training=True
        )
        assign = assign_all(values)
        assert logits.dtype == tf.float32
        with v1.Session() as session:
            session.run(assign)
            value = session.run(logits)
    wanted = exact(tf.constant(IMAGES.astype(np.float32)), training=True).numpy()
    assert 0 < np.abs(value - wanted).max() < 0.05 * np.abs(wanted).max() + 0.01  # bfloat16 has 8 bits


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_update_ops_move_the_statistics_as_the_engine_does(dtype: str) -> None:
    network = build_model("cnn:mini", image_shape=SHAPE, outputs=4, dtype=tf.as_dtype(dtype)).network
    selection = select(network, "@all")
    images, values = IMAGES.astype(dtype), values_of(network)
    with tf.Graph().as_default():
        v1_models.translate_network(network, selection)(tf.constant(images), training=True)
        updates = v1.get_collection(v1.GraphKeys.UPDATE_OPS)
        assert len(updates) == 8
        assign = assign_all(values)
        moving = {v.op.name: v for v in v1.global_variables() if "moving" in v.op.name}
        with v1.Session() as session:
            session.run(assign)
            session.run(updates)
            found = session.run(moving)
    with selection.modes():
        network(tf.constant(images), training=True)
    for entry in selection.moving:
        bound = 1e-12 if dtype == "float64" else 1e-6  # of values around 1
        np.testing.assert_allclose(found[entry.path], entry.variable.numpy(), atol=bound)


def test_layers_that_do_not_train_run_in_inference_mode() -> None:
    network = build_model("cnn:mini", image_shape=SHAPE, outputs=4).network
    with tf.Graph().as_default():
        v1_models.translate_network(network, select(network, "stages/3/.* head/.*"))(
            tf.constant(IMAGES, tf.float32), training=True
        )
        names = [op.op.name for op in v1.get_collection(v1.GraphKeys.UPDATE_OPS)]
    assert len(names) == 2
    assert all(name.startswith("stages/3/norm") for name in names)


def test_two_towers_share_one_scope_and_a_partitioner_changes_nothing() -> None:
    network = build_model("vit:mini,depth=1", image_shape=SHAPE, outputs=4).network
    images = IMAGES.astype(np.float32)
    values = {f"twin/{path}": value for path, value in values_of(network).items()}
    with tf.Graph().as_default():
        net = v1_models.translate_network(network, select(network, "@all"))
        with v1.variable_scope("twin"):
            one = net(tf.constant(images))
        with v1.variable_scope("twin", reuse=True):
            other = net(tf.constant(images[::-1].copy()))
        whole = v1.get_collection(v1.GraphKeys.GLOBAL_VARIABLES, scope="twin/")
        assert len(whole) == len(v1.global_variables()) == len(values)
        with v1.variable_scope("parts", partitioner=v1.fixed_size_partitioner(2), reuse=v1.AUTO_REUSE):
            parted = net(tf.constant(images))
        made = {variable.op.name: variable for variable in v1.global_variables()}
        assign = [v1.assign(made[name], value) for name, value in values.items()]
        for name, value in values.items():
            part = name.replace("twin/", "parts/", 1)
            pieces = [made[name] for name in (f"{part}/part_0", f"{part}/part_1") if name in made]
            assert len(pieces) == min(2, value.shape[0]), name
            rows = int(pieces[0].shape[0])
            assign += [v1.assign(p, v) for p, v in zip(pieces, (value[:rows], value[rows:]), strict=False)]
        with v1.Session() as session:
            session.run(assign)
            first, second, third = session.run([one, other, parted])
            np.testing.assert_allclose(first, second[::-1], atol=1e-6)
            np.testing.assert_allclose(first, third, atol=1e-6)
            session.run(v1.assign(made["twin/head/bias"], np.full(4, 7.0, np.float32)))  # a live variable
            np.testing.assert_allclose(session.run(one), first + 7.0, atol=1e-5)


def test_a_network_without_a_tf1_form_is_an_error() -> None:
    network = build_model("vit:mini,depth=1", image_shape=SHAPE, outputs=4).network
    with pytest.raises(ModelError, match="model=function: the TF1 path has only vit"):
        v1_models.translate_network(lambda images: images, select(network, "@all"))
    dropping = build_model("vit:mini,depth=1,dropout=0.1", image_shape=SHAPE, outputs=4).network
    made = v1_models.translate_network(dropping, select(dropping, "@all"))
    with tf.Graph().as_default(), pytest.raises(ModelError, match="seeds=None"):
        made(tf.constant(IMAGES, tf.float32), training=True)
