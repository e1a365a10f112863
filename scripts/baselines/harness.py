"""What the runners of the benchmarks share: their job, and how they are started, timed, compared and printed.

Imports no framework, so that the memory of the torch runner is PyTorch's alone.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from engine import text
from engine.host import peak_rss_bytes
from engine.study import child

# relative differences allowed between the first losses; Keras and PyTorch sum in a different order
AGREEMENT = {"hand": 1e-5, "keras": 1e-4, "keras_fit": 1e-4, "torch": 1e-4}


class BenchmarkError(Exception):
    """A runner failed, or does not compute what the others compute."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One selection of one model, the same for all runners.

    Attributes:
        config: the fields of engine.models.vit.Config; "image" is [height, width, channels].
        train: the filter text of what is trained.
        trained, decayed: the paths of the variables that are trained, and of those among them that decay.
        weights: an .npz file of variable path -> array, from which every runner starts.
        warmup, steps: the number of steps that are not timed, and of those that are.
        adamw: learning_rate, beta1, beta2, epsilon, weight_decay.
        seed: the seed of the images and labels.
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

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Images, float32 [B, height, width, channels] of mean 0 and deviation 1, and labels, int32 [B]."""
        rng = np.random.default_rng(self.seed)
        images = rng.standard_normal((self.batch_size, *self.config["image"]), np.float32)
        return images, rng.integers(0, self.config["classes"], self.batch_size, np.int32)

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """The path and value of each variable, one at a time: all at once would count as the runner's memory."""
        with np.load(self.weights, allow_pickle=False) as archive:
            for path in archive.files:
                yield path, archive[path]


class Runner(Protocol):
    """A training loop that can be stepped from outside."""

    def train_step(self) -> float:
        """Trains on the job's batch once and returns its loss, after the update."""

    def facts(self) -> dict[str, Any]:
        """slot_bytes, trained_parameters, parameters, and what else the runner knows."""


def run_alone(runner: Runner, job: Job) -> dict[str, Any]:
    """Steps one runner alone."""
    losses: list[float] = []
    seconds: list[float] = []
    for _ in range(job.warmup + job.steps):
        time_step(runner.train_step, losses, seconds)
    return report(runner, losses, seconds[job.warmup :])


def run_pair(one: Runner, other: Runner, job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """Steps two runners in turn, swapping the order after every pair, so that both see the same machine."""
    times: tuple[list[float], list[float]] = ([], [])
    losses: tuple[list[float], list[float]] = ([], [])
    for number in range(job.warmup + job.steps):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            time_step((one, other)[which].train_step, losses[which], times[which])
    return report(one, losses[0], times[0][job.warmup :]), report(other, losses[1], times[1][job.warmup :])


def run_apart(
    target: str, argument: Mapping[str, Any], *, what: str, show: bool = False, tensorflow: bool = True
) -> dict[str, Any]:
    """Calls ``module:name`` of this package in a process of its own, as ``engine.study.child.run_job`` does.

    Raises BenchmarkError if it failed; the message says ``what``: the runner and what it trains.
    """
    try:
        return child.run_job(f"{__package__}.{target}", argument, show=show, tensorflow=tensorflow)
    except child.ChildError as error:
        raise BenchmarkError(f"{what} failed: {error}") from None


def time_step(train_step: Callable[[], float], losses: list[float], seconds: list[float]) -> None:
    start = time.perf_counter()
    loss = train_step()
    seconds.append(time.perf_counter() - start)
    losses.append(loss)


def report(runner: Runner, losses: list[float], seconds: list[float]) -> dict[str, Any]:
    """What a process reports: times in seconds, memory in bytes."""
    return {
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "seconds": seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        **runner.facts(),
    }


def check_agreement(job: Job, results: dict[str, Any], interleaved: dict[str, Any]) -> None:
    """Raises BenchmarkError unless the numbers of parameters and the first losses of all runners agree."""
    base = interleaved.get("engine") or next(iter(results.values()), None)
    for runner, result in (*interleaved.items(), *results.items()):
        assert base is not None
        for name in ("parameters", "trained_parameters"):
            if result[name] != base[name]:
                raise BenchmarkError(f"{job.train}: {runner} has {result[name]:,} {name}; expected {base[name]:,}")
        bound = AGREEMENT.get(runner, AGREEMENT["hand"])
        if not abs(result["first_loss"] - base["first_loss"]) <= bound * abs(base["first_loss"]):  # a NaN fails too
            raise BenchmarkError(
                f"{job.train}: the loss of the first step is {result['first_loss']!r} for {runner} and "
                f"{base['first_loss']!r} for the first runner; expected a relative difference of at most {bound:g}"
            )


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints the rows as an aligned table, with a few sentences on what the numbers mean."""
    head = ("train", "runner", "parameters", "step ms", "p10", "p90", "to hand", "peak MiB", "to hand", "slots MiB",
            "backward ops")  # fmt: skip
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
                f"{tape['activation_bytes'] / 2**20:.1f} MiB of activations are kept; {tape['traces']} trace(s)"
            )
    if any(row["interleaved"] for row in rows):
        print("engine and hand were timed in turn in one process; the ratio is the median over the pairs (p10 to p90)")
    if any(row["installed"] and not row["interleaved"] for row in rows):
        print("the other runners were timed alone, not interleaved; ~ marks a quotient of two medians")
