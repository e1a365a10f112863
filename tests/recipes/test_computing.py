"""The device, XLA and the precision of a run: decided once, from figures, without a trace, and kept by a resume."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest

from engine.devices import Device
from engine.errors import InputError
from engine.files import Npz
from engine.recipes import auto_precision, computing
from engine.recipes.auto_precision import choose_precision, decide_precision
from engine.recipes.config import FinetuneConfig
from engine.recipes.reopen import open_run
from engine.training import compiling
from engine.training.product_speed import ProductSpeed

CPU, GPU = Device(name="cpu", description="x"), Device(name="gpu:0", description="y")
SLOW, FAST = ProductSpeed(1e11, 5e10), ProductSpeed(1e11, 4e11)


# --- the rule ---


@pytest.mark.parametrize(
    ("ratio", "steps", "used"),
    [
        (0.5, None, "float32"),
        (1.49, {"float32": 2.0, "mixed_bfloat16": 1.0}, "float32"),
        (1.5, {"float32": 2.0, "mixed_bfloat16": 1.0}, "mixed_bfloat16"),
        (4.0, {"float32": 0.49, "mixed_bfloat16": 0.60}, "float32"),  # depthwise convolutions
        (4.0, {"float32": 1.0, "mixed_bfloat16": 0.95}, "float32"),  # not worth its rounding
        (4.0, {"float32": 1.1, "mixed_bfloat16": 1.0}, "mixed_bfloat16"),
        (float("nan"), {"float32": 2.0, "mixed_bfloat16": 1.0}, "float32"),
    ],
)
def test_products_and_steps_must_both_be_faster(ratio: float, steps: Any, used: str) -> None:
    found, reason = choose_precision(ProductSpeed(1e11, ratio * 1e11), steps)
    assert found == used
    assert "GFLOP/s" in reason
    assert (steps is None or ratio < 1.5 or ratio != ratio) or "ms in float32" in reason


def no_step(precision: str) -> Callable[[], Any]:
    raise AssertionError(f"a step in {precision} was built")


@pytest.mark.parametrize("asked", ["float32", "mixed_bfloat16", "mixed_float16", "float64"])
@pytest.mark.parametrize("speed", [SLOW, FAST], ids=["slow", "fast"])
def test_what_is_asked_for_is_used_and_no_step_is_timed_for_it(
    asked: str, speed: ProductSpeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_precision, "measure_products", lambda kind: speed)
    found = decide_precision(asked, CPU, no_step)
    assert (found.used, found.step_seconds) == (asked, None)
    if asked in auto_precision.CANDIDATES:
        told = "would choose float32" if speed is SLOW else "would time steps of the model"
        assert f"--precision=auto {told}" in found.reason


def test_auto_times_no_step_where_products_are_slow_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_precision, "measure_products", lambda kind: SLOW)
    monkeypatch.setattr(auto_precision, "bfloat16_instructions", lambda: ())
    found = decide_precision("auto", CPU, no_step)
    assert found.used == "float32"
    assert found.reason == (
        "bfloat16 products are 0.50 times as fast as those of float32 (50 and 100 GFLOP/s), and mixed_bfloat16 needs 1.5 "
        "times; the processor has no bfloat16 instructions"
    )
    assert "instructions" not in decide_precision("auto", GPU, no_step).reason


def test_auto_takes_float32_where_the_model_itself_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_precision, "measure_products", lambda kind: FAST)

    def make(precision: str) -> Callable[[], Any]:
        if precision != "float32":
            raise InputError("py:x returns a tf.Module, which itself decides")
        return lambda: None

    found = decide_precision("auto", GPU, make)
    assert (found.used, "itself decides" in found.reason) == ("float32", True)


def test_the_time_of_a_step_is_the_least_after_the_one_that_compiles() -> None:
    clock = itertools.accumulate([0.0, 0.3, 1.0, 0.2, 1.0, 0.4])
    done: list[int] = []
    assert auto_precision.time_step(lambda: done.append(1), lambda: next(clock)) == pytest.approx(0.2)
    assert len(done) == 4


# --- what a resume does ---


def decide(saved: Any, device: Device = CPU, **fields: Any) -> tuple[computing.Computing, list[str]]:
    said: list[str] = []
    config = FinetuneConfig(**fields)
    return computing.decide_computing(config, device, saved=saved, make_step=no_step, say=said.append), said


def saved_by(device: Device, *, jit: bool, precision: str = "mixed_bfloat16") -> dict[str, Any]:
    choice = auto_precision.PrecisionChoice(used=precision, reason="it was faster", step_seconds={"float32": 2.0})
    given: Any = {"device": device, "jit_compile": "on" if jit else "off", "precision": choice}
    return dict(json.loads(json.dumps(computing.Computing(**given, measured=True).to_state())))


def test_a_resume_keeps_the_precision_and_says_where_the_last_bits_may_differ() -> None:
    same, said = decide(saved_by(CPU, jit=False), precision="auto")
    assert (same.precision.used, same.precision.step_seconds, same.compiles) == (
        "mixed_bfloat16",
        {"float32": 2.0},
        False,
    )
    assert not said
    moved, said = decide(saved_by(GPU, jit=True), precision="auto")
    assert not moved.compiles
    (line,) = said
    assert "computes on cpu, XLA off; before it was gpu:0, XLA on: the last bits of its steps may differ" in line
    changed, said = decide(saved_by(CPU, jit=False), precision="auto", jit_compile="on")
    assert changed.compiles
    assert "cpu, XLA on; before it was cpu, XLA off" in said[0]


def test_a_checkpoint_keeps_no_figures_that_decided_nothing() -> None:
    found, _ = decide(None)
    assert "GFLOP/s" in found.precision.reason
    assert found.to_state() == {
        "device": "cpu",
        "jit_compile": False,
        "precision": {"used": "float32", "reason": "as asked", "products": None, "step_seconds": None},
    }


def test_a_checkpoint_of_an_earlier_version_is_decided_anew() -> None:
    found, said = decide({})
    assert (found.precision.used, found.compiles, said) == ("float32", False, [])


def test_a_new_run_compiles_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not decide(None)[0].compiles
    monkeypatch.setattr(compiling, "computing_kind", lambda: "gpu")
    found, _ = decide(None, GPU, precision="float64")
    assert found.compiles
    assert re.fullmatch(r"device:  gpu:0, y; TensorFlow [\d.]+; XLA compiles whole steps", found.lines()[0])


# --- whole runs ---

SMALL = (
    "--model=cnn:mini",
    "--weights=none",
    "--train=@head",
    "--batch_size=16",
    "--steps=3",
    "--cache=off",
    "--seed=4",
)


def arrays(path: pathlib.Path) -> dict[str, bytes]:
    with Npz(path) as npz:
        return {name: npz.read(name).tobytes() for name in npz.names()}


@pytest.mark.parametrize("model", ["keras", pytest.param("cnn:mini", marks=pytest.mark.slow)])
def test_a_run_that_chose_a_precision_is_the_run_that_asked_for_it_and_its_resume_keeps_it(
    model: str, call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts import cli

    if model == "keras":  # whose dropout draws from generators of its own
        import keras

        layers = [keras.layers.Flatten(), keras.layers.Dense(8), keras.layers.Dropout(0.5), keras.layers.Dense(3)]
        keras.Sequential([keras.Input((16, 16, 1)), *layers]).save(tmp_path / "model.keras")
        model = f"file:{tmp_path / 'model.keras'}"
    monkeypatch.setattr(auto_precision, "measure_products", lambda kind: FAST)
    timed: list[float] = []

    def time_step(step: Callable[[], Any], now: Callable[[], float]) -> float:
        step()  # it does train, with a model of its own
        timed.append(1.0 - 0.4 * len(timed))
        return timed[-1]

    monkeypatch.setattr(auto_precision, "time_step", time_step)
    data = (f"--data=npz:{small_data}", "--eval_fraction=0.2")
    flags = (*SMALL, f"--model={model}", *data, *(["--weights=auto", "--train=@all"] if model != "cnn:mini" else []))
    assert call(*flags, "--precision=mixed_bfloat16", f"--out={tmp_path / 'asked'}")[0] == 0
    assert not timed
    asked, out = itertools.count(), tmp_path / "auto"
    with monkeypatch.context() as patch:
        patch.setattr(cli.StopSignal, "__call__", lambda _: next(asked) > 2)
        code, printed, _ = call(*flags, "--precision=auto", f"--out={out}")
    assert code == 3
    assert timed == [1.0, 0.6]
    assert "numbers: mixed_bfloat16; bfloat16 products are 4.00 times" in printed
    assert "a step of the model takes 600.0 ms in mixed_bfloat16 and 1000.0 ms in float32, which saves 40%" in printed
    monkeypatch.setattr(auto_precision, "measure_products", lambda kind: SLOW)  # another machine
    code, printed, error = call("--resume", f"--out={out}")
    assert code == 0, error
    assert "which saves 40%" in printed
    assert arrays(out / "trained.npz") == arrays(tmp_path / "asked/trained.npz")
    run = json.loads((out / "run.json").read_text())
    assert run["precision"]["used"] == "mixed_bfloat16"
    assert run["precision"]["step_seconds"] == {"float32": 1.0, "mixed_bfloat16": 0.6}
    assert (run["flags"]["precision"], run["device"]["name"], run["jit_compile"]) == ("auto", "cpu", False)
    assert "--precision=mixed_bfloat16" in (out / "flags.cfg").read_text()
    assert "adamw, mixed_bfloat16" in (out / "card.md").read_text()
    assert open_run(out).numbers.name == "mixed_bfloat16"
    code, _, error = call("--resume", f"--out={out}", "--precision=float32")
    assert (code, "--precision: 'auto' in the checkpoint, 'float32' now" in error) == (2, True)


def test_a_device_that_is_not_there_ends_a_run_before_anything_is_written(call: Any, tmp_path: pathlib.Path) -> None:
    code, printed, error = call(*SMALL, "--device=gpu:0", f"--out={tmp_path / 'run'}")
    assert (code, printed, (tmp_path / "run").exists()) == (2, "", False)
    assert "device=gpu:0: there is no such device; TensorFlow finds cpu" in error


def test_a_model_that_cannot_be_compiled_is_refused_before_anything_is_written(
    call: Any, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    flags = ("--model=py:odd:build", "--weights=none", "--train=w", "--steps=1", "--cache=off", "--batch_size=16")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        code, _, error = call(*flags, "--jit_compile=on", f"--out={tmp_path / 'run'}")
    assert code == 2
    assert (
        "jit_compile=on: the operation EagerPyFunc (layer odd_layer) cannot be compiled; jit_compile=off runs it"
        in error
    )
    assert not list((tmp_path / "run").glob("*.npz"))


ODD = """
import tensorflow as tf

