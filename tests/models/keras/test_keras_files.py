"""Files of Keras 2 and 3 in every form: loaded as their own Keras computes, or refused; there is no third outcome."""

from __future__ import annotations

import itertools
import os
import pathlib
from typing import Any

import keras
import numpy as np
import pytest

from engine.models.keras import file_weights, heads
from engine.models.keras.safe_loading import load_model
from engine.models.spec import ModelSpecError
from engine.porting import PortError

tf_keras: Any = pytest.importorskip("tf_keras", reason="tf-keras is not installed (make install does it)")

SHARED = pathlib.Path(os.environ.get("FROSTLINE_SHARED") or pathlib.Path(__file__).resolve().parents[4] / "shared")
X = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
FORMS = ("h5", "whole.h5", "weights.h5", "keras", "tf")


def backbone(k: Any, *, named: bool = True, relu: bool = True) -> Any:
    """Equal layers in a row, with and without names of their own, and BatchNorm between."""
    image = x = k.Input((8, 8, 3))
    x = k.layers.Conv2D(4, 3, padding="same", name="stem")(x)
    for number in range(3):
        names = {"name": f"c{number}"} if named else {}
        x = k.layers.Conv2D(4, 3, padding="same", use_bias=number == 0, **names)(x)
        x = k.layers.BatchNormalization()(x)
        x = k.layers.ReLU()(x) if relu else x
    return k.Model(image, x, name="body")


