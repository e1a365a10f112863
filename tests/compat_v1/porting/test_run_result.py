"""What a run trained goes back from a delta, from whole weights and from a checkpoint; never with initial values."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from compat_v1.porting.run_result import load_result
from engine.porting import PortError
from engine.porting.rules.language import parse_rules
from engine.runs.records import write_trained
from engine.selection.selection import select
from engine.selection.variables import name_variables
from engine.training import checkpoint

RULES = parse_rules("(body|head)/(kernel|bias) <- net/\\1/\\2\n", name="my.rules")
SHAPES = {"body/kernel": (4, 5), "body/bias": (5,), "head/kernel": (5, 3), "head/bias": (3,)}
RNG = np.random.default_rng(0)


class Net(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        for part in ("body", "head"):
            layer = tf.Module()
            layer.kernel = tf.Variable(tf.zeros(SHAPES[f"{part}/kernel"]))
            layer.bias = tf.Variable(tf.zeros(SHAPES[f"{part}/bias"]))
            setattr(self, part, layer)


def values(net: Net) -> dict[str, np.ndarray]:
    return {entry.path: entry.variable.numpy() for entry in name_variables(net)}


def made(names: Any) -> dict[str, np.ndarray]:
    return {name: RNG.standard_normal(SHAPES[name]).astype(np.float32) for name in names}


@pytest.fixture
def base(tmp_path: pathlib.Path) -> tuple[str, dict[str, np.ndarray]]:
    arrays = made(SHAPES)
    prefix = str(tmp_path / "old.ckpt")
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=[f"net/{name}" for name in arrays],
        shape_and_slices=[""] * 4,
        tensors=list(arrays.values()),
    )
    return prefix, arrays


@pytest.mark.parametrize("trained", [("head/kernel", "head/bias"), ("body/kernel", "body/bias"), ("body/bias",)])
def test_what_a_delta_lacks_comes_from_the_base(base: Any, tmp_path: pathlib.Path, trained: tuple[str, ...]) -> None:
    prefix, old = base
    delta = made(trained)
    np.savez(tmp_path / "trained.npz", **delta)  # type: ignore[arg-type]
    net = Net()
    said = load_result(net, tmp_path / "trained.npz", rules=RULES, base=prefix)
    assert said == f"{len(trained)} variables; the other {4 - len(trained)} from {prefix}"
    for name, value in values(net).items():
        np.testing.assert_array_equal(value, (old | delta)[name], name)


def test_another_base_than_that_of_the_delta_is_refused(base: Any, tmp_path: pathlib.Path) -> None:
    prefix, old = base
    net = Net()
    for entry in name_variables(net):
        entry.variable.assign(old[entry.path])
    selection = select(net, "head/.*")
    write_trained(tmp_path / "trained.npz", selection.variables, [selection])
    assert load_result(Net(), tmp_path / "trained.npz", rules=RULES, base=prefix)
    net.body.kernel.assign_add(tf.ones_like(net.body.kernel))
    write_trained(tmp_path / "trained.npz", selection.variables, [selection])
    with pytest.raises(PortError, match=r"what differs \(1\): body/kernel: other values"):
        load_result(Net(), tmp_path / "trained.npz", rules=RULES, base=prefix)
    assert load_result(Net(), tmp_path / "trained.npz", rules=RULES, base=prefix, force_base=True)
    # what the old checkpoint has no place for is not compared
    rules = parse_rules(
        "(body|head)/kernel <- net/\\1/kernel\nfresh body/bias\nfresh head/bias\nskip .*/bias\n", name="some.rules"
    )
    net.body.kernel.assign(old["body/kernel"])
    net.body.bias.assign_add(tf.ones_like(net.body.bias))
    write_trained(tmp_path / "trained.npz", selection.variables, [selection])
    assert load_result(Net(), tmp_path / "trained.npz", rules=rules, base=prefix)


def test_whole_weights_and_a_checkpoint_need_no_base(tmp_path: pathlib.Path) -> None:
    arrays = made(SHAPES)
    np.savez(tmp_path / "whole.npz", **arrays)  # type: ignore[arg-type]
    net = Net()
    assert load_result(net, tmp_path / "whole.npz", rules=RULES, base=None) == "4 variables"
    slots = {"optimizer/head/bias/m": arrays["head/bias"], "ema/head/bias": arrays["head/bias"]}
    path = checkpoint.save(
        tmp_path, 3, variables=name_variables(net), arrays=slots.items, state={}, class_names=["a", "b", "c"]
    )
    other = Net()
    assert load_result(other, path, rules=RULES, base=None) == "4 variables"
    for name, value in values(other).items():
        np.testing.assert_array_equal(value, arrays[name], name)


def test_a_frozen_head_that_is_in_no_file_is_an_error_not_a_random_head(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "trained.npz", **made(("body/kernel", "body/bias")))  # type: ignore[arg-type]
    with pytest.raises(PortError, match=r"lacks 2 \(head/kernel, head/bias\); --base=CHECKPOINT"):
        load_result(Net(), tmp_path / "trained.npz", rules=RULES, base=None)
    # unless the old checkpoint has no place for it
    rules = parse_rules("body/(kernel|bias) <- net/body/\\1\nfresh head/.*\n", name="body.rules")
    assert load_result(Net(), tmp_path / "trained.npz", rules=rules, base=None) == "2 variables"


def test_a_file_of_another_model_is_refused(base: Any, tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "trained.npz", **{"head/kernel": np.zeros((5, 9), np.float32)})
    with pytest.raises(PortError, match="classes=N of --target"):
        load_result(Net(), tmp_path / "trained.npz", rules=RULES, base=base[0])
    np.savez(tmp_path / "trained.npz", **(made(("head/bias",)) | {"tail/kernel": np.zeros(3, np.float32)}))  # type: ignore[arg-type]
    with pytest.raises(PortError, match="tail/kernel"):
        load_result(Net(), tmp_path / "trained.npz", rules=RULES, base=base[0])
