"""Selection: what trains, what moves with it, what is frozen, and the proof of it."""

from __future__ import annotations

import functools
import hashlib
import itertools
import struct
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.digests import digest
from engine.models.cnn import CNN
from engine.models.layers import BatchNorm
from engine.selection.filters import FilterError, group, path
from engine.selection.proof import FreezeProof, digests
from engine.selection.selection import Selection, matching_paths, select
from engine.selection.variables import NamedVariable, name_variables
from engine.text import shorten

MOMENTS = ("moving_mean", "moving_variance")
DEFAULT = "inference mode: the default for this model (@stats makes them move)"
STILL = "its layer does not train: inference mode"


def cnn() -> CNN:
    return CNN(1, 2)


def keras_cnn() -> keras.Model:
    """Two stages of convolution and BatchNorm, and a head."""
    stages = [
        (keras.layers.Conv2D(3, 3, name=f"conv{n}"), keras.layers.BatchNormalization(name=f"bn{n}")) for n in range(2)
    ]
    top = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, name="head")]
    return keras.Sequential([keras.Input((8, 8, 1)), *itertools.chain(*stages), *top])


def images() -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).standard_normal((4, 8, 8, 1), np.float32) + 3.0)


def paths(entries: tuple[NamedVariable, ...]) -> list[str]:
    return [entry.path for entry in entries]


def stage_moments(*stages: int) -> list[str]:
    return [f"stages/{number}/norm/{name}" for number in stages for name in MOMENTS]


def inference(selection: Selection) -> list[str]:
    return [layer.path for layer in selection.inference]


def one(value: Any, dtype: tf.DType = tf.float32, name: str = "w") -> NamedVariable:
    return name_variables({name: tf.Variable(value, dtype=dtype)}).entries[0]


def message(action: Callable[[], Any]) -> str:
    with pytest.raises(FilterError) as raised:
        action()
    return str(raised.value)


# Trained, moving, frozen


def test_trained_is_what_the_filter_says_and_the_rest_is_frozen_in_model_order() -> None:
    model = cnn()
    selection = select(model, "head/.* stages/3/.* !@bias")
    every = [entry.path for entry in name_variables(model)]
    assert paths(selection.trained) == ["stages/3/conv/kernel", "stages/3/norm/gamma", "head/kernel"]
    assert paths(selection.moving) == stage_moments(3)
    assert paths(selection.frozen) == [
        name for name in every if name not in paths(selection.trained) + paths(selection.moving)
    ]
    assert selection.trained_parameters == 3 * 3 * 64 * 64 + 64 + 64 * 2
    assert selection.frozen_parameters == selection.variables.parameters - selection.trained_parameters - 2 * 64


@functools.cache
def shared_cnn() -> Any:
    return name_variables(cnn())


ITEMS = ["@all", "head/.*", "stages/[23]/.*", "@norm", "@stats", "@kernel", "@bias", "stages/0/norm/moving_.*"]


@settings(deadline=None, max_examples=150)
@given(
    items=st.lists(st.tuples(st.sampled_from(["", "!"]), st.sampled_from(ITEMS)), min_size=1, max_size=4),
    statistics=st.sampled_from(["follow", "frozen"]),
)
def test_every_variable_is_trained_or_moving_or_frozen_and_only_one_of_them(
    items: list[tuple[str, str]], statistics: Any
) -> None:
    try:
        selection = select(shared_cnn(), " ".join(map("".join, items)), statistics=statistics)
    except FilterError:
        assume(False)
    parts = (selection.trained, selection.moving, selection.frozen)
    every = [entry.path for entry in shared_cnn()]
    assert sorted(itertools.chain(*map(paths, parts))) == sorted(every)
    assert set(selection.rules) == set(every)
    assert {entry.kind for entry in selection.trained} == {"weight"}
    assert {entry.kind for entry in selection.moving} <= {"statistic"}
    moving_layers = {entry.layer for entry in selection.moving}
    trained_layers = {entry.layer for entry in selection.trained}
    assert moving_layers <= trained_layers
    assert moving_layers.isdisjoint(inference(selection))
    assert len(moving_layers) + len(selection.inference) == 4