def make(k: Any, nesting: str, frozen: str, top: str, *, named: bool = True) -> tuple[Any, Any]:
    """A model as a user builds it, its weights made up, frozen in part: the model and its features."""
    k.utils.set_random_seed(3)
    body = backbone(k, named=named)
    layers = [k.layers.GlobalAveragePooling2D(), k.layers.Dense({"same": 3, "other": 5}.get(top, 1))]
    if top == "none":
        layers = []
    if nesting == "flat":
        x = body.output
        for layer in layers:
            x = layer(x)
        model = k.Model(body.input, x)
    elif nesting == "nested":
        model = k.Sequential([k.Input((8, 8, 3)), body, *layers])
    else:
        inner = k.Sequential([k.Input((8, 8, 3)), body], name="inner")
        model = k.Sequential([k.Input((8, 8, 3)), inner, *layers])
    rng = np.random.default_rng(7)
    model.set_weights([np.abs(w + rng.normal(0, 0.3, w.shape)) for w in model.get_weights()])
    count = {"nothing": 0, "part": len(body.layers) // 2, "all": len(body.layers)}[frozen]
    for layer in body.layers[:count]:
        layer.trainable = False
    return model, body


def write(k: Any, model: Any, form: str, folder: pathlib.Path) -> str:
    path = folder / f"file.{form}"
    if form == "tf":
        model.save_weights(folder / "tf", save_format="tf")
        return str(folder / "tf")
    if form == "h5" and k is keras:
        import h5py
        from keras.src.legacy.saving import legacy_h5_format

        with h5py.File(path, "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, model)
    elif form in ("h5", "weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)
    return str(path)


def target(*, named: bool = True, outputs: int = 3) -> tuple[Any, Any]:
    body = backbone(keras, named=named)
    return heads.add_head(body, heads.parse_head("gap"), outputs), body


def check(folder: pathlib.Path, k: Any, form: str, nesting: str, frozen: str, top: str, *, named: bool = True) -> str:
    model, features = make(k, nesting, frozen, top, named=named)
    path = write(k, model, form, folder)
    network, body = target(named=named)
    before = network.get_weights()
    try:
        said = file_weights.load_file(path, network, backbone=body)
    except PortError as error:
        assert all(np.array_equal(one, other) for one, other in zip(before, network.get_weights(), strict=True))
        return str(error)
    assert said is not None
    np.testing.assert_allclose(body(X, training=False), features(X, training=False), rtol=1e-5, atol=1e-6)
    assert ("new head" in said) or top == "same"
    if "new head" in said:
        assert np.array_equal(before[-2], network.get_weights()[-2])
    else:
        np.testing.assert_allclose(network(X, training=False), model(X, training=False), rtol=1e-5, atol=1e-6)
    return said


QUICK = [
    (tf_keras, "h5", "nested", "part", "same", True),
    pytest.param(tf_keras, "h5", "twice", "part", "other", False, marks=pytest.mark.slow),
    (tf_keras, "whole.h5", "flat", "all", "other", True),
    pytest.param(tf_keras, "keras", "nested", "part", "same", False, marks=pytest.mark.slow),
    (tf_keras, "tf", "twice", "part", "none", False),
    (keras, "weights.h5", "nested", "part", "other", True),
    pytest.param(keras, "h5", "nested", "part", "same", False, marks=pytest.mark.slow),
]
ALL = [
    (*case, number % 2 == 0)  # every second one has automatic names
    for number, case in enumerate(
        itertools.product(
            (tf_keras, keras),
            FORMS,
            ("flat", "nested", "twice"),
            ("nothing", "part", "all"),
            ("same", "other", "none"),
        )
    )
    if case[0] is tf_keras or case[1] != "tf"
]


@pytest.mark.parametrize(("k", "form", "nesting", "frozen", "top", "named"), QUICK)
def test_a_file_is_loaded_as_its_own_keras_computes(
    k: Any, form: str, nesting: str, frozen: str, top: str, named: bool, tmp_path: pathlib.Path
) -> None:
    said = check(tmp_path, k, form, nesting, frozen, top, named=named)
    assert said.startswith(f"{'tf' if form == 'tf' else f'file.{form}'}, all of the ")
    assert ("new head" in said) == (top != "same")


def test_a_checkpoint_of_keras_2_is_found_in_its_folder_and_below_another_object(tmp_path: pathlib.Path) -> None:
    import tensorflow as tf

    model, features = make(tf_keras, "nested", "part", "other")
    tf.train.Checkpoint(model=model, step=tf.Variable(1)).write(str(tmp_path / "ckpt"))
    for path in (tmp_path, tmp_path / "ckpt", tmp_path / "ckpt.index"):
        network, body = target()
        said = file_weights.load_file(str(path), network, backbone=body)
        assert said is not None
        assert "all of the backbone; new head" in said
        np.testing.assert_allclose(body(X, training=False), features(X, training=False), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_every_form_of_a_file_is_loaded_right_or_refused(tmp_path: pathlib.Path) -> None:
    refused = []
    for number, (k, *rest, named) in enumerate(ALL):
        folder = tmp_path / str(number)
        folder.mkdir()
        said = check(folder, k, *rest, named=named)
        if "all of the" not in said:
            refused.append((k.__name__, *rest, named, said))
    assert not refused, refused


def write_all(k: Any, model: Any, folder: pathlib.Path) -> list[str]:
    return [write(k, model, form, folder) for form in FORMS if form != "tf" or k is tf_keras]


@pytest.mark.parametrize("k", [tf_keras, pytest.param(keras, marks=pytest.mark.slow)])
def test_a_layer_without_weights_that_only_one_side_has_is_told(k: Any, tmp_path: pathlib.Path) -> None:
    for changed in ("only in the file", "only in the model"):
        folder = tmp_path / changed.replace(" ", "_")
        folder.mkdir()
        source = backbone(k, relu=changed == "only in the file")
        body = backbone(keras, relu=changed == "only in the model")
        network = heads.add_head(body, heads.parse_head("gap"), 3)
        before = network.get_weights()
        for path in write_all(k, source, folder):
            with pytest.raises(
                PortError, match=r"(?s)made for another graph than the backbone.*(layers without weights|only in)"
            ):
                file_weights.load_file(path, network, backbone=body)
        assert all(np.array_equal(one, other) for one, other in zip(before, network.get_weights(), strict=True))


@pytest.mark.parametrize("k", [tf_keras, pytest.param(keras, marks=pytest.mark.slow)])
def test_a_layer_that_computes_otherwise_is_told_where_the_file_has_its_configuration(
    k: Any, tmp_path: pathlib.Path
) -> None:
    image = k.Input((8, 8, 3))
    source = k.Model(image, k.layers.ReLU(6.0)(k.layers.Conv2D(4, 3, name="stem")(image)))
    mine = keras.Input((8, 8, 3))
    body = keras.Model(mine, keras.layers.ReLU()(keras.layers.Conv2D(4, 3, name="stem")(mine)), name="body")
    network = heads.add_head(body, heads.parse_head("gap"), 3)
    for form in ("whole.h5", "keras"):
        path = write(k, source, form, tmp_path)
        with pytest.raises(PortError, match=r"max_value=null in the model, 6.0 in the file"):
            file_weights.load_file(path, network, backbone=body)


def test_names_decide_where_layers_were_made_in_another_order(tmp_path: pathlib.Path) -> None:
    def branches(k: Any, order: tuple[str, str]) -> Any:
        image = k.Input((8, 8, 3))
        made = {name: k.layers.Conv2D(3, 3, padding="same", name=name)(image) for name in order}
        return k.Model(image, k.layers.Subtract()([made["a"], made["b"]]), name="body")

    for k in (tf_keras, keras):
        source, network = branches(k, ("a", "b")), branches(keras, ("b", "a"))
        for path in write_all(k, source, tmp_path):
            if path.endswith("weights.h5") and k is tf_keras:
                continue  # such a file holds no names
            try:
                file_weights.load_file(path, network)
            except PortError:
                continue
            np.testing.assert_allclose(network(X), source(X), rtol=1e-5, atol=1e-6)


def test_layers_that_nothing_tells_apart_are_refused(tmp_path: pathlib.Path) -> None:
    image = tf_keras.Input((8, 8, 3))
    layers = [tf_keras.layers.Conv2D(3, 3, padding="same") for _ in range(4)]
    x = image
    for layer in reversed(layers):  # built in another order than numbered
        x = layer(x)
    source = tf_keras.Sequential([tf_keras.Input((8, 8, 3)), tf_keras.Model(image, x, name="body")])
    mine = y = keras.Input((8, 8, 3))
    for _ in range(4):
        y = keras.layers.Conv2D(3, 3, padding="same")(y)
    network = keras.Sequential([keras.Input((8, 8, 3)), keras.Model(mine, y, name="body")])
    path = write(tf_keras, source, "h5", tmp_path)
    with pytest.raises(PortError, match="not numbered in the order of its layers"):
        file_weights.load_file(path, network)


def old_layers(k: Any) -> Any:
    """Layers whose configuration Keras 3 reads otherwise, nested models called in several ways, and arithmetic."""
    layers = k.layers
    inner_image = k.Input((8, 8, 3))
    inner = k.Model(inner_image, layers.DepthwiseConv2D(3, padding="same")(inner_image))
    sequential = k.Sequential([layers.SeparableConv2D(3, 3, padding="same"), layers.SpatialDropout2D(0.1)])
    image = k.Input((8, 8, 3))
    x = layers.Add()([inner(image / 127.5 - 1.0), inner(layers.RandomFlip()(image))])
    x = layers.Conv2DTranspose(4, 3)(sequential(x, training=False))
    x = layers.Reshape((-1, 4))(2.0 - x)
    x = layers.MultiHeadAttention(2, 2)(x, x)
    return k.Model(image, layers.Dense(3)(layers.Bidirectional(layers.GRU(2))(x)))


@pytest.mark.parametrize("form", [pytest.param("whole.h5", marks=pytest.mark.slow), "keras"])
def test_a_model_of_keras_2_computes_the_same_here(form: str, tmp_path: pathlib.Path) -> None:
    source = old_layers(tf_keras)
    loaded = load_model(write(tf_keras, source, form, tmp_path), "model")
    np.testing.assert_allclose(loaded(X, training=False), source(X, training=False), rtol=1e-5, atol=1e-6)


def test_a_model_of_keras_2_that_cannot_be_built_says_what_it_needs(tmp_path: pathlib.Path) -> None:
    import tensorflow as tf

    image = tf_keras.Input((8, 8, 3))
    for head, said in (
        (tf.reduce_mean(image, [1, 2]), r"operations of TensorFlow between its layers \(tf.math.reduce_mean\)"),
        (tf_keras.layers.ThresholdedReLU()(tf_keras.layers.Flatten()(image)), "it needs ThresholdedReLU"),
        (tf_keras.layers.Lambda(lambda x: x * 2)(tf_keras.layers.Flatten()(image)), "Python code .* never run"),
    ):
        model = tf_keras.Model(image, tf_keras.layers.Dense(2)(head))
        for form in ("whole.h5", "keras"):
            with pytest.raises(ModelSpecError, match=f"(?s){said}.*py:module:factory"):
                load_model(write(tf_keras, model, form, tmp_path), "model")


# ---- files that others sent


@pytest.fixture
def faults() -> pathlib.Path:
    folder = SHARED / "faults"
    if not folder.is_dir():
        pytest.skip("the inputs that went wrong (faults) are neither in $FROSTLINE_SHARED nor in ../shared")
    return folder


@pytest.mark.slow
def test_a_nested_model_frozen_in_part_computes_what_keras_2_computed(
    faults: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.models import build_model

    folder = faults / "05_legacy_h5_order"
    monkeypatch.syspath_prepend(folder)
    images = np.load(folder / "x.npy")
    small = images[:, :32, :32]
    for spec, weights, x, want in (
        ("py:ours:equal", "equal_frozen.h5", small, "y_equal.npy"),
        (f"file:{folder / 'old_equal.h5'}", "", small, "y_equal.npy"),
        ("keras:MobileNetV2,alpha=0.35", "mnv2_part.h5", images, "y.npy"),
    ):
        model = build_model(spec, image_shape=x.shape[1:], outputs=3)
        assert model.load is not None
        model.load(str(folder / weights) if weights else "auto")
        np.testing.assert_allclose(model.network(x, training=False), np.load(folder / want), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_backbone_with_an_old_top_loads_and_its_head_starts_anew(faults: pathlib.Path) -> None:
    from engine.models import build_model

    images = np.load(faults / "05_legacy_h5_order" / "x.npy")
    model = build_model("keras:MobileNetV2,alpha=0.35", image_shape=(96, 96, 3), outputs=3)
    assert model.load is not None
    body = model.load.keywords["backbone"]  # type: ignore[attr-defined]
    for name in ("53_old_top/top2.h5", "53_old_top/top3.weights.h5", "05_legacy_h5_order/k3seq.weights.h5"):
        said = model.load(str(faults / name))
        assert said is not None
        assert said.startswith(f"{pathlib.Path(name).name}, all of the backbone; new head; ")
        if name.startswith("53"):
            features = np.load(faults / "53_old_top" / "features.npy")
            np.testing.assert_allclose(body(images, training=False), features, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_file_of_teachable_machine_computes_what_keras_2_computed(faults: pathlib.Path) -> None:
    path = faults / "08_old_h5" / "keras_model_old.h5"
    images = np.load(faults / "05_legacy_h5_order" / "x.npy")
    want = tf_keras.models.load_model(path, compile=False)(images, training=False)
    np.testing.assert_allclose(load_model(str(path), "model")(images, training=False), want, rtol=1e-5, atol=1e-6)
