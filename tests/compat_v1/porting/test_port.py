"""Ports decided on names and shapes: what rules see of a checkpoint, and real ones as a whole."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
import pytest
import tensorflow as tf

from compat_v1.checkpoints.reader import open_checkpoint
from compat_v1.porting import port
from engine.files import Npz
from engine.models import build_network
from engine.models.abstract import abstract_variables
from engine.porting import PortError
from engine.porting.rules import language
from engine.selection.variables import ModelVariables, name_variables


def model(shapes: dict[str, Sequence[int]]) -> ModelVariables:
    return name_variables({path: tf.Variable(tf.zeros(shape)) for path, shape in shapes.items()})


def ported(
    tmp_path: pathlib.Path, prefix: pathlib.Path | str, variables: ModelVariables, text: str, *, averages: bool = False
) -> tuple[dict[str, np.ndarray], dict]:
    out = tmp_path / "out.npz"
    with open_checkpoint(prefix) as source:
        decided = port.plan_port(
            port.Weights(source, averages=averages), variables, language.parse_rules(text, name="test")
        )
        decided.write_npz(out)
        ledger = decided.ledger(target="test")
    with Npz(out) as file:
        return {name: file.read(name) for name in file.names()}, ledger


def test_the_sixteen_shards_of_a_real_table_are_joined_in_numeric_order(
    real: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    prefix = real / "t2t_transformer/model.ckpt-1"
    shared = "transformer/symbol_modality_8190_16/shared/weights_"
    with open_checkpoint(prefix) as source:
        others = [n for n in port.Weights(source).names() if not n.startswith(shared)]
        parts = [source.read(f"{shared}{number}") for number in range(16)]
    text = f"table <- {shared}\\d+ | concat(0)\n" + "".join(f'skip "{_escaped(name)}"\n' for name in others)
    arrays, ledger = ported(tmp_path, prefix, model({"table": (8190, 16)}), text)
    np.testing.assert_array_equal(arrays["table"], np.concatenate(parts))
    assert list(ledger["loaded"][0]["source"]) == [f"{shared}{number}" for number in range(16)]
    explained = {name for entry in ledger["loaded"] for name in entry["source"]} | {
        e["name"] for e in ledger["skipped"]
    }
    assert explained == {name for name, _ in tf.train.list_variables(str(prefix))}


def test_averages_are_taken_for_their_variables(real: pathlib.Path, tmp_path: pathlib.Path) -> None:
    prefix = real / "made_ema_bn_momentum/model.ckpt-20"
    with open_checkpoint(prefix) as source:
        weights = port.Weights(source, averages=True)
        names = weights.names()
        shapes = {name: weights.shape(name) for name in names}
        wanted = {name: source.read(weights.real(name)) for name in names}
        averaged = [name for name in names if weights.real(name).endswith("/ExponentialMovingAverage")]
        plain = {name: source.read(name) for name in averaged}
    assert averaged
    arrays, ledger = ported(tmp_path, prefix, model(shapes), r"(.*) <- \0", averages=True)
    for name in names:
        np.testing.assert_array_equal(arrays[name], wanted[name])
    assert any(not np.array_equal(arrays[name], plain[name]) for name in averaged)
    sources = {name for entry in ledger["loaded"] for name in entry["source"]}
    assert {f"{name}/ExponentialMovingAverage" for name in averaged} <= sources
    assert set(averaged) <= {entry["name"] for entry in ledger["skipped"]}


def test_slices_and_part_keys_give_the_same_variables(real: pathlib.Path, tmp_path: pathlib.Path) -> None:
    found = []
    for name in ("sliced", "part_keys"):
        with open_checkpoint(real / f"made_partitioned_adam/{name}.ckpt-3") as source:
            weights = port.Weights(source)
            shapes = {each: weights.shape(each) for each in weights.names()}
            arrays = {each: weights.read(each) for each in weights.names()}
            slots = {
                f.name: {s: source.read(n) for s, n in f.slots["Adam"].items()} for f in weights.families.variables
            }
        found.append((shapes, arrays, slots))
    (shapes, one, slots), (others, other, same) = found
    assert shapes == others
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
        np.testing.assert_array_equal(slots[name]["v"], same[name]["v"])


def test_averages_that_are_not_there_are_an_error(real: pathlib.Path) -> None:
    with (
        open_checkpoint(real / "mtcnn_PNet_landmark/PNet-18") as source,
        pytest.raises(PortError, match="take_ema"),
    ):
        port.Weights(source, averages=True)


def test_a_model_in_outline_has_names_and_shapes_and_no_values() -> None:
    with abstract_variables():
        light = build_network("vit:Ti/16", image_size=(32, 32))
    heavy = build_network("vit:Ti/16", image_size=(32, 32))
    shapes = [[(e.path, tuple(e.variable.shape), e.kind, e.groups) for e in name_variables(m)] for m in (light, heavy)]
    assert shapes[0] == shapes[1]
    assert light.blocks[0].mlp.up.kernel.numpy().size == 0
    assert heavy.blocks[0].mlp.up.kernel.numpy().size == 192 * 768
    with abstract_variables():
        keras_model = build_network("keras:MobileNetV2,alpha=0.35", image_size=(32, 32))
    assert name_variables(keras_model).parameters > 1_000_000


def _escaped(name: str) -> str:
    return name.replace(".", r"\.")
