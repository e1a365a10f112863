"""gpu_check: its parts on the CPU, what it says without a GPU, and its table."""

from __future__ import annotations

import json
import pathlib
import types
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine.models import layers
from scripts.baselines import gpu_contracts, gpu_parts

TINY = {"model": "vit:mini,depth=1", "image_size": 8, "batch_size": 2, "steps": 1}


class Network(tf.Module):
    """Two dense layers, with dropout between them, that are traced fast."""

    def __init__(self, dtype: Any, compute: Any) -> None:
        super().__init__()
        rng, self.compute = np.random.default_rng(1), compute or dtype
        self.body, self.head = (layers.Dense(n, m, rng=rng, dtype=dtype) for n, m in ((64, 5), (5, 4)))

    def __call__(self, images: Any, *, training: bool, seeds: Any) -> Any:
        x = self.body(tf.reshape(tf.cast(images, self.compute), [-1, 64]))
        return self.head(layers.dropout(x, 0.2, seeds=seeds, site=0))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(spec: str, *, dtype: Any, compute: Any, **_: Any) -> Any:
        return types.SimpleNamespace(network=Network(dtype, compute))

    monkeypatch.setattr(gpu_contracts, "build_model", build)
    monkeypatch.setattr(gpu_contracts, "_VIT", ("", "head/.*"))
    monkeypatch.setattr(gpu_contracts, "_CNN", ("", "body/.*"))
    monkeypatch.setattr(gpu_contracts, "_SIDE", 8)


@pytest.mark.parametrize(
    "contract",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("E3", "E5"))) for name in gpu_contracts.CONTRACTS],
)
@pytest.mark.usefixtures("tiny", "deterministic_ops")
def test_a_contract_holds_on_the_cpu(contract: str) -> None:
    rows = gpu_contracts.CONTRACTS[contract](xla=False)
    assert rows
    assert all(row["holds"] for row in rows), rows
    assert all(set(row) == {"what", "found", "bound", "holds"} for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("contract", gpu_contracts.CONTRACTS)
@pytest.mark.usefixtures("deterministic_ops")
def test_a_contract_holds_with_xla(contract: str) -> None:
    assert all(row["holds"] for row in gpu_contracts.CONTRACTS[contract](xla=True))


@pytest.mark.parametrize("found", [float("nan"), 1.0, -1.0])
def test_a_contract_that_is_broken_does_not_hold(found: float) -> None:
    assert not gpu_contracts._row("x", found, 1e-6)["holds"]


@pytest.mark.parametrize(
    ("runner", "precision"),
    [
        ("engine", "bfloat16"),
        *(
            pytest.param(runner, precision, marks=pytest.mark.slow)
            for runner in ("engine", "keras")
            for precision in gpu_parts.PRECISIONS
            if (runner, precision) != ("engine", "bfloat16")
        ),
    ],
)
def test_steps_are_timed_with_their_memory(runner: str, precision: str) -> None:
    part = {"device": "cpu", "seconds": 0, "precision": precision, "runner": runner, "xla": False, **TINY}
    found = gpu_parts.measure_steps(part)
    assert found["step_ms"]["median"] > 0
    assert found["peak_bytes"] > 0
    assert (found["forecast_bytes"] is None) == (runner == "keras")
    assert found["first_loss"] == pytest.approx(2.3, rel=0.2)


def test_bad_flags_and_a_machine_without_gpu_are_told_in_a_line(run_each: Any, tmp_path: pathlib.Path) -> None:
    out = f"--out={tmp_path / 'found.json'}"
    asked = {
        (): "gpu_check: there is no GPU that TensorFlow can use; --device=cpu tries",
        ("--device=gpu:1",): "device=gpu:1: there is no such device; TensorFlow finds cpu",
        ("--device=gpu",): "device='gpu': expected auto, cpu or gpu:N",
        ("--contracts=E4",): "contracts='E4': expected some of E1, E2, E3, E5",
        ("--precisions=float8",): "precisions='float8': expected some of float32, tf32, bfloat16, float16",
        ("--xla=",): "expected at least one of --xla",
        ("--minutes=0",): "minutes=0: expected a number from 1 to 1440",
    }
    found = run_each("scripts.gpu_check", [[*words, out] for words in asked])
    for (code, printed, error), message in zip(found, asked.values(), strict=True):
        assert (code, printed) == (2, "")
        assert message in error
        assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "found.json").exists()


@pytest.mark.slow
def test_the_whole_check_runs_on_the_cpu(run_each: Any, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "found.json"
    sizes = [f"--{name}={value}" for name, value in TINY.items()]
    flags = ["--device=cpu", "--contracts=E1", "--precisions=float32", *sizes, f"--out={out}"]
    ((code, printed, error),) = run_each("scripts.gpu_check", [flags], seconds=900)
    assert code == 0, error
    results = json.loads(out.read_text())
    assert results["done"]
    assert results["device"]["name"] == "cpu"
    assert [row["xla"] for row in results["contracts"]] == [False, False, True, True]
    assert len(results["steps"]) == 4
    assert not results["failed"]
    assert "E1        off  frozen variables that changed" in printed
    assert "engine to keras" in printed
