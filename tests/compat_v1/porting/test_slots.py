"""Slots of TensorFlow 1 carry over: training goes on as if nothing had happened."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.keras.optimizer_v2 import adadelta, adagrad, adam, ftrl, rmsprop

from compat_v1.checkpoints.families import Families, group_families
from compat_v1.checkpoints.reader import open_checkpoint
from compat_v1.porting import write_back
from compat_v1.porting.slots import SlotError, count_steps, plan_slots
from engine import files, porting
from engine.porting.apply import load
from engine.porting.plan import build_plan
from engine.porting.rules import language
from engine.selection import filters, selection
from engine.selection.variables import name_variables
from engine.training import optimizers
from engine.training.losses import Loss
from engine.training.optimizers import Optimizer
from engine.training.step import TrainStep

v1 = tf.compat.v1
rng = np.random.default_rng(0)
INPUTS = rng.standard_normal((12, 16, 5)).astype(np.float32)  # one batch of 16 a step
TARGETS = np.tanh(INPUTS @ rng.standard_normal((5, 2))).astype(np.float32)
START = {
    "dense/kernel": rng.standard_normal((5, 6)).astype(np.float32),
    "dense/bias": np.zeros(6, np.float32),
    "table": rng.standard_normal((6, 2)).astype(np.float32),
}
TEXT = """
dense/weight <- dense/kernel | transpose(1, 0)  # here as [outputs, inputs]
dense/bias   <- dense/bias
left         <- table | split(1, 2, 0)
right        <- table | split(1, 2, 1)
"""
STATE = """
skip? .*/(Adam|Adam_1|Momentum|RMSProp|RMSProp_[12]|Adagrad|Adadelta|Adadelta_1|Ftrl|Ftrl_1)
skip? beta._power
skip? global_step
"""


class Net(tf.Module):
    """The same network with its kernel transposed and its table in two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = tf.Module()
        self.dense.weight = tf.Variable(tf.zeros([6, 5]))
        self.dense.bias = tf.Variable(tf.zeros([6]))
        self.left = tf.Variable(tf.zeros([6, 1]))
        self.right = tf.Variable(tf.zeros([6, 1]))

    def __call__(self, inputs: Any) -> Any:
        hidden = tf.tanh(tf.matmul(inputs, self.dense.weight, transpose_b=True) + self.dense.bias)
        return tf.matmul(hidden, tf.concat([self.left, self.right], 1))


def tf1(folder: pathlib.Path, make: Any, *, first: int, parts: int = 0) -> dict[str, np.ndarray]:
    """Trains ``first`` steps, saves, trains 5 more; returns the weights after those."""
    with tf.Graph().as_default(), v1.Session() as session:
        inputs, targets = v1.placeholder(tf.float32, [None, 5]), v1.placeholder(tf.float32, [None, 2])
        variables = {
            name: v1.get_variable(
                name,
                value.shape,
                initializer=_initializer(value),
                partitioner=v1.fixed_size_partitioner(parts) if parts and name == "table" else None,
            )
            for name, value in START.items()
        }
        kernel, bias, table = (tf.convert_to_tensor(variable) for variable in variables.values())
        outputs = tf.tanh(inputs @ kernel + bias) @ table
        loss = tf.reduce_mean(tf.reduce_sum((outputs - targets) ** 2, 1))
        train = make().minimize(loss, global_step=v1.train.get_or_create_global_step())
        session.run(v1.global_variables_initializer())
        saver = v1.train.Saver({v.op.name: v for v in v1.global_variables()} if parts else None)
        for step in range(first + 5):
            if step == first:
                saver.save(session, str(folder / "old"))
            session.run(train, {inputs: INPUTS[step % 12], targets: TARGETS[step % 12]})
        saver.save(session, str(folder / "end"))
        return {name: session.run(tf.convert_to_tensor(variable)) for name, variable in variables.items()}


