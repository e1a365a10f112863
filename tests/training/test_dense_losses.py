"""Losses and figures of a class for each pixel, against numpy and by hand."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine.data.part import IGNORED
from engine.training import dense_losses
from engine.training.dense_metrics import Overlap, rate_overlaps
from engine.training.loss_kinds import KINDS
from engine.training.loss_names import LossError, output_kind, parse_losses
from engine.training.losses import supervised_loss, weighted_sums
from engine.training.metrics import count_confusions


def make(seed: int = 0, count: int = 3, size: int = 5, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels, of which some are ignored, and all of the last example."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((count, size, size, classes))
    labels = rng.integers(0, classes, (count, size, size)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.2] = IGNORED
    labels[-1] = IGNORED
    return logits, labels


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(raised / raised.sum(-1, keepdims=True))


@pytest.mark.parametrize("class_weights", [None, (1.0, 0.5, 3.0, 0.0)])
def test_cross_entropy_is_the_weighted_mean_over_all_pixels(class_weights: Any) -> None:
    logits, labels = make()
    values, weights = dense_losses.compute_cross_entropy(
        tf.constant(logits), tf.constant(labels), class_weights=class_weights
    )
    counted = labels != IGNORED
    each = -np.log(softmax(logits)[counted][np.arange(counted.sum()), labels[counted]])
    own = np.ones(4) if class_weights is None else np.array(class_weights)
    expected = np.sum(each * own[labels[counted]]) / np.sum(own[labels[counted]])
    assert np.isclose(np.sum(values * weights) / np.sum(weights), expected, rtol=1e-12)
    assert np.allclose(weights, np.where(counted, own[np.where(counted, labels, 0)], 0).sum((1, 2)) / 25)
    assert float(values[-1]) == float(weights[-1]) == 0


def test_dice_by_hand() -> None:
    labels = np.array([[[0, 0], [1, IGNORED]]], np.uint8)
    logits = np.log(np.array([[[[0.5, 0.5], [1.0, 1e-30]], [[0.25, 0.75], [0.5, 0.5]]]]))
    values, weights = dense_losses.compute_dice(tf.constant(logits), tf.constant(labels))
    background, thing = 2 * 1.5 / (1.75 + 2), 2 * 0.75 / (1.25 + 1)
    assert np.isclose(values[0], 1 - (background + thing) / 2, atol=1e-6)
    assert weights.numpy().tolist() == [1.0]
    weighed, _ = dense_losses.compute_dice(tf.constant(logits), tf.constant(labels), class_weights=(1.0, 3.0))
    assert np.isclose(weighed[0], 1 - (background + 3 * thing) / 4, atol=1e-6)


def test_dice_of_a_class_that_is_absent_does_not_count_and_of_no_pixel_weighs_nothing() -> None:
    logits, labels = make()
    labels[0] = 2
    values, weights = dense_losses.compute_dice(tf.constant(logits), tf.constant(labels))
    share = softmax(logits[0])[..., 2].sum()
    assert np.isclose(values[0], 1 - 2 * share / (share + 25), atol=1e-6)
    assert weights.numpy().tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("kind", ["softmax", "dice", "softmax+dice"])
def test_gradients_are_finite_and_pass_by_what_is_ignored(kind: str) -> None:
    logits, labels = make()
    logits[0, 0, 0] = [1e4, -1e4, 0, 0]
    given = tf.Variable(logits)
    with tf.GradientTape() as tape:
        found = KINDS[kind](given, tf.constant(labels), tf.constant([1.0, 0.5, 2.0]))
        total = tf.reduce_sum(found.values * tf.cast(found.weights, tf.float64))
    gradient = tape.gradient(total, given).numpy()
    assert np.isfinite(gradient).all()
    assert (gradient[labels == IGNORED] == 0).all()
    assert (np.abs(gradient[labels != IGNORED]).sum(-1) > 0).mean() > 0.9


def test_the_sum_of_both_is_their_sum() -> None:
    logits, labels = (tf.constant(each) for each in make())
    parts = [KINDS[kind](logits, labels, None) for kind in ("softmax", "dice", "softmax+dice")]
    assert np.allclose(parts[2].values, parts[0].values + parts[1].values)
    assert np.allclose(parts[2].weights, parts[0].weights)


def test_accuracy_is_that_of_pixels_and_examples_of_weight_0_do_not_count() -> None:
    logits, labels = make(count=4)
    found = KINDS["softmax"](tf.constant(logits), tf.constant(labels), tf.constant([1.0, 0.0, 1.0, 1.0]))
    total, mass = weighted_sums(found.metrics)["accuracy"]
    counted = labels != IGNORED
    counted[1] = False
    assert np.isclose(total / mass, (logits.argmax(-1) == labels)[counted].mean(), rtol=1e-12)


@pytest.mark.parametrize(
    ("outputs", "labels", "kind", "words"),
    [
        ((2, 4), (2, 8, 8), "softmax", "the labels are masks, (2, 8, 8), but the model's outputs have shape (2, 4)"),
        ((2, 4, 4, 3), (2, 8, 8), "softmax", "both must have one height and width"),
        ((2, 8, 8, 1), (2, 8, 8), "dice", "expected [B, height, width, classes >= 2]"),
        ((2, 4), (2,), "dice", "it is for masks, a class for each pixel"),
        ((2, 8, 8, 3), (2,), "softmax", "expected [B, classes >= 2]"),
    ],
)
def test_shapes_that_do_not_fit_are_told(outputs: Any, labels: Any, kind: str, words: str) -> None:
    with pytest.raises(LossError) as caught:
        KINDS[kind](tf.zeros(outputs), tf.zeros(labels, tf.uint8), None)
    assert words in str(caught.value)


def test_the_names_of_the_losses() -> None:
    assert output_kind("dice", classes=True) == output_kind("softmax+dice", classes=True) == "softmax"
    assert parse_losses("softmax+dice", label_smoothing=0.1)[0].options == {"label_smoothing": 0.1}
    with pytest.raises(LossError, match="dice has no classes to smooth over"):
        parse_losses("dice", label_smoothing=0.1)


# ---- figures


def measure(
    names: list[str], logits: np.ndarray, labels: np.ndarray, sizes: list[int], weights: Any = None
) -> list[float]:
    """The figures of examples in batches of these sizes."""
    found = []
    for name in names:
        metric, sums, start = Overlap(name), 0.0, 0
        for size in sizes:
            own = None if weights is None else tf.constant(weights[start : start + size])
            some = slice(start, start + size)
            sums = (
                sums + metric.measure(tf.constant(logits[some]), tf.constant(labels[some]), own)["confusions"].numpy()
            )
            start += size
        found.append(metric.finalise({"confusions": np.asarray(sums)}))
    return found


def test_overlaps_are_those_of_all_pixels_however_they_are_divided() -> None:
    logits, labels = make(count=7, classes=3)
    labels[labels == 2] = 1  # class 2 is predicted, but never there
    counted = labels != IGNORED
    truth, chosen = labels[counted].astype(int), logits.argmax(-1)[counted]
    unions, dices = [], []
    for number in range(3):
        both, either = ((truth == number) & (chosen == number)).sum(), ((truth == number) | (chosen == number)).sum()
        unions.append(both / either)
        dices.append(2 * both / ((truth == number).sum() + (chosen == number).sum()))
    for sizes in ([7], [3, 4], [1] * 7):
        miou, dice = measure(["miou", "dice"], logits, labels, sizes)
        assert abs(miou - np.mean(unions)) < 1e-12
        assert abs(dice - np.mean(dices)) < 1e-12
    if importlib.util.find_spec("sklearn"):
        from sklearn.metrics import f1_score, jaccard_score

        assert abs(miou - jaccard_score(truth, chosen, average="macro")) < 1e-12
        assert abs(dice - f1_score(truth, chosen, average="macro")) < 1e-12


def test_a_class_that_nobody_has_or_predicts_has_no_overlap() -> None:
    confusions = np.array([[2, 1, 0], [0, 1, 0], [0, 0, 0]])
    assert rate_overlaps(confusions)[0] == [2 / 3, 1 / 2, None]
    assert Overlap("miou").finalise({"confusions": confusions}) == (2 / 3 + 1 / 2) / 2
    assert np.isnan(Overlap("dice").finalise({"confusions": np.zeros((2, 2))}))


def test_examples_of_weight_0_leave_no_trace_and_images_can_have_one_class() -> None:
    logits, labels = make(count=4, classes=3)
    some = measure(["miou"], logits, labels, [4], weights=[1.0, 0.0, 2.0, 1.0])
    assert some == measure(["miou"], logits[[0, 2, 3]], labels[[0, 2, 3]], [3])
    one = measure(["dice"], logits[:, 0, 0], np.array([0, 1, 2, 2]), [4])
    confusions = count_confusions(np.array([0, 1, 2, 2]), logits[:, 0, 0].argmax(-1), 3)
    assert one == [Overlap("dice").finalise({"confusions": confusions})]


def test_a_supervised_loss_takes_masks() -> None:
    logits, labels = (tf.constant(each) for each in make())
    loss_fn = supervised_loss(lambda images: logits, "softmax+dice", metrics=[Overlap("miou")])
    loss = loss_fn({"image": tf.zeros([3, 5, 5, 3]), "label": labels}, training=False, seeds=None)
    assert set(loss.terms) == {"softmax+dice"}
    assert set(loss.measured) == {"miou"}
