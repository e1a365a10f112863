"""Every metric that ``--metrics`` offers has the value of one device where two share an evaluation, and in any batches."""

from __future__ import annotations

import json
import math
from typing import Any

import metrics_program
import numpy as np
import pytest
from workers import run_workers

from engine.training.metric_names import METRICS

# figures whose sums are whole numbers where no example has a weight, and those that keep every example
WHOLE = {"balanced_accuracy", "f1", "precision", "recall", "confusion", "top2", "miou", "dice"}
KEPT = {"auc", "ap50"}


@pytest.fixture(scope="module")
def measured() -> list[Any]:
    (outcome,) = run_workers(["tests/metrics_program.py"], 1, timeout=400)
    assert outcome.code == 0, outcome.stderr[-3000:]
    found: list[Any] = json.loads(outcome.stdout.splitlines()[-1])
    return found


def test_every_metric_is_measured_and_none_is_trivial(measured: list[Any]) -> None:
    seen = {name for _, _, figures, _ in measured for name in figures}
    assert set(METRICS) | {"top2"} <= seen
    for kind, weighted, figures, _ in measured:
        assert set(metrics_program.NAMES[kind].split(",")) <= set(figures)
        for name, (value, *_) in figures.items():
            trivial = isinstance(value, float) and (not math.isfinite(value) or value in (0.0, 1.0))
            assert not trivial or (name == "own accuracy" and kind in ("mse", "centers")), (kind, weighted, name, value)


def test_two_devices_have_the_figures_of_one_to_the_bit(measured: list[Any]) -> None:
    for kind, weighted, figures, _ in measured:
        for name, (two, one, _) in figures.items():
            assert two == one, (kind, weighted, name)


def test_batches_of_another_size_have_the_same_figures(measured: list[Any]) -> None:
    for kind, weighted, figures, _ in measured:
        for name, (_, small, whole) in figures.items():
            if name in KEPT or (name in WHOLE and not weighted):
                assert small == whole, (kind, weighted, name)
            else:
                np.testing.assert_allclose(small, whole, rtol=1e-12, err_msg=f"{kind} {weighted} {name}")


def test_a_step_of_micro_batches_on_two_devices_has_the_metrics_of_one_batch(measured: list[Any]) -> None:
    assert any(metrics for *_, metrics in measured)
    for kind, weighted, _, metrics in measured:
        for name, (two, one, parts) in metrics.items():
            np.testing.assert_allclose([two, parts], one, rtol=1e-12, err_msg=f"{kind} {weighted} {name}")
