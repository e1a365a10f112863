"""E1 on keras.applications: the head, then the last 20 layers; BatchNorm as the design says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import FreezeProof, TrainStep, select
from engine.models import build_model
from engine.selection import filters
from engine.selection.proof import digests
from engine.selection.variables import name_variables
from engine.training import losses, optimizers

SPECS = {"MobileNetV2": "keras:MobileNetV2,alpha=0.35", "ResNet50": "keras:ResNet50"}
# decay of everything: what is frozen must stay although decay would move it
ADAMW = optimizers.AdamW(weight_decay=0.1, clip_norm=1.0, decay=filters.group("all"))


def train(step: TrainStep, selection: Any, model: Any, steps: int) -> list[float]:
    images = tf.random.stateless_uniform([6, 32, 32, 3], [1, 2])
    batch = {"image": model.normalise(images), "label": np.arange(6) % 3}
    return [float(step(selection, batch, learning_rate=1e-3).loss) for _ in range(steps)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50"])
@pytest.mark.usefixtures("deterministic_ops")
def test_head_then_last_20_layers_with_statistics_still_unless_asked_for(name: str) -> None:
    model = build_model(SPECS[name], image_shape=(32, 32, 3), outputs=3)
    variables = name_variables(model.network)
    statistics = [entry for entry in variables if entry.kind == "statistic"]
    step = TrainStep(losses.supervised_loss(model.network), ADAMW)
    for text, moving in (
        ("@head", False),
        (f"@layers({name})[-20:] @head", False),
        (f"@layers({name})[-20:] @head @stats", True),
    ):
        selection = select(variables, text, statistics=model.statistics)
        proof = FreezeProof.begin(selection)
        before, still = digests([*selection.trained, *selection.moving]), digests(statistics)
        found = train(step, selection, model, steps=3)
        assert np.isfinite(found).all()
        assert proof.changed(selection) == []
        after = digests([*selection.trained, *selection.moving])
        assert not [path for path in before if after[path] == before[path]], "selected, and did not move"
        moved = {path for path, value in digests(statistics).items() if value != still[path]}
        assert moved == {entry.path for entry in selection.moving}
        assert bool(moved) == moving
