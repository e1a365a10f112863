"""TrainStep: what it traces, watches, updates and refuses."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, select
from engine.models import build_model
from engine.training import losses, optimizers, traces
from engine.training.evaluation import Evaluator
from engine.training.losses import Loss
from engine.training.step import StepError


def vit(options: str = "depth=3") -> Any:
    return build_model(f"vit:mini,{options}", image_shape=(8, 8, 1), outputs=4).network


def batch(size: int = 6, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"image": rng.standard_normal((size, 8, 8, 1), np.float32), "label": rng.integers(0, 4, size)}


def test_going_back_to_an_old_selection_traces_nothing() -> None:
    model = vit("depth=1")
    step = TrainStep(losses.supervised_loss(model), optimizers.AdamW())
    head, blocks = select(model, "@head"), select(model, "@head @blocks[-1:]")
    for selection in (head, blocks, head, select(model, "head/.*"), blocks):
        step(selection, batch(), learning_rate=1e-3)
    assert step.traces == 2
    assert step.steps == 5


SIX = ("@all", "@blocks @head", "@norm", "norm/.* @head", "@bias", "head/.* norm/beta")


def test_only_the_last_selections_keep_their_traces_and_a_step_that_is_dropped_frees_all() -> None:
    model = vit("depth=1")  # its normalisations have gradients of their own, which TensorFlow never forgets
    step = TrainStep(losses.supervised_loss(model), optimizers.SGD())
    graphs: list[Any] = []
    for text in SIX:
        found = step.micro_batch(select(model, text), batch())
        graphs.append(weakref.ref(found.graph))
        del found
    gc.collect()
    assert [graph() is not None for graph in graphs] == [False] * 2 + [True] * traces.KEPT
    step(select(model, "@head"), batch(), learning_rate=1e-3)
    graphs += [weakref.ref(value.graph) for value in step._traces.of(select(model, "@head"))]
    del step
    gc.collect()
    assert not [graph for graph in graphs if graph() is not None]


def test_an_evaluator_keeps_the_traces_of_the_last_selections() -> None:
    model = vit("depth=1")
    evaluator = Evaluator(losses.supervised_loss(model))
    graphs = [weakref.ref(evaluator.traced(select(model, text), batch()).function.graph) for text in SIX]
    gc.collect()
    assert [graph() is not None for graph in graphs] == [False] * 2 + [True] * traces.KEPT


def test_a_selection_that_comes_back_after_its_trace_was_dropped_computes_the_same_bits() -> None:
    found = []
    for between in ([], ["norm/.*", "norm/gamma", "norm/beta", "head/kernel", "head/bias"]):
        model = vit("depth=1,dropout=0.1")
        step = TrainStep(losses.supervised_loss(model), optimizers.AdamW())
        chosen = select(model, "@head")
        step(chosen, batch(), learning_rate=1e-2)
        for text in between:
            step.traced(select(model, text), batch())  # traces, and trains nothing
        step(chosen, batch(seed=1), learning_rate=1e-2)
        assert step.traces == 1 + len(between) + bool(between)
        found.append([variable.numpy().tobytes() for variable in model.variables])
    assert found[0] == found[1]


def test_a_given_micro_batch_is_kept_although_other_selections_follow() -> None:
    kept = traces.Traces()
    model = vit()
    kept.give(select(model, "@head"), "cut", "the suffix")
    for text in ("@blocks[0]", "@blocks[1]", "@blocks[2]", "@bias", "@norm"):
        kept.find(select(model, text), "whole", object)
    assert kept.find(select(model, "@head"), "cut", object) == "the suffix"
    assert len(kept) == traces.KEPT  # the given one, and the traces of the last selections but the one asked for


def test_batches_of_any_length_share_one_trace() -> None:
    model = vit()
    step = TrainStep(losses.supervised_loss(model), optimizers.SGD())
    for size in (6, 1, 5, 6):
        step(select(model, "@head"), batch(size), learning_rate=1e-3)
    assert step.traces == 1


def recorded_ops(model: Any, text: str) -> tuple[list[str], int]:
    """Types of the forward ops that the step's tape records, and how many forward ops there are."""
    from tensorflow.python.eager import record

    found: list[str] = []
    total: list[int] = []
    inner = losses.supervised_loss(model)

    def spying(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        loss = inner(batch, training=training, seeds=seeds)
        ops = tf.compat.v1.get_default_graph().get_operations()
        total.append(len(ops))
        found.extend(op.type for op in ops if op.inputs and record.should_record_backprop(list(op.inputs)))
        return loss

    TrainStep(spying, optimizers.AdamW()).micro_batch(select(model, text), batch())
    return found, total[-1]


def test_the_tape_of_a_head_only_run_records_no_op_below_the_head() -> None:
    model = vit()
    recorded, total = recorded_ops(model, "@head")
    # reading kernel and bias, x @ kernel + bias, the loss, and the two looks at the logits for accuracy
    assert recorded.count("MatMul") == recorded.count("BiasAdd") == 1
    assert len(recorded) <= 8 < total, recorded
    everything, _ = recorded_ops(model, "@all")
    assert everything.count("BatchMatMulV2") > 0
    assert len(everything) > 20 * len(recorded)


def test_the_backward_pass_of_a_head_only_run_is_one_product() -> None:
    model = vit()
    step = TrainStep(losses.supervised_loss(model), optimizers.AdamW())
    kinds = [op.type for op in step.micro_batch(select(model, "@head"), batch()).backward]
    assert kinds.count("MatMul") == kinds.count("BiasAddGrad") == 1
    assert not {"BatchMatMulV2", "Softmax", "Erf", "Rsqrt", "RsqrtGrad", "ConcatV2"} & set(kinds)


def test_the_backward_pass_grows_with_the_selection_only() -> None:
    model = vit("depth=4")
    step = TrainStep(losses.supervised_loss(model), optimizers.SGD())
    counts = [len(step.micro_batch(select(model, f"@blocks[{i}:]"), batch()).backward) for i in (3, 2, 1, 0)]
    steps = np.diff(counts)
    assert (steps > 0).all()
    # each block adds its own backward pass and no more, and the last one that of its slices to the class token
    assert np.ptp(steps[1:]) <= 4
    assert np.ptp(steps) <= 8


def test_slots_exist_for_what_trains_alone() -> None:
    model = build_model("vit:B/16,depth=2", image_shape=(32, 32, 3), outputs=10).network
    step = TrainStep(losses.supervised_loss(model), optimizers.AdamW())
    images = np.zeros((1, 32, 32, 3), np.float32)
    step(select(model, "@head"), {"image": images, "label": np.array([1])}, learning_rate=1e-3)
    assert step.slots.bytes() == 2 * 4 * (768 * 10 + 10) < 1_000_000
    assert set(step.slots.values) == {"head/kernel", "head/bias"}


def test_freezing_drops_slots_and_frees_their_memory() -> None:
    model = vit("depth=1")
    step = TrainStep(losses.supervised_loss(model), optimizers.Adam())
    step(select(model, "@all"), batch(), learning_rate=1e-3)
    slot = weakref.ref(step.slots.values["blocks/0/mlp/up/kernel"]["m"])
    step(select(model, "@head"), batch(), learning_rate=1e-3)
    gc.collect()
    assert slot() is None, "the compiled function of the old selection still holds the slot"


def test_an_unfrozen_variable_starts_with_t_of_zero_and_steps_no_further_than_the_learning_rate() -> None:
    model = vit("depth=1")
    step = TrainStep(losses.supervised_loss(model), optimizers.Adam())
    for number in range(30):
        step(select(model, "@head"), batch(seed=number), learning_rate=1e-3)
    both = select(model, "@head blocks/0/mlp/down/kernel")
    kernel = model.blocks[0].mlp.down.kernel
    before = kernel.numpy()
    step(both, batch(), learning_rate=1e-3)
    assert step.slots.t == {"blocks/0/mlp/down/kernel": 1, "head/kernel": 31, "head/bias": 31}
    # Adam's first step is learning_rate * sign(gradient), up to epsilon and rounding
    assert np.abs(kernel.numpy() - before).max() <= 1e-3 * (1 + 1e-4)


def test_the_loss_is_the_sum_of_terms_each_divided_by_its_own_weights() -> None:
    weight = tf.Variable([2.0, 3.0])

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        x = batch["x"]
        return Loss(
            terms={"a": (weight[0] * x, batch["w"]), "b": (weight[1] * x, None)},
            regulariser=tf.reduce_sum(weight) * 10.0,
            metrics={"x": (x, batch["w"])},
        )

    x, w = np.array([1.0, 2.0, 3.0], np.float32), np.array([1.0, 0.0, 3.0], np.float32)
    step = TrainStep(loss_fn, optimizers.SGD())
    result = step(select([weight], ".*"), {"x": x, "w": w}, learning_rate=0.5)
    assert float(result.loss) == 2 * 10 / 4 + 3 * 2 + 50
    assert {name: float(v) for name, v in result.terms.items()} == {"a": 5.0, "b": 6.0}
    assert float(result.metrics["x"]) == 2.5
    np.testing.assert_allclose(weight.numpy(), [2 - 0.5 * 12.5, 3 - 0.5 * 12.0])
    np.testing.assert_allclose(float(result.grad_norm), np.hypot(12.5, 12.0), rtol=1e-6)


def test_clipping_scales_by_the_selections_global_norm_alone() -> None:
    a, b = tf.Variable([3.0]), tf.Variable([4.0])

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        return Loss({"t": (batch["x"] * (a * a + 100.0 * b * b), None)})

    step = TrainStep(loss_fn, optimizers.SGD(clip_norm=1.0))
    result = step(select({"a": a, "b": b}, "a"), {"x": np.ones(2, np.float32)}, learning_rate=1.0)
    assert float(result.grad_norm) == 6.0
    np.testing.assert_allclose(a.numpy(), [2.0], rtol=1e-6)
    assert b.numpy() == [4.0]


def test_a_gradient_below_the_clipping_norm_keeps_its_bits() -> None:
    results = []
    for clip in (None, 1e6):
        model = vit("depth=1")
        step = TrainStep(losses.supervised_loss(model), optimizers.SGD(clip_norm=clip))
        step(select(model, "@all"), batch(), learning_rate=0.1)
        results.append(model.blocks[0].mlp.up.kernel.numpy())
    np.testing.assert_array_equal(*results)


def test_another_optimizer_setting_keeps_the_slots() -> None:
    model = vit("depth=1")
    base = optimizers.AdamW()
    step = TrainStep(losses.supervised_loss(model), base)
    selection = select(model, "@head")
    step(selection, batch(), learning_rate=1e-3)
    step(selection, batch(), learning_rate=1e-3, optimizer=dataclasses.replace(base, weight_decay=0.3))
    assert step.slots.t["head/kernel"] == 2


def test_examples_without_seeds_get_some_that_change_with_the_step() -> None:
    model = vit("depth=1,dropout=0.5")
    step = TrainStep(losses.supervised_loss(model), optimizers.SGD())
    values = {float(step(select(model, "@head"), batch(), learning_rate=1e-12).loss) for _ in range(4)}
    assert len(values) == 4


def test_a_trained_variable_without_gradient_is_named() -> None:
    used, unused = tf.Variable(1.0), tf.Variable(1.0)

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        return Loss({"t": (batch["x"] * used, None)})

    step = TrainStep(loss_fn, optimizers.SGD())
    with pytest.raises(StepError, match=r"does not depend on 1 trained variable.*: unused"):
        step(select({"used": used, "unused": unused}, ".*"), {"x": np.ones(2, np.float32)}, learning_rate=1.0)


@pytest.mark.parametrize(
    "broken",
    [{}, {"x": np.float32(1.0)}, {"x": np.ones((0, 2))}, {"x": np.ones(2), "y": np.ones(3)}],
    ids=["no array", "a scalar", "no example", "uneven"],
)
def test_a_batch_without_a_common_first_axis_is_refused(broken: dict[str, Any]) -> None:
    weight = tf.Variable([1.0])
    step = TrainStep(lambda batch, *, training, seeds: Loss({}), optimizers.SGD())
    with pytest.raises(StepError, match="same number of examples"):
        step(select([weight], ".*"), broken, learning_rate=1.0)


def test_a_loss_without_terms_is_refused() -> None:
    step = TrainStep(lambda batch, *, training, seeds: Loss({}), optimizers.SGD())
    with pytest.raises(StepError, match="no term"):
        step(select([tf.Variable([1.0])], ".*"), {"x": np.ones(1)}, learning_rate=1.0)
