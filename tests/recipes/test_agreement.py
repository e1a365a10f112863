"""What workers compare before the first step and at each checkpoint, and how what differs is named."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from stand_ins import made_by_all, work_as

from engine import FinetuneConfig, Loss, TrainStep, host, select
from engine.distribution.distribution import ALONE, DisagreementError, Distribution
from engine.recipes import agreement
from engine.recipes.agreement import MAY_DIFFER, DriftError, agree_on_start, agree_on_values, check_drift
from engine.recipes.listener import Listener, SilentListener
from engine.selection.variables import name_variables
from engine.training.checkpoint import Checkpoint
from engine.training.optimizers import Momentum


class Trained:
    """A model of two variables with a slot and an average; ``planted`` changes a bit of one of them."""

    def __init__(self, planted: str | None = None) -> None:
        model = {"stem/w": tf.Variable([1.0, 2.0]), "head/w": tf.Variable([3.0, 4.0])}

        self.variables, selection = name_variables(model), select(model, "head/.*")
        self.step = TrainStep(lambda batch, *, training, seeds: Loss({}), Momentum(), ema=0.9)
        self.step.slots.fit(selection, Momentum())
        assert self.step.averages is not None
        self.step.averages.fit(selection)
        (slot,) = self.step.slots.values["head/w"].values()
        named = {**model, "slot": slot, "average": self.step.averages.values["head/w"]}
        if planted is not None:
            value = named[planted].numpy()
            named[planted].assign(np.nextafter(value, np.float32(10)))


def drift(distribution: Distribution, planted: str, workers: set[int]) -> None:
    made = Trained(planted if distribution.worker in workers else None)
    check_drift(distribution, made.variables, made.step)


@pytest.mark.parametrize(
    ("planted", "name"),
    [
        ("stem/w", "stem/w"),
        ("head/w", "head/w"),
        ("slot", f"optimizer/head/w/{Momentum().slots[0]}"),
        ("average", "ema/head/w"),
    ],
)
def test_one_bit_on_one_worker_is_found_and_named(planted: str, name: str) -> None:
    found = work_as(3, lambda d: drift(d, planted, {2}))
    assert all(isinstance(error, DriftError) for error in found)
    assert {str(error) for error in found} == {
        f"workers have drifted apart, in {name} on worker 2 (127.0.0.1:1002) compared with the others; the last checkpoint "
        "stands"
    }


def test_the_chief_is_right_between_two_and_the_majority_among_three() -> None:
    (error, _) = work_as(2, lambda d: drift(d, "head/w", {0}))
    assert "head/w on worker 1 (127.0.0.1:1001) compared with worker 0 (127.0.0.1:1000)" in str(error)
    (error, *_) = work_as(3, lambda d: drift(d, "head/w", {0}))
    assert "head/w on worker 0 (127.0.0.1:1000) compared with the others" in str(error)


def test_nothing_is_said_where_nothing_differs() -> None:
    made_by_all(3, lambda d: drift(d, "head/w", set()))
    drift(ALONE, "head/w", {0})


def test_values_that_differ_before_the_first_step_are_refused_by_name() -> None:
    def agree(distribution: Distribution) -> None:
        made = Trained("stem/w" if distribution.worker else None)
        agree_on_values(distribution, made.variables, made.step)

    found = work_as(2, agree)
    assert all(isinstance(error, DisagreementError) for error in found)
    assert "value (SHA-256): stem/w is" in str(found[0]) == str(found[1])
    assert "head/w" not in str(found[0])


def test_other_flags_are_refused_by_name_with_both_values() -> None:
    def agree(distribution: Distribution) -> None:
        agree_on_start(distribution, FinetuneConfig(batch_size=32 + distribution.worker, seed=3), None)

    found = work_as(2, agree)
    assert all(isinstance(error, DisagreementError) for error in found)
    assert "flags: --batch_size is 32 on worker 0 (127.0.0.1:1000) and 33 on worker 1 (127.0.0.1:1001)" in str(found[0])
    assert "seed" not in str(found[0])


def test_places_and_devices_may_differ() -> None:
    names = {field.name for field in dataclasses.fields(FinetuneConfig)}
    assert names > MAY_DIFFER

    def agree(distribution: Distribution) -> None:
        n = distribution.worker
        config = FinetuneConfig(out=f"runs/{n}", cache_dir=f"caches/{n}", image_cache=f"{n}GiB", device=f"gpu:{n}")
        agree_on_start(distribution, config, None)

    made_by_all(2, agree)


@pytest.mark.parametrize(
    ("resumed", "words"),
    [
        ([None, "step-00000004.npz"], "checkpoint is null on worker 0"),
        (["step-00000004.npz", "step-00000002.npz"], "step-00000004.npz"),
    ],
)
def test_workers_that_would_resume_otherwise_are_refused(resumed: list[str | None], words: str) -> None:
    def agree(distribution: Distribution) -> None:
        name = resumed[distribution.worker]
        found = None if name is None else Checkpoint(pathlib.Path("run") / name, 4, {"settings": {}}, {})
        agree_on_start(distribution, FinetuneConfig(), found)

    found = work_as(2, agree)
    assert all(isinstance(error, DisagreementError) for error in found)
    assert words in str(found[0])


@pytest.mark.parametrize("what", ["library", "code"])
def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    versions, turn = host.versions(), iter(range(10))

    def changed() -> Any:
        return versions | {"keras": f"3.{next(turn)}"} if what == "library" else f"{next(turn)}" * 64

    if what == "library":
        monkeypatch.setattr(host, "versions", changed)
    else:
        monkeypatch.setattr(agreement, "_digest_code", changed)
    found = work_as(2, lambda d: agree_on_start(d, FinetuneConfig(), None))
    assert all(isinstance(error, DisagreementError) for error in found)
    assert ("version: keras is 3." if what == "library" else "version: the files of Frostline (SHA-256) is") in str(
        found[0]
    )


def test_a_silent_listener_says_nothing_and_still_stops() -> None:
    class Loud(Listener):
        stopped_by = None

        def should_stop(self) -> bool:
            self.stopped_by = "SIGTERM"
            return True

        def say(self, line: str) -> None:
            raise AssertionError(line)

    silent = SilentListener(Loud())
    silent.say("nothing")
    assert (silent.should_stop(), silent.stopped_by) == (True, "SIGTERM")
