"""Filters: what they match, their algebra, their text form, and what each mistake is told."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import keras
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.models.cnn import CNN
from engine.selection.filters import (
    And,
    Blocks,
    Filter,
    FilterError,
    Layers,
    Not,
    Or,
    blocks,
    group,
    layers,
    parse_filter,
    path,
)
from engine.selection.groups import GROUPS
from engine.selection.selection import matching_paths, select
from engine.selection.variables import ModelVariables, NamedVariable, name_variables
from engine.text import nearest

BLOCKS = 4


def named(
    name: str,
    *,
    aliases: tuple[str, ...] = (),
    groups: frozenset[str] = frozenset(),
    block: tuple[int, int] | None = None,
    positions: tuple[tuple[str, int, int], ...] = (),
) -> NamedVariable:
    """A named variable of which filters may ask everything; its value nobody asks for."""
    return NamedVariable(name, aliases, None, "weight", "", groups, block, positions)


def vit() -> ModelVariables:
    """The variables of a model with the paths of a ViT, a scalar each."""
    found = ["patch/kernel", "class_token"]
    for number in range(BLOCKS):
        found += [f"blocks/{number}/{own}" for own in ("norm1/gamma", "attention/query/kernel", "mlp/up/bias")]
    found += ["norm/gamma", "norm/beta", "head/kernel", "head/bias"]
    return name_variables({name: tf.Variable(0.0) for name in found})


VIT = vit()
PATHS = [entry.path for entry in VIT]


def matched(chosen: Filter, variables: ModelVariables = VIT) -> list[str]:
    return [entry.path for entry in variables if chosen(entry)]


@functools.cache
def mobilenet() -> tuple[keras.Model, ModelVariables]:
    """MobileNetV2 under a new head: its 154 layers count also where they have no weights."""
    backbone = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(32, 32, 3), alpha=0.35)
    top = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, name="classes")]
    model = keras.Sequential([keras.Input((32, 32, 3)), backbone, *top])
    return backbone, name_variables(model)


def values_of(keras_layers: list[Any]) -> set[int]:
    return {id(variable.value) for layer in keras_layers for variable in layer.weights}


def matched_values(chosen: Filter) -> set[int]:
    return {id(entry.variable) for entry in mobilenet()[1] if chosen(entry)}


def message(action: Callable[[], Any]) -> str:
    with pytest.raises(FilterError) as raised:
        action()
    return str(raised.value)


# What they match


def test_a_regex_must_match_the_whole_path() -> None:
    assert matched(path("head/.*")) == ["head/kernel", "head/bias"]
    assert matched(path("head")) == []
    assert matched(path("norm/gamma")) == ["norm/gamma"]
    assert matched(path(r"blocks/[01]/mlp/.*")) == ["blocks/0/mlp/up/bias", "blocks/1/mlp/up/bias"]
    assert matched(path("patch|class_token")) == ["class_token"]


def test_a_regex_matches_an_alias_as_well_as_the_path() -> None:
    entry = named("low/kernel", aliases=("high/kernel", "tied"))
    assert [path(word)(entry) for word in ("low/.*", "high/.*", "tied", "lower/.*")] == [True, True, True, False]


def test_a_group_matches_its_members_all_everything_and_none_nothing() -> None:
    assert matched(group("norm")) == [p for p in PATHS if "norm" in p]
    assert matched(group("embedding")) == ["class_token"]
    assert matched(group("bias")) == [*(f"blocks/{n}/mlp/up/bias" for n in range(BLOCKS)), "norm/beta", "head/bias"]
    assert matched(group("all")) == PATHS
    assert matched(group("none")) == []


def test_blocks_are_sliced_from_either_end_and_by_number() -> None:
    def numbers(chosen: Filter) -> list[int]:
        return sorted({int(name.split("/")[1]) for name in matched(chosen)})

    assert numbers(blocks[-2:]) == [2, 3]
    assert numbers(blocks[0]) == [0]
    assert numbers(blocks[-1]) == [3]
    assert numbers(blocks[-4]) == [0]
    assert numbers(blocks[:]) == [0, 1, 2, 3]
    assert numbers(blocks[::2]) == [0, 2]
    assert numbers(blocks[::-1]) == [0, 1, 2, 3]
    assert numbers(blocks[4]) == []
    assert numbers(blocks[-5]) == []
    assert numbers(blocks[2:1]) == []
    assert "patch/kernel" not in matched(blocks[:])


def test_blocks_count_as_a_list_when_one_is_missing() -> None:
    variables = name_variables({f"blocks/{n}/x": tf.Variable(0.0) for n in (2, 5, 11)})
    assert matched(blocks[1:], variables) == ["blocks/5/x", "blocks/11/x"]


def test_layers_without_a_name_index_the_only_sub_model_as_keras_does() -> None:
    backbone, _ = mobilenet()
    assert len(backbone.layers) == 154
    assert matched_values(layers[-20:]) == values_of(backbone.layers[-20:])
    assert matched_values(layers[:]) == values_of(backbone.layers)
    assert matched_values(layers[1]) == values_of([backbone.layers[1]])
    assert matched_values(layers[-2]) == values_of([backbone.layers[-2]])
    assert len(matched_values(layers[-20:])) == 35


def test_a_layer_without_weights_counts_and_matches_nothing() -> None:
    backbone, _ = mobilenet()
    assert [len(backbone.layers[index].weights) for index in (0, 1, -1)] == [0, 1, 0]
    assert matched_values(layers[0]) == set()
    assert matched_values(layers[-1]) == set()
    assert matched_values(layers[154]) == set()


def test_layers_with_a_name_index_that_model() -> None:
    backbone, variables = mobilenet()
    assert matched_values(layers(backbone.name)[-20:]) == values_of(backbone.layers[-20:])
    root = next(name for name, _, count in variables.entries[-1].layers if count == 3)
    assert matched(layers(root)[-1:], variables) == ["classes/kernel", "classes/bias"]
    assert matched_values(layers(root)[0]) == values_of(backbone.layers)
    assert matched_values(layers("other")[:]) == set()


@settings(deadline=None, max_examples=300)
@given(
    count=st.integers(1, 12),
    start=st.none() | st.integers(-15, 15),
    stop=st.none() | st.integers(-15, 15),
    step=st.none() | st.integers(-5, 5).filter(bool),
)
def test_a_slice_selects_what_pythons_own_list_slicing_selects(
    count: int, start: int | None, stop: int | None, step: int | None
) -> None:
    in_blocks = [named(f"blocks/{n}/x", block=(n, count)) for n in range(count)]
    in_layers = [named(f"{n}/x", positions=(("", n, count), ("net", n, count))) for n in range(count)]
    expected = set(list(range(count))[start:stop:step])
    for chosen, variables in (
        (blocks[start:stop:step], in_blocks),
        (layers[start:stop:step], in_layers),
        (layers("net")[start:stop:step], in_layers),
    ):
        assert {n for n, entry in enumerate(variables) if chosen(entry)} == expected
        (item,) = parse_filter(str(chosen)).items
        assert item.filter == chosen


@settings(deadline=None)
@given(count=st.integers(1, 12), index=st.integers(-15, 15))
def test_an_index_selects_what_pythons_own_list_index_selects(count: int, index: int) -> None:
    expected = [list(range(count))[index]] if -count <= index < count else []
    variables = [named(f"blocks/{n}/x", block=(n, count)) for n in range(count)]
    assert [n for n, entry in enumerate(variables) if blocks[index](entry)] == expected
    (item,) = parse_filter(f"@blocks[{index}]").items
    assert item.filter == blocks[index]


# Algebra


def test_and_or_and_not_combine_as_sets_do() -> None:
    head, norm, last = path("head/.*"), group("norm"), blocks[-2:]
    assert matched(head | last & ~norm) == [
        name for name in PATHS if name.startswith("head") or (re.match("blocks/[23]/", name) and "norm" not in name)
    ]
    assert matched(~head) == [name for name in PATHS if not name.startswith("head")]
    assert matched(head & norm) == []
    assert matched(~~head) == matched(head)


@settings(deadline=None)
@given(chosen=st.sets(st.sampled_from(PATHS)), other=st.sets(st.sampled_from(PATHS)))
def test_the_laws_of_de_morgan_hold(chosen: set[str], other: set[str]) -> None:
    left, right = (path("|".join(sorted(map(re.escape, names))) or "-") for names in (chosen, other))
    assert matched(~(left | right)) == matched(~left & ~right) == [p for p in PATHS if p not in chosen | other]
    assert matched(~(left & right)) == matched(~left | ~right) == [p for p in PATHS if p not in chosen & other]


def test_filters_of_equal_meaning_parts_are_equal_and_hash_alike() -> None:
    def build() -> Filter:
        return path("head/.*") | blocks[-2:] & ~group("norm") | layers("net")[3]

    assert build() == build()
    assert hash(build()) == hash(build())
    assert {build(): 1}[build()] == 1
    assert parse_filter("head/.* !@norm") == parse_filter("head/.*   !@norm")
    assert hash(parse_filter("@all")) == hash(parse_filter("@all"))
    assert blocks[0] == blocks[0:1] == Blocks(0, 1)
    assert layers[-20:] == Layers(-20, None)
    assert layers("net")[-1] == Layers(-1, None, None, "net")


def test_filters_that_differ_are_not_equal() -> None:
    different = [
        path("a"),
        path("b"),
        group("all"),
        group("norm"),
        blocks[:],
        blocks[-2:],
        layers[:],
        layers("net")[:],
        path("a") | path("b"),
        path("b") | path("a"),
        path("a") & path("b"),
        ~path("a"),
        parse_filter("a"),
        parse_filter("!a"),
        parse_filter("a b"),
        parse_filter("b a"),
    ]
    assert len(set(different)) == len(different)


def test_repr_and_text_show_the_parts() -> None:
    combined = path("head/.*") | blocks[-2:] & ~group("norm")
    assert repr(combined) == (
        "Or(left=Path(pattern='head/.*'), right=And(left=Blocks(start=-2, stop=None, step=None), "
        "right=Not(inner=Group(name='norm'))))"
    )
    assert str(combined) == "(head/.* | (@blocks[-2:] & ~@norm))"
    assert str(layers("net")[:-1]) == "@layers(net)[:-1]"
    assert str(layers[3:9:2]) == "@layers[3:9:2]"
    assert str(parse_filter(" head/.*  !@blocks[0] @layers ")) == "head/.* !@blocks[0:1] @layers[:]"
    assert [str(item) for item in parse_filter("head/.* !@norm").items] == ["item 1 `head/.*`", "item 2 `!@norm`"]


def test_parts_are_the_smallest_filters_from_left_to_right() -> None:
    assert list((path("a") | blocks[0] & ~group("norm")).parts()) == [path("a"), blocks[0], group("norm")]
    assert list(parse_filter("a !@norm").parts()) == [path("a"), group("norm")]


def test_filters_cannot_be_changed() -> None:
    for chosen in (path("a"), group("all"), blocks[0], parse_filter("a"), path("a") | path("b")):
        with pytest.raises(AttributeError, match="cannot assign"):
            chosen.anything = 1  # type: ignore[attr-defined]


def test_the_operators_make_the_classes_of_their_names() -> None:
    a, b = path("a"), path("b")
    assert (a & b, a | b, ~a) == (And(a, b), Or(a, b), Not(a))


# The text form


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("head/.*", path("head/.*")),
        ("@norm", group("norm")),
        ("@blocks", blocks[:]),
        ("@blocks[:]", blocks[:]),
        ("@blocks[-2:]", blocks[-2:]),
        ("@blocks[0]", blocks[0]),
        ("@blocks[-1]", blocks[-1:]),
        ("@blocks[+1:3]", blocks[1:3]),
        ("@blocks[::-2]", blocks[::-2]),
        ("@layers", layers[:]),
        ("@layers[-20:]", layers[-20:]),
        ("@layers(mobilenetv2_1.00_96)[-20:-3]", layers("mobilenetv2_1.00_96")[-20:-3]),
        ("@layers(net/inner)", layers("net/inner")[:]),
        ("a@b", path("a@b")),
        ("a!b", path("a!b")),
        ("(a|b)/[cd]{2}", path("(a|b)/[cd]{2}")),
    ],
)
def test_an_item_of_text_is_the_filter_of_python(text: str, expected: Filter) -> None:
    for word, negated in ((text, False), (f"!{text}", True)):
        (item,) = parse_filter(word).items
        assert (item.position, item.negated, item.filter) == (1, negated, expected)


def test_every_group_can_be_written() -> None:
    for name in GROUPS:
        (item,) = parse_filter(f"@{name}").items
        assert item.filter == group(name)


def test_items_are_separated_by_any_white_space_and_counted_from_one() -> None:
    items = parse_filter("\n head/.*\t!@norm \n\n @blocks[-2:] ").items
    assert [(item.position, str(item.filter)) for item in items] == [(1, "head/.*"), (2, "@norm"), (3, "@blocks[-2:]")]


def test_the_last_item_that_matches_decides() -> None:
    assert matched(parse_filter("head/.* @blocks[-2:] !@norm")) == [
        name for name in PATHS if re.match("head|blocks/[23]", name) and "norm" not in name
    ]
    assert "blocks/3/norm1/gamma" not in matched(parse_filter("@blocks[-2:] !@norm"))
    assert "blocks/3/norm1/gamma" in matched(parse_filter("!@norm @blocks[-2:]"))


def test_what_no_item_matches_is_not_selected_also_when_all_items_are_negated() -> None:
    assert matched(parse_filter("!head/.*")) == []
    assert matched(parse_filter("@all !head/.*")) == [name for name in PATHS if not name.startswith("head")]


WORDS = ["head/.*", "@norm", "@all", "@none", "@bias", "@blocks[-2:]", "@blocks[0]", "@kernel", "blocks/1/.*", ".*a"]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(WORDS)), min_size=1, max_size=7))
def test_text_agrees_with_reading_it_naively_from_left_to_right(words: list[tuple[bool, str]]) -> None:
    def naive(name: str, word: str) -> bool:
        if word == "@blocks[-2:]":
            return name.startswith(("blocks/2/", "blocks/3/"))
        if word == "@blocks[0]":
            return name.startswith("blocks/0/")
        if word == "@bias":
            return name.endswith(("/bias", "/beta"))
        simple = {"@all": True, "@none": False, "@norm": "norm" in name, "@kernel": name.endswith("/kernel")}
        return simple[word] if word in simple else re.fullmatch(word, name) is not None

    expected = []
    for name in PATHS:
        chosen = False
        for negated, word in words:
            if naive(name, word):
                chosen = not negated
        if chosen:
            expected.append(name)
    rule = parse_filter(" ".join(f"{'!' if negated else ''}{word}" for negated, word in words))
    assert matched(rule) == expected
    for entry in VIT:
        deciding = [position for position, (_, word) in enumerate(words, start=1) if naive(entry.path, word)]
        item = rule.deciding(entry)
        assert (item.position if item else None) == (deciding[-1] if deciding else None)


# Mistakes in the text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the filter is empty; expected items such as `head/.*` or `@blocks[-2:]`"),
        (" \n\t", "the filter is empty; expected items such as `head/.*` or `@blocks[-2:]`"),
        ("head/.* !", "item 2 `!`: expected a regular expression or a group after `!`"),
        (
            "head/.* (a",
            "item 2 `(a`: `(a` is not a valid regular expression: missing ), unterminated subpattern at position 0",
        ),
        ("!*", "item 1 `!*`: `*` is not a valid regular expression: nothing to repeat at position 0"),
        (
            "@blocks(x)",
            "item 1 `@blocks(x)`: @blocks takes no model name; @layers(NAME)[i:j] does",
        ),
        (
            "@norm @blocks(x)[0]",
            "item 2 `@blocks(x)[0]`: @blocks takes no model name; @layers(NAME)[i:j] does",
        ),
        ("@layers()[0]", "item 1 `@layers()[0]`: the name in @layers(NAME) is empty"),
        (
            "@blocks[1:2:3:4]",
            "item 1 `@blocks[1:2:3:4]`: `[1:2:3:4]` is not a slice of whole numbers such as [-2:] or [0:3]",
        ),
        (
            "@layers[a:]",
            "item 1 `@layers[a:]`: `[a:]` is not a slice of whole numbers such as [-2:] or [0:3]",
        ),
        (
            "@blocks[1.5]",
            "item 1 `@blocks[1.5]`: `[1.5]` is not a slice of whole numbers such as [-2:] or [0:3]",
        ),
        (
            "@blocks[]",
            "item 1 `@blocks[]`: `[]` is not a slice of whole numbers such as [-2:] or [0:3]",
        ),
        (
            "@blocks[9999999999:]",
            "item 1 `@blocks[9999999999:]`: `[9999999999:]` is not a slice of whole numbers such as [-2:] or [0:3]",
        ),
        ("@blocks[::0]", "item 1 `@blocks[::0]`: index=[::0]: the step of a slice must not be 0"),
        ("@blocks[-2:", "item 1 `@blocks[-2:`: expected @blocks[i:j] or @layers(NAME)[i:j]"),
        ("@layers(a", "item 1 `@layers(a`: expected @blocks[i:j] or @layers(NAME)[i:j]"),
    ],
)
def test_a_mistake_names_the_item_its_position_and_the_rule(text: str, expected: str) -> None:
    assert message(lambda: parse_filter(text)) == expected


def test_an_unknown_group_is_answered_with_the_nearest_and_with_all() -> None:
    text = message(lambda: parse_filter("head/.* !@norms"))
    assert text.startswith("item 2 `!@norms`: `@norms` is not a group; nearest: @norm")
    assert text.endswith(
        "; groups: @all @none @kernel @bias @norm @embedding @attention @mlp @head @stats @adapters @lora @ssf @blocks[i:j] "
        "@layers[i:j]"
    )
    assert message(lambda: parse_filter("@zzzzzz")).startswith(
        "item 1 `@zzzzzz`: `@zzzzzz` is not a group; groups: @all"
    )
    assert message(lambda: group("attn")).startswith("`@attn` is not a group; nearest: @attention")


def test_a_filter_error_is_an_input_error() -> None:
    assert issubclass(FilterError, InputError)
    assert issubclass(FilterError, ValueError)


# Mistakes in Python


def test_mistakes_in_python_name_the_value_and_the_rule() -> None:
    assert message(lambda: path("[")) == (
        "`[` is not a valid regular expression: unterminated character set at position 0"
    )
    assert message(lambda: blocks["a":]) == "index='a': expected whole numbers in a slice"  # type: ignore[misc]
    assert message(lambda: blocks[:1.5]) == "index=1.5: expected whole numbers in a slice"  # type: ignore[misc]
    assert message(lambda: layers[::0]) == "index=[::0]: the step of a slice must not be 0"
    assert message(lambda: blocks["a"]) == "index='a': expected a whole number or a slice"  # type: ignore[index]
    assert message(lambda: layers[1.0]) == "index=1.0: expected a whole number or a slice"  # type: ignore[index]


def test_a_filter_without_a_predicate_says_what_to_define() -> None:
    class Mine(Filter):
        pass

    with pytest.raises(TypeError, match=r"Mine must define __call__\(variable\) -> bool"):
        Mine()(VIT.entries[0])


# Items without effect on a model


def test_a_regex_that_matches_nothing_is_answered_with_the_nearest_paths() -> None:
    assert message(lambda: select(VIT, "@norm haed/.*")) == (
        "item 2 `haed/.*` matches nothing: a regular expression must match a whole variable path; "
        "nearest: head/.*, patch/.*, head/bias"
    )
    assert "; nearest: " not in message(lambda: select(VIT, "@norm 0123456789012345678901234567890123456789"))


def test_blocks_that_match_nothing_are_answered_with_their_number() -> None:
    assert message(lambda: select(VIT, "!@blocks[7:] @all")) == (
        "item 1 `!@blocks[7:]` matches nothing; the model has 4 blocks"
    )
    assert message(lambda: select(CNN(1, 2), "@blocks[0]")).endswith(
        "; the model has no blocks (no path contains blocks/N/)"
    )


def test_layers_that_match_nothing_are_answered_with_those_that_there_are() -> None:
    _, variables = mobilenet()
    text = message(lambda: select(variables, "@layers[154:]"))
    assert text.startswith("item 1 `@layers[154:]` matches nothing; ")
    listed = set(text.split("; layers to index: ")[1].split(", "))
    root = next(name for name, _, count in variables.entries[-1].layers if count == 3)
    assert listed == {"@layers with 154", "@layers(mobilenetv2_0.35_32) with 154", f"@layers({root}) with 3"}
    assert message(lambda: select(VIT, "@layers[0]")).endswith("; the model is not a Keras model with layers")


def test_a_group_that_matches_nothing_is_answered_with_those_that_do() -> None:
    assert message(lambda: select(CNN(1, 2), "@head @embedding")) == (
        "item 2 `@embedding` matches nothing; groups with variables here: @bias @head @kernel @norm @stats"
    )


def test_parts_of_a_filter_in_python_are_checked_one_by_one() -> None:
    assert message(lambda: select(VIT, path("head/.*") | ~(blocks[9:] & group("norm")))) == (
        "part 2 `@blocks[9:]` matches nothing; the model has 4 blocks"
    )


def test_none_may_match_nothing() -> None:
    assert matching_paths(VIT, "@none") == frozenset()
    assert matching_paths(VIT, group("none")) == frozenset()
    assert matching_paths(VIT, "head/.* @none") == {"head/kernel", "head/bias"}


def test_an_item_wholly_taken_over_names_who_took_it() -> None:
    assert message(lambda: select(VIT, "head/.* @blocks[0] !@norm blocks/.* head/bias head/k.*")) == (
        "item 1 `head/.*` has no effect: each of the 2 variables that it matches is decided by a later item "
        "(item 6 `head/k.*`, item 5 `head/bias`), because the last match decides"
    )
    assert message(lambda: select(VIT, "!@norm @all")) == (
        "item 1 `!@norm` has no effect: each of the 6 variables that it matches is decided by a later item "
        "(item 2 `@all`), because the last match decides"
    )


def test_an_item_taken_over_in_part_stands() -> None:
    assert matching_paths(VIT, "head/.* !head/bias") == {"head/kernel"}


def test_a_filter_that_trains_nothing_says_so_with_paths_of_the_model() -> None:
    expected = "trains nothing: it selects no weight among the model's 18 variables, such as "
    some = "patch/kernel, class_token, blocks/0/norm1/gamma"
    assert message(lambda: select(VIT, "!head/.*")) == f"`!head/.*` {expected}{some}"
    assert message(lambda: select(VIT, "@none")) == f"`@none` {expected}{some}"
    assert message(lambda: select(VIT, path("head/.*") & group("norm"))) == f"`(head/.* & @norm)` {expected}{some}"
    assert message(lambda: select(CNN(1, 2), "@stats")).startswith("`@stats` trains nothing: it selects no weight")


def test_nearest_gives_at_most_the_count_asked_for() -> None:
    known = ["head", "heads", "heat", "x"]
    assert nearest("head", known) == "; nearest: head, heads, heat"
    assert nearest("head", known, count=1) == "; nearest: head"
    assert nearest("0", known) == ""
