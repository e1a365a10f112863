"""E5: a run that is killed and resumed ends with the bits of one that was not."""

from __future__ import annotations

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engine.files import Npz

ROOT = pathlib.Path(__file__).resolve().parents[2]


VIT = [
    "--model=vit:mini,depth=2,dropout=0.1,drop_path=0.1",
    "--augment=flip,crop,rotate",
    "--phase=name=head train=@head until=plateau patience=1 max_steps=9",
    "--phase=name=upper train='@head @blocks[-1:] !@norm' steps=11 learning_rate=5e-4",
    "--optimizer=adamw",
    "--clip_norm=1",
    "--eval_every=4",
    "--keep_best",
]
CNN = ["--model=cnn:mini", "--train=@all @stats", "--optimizer=momentum", "--nesterov", "--steps=14", "--eval_every=5"]
COMMON = [
    "--weights=none",
    "--train_examples=50",
    "--eval_fraction=0.15",
    "--batch_size=16",
    "--log_every=1",
    "--checkpoint_every=2",
    "--keep=3",
]


def command(out: pathlib.Path, data: pathlib.Path, flags: list[str], *more: str) -> list[str]:
    return [sys.executable, "-m", "scripts.finetune", *flags, *COMMON, f"--data=npz:{data}", f"--out={out}", *more]


@pytest.fixture
def run(call: Any) -> Any:
    """Runs a command to its end and returns what it printed; in this process, since nothing kills it."""

    def start(line: list[str]) -> str:
        code, printed, error = call(*line[3:])
        assert code == 0, printed + error
        return str(printed)

    return start


def run_and_kill(line: list[str], out: pathlib.Path, rng: random.Random, last_step: int) -> None:
    """SIGKILL at a random moment after some progress; the run may also have ended by then."""
    metrics = out / "metrics.jsonl"
    have = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    wanted = have + rng.randint(1, max(1, last_step // 2))
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and len(metrics.read_text().splitlines()) >= wanted:
                time.sleep(rng.random() * 0.1)
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.005)


def arrays(path: pathlib.Path) -> dict[str, tuple[Any, bytes]]:
    with Npz(path) as npz:
        return {name: (npz.dtype(name), npz.read(name).tobytes()) for name in npz.names()}


def metrics(out: pathlib.Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("examples_per_second", None)  # the only thing that time decides
    return rows


def assert_equal_runs(one: pathlib.Path, other: pathlib.Path) -> None:
    last = sorted((one / "checkpoints").glob("step-*.npz"))[-1].name
    names = ["trained.npz", f"checkpoints/{last}"]
    names += ["checkpoints/best.npz"] if (one / "checkpoints/best.npz").exists() else []
    for name in names:
        assert arrays(one / name) == arrays(other / name), name
    assert metrics(one) == metrics(other)
    runs = [json.loads((folder / "run.json").read_text()) for folder in (one, other)]
    for key in ("phases", "steps", "final", "freeze_proof", "exit"):
        assert runs[0][key] == runs[1][key], key


@pytest.fixture
def whole(run: Any, small_data: pathlib.Path, shared: pathlib.Path) -> Callable[[list[str]], pathlib.Path]:
    """The folder of the run with these flags that nothing interrupts, done once."""

    def find(flags: list[str]) -> pathlib.Path:
        out = shared / flags[0].removeprefix("--model=").partition(":")[0]
        if not out.exists():
            run(command(out, small_data, flags))
        return out

    return find


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("whole")


def check(run: Any, whole: Any, tmp_path: pathlib.Path, data: pathlib.Path, flags: list[str], **given: int) -> None:
    rng = random.Random(given["seed"])
    print(f"kill moments from seed {given['seed']}")
    steps = json.loads((whole(flags) / "run.json").read_text())["steps"]
    killed = tmp_path / "killed"
    for _ in range(given["kills"]):
        run_and_kill(command(killed, data, flags, "--resume"), killed, rng, steps)
    run(command(killed, data, flags, "--resume"))
    assert_equal_runs(whole(flags), killed)


@pytest.mark.slow
def test_a_vit_run_killed_at_a_random_moment_ends_with_the_same_bits(
    run: Any, whole: Any, tmp_path: pathlib.Path, small_data: pathlib.Path
) -> None:
    check(run, whole, tmp_path, small_data, VIT, kills=1, seed=time.time_ns())


@pytest.mark.parametrize("kills", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_batchnorm_run_killed_and_resumed_ends_with_the_same_bits(
    run: Any, whole: Any, tmp_path: pathlib.Path, small_data: pathlib.Path, kills: int
) -> None:
    check(run, whole, tmp_path, small_data, CNN, kills=kills, seed=time.time_ns())


@pytest.mark.slow
@pytest.mark.parametrize("flags", [VIT, CNN], ids=["vit", "cnn"])
@pytest.mark.parametrize("seed", range(3))
def test_many_kills_change_nothing(
    run: Any, whole: Any, tmp_path: pathlib.Path, small_data: pathlib.Path, flags: list[str], seed: int
) -> None:
    check(run, whole, tmp_path, small_data, flags, kills=5, seed=seed)


def test_a_resume_after_the_newest_checkpoint_was_damaged_ends_with_the_same_bits(
    run: Any, whole: Any, tmp_path: pathlib.Path, small_data: pathlib.Path
) -> None:
    out = tmp_path / "damaged"
    shutil.copytree(whole(CNN), out)
    newest = sorted((out / "checkpoints").glob("step-*.npz"))[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 16
    newest.write_bytes(content)
    printed = run(command(out, small_data, CNN, "--resume"))
    assert newest.name in printed
    assert "trying the one before it" in printed
    assert_equal_runs(whole(CNN), out)


def test_checkpoints_hold_the_state_of_keras_seed_generators(tmp_path: pathlib.Path) -> None:
    import keras

    from engine import TrainStep, select
    from engine.selection.variables import name_variables
    from engine.training import checkpoint, losses, optimizers

    def model() -> Any:
        keras.utils.set_random_seed(3)
        return keras.Sequential(
            [keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dropout(0.5), keras.layers.Dense(3)]
        )

    rng = np.random.default_rng(0)
    batches = [{"image": rng.random((5, 6), np.float32), "label": rng.integers(0, 3, 5)} for _ in range(4)]

    def train(network: Any, step: TrainStep, part: list[Any]) -> None:
        for batch in part:
            step(select(network, ".*"), batch, learning_rate=0.1)

    whole = model()
    train(whole, TrainStep(losses.supervised_loss(whole), optimizers.Adam()), batches)
    first = model()
    step = TrainStep(losses.supervised_loss(first), optimizers.Adam())
    train(first, step, batches[:2])
    saved = checkpoint.save(tmp_path, 2, variables=name_variables(first), arrays=step.arrays, state={})
    second = model()
    variables, found = name_variables(second), checkpoint.read(saved)
    checkpoint.restore(found, variables)
    step = TrainStep(losses.supervised_loss(second), optimizers.Adam())
    step.slots.restore(variables, optimizers.Adam(), found.arrays)
    train(second, step, batches[2:])
    for a, b in zip(whole.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
