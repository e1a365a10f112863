"""What the runners of the benchmarks share: the job they are given, how they are started, timed, compared and shown.

Imports no framework, so that the torch runner's memory is torch's alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from engine import text

# relative difference of the first step's loss; Keras and torch sum in another order
AGREEMENT = {"hand": 1e-5, "keras": 1e-4, "keras_fit": 1e-4, "torch": 1e-4}


class BenchmarkError(Exception):
    """A runner failed, or does not compute what the others compute."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One selection of one model, as a subprocess gets it in JSON on its standard input.

    Attributes:
        model: the model's name, as in a flag.
        config: fields of engine.models.vit.Config; "image" is [height, width, channels].
        train: filter text of what trains.
        trained, decayed: variable paths that train, and those of them that decay.
        weights: .npz file of variable path -> array, which every runner starts from.
        batch_size: examples per step.
        warmup, steps: steps that are not counted, and those that are.
        adamw: learning_rate, beta1, beta2, epsilon, weight_decay.
        seed: of the images and labels.
    """

    model: str
    config: dict[str, Any]
    train: str
    trained: list[str]
    decayed: list[str]
    weights: str
    batch_size: int
    warmup: int
    steps: int
    adamw: dict[str, float]
    seed: int

    @classmethod
    def read(cls) -> Job:
        """The job on standard input."""
        return cls(**json.load(sys.stdin))

    def text(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Images, float32 [B, height, width, channels] of mean 0 and deviation 1, and labels, int32 [B]."""
        rng = np.random.default_rng(self.seed)
        images = rng.standard_normal((self.batch_size, *self.config["image"]), np.float32)
        return images, rng.integers(0, self.config["classes"], self.batch_size, np.int32)

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Path and value of every variable, one at a time: all at once would count as the runner's memory."""
        with np.load(self.weights, allow_pickle=False) as archive:
            for path in archive.files:
                yield path, archive[path]


class Runner(Protocol):
    """A training loop that can be stepped from outside."""

    def train_step(self) -> float:
        """Trains on the job's batch once and returns its loss, the update done."""
        ...

    def facts(self) -> dict[str, Any]:
        """slot_bytes, trained_parameters, parameters, and what else the runner knows."""
        ...


def run(runner: Runner, job: Job) -> dict[str, Any]:
    """Steps one runner alone."""
    losses: list[float] = []
    seconds: list[float] = []
    for _ in range(job.warmup + job.steps):
        timed(runner.train_step, losses, seconds)
    return report(runner, losses, seconds[job.warmup :])


def run_pair(one: Runner, other: Runner, job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """Steps two runners in turn, the order swapped every pair, so that both see the same machine."""
    times: tuple[list[float], list[float]] = ([], [])
    losses: tuple[list[float], list[float]] = ([], [])
    for number in range(job.warmup + job.steps):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            timed((one, other)[which].train_step, losses[which], times[which])
    return (
        report(one, losses[0], times[0][job.warmup :]),
        report(other, losses[1], times[1][job.warmup :]),
    )


class JsonJob(Protocol):
    """A job as ``start`` needs it: as text, and what of the model trains, for messages."""

    @property
    def train(self) -> str: ...

    def text(self) -> str: ...


def start(words: list[str], job: JsonJob, runner: str, *, result: pathlib.Path | None = None) -> dict[str, Any]:
    """Runs ``python -m`` of these words on a job in a process of its own; what it prints last.

    With ``result`` what it writes into that file, and what it prints is shown meanwhile.

    Raises:
        BenchmarkError: it failed; names the runner and the end of what it said.
    """
    child = subprocess.run(
        [sys.executable, "-m", *words],
        input=job.text(),
        stdout=None if result else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"KERAS_BACKEND": "tensorflow"},
        check=False,
    )
    if child.returncode:
        said = child.stderr.strip().splitlines()[-3:]
        reason = "; ".join(line.strip() for line in said) or f"exit code {child.returncode}"
        if child.returncode == -signal.SIGKILL:
            reason = "killed, as by a system out of memory; a smaller --batch_size needs less"
        raise BenchmarkError(f"{runner} on {job.train} failed: {reason}")
    found: dict[str, Any] = json.loads(result.read_text() if result else child.stdout.splitlines()[-1])
    return found


