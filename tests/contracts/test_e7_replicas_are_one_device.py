"""E7: several replicas, or several workers, take the step that one device takes with the same global batch."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from e7_program import Case
from workers import run_workers

GRADIENT, WEIGHTS = 5e-6, 1e-10  # the contract: float32 first step; float64 after 10 steps
PRODUCT = [
    Case(*values)
    for values in itertools.product(
        ("even", "uneven", "few"), (True, False), (1, 2), (1, 3), ("adamw", "momentum"), (False, True)
    )
]
QUICK = (
    Case("uneven", True, 2, 3, "adamw", model="dense"),
    Case("few", True, 2, 3, "momentum", model="dense"),
    Case("uneven", True, 2, 3, "adamw", cached=True, model="dense"),
)


NORMS = (
    Case("uneven", True, 2, 1, "adamw", model="cnn"),
    Case("uneven", False, 1, 1, "momentum", model="keras"),
    Case("few", False, 1, 1, "momentum", model="keras"),
)
TOGETHER = (QUICK[0], NORMS[2])  # one process for both: its start takes as long as a case


@functools.cache
def measure(kind: str, cases: tuple[Case, ...]) -> list[dict[str, Any]]:
    """What each worker found, case by case; ``kind`` is "mirrored:N" or "multiworker:N"."""
    name, _, count = kind.partition(":")
    workers = int(count) if name == "multiworker" else 1
    words = ["tests/e7_program.py", name if name == "multiworker" else kind, json.dumps(cases)]
    found = run_workers(words, workers, timeout=1500)
    assert [outcome.code for outcome in found] == [0] * workers, [outcome.stderr[-2000:] for outcome in found]
    rows = [json.loads(each.stdout.splitlines()[-1]) for each in found]
    for each in rows:
        check_verdict(each["judged"])
    return [dict(row, case=case) for each in rows for row, case in zip(each["cases"], cases, strict=True)]


def check_verdict(judged: dict[str, Any]) -> None:
    """One loss scale, one verdict and one skip for all; any worker's wish to stop is known to all."""
    assert judged["skipped"] == [False, True, True], judged
    assert judged["scales"][0] == judged["scales"][1] == 2 * judged["scales"][2], judged
    assert judged["same"], judged
    assert judged["differing"] == 0, judged
    assert judged["stopping"] == [False, True], judged
    assert "gradients are not finite: " in judged["message"], judged


def check(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        assert row["gradient_float32"] < GRADIENT, row
        assert row["scalars_float32"] < 1e-6, row
        assert row["weights_float64"] < WEIGHTS, row
        assert row["scalars_float64"] < WEIGHTS, row
        assert row["differing"] == 0, row


def test_two_devices_are_one() -> None:
    """With weights, two terms, dropout and augmentation by seeds, clipping, decay and a regulariser."""
    check(measure("mirrored:2", TOGETHER)[:1])


def test_synchronised_batch_norm_is_that_of_the_whole_batch_where_a_replica_has_no_example() -> None:
    check(measure("mirrored:2", TOGETHER)[1:])


@pytest.mark.slow
def test_two_devices_are_one_cached_too_and_where_one_has_no_example() -> None:
    check(measure("mirrored:2", QUICK))


@pytest.mark.slow  # in `make test`, two workers make a whole run: tests/recipes/test_finetune_distributed.py
def test_two_workers_are_one_device() -> None:
    check(measure("multiworker:2", QUICK))


@pytest.mark.slow
def test_three_devices_are_one() -> None:
    check(measure("mirrored:3", QUICK))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mirrored:2", "multiworker:2"])
def test_synchronised_batch_norm_is_that_of_the_whole_batch(kind: str) -> None:
    """Of this project's layer and of Keras', with moving statistics."""
    check(measure(kind, NORMS))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mirrored:2", "multiworker:2"])
def test_a_vit_with_drop_path_is_trained_as_on_one_device(kind: str) -> None:
    check(measure(kind, (Case("uneven", True, 2, 3, "adamw"),)))


@pytest.mark.slow
def test_a_step_compiled_by_xla_is_shared_too() -> None:
    check(measure("mirrored:2", tuple(case._replace(jit_compile="on") for case in QUICK)))


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("kind", ["mirrored:2", "mirrored:3", "multiworker:2"])
def test_replicas_are_one_device_in_the_whole_product(kind: str, cached: bool) -> None:
    cases = tuple(case for case in PRODUCT if case.cached == cached)
    assert len(cases) == 48
    check(measure(kind, cases))
