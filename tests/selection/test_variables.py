"""Variables: one path for every variable of a model, whatever the model is made of."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine.models.cnn import CNN
from engine.models.layers import BatchNorm, Dense
from engine.models.vit import Config, ViT
from engine.selection.filters import path
from engine.selection.variables import ModelError, is_keras, name_variables


def paths(model: Any) -> list[str]:
    return [entry.path for entry in name_variables(model)]


def kinds(model: Any) -> dict[str, str]:
    return {entry.path: entry.kind for entry in name_variables(model)}


def variable(value: float = 0.0, **options: Any) -> tf.Variable:
    return tf.Variable(value, **options)


class Bag(tf.Module):
    """A module with the attributes given, set in their order."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


class Chain(keras.Model):
    """A subclassed model: its layers one after the other."""

    def __init__(self, *layers: keras.layers.Layer) -> None:
        super().__init__()
        self.chain = list(layers)

    def call(self, x: Any) -> Any:
        for layer in self.chain:
            x = layer(x)
        return x


def chain(*layers: keras.layers.Layer) -> Chain:
    model = Chain(*layers)
    model(tf.zeros([1, 3]))
    return model


class Unnamed(keras.layers.Layer):
    """Makes weights as those who give no names do."""

    def build(self, shape: Any) -> None:
        self.first = self.add_weight(shape=(1,))
        self.second = self.add_weight(shape=(2,))

    def call(self, x: Any) -> Any:
        return x


def sequential() -> keras.Sequential:
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(4, name="mine"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(2),
        ]
    )


def functional() -> keras.Model:
    """A dense layer that is called twice, then another one."""
    image = keras.Input((4,))
    shared = keras.layers.Dense(4)
    return keras.Model(image, keras.layers.Dense(2)(shared(shared(image))))


def nested() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), functional(), keras.layers.Dense(1)])


SEQUENTIAL_PATHS = [
    "dense/kernel",
    "dense/bias",
    "batch_normalization/gamma",
    "batch_normalization/beta",
    "batch_normalization/moving_mean",
    "batch_normalization/moving_variance",
    "mine/kernel",
    "mine/bias",
    "dense_1/kernel",
    "dense_1/bias",
]


# tf.Module


def test_a_path_is_the_way_through_attributes_lists_tuples_and_dicts() -> None:
    model = Bag(
        weight=variable(),
        inner=Bag(bias=variable(), deeper=Bag(x=variable())),
        some=[variable(), (variable(), variable())],
        named={"b": variable(), "a": [Bag(y=variable())], 7: variable()},
    )
    assert paths(model) == [
        "weight",
        "inner/bias",
        "inner/deeper/x",
        "some/0",
        "some/1/0",
        "some/1/1",
        "named/b",
        "named/a/0/y",
        "named/7",
    ]


def test_private_attributes_are_named_and_other_objects_are_passed_over() -> None:
    model = Bag(_hidden=variable(), size=3, text="w", nothing=None, call=len, array=tf.zeros([2]), _more=[variable()])
    assert paths(model) == ["_hidden", "_more/0"]


def test_a_path_does_not_ask_for_the_name_that_the_variable_was_given() -> None:
    assert paths(Bag(weight=variable(name="something/else"))) == ["weight"]


def test_a_module_that_holds_itself_is_walked_once() -> None:
    model = Bag(child=Bag(x=variable()))
    model.child.parent = model
    model.children = [model, model.child]
    model.late = variable()
    named = name_variables(model)
    assert {entry.path: entry.aliases for entry in named} == {"child/x": ("children/1/x",), "late": ()}


def test_a_shared_module_has_one_path_and_its_others_are_aliases() -> None:
    shared = Dense(2, 2, rng=np.random.default_rng(0))
    named = name_variables(Bag(low=shared, high=[shared], tied=shared.kernel))
    assert [(entry.path, entry.aliases) for entry in named] == [
        ("low/kernel", ("high/0/kernel", "tied")),
        ("low/bias", ("high/0/bias",)),
    ]
    assert named.entries[0].paths == ("low/kernel", "high/0/kernel", "tied")
    assert named.parameters == 6


