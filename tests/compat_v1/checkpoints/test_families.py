"""Averages and slots are found under their variables, and nothing else is taken for one."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from compat_v1.checkpoints.families import Families, group_families
from compat_v1.checkpoints.inventory import take_inventory
from compat_v1.checkpoints.reader import open_checkpoint

v1 = tf.compat.v1


class Names:
    """A TensorSource of names and shapes."""

    path = pathlib.Path("names")
    checksums = False

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def names(self) -> list[str]:
        return list(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(np.float32)


def grouped(names: str, **others: tuple[int, ...]) -> Families:
    """Families of names that all have shape [2], but for the others."""
    found = group_families(Names(dict.fromkeys(names.split(), (2,)) | others))  # type: ignore[arg-type]
    members = [family.name for family in found.variables]
    members += [name for family in found.variables for name in family.members()]
    members += [name for group in found.state.values() for name in group]
    assert sorted(members) == sorted([*names.split(), *others])  # each name in one place
    return found


OPTIMIZERS: dict[str, tuple[Any, dict[str, tuple[str, ...]]]] = {
    "Adam": (lambda: v1.train.AdamOptimizer(0.1), {"Adam": ("m", "v")}),
    "Momentum": (lambda: v1.train.MomentumOptimizer(0.1, 0.9), {"Momentum": ("momentum",)}),
    "Adagrad": (lambda: v1.train.AdagradOptimizer(0.1), {"Adagrad": ("accumulator",)}),
    "Adadelta": (lambda: v1.train.AdadeltaOptimizer(0.1), {"Adadelta": ("accum", "accum_update")}),
    "Ftrl": (lambda: v1.train.FtrlOptimizer(0.1), {"Ftrl": ("accumulator", "linear")}),
    "RMSProp": (lambda: v1.train.RMSPropOptimizer(0.1, momentum=0.5), {"RMSProp": ("rms", "momentum")}),
    "centered": (
        lambda: v1.train.RMSPropOptimizer(0.1, momentum=0.5, centered=True),
        {"RMSProp": ("rms", "mg", "momentum")},
    ),
    "SGD": (lambda: v1.train.GradientDescentOptimizer(0.1), {}),
}


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("scope", ["", "training/"])
def test_the_slots_of_every_optimizer_are_called_as_its_source_calls_them(
    tmp_path: pathlib.Path, name: str, scope: str
) -> None:
    make, wanted = OPTIMIZERS[name]
    with tf.Graph().as_default(), v1.Session() as session:
        kernel = v1.get_variable("model/dense/kernel", initializer=tf.ones([3, 2]))
        bias = v1.get_variable("model/dense/bias", initializer=tf.ones([2]))
        loss = tf.reduce_sum(tf.constant([[1.0, -2, 3]]) @ kernel * [[1.0, 2]] + bias)
        average = tf.train.ExponentialMovingAverage(0.5)
        with v1.variable_scope(scope.rstrip("/") or v1.get_variable_scope()):
            optimizer = make()
            train = optimizer.minimize(loss, global_step=v1.train.get_or_create_global_step())
            with tf.control_dependencies([train]):
                train = average.apply([kernel, bias])
        session.run(v1.global_variables_initializer())
        session.run(train)
        session.run(train)
        v1.train.Saver().save(session, str(tmp_path / "m"))
        slots = {slot: session.run(optimizer.get_slot(kernel, slot)) for slot in optimizer.get_slot_names()}
        shadow = session.run(average.average(kernel))
    with open_checkpoint(tmp_path / "m") as source:
        found = group_families(source)
        assert [family.name for family in found.variables] == ["model/dense/bias", "model/dense/kernel"]
        for family in found.variables:
            assert {kind: tuple(held) for kind, held in family.slots.items()} == wanted
            assert family.ema is not None
        kernel_family = found.get("model/dense/kernel")
        assert kernel_family is not None
        assert kernel_family is found.get(kernel_family.ema or "")
        np.testing.assert_array_equal(source.read(kernel_family.ema or ""), shadow)
        for held in kernel_family.slots.values():
            for slot, key in held.items():  # by value, not by name: the right slot
                theirs = "accum" if (name, slot) == ("Ftrl", "accumulator") else slot
                np.testing.assert_array_equal(source.read(key), slots[theirs])
        assert found.state["global_step"] == (f"{scope}global_step",)
        assert set(found.state) == {"global_step"} | ({"beta1_power", "beta2_power"} if name == "Adam" else set())


def test_slots_below_a_prefix_and_of_optimizer_v2_and_of_objects() -> None:
    found = grouped(
        "body/w body/b training/body/w/Adam training/body/w/Adam_1 training/Adagrad/body/b/accumulator "
        "SGD/body/w/momentum Adam/body/b/m Adam/body/b/v body/b/.OPTIMIZER_SLOT/optimizer/rms",
        **{"training/Adagrad/iter": (), "Adam/beta_1": (), "optimizer/learning_rate": ()},
    )
    w, b = found.variables
    assert w.slots == {
        "Adam": {"m": "training/body/w/Adam", "v": "training/body/w/Adam_1"},
        "Momentum": {"momentum": "SGD/body/w/momentum"},
    }
    assert b.slots == {
        "Adagrad": {"accumulator": "training/Adagrad/body/b/accumulator"},
        "Adam": {"m": "Adam/body/b/m", "v": "Adam/body/b/v"},
        "RMSProp": {"rms": "body/b/.OPTIMIZER_SLOT/optimizer/rms"},
    }
    assert found.kinds() == {"Adam": 2, "Momentum": 1, "Adagrad": 1, "RMSProp": 1}
    assert set(found.state) == {"iter", "beta_1", "learning_rate"}


def test_the_optimizer_of_bert_a_second_adam_and_our_own_files() -> None:
    found = grouped("bert/w bert/w/adam_m bert/w/adam_v v v/Adam v/Adam_1 v/Adam_2 v/Adam_3 v/lamb_m v/lamb_v x/v/Adam")
    assert found.variables[0].slots == {"Adam": {"m": "bert/w/adam_m", "v": "bert/w/adam_v"}}
    assert found.variables[1].slots == {
        "Adam": {"m": "v/Adam", "v": "v/Adam_1"},
        "Adam#2": {"m": "v/Adam_2", "v": "v/Adam_3"},
        "Adam#3": {"m": "v/lamb_m", "v": "v/lamb_v"},
        "Adam#4": {"m": "x/v/Adam"},
    }
    found = grouped(
        "w ema/w optimizer/w/m optimizer/w/v optimizer/w/start w/local_step w/biased", **{"optimizer/w/t": ()}
    )
    assert found.variables[0].slots == {"Adam": {"m": "optimizer/w/m", "v": "optimizer/w/v"}}
    assert found.variables[0].ema == "ema/w"
    assert set(found.variables[0].others) == {"t", "start", "local_step", "biased"}


@pytest.mark.parametrize(
    "names",
    [
        "Adam/kernel Momentum/kernel Adam Momentum",  # scopes and variables of those names
        "w/Adam w/Momentum w/ExponentialMovingAverage",  # no w
        "dense/m dense/v dense/momentum dense/rms",  # variables called like slots
        "dense/kernel dense/kernel/m dense/kernel/momentum",  # no optimizer above
        "Adam/Adam",
        "w other/w/Adam_x w/adam_x w/Adamax_",
    ],
)
def test_what_is_merely_called_so_is_a_variable(names: str) -> None:
    assert [family.name for family in grouped(names).variables] == names.split()


def test_another_shape_is_no_slot_and_the_longest_name_is_the_variable() -> None:
    found = grouped("w", **{"w/Adam": (3,), "w/ExponentialMovingAverage": (), "beta1_power": (2,)})
    assert len(found.variables) == 4
    found = grouped("w model/w model/w/Momentum train/model/w/ExponentialMovingAverage")
    assert [family.slots for family in found.variables] == [{}, {"Momentum": {"momentum": "model/w/Momentum"}}]
    assert found.variables[1].ema == "train/model/w/ExponentialMovingAverage"


# --- the real ones; what is expected was worked out from their READMEs and names ---


@pytest.mark.parametrize(
    ("name", "variables", "kinds", "averages", "state"),
    [
        ("mtcnn_PNet_landmark", 16, {"Momentum": 15}, 0, set()),
        ("made_v1format_pnet", 16, {"Momentum": 15}, 0, set()),
        ("musicnn_MTT_vgg", 36, {"Adam": 24}, 0, {"beta1_power", "beta2_power"}),
        ("t2t_transformer", 85, {"Adam": 81}, 0, {"global_step", "beta1_power", "beta2_power"}),
        ("made_ema_bn_momentum", 12, {"Momentum": 8}, 12, {"global_step"}),
        ("made_partitioned_adam/sliced.ckpt-3", 2, {"Adam": 2}, 0, {"global_step", "beta1_power", "beta2_power"}),
        ("made_partitioned_adam/part_keys.ckpt-3", 2, {"Adam": 2}, 0, {"global_step", "beta1_power", "beta2_power"}),
        ("serving_half_plus_two_v1format", 2, {}, 0, set()),
        ("tf2onnx_regression", 2, {}, 0, set()),
        ("bleurt_index_only", 41, {}, 0, {"global_step"}),
    ],
)
def test_real_checkpoints_fall_into_families(
    real: pathlib.Path, name: str, variables: int, kinds: dict[str, int], averages: int, state: set[str]
) -> None:
    with open_checkpoint(real / name) as source:
        found = group_families(source)
        count = sum(1 + len(family.members()) for family in found.variables) + sum(map(len, found.state.values()))
        assert count == len(source.names())
    assert (len(found.variables), found.kinds(), set(found.state)) == (variables, kinds, state)
    assert sum(family.ema is not None for family in found.variables) == averages


def test_adafactor_keeps_means_that_lack_an_axis() -> None:
    found = grouped(
        "s s_slot_v other_slot_v",
        **{"enc/q": (64, 48), "enc/q_slot_vr": (48,), "enc/q_slot_vc": (64,), "enc/q_slot_m": (64, 48)},
        **{
            "w": (4, 3),
            "training/w/Adafactor": (4,),
            "training/w/Adafactor_1": (3,),
            "far_slot_vr": (9,),
            "far": (3, 4),
        },
        **{
            "c": (5, 5),
            "c/Adafactor": (5, 5),
            "c/Adafactor_1": (5,),
            "c/Adafactor_2": (5,),
            "d/Adafactor": (7,),
            "d": (7,),
        },
    )
    held = {family.name: family.slots.get("Adafactor") for family in found.variables}
    assert held == {
        "s": {"v": "s_slot_v"},
        "other_slot_v": None,
        "enc/q": {"vr": "enc/q_slot_vr", "vc": "enc/q_slot_vc", "m": "enc/q_slot_m"},
        "w": {"vr": "training/w/Adafactor", "vc": "training/w/Adafactor_1"},
        "far_slot_vr": None,
        "far": None,
        "c": {"m": "c/Adafactor", "vr": "c/Adafactor_1", "vc": "c/Adafactor_2"},
        "d": {"v": "d/Adafactor"},
    }


@pytest.mark.parametrize("scope", ["optimizer/", "training/Ftrl/", "Ftrl_1/"])
def test_the_hyperparameters_of_ftrl_are_its_state_and_its_accumulator_is_its_own(scope: str) -> None:
    names = ["beta", "learning_rate_power", "l1_regularization_strength", "l2_regularization_strength", "learning_rate"]
    slots = ["accumulator", "linear"]
    paths = [f"w/.OPTIMIZER_SLOT/optimizer/{slot}" if scope == "optimizer/" else f"{scope}w/{slot}" for slot in slots]
    found = grouped(f"w {' '.join(paths)}", **{f"{scope}{name}": () for name in names}, beta=())
    assert [family.name for family in found.variables] == ["w", "beta"]
    assert found.variables[0].slots == {"Ftrl": dict(zip(slots, paths, strict=True))}
    assert found.state == {name: (f"{scope}{name}",) for name in names}


@pytest.mark.parametrize(
    ("written", "kind", "slots"),
    [
        ("w/.OPTIMIZER_SLOT/optimizer/accum w/.OPTIMIZER_SLOT/optimizer/linear", "Ftrl", "accumulator linear"),
        ("w/.OPTIMIZER_SLOT/o/accum w/.OPTIMIZER_SLOT/o/accum_update", "Adadelta", "accum accum_update"),
        ("w/.OPTIMIZER_SLOT/o/rms w/.OPTIMIZER_SLOT/o/mg w/.OPTIMIZER_SLOT/o/momentum", "RMSProp", "rms mg momentum"),
        ("my_optimizer/w/accumulator my_optimizer/w/linear", "Ftrl", "accumulator linear"),
        ("my_optimizer/w/rms my_optimizer/w/momentum", "RMSProp", "rms momentum"),
        ("training/Adadelta/w/accum_grad training/Adadelta/w/accum_var", "Adadelta", "accum_grad accum_var"),
        ("optimizer/w/accum optimizer/w/accum_update", "Adadelta", "accum accum_update"),
        ("optimizer/w/accumulator optimizer/w/linear", "Ftrl", "accumulator linear"),
        ("optimizer/w/rms optimizer/w/mg optimizer/w/momentum", "RMSProp", "rms mg momentum"),
        ("optimizer/w/momentum", "Momentum", "momentum"),
    ],
)
def test_the_slots_of_one_optimizer_stay_together_in_every_form(written: str, kind: str, slots: str) -> None:
    (family,) = grouped(f"w {written}").variables
    assert family.slots == {kind: dict(zip(slots.split(), written.split(), strict=True))}


def test_a_variable_that_is_only_called_like_a_slot_stays_a_variable() -> None:
    found = grouped("optimizer/w/accum accum model/linear model/rms", **{"w": (3,)})
    assert [family.name for family in found.variables] == [
        "optimizer/w/accum",
        "accum",
        "model/linear",
        "model/rms",
        "w",
    ]


def test_an_inventory_counts_adafactors_slots_as_slots_and_not_as_weights(tmp_path: pathlib.Path, save: Any) -> None:
    shapes = {
        "encoder/q": (64, 48),
        "encoder/q_slot_vr": (48,),
        "encoder/q_slot_vc": (64,),
        "encoder/q_slot_m": (64, 48),
    }
    shapes |= {"encoder/scale": (48,), "encoder/scale_slot_v": (48,), "global_step": ()}
    prefix = save(tmp_path / "m", {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    with open_checkpoint(prefix) as source:
        told = take_inventory(source).to_text()
    assert "slots of Adafactor: m, vc, vr" in told
    assert "slots of Adafactor: v" in told
    assert "2 variables of 3,120 elements, slots of Adafactor for 2; 7 tensors" in told
