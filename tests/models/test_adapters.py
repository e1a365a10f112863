"""Adapters: which layers get them, what they are called, what they compute at first, and what is refused."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from engine import InputError, keras_private, select
from engine.models import build_model
from engine.models.adapters.attach import attach, choose
from engine.models.adapters.language import parse_adapters
from engine.models.adapters.merging import merge_values
from engine.selection.filters import group
from engine.selection.variables import name_variables
from engine.training.optimizer_base import NO_DECAY

SHAPE = (16, 16, 1)


def vit(depth: int = 1) -> Any:
    return build_model(f"vit:mini,depth={depth}", image_shape=SHAPE, outputs=3).network


def cnn() -> Any:
    return build_model("cnn:mini", image_shape=SHAPE, outputs=3).network


def convolutional(**first: Any) -> Any:
    """Keras: a convolution, a norm, a depthwise convolution and two dense layers, the last of which is the head."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input([8, 8, 4]),
            keras.layers.Conv2D(8, 3, activation="relu", **first),
            keras.layers.BatchNormalization(axis=3),
            keras.layers.DepthwiseConv2D(3, depth_multiplier=2),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(6, activation="gelu"),
            keras.layers.Dense(3),
        ]
    )


def test_variables_are_named_below_the_layers_that_they_adapt() -> None:
    made = attach(
        vit(), "lora:rank=2 @attention !.*/(key|value|out)/.*; ssf norm/.*; adapter:size=3 blocks/0/mlp/up/kernel"
    )
    assert made == (
        *("blocks/0/attention/query/lora/down", "blocks/0/attention/query/lora/up"),
        *(f"blocks/0/mlp/up/adapter/{name}" for name in ("down", "down_bias", "up", "up_bias")),
        *("norm/ssf/scale", "norm/ssf/shift"),
    )


def test_layers_of_keras_give_them_the_same_names() -> None:
    made = attach(convolutional(), "lora:rank=2 @kernel; ssf @norm")
    assert made == (
        *("conv2d/lora/down", "conv2d/lora/up", "batch_normalization/ssf/scale", "batch_normalization/ssf/shift"),
        *("dense/lora/down", "dense/lora/up"),
    )


def test_keras_own_lora_is_used_where_it_fits() -> None:
    model = convolutional()
    attach(model, "lora:rank=2,alpha=6 @kernel")
    conv, dense = model.layers[0], model.layers[4]
    assert (conv.lora_enabled, conv.lora_rank, conv.lora_alpha, dense.lora_enabled) == (True, 2, 6, True)
    constrained = convolutional(kernel_constraint="unit_norm")
    attach(constrained, "lora:rank=2 @kernel")  # which Keras' own refuses
    assert not constrained.layers[0].lora_enabled
    assert "conv2d/lora/up" in name_variables(constrained).by_path()


def test_the_first_values_depend_on_the_seed_and_on_nothing_else_that_is_attached() -> None:
    def down(text: str, seed: int) -> bytes:
        network = vit()
        attach(network, text, seed=seed)
        return name_variables(network).by_path()["blocks/0/mlp/up/lora/down"].variable.numpy().tobytes()

    assert down("lora:rank=2 @mlp", 3) == down("ssf @norm; lora:rank=2 @mlp @attention", 3)
    assert down("lora:rank=2 @mlp", 3) != down("lora:rank=2 @mlp", 4)


def test_groups_and_decay() -> None:
    network = cnn()
    attach(network, "lora:rank=2 stages/1/conv/kernel; ssf @norm; adapter:size=2 stages/2/conv/kernel")
    variables = name_variables(network)

    def paths(name: str) -> set[str]:
        return {entry.path for entry in variables if group(name)(entry)}

    lora, ssf = paths("lora"), paths("ssf")
    assert lora == {"stages/1/conv/lora/down", "stages/1/conv/lora/up"}
    assert ssf == {f"stages/{n}/norm/ssf/{name}" for n in range(4) for name in ("scale", "shift")}
    assert paths("adapters") == lora | ssf | {e.path for e in variables if "/adapter/" in e.path}
    assert not paths("adapters") & (paths("kernel") | paths("norm") | paths("head"))
    assert {e.path for e in variables if "adapters" in e.groups and NO_DECAY(e)} == ssf | {
        "stages/2/conv/adapter/down_bias", "stages/2/conv/adapter/up_bias"
    }  # fmt: skip


@pytest.mark.parametrize("make", [cnn, convolutional])
def test_an_adapter_on_a_batch_norm_does_not_move_its_statistics(make: Any) -> None:
    network = make()
    attach(network, "ssf @all")
    selection = select(network, "@ssf", statistics="follow")
    assert not selection.moving
    assert len(selection.inference) == len(selection.variables.statistics_layers) > 0


def test_a_layer_without_a_bias_gets_a_scale_alone_and_a_norm_without_a_gamma_a_shift_alone() -> None:
    assert "stages/0/conv/ssf/scale" in (made := attach(cnn(), "ssf @kernel"))
    assert not [p for p in made if "shift" in p]
    model = keras.Sequential([keras.Input([4]), keras.layers.BatchNormalization(scale=False), keras.layers.Dense(3)])
    assert attach(model, "ssf @norm") == ("batch_normalization/ssf/shift",)