def test_a_shared_variable_is_trained_once_whichever_path_names_it() -> None:
    shared = tf.Variable([1.0])
    for text in ("a", "b", "a b", "[ab]"):
        if text == "a b":  # the second takes over all of the first
            assert "item 1 `a` has no effect" in message(lambda: select({"a": shared, "b": shared}, "a b"))
        else:
            assert paths(select({"a": shared, "b": shared}, text).trained) == ["a"]


def test_what_was_made_not_trainable_is_never_trained_and_its_rule_says_so() -> None:
    model = {
        "w": tf.Variable(1.0),
        "step": tf.Variable(0, dtype=tf.int64),
        "fixed": tf.Variable(1.0, trainable=False),
    }
    selection = select(model, "@all")
    assert (paths(selection.trained), paths(selection.frozen)) == (["w"], ["step", "fixed"])
    assert dict(selection.rules) == {
        "w": "item 1 `@all`",
        "step": "created as not trainable",
        "fixed": "created as not trainable",
    }
    assert message(lambda: select(model, "step")).startswith("`step` trains nothing: ")


def test_rules_of_text_name_the_deciding_item() -> None:
    rules = select(cnn(), "stages/3/.* head/.* !@bias").rules
    assert rules["stages/3/conv/kernel"] == "item 1 `stages/3/.*`"
    assert rules["stages/3/norm/gamma"] == "item 1 `stages/3/.*`"
    assert rules["head/kernel"] == "item 2 `head/.*`"
    assert rules["head/bias"] == "item 3 `!@bias`"
    assert rules["stages/0/norm/beta"] == "item 3 `!@bias`"
    assert rules["stages/0/conv/kernel"] == "no item matches"
    assert rules["stages/3/norm/moving_mean"] == "follows its layer: item 1 `stages/3/.*`"
    assert rules["stages/0/norm/moving_mean"] == STILL


def test_rules_of_a_filter_in_python_name_the_filter() -> None:
    rules = select(cnn(), path("head/.*") | path("stages/3/.*")).rules
    assert rules["head/bias"] == "(head/.* | stages/3/.*)"
    assert rules["stages/0/conv/kernel"] == "outside (head/.* | stages/3/.*)"
    assert rules["stages/3/norm/moving_mean"] == "follows its layer: (head/.* | stages/3/.*)"


def test_matching_gives_paths_of_any_kind_and_may_give_none() -> None:
    model = cnn()
    assert matching_paths(model, "@norm !stages/[123]/.*") == {
        f"stages/0/norm/{name}" for name in ("gamma", "beta", *MOMENTS)
    }
    assert matching_paths(model, group("none")) == frozenset()
    assert "matches nothing" in message(lambda: matching_paths(model, "tail/.*"))


# Statistics


def test_statistics_follow_the_layers_that_train() -> None:
    model = cnn()
    selection = select(model, "@all")
    assert (paths(selection.moving), inference(selection)) == (stage_moments(0, 1, 2, 3), [])
    selection = select(model, "stages/[13]/.*")
    assert (paths(selection.moving), inference(selection)) == (stage_moments(1, 3), ["stages/0/norm", "stages/2/norm"])
    assert paths(select(model, "stages/2/norm/beta").moving) == stage_moments(2)


def test_a_layer_none_of_whose_weights_trains_is_in_inference_mode() -> None:
    every = [f"stages/{number}/norm" for number in range(4)]
    for text in ("head/.*", "stages/.*/conv/kernel head/.*", "@all !@norm", "head/.* @stats"):
        selection = select(cnn(), text)
        assert (paths(selection.moving), inference(selection)) == ([], every)
        assert {selection.rules[name] for name in stage_moments(0, 1, 2, 3)} == {STILL}


def test_frozen_statistics_stay_though_gamma_and_beta_train() -> None:
    selection = select(cnn(), "@all", statistics="frozen")
    assert selection.moving == ()
    assert paths(selection.frozen) == stage_moments(0, 1, 2, 3)
    assert inference(selection) == [f"stages/{number}/norm" for number in range(4)]
    assert "stages/0/norm/gamma" in paths(selection.trained)
    assert {selection.rules[name] for name in stage_moments(0, 1, 2, 3)} == {DEFAULT}


