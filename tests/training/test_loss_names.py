"""The text of --loss: a loss for one output, or one for each of several, with options."""

from __future__ import annotations

from typing import Any

import pytest

from engine.training.loss_names import LossError, TaskLoss, find_losses, output_kind, parse_losses

TWO = parse_losses("species=softmax, age=mse weight=0.3")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("softmax", [TaskLoss()]),
        ("  softmax  ", [TaskLoss()]),
        ("softmax label_smoothing=0.1", [TaskLoss(options={"label_smoothing": 0.1})]),
        ("focal gamma=2", [TaskLoss(kind="focal", options={"gamma": 2.0})]),
        ("mse weight=3", [TaskLoss(kind="mse", weight=3.0)]),
        ("age=mse", [TaskLoss(name="age", kind="mse")]),
        ("a=softmax,b=mse", [TaskLoss(name="a"), TaskLoss(name="b", kind="mse")]),
        ('"kind of bird"=softmax , b=mse', [TaskLoss(name="kind of bird"), TaskLoss(name="b", kind="mse")]),
        ("weight=mse weight=2", [TaskLoss(name="weight", kind="mse", weight=2.0)]),
        ("softmax class_weights=balanced", [TaskLoss(options={"class_weights": "balanced"})]),
        ("softmax class_weights=12", [TaskLoss(options={"class_weights": "12"})]),  # the name of a file
        ("py:own:huber delta=2 mode=fast", [TaskLoss(kind="py:own:huber", options={"delta": 2.0, "mode": "fast"})]),
        ("a=py:own.sub:huber weight=2", [TaskLoss(name="a", kind="py:own.sub:huber", weight=2.0)]),
        ("graph:loss/add:0", [TaskLoss(kind="graph:loss/add:0")]),
    ],
)
def test_what_a_text_says(text: str, expected: list[TaskLoss]) -> None:
    assert list(parse_losses(text)) == expected


def test_flags_are_options_of_the_only_loss() -> None:
    (loss,) = parse_losses("softmax", label_smoothing=0.1, class_weights="balanced")
    assert loss.options == {"label_smoothing": 0.1, "class_weights": "balanced"}
    assert parse_losses("softmax", label_smoothing=0.0) == (TaskLoss(),)


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "name": ("softmx", {}, "loss='softmx': expected one of softmax, sigmoid, mse, focal, .*py:module:name; nearest"),
    "one of several": ("a=softmx, b=mse", {}, "`softmx` is not a loss; expected one of .*; nearest: softmax"),
    "option": ("focal gama=1", {}, "gama=1: the loss focal has no such option; expected weight, gamma,.* nearest: gamma"),
    "not of this loss": ("mse gamma=1", {}, "gamma=1: the loss mse has no such option; expected weight"),
    "value": ("focal gamma=fast", {}, "gamma='fast' is not a number"),
    "range": ("focal alpha=1.5", {}, "alpha=1.5: expected a number from 0 to 1"),
    "weight 0": ("a=softmax weight=0, b=mse", {}, "weight=0.0: expected a number above 0"),
    "weight nan": ("softmax weight=nan", {}, "weight=nan: expected a number above 0"),
    "word": ("focal gamma", {}, "`gamma` is not an option of a loss; expected NAME=VALUE"),
    "empty value": ("focal gamma=", {}, "`gamma=` is not an option of a loss; expected NAME=VALUE"),
    "twice": ("focal gamma=1 gamma=2", {}, "`gamma` is given twice"),
    "two losses": ("a=softmax, a=mse", {}, "the output 'a' has two losses"),
    "comma": ("focal, gamma=2", {}, "options follow their loss after a space, not a comma, as in 'focal gamma=2'"),
    "space": ("a=softmax b=mse", {}, "separated by commas, as in 'a=softmax, b=mse'"),
    "around =": ("a = softmax", {}, "expected OUTPUT=LOSS without spaces around `=`"),
    "no name": ("softmax, b=mse", {}, "`softmax` does not say which output it is for"),
    "name with /": ("a/b=mse, c=mse", {}, "'a/b' is not the name of an output"),
    "empty": ("", {}, "expected one of softmax, .*or a loss for each output"),
    "trailing": ("a=mse,", {}, "or a loss for each output, separated by commas"),
    "quote": ("'a=mse", {}, "no closing quotation"),
    "graph": ("a=graph:loss", {}, "graph:loss is the loss of a whole graph"),
    "graph and flag": ("graph:loss", {"class_weights": "balanced"}, "class_weights=balanced: graph:loss is computed by"),
    "half a name": ("py:own", {}, "'py:own' is not a valid loss; expected py:module:name"),
    "flag of several": ("a=softmax, b=mse", {"label_smoothing": 0.1}, "label_smoothing=0.1: .*'a=softmax label_smoothing=0.1'"),
    "flag twice": ("softmax class_weights=a", {"class_weights": "b"}, "class_weights=b: --loss=.* says it too"),
    "flag of mse": ("mse", {"class_weights": "balanced"}, "class_weights=balanced: the loss mse has no such option"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_in_a_text_is_told(case: str) -> None:
    text, flags, message = WRONG[case]
    with pytest.raises(LossError, match=message):
        parse_losses(text, **flags)


def test_a_phase_names_some_of_the_losses() -> None:
    assert find_losses(TWO, "age", about="phase") == ("age",)
    assert find_losses(TWO, "age, species", about="phase") is None  # all of them
    with pytest.raises(
        LossError, match=r"phase: --loss has no 'spices'; expected some of species and age.*nearest: species"
    ):
        find_losses(TWO, "spices", about="phase")
    with pytest.raises(LossError, match="phase: age is named twice"):
        find_losses(TWO, "age,age", about="phase")
    with pytest.raises(LossError, match="the run has one loss, so there is nothing to choose from; leave out losses="):
        find_losses(parse_losses("softmax"), "softmax", about="phase")


def test_what_outputs_mean_follows_from_the_loss_and_the_labels() -> None:
    assert [output_kind(loss, classes=True) for loss in ("focal", "sigmoid", "py:a:b", "graph:x", "mse")] == [
        "softmax", "sigmoid", "softmax", "softmax", "mse",
    ]  # fmt: skip
    assert [output_kind(loss, classes=False) for loss in ("focal weight=2", "py:a:b")] == ["sigmoid", "mse"]