def test_kernels_to_which_a_kind_does_not_apply_are_left_and_told() -> None:
    (item,) = choose(convolutional(), parse_adapters("lora:rank=2 @kernel"))
    assert item.left == ("depthwise_conv2d/kernel",)
    assert [target.path for target in item.targets] == ["conv2d", "dense"]  # the last layer is the head
    (item,) = choose(convolutional(), parse_adapters("ssf @kernel"))
    assert not item.left


def test_signatures_and_modes_of_adapted_keras_layers_stay() -> None:
    model = convolutional()
    attach(model, "ssf @all")
    norm = model.layers[1]
    assert keras_private.takes_training(norm)
    x = np.ones([2, 8, 8, 4], np.float32)
    with keras_private.inference_mode([norm]):
        model(x, training=True)
    assert not np.any(norm.moving_mean.numpy())


BAD = {
    "": "a part is empty",
    "lora:rank=2 @mlp;": "a part is empty",
    "lroa:rank=2 @mlp": "`lroa` is not a kind of adapter; expected KIND FILTER with KIND one of lora:rank=N, ssf and adapter:size=N; nearest: lora",
    "lora @mlp": "lora needs its rank, as in `lora:rank=8 @attention`",
    "adapter @mlp": "adapter needs its size",
    "lora:rank=2": "`lora:rank=2` has no filter",
    "lora:rank=0 @mlp": "rank='0' is not a whole number from 1 to 65,536",
    "lora:rank=-1 @mlp": "rank='-1' is not a whole number",
    "lora:rank=2.5 @mlp": "rank='2.5' is not a whole number",
    "lora:rank=2,alpha=0 @mlp": "alpha='0' is not a number above 0",
    "lora:rank=2,alpha=nan @mlp": "alpha='nan' is not a number above 0",
    "lora:rank=2,rank=3 @mlp": "rank of lora is given twice",
    "lora:size=2 @mlp": "`size=2` is not an option of lora; expected rank and alpha",
    "ssf:rank=2 @mlp": "`rank=2` is not an option of ssf; ssf has none",
    "lora:rank=2 @mpl": "`@mpl` is not a group; nearest: @mlp",
    "lora:rank=2 (": "`(` is not a valid regular expression",
}


@pytest.mark.parametrize("text", BAD)
def test_a_text_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_adapters(text)
    assert str(caught.value).startswith(f"adapt={text!r}: ")
    assert BAD[text] in str(caught.value)


UNFIT = {
    "lora:rank=97 @attention": "rank=97 is more than the rank that blocks/0/attention/query/kernel [96, 96] can have, 96",
    "lora:rank=2 blocks/1/mlp/up/kernel": "matches nothing: a regular expression must match a whole variable path; nearest: blocks/0/mlp/up/kernel",
    "lora:rank=2 @bias": "names no layer that can be adapted: a filter must match its kernel",
    "lora:rank=2 @head": "it names only the head, which trains as it is",
    "lora:rank=2 @norm": "names no layer that can be adapted",
    "lora:rank=2 @mlp; lora:rank=4 @all": "would both adapt blocks/0/mlp/up, blocks/0/mlp/down; exclude them from one of the filters, as in `!blocks/0/mlp/up/.*`",
}


@pytest.mark.parametrize("text", UNFIT)
def test_adapters_that_do_not_fit_are_refused_and_nothing_is_attached(text: str) -> None:
    network = vit()
    with pytest.raises(InputError) as caught:
        attach(network, text)
    assert UNFIT[text] in str(caught.value)
    assert not [entry for entry in name_variables(network) if "adapters" in entry.groups]


def test_layers_that_cannot_be_adapted_are_refused_with_the_reason() -> None:
    with pytest.raises(
        InputError, match="lora is for dense and convolution layers, with channels last, and the filter names depth"
    ):
        attach(convolutional(), "lora:rank=2 depthwise_conv2d/.*")
    with pytest.raises(InputError, match="model has no layers that lora can adapt"):
        attach(keras.Sequential([keras.Input([4]), keras.layers.Dense(3)]), "lora:rank=2 @kernel")
    causal = keras.Sequential(
        [keras.Input([6, 4]), keras.layers.Conv1D(4, 3, padding="causal"), keras.layers.Dense(4), keras.layers.Dense(3)]
    )
    with pytest.raises(InputError, match="the filter names conv1d/kernel; such as dense/kernel can be adapted"):
        attach(causal, "adapter:size=2 conv1d/.*")


@pytest.mark.parametrize("make", [vit, convolutional])
def test_a_network_gets_adapters_once(make: Any) -> None:
    network = make()
    attach(network, "lora:rank=2 @kernel")
    with pytest.raises(InputError, match="has adapters already"):
        attach(network, "ssf @norm")


def test_a_bottleneck_cannot_be_merged_and_says_so() -> None:
    network = vit()
    attach(network, "adapter:size=2 @mlp; lora:rank=2 @attention")
    with pytest.raises(InputError, match="a bottleneck adapter has a nonlinearity"):
        merge_values(network)
