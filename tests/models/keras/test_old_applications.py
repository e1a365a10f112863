"""Files of keras.applications that Keras 2 and 3 wrote from random weights, loaded into the networks of the same name."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest

from engine.models import build_model
from engine.models.keras.leaves import Leaf, Leaves, describe_model, modern_name, with_modern_names
from engine.models.keras.old_config import rename_layers
from engine.models.weights import load_weights

tf_keras: Any = pytest.importorskip("tf_keras", reason="tf-keras is not installed (make install does it)")


def test_names_with_slashes_are_those_of_keras_3() -> None:
    old = [
        "Conv",
        "conv1/conv",
        "conv1/bn",
        "expanded_conv/depthwise/BatchNorm",
        "expanded_conv/squeeze_excite/AvgPool",
    ]
    new = ["conv", "conv1_conv", "conv1_bn", "expanded_conv_depthwise_bn", "expanded_conv_squeeze_excite_avg_pool"]
    assert [modern_name(name) for name in old] == new
    found = with_modern_names(Leaves(tuple(map(Leaf, old))), Leaves(tuple(map(Leaf, new))))
    assert [leaf.name for leaf in found] == new
    twice = Leaves((Leaf("a/b"), Leaf("A/b")))  # which of the two is a_b cannot be known
    assert [leaf.name for leaf in with_modern_names(twice, Leaves((Leaf("a_b"),)))] == ["a/b", "A/b"]


def test_layers_are_renamed_wherever_a_configuration_names_them() -> None:
    layer: dict[str, Any] = {"class_name": "Dense", "config": {"name": "a/b"}, "inbound_nodes": [[["x", 0, 0]]]}
    model = {"class_name": "Functional", "config": {"name": "m", "layers": [layer], "output_layers": [["a/b", 0, 0]]}}
    found = rename_layers(model)["config"]
    assert (found["layers"][0]["config"]["name"], found["output_layers"]) == ("a_b", [["a_b", 0, 0]])


def test_operations_between_layers_are_compared_and_a_composed_hard_silu_is_one_activation() -> None:
    def kinds(make: Any) -> list[tuple[str, Any]]:
        image = keras.Input((4, 4, 3))
        leaves = list(describe_model(keras.Model(image, keras.layers.Conv2D(1, 1)(make(image)))))[1:-1]
        return [(x.kind, (x.config or {}).get("scale", (x.config or {}).get("activation"))) for x in leaves]

    def composed(x: Any) -> Any:
        y = keras.layers.ReLU(6.0)(keras.layers.Rescaling(1.0, 3.0)(x))
        return keras.layers.Multiply()([x, keras.layers.Rescaling(1 / 6)(y)])

    assert kinds(lambda x: x / 127.5 - 1.0) == [("rescaling", 1 / 127.5), ("rescaling", 1.0)]
    assert kinds(composed) == [("activation", "hard_silu")]
    assert [kind for kind, _ in kinds(keras.layers.Activation("hard_silu"))] == ["activation"]
    other = kinds(lambda x: keras.layers.Multiply()([x, (keras.layers.ReLU(6.0)(x + 2.0)) / 6.0]))
    assert [kind for kind, _ in other] == ["rescaling", "re_lu", "rescaling", "multiply"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["h5", "whole.h5", "keras"])
@pytest.mark.parametrize("name", ["MobileNetV3Small", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0"])
def test_a_nested_application_of_keras_2_computes_what_it_computed(
    name: str, form: str, tmp_path: pathlib.Path
) -> None:
    body = getattr(tf_keras.applications, name)(weights=None, include_top=False, input_shape=(32, 32, 3))
    rng = np.random.default_rng(0)
    body.set_weights(
        [
            w + (rng.uniform(0, 0.1, w.shape) if w.ndim < 2 else rng.normal(0, 0.003, w.shape))
            for w in body.get_weights()
        ]
    )
    tops = [tf_keras.layers.GlobalAveragePooling2D(), tf_keras.layers.Dense(3)]
    source = tf_keras.Sequential([tf_keras.Input((32, 32, 3)), body, *tops])
    path = tmp_path / f"file.{form}"
    source.save_weights(path) if form == "h5" else source.save(path)
    plain = ",imagenet_layers=false" if name.startswith("EfficientNetB") else ""
    model = build_model(f"keras:{name}{plain}", image_shape=(32, 32, 3), outputs=3)
    load_weights(model, path)
    images = rng.uniform(0, 255 if plain else 1, (2, 32, 32, 3)).astype(np.float32)
    backbone = model.load.keywords["backbone"]  # type: ignore[union-attr]
    got, want = np.asarray(backbone(images, training=False)), np.asarray(body(images, training=False))
    assert np.abs(got - want).max() <= 5e-6 * np.abs(want).max()
