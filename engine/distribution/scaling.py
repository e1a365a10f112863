"""The time of a step with many workers, on paper: measured compute, counted bytes, and the links between the workers.

For W workers, each with one device, a step of B examples takes

    t(W) = c + s ceil(B / W) + r(W)

where s is the time for an example and c what a step takes whatever its examples are (the update, above all). Both are
measured on one device. The engine computes all gradients, then reduces them, then updates, so the reduction r is added:
nothing of it is hidden behind the backward pass. With n bytes, links of b bytes per second and a delay of a seconds,

    r(W) = 2 (W - 1) / W n / b + k h(W) a

for k collective operations, one after the other. The first term is the least that any algorithm needs; the ring reaches it
with h = 2 (W - 1) messages one after the other (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
workstations", J. Parallel Distrib. Comput. 69(2), 2009), recursive halving and doubling with h = 2 ceil(log2 W) (Thakur,
Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", Int. J. High Perform. Comput. Appl.
19(1), 2005).

Left out, all of which make real steps longer: workers of different speed, links that others use, and reading the examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.distribution.shares import Share
from engine.errors import InputError, check_range
from engine.text import nearest

Algorithm = Literal["ring", "tree"]
ALGORITHMS: tuple[Algorithm, ...] = ("ring", "tree")


class ScalingError(InputError):
    """The model on paper cannot be computed with these numbers."""


@dataclass(frozen=True)
class Compute:
    """What a step takes on one device.

    Attributes:
        seconds_per_example: the seconds for each further example, forward and backward.
        seconds_per_step: the seconds of a step that do not depend on its examples, such as the update.

    Raises:
        InputError: the first is not above 0, or the second is below 0.
    """

    seconds_per_example: float
    seconds_per_step: float = 0.0

    def __post_init__(self) -> None:
        check_range("seconds_per_example", self.seconds_per_example, above=0)
        check_range("seconds_per_step", self.seconds_per_step, 0)

    def seconds(self, examples: int) -> float:
        """The seconds of a step with so many examples."""
        return self.seconds_per_step + self.seconds_per_example * examples


@dataclass(frozen=True)
class Link:
    """What connects each worker to the others.

    Attributes:
        bandwidth: the bytes that a worker sends in a second, while it receives as many.
        latency: the seconds from sending a message to its arrival, besides those for its bytes.

    Raises:
        InputError: the bandwidth is not above 0, or the latency is below 0.
    """

    bandwidth: float
    latency: float

    def __post_init__(self) -> None:
        check_range("bandwidth", self.bandwidth, above=0)
        check_range("latency", self.latency, 0)


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """The time of a step.

    Attributes:
        workers, examples: the number of workers, and that of the examples of the whole step.
        largest_share: the examples of the worker that has most; all wait for it.
        compute_seconds, reduction_seconds: the two parts of the time, one after the other.
    """

    workers: int
    examples: int
    largest_share: int
    compute_seconds: float
    reduction_seconds: float

    @property
    def seconds(self) -> float:
        """The seconds of the step."""
        return self.compute_seconds + self.reduction_seconds

    @property
    def examples_per_second(self) -> float:
        """The examples of all workers in a second."""
        return self.examples / self.seconds

    def speedup(self, one: StepTime) -> float:
        """How many times as many examples per second this is as ``one``, the step with one worker."""
        return self.examples_per_second / one.examples_per_second


def reduce_seconds(size: int, workers: int, link: Link, *, algorithm: Algorithm = "ring") -> float:
    """The seconds in which ``workers`` sum ``size`` bytes of each, so that all have the sum; 0 for one worker.

    Raises InputError if a number is below its least value, ScalingError if the algorithm is not a known one.

    Example:
        >>> from engine.distribution.scaling import Link, reduce_seconds
        >>> reduce_seconds(8_000_000, 4, Link(bandwidth=1e6, latency=0.5))
        15.0
    """
    check_range("size", size, 0)
    check_range("workers", workers, 1)
    if algorithm not in ALGORITHMS:
        raise ScalingError(
            f"algorithm={algorithm!r} is not a known one; expected {' or '.join(ALGORITHMS)}{nearest(algorithm, ALGORITHMS)}"
        )
    messages = 2 * (workers - 1) if algorithm == "ring" else 2 * (workers - 1).bit_length()
    return 2 * (workers - 1) / workers * size / link.bandwidth + messages * link.latency


def predict_step(
    compute: Compute,
    *,
    examples: int,
    workers: int,
    size: int,
    collectives: int,
    link: Link,
    algorithm: Algorithm = "ring",
) -> StepTime:
    """The time of a step of ``examples`` examples in all, which ``workers`` share.

    ``size`` is the bytes that each gives into ``collectives`` sums (``engine.distribution.reduction.Communication``). Raises
    InputError and ScalingError as ``reduce_seconds`` does.
    """
    check_range("examples", examples, 1)
    check_range("collectives", collectives, 1)
    delay = reduce_seconds(0, workers, link, algorithm=algorithm)
    largest = Share(0, 1, workers).largest(examples)
    return StepTime(
        workers=workers,
        examples=examples,
        largest_share=largest,
        compute_seconds=compute.seconds(largest),
        reduction_seconds=reduce_seconds(size, workers, link, algorithm=algorithm) + (collectives - 1) * delay,
    )


def fit_compute(fewer: tuple[int, float], more: tuple[int, float]) -> Compute:
    """The line through two measured steps, each as (examples, seconds).

    Where the times leave no such line with a constant of at least 0, they are noise: then all of the larger step's time is
    its examples'. Raises ScalingError unless the second step has more examples.
    """
    if not 1 <= fewer[0] < more[0]:
        raise ScalingError(f"measured steps of {fewer[0]} and {more[0]} examples: expected a second one with more")
    slope = (more[1] - fewer[1]) / (more[0] - fewer[0])
    constant = more[1] - slope * more[0]
    return Compute(slope, constant) if slope > 0 and constant >= 0 else Compute(more[1] / more[0])
