"""What a network does to its images before its first weights decides what it is given, or the user is asked."""

from __future__ import annotations

import os
import pathlib
import sys
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine import load_weights
from engine.data import Normalise
from engine.models import ModelSpecError, build_model
from engine.models.images import build_preprocessing, images_as

SHARED = pathlib.Path(os.environ.get("FROSTLINE_SHARED") or pathlib.Path(__file__).resolve().parents[4] / "shared")
SHAPE = (8, 8, 3)
layers, ops = keras.layers, keras.ops
MEANS, DEVIATIONS = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def keras_preprocessing(mode: str) -> Callable[[Any], Any]:
    return lambda x: keras.applications.imagenet_utils.preprocess_input(x, mode=mode)


def adapted(x: Any) -> Any:
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(0).uniform(0, 255, (20, *SHAPE)).astype(np.float32))
    return layer(x)


def statistics(mean: float, variance: float, **given: Any) -> Callable[[Any], Any]:
    def apply(x: Any) -> Any:
        layer = layers.BatchNormalization(**given)
        result = layer(x)
        layer.moving_mean.assign([mean] * 3)
        layer.moving_variance.assign([variance] * 3)
        return result

    return apply


def nested(*inner: Any) -> Any:
    return keras.Sequential([keras.Input(SHAPE), keras.Sequential([keras.Input(SHAPE), *inner])])


# name -> (what the network does to its images, the range that it is made for)
DECIDED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "divide by 255": (lambda x: x / 255.0, "pixels"),
    "divide by 127.5, subtract 1": (lambda x: x / 127.5 - 1.0, "pixels"),
    "preprocess_input, tf": (keras_preprocessing("tf"), "pixels"),
    "preprocess_input, torch": (keras_preprocessing("torch"), "pixels"),
    "preprocess_input, caffe": (keras_preprocessing("caffe"), "pixels"),
    "subtract the mean": (lambda x: x - 255.0 * MEANS, "pixels"),
    "subtract 128": (lambda x: x - 128.0, "pixels"),
    "swap, then divide": (lambda x: x[..., ::-1] / 255.0, "pixels"),
    "clip, then scale": (lambda x: ops.clip(x, 0.0, 255.0) / 127.5 - 1.0, "pixels"),
    "a negative": (lambda x: 255.0 - x, "pixels"),
    "Rescaling": (layers.Rescaling(1 / 127.5, -1), "pixels"),
    "Rescaling, nested": (nested(layers.Rescaling(1 / 255)), "pixels"),
    "Rescaling and augmentation": (nested(layers.Rescaling(1 / 255), layers.RandomFlip()), "pixels"),
    "Rescaling, then padding": (lambda x: layers.ZeroPadding2D(2)(layers.Rescaling(1 / 127.5, -1)(x)), "pixels"),
    "Rescaling, then resizing": (lambda x: layers.Resizing(12, 12)(layers.Rescaling(1 / 127.5, -1)(x)), "pixels"),
    "Normalization, adapted": (adapted, "pixels"),
    "BatchNorm of pixels": (statistics(115.0, 4000.0, scale=False), "pixels"),
    "Rescaling, then Normalization": (
        lambda x: layers.Normalization(mean=MEANS, variance=DEVIATIONS**2)(layers.Rescaling(1 / 255)(x)),
        "pixels",
    ),
    "for 0 to 1": (lambda x: x * 2.0 - 1.0, "unit"),
    "for 0 to 1, to pixels": (lambda x: x * 255.0 - 255.0 * MEANS, "unit"),
    "for 0 to 1, ImageNet's": (lambda x: (x - MEANS) / DEVIATIONS, "unit"),
    "for -1 to 1": (lambda x: (x + 1.0) / 2.0, "tf"),
    "for -1 to 1, to pixels": (lambda x: (x + 1.0) * 127.5, "tf"),
    "nothing": (lambda x: x, "tf"),
    "padding": (layers.ZeroPadding2D(2), "tf"),
    "BatchNorm that is fresh": (layers.BatchNormalization(), "tf"),
}
UNDECIDED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a swap alone": (lambda x: x[..., ::-1], "it reorders their channels"),
    "a factor that fits two ranges": (lambda x: x * 2.0, "it turns values from 0 to 255 into 0 to 510"),
    "a root": (lambda x: ops.sqrt(ops.abs(x)), "it turns values from 0 to 255 into 0 to 15.97"),
    "statistics that fit two ranges": (statistics(0.45, 0.06), "it turns values from 0 to 255 into"),
    "means as if blue came first": (lambda x: x - 255.0 * MEANS[::-1], "as if blue came first"),
}


