"""Object-based checkpoints of Keras 2, whose names are numbers of layers, become the model that they were saved from."""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest

from compat_v1.porting.port import Weights
from engine import porting
from engine.porting.proposals.propose import list_entries, propose
from engine.selection.variables import name_variables


class Made(NamedTuple):
    prefix: pathlib.Path
    x: np.ndarray
    y: np.ndarray


def network(api: Any, *, outputs: int = 3, names: tuple[str, ...] = ("d", "c", "b", "a")) -> Any:
    """A model in a model, with layers of equal shapes whose names say nothing."""
    layers, images = api.layers, api.Input((8, 8, 3))
    x = layers.Conv2D(3, 3, name=names[0])(images)
    x = layers.Conv2D(3, 3, name=names[1])(x)
    x = layers.BatchNormalization(name=f"{names[1]}_n")(x)
    x = layers.DepthwiseConv2D(3, name=names[2])(x)
    body = api.Model(images, layers.Conv2D(3, 1, name=names[3])(x), name="body")
    return api.Sequential([body, layers.GlobalAveragePooling2D(), layers.Dense(outputs, name="top")])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    old = pytest.importorskip("tf_keras", reason="tf-keras is not installed (make install does it)")
    rng = np.random.default_rng(0)
    model = network(old)
    model.build((None, 8, 8, 3))
    model.set_weights([rng.uniform(0.1, 1, value.shape).astype(np.float32) for value in model.get_weights()])
    model.compile("adam", "mse")
    x = rng.standard_normal((4, 8, 8, 3)).astype(np.float32)
    model.train_on_batch(x, np.zeros((4, 3), np.float32))
    prefix = tmp_path_factory.mktemp("keras2") / "model"
    model.save_weights(str(prefix), save_format="tf")
    return Made(prefix, x, model(x, training=False).numpy())


@pytest.mark.parametrize("names", [("d", "c", "b", "a"), ("one", "two", "three", "four")])
def test_layers_of_equal_shape_follow_their_numbers_and_slots_are_skipped(
    made: Made, names: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    model = network(keras, names=names)
    model.build((None, 8, 8, 3))
    with porting.open_tensors(made.prefix) as source:
        weights = Weights(source)
        proposal = propose(list_entries(weights), name_variables(model), layout="tf", hidden=weights.hidden)
        assert any("layer_with_weights-0/layer_with_weights-3/" in name for name in weights.names())
    assert proposal.sure() == 1, proposal.table()
    rules = tmp_path / "old.rules"
    rules.write_text(proposal.rules_text())
    porting.load(model, made.prefix, rules)  # the whole file, with its optimizer, as finetune reads it
    np.testing.assert_allclose(model(made.x).numpy(), made.y, atol=1e-6)


def test_a_top_of_another_size_leaves_the_layers_below_in_order(made: Made) -> None:
    model = network(keras, outputs=5)
    model.build((None, 8, 8, 3))
    with porting.open_tensors(made.prefix) as source:
        proposal = propose(list_entries(Weights(source)), name_variables(model), layout="tf")
    sure = {line.target for line in proposal.lines if line.confidence >= 0.8}
    assert sure == {entry.path for entry in name_variables(model)} - {"top/kernel", "top/bias"}
