"""Keras models as backbones: names, preprocessing, heads, weights; and what is refused."""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine import FreezeProof, TrainStep, select
from engine.data import Normalise
from engine.errors import InputError
from engine.models import ModelSpecError, build_model, default_image_size
from engine.models.images import build_preprocessing, probe_preprocessing
from engine.models.keras import applications, heads
from engine.selection.variables import name_variables
from engine.training import losses, optimizers

ALL = ["ResNet50", "Xception", "VGG16", "MobileNetV2", "EfficientNetB0", "InceptionV3", "DenseNet121", "ConvNeXtTiny"]
SMALL = "keras:MobileNetV2,alpha=0.35"


def small(channels: int = 3, **more: Any) -> Any:
    return build_model(SMALL, image_shape=(32, 32, channels), outputs=3, **more)


def values(network: Any) -> dict[str, np.ndarray]:
    return {entry.path: entry.variable.numpy() for entry in name_variables(network)}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray], under: str = "") -> bool:
    return all(np.array_equal(one[path], other[path]) for path in one if path.startswith(under))


# ---- names and preprocessing


@pytest.mark.parametrize("name", ["VGG16", *(pytest.param(n, marks=pytest.mark.slow) for n in ALL)])
def test_an_application_is_built_with_a_head_and_runs(name: str) -> None:
    side = 75 if name in ("InceptionV3", "Xception") else 32
    model = build_model(f"keras:{name}", image_shape=(side, side, 3), outputs=3, head="gap,8,dropout=0.5")
    images = model.normalise(tf.random.stateless_uniform([2, side, side, 3], [0, 0]))
    outputs = model.network(images, training=False)
    assert outputs.shape == (2, 3)
    assert np.isfinite(outputs).all()
    paths = [entry.path for entry in name_variables(model.network)]
    assert paths[-4:] == ["head/hidden_0/kernel", "head/hidden_0/bias", "head/logits/kernel", "head/logits/bias"]
    assert all(path.startswith(f"{name}/") for path in paths[:-4])
    head = select(model.network, "@head", statistics=model.statistics)
    assert [entry.path for entry in head.trained] == paths[-4:]
    upper = select(model.network, f"@layers({name})[-20:] @head", statistics=model.statistics)
    assert len(upper.trained) > 4
    assert not upper.moving
    assert upper == select(model.network, f"{model.upper} @head", statistics=model.statistics)


@pytest.mark.parametrize("name", [*ALL, "MobileNetV3Small", "NASNetMobile", "EfficientNetV2B0", "ResNet50V2"])
def test_preprocessing_equals_that_of_the_application(name: str) -> None:
    import inspect

    module = inspect.getmodule(getattr(keras.applications, name))
    images = np.random.default_rng(0).random((2, 5, 4, 3), np.float32)
    wanted = module.preprocess_input(images * 255.0)  # type: ignore[union-attr]
    got = probe_preprocessing(module.preprocess_input)(tf.constant(images))  # type: ignore[union-attr]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("mode", ["tf", "torch", "caffe"])
def test_preprocessing_by_name_equals_that_of_keras(mode: str) -> None:
    images = np.random.default_rng(0).random((2, 5, 4, 3), np.float32)
    wanted = keras.applications.imagenet_utils.preprocess_input(images * 255.0, mode=mode)
    got = build_preprocessing(mode, 3)(tf.constant(images))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * max(1.0, np.abs(wanted).max()))


def test_normalise_repeats_gray_makes_gray_and_reverses_channels() -> None:
    gray, colours = tf.constant([[[[0.25]]]]), tf.constant([[[[1.0, 0.5, 0.0]]]])
    plain = {"mean": (0.0,), "std": (1.0,)}
    np.testing.assert_array_equal(Normalise(**plain, channels=3)(gray), [[[[0.25, 0.25, 0.25]]]])
    np.testing.assert_array_equal(Normalise(**plain, reverse=True)(colours), [[[[0.0, 0.5, 1.0]]]])
    np.testing.assert_allclose(Normalise(**plain, channels=1)(colours), [[[[0.2989 + 0.5 * 0.587]]]], rtol=1e-6)
    np.testing.assert_array_equal(Normalise(**plain)(gray), gray)


def test_a_preprocessing_beyond_scale_and_offset_is_refused() -> None:
    with pytest.raises(ModelSpecError, match="does not just scale and offset each channel"):
        probe_preprocessing(lambda pixels: pixels.mean(axis=-1, keepdims=True) + 0 * pixels)


