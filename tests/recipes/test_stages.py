"""Phases resolved: which rules of rates and decays concern which phase."""

from __future__ import annotations

import pytest

from engine.recipes.config import FinetuneConfig
from engine.recipes.stages import check_stages, requested_phases, resolve_stages, top_blocks_phase
from engine.recipes.task import Task
from engine.training.rates import RateError


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