@pytest.mark.parametrize("statistics", ["follow", "frozen"])
def test_an_item_that_speaks_of_statistics_alone_overrides_the_default(statistics: Any) -> None:
    def moving(text: str) -> list[str]:
        return paths(select(cnn(), text, statistics=statistics).moving)

    assert moving("@all @stats") == stage_moments(0, 1, 2, 3)
    assert moving("@all !@stats") == []
    assert moving("stages/[23]/.* @stats") == stage_moments(2, 3)
    assert moving("@all !@stats stages/1/norm/moving_.*") == stage_moments(1)
    default = {"follow": (1, 2, 3), "frozen": ()}[statistics]
    assert moving("@all !stages/0/norm/moving_.*") == stage_moments(*default)
    default = {"follow": (0, 1, 2, 3), "frozen": (0,)}[statistics]
    assert moving("@all stages/0/norm/moving_.*") == stage_moments(*default)


def test_an_item_of_weights_and_statistics_does_not_speak_of_statistics() -> None:
    assert select(cnn(), "@all stages/0/norm/.*", statistics="frozen").moving == ()
    assert paths(select(cnn(), "!@norm stages/.*/gamma head/.*").moving) == stage_moments(0, 1, 2, 3)


def test_the_item_that_stopped_statistics_is_their_rule() -> None:
    rules = select(cnn(), "@all !@stats").rules
    assert rules["stages/0/norm/moving_mean"] == "inference mode: item 2 `!@stats`"
    rules = select(cnn(), "@all @stats", statistics="frozen").rules
    assert rules["stages/0/norm/moving_mean"] == "follows its layer: item 1 `@all`"


def test_a_python_filter_speaks_of_statistics_by_the_group() -> None:
    model = cnn()
    stages, norm, stats = path("stages/[23]/.*"), group("norm"), group("stats")
    assert paths(select(model, stages).moving) == stage_moments(2, 3)
    assert select(model, stages, statistics="frozen").moving == ()
    assert select(model, stages & ~stats).moving == ()
    assert paths(select(model, stages | stats, statistics="frozen").moving) == stage_moments(2, 3)
    assert paths(select(model, path("stages/3/.*") | path("stages/2/.*") & ~stats).moving) == stage_moments(3)
    assert paths(select(model, norm & ~stats).trained) == [
        f"stages/{number}/norm/{name}" for number in range(4) for name in ("gamma", "beta")
    ]


def test_statistics_of_one_layer_cannot_part() -> None:
    assert message(lambda: select(cnn(), "@all !stages/0/norm/moving_mean")) == (
        "`@all !stages/0/norm/moving_mean`: stages/0/norm/moving_mean would stay "
        "(inference mode: item 2 `!stages/0/norm/moving_mean`) while stages/0/norm/moving_variance moves "
        "(follows its layer: item 1 `@all`); the statistics of a layer must move together: match all of them, "
        "as @stats and !@stats do"
    )


def test_keras_statistics_follow_their_layers_too() -> None:
    model = keras_cnn()
    moments = [f"bn1/{name}" for name in MOMENTS]
    selection = select(model, "head/.* bn1/.*")
    assert paths(selection.trained) == ["bn1/gamma", "bn1/beta", "head/kernel", "head/bias"]
    assert (paths(selection.moving), inference(selection)) == (moments, ["bn0"])
    for chosen in (
        select(model, "head/.* bn1/.*", statistics="frozen"),
        select(model, "head/.* bn1/.* !@stats"),
        select(model, "head/.*"),
    ):
        assert (paths(chosen.moving), inference(chosen)) == ([], ["bn0", "bn1"])
    assert paths(select(model, "bn1/.* @stats", statistics="frozen").moving) == moments