def test_grayscale_images_reach_a_backbone_of_three_channels_and_the_user_is_reported() -> None:
    model = small(channels=1)
    assert model.notes == ("grayscale images are repeated to 3 channels",)
    assert model.normalise(tf.zeros([2, 32, 32, 1])).shape[1:] == model.network.input_shape[1:]
    colours = build_model("keras:VGG16", image_shape=(32, 32, 3), outputs=3)  # is built in a moment
    assert colours.notes == ()


def test_the_same_seed_gives_the_same_weights_and_leaves_pythons_generator_alone() -> None:
    import random

    random.seed(5)
    wanted = random.random()
    random.seed(5)
    one, two, other = (
        values(build_model("keras:VGG16", image_shape=(32, 32, 3), outputs=3, seed=seed).network) for seed in (1, 1, 2)
    )  # is built in a moment
    assert random.random() == wanted
    assert list(one) == list(two)  # a second build in the process has the same paths
    assert same(one, two)
    assert not same(one, other)


def test_float64_is_built_and_trains() -> None:
    model = small(dtype=tf.float64)
    assert {e.variable.dtype for e in name_variables(model.network)} == {tf.float64}
    assert keras.config.dtype_policy().name == "float32"
    assert model.network(tf.zeros([1, 32, 32, 3])).dtype == tf.float64


def test_names_are_found_in_any_case_and_options_are_keras_own() -> None:
    model = build_model("keras:mobilenetv2,alpha=0.5", image_shape=(32, 32, 3), outputs=2)
    wanted = keras.applications.MobileNetV2(alpha=0.5, weights=None, include_top=False, input_shape=(32, 32, 3))
    assert name_variables(model.network).parameters == wanted.count_params() + 1280 * 2 + 2


# ---- heads


def test_image_files_get_the_size_that_each_application_was_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from keras.src.applications import imagenet_utils

    class NativeSizeError(Exception):
        """Takes the size out of Keras' function before it builds anything."""

    def told(input_shape: Any = None, *, default_size: int, **_: Any) -> None:
        raise NativeSizeError(default_size)

    monkeypatch.setattr(imagenet_utils, "obtain_input_shape", told)
    sides = {}
    for name, function in applications.find_applications().items():
        if not name.startswith("MobileNetV3"):  # made for 224, and Keras does not ask for it
            with pytest.raises(NativeSizeError) as told_here:
                function(weights=None)
            sides[name] = told_here.value.args[0]
    assert len(sides) > 30
    assert {name: default_image_size(f"keras:{name}") for name in sides} == {n: (s, s) for n, s in sides.items()}
    assert default_image_size("keras:XCEPTION,classes=3") == (299, 299)
    assert default_image_size("keras:MobileNetV3Small") == (224, 224)


@pytest.mark.parametrize(
    ("shape", "size"), [((20, 24, 3), (20, 24)), ((None, None, 3), (224, 224)), ((None, 24, 1), (24, 24))]
)
def test_image_files_get_the_size_that_a_saved_model_was_saved_with(
    tmp_path: pathlib.Path, shape: tuple[int | None, ...], size: tuple[int, int]
) -> None:
    path = tmp_path / "m.keras"
    layers = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)]
    keras.Sequential([keras.Input(shape), *layers]).save(path)
    assert default_image_size(f"file:{path},preprocess=unit") == size
    with pytest.raises(ModelSpecError, match="there is no such file"):
        default_image_size(f"file:{tmp_path / 'other.keras'}")


def test_heads_are_read_as_written() -> None:
    assert heads.parse_head("gap") == heads.Head("gap", ())
    assert heads.parse_head("flatten, 512,dropout=0.5,64") == heads.Head("flatten", (512, 0.5, 64))


@pytest.mark.parametrize("pool", ["gap", "gmp", "flatten"])
def test_a_head_pools_as_it_says(pool: str) -> None:
    image = keras.Input((4, 4, 2))
    network = heads.add_head(keras.Model(image, keras.layers.Activation("linear")(image)), heads.Head(pool), 3)
    x = np.random.default_rng(0).random((2, 4, 4, 2), np.float32)
    features = {"gap": x.mean((1, 2)), "gmp": x.max((1, 2)), "flatten": x.reshape(2, -1)}[pool]
    kernel, bias = (e.variable.numpy() for e in name_variables(network))
    np.testing.assert_allclose(network(x), features @ kernel + bias, rtol=1e-5, atol=1e-6)
    assert 0 < np.abs(kernel).max() <= 0.04  # small, and not zero


