"""The kind "long": many steps, evaluations and selections in one process must not make it grow."""

from __future__ import annotations

import gc
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from . import outcomes, pool
from .outcomes import Case, Result, conclude

_SAMPLES = 40
# The growth that is allowed over the second half. Memory is given back and taken in arenas and thread caches, which moves
# the resident size by a few MiB up and down; what leaks even 100 bytes a step shows as 5 MiB after 50,000 steps.
_BOUND = 4 << 20
# Graphs that are freed leave gaps in the arenas, of which not all is given back: 40 KiB for each selection were measured.
_PER_TRACE = 48 << 10


class Long:
    """Steps, evaluations and selections of a tiny model; the index of a case is the number of thousands of steps."""

    limits = pool.Limits(seconds=3600.0)
    each = 1

    def __init__(self, folder: pathlib.Path | None = None) -> None:
        """Takes a folder as all kinds do, and writes nothing."""

    def list_cases(self, count: int, seed: int) -> list[Case]:
        return [Case("long", group, seed, count) for group in ("steps", "evaluations", "selections")]

    def prepare(self) -> None:
        pass

    def perform(self, case: Case) -> Result:
        count, act, live, bound = getattr(self, f"_{case.group}")(case.index)
        sizes, files, traces = [], [], []
        for number in range(count):
            act(number)
            if (number + 1) % max(1, count // _SAMPLES) == 0:
                sizes.append(_resident())
                files.append(len(os.listdir("/proc/self/fd")))
                traces.append(live())
        half = len(sizes) // 2
        numbers = np.arange(half, len(sizes))
        growth = float(np.polyfit(numbers, sizes[half:], 1)[0]) * len(numbers) if len(numbers) > 2 else 0.0
        text = (
            f"{count:,} {case.group}: {sizes[half] / 2**20:.1f} to {sizes[-1] / 2**20:.1f} MiB, {growth / 2**20:+.2f} MiB "
            f"over the second half (bound {bound / 2**20:.1f}), {files[-1]} open files, {traces[-1]} traces"
        )
        flat = growth <= bound and files[half] >= files[-1] and traces[half] >= traces[-1]
        return conclude(case, outcomes.FLAT if flat else outcomes.GROWS, text)

    def _steps(self, thousands: int) -> tuple[int, Callable[[int], object], Callable[[], int], float]:
        step, select, batch, _ = _tiny()
        selection = select("head/.*")
        return 1000 * thousands, lambda _: step(selection, batch, learning_rate=1e-3), lambda: len(step._traces), _BOUND

    def _evaluations(self, thousands: int) -> tuple[int, Callable[[int], object], Callable[[], int], float]:
        _, select, batch, evaluate = _tiny()
        selection = select("head/.*")
        return 10 * thousands, lambda _: evaluate(selection, [batch, batch]), lambda: 1, _BOUND

    def _selections(self, thousands: int) -> tuple[int, Callable[[int], object], Callable[[], int], float]:
        """Another subset of the variables each time, so that nothing that was traced before can be used."""
        step, select, batch, _ = _tiny()
        count = 2 * thousands

        def train(number: int) -> object:
            chosen = [f"layer{bit}/w" for bit in range(10) if number + 1 >> bit & 1]
            return step(select(" ".join(["head/.*", *chosen])), batch, learning_rate=1e-3)

        return count, train, lambda: len(step._traces), _BOUND + _PER_TRACE * count


def _tiny() -> tuple[Any, Callable[[str], Any], dict[str, Any], Any]:
    """A step, a function that selects by a filter, a batch, and an evaluator."""
    import tensorflow as tf

    from engine import SGD, Loss, TrainStep
    from engine.selection.selection import select
    from engine.training.evaluation import Evaluator

    names = ["head/w", "head/b", *(f"layer{number}/w" for number in range(10))]
    model = {name: tf.Variable(tf.ones([4])) for name in names}
    optimizer = SGD()

    @tf.custom_gradient
    def double(value: Any) -> Any:
        return 2.0 * value, lambda gradient: 2.0 * gradient  # kept by TensorFlow for good, unless it is seen to

    def loss_fn(batch: Any, *, training: bool, seeds: Any) -> Any:
        outputs = batch["image"] * tf.add_n([variable * 0.01 for variable in model.values()])
        return Loss({"mse": (tf.reduce_sum(double(outputs) ** 2, axis=-1), None)})

    batch = {"image": tf.ones([8, 4])}
    return TrainStep(loss_fn, optimizer), lambda text: select(model, text), batch, Evaluator(loss_fn)


def _resident() -> int:
    from engine.host import resident_bytes

    gc.collect()
    return resident_bytes()
