"""Heads with an output for each pixel: the stages of trunks, and the networks that are built on them."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine.models import ModelSpecError, build_model
from engine.models.keras.heads import HeadError, parse_head
from engine.models.keras.stages import find_stages
from engine.selection.variables import name_variables

L = keras.layers


def tiny_trunk(size: int | None = 16, *, pool: bool = False, padding: str = "same") -> Any:
    """Strides 2, 4 and 8, with a branch inside of a stage."""
    keras.utils.set_random_seed(0)
    image = keras.Input((size, size, 3))
    x = L.Conv2D(4, 3, 2, padding=padding, activation="relu", name="first")(image)
    y = L.Conv2D(4, 3, padding="same", name="branch")(x)
    x = L.Add(name="sum")([x, y])
    x = L.ZeroPadding2D(((0, 1), (0, 1)), name="pad")(x)
    x = L.Conv2D(6, 3, 2, name="second")(x)
    x = L.Conv2D(8, 3, 2, padding="same", name="third")(x)
    if pool:
        x = L.Dense(5, name="top")(L.GlobalAveragePooling2D(name="pool")(x))
    return keras.Model(image, x, name="trunk")


def tiny(image_shape: Any = (16, 16, 3), outputs: int = 3) -> Any:
    return tiny_trunk(image_shape[0])


def pooled(image_shape: Any = (16, 16, 3), outputs: int = 3) -> Any:
    return tiny_trunk(None, pool=True)


def ready(image_shape: Any = (16, 16, 3), outputs: int = 3) -> Any:
    """A network that has outputs for each pixel itself, with a softmax."""
    image = keras.Input(image_shape)
    return keras.Model(
        image, L.Conv2D(outputs, 1, activation="softmax", name="last")(L.Conv2D(4, 3, padding="same")(image))
    )


class Pixels(tf.Module):
    """A module of the user's own with logits for each pixel."""

    def __init__(self, image_shape: Any, outputs: int, *, margin: int = 0) -> None:
        super().__init__()
        self.margin = margin
        self.kernel = tf.Variable(tf.random.stateless_normal([image_shape[2], outputs], [1, 2]), name="kernel")

    def __call__(self, images: Any) -> Any:
        return tf.einsum("bhwc,cd->bhwd", images[:, self.margin :, self.margin :], self.kernel)


def cropped(image_shape: Any, outputs: int) -> Any:
    return Pixels(image_shape, outputs, margin=1)


HERE = "py:test_dense_heads"


def build(spec: str, head: str | None, size: int = 16, outputs: int = 3, **given: Any) -> Any:
    return build_model(
        f"{spec},preprocess=tf" if ":test" in spec else spec,
        image_shape=(size, size, 3),
        outputs=outputs,
        head=head,
        **{"outputs_of": "pixel"} | given,
    )


def stages_of(trunk: Any, size: int) -> list[tuple[int, str]]:
    return [(stage.stride, stage.layer) for stage in find_stages(trunk, (size, size), "keras:X")]


def test_the_stages_are_the_last_maps_that_everything_passes_through() -> None:
    wanted = [(2, "sum"), (4, "second"), (8, "third")]
    assert stages_of(tiny_trunk(), 16) == wanted
    assert stages_of(tiny_trunk(None), 21) == wanted
    assert stages_of(tiny_trunk(None, pool=True), 16) == wanted


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        pytest.param("MobileNetV2", ["expanded_conv_project_BN", "block_2_add", "block_5_add", "block_12_add", "out_relu"], marks=pytest.mark.slow),
        pytest.param("ResNet50", ["conv1_relu", *(f"conv{n}_block{m}_out" for n, m in ((2, 3), (3, 4), (4, 6), (5, 3)))], marks=pytest.mark.slow),
        pytest.param("EfficientNetB0", ["block1a_project_bn", "block2b_add", "block3b_add", "block5c_add", "top_activation"], marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_named_stages_of_applications(name: str, wanted: list[str]) -> None:
    trunk = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(65, 65, 3))
    assert stages_of(trunk, 65) == list(zip((2, 4, 8, 16, 32), wanted, strict=True))