def test_the_statistics_of_two_layers_of_one_name_do_not_mix() -> None:
    class Twins(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.left = keras.layers.BatchNormalization(name="bn")
            self.right = keras.layers.BatchNormalization(name="bn")

        def call(self, x: Any, training: bool = False) -> Any:
            return self.right(self.left(x, training=training), training=training)

    model = Twins()
    model(tf.zeros([1, 2]))
    selection = select(model, "bn/gamma")
    assert paths(selection.moving) == ["bn/moving_mean", "bn/moving_variance"]
    assert inference(selection) == ["bn#2"]


def test_a_shared_layer_that_trains_keeps_its_statistics_moving() -> None:
    model = tf.Module()
    model.first = BatchNorm(2)
    model.second = model.first
    selection = select(model, "second/gamma")
    assert paths(selection.moving) == ["first/moving_mean", "first/moving_variance"]
    assert selection.inference == ()


def test_a_wrappers_statistics_follow_the_layer_inside_it() -> None:
    wrapped = keras.layers.SpectralNormalization(keras.layers.Dense(2, name="inside"), name="wrapper")
    model = keras.Sequential([keras.Input((3,)), wrapped, keras.layers.Dense(1, name="head")])
    assert paths(select(model, "wrapper/inside/.*").moving) == ["wrapper/vector_u"]
    assert select(model, "head/.*").moving == ()


def test_another_word_for_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^statistics='move': expected 'follow' or 'frozen'$"):
        select(cnn(), "@all", statistics="move")  # type: ignore[arg-type]


# Modes


@pytest.mark.parametrize("build", [cnn, keras_cnn])
@pytest.mark.parametrize(
    ("text", "statistics", "moves"),
    [
        ("@all", "follow", "all"),
        ("@all", "frozen", "none"),
        ("@all !@stats", "follow", "none"),
        ("head/.*", "follow", "none"),
        (r".*(norm|bn\d)/gamma", "follow", "all"),
        (r"(stages/1|bn1)/.*", "follow", "1"),
    ],
)
def test_training_within_modes_moves_the_moving_variables_and_no_others(
    build: Callable[[], Any], text: str, statistics: Any, moves: str
) -> None:
    model = build()
    selection = select(model, text, statistics=statistics)
    before = digests(selection.variables.entries)
    with selection.modes():
        model(images(), training=True)
    after = digests(selection.variables.entries)
    changed = [name for name in before if before[name] != after[name]]
    assert changed == paths(selection.moving)
    every = [entry.path for entry in selection.variables if entry.kind == "statistic"]
    chosen = {"all": every, "none": [], "1": [name for name in every if name.startswith(("stages/1/", "bn1/"))]}
    assert changed == chosen[moves]


def test_modes_set_the_switches_and_put_them_back() -> None:
    model = cnn()
    model.stages[3].norm.update_statistics = False
    selection = select(model, "stages/[13]/.*")
    with selection.modes():
        assert [stage.norm.update_statistics for stage in model.stages] == [False, True, False, True]
    assert [stage.norm.update_statistics for stage in model.stages] == [True, True, True, False]


def test_modes_put_the_switches_back_after_an_exception() -> None:
    model, keras_model = cnn(), keras_cnn()
    for selection in (select(model, "head/.*"), select(keras_model, "head/.*")):
        with pytest.raises(RuntimeError, match="planted"), selection.modes():
            raise RuntimeError("planted")
    assert [stage.norm.update_statistics for stage in model.stages] == [True] * 4
    assert all(layer.trainable for layer in keras_model.layers)
    assert keras_model.get_layer("bn0").gamma.trainable


def test_modes_within_modes_end_in_order() -> None:
    model = cnn()
    outer, inner = select(model, "head/.*"), select(model, "stages/0/.*")
    with outer.modes():
        with inner.modes():
            assert [stage.norm.update_statistics for stage in model.stages] == [True, False, False, False]
        assert [stage.norm.update_statistics for stage in model.stages] == [False] * 4
    assert [stage.norm.update_statistics for stage in model.stages] == [True] * 4


def test_modes_put_back_what_keras_overwrites_in_a_layers_variables() -> None:
    model = keras_cnn()
    first, second = model.get_layer("bn0"), model.get_layer("bn1")
    first.gamma.trainable = False
    second.trainable = False
    second.beta.trainable = True

    def flags() -> list[bool]:
        found = [owner.trainable for layer in model.layers for owner in (layer, *layer.weights)]
        return [model.trainable, *found]

    before = flags()
    with select(model, "@all").modes():
        assert (first.trainable, second.trainable) == (True, True)
    assert flags() == before
    with select(model, "head/.*").modes():
        assert (first.trainable, second.trainable) == (False, False)
        assert not first.beta.trainable
    assert flags() == before


def test_modes_put_back_the_layers_inside_a_layer_with_statistics() -> None:
    wrapped = keras.layers.SpectralNormalization(keras.layers.Dense(2, name="inside"), name="wrapper")
    model = keras.Sequential([keras.Input((3,)), wrapped, keras.layers.Dense(1, name="head")])
    for flag in (True, False):
        wrapped.layer.trainable = flag
        with select(model, "head/.*").modes():
            assert not wrapped.trainable
        assert (wrapped.trainable, wrapped.layer.trainable) == (True, flag)
        assert [variable.trainable for variable in wrapped.layer.weights] == [flag, flag]


# Equality


def test_selections_made_by_different_words_are_equal_and_hash_alike() -> None:
    model = cnn()
    same = [
        select(model, "head/.*"),
        select(model, "@head"),
        select(model, "@all !stages/.*"),
        select(model, path("head/.*")),
        select(model, ~path("stages/.*")),
        select(name_variables(model), "head/.*", statistics="frozen"),
    ]
    assert all(selection == same[0] for selection in same)
    assert len(set(same)) == 1
    assert len({selection.rules["head/kernel"] for selection in same}) == 5


def test_selections_that_differ_in_anything_that_matters_are_not_equal() -> None:
    model = cnn()
    different = [
        select(model, "@all"),
        select(model, "@all", statistics="frozen"),
        select(model, "@all !stages/0/norm/moving_.*"),
        select(model, "head/.*"),
        select(model, "head/kernel"),
        select(cnn(), "head/.*"),
    ]
    assert len(set(different)) == len(different)
    assert different[0] != "@all"


# Digests and the proof


def expected_digest(name: str, dtype: str, shape: str, data: bytes) -> str:
    return hashlib.sha256(f"{name}\0{dtype}\0{shape}\0".encode() + data).hexdigest()


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        ([1.5, -2.0], tf.float32, ("float32", "[2]", struct.pack("<2f", 1.5, -2.0))),
        ([[1.5], [-2.0]], tf.float64, ("float64", "[2, 1]", struct.pack("<2d", 1.5, -2.0))),
        ([1.5, -2.0], tf.float16, ("float16", "[2]", struct.pack("<2e", 1.5, -2.0))),
        ([1.5, -2.0], tf.bfloat16, ("bfloat16", "[2]", struct.pack("<2H", 0x3FC0, 0xC000))),
        ([1, -2], tf.int64, ("int64", "[2]", struct.pack("<2q", 1, -2))),
        ([True, False], tf.bool, ("bool", "[2]", b"\1\0")),
        (1.5, tf.float32, ("float32", "[]", struct.pack("<f", 1.5))),
        (1.5, tf.bfloat16, ("bfloat16", "[]", struct.pack("<H", 0x3FC0))),
        (7, tf.int64, ("int64", "[]", struct.pack("<q", 7))),
        (np.zeros((0, 3)), tf.float32, ("float32", "[0, 3]", b"")),
    ],
)
def test_a_digest_is_sha256_of_path_dtype_shape_and_little_endian_bytes(
    value: Any, dtype: tf.DType, expected: tuple[str, str, bytes]
) -> None:
    entry = one(value, dtype, name="layer/w")
    assert digests([entry]) == {"layer/w": expected_digest("layer/w", *expected)}