class Odd(tf.Module):
    def __init__(self, outputs):
        super().__init__()
        self.w = tf.Variable(tf.ones([1, outputs]), name="w")

    def __call__(self, images, training=False):
        x = tf.reduce_mean(images, [1, 2])[:, :1]
        with tf.name_scope("odd_layer"):
            x = tf.ensure_shape(tf.py_function(lambda v: v, [x], tf.float32), [None, 1])
        return tf.matmul(x, self.w)

def build(image_shape, outputs):
    return Odd(outputs)
"""


def test_figures_survive_json() -> None:
    choice = auto_precision.PrecisionChoice(used="float32", reason="r", products={"float32": 1e11, "bfloat16": 1e10})
    assert auto_precision.PrecisionChoice(**json.loads(json.dumps(choice.to_json()))) == choice
    assert set(choice.to_json()) == {field.name for field in dataclasses.fields(choice)}


@pytest.mark.slow
def test_a_compiled_run_on_cached_features_is_proven_and_its_resume_may_switch_xla_off(
    call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts import cli

    data = (f"--data=npz:{small_data}", "--eval_fraction=0.2", "--cache=require", "--optimizer=sgd", "--log_every=1")
    asked, out = itertools.count(), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(cli.StopSignal, "__call__", lambda _: next(asked) > 4)
        code, printed, error = call(*SMALL, *data, "--jit_compile=on", f"--out={out}")
    assert code == 3, error
    assert "; XLA compiles whole steps" in printed
    run = json.loads((out / "run.json").read_text())
    assert (run["jit_compile"], run["cache"]["used"], run["freeze_proof"]["verified"]) == (True, True, True)
    assert 0 < run["steps"] < 3
    code, printed, error = call("--resume", f"--out={out}", "--jit_compile=off")
    assert code == 0, error
    assert (
        "resume: the run computes on cpu, XLA off; before it was cpu, XLA on: the last bits of its steps may differ"
        in printed
    )
    assert call(*SMALL, *data, f"--out={tmp_path / 'plain'}")[0] == 0
    losses = []
    for folder in (out, tmp_path / "plain"):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if row["kind"] == "train"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert json.loads((out / "run.json").read_text())["jit_compile"] is False
