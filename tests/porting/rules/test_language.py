"""The rule language: what a line means, and an error with its line for every line that means nothing."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import porting
from engine.porting import PortError
from engine.porting.rules import detect, language


def model(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name.replace("__", "/"): tf.Variable(tf.zeros(shape)) for name, shape in shapes.items()}


def source(folder: pathlib.Path, arrays: dict[str, Any]) -> pathlib.Path:
    np.savez(folder / "w.npz", **arrays)
    return folder / "w.npz"


def load(folder: pathlib.Path, target: dict[str, Any], arrays: dict[str, Any], text: str) -> porting.Ledger:
    return porting.load(target, source(folder, arrays), language.parse_rules(text, name="my.rules"))


def failure(folder: pathlib.Path, target: dict[str, Any], arrays: dict[str, Any], text: str) -> str:
    """The message; no variable has changed."""
    with pytest.raises(PortError) as caught:
        load(folder, target, arrays, text)
    assert all(not variable.numpy().any() for variable in target.values())
    return str(caught.value)


ONE = np.arange(6, dtype=np.float32).reshape(2, 3) + 1


# --- what a line means ---


def test_groups_of_the_target_go_into_the_source(tmp_path: pathlib.Path) -> None:
    target = model(a__0__k=(3, 2), a__1__k=(3, 2))
    ledger = load(tmp_path, target, {"x.0.w": ONE, "x.1.w": ONE * 2}, r"a/(\d)/(k) <- x.\1.w | transpose(1, 0)")
    np.testing.assert_array_equal(target["a/1/k"], ONE.T * 2)
    assert ledger.loaded[0].source == ("x.0.w",)
    assert ledger.loaded[0].transforms == ("transpose(1, 0)",)


def test_several_sources_are_joined(tmp_path: pathlib.Path) -> None:
    target = model(k=(4, 3))
    ledger = load(tmp_path, target, {"q": ONE, "v": ONE * 2}, "k <- q + v | concat(0)")
    np.testing.assert_array_equal(target["k"], np.concatenate([ONE, ONE * 2]))
    assert ledger.loaded[0].source == ("q", "v")


def test_one_source_may_serve_several_targets(tmp_path: pathlib.Path) -> None:
    target = model(a=(1, 3), b=(2, 1))
    load(tmp_path, target, {"w": ONE}, "a <- w | split(0, 2, 1)\nb <- w | split(-1, 3, 2)")
    np.testing.assert_array_equal(target["a"], ONE[1:])
    np.testing.assert_array_equal(target["b"], ONE[:, 2:])


def test_comments_blank_lines_quotes_and_the_whole_path(tmp_path: pathlib.Path) -> None:
    text = '# a comment\n\n  "a b" <- "the \\0" # to the end\nk#2 <- k#2\n'
    target = {"a b": tf.Variable(0.0), "k#2": tf.Variable(0.0)}
    load(tmp_path, target, {"the a b": np.float32(3), "k#2": np.float32(4)}, text)
    assert [float(v) for v in target.values()] == [3, 4]


def test_a_backslash_is_written_twice(tmp_path: pathlib.Path) -> None:
    target = {"w": tf.Variable(0.0)}
    load(tmp_path, target, {r"a\1": np.float32(3)}, r"w <- a\\1")
    assert float(target["w"]) == 3


def test_skip_leaves_tensors_out_and_says_so(tmp_path: pathlib.Path) -> None:
    ledger = load(tmp_path, model(k=(2, 3)), {"w": ONE, "pool.a": ONE, "pool.b": ONE}, "k <- w\nskip pool\\..*")
    assert [(entry.name, entry.rule) for entry in ledger.skipped] == [
        ("pool.a", "my.rules:2"),
        ("pool.b", "my.rules:2"),
    ]


def test_a_used_tensor_is_not_skipped(tmp_path: pathlib.Path) -> None:
    ledger = load(tmp_path, model(k=(2, 3)), {"w": ONE, "v": ONE}, "skip .*\nk <- w")
    assert [entry.name for entry in ledger.skipped] == ["v"]


def test_fresh_keeps_a_variable_on_purpose(tmp_path: pathlib.Path) -> None:
    target = model(k=(2, 3), extra=(4,))
    ledger = load(tmp_path, target, {"w": ONE}, "k <- w\nfresh ext.*")
    assert ledger.fresh == {"extra": "my.rules:2"}


def test_a_head_can_be_kept_though_the_file_has_one(tmp_path: pathlib.Path) -> None:
    target = model(k=(2, 3), head__kernel=(2, 3))
    ledger = load(tmp_path, target, {"w": ONE, "fc": ONE}, "k <- w\nfresh head/.*\nskip fc")
    assert not target["head/kernel"].numpy().any()
    assert ledger.fresh == {"head/kernel": "my.rules:2"}


def test_a_prefix_is_cut_off_where_it_is(tmp_path: pathlib.Path) -> None:
    target = model(k=(2, 3), h=(2, 3))
    ledger = load(tmp_path, target, {"module.net.w": ONE, "fc": ONE}, "prefix (module\\.)?net\\.\nk <- w\nh <- fc")
    assert ledger.loaded[0].source == ("module.net.w",)


def test_an_optional_rule_is_passed_over_where_the_file_lacks_its_source(tmp_path: pathlib.Path) -> None:
    text = "k <-? old\nk <-? new\nz <-? w\nskip? nothing\nfresh? none"
    ledger = load(tmp_path, model(k=(2, 3)), {"new": ONE}, text)
    assert ledger.loaded[0].source == ("new",)


@pytest.mark.parametrize("images", ["tf", "torch", "unit", None])
def test_the_ledger_says_what_images_the_rules_name(tmp_path: pathlib.Path, images: str | None) -> None:
    ledger = load(tmp_path, model(k=(2, 3)), {"w": ONE}, "k <- w" + (f"\nimages {images}" if images else ""))
    assert ledger.images == images
    assert ledger.to_json()["images"] == images


def test_images_are_named_once() -> None:
    with pytest.raises(
        PortError, match=r"^my.rules:2: `images unit`: `images` takes one of tf, torch, unit and may appear once"
    ):
        language.parse_rules("images tf\nimages unit", name="my.rules")


def test_every_kind_of_images_that_rules_know_is_one_that_models_know() -> None:
    from engine import models

    assert set(language.IMAGES) == set(models.IMAGES)


def test_of_the_shipped_rules_those_name_images_whose_networks_all_take_the_same() -> None:
    named = {name: detect.get_rules(name).images for name in detect.shipped_rules() if detect.get_rules(name).images}
    assert {name for name, images in named.items() if images == "torch"} == {"dinov2_hf", "efficientnet"}
    assert named["slim_mobilenet_v2"] == "tf"
    assert not {"vit_timm", "slim_resnet_v1", "slim_vgg", "facenet", "bert"} & set(named)


# --- alternatives and notes ---


@pytest.mark.parametrize(
    ("names", "used", "skipped"),
    [
        (("w",), "w", []),
        (("w/ExponentialMovingAverage",), "w/ExponentialMovingAverage", []),
        (("w", "w/ExponentialMovingAverage"), "w/ExponentialMovingAverage", [("w", "its average is used")]),
    ],
)
def test_what_follows_or_is_taken_where_the_file_lacks_what_comes_before(
    tmp_path: pathlib.Path, names: tuple[str, ...], used: str, skipped: list[tuple[str, str]]
) -> None:
    target = model(k=(2, 3))
    arrays = {name: ONE + number for number, name in enumerate(names)}
    ledger = load(tmp_path, target, arrays, "k <- w/ExponentialMovingAverage or w")
    assert ledger.loaded[0].source == (used,)
    assert [(each.name, each.rule) for each in ledger.skipped] == skipped
    np.testing.assert_array_equal(target["k"], arrays[used])


def test_where_both_alternatives_are_missing_the_first_is_named(tmp_path: pathlib.Path) -> None:
    text = failure(tmp_path, model(k=(2, 3)), {"x": ONE}, "k <- u or w")
    assert "my.rules:1 expects u" in text


def test_alternatives_may_have_different_numbers_of_sources(tmp_path: pathlib.Path) -> None:
    target = model(k=(2, 3))
    load(tmp_path, target, {"a": ONE[:1], "b": ONE[1:]}, "k <- whole or a + b | concat(0)")
    np.testing.assert_array_equal(target["k"], ONE)


def test_a_tensor_called_or_is_written_in_quotes(tmp_path: pathlib.Path) -> None:
    assert load(tmp_path, model(k=(2, 3)), {"or": ONE}, 'k <- "or"').loaded[0].source == ("or",)


def test_notes_are_printed_and_kept_in_the_ledger(tmp_path: pathlib.Path) -> None:
    ledger = load(tmp_path, model(k=(2, 3)), {"w": ONE}, 'k <- w\nnote "images are small"\nnote "and grey"')
    assert ledger.summary().endswith("; note: images are small; note: and grey")
    assert ledger.to_json()["notes"] == ["images are small", "and grey"]


@pytest.mark.parametrize("name", list(detect.shipped_rules()))
def test_shipped_rules_are_parsed_and_can_be_named(name: str) -> None:
    assert detect.get_rules(name).rules
    assert detect.get_rules(f"{name}.rules") == detect.get_rules(name)


# --- lines that mean nothing ---


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("k", "expected `TARGET <- SOURCE | TRANSFORM`"),
        ("k = w", "expected `TARGET <- SOURCE | TRANSFORM`"),
        ("skpi w", "or one of skip, fresh, prefix, detect, expect, images, note, map; nearest: skip"),
        ("expect a b", "`expect` takes a pattern, an attribute and its values"),
        ("skip", "`skip` takes exactly one pattern"),
        ("skip a b", "`skip` takes exactly one pattern"),
        ("prefix? a", "expected `TARGET <- SOURCE"),
        ("image torch", "expected `TARGET <- SOURCE.*nearest: images"),
        ("images", "`images` takes one of tf, torch, unit and may appear once"),
        ("images caffe", "`images caffe`: `images` takes one of tf, torch, unit and may appear once"),
        ("images tf unit", "`images` takes one of"),
        ("images? tf", "expected `TARGET <- SOURCE"),
        ("<- w", "expected one target pattern, one `<-`"),
        ("k <- w <- v", "expected one target pattern, one `<-`"),
        ("a b <- w", "expected one target pattern, one `<-`"),
        ("k <-", "expected one source name after `<-`"),
        ("k <- | transpose", "expected one source name after `<-`"),
        ("k <- w v", "expected one source name after `<-`"),
        ("k <- w + | concat(0)", "expected one source name after `<-`"),
        ("k <- + w +", "expected one source name after `<-`"),
        ("k <- w + v", "2 sources need a `concat.axis.`"),
        ("k <- w |", "is not a valid transform"),
        ("k <- w | transposed(1, 0)", "unknown transform `transposed`.*nearest: transpose"),
        ("k <- w | split(1, 2)", "`split` takes 3 arguments, not 2"),
        ("k( <- w", "`k\\(` is not a valid regular expression"),
        ("skip [", "`\\[` is not a valid regular expression"),
        (r"k/(\d) <- w.\2", r"`w.\\2` refers to \\2, but `k/\(\\d\)` has 1 groups"),
        (r"k <- w\n", r"refers to \\n"),
        (
            "a <- b | lstm_gates | add(1.0)",
            r"would add to every gate; `lstm_gates \| add\(1.0, 0, 4, 1\)` adds to the forget",
        ),
        ("a <- b | add(1.0) | gru_gates", "would add to every gate"),
        ("k <- w or", "expected one source name after `<-`"),
        ("k <- or w", "expected one source name after `<-`"),
        ("k <- u or v or w", "`v or w`: expected one source name after `<-`"),
        ("k <- u or v + w", "2 sources need a `concat.axis.`"),
        (r"k <- u or v.\1", r"`v.\\1` refers to \\1"),
        ("note", "`note` takes one text, in double quotes"),
        ("note two words", "`note` takes one text, in double quotes"),
        ('note ""', "`note` takes one text, in double quotes"),
    ],
)
def test_a_line_that_means_nothing_is_refused_with_its_number(line: str, said: str) -> None:
    with pytest.raises(PortError, match=f"^my.rules:3: .*{said}"):
        language.parse_rules(f"# first\nx <- y\n{line}\n", name="my.rules")


def test_a_rule_file_that_cannot_be_read_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "latin.rules").write_bytes(b"k <- \xff")
    (tmp_path / "big.rules").write_bytes(b"#" * (2 << 20))
    for name, said in (
        ("latin", "the file is not UTF-8 text"),
        ("big", "larger than 1,048,576 bytes"),
        ("absent", "no such file"),
    ):
        with pytest.raises(PortError, match=said):
            detect.get_rules(tmp_path / f"{name}.rules")


WORDS = [*"ab\\1 <-?|+()[]*.#\"'\n,{}^$", " <- ", " | ", "skip ", "images tf", "transpose", "split(0, 1, 0)"]


@given(st.lists(st.sampled_from(WORDS), max_size=40))
@settings(deadline=None, max_examples=500)
def test_any_text_is_rules_or_an_error_with_a_line(words: list[str]) -> None:
    try:
        language.parse_rules("".join(words), name="f")
    except PortError as error:
        if not str(error).startswith("f:"):
            raise


# --- rules that do not hold ---


def test_two_rules_for_one_variable(tmp_path: pathlib.Path) -> None:
    said = failure(tmp_path, model(k=(2, 3)), {"w": ONE, "v": ONE}, "k <- w\n\n. <- v")
    assert said == "my.rules:3: this is a second rule for the variable k; the first is my.rules:1"
    said = failure(tmp_path, model(k=(2, 3)), {"w": ONE, "v": ONE}, "k <-? w\nk <-? v")
    assert said.startswith("my.rules:2: this is a second rule for the variable k")
    said = failure(tmp_path, model(k=(2, 3)), {"w": ONE}, "k <- w\nfresh k")
    assert "second rule for the variable k" in said


def test_a_rule_that_matches_no_variable(tmp_path: pathlib.Path) -> None:
    said = failure(tmp_path, model(k=(2, 3)), {"w": ONE}, "k <- w\nkernle <- v")
    assert said == "my.rules:2: `kernle` matches no variable of the model"
    said = failure(tmp_path, model(k=(2, 3)), {"w": ONE}, "k <- w\nfresh z")
    assert said == "my.rules:2: `fresh z` matches no variable of the model"


def test_a_skip_that_matches_no_tensor(tmp_path: pathlib.Path) -> None:
    said = failure(tmp_path, model(k=(2, 3)), {"w": ONE}, "k <- w\nskip pooler")
    assert said == "my.rules:2: `skip pooler` matches no tensor of the file"


def test_names_that_a_prefix_makes_equal(tmp_path: pathlib.Path) -> None:
    said = failure(tmp_path, model(k=(2, 3)), {"w": ONE, "m.w": ONE}, "prefix m\\.\nk <- w")
    assert said == "my.rules:1: without the prefix, w and m.w are both w"


def test_a_source_that_the_file_lacks_names_the_line_and_the_nearest(tmp_path: pathlib.Path) -> None:
    said = failure(tmp_path, model(k=(2, 3)), {"weight": ONE}, "k <- wieght")
    assert "k [2, 3] (my.rules:1 expects wieght; nearest: weight)" in said
    assert "in the file, not in the model (1):\n    weight" in said


def test_a_variable_without_a_rule_is_missing(tmp_path: pathlib.Path) -> None:
    said = failure(tmp_path, model(k=(2, 3), z=(1,)), {"w": ONE}, "k <- w")
    assert "in the model, not in the file (1):\n    z [1] (no rule)" in said


def test_a_shape_that_does_not_fit_shows_both_and_the_transforms(tmp_path: pathlib.Path) -> None:
    said = failure(tmp_path, model(k=(2, 3)), {"w": ONE}, "\nk <- w | transpose(1, 0)")
    assert "k: [3, 2] in the file (from [2, 3] | transpose(1, 0)), [2, 3] in the model (my.rules:2: w)" in said


def test_a_transform_that_does_not_suit_shows_those_before_it(tmp_path: pathlib.Path) -> None:
    said = failure(tmp_path, model(k=(2, 3)), {"w": ONE}, "k <- w | transpose(1, 0) | split(0, 2, 0)")
    assert (
        "k: `split(0, 2, 0)` cannot be applied to [3, 2]: axis 0 has length 3, which is not divisible by 2 "
        "(from [2, 3] | transpose(1, 0)); [2, 3] in the model (my.rules:1: w)"
    ) in said


def test_integers_need_a_cast(tmp_path: pathlib.Path) -> None:
    whole = ONE.astype(np.int32)
    assert "k: int32 in the file, float32 in the model" in failure(tmp_path, model(k=(2, 3)), {"w": whole}, "k <- w")
    target = model(k=(2, 3))
    load(tmp_path, target, {"w": whole}, "k <- w | cast(float32)")
    np.testing.assert_array_equal(target["k"], ONE)


# --- words that stand for one another ---


def test_a_map_replaces_words(tmp_path: pathlib.Path) -> None:
    rules = language.parse_rules("map unit 1=zero 2=one\n" + r"layer(\d)/k <- x.\{unit:1}.\\y\1")
    match = rules.rules[0].pattern.fullmatch("layer2/k")
    assert match is not None
    assert rules.rules[0].expand(match) == (r"x.one.\y2",)
    assert language.parse_rules("map unit 1=zero\n" + r"layer(\d)/k <- x.\{unit:1}.y").rules[0].could_give("x.zero.y")
    assert not rules.rules[0].could_give("x.zero")
    other = rules.rules[0].pattern.fullmatch("layer3/k")
    assert other is not None
    with pytest.raises(PortError, match=r"rules:2: layer3/k: `map unit` does not have '3'"):
        rules.rules[0].expand(other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("map unit", "`map` takes a new name and FROM=TO"),
        ("map unit 1", "`map` takes a new name and FROM=TO"),
        ("map unit 1=2 1=3", "each FROM once"),
        ("map unit 1=2\nmap unit 3=4", "my.rules:2: .*a new name"),
        (r"(a) <- \{unit:1}", r"`\\\{unit:1\}` needs a line `map unit` above"),
        ("map unit 1=2\n" + r"(a) <- \{unit:2}", r"a group 2 in `\(a\)`"),
        ("map unit 1=2\n" + r"(a) <- \{unit}", r"refers to \\\{"),
    ],
)
def test_a_map_that_cannot_be_used_is_refused(text: str, message: str) -> None:
    with pytest.raises(PortError, match=message):
        language.parse_rules(text, name="my.rules")