def test_filters_match_the_aliases_of_a_shared_variable() -> None:
    shared = variable()
    entry, other = name_variables(Bag(embedding=shared, other=variable(), output=[shared]))
    assert path("output/0")(entry)
    assert path("embedding")(entry)
    assert not path("output/0")(other)


def test_the_projects_own_models_have_the_paths_that_they_promise() -> None:
    vit = ViT(Config(width=4, depth=2, heads=1, patch=4, image=(8, 8, 1), classes=3))
    block = [f"norm1/{name}" for name in ("gamma", "beta")]
    block += [f"attention/{part}/{name}" for part in ("query", "key", "value", "out") for name in ("kernel", "bias")]
    block += [f"norm2/{name}" for name in ("gamma", "beta")]
    block += [f"mlp/{part}/{name}" for part in ("up", "down") for name in ("kernel", "bias")]
    assert sorted(paths(vit)) == sorted(
        ["patch/kernel", "patch/bias", "class_token", "position_embedding"]
        + [f"blocks/{number}/{name}" for number in range(2) for name in block]
        + ["norm/gamma", "norm/beta", "head/kernel", "head/bias"]
    )
    norm = ("gamma", "beta", "moving_mean", "moving_variance")
    assert paths(CNN(1, 2)) == [
        f"stages/{number}/{name}" for number in range(4) for name in ("conv/kernel", *(f"norm/{own}" for own in norm))
    ] + ["head/kernel", "head/bias"]


def test_only_blocks_have_a_block_and_they_are_counted_as_a_list_even_when_numbers_are_missing() -> None:
    model = Bag(blocks={"3": Bag(x=variable()), "10": Bag(x=variable()), "7": Bag(x=variable())}, x=variable())
    assert {entry.path: entry.block for entry in name_variables(model)} == {
        "blocks/3/x": (0, 3),
        "blocks/7/x": (1, 3),
        "blocks/10/x": (2, 3),
        "x": None,
    }


def test_integers_and_variables_made_not_trainable_are_constants_and_batch_norm_moments_statistics() -> None:
    model = Bag(
        weight=variable(),
        half=variable(dtype=tf.bfloat16),
        step=tf.Variable(0, dtype=tf.int64),
        fixed=variable(trainable=False),
        norm=BatchNorm(2),
    )
    assert kinds(model) == {
        "weight": "weight",
        "half": "weight",
        "step": "constant",
        "fixed": "constant",
        "norm/gamma": "weight",
        "norm/beta": "weight",
        "norm/moving_mean": "statistic",
        "norm/moving_variance": "statistic",
    }
    assert [(layer.path, layer.switch) for layer in name_variables(model).statistics_layers] == [
        ("norm", "update_statistics")
    ]


def test_a_shared_statistics_layer_is_listed_once_under_its_first_path() -> None:
    norm = BatchNorm(2)
    named = name_variables(Bag(first=norm, second=norm))
    assert [layer.path for layer in named.statistics_layers] == ["first"]
    assert {entry.layer for entry in named} == {"first"}


def test_size_and_bytes_follow_shape_and_dtype() -> None:
    model = Bag(a=tf.Variable(tf.zeros([2, 3], tf.bfloat16)), b=tf.Variable(tf.zeros([], tf.float64)))
    assert [(entry.size, entry.bytes) for entry in name_variables(model)] == [(6, 12), (1, 8)]


# Keras inside a tf.Module


def test_a_keras_layer_in_a_module_has_the_modules_path_before_its_own_names() -> None:
    dense = keras.layers.Dense(2)
    dense.build((None, 3))
    norm = keras.layers.BatchNormalization()
    norm.build((None, 2))
    model = Bag(backbone=[dense, norm], tail=variable())
    assert kinds(model) == {
        "backbone/0/kernel": "weight",
        "backbone/0/bias": "weight",
        "backbone/1/gamma": "weight",
        "backbone/1/beta": "weight",
        "backbone/1/moving_mean": "statistic",
        "backbone/1/moving_variance": "statistic",
        "tail": "weight",
    }
    assert [(layer.path, layer.switch) for layer in name_variables(model).statistics_layers] == [
        ("backbone/1", "trainable")
    ]


