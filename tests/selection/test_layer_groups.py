"""A model as a row of parts: what belongs together, by names."""

from __future__ import annotations

from itertools import pairwise

import keras
import pytest
import tensorflow as tf

from engine.selection.layer_groups import Part, elide_middle, group_parts, label_parts, merge_neighbours, part_names
from engine.selection.variables import name_variables


def names(*paths: str) -> list[str]:
    return list(part_names(name_variables({path: tf.Variable(0.0) for path in paths})).values())


def test_numbered_modules_are_parts_and_so_is_what_stands_beside_them() -> None:
    paths = (
        "patch/kernel",
        "class_token",
        "blocks/0/mlp/up/kernel",
        "blocks/0/norm1/gamma",
        "blocks/11/x",
        "head/bias",
    )
    assert names(*paths) == ["patch", "class_token", "blocks/0", "blocks/0", "blocks/11", "head"]


def test_what_all_paths_begin_with_is_no_part() -> None:
    assert names("net/stem/kernel", "net/body/a/kernel", "net/body/b/kernel", "net/top/bias") == [
        "net/stem", "net/body", "net/body", "net/top"
    ]  # fmt: skip
    assert names("net/kernel") == ["net"]
    assert names("kernel", "bias") == ["kernel", "bias"]


def test_layers_of_one_keras_block_are_one_part_by_their_names() -> None:
    layers = [
        "conv1_conv",
        "conv2_block1_1_conv",
        "conv2_block1_out",
        "block_16_project",
        "block1a_se_reduce",
        "stage_0_block_2_pw",
        "top",
    ]
    model = keras.Sequential([keras.Input([2]), *(keras.layers.Dense(2, name=name) for name in layers)])
    found = dict.fromkeys(part_names(name_variables(model)).values())
    assert list(found) == ["conv1_conv", "conv2_block1", "block_16", "block1a", "stage_0_block_2", "top"]


def test_parts_keep_the_order_of_their_first_variables() -> None:
    found = group_parts([("a/k", 4, "a"), ("b/k", 1, "b"), ("a/b", 2, "a")])
    assert found == (Part("a", ("a/k", "a/b"), 6), Part("b", ("b/k",), 1))


def row(count: int) -> list[Part]:
    return [Part(f"m/conv_{n}", (f"{n}",), 1) for n in range(count)]


def test_equal_neighbours_are_one_run() -> None:
    assert [len(run) for run in merge_neighbours(row(7), lambda part: (part.name < "m/conv_3",), most=9)] == [3, 4]


@pytest.mark.parametrize("count", [1, 9, 10, 200])
def test_a_long_row_has_at_most_so_many_runs_of_about_one_size(count: int) -> None:
    found = merge_neighbours(row(count), lambda part: (part.name,), most=9)
    assert [part for run in found for part in run] == row(count)
    assert len(found) == min(count, 9)
    sizes = [len(run) for run in found]
    assert max(sizes) <= 2 * -(-count // 9)
    assert all(a and b for a, b in pairwise([*sizes, 1]))


def test_parts_that_differ_more_stay_apart_longer() -> None:
    keys = {"m/conv_0": (0, 0), "m/conv_1": (0, 1), "m/conv_2": (0, 0), "m/conv_3": (1, 1)}
    found = merge_neighbours(row(4), lambda part: keys[part.name], most=2)
    assert [len(run) for run in found] == [3, 1]


def test_a_run_is_called_by_all_its_names_or_by_its_ends() -> None:
    blocks = [Part(f"net/blocks/{n}", (), 1) for n in range(4)]
    assert label_parts(blocks) == "blocks/0-3"
    assert label_parts([Part("net/patch", (), 1), *blocks]) == "patch, blocks/0-3"
    assert label_parts(row(12)) == "conv_0-11"
    assert label_parts([*row(2), Part("m/top", (), 1)], most=15) == "conv_0 … top"
    assert label_parts([Part("x" * 90, (), 1)], most=11) == "xxxxx…xxxxx"
    assert elide_middle("abcdef", 6) == "abcdef"
