"""A TFLite model is what the model is, in the interpreter of phones; quantised ones as far as is allowed."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Callable

import numpy as np
import pytest

from engine.errors import InputError
from engine.export import run as exporting
from engine.export.checking import ExportError
from engine.export.config import ExportConfig
from engine.export.run import export_run
from engine.export.update import push_delta
from engine.files import Npz, write_npz
from engine.recipes.reopen import open_run

interpreters = pytest.importorskip("ai_edge_litert.interpreter")
Train = Callable[..., pathlib.Path]
IMAGES = np.random.default_rng(0).random((3, 16, 16, 1), np.float32)


@pytest.fixture(scope="module")
def cnn_run(train: Train) -> pathlib.Path:
    return train(model="cnn:mini", steps=8, train="@all")


def export(run: pathlib.Path, out: pathlib.Path, **fields: object) -> dict:
    return dict(export_run(ExportConfig(run=str(run), out=str(out), format="tflite", **fields)).record)


def run_model(path: pathlib.Path, images: np.ndarray) -> np.ndarray:
    interpreter = interpreters.Interpreter(model_path=str(path))
    serve = interpreter.get_signature_runner("serving_default")
    return np.concatenate([serve(images=image[None])["logits"] for image in images])


def logits(run: pathlib.Path, images: np.ndarray) -> np.ndarray:
    opened = open_run(run)
    return opened.network(opened.normalise(images), training=False).numpy()


def test_float32_is_the_model(cnn_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    record = export(cnn_run, tmp_path / "lite")
    np.testing.assert_allclose(
        run_model(tmp_path / "lite" / "model.tflite", IMAGES), logits(cnn_run, IMAGES), atol=1e-5
    )
    checked = record["checked"]
    assert checked["agreement"] == 1.0
    assert checked["accuracy"] == checked["model_accuracy"]
    assert checked["examples"] == 6
    assert checked["milliseconds"] > 0 < checked["model_milliseconds"]
    assert record["bytes"]["export"] == (tmp_path / "lite" / "model.tflite").stat().st_size
    assert json.loads((tmp_path / "lite" / "export.json").read_text())["bytes"] == record["bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["float16", "dynamic", "int8"])
def test_quantised_models_are_smaller_and_close(
    quantize: str,
    cnn_run: pathlib.Path,
    snippets: list[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = export(cnn_run, tmp_path / "phone", quantize=quantize, max_accuracy_loss=0.1, calibration_examples=20)
    share = record["bytes"]["export"] / record["bytes"]["model"]
    assert share < {"float16": 0.65, "dynamic": 0.45, "int8": 0.45}[quantize]
    bound = {"float16": 1e-2, "dynamic": 0.1, "int8": 0.3}[quantize]
    assert np.abs(run_model(tmp_path / "phone" / "model.tflite", IMAGES) - logits(cnn_run, IMAGES)).max() < bound
    monkeypatch.chdir(tmp_path)
    exec(snippets[1], {})  # as the page prints it
    assert capsys.readouterr().out.split() in (["0"], ["1"], ["2"])


def test_a_quantised_model_that_loses_too_much_needs_yes(
    cnn_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting.lite, "convert", lambda *_, **__: b"converted")
    outputs = logits(cnn_run, np.zeros([1, 16, 16, 1], np.float32))
    monkeypatch.setattr(exporting.interpreter, "open_runner", lambda _: lambda x: np.repeat(-outputs, len(x), axis=0))
    with pytest.raises(
        ExportError, match=r"a loss of 0\.\d+; --max_accuracy_loss=0\.01 allows less.*nothing is written"
    ):
        export(cnn_run, tmp_path / "lite", quantize="dynamic")
    assert not list(tmp_path.iterdir())
    assert export(cnn_run, tmp_path / "lite", quantize="dynamic", yes=True)["checked"]["accuracy"] < 0.5
    with pytest.raises(ExportError, match="an output differs from the model's"):
        export(cnn_run, tmp_path / "other", quantize="none", yes=True)
    monkeypatch.setattr(exporting.interpreter, "open_runner", lambda _: lambda x: np.full([len(x), 3], np.nan))
    with pytest.raises(ExportError, match="not finite"):
        export(cnn_run, tmp_path / "other", quantize="dynamic", yes=True)


def test_without_the_interpreter_nothing_is_written(
    cnn_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(InputError, match=r"ai-edge-litert is missing.*frostline\[litert\]"):
        export(cnn_run, tmp_path / "lite")
    assert not list(tmp_path.iterdir())


def vary_base(delta: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """The same delta, of another base."""
    with Npz(delta) as npz:
        arrays, base = {n: npz.read(n) for n in npz.names()}, json.loads(npz.text("base.json"))
    write_npz(out, arrays.items(), texts={"base.json": json.dumps(base | {"sha256": "0" * 64})})
    return out


@pytest.mark.slow
def test_a_device_takes_a_new_head(
    train: Train,
    cnn_run: pathlib.Path,
    snippets: list[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = sorted((cnn_run / "checkpoints").glob("step-*.npz"))[-1]
    runs = [train(model="cnn:mini", weights=str(base), train="@head", steps=n) for n in (1, 4)]
    record = export(runs[0], tmp_path / "phone", updatable="@head")
    assert record["load_delta"]["bytes"] == 4 * (64 * 3 + 3)
    push_delta(tmp_path / "phone", runs[1] / "trained.npz", tmp_path / "head.npz")
    assert (tmp_path / "head.npz").stat().st_size < 2000 < record["bytes"]["export"]
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(snippets[2], names)  # as the page prints it
    serve = names["serve"]
    found = np.concatenate([serve(images=image[None])["logits"] for image in IMAGES])
    np.testing.assert_allclose(found, logits(runs[1], IMAGES), atol=1e-5)
    with pytest.raises(InputError, match="it belongs to other weights"):
        push_delta(tmp_path / "phone", vary_base(runs[1] / "trained.npz", tmp_path / "other.npz"), tmp_path / "no.npz")
    with pytest.raises(InputError, match=r"it holds stages/.* the load_delta of .* takes head/"):
        push_delta(tmp_path / "phone", cnn_run / "trained.npz", tmp_path / "no.npz")
    assert not (tmp_path / "no.npz").exists()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float64", "mixed_bfloat16"])
def test_other_precisions_become_float32(precision: str, train: Train, tmp_path: pathlib.Path) -> None:
    run = train(precision=precision)
    export(run, tmp_path / "lite")
    bound = 1e-5 if precision == "float64" else 5e-2
    assert np.abs(run_model(tmp_path / "lite" / "model.tflite", IMAGES) - logits(run, IMAGES)).max() < bound


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "tf"}, "format='tf': expected one of savedmodel"),
        ({"quantize": "int4", "format": "tflite"}, "quantize='int4': expected one of"),
        ({"quantize": "int8"}, "applies to --format=tflite, not to savedmodel"),
        ({"updatable": "@head"}, "applies to --format=tflite"),
        ({"updatable": "@head", "format": "tflite", "quantize": "int8"}, "an int8 model has no variables"),
        ({"rules": "vit_hf"}, "applies to --format=safetensors"),
        ({"delta_for": "x", "format": "keras"}, "applies to --format=savedmodel"),
        ({"calibration_examples": 0}, "calibration_examples=0"),
        ({"max_accuracy_loss": 1.5}, "max_accuracy_loss=1.5"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExportConfig(run="runs/a", **fields)


def test_a_filter_that_means_nothing_is_refused(cnn_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match=r"updatable='heda/\.\*'"):
        export(cnn_run, tmp_path / "lite", updatable="heda/.*")
    assert not list(tmp_path.iterdir())