# ---- saved models


def plain(last: Any, *, nested: bool = False) -> Any:
    """A small convolutional network with BatchNorm that ends in ``last``."""
    layers = [keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    layers += [keras.layers.GlobalAveragePooling2D()]
    if nested:
        return keras.Sequential([keras.Input((8, 8, 1)), keras.Sequential(layers), keras.Sequential(last)])
    return keras.Sequential([keras.Input((8, 8, 1)), *layers, *last])


def functional(last: Any) -> Any:
    image = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(keras.layers.Conv2D(4, 3)(image))
    return keras.Model([image], last(x))


ENDS = {
    "dense with softmax": (lambda: plain([keras.layers.Dense(3, "softmax")]), tf.nn.softmax),
    "dense, then an activation": (
        lambda: plain([keras.layers.Dense(3), keras.layers.Activation("softmax")]),
        tf.nn.softmax,
    ),
    "dense, then Softmax": (lambda: plain([keras.layers.Dense(3), keras.layers.Softmax()]), tf.nn.softmax),
    "sigmoid": (lambda: plain([keras.layers.Dense(3, "sigmoid")]), tf.nn.sigmoid),
    "nested": (lambda: plain([keras.layers.Dense(3, "softmax")], nested=True), tf.nn.softmax),
    "an operation": (lambda: functional(lambda x: keras.ops.softmax(keras.layers.Dense(3)(x))), tf.nn.softmax),
    "a list of one input": (lambda: functional(keras.layers.Dense(3, "softmax")), tf.nn.softmax),
}


# Keras cannot read an operation from .h5
CASES = [(e, suffix) for e in ENDS for suffix in (".keras", ".h5") if (e, suffix) != ("an operation", ".h5")]


@pytest.mark.parametrize(
    ("end", "suffix"),
    [
        pytest.param(end, suffix, marks=[pytest.mark.slow] * (suffix == ".h5" and end != "dense with softmax"))
        for end, suffix in CASES
    ],
)
def test_a_saved_model_returns_the_logits_of_its_probabilities(end: str, suffix: str, tmp_path: pathlib.Path) -> None:
    make, activation = ENDS[end]
    saved, path = make(), tmp_path / f"m{suffix}"
    saved.save(path)
    x = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
    model = build_model(f"file:{path}", image_shape=(8, 8, 1), outputs=3)
    np.testing.assert_allclose(activation(model.network(x)), saved(x), rtol=1e-6, atol=1e-7)
    assert any("was removed" in note for note in model.notes)
    kept = build_model(f"file:{path}", image_shape=(8, 8, 1), outputs=3, logits=False)
    np.testing.assert_array_equal(kept.network(x), saved(x))
    assert select(model.network, f"{model.upper} @head", statistics=model.statistics).trained


def test_a_saved_model_without_last_activation_is_taken_as_it_is(tmp_path: pathlib.Path) -> None:
    saved, path = plain([keras.layers.Dense(3)]), tmp_path / "m.keras"
    saved.save(path)
    model = build_model(f"file:{path},preprocess=unit", image_shape=(8, 8, 1), outputs=3)
    assert model.notes == ()
    assert model.normalise == Normalise(mean=(0.0,), std=(1.0,), channels=1)
    assert same(values(saved), values(model.network))
    assert model.statistics == "frozen"
    assert model.load("auto") == f"those of {path}"  # type: ignore[misc]


def test_a_model_with_softmax_below_its_last_layer_keeps_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.keras"
    plain([keras.layers.Dense(5, "softmax"), keras.layers.Dense(3)]).save(path)
    assert not any("removed" in n for n in build_model(f"file:{path}", image_shape=(8, 8, 1), outputs=3).notes)


def test_a_new_head_takes_the_place_of_the_last_layer_and_keeps_the_rest(tmp_path: pathlib.Path) -> None:
    saved, path = plain([keras.layers.Dense(6, "relu"), keras.layers.Dense(9, "softmax")]), tmp_path / "m.keras"
    saved.save(path)
    model = build_model(f"file:{path}", image_shape=(8, 8, 1), outputs=3, head="gap,4")
    paths = [entry.path for entry in name_variables(model.network)]
    assert [p for p in paths if p.startswith("head/")] == [f"head/{n}" for n in ("hidden_0/kernel", "hidden_0/bias", "logits/kernel", "logits/bias")]  # fmt: skip
    old, new = values(saved), values(model.network)
    kept = {path: array for path, array in old.items() if not path.startswith("dense_1/")}
    assert len(kept) == len(old) - 2
    assert all(np.array_equal(array, new[f"backbone/{path}"]) for path, array in kept.items())
    with pytest.raises(
        ModelSpecError, match=r"outputs have shape 9, but the data require 3; --head=gap replaces its last layer"
    ):
        build_model(f"file:{path}", image_shape=(8, 8, 1), outputs=3)


def test_a_new_head_on_a_saved_model_starts_from_the_seed_alone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.keras"
    keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]).save(path)
    one, same_seed, other = (
        values(build_model(f"file:{path}", image_shape=(8, 8, 3), outputs=2, head="gap,4", seed=seed).network)
        for seed in (1, 1, 2)
    )
    assert same(one, same_seed)
    assert not same(one, other, under="head/")


