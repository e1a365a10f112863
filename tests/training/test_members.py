"""Several runs of one network: whose values are where, what they share, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine import SGD, AdamW, TrainStep, select
from engine.selection.variables import name_variables
from engine.training import losses
from engine.training.loop import Loop, LoopError, Stage, State, StepRequest, Steps
from engine.training.losses import Loss
from engine.training.members import Members
from engine.training.microbatch import StepError
from engine.training.optimizers import Optimizer
from engine.training.phases import Evaluation, Phase
from engine.training.schedules import parse
from engine.training.step_result import NonFiniteError, StepResult

SHAPES = {"stem/w": (3, 2), "body/w": (2, 2), "head/w": (2, 1)}


class Net:
    """Three products, and a step of their squared error."""

    def __init__(self, optimizer: Optimizer = SGD(), *, noise: bool = False, **settings: Any) -> None:  # noqa: B008
        rng = np.random.default_rng(0)
        self.model = {path: tf.Variable(rng.standard_normal(shape, np.float32)) for path, shape in SHAPES.items()}
        self.variables, self.optimizer = name_variables(self.model), optimizer

        def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
            x = batch["x"] + (tf.random.normal(tf.shape(batch["x"]), seed=3) if noise else 0.0)
            for variable in self.model.values():
                x = tf.matmul(x, variable)
            return Loss({"mse": (tf.square(x[:, 0] - batch["y"]), None)})

        self.step = TrainStep(loss_fn, optimizer, **settings)
        self.members = Members(self.variables, self.step)

    def request(self, text: str, number: int = 0, *, rate: float = 0.01, scale: float = 1.0) -> StepRequest:
        rng = np.random.default_rng(number)
        batch = {"x": scale * rng.standard_normal((4, 3)).astype(np.float32), "y": rng.random(4, np.float32)}
        stage = Stage(
            Phase(name="p", train=text, steps=1), select(self.variables, text), self.optimizer, parse("constant"), rate
        )
        return StepRequest(stage, batch, rate)

    def values(self) -> dict[str, np.ndarray]:
        return {path: variable.numpy() for path, variable in self.model.items()}


def same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(one[path].tobytes() == other[path].tobytes() for path in one)


def test_each_run_keeps_its_values_whoever_is_active_and_leaving_restores_the_network() -> None:
    net, paths = Net(), tuple(SHAPES)
    first, start = net.values(), {"head/w": np.ones((2, 1), np.float32)}
    one, two, three = net.members.add(start), net.members.add(), net.members.add(start)
    assert same(one.values(paths), first | start)
    net.members.train({one: net.request("@all"), two: net.request("head/w")})  # of two kinds: in turn
    net.members.train({one: net.request("@all", 1), three: net.request("@all", 1)})  # in one function
    held = {member: member.values(paths) for member in (one, two, three)}
    assert len({value["stem/w"].tobytes() for value in held.values()}) == 3
    for member in (two, one, three, one):
        member.activate()
        assert same(net.values(), held[member])
        assert all(same(other.values(paths), held[other]) for other in held)
    net.model["head/w"].assign(start["head/w"])  # what the active run is given, it keeps
    two.activate()
    assert same(one.values(paths), held[one] | start)
    net.members.leave()
    assert same(net.values(), first)
    one.close()
    with pytest.raises(StepError, match="it is closed"):
        one.activate()
    net.members.train({two: net.request("@all"), three: net.request("@all")})


def test_a_run_that_trains_less_does_not_see_what_an_active_one_has_trained_below() -> None:
    net = Net()
    full, *heads = (net.members.add() for _ in range(3))
    net.members.train({full: net.request("@all", rate=0.5)})
    net.members.train({head: net.request("head/w") for head in heads})
    alone = Net()
    request = alone.request("head/w")
    alone.step(request.stage.selection, request.batch, **request.arguments())
    assert all(same(head.values(SHAPES), alone.values()) for head in heads)


def test_a_pull_to_the_start_begins_at_the_values_of_each_run() -> None:
    optimizer = AdamW(weight_decay=0.1, decay_toward="start")
    net, starts = Net(optimizer), [{"head/w": np.full((2, 1), value, np.float32)} for value in (1.0, -1.0)]
    pair = [net.members.add(start) for start in starts]
    for number in range(3):
        net.members.train({member: net.request("head/w", number) for member in pair})
    for member, start in zip(pair, starts, strict=True):
        alone = Net(optimizer)
        alone.model["head/w"].assign(start["head/w"])
        for number in range(3):
            request = alone.request("head/w", number)
            alone.step(request.stage.selection, request.batch, **request.arguments())
        assert same(member.values(SHAPES), alone.values())
        assert same(dict(member.step.arrays()), dict(alone.step.arrays()))


def test_runs_share_traces_also_of_many_selections_and_nothing_else() -> None:
    net = Net(SGD(), nonfinite="skip")
    texts = ["stem/w", "body/w", "head/w", "stem/w body/w", "stem/w head/w", "body/w head/w", "@all"]
    pairs = {text: [net.members.add(seed=7), net.members.add()] for text in texts}
    for _ in range(2):
        net.members.train({member: net.request(text) for text, pair in pairs.items() for member in pair})
    steps = [member.step for pair in pairs.values() for member in pair]
    assert sum(step.traces for step in steps) == len(texts)
    assert [step.steps for step in steps] == [2] * len(steps)
    assert (net.step.steps, net.step.traces, steps[0].seed, steps[1].seed) == (0, 0, 7, 0)
    assert len({id(step.slots) for step in steps}) == len(steps)


def test_of_several_the_one_that_is_not_finite_gets_the_error_that_it_gets_alone() -> None:
    net = Net()
    bad, good = net.members.add(), net.members.add()
    taken = net.members.train({bad: net.request("@all", scale=1e30), good: net.request("@all")})
    alone, request = Net(), net.request("@all", scale=1e30)
    with pytest.raises(NonFiniteError) as expected:
        alone.step(select(alone.variables, "@all"), request.batch, learning_rate=0.01)
    assert str(taken[bad]) == str(expected.value)
    assert "3 of 3 gradients are not finite: stem/w" in str(taken[bad])
    assert isinstance(taken[good], StepResult)
    assert same(bad.values(SHAPES), alone.values())
    assert not same(good.values(SHAPES), alone.values())


def test_what_a_run_may_begin_with() -> None:
    net = Net()
    for start, message in (
        ({"head/v": np.ones((2, 1), np.float32)}, "'head/v' is not a variable of the network; nearest: head/w"),
        ({"head/w": np.ones((1, 2), np.float32)}, r"head/w has shape \[1, 2\] .*; expected \[2, 1\] and float32"),
        ({"head/w": np.ones((2, 1), np.float64)}, "dtype float64; expected .* float32"),
    ):
        with pytest.raises(StepError, match=message):
            net.members.add(start)
    norm = keras.layers.Normalization(mean=None)
    norm.adapt(np.arange(6.0).reshape(3, 2))
    images = keras.Input((2,))
    model = keras.Model(images, keras.layers.Dense(2, name="head")(norm(images)))
    members = Members(name_variables(model), TrainStep(losses.supervised_loss(model), SGD()))
    (mean,) = [entry for entry in name_variables(model) if entry.path.endswith("/mean")]
    members.add({mean.path: mean.variable.numpy()})
    with pytest.raises(StepError, match="belongs to a Normalization layer"):
        members.add({mean.path: mean.variable.numpy() + 1})


def test_a_random_state_that_all_runs_share_is_refused() -> None:
    net = Net(noise=True)
    with pytest.raises(
        StepError, match=r"a state that all runs of this process share \(.*Random.*a process for each run"
    ):
        net.members.train({net.members.add(): net.request("@all")})


# --- the loop as a generator


def course(net: Net, closed: list[str], **more: Any) -> Steps:
    request = net.request("head/w")

    def batches(stage: Stage, start: int, stop: int) -> Any:
        try:
            for _ in range(start, stop):
                yield request.batch
        finally:
            closed.append("batches")

    stage = request.stage
    stages = [Stage(Phase(name="p", train="head/w", steps=4), stage.selection, SGD(), parse("constant"), 0.01)]
    given: dict[str, Any] = {"per_epoch": 4, "eval_every": 2, "batches": batches}
    given["evaluate"] = lambda stage, steps: Evaluation(steps, "p", 1.0 / (1 + steps), None, None)
    return Loop(step=net.step, stages=stages, **given, **more).course(State())


def test_a_course_asks_for_steps_and_says_before_it_reads() -> None:
    net = Net()
    closed: list[str] = []
    said: list[str] = []
    run = course(
        net, closed, before_reading=lambda: said.append("reads"), actions=[lambda event: said.append(event.kind)]
    )
    request, count = next(run), 0
    while count < 4:
        result, count = net.step(request.stage.selection, request.batch, **request.arguments()), count + 1
        if count < 4:
            request = run.send(result)
    with pytest.raises(StopIteration) as end:
        run.send(result)
    assert end.value.value.reason == "done"
    steps = ["step", "checkpoint", "step"]
    last = ["reads", "evaluation", "reads", "phase_end", "checkpoint"]
    assert said == ["reads", "phase", "reads", "evaluation", *steps, "reads", "evaluation", "checkpoint", *steps, *last]
    assert closed == ["batches"]


def test_a_course_that_is_closed_or_gets_an_error_closes_its_batches() -> None:
    net = Net()
    closed: list[str] = []
    run = course(net, closed)
    next(run)
    run.close()
    assert closed == ["batches"]
    run = course(net, closed)
    next(run)
    with pytest.raises(LoopError, match=r"it is huge \(phase 'p'\): lower the learning rate \(now 0.01\)"):
        run.throw(NonFiniteError("it is huge"))
    assert closed == ["batches"] * 2
