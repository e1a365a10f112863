"""Models by name: every option, and the rule behind every refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import select
from engine.data import Normalise
from engine.models import Model, ModelSpecError, build_model, default_image_size
from engine.models.cnn import CNN
from engine.models.spec import NAMES
from engine.models.vit import SIZES, ViT
from engine.selection import filters
from engine.selection.variables import name_variables
from engine.training.loss_names import OutputsOf

SHAPE = (32, 32, 3)


def made(spec: str, *, shape: tuple[int, int, int] = SHAPE, outputs: int = 4, **options: Any) -> Model:
    return build_model(spec, image_shape=shape, outputs=outputs, **options)


def config(spec: str, **options: Any) -> Any:
    return made(spec, **options).network.config


@pytest.mark.parametrize("name", NAMES)
def test_every_known_name_builds_and_runs(name: str) -> None:
    spec = f"{name},depth=1" if name.startswith("vit") else name
    model = made(spec)
    assert model.name == spec
    assert model.outputs == 4
    assert model.normalise == Normalise()
    assert model.network(np.zeros((2, *SHAPE), np.float32)).shape == (2, 4)


@pytest.mark.parametrize("size", ["mini", "Ti", "S"])
def test_a_size_sets_width_depth_and_heads(size: str) -> None:
    found = config(f"vit:{size}/16")
    assert (found.width, found.depth, found.heads) == SIZES[size]
    assert (found.patch, found.image, found.classes) == (16, SHAPE, 4)


def test_mini_has_patches_of_four_by_default() -> None:
    assert config("vit:mini,depth=1").patch == 4
    assert config("vit:mini/8,depth=1").patch == 8


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [
        ("pool=mean", "pool", "mean"),
        ("pool=token", "pool", "token"),
        ("gelu=tanh", "gelu", "tanh"),
        ("gelu=exact", "gelu", "exact"),
        ("layer_scale", "layer_scale", 1e-5),
        ("layer_scale=0.1", "layer_scale", 0.1),
        ("dropout=0.25", "dropout", 0.25),
        ("drop_path=0.1", "drop_path", 0.1),
        ("depth=2", "depth", 2),
        ("classes=7", "classes", 7),
    ],
)
def test_every_option_of_a_vit_reaches_its_configuration(option: str, name: str, value: Any) -> None:
    assert getattr(config(f"vit:mini, {option}"), name) == value


def test_options_left_out_have_their_defaults() -> None:
    found = config("vit:mini,depth=1")
    assert (found.pool, found.gelu, found.layer_scale, found.dropout, found.drop_path) == ("token", "exact", None, 0, 0)


@pytest.mark.parametrize("spec", ["vit:mini,depth=1,classes=7", "cnn:mini,classes=7"])
def test_classes_override_the_requested_outputs(spec: str) -> None:
    model = made(spec, outputs=4)
    assert model.outputs == 7
    assert model.network.head.kernel.shape[1] == 7


@pytest.mark.parametrize("spec", ["vit:mini,depth=1", "cnn:mini"])
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_all_variables_have_the_requested_type_and_the_same_weights(spec: str, dtype: Any) -> None:
    entries = list(name_variables(made(spec, dtype=dtype, seed=3).network))
    assert {entry.variable.dtype for entry in entries} == {dtype}
    for entry, single in zip(entries, name_variables(made(spec, seed=3).network), strict=True):
        np.testing.assert_array_equal(entry.variable, single.variable)


def test_the_families_are_of_their_classes() -> None:
    assert isinstance(made("vit:mini,depth=1").network, ViT)
    assert isinstance(made("cnn:mini").network, CNN)


@pytest.mark.parametrize(
    ("spec", "prefixes"),
    [
        ("vit:mini", ("blocks/4/", "blocks/5/")),
        ("vit:mini,depth=1", ("blocks/0/",)),
        ("cnn:mini", ("stages/2/", "stages/3/")),
    ],
)
def test_the_upper_part_is_the_last_two_of_what_the_model_stacks(spec: str, prefixes: tuple[str, ...]) -> None:
    model = made(spec)
    filters.parse_filter(model.upper)
    chosen = select(model.network, model.upper)
    wanted = [e.path for e in name_variables(model.network) if e.kind == "weight" and e.path.startswith(prefixes)]
    assert [entry.path for entry in chosen.trained] == wanted


def test_only_vit_mini_has_shipped_weights() -> None:
    shipped = made("vit:mini,depth=1").shipped_weights
    assert shipped is not None
    assert shipped.name.endswith(".npz")
    for spec in ("vit:mini/8,depth=1", "vit:Ti/16,depth=1", "cnn:mini"):
        assert made(spec).shipped_weights is None


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 48, 3), (9, 15, 3)])
def test_the_cnn_takes_any_size_from_eight_pixels(shape: tuple[int, int, int]) -> None:
    assert made("cnn:mini", shape=shape).network(np.zeros((1, *shape), np.float32)).shape == (1, 4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "is not a known model; expected one of vit:mini, vit:Ti/16"),
        ("resnet", "is not a known model"),
        ("cnn:big", "nearest: cnn:mini"),
        ("cnn", "is not a known model"),
        ("cnn:mini,depth=3", "`depth` is not an option of cnn:mini; expected classes"),
        ("vit", "is not a valid ViT; expected vit:mini, or vit:SIZE/PATCH with SIZE one of Ti, S, B, L"),
        ("vit:", "is not a valid ViT"),
        ("vit:S", "expected vit:mini, or vit:SIZE/PATCH"),
        ("vit:XL/16", "nearest: vit:"),
        ("vit:s/16", "is not a valid ViT"),
        ("vit:S/sixteen", "is not a valid ViT"),
        ("vit:S/16/8", "is not a valid ViT"),
        ("vit:S/0", "images of 32x32 do not divide into patches of 0x0"),
        ("vit:S/5", "images of 32x32 do not divide into patches of 5x5"),
        ("vit:S/64", "images of 32x32 do not divide into patches of 64x64"),
        ("vit:mini,pool=max", "`pool=max` is not an option of a ViT; expected one of pool=token, pool=mean"),
        ("vit:mini,pool", "`pool` is not an option of a ViT"),
        ("vit:mini,gelu=relu", "`gelu=relu` is not an option of a ViT"),
        ("vit:mini,heads=2", "`heads=2` is not an option of a ViT"),
        ("vit:mini,", "`` is not an option of a ViT"),
        ("vit:mini,drop_out=0.1", "nearest: dropout=R"),
        ("vit:mini,dropout", "dropout='' is not a number from 0 to 0.99"),
        ("vit:mini,dropout=1", "dropout='1' is not a number from 0 to 0.99"),
        ("vit:mini,dropout=-0.1", "dropout='-0.1' is not a number"),
        ("vit:mini,dropout=nan", "dropout='nan' is not a number"),
        ("vit:mini,drop_path=lots", "drop_path='lots' is not a number from 0 to 0.99"),
        ("vit:mini,layer_scale=-1", "layer_scale='-1' is not a number from 0 to 1e+06"),
        ("vit:mini,layer_scale=inf", "layer_scale='inf' is not a number"),
        ("vit:mini,depth=0", "depth='0' is not a whole number from 1 to 1000"),
        ("vit:mini,depth=1001", "depth='1001' is not a whole number from 1 to 1000"),
        ("vit:mini,depth=2.5", "depth='2.5' is not a whole number"),
        ("vit:mini,depth", "depth='' is not a whole number"),
        ("vit:mini,depth=2,depth=3", "`depth` is given twice"),
        ("cnn:mini,classes=0", "classes='0' is not a whole number from 1 to 1000000"),
        ("cnn:mini,classes=1.9", "classes='1.9' is not a whole number"),
        ("cnn:mini,classes=1e3", "classes='1e3' is not a whole number"),
        ("vit:mini,classes=", "classes='' is not a whole number"),
    ],
)
def test_an_invalid_model_is_refused_with_the_rule(spec: str, message: str) -> None:
    with pytest.raises(ModelSpecError) as caught:
        made(spec)
    assert message in str(caught.value)
    assert f"model={spec!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ("cnn:mini", (7, 32, 1), "images of 7x32 are too small; expected at least 8x8"),
        ("vit:mini", (30, 32, 1), "images of 30x32 do not divide into patches of 4x4"),
        ("vit:Ti/16", (32, 30, 3), "images of 32x30 do not divide into patches of 16x16"),
    ],
)
def test_images_that_a_model_cannot_take_are_refused(spec: str, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ModelSpecError, match=message):
        made(spec, shape=shape)


@pytest.mark.parametrize(
    ("spec", "side"), [("vit:mini", 28), ("cnn:mini,classes=3", 28), ("vit:S/14,depth=2", 224), ("py:a:b", 224)]
)
def test_image_files_get_the_size_that_a_model_is_made_for(spec: str, side: int) -> None:
    assert default_image_size(spec) == (side, side)


class Maps(tf.Module):
    """Outputs for each place of 2x2 pixels, or each pixel, or each example."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of = of
        self.kernel = tf.Variable(tf.ones([3, 3, 1, 3]))

    def __call__(self, images: Any) -> Any:
        maps = tf.nn.conv2d(images, self.kernel, 1 if self.of == "pixel" else 2, "SAME")
        return tf.reduce_mean(maps, [1, 2]) if self.of == "example" else maps


def example() -> Maps:
    return Maps("example")


def pixel() -> Maps:
    return Maps("pixel")


def place() -> Maps:
    return Maps("place")


@pytest.mark.parametrize("made", ["example", "pixel", "place"])
@pytest.mark.parametrize("needed", ["example", "pixel", "place", None])
def test_maps_of_as_many_channels_as_classes_are_outputs_only_where_maps_are_needed(
    made: str, needed: OutputsOf | None
) -> None:
    """Or the features of a trunk that happen to be as many would go without a head."""
    spec, fits = (
        f"py:test_registry:{made},preprocess=tf",
        needed in (made, None) or (made, needed) == ("pixel", "place"),
    )
    if fits:
        assert build_model(spec, image_shape=(8, 8, 1), outputs=3, outputs_of=needed).outputs == 3
        return
    shape = {
        "example": r"\[None, 3\]",
        "pixel": r"\[None, height, width, 3\] of the images",
        "place": r"\[None, h, w, 3\]",
    }
    with pytest.raises(ModelSpecError, match=f"its outputs have shape .*; expected {shape[str(needed)]}"):
        build_model(spec, image_shape=(8, 8, 1), outputs=3, outputs_of=needed)