def test_a_model_that_scales_its_images_is_given_pixels(tmp_path: pathlib.Path) -> None:
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(3)]
    keras.Sequential([keras.Input((8, 8, 1)), *layers]).save(tmp_path / "m.keras")
    model = build_model(f"file:{tmp_path / 'm.keras'}", image_shape=(8, 8, 1), outputs=3)
    assert np.max(model.normalise(tf.ones([1, 8, 8, 1]))) == pytest.approx(255.0)
    assert "0 to 255" in model.notes[0]
    assert model.upper == ""  # beside the head it has no weight


def damaged(folder: pathlib.Path) -> dict[str, tuple[str, str]]:
    """What a file: may meet -> (file, message)."""
    import h5py

    lambda_layer = keras.layers.Lambda(lambda x: x * 2)
    model = keras.Sequential([keras.Input((8, 8, 1)), lambda_layer, keras.layers.Flatten(), keras.layers.Dense(3)])
    model.save(folder / "lambda.keras")
    model.save(folder / "lambda.h5")
    (folder / "page.h5").write_text("<html>")
    (folder / "page.keras").write_text("<html>")
    with h5py.File(folder / "other.h5", "w") as file:
        file["a"] = [1, 2]
    keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)]).save(folder / "vector.keras")
    plain([keras.layers.Dense(3)]).save(folder / "whole.keras")
    plain([keras.layers.Dense(3)]).save_weights(folder / "x.weights.h5")
    whole = (folder / "whole.keras").read_bytes()
    (folder / "cut.keras").write_bytes(whole[: len(whole) // 2])
    image = keras.Input((8, 8, 1))
    keras.Model(image, [keras.layers.Flatten()(image), image]).save(folder / "two.keras")
    flat = keras.layers.Flatten()(image)
    keras.Model(image, keras.layers.Concatenate()([flat, flat])).save(folder / "joined.keras")
    keras.Sequential([image, plain([keras.layers.Dense(9)])]).save(folder / "inside.keras")
    return {
        "lambda.keras": ("", "Python code .such as a Lambda layer.*never run"),
        "lambda.h5": ("", "Python code .such as a Lambda layer.*never run"),
        "page.h5": ("", "not a Keras model, or damaged"),
        "page.keras": ("", "not a Keras model, or damaged"),
        "other.h5": ("", "an HDF5 file, but not Keras weights; it holds a"),
        "cut.keras": ("", "not a Keras model, or damaged"),
        "nowhere.keras": ("", "there is no such file"),
        "model.txt": ("", "ending in .keras, .h5, .hdf5"),
        "x.weights.h5": ("", "holds weights without a model"),
        "vector.keras": ("", "its input has shape 8; expected .height, width, 1 or 3."),
        "two.keras": ("", "it has 1 inputs and 2 outputs"),
        "joined.keras": ("gap", "which joins 2 tensors"),
        "inside.keras": ("gap", "its last layer is the whole model"),
        "whole.keras,preprocess=tff": (
            "",
            "preprocess='tff' is not a valid preprocessing; expected one of tf, torch.*nearest: tf",
        ),
        "whole.keras,alpha=1": ("", "`alpha` is not an option of this model"),
    }


def test_files_that_cannot_be_used_are_refused_with_the_reason(tmp_path: pathlib.Path) -> None:
    for name, (head, message) in damaged(tmp_path).items():
        with pytest.raises(InputError, match=message):
            build_model(f"file:{tmp_path / name}", image_shape=(8, 8, 1), outputs=3, head=head or None)
    with pytest.raises(ModelSpecError, match="the images are 28x28, but its input is 8x8"):
        build_model(f"file:{tmp_path / 'whole.keras'}", image_shape=(28, 28, 1), outputs=3)
    with pytest.raises(ModelSpecError, match="its weights are float32; expected float64"):
        build_model(f"file:{tmp_path / 'whole.keras'}", image_shape=(8, 8, 1), outputs=3, dtype=tf.float64)


def test_a_lambda_in_the_format_of_keras_2_runs_nothing(tmp_path: pathlib.Path) -> None:
    import base64
    import json
    import marshal

    import h5py

    keras.Sequential([keras.Input((8, 8, 1)), keras.layers.ReLU(), keras.layers.Flatten(), keras.layers.Dense(3)]).save(
        tmp_path / "m.h5"
    )
    planted = tmp_path / "planted"
    code = compile(f"lambda x: (open({str(planted)!r}, 'w'), x)[1]", "x", "eval").co_consts[0]
    text = base64.b64encode(marshal.dumps(code)).decode()
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        config = json.loads(file.attrs["model_config"])
        layer = config["config"]["layers"][1]
        layer["class_name"] = "Lambda"
        layer["config"] = {"name": "l", "function": [text, None, None], "function_type": "lambda", "arguments": {}}
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(ModelSpecError):
        build_model(f"file:{tmp_path / 'm.h5'}", image_shape=(8, 8, 1), outputs=3)
    assert not planted.exists()


# ---- names, options and heads that are wrong

WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "name": ("keras:mobilnetv2", {}, "no 'mobilnetv2'; nearest: MobileNetV2"),
    "nothing like it": ("keras:zzz", {}, "no 'zzz'; expected one of ConvNeXtBase"),
    "small images": ("keras:Xception", {}, "images of 40x40 are too small; expected at least 71x71"),
    "value": ("keras:MobileNetV2,alpha=x", {}, "alpha='x' is not a number"),
    "option": ("keras:VGG16,alpha=1", {}, "`alpha` is not an option of VGG16; it has none"),
    "reserved": ("keras:MobileNetV2,weights=x", {}, "`weights` is not an option of MobileNetV2; expected one of alpha=1.0"),
    "pooling": ("keras:VGG16", {"head": "gpa"}, "expected it to begin with gap, gmp or flatten, or, .*; nearest"),
    "hidden": ("keras:VGG16", {"head": "gap,x"}, "`x` is not a valid part; expected a hidden layer"),
    "dropout": ("keras:VGG16", {"head": "gap,dropout=1"}, "`dropout=1` is not a valid part; expected a hidden layer"),
    "head of another": ("vit:mini", {"head": "gap"}, "vit:mini has its own head"),
    "module": ("py:nowhere:make", {}, "importing nowhere raised ModuleNotFoundError"),
    "no factory": ("py:os", {}, "is not a valid factory; expected py:module:factory"),
    "factory": ("py:os:getcwdd", {}, "os has no 'getcwdd'; nearest: getcwd"),
    "no model": ("py:os:getcwd", {}, r"os:getcwd\(\) returned str; expected a tf.Module with __call__ or a Keras model"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_in_a_name_is_named(case: str) -> None:
    spec, more, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        build_model(spec, image_shape=(40, 40, 3), outputs=3, **more)


# ---- models from the user's code

CODE = """
import keras, tensorflow as tf

class Net(tf.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.kernel = tf.Variable(tf.ones([inputs, outputs]))
    def __call__(self, images):
        return tf.reshape(images, [tf.shape(images)[0], -1]) @ self.kernel

def module(image_shape, outputs):
    return Net(image_shape[0] * image_shape[1] * image_shape[2], outputs)

def probabilities(image_shape, outputs):
    net = module(image_shape, outputs)
    class Soft(tf.Module):
        def __init__(self): self.net = net
        def __call__(self, images, training): return tf.nn.softmax(self.net(images))
    return Soft()

def nine():
    image = keras.Input((8, 8, 1))
    return keras.Model(image, keras.layers.Dense(9, "softmax")(keras.layers.Flatten()(image)))

class Sub(keras.Model):
    def __init__(self, outputs):
        super().__init__()
        self.flatten, self.out = keras.layers.Flatten(), keras.layers.Dense(outputs)
    def call(self, x, training=False): return self.out(self.flatten(x))

def subclass(image_shape, outputs): return Sub(outputs)
def nothing(image_shape, outputs): return None
def empty(): return tf.Module()
def raises(image_shape, outputs): raise KeyError("boom")
def ends(image_shape, outputs): raise SystemExit(0)
def wrong_input(image_shape, outputs): return Net(5, outputs)
"""


@pytest.fixture
def user_code(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_code.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "user_code", raising=False)


@pytest.mark.usefixtures("user_code")
@pytest.mark.parametrize(("name", "statistics"), [("module", "follow"), ("subclass", "frozen")])
def test_a_factory_returns_a_model_that_trains(name: str, statistics: str) -> None:
    model = build_model(f"py:user_code:{name}", image_shape=(8, 8, 1), outputs=3)
    assert model.statistics == statistics
    step = TrainStep(losses.supervised_loss(model.network), optimizers.SGD())
    selection = select(model.network, "@all", statistics=model.statistics)
    before = values(model.network)
    step(selection, {"image": np.ones([2, 8, 8, 1], np.float32), "label": np.array([0, 2])}, learning_rate=0.1)
    assert not same(before, values(model.network))


@pytest.mark.usefixtures("user_code")
def test_a_factory_without_arguments_may_get_a_new_head() -> None:
    model = build_model("py:user_code:nine", image_shape=(8, 8, 1), outputs=3, head="gap")
    assert [e.path for e in name_variables(model.network)] == ["head/logits/kernel", "head/logits/bias"]


@pytest.mark.usefixtures("user_code")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "returned NoneType; expected a tf.Module with __call__ or a Keras model"),
        ("empty", "returned Module; expected a tf.Module with __call__"),
        ("raises", r"user_code:raises\(\(8, 8, 1\), 3\) raised KeyError: 'boom'"),
        ("ends", r"user_code:ends\(\(8, 8, 1\), 3\) raised SystemExit: 0"),
        ("nine", "outputs have shape 9, but the data require 3"),
        ("probabilities", "it ends in softmax; expected logits"),
        ("wrong_input", r"calling it on images \[8, 8, 1\] raised"),
        ("module,alpha=1", "`alpha` is not an option of this model"),
    ],
)
def test_a_factory_without_a_usable_model_is_named(name: str, message: str) -> None:
    with pytest.raises(ModelSpecError, match=message):
        build_model(f"py:user_code:{name}", image_shape=(8, 8, 1), outputs=3)


