"""What the runners of the benchmarks share: their job, and how they are started, timed, compared and printed.

Imports no framework, so that the memory of the torch runner is PyTorch's alone.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from engine.host import peak_rss_bytes
from engine.study import child

# relative differences allowed between the first losses; Keras and PyTorch sum in a different order
AGREEMENT = {"hand": 1e-5}
_OTHERS = 1e-4
_BFLOAT16 = 2e-2  # the libraries keep different parts of a step in float32


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
        seed: the seed of the images and labels, and of the weights where there is no file of them.
        precision: "float32" or "mixed_bfloat16".
        statistics: how the statistics of trained layers behave (engine.models.spec.Model).
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
    precision: str = "float32"
    statistics: Literal["follow", "frozen"] = "follow"

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
        if (reason := find_disagreement(job, runner, result, base)) is not None:
            raise BenchmarkError(f"{job.train}: {runner}: {reason}")


def find_disagreement(job: Job, runner: str, result: Mapping[str, Any], base: Mapping[str, Any]) -> str | None:
    """Why a runner does not compute what another one computes; None if its parameters and first loss are the same."""
    for name in ("parameters", "trained_parameters"):
        if result[name] != base[name]:
            return f"it has {result[name]:,} {name}; expected {base[name]:,}"
    bound = AGREEMENT.get(runner, _OTHERS) if job.precision == "float32" else _BFLOAT16
    one, other = result["first_loss"], base["first_loss"]
    if not abs(one - other) <= bound * abs(other):  # a NaN fails too
        return f"the loss of its first step is {one!r}; expected {other!r}, up to a relative difference of {bound:g}"
    return None
