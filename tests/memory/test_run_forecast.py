"""Forecasts of whole runs: the largest pass counts, and what a run keeps adds up over its phases."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine import TrainStep, select
from engine.memory import run_forecast
from engine.memory.forecast import Forecast, Forecaster
from engine.memory.run_forecast import Cached, Surroundings, evaluation_size, forecast_phases
from engine.models import build_model
from engine.training import losses, optimizers

ADAMW, BATCH = optimizers.AdamW(), 12


@pytest.fixture(scope="module")
def phases() -> list[Forecaster]:
    """The head, then the last block with it."""
    model = build_model("vit:mini,depth=2", image_shape=(16, 16, 1), outputs=4).network
    step = TrainStep(losses.supervised_loss(model), ADAMW)
    batch = {"image": np.zeros((2, 16, 16, 1), np.float32), "label": np.zeros(2, np.int64)}
    return [Forecaster(step, select(model, text), ADAMW, batch) for text in ("@head", "@blocks[-1:] @head")]


def forecast(phases: list[Any], **around: Any) -> tuple[Forecast, ...]:
    pairs = [phase if isinstance(phase, tuple) else (phase, None) for phase in phases]
    return forecast_phases(pairs, BATCH, None, process=1000, around=Surroundings(**({"examples": 1} | around)))


def test_a_step_that_is_the_largest_pass_is_what_counts(phases: list[Forecaster]) -> None:
    alone, (found, _) = phases[0].at(BATCH, None, process=1000), forecast(phases)
    kept = int(run_forecast._RETAINED * phases[0].forward_bytes(1))  # of the evaluation
    assert (found.slots, found.process) == (alone.slots, alone.process)
    assert found.activations == alone.activations + kept
    assert found.batches == 5 * phases[0].batch_bytes(BATCH)


def test_an_evaluation_counts_where_it_is_larger_and_no_more_examples_than_there_are(phases: list[Forecaster]) -> None:
    (few, _), (many, _), (all_of_them, _) = (forecast(phases, examples=count, at_least=64) for count in (1, 64, 10_000))
    assert few.total < many.total == all_of_them.total
    step = phases[0].at(BATCH, None)
    kept = int(run_forecast._RETAINED * (step.gradients + step.activations + many.batches))
    assert many.gradients + many.activations + many.batches == phases[0].forward_bytes(64) + kept
    assert phases[0].forward_bytes(1000) > 990 * phases[0].forward_bytes(1)
    assert [evaluation_size(*sizes, at_least=64) for sizes in ((12, None), (100, None), (100, 8))] == [64, 100, 8]


def test_photos_and_the_graphs_of_earlier_phases_add_up(phases: list[Forecaster]) -> None:
    plain, photos = forecast(phases), forecast(phases, images=10**6)
    assert [one.total - other.total for one, other in zip(photos, plain, strict=True)] == [10**6, 10**6]
    alone = forecast(phases[1:])[0]
    before = phases[0].operations + phases[0].forward
    assert plain[1].graph - alone.graph == run_forecast._BYTES_PER_OPERATION * before


def test_a_cache_replaces_the_step_and_counts_its_filling(phases: list[Forecaster]) -> None:
    head, upper = phases  # the step of the head stands for the part above the line
    filled, kept = (forecast([(upper, Cached(above=head, evaluated=1, shard=shard))])[0] for shard in (5 * 10**6, None))
    assert kept.slots == head.at(BATCH, None).slots
    assert filled.total - kept.total > 4 * 10**6
    assert filled.total == forecast([(upper, Cached(above=head, evaluated=1, shard=0))])[0].total + 5 * 10**6
    unknown, never = (forecast(phases, may_cache=value)[1].total for value in (True, False))
    assert unknown > never, "before it is decided, both are covered"


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ("--model=keras:MobileNetV2", "--batch_size=32", "--cache=require"),
        ("--model=keras:MobileNetV2", "--batch_size=32", "--cache=off"),
        ("--model=keras:EfficientNetB0", "--batch_size=16", "--cache=require"),
        ("--model=keras:ResNet50", "--batch_size=8", "--cache=off", "--train=@all"),
    ],
    ids=lambda flags: " ".join(flags),
)
def test_the_peak_of_a_keras_job_is_close_to_its_forecast(
    finetune: Any, tmp_path: pathlib.Path, flags: tuple[str, ...]
) -> None:
    rng = np.random.default_rng(0)
    for number in range(120):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).resize((300, 260)).save(path)
    own = ("--weights=none", "--steps=4", f"--data=folder:{tmp_path / 'photos'}", f"--out={tmp_path / 'run'}")
    finetune(*flags, *own)
    memory = json.loads((tmp_path / "run/run.json").read_text())["memory"]
    assert memory["peak_rss_bytes"] > 0.8e9
    assert 0.95 <= memory["forecast_bytes"]["total"] / memory["peak_rss_bytes"] <= 1.25
