"""Strategies by name: what they select on a ViT, a CNN and Keras models, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from engine import models
from engine.selection.filters import FilterError
from engine.selection.variables import name_variables
from engine.study.strategies import ModelStrategies, StrategyError, list_flags, split_items
from engine.training.optimizers import layer_factors


def known(spec: str, shape: tuple[int, int, int] = (16, 16, 1)) -> ModelStrategies:
    model = models.build_model(spec, image_shape=shape, outputs=3)
    return ModelStrategies(name_variables(model.network), model.statistics)


@pytest.fixture(scope="module")
def vit() -> ModelStrategies:
    return known("vit:mini")


@pytest.fixture(scope="module")
def mobile() -> ModelStrategies:
    return known("keras:MobileNetV2,alpha=0.35", (32, 32, 3))


def trained(of: ModelStrategies, text: str) -> list[set[str]]:
    """Paths that each phase of a strategy trains."""
    return [{e.path for e in of.select(phase.train).trained} for phase in of.strategy(text).planned]


def test_a_vit_has_its_blocks_for_parts(vit: ModelStrategies) -> None:
    assert [part.name for part in vit.parts] == [f"blocks/{n}" for n in range(6)]
    assert vit.ladder == (1, 2, 4, 6)
    [two] = trained(vit, "last_2")
    assert {path.rpartition("/")[0][:8].rstrip("/") for path in two} == {"blocks/4", "blocks/5", "head"}
    [three] = trained(vit, "last_3")  # not on the ladder, but there
    assert two < three


def test_groups_come_with_the_head_and_nothing_else(vit: ModelStrategies) -> None:
    for name, group in (("norms", "norm"), ("bias", "bias"), ("attention", "attention")):
        [found] = trained(vit, name)
        assert found == {e.path for e in vit.variables if {group, "head"} & e.groups}


def test_gradual_goes_down_from_the_head_to_everything(vit: ModelStrategies) -> None:
    phases = trained(vit, "gradual")
    assert all(one < other for one, other in itertools.pairwise(phases))
    assert phases[0] == {"head/kernel", "head/bias"}
    assert phases[-1] == {e.path for e in vit.variables}
    assert len(trained(vit, "gradual_plateau")) == 8  # the head, one block more each time, everything


def test_phases_share_the_steps_and_a_plateau_may_take_them_all(vit: ModelStrategies) -> None:
    gradual = vit.strategy("gradual").phases(10)
    assert [phase.steps for phase in gradual] == [3, 4, 3]
    assert [phase.name for phase in vit.strategy("gradual").phases(1)] == ["full"]
    assert all(p.until == "plateau" and p.max_steps == 10 for p in vit.strategy("gradual_plateau").phases(10))
    for steps in range(1, 40):
        assert sum(p.steps or 0 for p in vit.strategy("gradual").phases(steps)) == steps


def test_layers_of_a_keras_model_are_grouped_by_their_names(mobile: ModelStrategies) -> None:
    names = [part.name for part in mobile.parts]
    assert names[-3:] == ["block_15", "block_16", "Conv_1"]
    assert mobile.ladder == (1, 4, 16, len(names))
    [found] = trained(mobile, "last_2")
    owners = {e.layer.split("/")[-1] for e in mobile.variables if e.path in found}
    assert {"block_16_expand", "block_16_project_BN", "Conv_1", "Conv_1_bn", "logits"} <= owners
    assert not any(owner.startswith("block_15") for owner in owners)


def test_layers_whose_names_say_nothing_are_cut_into_equal_groups() -> None:
    import keras

    image = keras.Input((8, 8, 1))
    x: Any = image
    for number in range(5):
        x = keras.layers.Conv2D(2, 3, padding="same", name=f"the {chr(97 + number)}".replace(" ", "_"))(x)
    model = keras.Model(image, keras.layers.Dense(2, name="logits")(keras.layers.Flatten()(x)))
    found = ModelStrategies(name_variables(model), "frozen")
    assert [part.name for part in found.parts] == ["the_a", "the_b", "the_c", "the_d", "the_e"]
    [two] = trained(found, "last_2")
    assert {path.split("/")[0] for path in two} == {"the_d", "the_e", "logits"}


def test_a_module_without_blocks_has_what_lies_at_its_top() -> None:
    cnn = known("cnn:mini")
    assert [part.name for part in cnn.parts] == ["stages/0", "stages/1", "stages/2", "stages/3"]
    assert trained(cnn, "last_4") == trained(cnn, "full")
    names = [strategy.name for strategy in cnn.defaults()]
    assert "last_4" not in names  # the same as full
    assert "attention" not in names  # matches nothing
    assert names == ["head", "last_1", "last_2", "last_3", "norms", "bias", "gradual", "gradual_plateau", "full"]


def test_names_that_are_regular_expressions_match_themselves_alone() -> None:
    import tensorflow as tf

    odd = {"a.b/w": tf.Variable([1.0]), "axb/w": tf.Variable([1.0]), "c d/w": tf.Variable([1.0]), "e": tf.Variable(1.0)}
    found = ModelStrategies(name_variables(odd), "follow")
    assert not found.head
    assert [part.name for part in found.parts] == ["a.b", "axb", "c d", "e"]
    assert trained(found, "last_2") == [{"c d/w", "e"}]
    assert trained(found, "last_4") == [set(odd)]
    assert [s.name for s in found.defaults()] == ["last_1", "last_2", "last_3", "gradual", "gradual_plateau", "full"]
    with pytest.raises(FilterError, match="matches nothing"):
        found.strategy("head")


def test_the_first_parts_come_with_the_head(vit: ModelStrategies, mobile: ModelStrategies) -> None:
    [two] = trained(vit, "first_2")
    assert two == {e.path for e in vit.variables if e.path.startswith(("blocks/0/", "blocks/1/", "head/"))}
    [last] = trained(vit, "last_6")
    assert trained(vit, "first_6") == [last]
    [some] = trained(mobile, "first_3")
    owners = {e.layer.split("/")[-1] for e in mobile.variables if e.path in some}
    names = [part.name for part in mobile.parts]
    assert any(owner.startswith(names[2]) for owner in owners)
    assert not any(owner.startswith(names[3]) for owner in owners)
    assert "logits" in owners
    for n in (1, 5, len(names) - 1):
        [first], [rest] = trained(mobile, f"first_{n}"), trained(mobile, f"last_{len(names) - n}")
        assert {e.layer for e in mobile.variables if e.path in first & rest} == {"head/logits"}
    cnn = known("cnn:mini")
    assert trained(cnn, "first_1") == [
        {e.path for e in cnn.variables if e.path.startswith(("stages/0/", "head/")) and e.kind == "weight"}
    ]
    with pytest.raises(FilterError, match="it has first_1 to first_6"):
        vit.strategy("first_7")


def test_the_lowest_layer_learns_at_the_same_rate_in_deep_models_and_flat_ones(
    vit: ModelStrategies, mobile: ModelStrategies
) -> None:
    for model in (vit, mobile, known("cnn:mini")):
        (phase,) = model.strategy("layer_decay").planned
        factors = layer_factors(model.variables, phase.layer_decay)
        assert min(factors.values()) == pytest.approx(1 / 32)
        assert max(factors.values()) == 1.0


def test_some_strategies_are_run_on_request_only(vit: ModelStrategies) -> None:
    extra = {"first_1", "first_6", "layer_decay", "lp_ft", "l2_sp", "auto_freeze"}
    assert extra <= set(vit.names())
    assert not extra & {strategy.name for strategy in vit.defaults()}
    phases = vit.strategy("lp_ft").phases(9, learning_rate=0.01)
    assert [(p.name, p.until, p.max_steps, p.steps, p.learning_rate) for p in phases] == [
        ("head", "plateau", 4, None, None),
        ("full", None, None, 9, 0.0003),
    ]
    assert [phase.name for phase in vit.strategy("lp_ft").phases(1)] == ["full"]
    assert vit.strategy("l2_sp").optimizer == "adamw,weight_decay=0.1,decay_toward=start"
    freezing = vit.strategy("auto_freeze")
    assert [phase.train for phase in freezing.planned] == ["@all"]
    assert list_flags([], freezing.optimizer, auto_freeze=freezing.auto_freeze) == ["--auto_freeze=on"]


def test_a_strategy_of_ones_own_is_a_filter_with_a_name(vit: ModelStrategies) -> None:
    assert trained(vit, "mine=head/.* @blocks[0]") == [
        {e.path for e in vit.variables if e.path.startswith(("head/", "blocks/0/"))}
    ]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("lsat_2", StrategyError, "nearest: last_2"),
        ("Full", StrategyError, "expected head, last_1"),
        ("", StrategyError, "is not a strategy of this model"),
        ("last_7", FilterError, "it has last_1 to last_6"),
        ("last_0", FilterError, "it has last_1 to last_6"),
        ("mine=haed/.*", FilterError, "strategy mine, train='haed/.*'"),
        ("mine=@none", FilterError, "trains nothing"),
        ("mine=@haed", StrategyError, "not a group"),
        ("mine=", StrategyError, "the filter is empty"),
        ("last_2=head/.*", StrategyError, "another strategy already"),
        ("first_2=head/.*", StrategyError, "another strategy already"),
        ("l2_sp=head/.*", StrategyError, "another strategy already"),
        ("auto_freeze=on", StrategyError, "another strategy already"),
        ("first_0", FilterError, "it has first_1 to first_6"),
        ("../x=head/.*", StrategyError, "must begin with a letter"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    vit: ModelStrategies, text: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        vit.strategy(text)
    assert message in str(raised.value)


def test_commas_separate_only_where_a_name_follows() -> None:
    assert split_items(["head,last_2", "mine=a{1,2}/.* b,full"]) == ["head", "last_2", "mine=a{1,2}/.* b", "full"]
    assert split_items(["head, x=@bias @head , full"]) == ["head", "x=@bias @head", "full"]
    for bad in (["head,head"], [""], ["head", "head=x"]):
        with pytest.raises(StrategyError):
            split_items(bad)
