"""The figures of an evaluation, against values that were computed by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from engine.training.metrics import (
    as_probabilities,
    average_classes,
    count_confusions,
    find_top,
    measure_adaptive_calibration,
    measure_auc,
    measure_calibration,
    measure_top_accuracy,
    rank_mistakes,
    rate_classes,
    rate_labels,
)


def test_the_confusion_matrix_has_a_row_for_each_true_class() -> None:
    labels, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 0])
    assert count_confusions(labels, predicted, 4).tolist() == [
        [2, 1, 0, 0],
        [0, 1, 1, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
    ]


def test_precision_recall_and_f1_are_those_of_a_table_on_paper() -> None:
    first, second, third = rate_classes(np.array([[2, 1, 0], [0, 1, 1], [1, 0, 0]]))
    assert (first.precision, first.recall, first.f1) == (2 / 3, 2 / 3, 2 / 3)
    assert (second.precision, second.recall, second.f1) == (1 / 2, 1 / 2, 1 / 2)
    assert (third.precision, third.recall, third.f1, third.examples, third.predicted) == (0.0, 0.0, 0.0, 1, 1)
    assert average_classes([first, second, third]) == {
        "precision": pytest.approx(7 / 18, abs=1e-15),
        "recall": pytest.approx(7 / 18, abs=1e-15),
        "f1": pytest.approx(7 / 18, abs=1e-15),
    }


def test_a_class_without_examples_has_no_recall_and_is_in_no_average() -> None:
    never, taken, other = rate_classes(np.array([[0, 0, 0], [0, 0, 0], [0, 1, 1]]))
    assert (never.precision, never.recall, never.f1) == (0.0, None, None)
    assert (taken.precision, taken.recall, taken.f1) == (0.0, None, None)
    assert average_classes([never, taken, other]) == {"precision": 1.0, "recall": 0.5, "f1": 2 / 3}
    assert average_classes([never]) == {"precision": None, "recall": None, "f1": None}


def test_labels_of_which_an_example_may_have_several_are_rated_one_by_one() -> None:
    targets = np.array([[1, 0], [1, 1], [0, 1]], bool)
    chosen = np.array([[1, 1], [0, 1], [0, 0]], bool)
    first, second = rate_labels(targets, chosen)
    assert (first.precision, first.recall, first.f1) == (1.0, 1 / 2, 2 / 3)
    assert (second.precision, second.recall, second.f1) == (1 / 2, 1 / 2, 1 / 2)


def test_the_top_classes_are_in_order_and_ties_go_to_the_lower_number() -> None:
    outputs = np.array([[1.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    assert find_top(outputs, 3).tolist() == [[1, 3, 2], [0, 1, 2]]
    assert find_top(outputs, 1)[:, 0].tolist() == outputs.argmax(axis=1).tolist()
    assert find_top(outputs, 9).shape == (2, 4)
    labels = np.array([3, 2])
    assert [measure_top_accuracy(outputs, labels, k) for k in (1, 2, 3, 4)] == [0.0, 0.5, 1.0, 1.0]


def test_the_area_under_the_curve_counts_pairs_and_half_of_equal_ones() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 6, 40).astype(np.float32), rng.random(40) < 0.4
    pairs = itertools.product(scores[positive], scores[~positive])
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]
    assert measure_auc(scores, positive) == sum(won) / len(won)
    assert measure_auc(np.array([1.0, 2.0]), np.array([False, True])) == 1.0
    assert measure_auc(np.array([2.0, 1.0]), np.array([False, True])) == 0.0
    assert measure_auc(np.zeros(4), np.array([True, False, True, False])) == 0.5
    assert measure_auc(np.zeros(4), np.ones(4, bool)) is None


def test_the_calibration_error_is_the_weighted_gap_of_its_bins() -> None:
    confidence = np.array([0.5, 0.5, 0.75, 1.0])  # 0.5 lies in (0.25, 0.5], 0.75 in (0.5, 0.75]
    right = np.array([True, True, False, True])
    assert measure_calibration(confidence, right, bins=4) == (2 * 0.5 + 0.75 + 0.0) / 4
    assert measure_calibration(np.array([0.0, 1.0]), np.array([False, True])) == 0.0
    assert measure_calibration(np.array([1.0]), np.array([False])) == 1.0


def test_the_adaptive_calibration_error_has_bins_of_equal_numbers() -> None:
    confidence = np.array([0.99, 0.6, 0.98, 0.7, 0.97])  # sorted: 0.6 right, 0.7 wrong, 0.97 | 0.98, 0.99
    right = np.array([True, True, False, False, True])
    by_hand = (abs(0.4 - 0.7 + 0.03) + abs(-0.98 + 0.01)) / 5
    assert abs(measure_adaptive_calibration(confidence, right, bins=2) - by_hand) < 1e-15
    assert measure_adaptive_calibration(np.array([0.5]), np.array([True])) == 0.5  # fewer examples than bins


def test_mistakes_are_ranked_by_confidence() -> None:
    found = rank_mistakes(np.array([0.5, 0.9, 0.7, 0.9, 0.7]), np.array([False, True, False, False, False]))
    assert found.tolist() == [3, 2, 4, 0]


def test_outputs_become_what_the_loss_makes_of_them() -> None:
    three = as_probabilities(np.log(np.array([[1.0, 2.0, 5.0]])), "softmax")
    np.testing.assert_allclose(three, [[0.125, 0.25, 0.625]], rtol=1e-15)
    huge = as_probabilities(np.array([[1000.0, 0.0]], np.float32), "softmax")
    assert huge.tolist() == [[1.0, 0.0]]
    one = as_probabilities(np.array([[np.log(3.0)], [-800.0], [800.0]]), "sigmoid")
    np.testing.assert_allclose(one, [[0.25, 0.75], [1.0, 0.0], [0.0, 1.0]], atol=1e-15)
    several = as_probabilities(np.array([[0.0, np.log(3.0)]]), "sigmoid")
    np.testing.assert_allclose(several, [[0.5, 0.75]], rtol=1e-15)
    assert as_probabilities(np.array([[2.5, -1.0]], np.float32), "mse").tolist() == [[2.5, -1.0]]
