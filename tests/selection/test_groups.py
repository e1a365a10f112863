"""Groups: which of @kernel, @norm, ... a variable belongs to, by its names and the type of its layer."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine.models.adapters.attach import attach
from engine.models.cnn import CNN
from engine.models.layers import BatchNorm, Dense, LayerNorm
from engine.models.vit import Config, ViT
from engine.selection import groups
from engine.selection.variables import name_variables


def members(model: Any, group: str) -> list[str]:
    return [entry.path for entry in name_variables(model) if group in entry.groups]


def tiny_vit() -> ViT:
    return ViT(Config(width=4, depth=1, heads=1, patch=4, image=(4, 4, 1), classes=2, layer_scale=1e-5))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("kernel", {"kernel"}),
        ("conv/depthwise_kernel", {"kernel"}),
        ("conv/weights", {"kernel"}),
        ("conv/weight", {"kernel"}),
        ("layer/w", {"kernel"}),
        ("dense/bias", {"bias"}),
        ("dense/biases", {"bias"}),
        ("lstm/recurrent_bias", {"bias"}),
        ("layer/b", {"bias"}),
        ("norm/gamma", {"norm"}),
        ("norm/beta", {"norm", "bias"}),
        ("block/ln_2/scale", {"norm"}),
        ("bn/moving_mean", {"norm"}),
        ("layer1/bn3/weight", {"norm"}),
        ("LayerNorm_0/bias", {"norm", "bias"}),
        ("Conv_1_bn/gamma", {"norm"}),
        ("block/batch_normalization_12/gamma", {"norm"}),
        ("class_token", {"embedding"}),
        ("position_embedding", {"embedding"}),
        ("pos_embed", {"embedding"}),
        ("cls", {"embedding"}),
        ("encoder/mask_token", {"embedding"}),
        ("token/embeddings", {"embedding"}),
        ("blocks/0/attention/query/kernel", {"attention", "kernel"}),
        ("block/attn/qkv/bias", {"attention", "bias"}),
        ("self_attention_2/out/kernel", {"attention", "kernel"}),
        ("blocks/0/attention/norm/gamma", {"attention", "norm"}),
        ("blocks/0/mlp/up/kernel", {"mlp", "kernel"}),
        ("layer/ffn/w", {"mlp", "kernel"}),
        ("feed_forward_1/b", {"mlp", "bias"}),
        ("mlp_head/kernel", {"kernel"}),
        ("abnormal/x", set()),
        ("web/kernels", set()),
        ("attention", set()),
        ("blocks/0/scale1", set()),
    ],
)
def test_a_name_says_the_groups(path: str, expected: set[str]) -> None:
    assert groups.find_groups(path, None) == expected


def test_the_number_of_an_equal_path_is_no_part_of_the_name() -> None:
    assert groups.find_groups("same/kernel#2", None) == {"kernel"}
    assert groups.find_groups("norm/beta#12", None) == {"norm", "bias"}


@pytest.mark.parametrize(
    ("owner", "expected"),
    [
        (LayerNorm(2), {"norm"}),
        (BatchNorm(2), {"norm"}),
        (keras.layers.LayerNormalization(), {"norm"}),
        (keras.layers.GroupNormalization(), {"norm"}),
        (keras.layers.Embedding(2, 2), {"embedding"}),
        (Dense(1, 1, rng=np.random.default_rng(0)), {"kernel"}),
        (None, {"kernel"}),
    ],
)
def test_the_type_of_the_layer_decides_before_the_name_of_the_variable(owner: Any, expected: set[str]) -> None:
    assert groups.find_groups("anything/weight", owner) == expected


def test_norm_embedding_and_kernel_exclude_one_another_in_every_model() -> None:
    for model in (tiny_vit(), CNN(1, 2)):
        for entry in name_variables(model):
            assert len(entry.groups & {"norm", "embedding", "kernel"}) <= 1, entry.path


def test_a_vits_variables_fall_into_the_groups_that_its_paths_say() -> None:
    model = tiny_vit()
    attention = [f"blocks/0/attention/{part}" for part in ("query", "key", "value", "out")]
    mlp = ["blocks/0/mlp/up", "blocks/0/mlp/down"]
    dense = ["patch", *attention, *mlp, "head"]
    norms = ["blocks/0/norm1", "blocks/0/norm2", "norm"]
    expected = {
        "kernel": {f"{layer}/kernel" for layer in dense},
        "bias": {f"{layer}/bias" for layer in dense} | {f"{layer}/beta" for layer in norms},
        "norm": {f"{layer}/{name}" for layer in norms for name in ("gamma", "beta")},
        "embedding": {"class_token", "position_embedding"},
        "attention": {f"{layer}/{name}" for layer in attention for name in ("kernel", "bias")},
        "mlp": {f"{layer}/{name}" for layer in mlp for name in ("kernel", "bias")},
        "head": {"head/kernel", "head/bias"},
        "stats": set(),
    }
    assert {group: set(members(model, group)) for group in expected} == expected


def test_statistics_are_the_moments_of_batch_norm_and_nothing_else() -> None:
    assert members(CNN(1, 2), "stats") == [
        f"stages/{number}/norm/{name}" for number in range(4) for name in ("moving_mean", "moving_variance")
    ]


@pytest.mark.parametrize("name", ["head", "classifier", "predictions", "logits", "Head"])
def test_the_first_part_of_a_path_can_name_the_head(name: str) -> None:
    model = {f"{name}/kernel": tf.Variable(0.0), f"body/{name}/kernel": tf.Variable(0.0)}
    assert members(model, "head") == [f"{name}/kernel"]


def test_without_a_named_head_it_is_the_last_layer_with_weights_of_a_keras_model() -> None:
    layers = [keras.Input((2,)), keras.layers.Dense(2), keras.layers.Dense(1), keras.layers.Activation("softmax")]
    assert members(keras.Sequential(layers), "head") == ["dense_1/kernel", "dense_1/bias"]


def test_a_named_head_counts_before_the_last_layer() -> None:
    layers = [keras.Input((2,)), keras.layers.Dense(2, name="head"), keras.layers.Dense(1)]
    assert members(keras.Sequential(layers), "head") == ["head/kernel", "head/bias"]


def test_a_module_or_list_without_a_named_head_has_none() -> None:
    assert members([tf.Variable(0.0, name="a"), tf.Variable(0.0, name="last/kernel")], "head") == []


def test_a_shared_variable_is_in_the_groups_of_all_its_paths() -> None:
    shared = tf.Variable([0.0])
    (entry,) = name_variables({"token/embeddings": shared, "logits/kernel": shared})
    assert entry.aliases == ("logits/kernel",)
    assert entry.groups == {"embedding", "kernel", "head"}


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("blocks/0/x", 0),
        ("blocks/11/mlp/up/kernel", 11),
        ("encoder/blocks/3/x", 3),
        ("blocks/3", None),
        ("myblocks/3/x", None),
        ("blocks/a/x", None),
    ],
)
def test_a_block_is_a_numbered_part_after_blocks(path: str, number: int | None) -> None:
    assert groups.block_number(path) == number


def test_every_group_that_a_variable_can_be_in_has_a_meaning_written_down() -> None:
    adapted = tiny_vit()
    attach(adapted, "lora:rank=1 @attention; ssf @norm", seed=0)
    models = (adapted, CNN(1, 2))
    found = {group for model in models for entry in name_variables(model) for group in entry.groups}
    assert found | {"all", "none"} == set(groups.GROUPS)