# ---- the legacy file of FACTS.md


@pytest.mark.skipif(
    not os.environ.get("FROSTLINE_EMOTION_MODEL"),
    reason="FROSTLINE_EMOTION_MODEL names no emotion_model.hdf5 (of the package fer 25.10.3)",
)
def test_the_last_layers_of_emotion_model_fine_tune() -> None:
    path = os.environ["FROSTLINE_EMOTION_MODEL"]
    x = np.random.default_rng(0).random((6, 64, 64, 1), np.float32)
    kept = build_model(f"file:{path}", image_shape=(64, 64, 1), outputs=7)
    wanted = keras.saving.load_model(path, compile=False)(x)
    np.testing.assert_allclose(tf.nn.softmax(kept.network(x)), wanted, rtol=0, atol=1e-6)
    for model, outputs in ((kept, 7), (build_model(f"file:{path}", image_shape=(64, 64, 1), outputs=3, head="gap"), 3)):
        batch = {"image": x, "label": np.arange(6) % outputs}
        assert sum(e.path.endswith("moving_mean") for e in name_variables(model.network)) == 14
        step = TrainStep(losses.supervised_loss(model.network), optimizers.Adam())
        for text in ("@head", f"{model.upper} @head"):
            selection = select(model.network, text, statistics=model.statistics)
            proof, before = FreezeProof.begin(selection), values(model.network)
            found = [float(step(selection, batch, learning_rate=1e-3).loss) for _ in range(5)]
            assert found[-1] < found[0]
            assert proof.changed(selection) == []
            assert not selection.moving
            after = values(model.network)
            assert all(not np.array_equal(before[e.path], after[e.path]) for e in selection.trained)


@pytest.mark.parametrize("mode", ["torch", "caffe"])
def test_a_preprocessing_for_colours_is_refused_for_one_channel(mode: str) -> None:
    with pytest.raises(ModelSpecError, match=f"preprocess={mode} is for 3 channels, but the model has 1"):
        build_preprocessing(mode, 1)