def test_two_keras_models_in_a_module_are_numbered_each_for_itself() -> None:
    def build() -> keras.Model:
        return keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), keras.layers.Dense(1)])

    assert paths(Bag(left=build(), right=build())) == [
        f"{side}/{layer}/{name}"
        for side in ("left", "right")
        for layer in ("dense", "dense_1")
        for name in ("kernel", "bias")
    ]


def test_a_keras_variable_in_a_module_is_a_variable_too() -> None:
    own = keras.Variable([1.0, 2.0])
    (entry,) = name_variables(Bag(scale=own))
    assert (entry.path, entry.kind, entry.size) == ("scale", "weight", 2)
    assert entry.variable is own.value


# Keras 3


def test_a_sequential_model_has_layer_names_and_then_the_variables_own() -> None:
    assert paths(sequential()) == SEQUENTIAL_PATHS


def test_a_second_build_in_one_process_gives_the_same_paths() -> None:
    for build in (sequential, functional, nested, lambda: chain(keras.layers.Dense(2), Unnamed(), Unnamed())):
        first, second = paths(build()), paths(build())
        assert first == second
        assert len(first) > 3


def test_the_order_of_making_numbers_the_layers_not_the_order_of_use() -> None:
    made_first, made_second = keras.layers.Dense(3), keras.layers.Dense(2)
    model = keras.Sequential([keras.Input((3,)), made_second, made_first])
    assert {entry.path: entry.size for entry in name_variables(model)} == {
        "dense_1/kernel": 6,
        "dense_1/bias": 2,
        "dense/kernel": 6,
        "dense/bias": 3,
    }


def test_a_layer_used_twice_in_a_functional_model_is_listed_once() -> None:
    assert paths(functional()) == ["dense/kernel", "dense/bias", "dense_1/kernel", "dense_1/bias"]


def test_a_model_within_a_model_stands_in_the_path() -> None:
    assert paths(nested()) == [
        "functional/dense/kernel",
        "functional/dense/bias",
        "functional/dense_1/kernel",
        "functional/dense_1/bias",
        "dense_2/kernel",
        "dense_2/bias",
    ]


def test_a_subclassed_model_names_the_layers_that_it_holds_and_those_within() -> None:
    model = chain(keras.layers.Dense(4, name="first"), functional(), keras.layers.Dense(1))
    assert paths(model) == [
        "first/kernel",
        "first/bias",
        "functional/dense/kernel",
        "functional/dense/bias",
        "functional/dense_1/kernel",
        "functional/dense_1/bias",
        "dense_2/kernel",
        "dense_2/bias",
    ]


def test_explicit_names_are_kept() -> None:
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(2, name="stem"), keras.layers.Dense(1, name="predictions")]
    )
    assert paths(model) == ["stem/kernel", "stem/bias", "predictions/kernel", "predictions/bias"]


def test_equal_paths_of_different_variables_are_numbered_from_two() -> None:
    model = chain(*[keras.layers.Dense(3, name="same") for _ in range(3)])
    assert paths(model) == [
        "same/kernel",
        "same/bias",
        "same/kernel#2",
        "same/bias#2",
        "same/kernel#3",
        "same/bias#3",
    ]
    assert [entry.layer for entry in name_variables(model)] == ["same", "same", "same#2", "same#2", "same#3", "same#3"]


def test_layers_of_equal_name_are_told_apart_also_by_the_layers_within_them() -> None:
    def inner() -> keras.Model:
        return keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, name="d")], name="same")

    named = name_variables(chain(inner(), inner()))
    assert [(entry.path, entry.layer) for entry in named] == [
        ("same/d/kernel", "same/d"),
        ("same/d/bias", "same/d"),
        ("same/d/kernel#2", "same#2/d"),
        ("same/d/bias#2", "same#2/d"),
    ]


def test_weights_without_a_name_are_numbered_within_their_layer() -> None:
    model = keras.Sequential([keras.Input((1,)), Unnamed(), Unnamed()])
    assert [(entry.path, entry.size) for entry in name_variables(model)] == [
        ("unnamed/variable", 1),
        ("unnamed/variable_1", 2),
        ("unnamed_1/variable", 1),
        ("unnamed_1/variable_1", 2),
    ]


