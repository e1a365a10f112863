"""A SavedModel is fine-tuned like any model: cache, evaluation, prediction, deltas, and it is saved again."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import saved_trunks as saved
import tensorflow as tf
from run_figures import check_equal, check_run_figures

from engine.errors import InputError
from engine.export.config import ExportConfig
from engine.export.run import export_run
from engine.files import Npz
from engine.models import build_model
from engine.recipes.apply_delta import apply_delta
from engine.recipes.config import FinetuneConfig
from engine.recipes.evaluate import evaluate
from engine.recipes.evaluation_data import open_examples
from engine.recipes.finetune import RunResult, finetune
from engine.recipes.opening import open_model
from engine.recipes.reopen import open_run
from engine.runs import picture, records

CLASSES = 4


@pytest.fixture(autouse=True, scope="module")
def _leave_no_trace() -> Iterator[None]:
    """No curves, which would take most of the time; and op determinism off again."""
    from engine.tensorflow_private import disable_op_determinism

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "draw_curves", lambda *_: None)
        patch.setattr(picture, "draw", lambda *_: None)
        yield
    disable_op_determinism()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("saved")
    saved.save(saved.Trunk(), folder / "trunk")
    rng = np.random.default_rng(0)
    parts = {"train": 40, "test": 20}
    images = {f"{name}_images": rng.integers(0, 256, (count, *saved.SHAPE), np.uint8) for name, count in parts.items()}
    labels = {f"{name}_labels": np.arange(count) % CLASSES for name, count in parts.items()}
    np.savez(folder / "data.npz", **images, **labels)
    return folder


def config(folder: pathlib.Path, out: str, **given: Any) -> FinetuneConfig:
    common = {
        "model": f"savedmodel:{folder}/trunk,preprocess=tf",
        "data": f"npz:{folder}/data.npz",
        "train": "@layers[-3:] @head",
        "steps": 4,
        "batch_size": 16,
        "log_every": 1,
        "cache": "require",
    }
    return FinetuneConfig(out=str(folder / out), **(common | given))


@pytest.fixture(scope="module")
def run(folder: pathlib.Path) -> RunResult:
    return finetune(config(folder, "run"))


def test_a_cached_run_freezes_what_it_should_and_evaluates_as_it_did(folder: pathlib.Path, run: RunResult) -> None:
    facts = json.loads((folder / "run/run.json").read_text())
    assert facts["cache"]["used"]
    assert facts["freeze_proof"]["verified"]
    (phase,) = facts["phases"]
    assert sorted(phase["trained"]) == ["dense/kernel", "head/logits/bias", "head/logits/kernel", *HIGH]
    assert phase["moving"] == []
    opened = open_run(folder / "run")
    report = evaluate(opened, open_examples(opened, say=lambda _: None))
    check_run_figures(opened, report)
    check_equal(opened, report.figures["loss"], run.run["final"]["eval_loss"])


HIGH = ["high/bn/beta", "high/bn/gamma", "high/conv/kernel"]


def test_its_delta_goes_onto_its_folder(folder: pathlib.Path, run: RunResult) -> None:
    images = np.random.default_rng(1).integers(0, 256, (5, *saved.SHAPE), np.uint8)
    expected = open_run(folder / "run").predictor()(images)
    given: dict[str, Any] = {"model": f"savedmodel:{folder}/trunk,preprocess=tf", "classes": CLASSES, "head": "gap"}
    opened = open_model(**given, weights=f"auto+{folder}/run/trained.npz")
    np.testing.assert_array_equal(opened.predictor()(images), expected)
    applied = apply_delta("auto", folder / "run/trained.npz", folder / "whole.npz")
    assert set(applied.changed) == {*HIGH, "dense/kernel", "head/logits/kernel", "head/logits/bias"}
    with Npz(folder / "whole.npz") as npz:
        assert {"low/conv/kernel", "low/bn/moving_mean", *HIGH} <= set(npz.names())


@pytest.mark.slow
def test_it_is_saved_again_and_read_again(folder: pathlib.Path, run: RunResult) -> None:
    export_run(ExportConfig(run=str(folder / "run"), out=str(folder / "again")))
    images = np.random.default_rng(1).random((5, *saved.SHAPE), np.float32)
    opened = open_run(folder / "run")
    expected = np.asarray(opened.network(opened.normalise(images), training=False))
    loaded = tf.saved_model.load(str(folder / "again"))
    found = loaded.signatures["serving_default"](images=tf.constant(images))["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    given: dict[str, Any] = {"image_shape": saved.SHAPE, "outputs": CLASSES}
    model = build_model(f"savedmodel:{folder}/again,output=logits,preprocess=unit", **given)
    np.testing.assert_allclose(model.network(images), expected, atol=1e-5)
    trunk = build_model(f"savedmodel:{folder}/again,signature=features,preprocess=unit", **given)
    assert trunk.network(images).shape == (5, CLASSES)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "savedmodel:nosuch,preprocess=tf"}, "nosuch: there is no such folder"),
        ({"adapt": "lora:rank=2 @all"}, "which has no layers to adapt"),
        ({"distribute": "mirrored"}, "is a SavedModel, which trains on one device"),
        ({"precision": "mixed_bfloat16"}, "computes in float32 or float64"),
        ({"weights": "none"}, "has only the weights of its folder"),
        ({"loss": "graph:x"}, "a SavedModel has no losses"),
        ({"train": "@blocks[-1:]"}, "the model has no blocks"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    folder: pathlib.Path, tmp_path: pathlib.Path, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        finetune(config(folder, str(tmp_path / "run"), **({"cache": "auto"} | given)))
    assert not (tmp_path / "run/checkpoints").exists()


def test_the_program_refuses_in_words_with_exit_code_2(
    folder: pathlib.Path, call: Callable[..., tuple[int, str, str]], tmp_path: pathlib.Path
) -> None:
    flags = (f"--data=npz:{folder}/data.npz", "--steps=1", f"--out={tmp_path}/run")
    code, _, error = call("--model=hub:https://tfhub.dev/nobody/nothing/1,preprocess=unit", *flags)
    assert code == 2
    assert "is not in the cache of TensorFlow Hub" in error
    assert "Traceback" not in error
