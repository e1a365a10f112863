"""Phases resolved: which rules of rates and decays concern which phase."""

from __future__ import annotations

from typing import Any

import pytest

from engine import InputError
from engine.recipes.config import FinetuneConfig
from engine.recipes.stages import check_stages, requested_phases, resolve_stages, top_blocks_phase
from engine.recipes.task import Task
from engine.training.loop import Stage
from engine.training.optimizers import Ftrl, RMSProp
from engine.training.rates import RateError
from engine.training.schedules import ScheduleError


@pytest.fixture(scope="module")
def task() -> Task:
    return Task.open(
        data="fashion_mnist_mini", model="vit:mini,depth=2", weights=None, train_examples=64, batch_size=16
    )


def test_a_rule_of_the_run_concerns_the_phases_in_which_it_decides_something(task: Task) -> None:
    config = FinetuneConfig(
        model="vit:mini,depth=2", steps=8, rates="@head=1e-3 @blocks=1e-4", decays="@blocks=0.2", weight_decay=0.1
    )
    head, upper = resolve_stages(config, task, requested_phases(config, task))
    assert (str(head.rates), head.optimizer.decays) == ("@head=0.001", None)
    assert (str(upper.rates), str(upper.optimizer.decays)) == ("@head=0.001 @blocks[:]=0.0001", "@blocks[:]=0.2")
    plain = resolve_stages(FinetuneConfig(steps=8), task, requested_phases(FinetuneConfig(steps=8), task))
    assert {(stage.rates, stage.optimizer.decays) for stage in plain} == {(None, None)}


def test_a_plan_that_decides_what_trains_is_checked_when_it_has_decided(task: Task) -> None:
    config = FinetuneConfig(plan="depth", memory_budget="4GB", steps=8, rates="@blocks[0]=1e-4")
    two, one = ([*resolve_stages(config, task, [top_blocks_phase(config, blocks)])] for blocks in (2, 1))
    assert (str(two[0].rates), one[0].rates) == ("@blocks[0:1]=0.0001", None)
    check_stages(config, task, two)
    with pytest.raises(RateError, match="matches nothing that trains; expected variables of blocks/1, head"):
        check_stages(config, task, one)


def stages(task: Task, **fields: Any) -> list[Stage]:
    config = FinetuneConfig(model="vit:mini,depth=2", optimizer="ftrl", **fields)
    return resolve_stages(config, task, requested_phases(config, task))


ONE_RATE = ("name=low train=@head steps=2", "name=high train='@head @blocks[-1:]' steps=2")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": "@head"}, "phase 'train': .* so schedule=cosine would rescale .*; give --schedule=constant"),
        ({"train": "@head", "schedule": "constant,warmup=3"}, "so schedule=constant,warmup=3 would rescale"),
        ({"schedule": "constant", "steps": 8}, "a rate of 0.002 after 0.004 .phase 'head'. would rescale head/kernel"),
        (
            {"schedule": "constant", "phase": (ONE_RATE[0], f"{ONE_RATE[1]} rates=@head=1e-4")},
            "a rate of 0.0001 after 0.001 .phase 'low'. would rescale head/kernel",
        ),
    ],
)
def test_an_optimizer_that_rescales_variables_with_the_rate_needs_a_constant_one(
    task: Task, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ScheduleError, match=message):
        stages(task, **fields)


def test_phases_in_which_each_variable_keeps_its_rate_may_use_such_an_optimizer(task: Task) -> None:
    found = stages(task, schedule="constant", phase=ONE_RATE, rates="@blocks=1e-3", layer_decay=0.5)
    assert [stage.optimizer for stage in found] == [Ftrl(layer_decay=0.5)] * 2
    assert FinetuneConfig(optimizer="rmsprop,momentum=0.9", epsilon=1.0).make_optimizer() == RMSProp(
        momentum=0.9, epsilon=1.0
    )
    with pytest.raises(InputError, match=r"`momentum=0\.9`: momentum is given twice"):
        FinetuneConfig(optimizer="rmsprop,momentum=0.9", momentum=0.5)