def test_a_trunk_without_such_stages_is_refused_with_the_reason() -> None:
    with pytest.raises(HeadError, match="the size of 'first', 7x7 for images of 16x16, is not that of a stride"):
        find_stages(tiny_trunk(padding="valid"), (16, 16), "file:x.keras")
    inner = keras.Sequential([keras.Input((16, 16, 3)), tiny_trunk()])
    with pytest.raises(HeadError, match="one through which all that follows passes; a model within a model"):
        find_stages(inner, (16, 16), "file:x.keras")


@pytest.mark.parametrize(
    ("spec", "head", "size"),
    [
        pytest.param(f"{HERE}:tiny", "unet", 16, marks=pytest.mark.slow),
        (f"{HERE}:tiny", "unet,6,5,4,dropout=0.5", 21),
        pytest.param(f"{HERE}:pooled", "aspp,8", 13, marks=pytest.mark.slow),
    ],
)
def test_a_head_has_the_size_of_the_image_and_all_its_variables_lie_under_head(spec: str, head: str, size: int) -> None:
    model = build(spec, head, size)
    images = tf.random.stateless_normal([2, size, size, 3], [1, 2])
    logits = model.network(images, training=False)
    assert logits.shape == (2, size, size, 3)
    entries = name_variables(model.network)
    own = [entry.path for entry in entries if "head" in entry.groups]
    assert own == [entry.path for entry in entries if entry.path.startswith("head/")]
    assert {entry.path.split("/")[0] for entry in entries} == {"trunk", "head"}
    assert not any(entry.kind == "statistic" for entry in entries)  # a step in parts is one in one piece
    assert "for each pixel" in " ".join(model.notes)
    alone = model.network(images[:1], training=False)
    assert np.abs(alone - logits[:1]).max() < 1e-5
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(model.network(images, training=True) ** 2)
    assert all(gradient is not None for gradient in tape.gradient(total, model.network.trainable_variables))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_head() -> None:
    one, other = (build(f"{HERE}:tiny", "unet", seed=seed).network for seed in (1, 1))
    assert all((a.numpy() == b.numpy()).all() for a, b in zip(one.weights, other.weights, strict=True))


def test_filters_are_counted() -> None:
    with pytest.raises(HeadError, match=r"2 numbers of filters \(8, 4\); expected 3, one for each stage"):
        build(f"{HERE}:tiny", "unet,8,4")
    with pytest.raises(HeadError, match="2 numbers of filters"):
        build(f"{HERE}:tiny", "aspp,8,4")
    with pytest.raises(HeadError, match="nearest: unet"):
        parse_head("unit")
    assert parse_head("aspp,64,dropout=0.1").parts == (64, 0.1)


def test_networks_that_have_outputs_for_each_pixel_keep_them() -> None:
    model = build(f"{HERE}:ready", None)
    assert model.network.output_shape == (None, 16, 16, 3)
    assert any("softmax was removed" in note for note in model.notes)
    assert build(f"{HERE}:Pixels", None).outputs == 3
    with pytest.raises(ModelSpecError, match=r"\[None, height, width, 3\] of the images"):
        build(f"{HERE}:cropped", None)


@pytest.mark.slow
def test_a_saved_model_gets_a_decoder(tmp_path: pathlib.Path) -> None:
    tiny_trunk(pool=True).save(tmp_path / "trunk.keras")
    model = build(f"file:{tmp_path / 'trunk.keras'},preprocess=tf", "unet")
    assert model.network.output_shape == (None, 16, 16, 3)
    assert any(
        "sum (1/2), second (1/4), third (1/8)" in note and "cut off: its top top" in note for note in model.notes
    )
    before = keras.models.load_model(tmp_path / "trunk.keras").get_layer("first").kernel
    after = {entry.path: entry.variable for entry in name_variables(model.network)}["trunk/first/kernel"]
    assert (after.numpy() == before.numpy()).all()