def network(before: Callable[[Any], Any], outputs: int = 3, **given: Any) -> Any:
    image = keras.Input(SHAPE, **given)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(before(image)))
    return keras.Model(image, layers.Dense(outputs)(x))


class Net(tf.Module):
    """A network that is not of Keras; ``mean`` is a variable that does not train."""

    def __init__(self, outputs: int, before: Callable[[Any], Any], mean: Any = None) -> None:
        super().__init__()
        self.before = before
        self.kernel = tf.Variable(tf.ones([3, 3, 3, 4]))
        self.dense = tf.Variable(tf.ones([4, outputs]))
        self.mean = None if mean is None else tf.Variable(mean, trainable=False)

    def __call__(self, images: Any) -> Any:
        images = self.before(images)
        if self.mean is not None:
            images = images - self.mean
        return tf.reduce_mean(tf.nn.conv2d(images, self.kernel, 1, "SAME"), [1, 2]) @ self.dense


class Subclassed(keras.Model):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.stack = [layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(outputs)]

    def call(self, images: Any, training: bool = False) -> Any:
        x = images / 255.0
        for layer in self.stack:
            x = layer(x)
        return x


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Builds the model of a factory."""

    def build(factory: Any, *, options: str = "", **given: Any) -> Any:
        monkeypatch.setitem(sys.modules, "scaling_code", types.SimpleNamespace(make=factory))
        return build_model(f"py:scaling_code:make{options}", **{"image_shape": SHAPE, "outputs": 3, **given})

    return build


@pytest.mark.parametrize("case", DECIDED)
def test_what_a_graph_of_layers_does_to_its_images_decides_what_it_is_given(case: str, built: Any) -> None:
    before, mode = DECIDED[case]
    model = built(lambda shape, outputs: network(before))
    assert model.normalise == build_preprocessing(mode, 3)
    low, high = {"pixels": (0, 255), "unit": (0, 1), "tf": (-1, 1)}[mode]
    assert f"images are scaled to {low} to {high} (" in model.notes[0]


@pytest.mark.parametrize("case", UNDECIDED)
def test_what_cannot_be_decided_is_asked(case: str, built: Any) -> None:
    before, reason = UNDECIDED[case]
    with pytest.raises(ModelSpecError) as caught:
        built(lambda shape, outputs: network(before))
    assert reason in str(caught.value)
    assert "--model=py:scaling_code:make,preprocess=pixels" in str(caught.value)
    model = built(lambda shape, outputs: network(before), options=",preprocess=unit")
    assert (model.normalise, model.notes) == (build_preprocessing("unit", 3), ())


MODULES: dict[str, tuple[Callable[[Any, int], Any], Normalise]] = {
    "a subclass of Model": (lambda shape, outputs: Subclassed(outputs), build_preprocessing("pixels", 3)),
    "operations": (lambda s, n: Net(n, lambda x: x / 127.5 - 1.0), build_preprocessing("pixels", 3)),
    "a variable": (lambda s, n: Net(n, lambda x: x, 255.0 * MEANS), build_preprocessing("pixels", 3)),
    "a mean image": (lambda s, n: Net(n, lambda x: x, np.full(s, 117.0, np.float32)), build_preprocessing("pixels", 3)),
    "a tf.function": (lambda s, n: Net(n, tf.function(lambda x: x / 255.0)), build_preprocessing("pixels", 3)),
    "luma": (
        lambda s, n: Net(n, lambda x: tf.repeat(tf.image.rgb_to_grayscale(x) / 255.0, 3, axis=-1)),
        build_preprocessing("pixels", 3),
    ),
    "each image by its own deviation": (lambda s, n: Net(n, tf.image.per_image_standardization), Normalise()),
    "nothing": (lambda s, n: Net(n, lambda x: x), Normalise()),
    "a fixed blur": (
        lambda s, n: Net(n, lambda x: tf.nn.depthwise_conv2d(x, np.ones([5, 5, 3, 1], "f"), [1] * 4, "SAME")),
        Normalise(),
    ),
}


@pytest.mark.parametrize("case", MODULES)
def test_what_any_other_network_does_to_its_images_decides_too(case: str, built: Any) -> None:
    factory, normalise = MODULES[case]
    assert built(factory).normalise == normalise


def test_the_functions_of_a_savedmodel_are_looked_into(built: Any, tmp_path: pathlib.Path) -> None:
    saved = Net(3, lambda x: x / 127.5 - 1.0)
    saved.call = tf.function(saved.__call__, input_signature=[tf.TensorSpec([None, *SHAPE])])
    tf.saved_model.save(saved, str(tmp_path / "m"), signatures=saved.call)
    loaded = tf.saved_model.load(str(tmp_path / "m"))

    class Wrapped(tf.Module):
        def __init__(self, function: Any) -> None:
            super().__init__()
            self.variables_of = [loaded.kernel, loaded.dense]
            self.function = function

        def __call__(self, images: Any) -> Any:
            return tf.nest.flatten(self.function(images))[0]

    for function in (loaded.call, loaded.signatures["serving_default"]):
        assert built(lambda shape, outputs, f=function: Wrapped(f)).normalise == build_preprocessing("pixels", 3)


def test_a_branch_on_the_values_is_not_guessed(built: Any) -> None:
    def before(x: Any) -> Any:
        return tf.cond(tf.reduce_mean(x) > 2.0, lambda: x / 255.0, lambda: x)

    with pytest.raises(ModelSpecError, match="cannot be decided"):
        built(lambda shape, outputs: Net(outputs, before))


def test_a_network_of_whole_numbers_gets_every_pixel_as_it_is(built: Any) -> None:
    model = built(lambda shape, outputs: network(layers.Rescaling(1 / 255), dtype="uint8"))
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(4, 8, 8, 3)
    np.testing.assert_array_equal(tf.cast(model.normalise(pixels), tf.uint8), pixels)


def test_weights_that_expect_other_images_are_refused_with_the_way_out(built: Any, tmp_path: pathlib.Path) -> None:
    network(statistics(115.0, 4000.0)).save_weights(tmp_path / "pixels.weights.h5")
    network(layers.BatchNormalization()).save_weights(tmp_path / "plain.weights.h5")

    def make(shape: Any, outputs: int) -> Any:
        return network(layers.BatchNormalization())

    load_weights(built(make), tmp_path / "plain.weights.h5")
    with pytest.raises(ModelSpecError, match=r"expects images from 0 to 255 .*,preprocess=pixels gives it those"):
        load_weights(built(make), tmp_path / "pixels.weights.h5")
    load_weights(built(make, options=",preprocess=pixels"), tmp_path / "pixels.weights.h5")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EfficientNetB0", "EfficientNetV2B0", "MobileNetV3Small", "ConvNeXtTiny"])
def test_applications_that_scale_images_get_pixels_from_a_file(name: str, tmp_path: pathlib.Path) -> None:
    getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classes=3).save(tmp_path / "m.keras")
    model = build_model(f"file:{tmp_path / 'm.keras'}", image_shape=(64, 64, 3), outputs=3)
    assert model.normalise == build_preprocessing("pixels", 3)


@pytest.mark.parametrize("name", ["preprocess_input", "ops"])
def test_fault_22_gives_the_outputs_of_its_own_keras(name: str) -> None:
    folder = SHARED / "faults" / "22_preprocessing_in_graph"
    if not folder.is_dir():
        pytest.skip("shared/faults is not beside the checkout; FROSTLINE_SHARED names another folder")
    with np.load(SHARED / "faults" / "common" / "rgb.npz") as archive:
        pixels = archive["val_images"][:4]
    model = build_model(f"file:{folder / name}.keras", image_shape=(32, 32, 3), outputs=3)
    expected = keras.saving.load_model(folder / f"{name}.keras")(pixels.astype(np.float32))
    np.testing.assert_allclose(model.network(model.normalise(pixels)), expected, atol=1e-5)


def test_rules_may_say_what_images_weights_expect_where_the_network_does_not_show_it(
    built: Any, tmp_path: pathlib.Path
) -> None:
    np.savez(tmp_path / "w.npz", k=np.ones([3, 3, 3, 4], np.float32), d=np.ones([4, 3], np.float32))
    (tmp_path / "my.rules").write_text("kernel <- k\ndense <- d\nimages torch\n")
    given: dict[str, Any] = {"weights": tmp_path / "w.npz", "rules": tmp_path / "my.rules"}
    plain, scaled = (built(lambda s, n, f=factor: Net(n, lambda x: x / f)) for factor in (1.0, 255.0))
    assert load_weights(plain, **given).images == "torch"
    assert plain.normalise == images_as("torch", SHAPE)
    assert load_weights(scaled, **given).images is None
    assert scaled.normalise == build_preprocessing("pixels", 3)
    chosen = built(lambda s, n: Net(n, lambda x: x), options=",preprocess=unit")
    assert load_weights(chosen, **given).images is None