@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "u2"])
def test_a_digest_is_that_of_the_values_whatever_the_byte_order_or_strides_in_memory(dtype: str) -> None:
    value = np.arange(12).reshape(3, 4)
    little, big = value.astype(f"<{dtype}"), value.astype(f">{dtype}")
    name = np.dtype(dtype).name
    expected = expected_digest("w", name, "[3, 4]", b"".join(little[n].tobytes() for n in range(3)))
    assert digest("w", little) == expected
    assert digest("w", big) == expected
    assert digest("w", np.asfortranarray(little)) == expected


def test_a_digest_changes_with_path_dtype_shape_and_bytes() -> None:
    different = [
        one([0.0, 0.0]),
        one([0.0, 0.0], name="v"),
        one([[0.0, 0.0]]),
        one([[0.0], [0.0]]),
        one([0.0], tf.float64),
        one([0, 0], tf.int32),
        one([0], tf.int64),
        one([0.0] * 4, tf.bfloat16),
        one([0.0] * 4, tf.float16),
        one([0.0, -0.0]),
        one([-0.0, 0.0]),
        one([0.0, 1e-45]),
        one(0.0),
        one([0.0]),
    ]
    assert len({digests([entry])[entry.path] for entry in different}) == len(different)


def test_equal_variables_have_equal_digests() -> None:
    assert digests([one([1.0, 2.0])]) == digests([one([1.0, 2.0])])


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [(tf.float32, np.uint32), (tf.float64, np.uint64), (tf.bfloat16, np.uint16), (tf.int64, np.uint64)],
)
def test_the_proof_finds_one_bit_and_the_sign_of_zero(dtype: tf.DType, bits: Any) -> None:
    model = {
        "w": tf.Variable(0.0),
        "far": tf.Variable(tf.cast(tf.range(1000) % 7, dtype)),
        "zero": tf.Variable(tf.zeros([], dtype)),
    }
    selection = select(model, "w")
    proof = FreezeProof.begin(selection)
    assert sorted(proof.before) == ["far", "zero"]
    assert proof.changed(selection) == []
    model["w"].assign_add(1.0)
    assert proof.changed(selection) == []

    kept = model["far"].numpy()
    planted = kept.copy()
    planted.view(bits)[567] ^= 1
    model["far"].assign(planted)
    assert proof.changed(selection) == ["far"]
    model["far"].assign(kept)
    assert proof.changed(selection) == []

    sign = np.zeros([1], bits)
    sign[0] = bits(1) << bits(8 * dtype.size - 1)
    model["zero"].assign(sign.view(dtype.as_numpy_dtype)[0])
    assert proof.changed(selection) == ["zero"]