def _initializer(value: np.ndarray) -> Any:
    def initialize(shape: Any, dtype: Any, partition_info: Any = None) -> Any:
        if partition_info is None:
            return tf.constant(value)
        return tf.constant(value[tuple(slice(o, o + n) for o, n in zip(partition_info.var_offset, shape, strict=True))])

    return initialize


def port(folder: pathlib.Path, kind: str | None = None, *, state: str = "", **told: Any) -> tuple[pathlib.Path, int]:
    """The checkpoint as an .npz of this engine, with slots; and Adam's t."""
    network = Net()
    with open_checkpoint(folder / "old") as source:
        found = group_families(source)
        chosen = language.parse_rules(f"{TEXT}\n{STATE}\n{state}")
        ledger = load(network, source, chosen)
        steps = build_plan(name_variables(network), source, chosen).assignments
        plan = plan_slots(steps, found, kind)
        t = count_steps(source, found, plan.kind, **told).t
        weights = [(entry.path, entry.variable.numpy()) for entry in name_variables(network)]
        files.write_npz(folder / "new.npz", [*weights, *plan.arrays(source, t)])
        assert len(ledger.loaded) == 4
        assert [entry["target"] for entry in plan.to_json(t)] == [port.name for port in plan.ports]
    return folder / "new.npz", t


def go_on(file: pathlib.Path, optimizer: Optimizer, *, first: int) -> tuple[dict[str, np.ndarray], str | None]:
    """Trains 5 steps of this engine from a file; returns the weights in the old names, and what was said."""
    network = Net()
    porting.load(network, file)
    variables = name_variables(network)

    def loss(batch: Any, *, training: bool, seeds: Any) -> Loss:
        return Loss(terms={"mse": (tf.reduce_sum((network(batch["x"]) - batch["y"]) ** 2, 1), None)})

    step = TrainStep(loss, optimizer)
    chosen = selection.select(variables, filters.parse_filter("@all"))
    with porting.open_tensors(file) as source:
        said = porting.continue_from(source, step.slots, chosen, optimizer)
    for number in range(first, first + 5):
        step(chosen, {"x": INPUTS[number % 12], "y": TARGETS[number % 12]}, learning_rate=0.01)
    table = np.concatenate([network.left.numpy(), network.right.numpy()], 1)
    after = [(entry.path, entry.variable.numpy()) for entry in variables]
    files.write_npz(file.parent / "after.npz", [*after, *step.arrays()])
    weights = {"dense/kernel": network.dense.weight.numpy().T, "dense/bias": network.dense.bias.numpy(), "table": table}
    return weights, said