def test_a_layer_shared_by_two_models_has_one_path_and_aliases() -> None:
    shared = keras.layers.Dense(2, name="shared")
    left = keras.Sequential([keras.Input((2,)), shared], name="left")
    right = keras.Sequential([keras.Input((2,)), shared], name="right")
    kernel, bias = name_variables(chain(keras.layers.Dense(2, name="in"), left, right)).entries[2:]
    assert (kernel.path, kernel.aliases) == ("left/shared/kernel", ("right/shared/kernel",))
    assert (bias.path, bias.aliases) == ("left/shared/bias", ("right/shared/bias",))
    assert path("right/.*")(kernel)


def test_the_trainable_flag_of_a_layer_changes_neither_paths_nor_kinds() -> None:
    free, flagged = sequential(), sequential()
    flagged.trainable = False
    assert kinds(free) == kinds(flagged)
    assert kinds(flagged)["dense/kernel"] == "weight"


def test_seed_generators_are_no_weights_but_are_kept_for_checkpoints() -> None:
    model = sequential()
    named = name_variables(model)
    assert [entry.path for entry in named] == SEQUENTIAL_PATHS
    assert list(named.generators) == ["dropout/seed_generator/0"]
    assert named.generators["dropout/seed_generator/0"] is model.layers[3].seed_generator.state.value


def test_two_dropouts_of_one_name_keep_a_generator_each() -> None:
    model = chain(keras.layers.Dense(2), *[keras.layers.Dropout(0.5, name="drop") for _ in range(2)])
    assert list(name_variables(model).generators) == ["drop/seed_generator/0", "drop#2/seed_generator/0"]


def test_layer_positions_count_as_keras_does_with_weightless_layers() -> None:
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.ReLU(), functional_of(3), keras.layers.Dense(1)], name="m"
    )
    assert {entry.path: entry.layers for entry in name_variables(model)} == {
        # the functional model's layers are: input, dense, dense; it is the only sub-model, so "" means it
        "inner/dense/kernel": (("", 1, 3), ("inner", 1, 3), ("m", 1, 3)),
        "inner/dense/bias": (("", 1, 3), ("inner", 1, 3), ("m", 1, 3)),
        "inner/dense_1/kernel": (("", 2, 3), ("inner", 2, 3), ("m", 1, 3)),
        "inner/dense_1/bias": (("", 2, 3), ("inner", 2, 3), ("m", 1, 3)),
        "dense_2/kernel": (("m", 2, 3),),
        "dense_2/bias": (("m", 2, 3),),
    }


def functional_of(width: int) -> keras.Model:
    image = keras.Input((width,))
    hidden = keras.layers.Dense(2)(image)
    return keras.Model(image, keras.layers.Dense(2)(hidden), name="inner")


def test_without_a_name_layers_means_the_only_sub_model_else_the_model_itself() -> None:
    def unnamed(model: Any) -> dict[str, tuple[int, int]]:
        return {
            entry.path: (index, count)
            for entry in name_variables(model)
            for name, index, count in entry.layers
            if name == ""
        }

    norm = keras.layers.BatchNormalization()
    norm.build((None, 3))
    inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    assert unnamed(Bag(norm=norm, net=inner)) == {"net/dense/kernel": (0, 1)}
    assert unnamed(Bag(net=inner, again=inner)) == {"net/dense/kernel": (0, 1)}
    two = keras.Sequential([keras.Input((3,)), functional_of(3), keras.layers.Dense(2), inner])
    assert unnamed(two) == {
        entry.path: (("inner/", "dense", "sequential/").index(first), 3)
        for entry in name_variables(two)
        for first in ("inner/", "dense", "sequential/")
        if entry.path.startswith(first)
    }


def test_only_a_keras_layer_is_keras() -> None:
    assert is_keras(keras.layers.ReLU())
    assert is_keras(keras.Sequential())
    assert not is_keras(Bag())
    assert not is_keras(keras.Variable(1.0))


# Lists and dicts


def test_a_list_of_variables_goes_by_their_names() -> None:
    assert paths([variable(name="a"), variable(name="b/c"), variable(name="a")]) == ["a", "b/c", "a#2"]


def test_a_variable_twice_in_a_list_is_listed_once() -> None:
    one = variable(name="a")
    assert paths((one, one)) == ["a"]