def test_the_proof_covers_frozen_statistics_and_no_moving_ones() -> None:
    model = cnn()
    selection = select(model, "stages/3/.* head/.*")
    proof = FreezeProof.begin(selection)
    assert list(proof.before) == paths(selection.frozen)
    model.stages[0].norm.moving_mean.assign_add(tf.ones([16]))
    model.stages[3].norm.moving_mean.assign_add(tf.ones([64]))
    assert proof.changed(selection) == ["stages/0/norm/moving_mean"]


# The table


def test_the_table_has_a_row_for_each_state_and_rule() -> None:
    assert select(cnn(), "head/.* stages/3/.*").table().split("\n") == [
        "         variables  parameters  decided by                                paths",
        "trained          3      36,992  item 2 `stages/3/.*`                      stages/3",
        "trained          2         130  item 1 `head/.*`                          head",
        "moving           2         128  follows its layer: item 2 `stages/3/.*`   stages/3",
        "frozen           9      23,408  no item matches                           stages/0-2",
        "frozen           6         224  its layer does not train: inference mode  stages/0-2",
    ]


def test_the_rows_sum_to_the_model() -> None:
    selection = select(cnn(), "@kernel head/.* stages/2/.* !@stats")
    assert sum(row[1] for row in selection.rows()) == len(selection.variables)
    assert sum(row[2] for row in selection.rows()) == selection.variables.parameters
    assert [row[0] for row in selection.rows()] == sorted(
        (row[0] for row in selection.rows()), key=["trained", "moving", "frozen"].index
    )


@pytest.mark.parametrize(
    ("given_paths", "expected"),
    [
        ([], ""),
        (["head/kernel", "head/bias"], "head"),
        (["a"], "a"),
        (["blocks/0/x", "blocks/1/x", "blocks/2/y", "norm/gamma"], "blocks/0-2, norm"),
        (["blocks/11/x", "blocks/2/x", "blocks/3/x", "blocks/7/x"], "blocks/2-3+7+11"),
        (["blocks/4"], "blocks/4"),
        (["blocks/4x/y"], "blocks"),
        (["a/x", "b/x", "c/x", "d/x", "e/x"], "a, b, c, d, e"),
        (["a/x", "b/x", "c/x", "d/x", "e/x", "f/0/x", "g/x"], "a, b, c, d, e and 2 more"),
    ],
)
def test_paths_in_short_are_first_parts_with_numbers_as_ranges(given_paths: list[str], expected: str) -> None:
    assert shorten(given_paths) == expected


def test_paths_in_short_stop_at_the_number_asked_for() -> None:
    assert shorten(["a/x", "b/x", "c/x"], most=1) == "a and 2 more"
