"""The parts of a model that can be frozen one after the other, from the input on."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf

from engine import models
from engine.selection.levels import find_freezable
from engine.selection.selection import select
from engine.selection.variables import ModelVariables, name_variables


def check(variables: ModelVariables, train: str, statistics: Any = "follow") -> list[str]:
    """Freezes part after part, and checks that exactly the parts so far are frozen and the head never is."""
    left = {entry.path for entry in select(variables, train, statistics=statistics).trained}
    head = {entry.path for entry in variables if "head" in entry.groups}
    parts = find_freezable(variables, train, statistics)
    for part in parts:
        own = {entry.path for entry in part.freezes}
        assert own
        assert own <= left
        assert not own & head
        left -= own
        selection = select(variables, part.train, statistics=statistics)
        assert {entry.path for entry in selection.trained} == left
        layers = {entry.layer for entry in selection.trained}
        assert all(entry.layer in layers for entry in selection.moving)  # nothing moves below the line
    assert left
    return [part.name for part in parts]


@pytest.fixture(scope="module")
def vit() -> ModelVariables:
    return name_variables(models.build_model("vit:mini,depth=3", image_shape=(16, 16, 1), outputs=3).network)


def test_the_lowest_part_of_a_vit_is_its_embedding_with_the_first_block(vit: ModelVariables) -> None:
    assert check(vit, "@all") == ["blocks/0", "blocks/1", "blocks/2"]
    paths = {entry.path for entry in find_freezable(vit, "@all", "follow")[0].freezes}
    assert {"class_token", "position_embedding", "patch/kernel"} <= paths
    assert all(path.startswith(("blocks/0/", "patch/")) or "/" not in path for path in paths)
    assert "norm/scale" not in paths
    assert not any(path.startswith("head") for path in paths)


@pytest.mark.parametrize(
    ("train", "parts"),
    [
        ("@head", []),
        ("@blocks[-1:] @head", ["blocks/2"]),
        ("@blocks[:1] @head", ["blocks/0"]),
        ("@blocks[0:1] @blocks[1:2] @blocks[2:]", ["blocks/0", "blocks/1"]),  # without a head the last part stays
        ("@all !@norm !@bias", ["blocks/0", "blocks/1", "blocks/2"]),
        ("@blocks !@blocks[1:2] @head", ["blocks/0", "blocks/2"]),
        ("patch/.* @head", ["blocks/0"]),
    ],
)
def test_a_filter_says_what_trains_at_first(vit: ModelVariables, train: str, parts: list[str]) -> None:
    assert check(vit, train) == parts


@pytest.mark.parametrize(
    ("spec", "train"),
    [
        *(("cnn:mini", train) for train in ("@all", "@all @stats", "@all !@norm")),
        ("keras:MobileNetV2,alpha=0.35", "@all"),
        *(
            pytest.param("keras:MobileNetV2,alpha=0.35", t, marks=pytest.mark.slow)
            for t in ("@all @stats", "@all !@norm")
        ),
    ],
)
def test_statistics_of_a_frozen_part_do_not_move(spec: str, train: str) -> None:
    model = models.build_model(spec, image_shape=(32, 32, 3), outputs=3)
    names = check(name_variables(model.network), train, model.statistics)
    assert len(names) >= 3


def test_modules_with_odd_names_are_named_exactly() -> None:
    model = {name: tf.Variable([1.0]) for name in ("a b/w", "a.b/w", "a+b/w", "head/w")}
    assert check(name_variables(model), "@all") == ["a b", "a.b", "a+b"]


def test_parts_of_one_name_are_told_apart() -> None:
    import keras

    names = ("block_1_a", "other", "block_1_b", "between", "block_1_c", "logits")
    layers = [keras.layers.Dense(2, name=name) for name in names]
    model = keras.Sequential([keras.Input((2,)), *layers])
    found = check(name_variables(model), "@all")
    assert len(set(found)) == len(found) >= 3
    assert "block_1#2" in found


def test_one_part_alone_is_never_frozen() -> None:
    assert check(name_variables({"w": tf.Variable([1.0])}), "@all") == []