def timed(train_step: Callable[[], float], losses: list[float], seconds: list[float]) -> None:
    start = time.perf_counter()
    loss = train_step()
    seconds.append(time.perf_counter() - start)
    losses.append(loss)


def report(runner: Runner, losses: list[float], seconds: list[float]) -> dict[str, Any]:
    """What a subprocess prints: times in seconds, memory in bytes."""
    return {
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "seconds": seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        **runner.facts(),
    }


def peak_rss_bytes() -> int:
    """Largest resident memory of this process since it became this program.

    On Linux from VmHWM: ru_maxrss outlives exec, so a subprocess would start at its parent's memory.
    As engine.runs.records has it; importing that would bring TensorFlow into PyTorch's process.
    """
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def check_agreement(job: Job, results: dict[str, Any], interleaved: dict[str, Any]) -> None:
    """Unequal models must not be compared: parameters, what trains, and the first loss have to agree."""
    base = interleaved.get("engine") or next(iter(results.values()), None)
    for runner, result in (*interleaved.items(), *results.items()):
        assert base is not None
        for name in ("parameters", "trained_parameters"):
            if result[name] != base[name]:
                raise BenchmarkError(f"{job.train}: {runner} has {result[name]:,} {name}, not {base[name]:,}")
        bound = AGREEMENT.get(runner, AGREEMENT["hand"])
        if not abs(result["first_loss"] - base["first_loss"]) <= bound * abs(base["first_loss"]):  # a NaN fails too
            raise BenchmarkError(
                f"{job.train}: the first step's loss is {result['first_loss']!r} for {runner} and "
                f"{base['first_loss']!r} for the first runner; they should agree to {bound:g}"
            )


def print_table(rows: list[dict[str, Any]]) -> None:
    """The rows as aligned text, and in words what the numbers are."""
    head = (
        "train",
        "runner",
        "parameters",
        "step ms",
        "p10",
        "p90",
        "to hand",
        "peak MiB",
        "to hand",
        "slots MiB",
        "backward ops",
    )
    table = [head]
    hands = {row["selection"]: row["step_ms"]["median"] for row in rows if row["runner"] == "hand"}
    for row in rows:
        if not row["installed"]:
            table.append((row["selection"], row["runner"], "not installed", *[""] * (len(head) - 3)))
            continue
        step, ratio, hand = row["step_ms"], row["ratio_to_hand"], hands.get(row["selection"])
        ratios = f"{ratio['median']:.3f} ({ratio['p10']:.3f} to {ratio['p90']:.3f})" if ratio else ""
        if not ratio and hand and row["runner"] != "hand":
            ratios = f"~{step['median'] / hand:.2f}"
        table.append(
            (
                row["selection"],
                row["runner"],
                f"{row['trained_parameters']:,}",
                *(f"{step[key]:.1f}" for key in ("median", "p10", "p90")),
                ratios,
                f"{row['peak_rss_bytes'] / 2**20:.0f}",
                f"{row['rss_ratio_to_hand']:.3f}" if row["rss_ratio_to_hand"] and row["runner"] != "hand" else "",
                f"{row['slot_bytes'] / 2**20:.2f}",
                "" if row["backward_ops"] is None else str(row["backward_ops"]),
            )
        )
    print("\n" + text.table(table, right=range(2, len(head))))
    for row in rows:
        if tape := row["tape"]:
            print(
                f"{row['selection']}: the engine's tape watches {tape['watched_variables']} of {tape['all_variables']} "
                f"variables; {tape['forward_ops']} other and {row['backward_ops']} backward ops; "
                f"{tape['activation_bytes'] / 2**20:.1f} MiB of activations kept; {tape['traces']} trace(s)"
            )
    if any(row["interleaved"] for row in rows):
        print("engine and hand were timed in turn in one process; their ratio is the median of the pairs' (p10 to p90)")
    if any(row["installed"] and not row["interleaved"] for row in rows):
        print("the other runners were timed alone, not interleaved: ~ is a quotient of two medians")
