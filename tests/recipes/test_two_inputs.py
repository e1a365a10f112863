"""Runs of a network with two inputs that share a trunk: cached and uncached alike, and opened again."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
from two_tasks import make_pairs

from engine import SGD, TrainStep, select
from engine.files import Npz
from engine.frostline.cuts import cut_step
from engine.frostline.line import FrostLine
from engine.recipes.reopen import open_run
from engine.recipes.task import Task

FLAGS = ("--model=py:two_tasks:siamese", "--weights=none", "--data=fashion_mnist_mini", "--batch_size=4")


def test_two_inputs_share_a_trunk_whose_features_are_computed_once(
    call: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = make_pairs()
    monkeypatch.setattr("engine.data.open_data", lambda *_, **__: pairs)
    found = {}
    for cache in ("require", "off"):
        out = tmp_path / cache
        code, printed, error = call(*FLAGS, "--train=head/.*", "--steps=6", f"--cache={cache}", f"--out={out}")
        assert code == 0, printed + error
        run = json.loads((out / "run.json").read_text())
        assert run["cache"]["phases"][0]["computed_rows"] == (12 + 6 if cache == "require" else 0)
        with Npz(out / "trained.npz") as npz:
            found[cache] = npz.read("head/kernel"), run["final"]["eval_loss"]
    np.testing.assert_allclose(found["require"][0], found["off"][0], rtol=1e-5, atol=1e-7)
    assert found["require"][1] == pytest.approx(found["off"][1], rel=1e-6)
    card = (tmp_path / "off/card.md").read_text()
    assert "frostline evaluate" in card
    assert not {"frostline predict", "frostline export"} & set(re.findall("frostline [a-z]+", card)), (
        "they refuse the run"
    )
    opened = open_run(tmp_path / "off")
    batch = pairs.eval.read(np.arange(6))
    outputs = opened.network({name: opened.normalise(batch[name]) for name in ("left", "right")})
    assert outputs.shape == (6, 2)


@pytest.mark.slow
def test_a_keras_model_takes_its_inputs_by_name() -> None:
    task = Task.open(data=make_pairs(), model="py:two_tasks:keras_siamese", batch_size=4)
    batch = task.train_batches().at(0)
    step = TrainStep(task.loss_fn, SGD())
    selection = select(task.variables, "@head")
    line = cut_step(step, selection, batch)
    assert isinstance(line, FrostLine), line
    assert {tensor.shape for tensor in line.tensors} == {(4,)}
    assert np.isfinite(float(step(selection, line.replace_images(batch), learning_rate=0.1).loss))