def test_a_dict_of_variables_goes_by_its_keys() -> None:
    own = keras.Variable([1.0, 2.0])
    named = name_variables({"x": variable(name="a"), "y/z": own, "moment": variable(trainable=False)})
    assert [(entry.path, entry.kind) for entry in named] == [
        ("x", "weight"),
        ("y/z", "weight"),
        ("moment", "constant"),
    ]
    assert named.by_path()["y/z"].variable is own.value


def test_keras_weights_in_a_list_go_by_their_keras_paths() -> None:
    dense = keras.layers.Dense(2, name="mine")
    dense.build((None, 3))
    assert paths(dense.weights) == ["mine/kernel", "mine/bias"]


def test_what_is_named_already_is_given_back() -> None:
    named = name_variables([variable(name="a")])
    assert name_variables(named) is named
    assert len(named) == 1


# Errors


@pytest.mark.parametrize("model", [3, "abc", None, tf.constant(1.0), variable()])
def test_what_is_no_model_is_refused_by_its_type(model: Any) -> None:
    with pytest.raises(ModelError) as raised:
        name_variables(model)
    assert str(raised.value) == (
        f"model={type(model).__name__}: expected a tf.Module, a Keras 3 model, or a list or dict of variables"
    )


@pytest.mark.parametrize("model", [keras.Sequential([keras.layers.Dense(2)]), tf.Module(), [], {}])
def test_a_model_without_variables_is_refused_and_told_to_be_built(model: Any) -> None:
    with pytest.raises(ModelError) as raised:
        name_variables(model)
    assert str(raised.value) == (
        f"model={type(model).__name__}: the model has no variables yet; call it once on an input, "
        "or call model.build, to create them"
    )


def test_a_list_or_dict_of_other_things_is_refused_by_the_place_of_the_first() -> None:
    with pytest.raises(ModelError) as raised:
        name_variables([variable(name="a"), 3])
    assert str(raised.value) == "model[1]=int: expected a variable"
    with pytest.raises(ModelError) as raised:
        name_variables({"a": "b"})
    assert str(raised.value) == "model['a']=str: expected a variable"


def test_the_head_of_a_keras_model_is_all_of_its_last_layer_even_a_composite_one() -> None:
    rnn = keras.layers.Bidirectional(keras.layers.LSTM(2), name="both")
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.Dense(3), rnn])
    head = {e.path for e in name_variables(model) if "head" in e.groups}
    assert head == {e.path for e in name_variables(model) if e.path.startswith("both/")}
    assert len(head) == 6


def test_the_head_of_a_nested_keras_model_is_the_last_layer_inside() -> None:
    inner = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")], name="in"
    )
    model = keras.Sequential([keras.Input((3,)), inner])
    assert {e.path for e in name_variables(model) if "head" in e.groups} == {"in/b/kernel", "in/b/bias"}


def test_the_root_models_automatic_name_has_no_number() -> None:
    for _ in range(2):
        inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)], name="in")
        model = keras.Sequential([keras.Input((3,)), inner, keras.layers.Dense(2, name="top")])
        names = {name for e in name_variables(model) for name, _, _ in e.layers}
        assert names == {"", "in", "sequential"}


def test_without_a_name_layers_means_the_backbone_whatever_models_it_is_made_of() -> None:
    def dense(name: str) -> Any:
        return keras.layers.Dense(2, name=name)

    stem = keras.Sequential([dense("a"), dense("b")], name="stem")
    backbone = keras.Sequential([stem, keras.Sequential([dense("c")], name="block"), dense("d")], name="backbone")
    head = keras.Sequential([dense("e")], name="head")
    model = keras.Sequential([keras.Input((2,)), backbone, head])
    positions = {e.path: [(i, n) for name, i, n in e.layers if name == ""] for e in name_variables(model)}
    assert positions["backbone/stem/b/kernel"] == [(0, 3)]
    assert positions["backbone/block/c/kernel"] == [(1, 3)]
    assert positions["backbone/d/kernel"] == [(2, 3)]
    assert positions["head/e/kernel"] == []
    held = {e.path: [(i, n) for name, i, n in e.layers if name == ""] for e in name_variables(Bag(net=backbone))}
    assert held["net/stem/b/kernel"] == [(0, 3)]
