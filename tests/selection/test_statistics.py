"""What is a moving statistic by its name: one answer for selections, TF1 graphs and audits."""

from __future__ import annotations

import pytest
import tensorflow as tf

from engine.selection.selection import select
from engine.selection.statistics import is_statistic, statistic_layer
from engine.selection.variables import name_graph_variables

v1 = tf.compat.v1


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("bn/moving_mean", "bn"),
        ("bn/moving_variance", "bn"),
        ("block/bn/running_mean", "block/bn"),
        ("running_var", ""),
        ("bn/moving_mean/biased", "bn"),
        ("bn/moving_mean/local_step", "bn"),
    ],
)
def test_moving_moments_are_statistics_of_the_layer_around_them(name: str, layer: str) -> None:
    assert is_statistic(name)
    assert statistic_layer(name) == layer


@pytest.mark.parametrize("name", ["bn/gamma", "mean", "bn/moving_mean_2d", "bn/moving_mean/Adam"])
def test_other_names_are_not_statistics(name: str) -> None:
    assert not is_statistic(name)
    with pytest.raises(ValueError, match="is not the name of a statistic"):
        statistic_layer(name)


@pytest.mark.parametrize("names", [("moving_mean", "moving_variance"), ("running_mean", "running_var")])
def test_statistics_of_a_tf1_layer_follow_it_whatever_they_are_called(names: tuple[str, str]) -> None:
    with tf.Graph().as_default():
        for scope in ("low", "high"):
            with v1.variable_scope(scope):
                v1.get_variable("gamma", [2])
                for name in names:
                    v1.get_variable(name, [2], trainable=False)
        variables = name_graph_variables(v1.global_variables())
    assert [entry.kind for entry in variables] == ["weight", "statistic", "statistic"] * 2
    selection = select(variables, "high/.*")
    assert [entry.path for entry in selection.moving] == [f"high/{name}" for name in names]
    assert [entry.path for entry in selection.frozen] == ["low/gamma", *(f"low/{name}" for name in names)]