def relative(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    a, b = (np.concatenate([w[name].ravel().astype(np.float64) for name in START]) for w in (ours, theirs))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


CASES: dict[str, tuple[Any, str]] = {
    "Adam": (lambda: v1.train.AdamOptimizer(0.01), "adam"),
    "Momentum": (lambda: v1.train.MomentumOptimizer(0.01, 0.9), "momentum"),
    "nesterov": (lambda: v1.train.MomentumOptimizer(0.01, 0.8, use_nesterov=True), "momentum,momentum=0.8,nesterov"),
    "RMSProp": (lambda: v1.train.RMSPropOptimizer(0.01), "rmsprop"),
    "RMSProp with momentum": (
        lambda: v1.train.RMSPropOptimizer(0.01, 0.8, 0.9, 1.0),
        "rmsprop,rho=0.8,momentum=0.9,epsilon=1.0",
    ),
    "RMSProp centered": (
        lambda: v1.train.RMSPropOptimizer(0.01, momentum=0.5, epsilon=0.01, centered=True),
        "rmsprop,momentum=0.5,epsilon=0.01,centered",
    ),
    "Adagrad": (lambda: v1.train.AdagradOptimizer(0.01), "adagrad"),
    "Adadelta": (lambda: v1.train.AdadeltaOptimizer(0.01, epsilon=1e-4), "adadelta,epsilon=1e-4"),
    "Ftrl": (lambda: v1.train.FtrlOptimizer(0.01, l1_regularization_strength=0.001), "ftrl,l1=0.001"),
}
# Two kinds of partitioned ones stand for all: slices and their slots are joined before any kind is looked at.
VARIANTS = ("nesterov", "RMSProp", "RMSProp with momentum")  # of slots that another case holds
PARTITIONED = [("Adam", 2), pytest.param("RMSProp centered", 2, marks=pytest.mark.slow)]


@pytest.mark.parametrize(
    ("name", "parts"),
    [*(pytest.param(name, 0, marks=[pytest.mark.slow] * (name in VARIANTS)) for name in CASES), *PARTITIONED],
)
def test_five_steps_after_the_port_are_five_more_steps_of_tensorflow_1(
    tmp_path: pathlib.Path, name: str, parts: int
) -> None:
    make, spec = CASES[name]
    optimizer = optimizers.build_optimizer(spec)
    wanted = tf1(tmp_path, make, first=7, parts=parts)
    file, t = port(tmp_path)
    assert t == 7
    ours, said = go_on(file, optimizer, first=7)
    assert relative(ours, wanted) < 1e-6
    slots, kind = ", ".join(optimizer.slots), spec.split(",")[0]
    assert said == f"{kind} continues from {slots} of 4 of 4 trained variables (t = 7)"
    back_again(tmp_path, optimizer)


@pytest.mark.parametrize("name", ["Adam", "RMSProp centered"])
def test_without_the_slots_the_steps_are_others(tmp_path: pathlib.Path, name: str) -> None:
    make, spec = CASES[name]
    optimizer, wanted = optimizers.build_optimizer(spec), tf1(tmp_path, make, first=7)
    file, _ = port(tmp_path)
    bare = tmp_path / "bare.npz"  # the same without slots: so they matter
    with porting.open_tensors(file) as source:
        files.write_npz(bare, [(n, source.read(n)) for n in source.names() if not n.startswith("optimizer/")])
    ours, said = go_on(bare, optimizer, first=7)
    assert said is None
    assert relative(ours, wanted) > 1e-5


def back_again(folder: pathlib.Path, optimizer: Optimizer) -> None:
    """Writes weights and slots back into the old checkpoint: each tensor is that of five more steps of TensorFlow 1."""
    network = Net()
    porting.load(network, folder / "after.npz")
    rules = language.parse_rules(f"{TEXT}\n{STATE}")
    with write_back.plan_write_back(
        network, rules, base=str(folder / "old"), slots=str(folder / "after.npz")
    ) as planned:
        assert set(planned.left_out) <= {"global_step"}
        planned.write(folder / "back")
    back, end = (tf.train.load_checkpoint(str(folder / name)) for name in ("back", "end"))
    names = set(end.get_variable_to_shape_map()) - {"global_step"}
    changed = [name for name in names if not name.startswith("beta")]
    assert len([name for name in changed if "dense/kernel" in name]) == 1 + len(optimizer.slots)
    a, b = (np.concatenate([r.get_tensor(n).ravel().astype(np.float64) for n in sorted(names)]) for r in (back, end))
    assert np.linalg.norm(a - b) < 1e-6 * np.linalg.norm(b)


def test_slots_that_the_optimizer_does_not_keep_are_named_with_the_optimizer_that_does(tmp_path: pathlib.Path) -> None:
    for name, able, other, new in (
        ("RMSProp centered", "rmsprop,centered", optimizers.Momentum(), "zeros"),
        ("Ftrl", "ftrl", optimizers.Adagrad(), "new slots"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        tf1(folder, CASES[name][0], first=1)
        file, _ = port(folder)
        kept = ", ".join(sorted(optimizers.build_optimizer(CASES[name][1]).slots))
        _, said = go_on(file, other, first=1)
        keeps = f"{type(other).__name__.lower()} keeps {other.slots[0]}"
        wanted = f"new.npz has the slots {kept}, but {keeps}: it starts from {new}; {able} could continue from them"
        assert said == wanted


V2 = {
    "rmsprop,epsilon=1e-7,epsilon_placement=outside": lambda: rmsprop.RMSProp(0.01),
    "rmsprop,centered,epsilon=1e-3,epsilon_placement=outside": lambda: rmsprop.RMSProp(
        0.01, centered=True, epsilon=1e-3
    ),
    "rmsprop,momentum=0.5,epsilon=1e-7": lambda: rmsprop.RMSProp(0.01, momentum=0.5),
    "adagrad,epsilon=1e-7": lambda: adagrad.Adagrad(0.01),
    "adadelta,epsilon=1e-4": lambda: adadelta.Adadelta(0.01, epsilon=1e-4),
    "ftrl": lambda: ftrl.Ftrl(0.01),
    "adam,epsilon=1e-7": lambda: adam.Adam(0.01),
}


class _OptimizerV2:
    """An optimizer of OptimizerV2 as ``tf1`` uses one of tf.compat.v1.train."""

    def __init__(self, spec: str) -> None:
        self.made = V2[spec]()

    def minimize(self, loss: Any, global_step: Any) -> Any:
        variables = v1.trainable_variables()
        with v1.name_scope("training"):
            return self.made.apply_gradients(zip(tf.gradients(loss, variables), variables, strict=True))


V2_QUICK = ("rmsprop,epsilon=1e-7,epsilon_placement=outside", "adadelta,epsilon=1e-4", "ftrl")


@pytest.mark.parametrize("spec", [pytest.param(s, marks=[] if s in V2_QUICK else pytest.mark.slow) for s in V2])
def test_five_steps_after_the_port_are_five_more_steps_of_optimizer_v2(tmp_path: pathlib.Path, spec: str) -> None:
    wanted = tf1(tmp_path, lambda: _OptimizerV2(spec), first=7)
    optimizer = optimizers.build_optimizer(spec)
    file, t = port(tmp_path, state="skip? training/.*\nskip? .*/(iter|accum.*|rms|mg|momentum|linear|m|v)")
    assert t == 7
    ours, said = go_on(file, optimizer, first=7)
    assert said is not None
    assert said.endswith(f"continues from {', '.join(optimizer.slots)} of 4 of 4 trained variables (t = 7)")
    assert relative(ours, wanted) < 1e-6


def test_a_fitting_optimizer_is_named_and_sgd_keeps_none(tmp_path: pathlib.Path) -> None:
    tf1(tmp_path, CASES["Adam"][0], first=1)
    file, _ = port(tmp_path, "Adam")
    assert go_on(file, optimizers.SGD(), first=1)[1] == (
        "new.npz has the slots m, v, but sgd keeps none: it starts from zeros; adam or adamw could continue from them"
    )
    said = go_on(file, optimizers.AdamW(), first=1)[1]
    assert said is not None
    assert said.startswith("adamw continues from m, v of 4")


def test_what_variables_decay_toward_is_taken_from_now_and_not_written_back(tmp_path: pathlib.Path) -> None:
    tf1(tmp_path, CASES["Adam"][0], first=1)
    file, _ = port(tmp_path)
    pulled = optimizers.AdamW(weight_decay=0.5, decay_toward="start")
    said = go_on(file, pulled, first=1)[1]
    assert said is not None
    assert re.search(
        r"continues from m, v, start of 4 of 4 .*; the file does not say what 4 of them decay toward", said
    )
    after = tmp_path / "after.npz"
    with np.load(file) as old, np.load(after) as new:
        np.testing.assert_array_equal(new["optimizer/dense/weight/start"], old["dense/weight"])
        assert not np.array_equal(new["dense/weight"], old["dense/weight"])
    network = Net()
    porting.load(network, after)
    rules = language.parse_rules(f"{TEXT}\n{STATE}")
    with write_back.plan_write_back(network, rules, base=str(tmp_path / "old"), slots=str(after)) as planned:
        assert "optimizer/dense/weight/start" in planned.left_out
        assert [name for name in planned.slots if "dense/kernel" in name] == [
            "dense/kernel/Adam",
            "dense/kernel/Adam_1",
        ]


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("optimizer/left/m", np.zeros((6, 2), np.float32), r"m is \[6, 2\], the variable \[6, 1\]"),
        ("optimizer/left/m", np.zeros((6, 1), np.int32), "m is int32"),
        ("optimizer/left/t", np.float32(1.5), "its t is not a number of steps"),
        ("optimizer/left/t", np.int64(-1), "its t is not a number of steps"),
        ("optimizer/left/t", None, "the file has m, v"),
        ("optimizer/left/v", None, "the file has m, t"),
    ],
)
def test_a_variable_whose_slots_do_not_fit_begins_anew(
    tmp_path: pathlib.Path, name: str, array: np.ndarray | None, said: str
) -> None:
    arrays = {"dense/weight": np.ones((6, 5), np.float32), "dense/bias": np.ones(6, np.float32)}
    arrays |= {path: np.ones((6, 1), np.float32) for path in ("left", "right")}
    for path in list(arrays):
        arrays |= {f"optimizer/{path}/{slot}": arrays[path] for slot in "mv"}
        arrays[f"optimizer/{path}/t"] = np.int64(4)
    del arrays["optimizer/right/m"], arrays["optimizer/right/v"], arrays["optimizer/right/t"]
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    files.write_npz(tmp_path / "new.npz", arrays.items())
    text = go_on(tmp_path / "new.npz", optimizers.Adam(), first=0)[1]
    assert text is not None
    assert re.match(
        r"adam continues from m, v of 2 of 4 .* \(t = 4\); 2 start from zeros, such as left: " + said, text
    ), text


# --- which slots ---


def steps_and_families(folder: pathlib.Path) -> tuple[Any, Families]:
    with open_checkpoint(folder / "old") as source:
        return build_plan(
            name_variables(Net()), source, language.parse_rules(f"{TEXT}\n{STATE}")
        ).assignments, group_families(source)


def test_the_kind_is_the_only_one_or_must_be_named(tmp_path: pathlib.Path) -> None:
    tf1(tmp_path, CASES["Adam"][0], first=1)
    steps, found = steps_and_families(tmp_path)
    with pytest.raises(SlotError, match=r"slots=adam: the checkpoint has slots of Adam; nearest: Adam"):
        plan_slots(steps, found, "adam")
    bare = Families((), {})
    with pytest.raises(SlotError, match="slots: the checkpoint has no optimizer slots"):
        plan_slots(steps, bare)
    for family in found.variables:
        family.slots["Momentum"] = {"momentum": "x"}
    with pytest.raises(SlotError, match="slots of Adam, Momentum; name one of them"):
        plan_slots(steps, found)
    assert {port.slot for port in plan_slots(steps, found, "Momentum").ports} == {"momentum"}


def test_a_variable_without_slots_is_left_out_with_the_reason(tmp_path: pathlib.Path) -> None:
    tf1(tmp_path, CASES["Adam"][0], first=1)
    steps, found = steps_and_families(tmp_path)
    family = found.get("dense/bias")
    assert family is not None
    family.slots.clear()
    plan = plan_slots(steps, found)
    assert plan.left_out == {"dense/bias": "dense/bias has no Adam slots"}
    assert {port.assignment.entry.path for port in plan.ports} == {"dense/weight", "left", "right"}
    for family in found.variables:
        family.slots = {"Adam": {"m": "x"}} if family.name == "global_step" else {}
    with pytest.raises(SlotError, match="no optimizer slots"):
        plan_slots(steps, Families(tuple(f for f in found.variables if not f.slots), {}))


# --- t ---


class Scalars:
    path = pathlib.Path("scalars")
    checksums = False

    def __init__(self, **values: Any) -> None:
        self.values = {name.replace("__", "/"): np.asarray(value) for name, value in values.items()}

    def names(self) -> list[str]:
        return list(self.values)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.values[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return self.values[name].dtype

    def read(self, name: str) -> np.ndarray:
        return self.values[name]


def power(beta: float, t: int) -> np.float32:
    """As AdamOptimizer makes it: float32 multiplications."""
    found = np.float32(beta)
    for _ in range(t):
        found *= np.float32(beta)
    return found


def told(kind: str = "Adam", given: int | None = None, **values: Any) -> Any:
    source: Any = Scalars(**values)
    return count_steps(source, group_families(source), kind, given=given)


@pytest.mark.parametrize("t", [0, 1, 7, 100, 500, 800])
def test_t_is_read_from_beta1_power_exactly(t: int) -> None:
    found = told(beta1_power=power(0.9, t), beta2_power=power(0.999, t), global_step=np.int64(999_999))
    assert (found.t, found.note) == (t, "")
    assert told(beta1_power=np.float32(0.9 ** (t + 1)), beta2_power=power(0.999, t)).t == t  # made in float64


@pytest.mark.parametrize("t", [900, 5_000, 40_000, 80_000])
def test_where_it_has_underflowed_beta2_power_tells_exactly(t: int) -> None:
    assert told(beta1_power=power(0.9, min(t, 2000)), beta2_power=power(0.999, t)).t == t


def test_where_both_have_underflowed_global_step_tells_or_the_user() -> None:
    zero = np.float32(0)
    found = told(beta1_power=zero, beta2_power=zero, global_step=np.int64(250_000))
    assert (found.t, found.origin) == (250_000, "global_step")
    assert "beta1_power=0 has underflowed" in found.note
    with pytest.raises(
        SlotError, match=r"beta2_power=0 has underflowed; no global_step\); state it with --adam_step=N"
    ):
        told(beta1_power=zero, beta2_power=zero)
    assert told(beta1_power=zero, beta2_power=zero, given=250_000).t == 250_000
    with pytest.raises(SlotError, match="adam_step=-1: expected at least 0"):
        told(given=-1)
    with pytest.raises(SlotError, match=r"\(no beta1_power, beta2_power or global_step\)"):
        told()


def test_other_betas_are_noticed() -> None:
    found = told(beta1_power=power(0.9, 1), beta2_power=power(0.98, 1))
    assert found.t == 1
    assert "beta2 was 0.98, not 0.999" in found.note
    with pytest.raises(SlotError, match=r"beta1_power=0\.16 is not a power of 0\.9"):
        told(beta1_power=np.float32(0.16))


def test_two_adams_that_disagree_are_not_guessed() -> None:
    both = {"g__beta1_power": power(0.9, 3), "d__beta1_power": power(0.9, 6)}
    with pytest.raises(SlotError, match=r"different numbers of steps \(g/beta1_power: 3, d/beta1_power: 6\)"):
        told(**both)
    assert told(given=3, **both).t == 3
    assert told(g__beta1_power=power(0.9, 3), d__beta1_power=power(0.9, 3)).t == 3


def test_the_counter_of_optimizer_v2_and_optimizers_that_need_no_t() -> None:
    assert told(**{"training__Adam__iter": np.int64(42)}).t == 42
    assert told("Momentum", global_step=np.int64(20)).t == 20
    assert told("Momentum").t == 0


def test_t_of_the_real_checkpoints(real: pathlib.Path) -> None:
    for name, t in (("t2t_transformer", 1), ("made_partitioned_adam", 3)):
        with open_checkpoint(real / name) as source:
            assert count_steps(source, group_families(source), "Adam").t == t
    with open_checkpoint(real / "musicnn_MTT_vgg") as source:
        with pytest.raises(SlotError, match="beta1_power=0 has underflowed; beta2_power=0 has underflowed"):
            count_steps(source, group_families(source), "Adam")
        assert count_steps(source, group_families(source), "Adam", given=12345).t == 12345
