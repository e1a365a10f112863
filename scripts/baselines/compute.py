"""Measures what a step of the engine takes on one device: the seconds of an example, and those of a step besides its examples."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from engine import devices, models, select
from engine.distribution.scaling import fit_compute
from engine.errors import InputError
from engine.host import peak_rss_bytes
from engine.study.measurements import Measurements
from engine.training import losses, optimizers, precision
from engine.training.step import TrainStep

from .stepper import cpu_seconds


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Times steps of AdamW with ``examples`` and half as many examples, in turn, and fits a line through the least of each.

    The job holds model, image_size, classes, precision, train, examples, micro_batch_size (0 for one piece), rounds and
    clock: "wall", or "cpu" for the CPU seconds of a step divided by the cores, which other programs hardly lengthen. Returns
    seconds_per_example, seconds_per_step and, under ``measured``, what they come from.
    """
    device = devices.select_device("auto")
    if job["clock"] == "cpu" and device.kind != "cpu":
        raise InputError(
            f"clock=cpu: this machine computes on {device.name}, whose seconds are not those of a CPU; expected wall"
        )
    numbers = precision.parse(job["precision"])
    shape = (*job["image_size"], 3)
    built = models.build_model(
        job["model"], image_shape=shape, outputs=job["classes"], dtype=numbers.variables, compute=numbers.compute
    )
    selection = select(built.network, job["train"], statistics=built.statistics)
    scale = precision.LossScale() if numbers.scaled else None
    step = TrainStep(
        losses.supervised_loss(built.network),
        optimizers.AdamW(),
        micro_batch_size=job["micro_batch_size"] or None,
        loss_scale=scale,
    )
    sizes = (job["examples"] // 2, job["examples"])
    rng = np.random.default_rng(0)
    images = rng.standard_normal((sizes[1], *shape), np.float32)
    labels = rng.integers(0, built.outputs, sizes[1], np.int32)
    batches = {n: {"image": tf.constant(images[:n]), "label": tf.constant(labels[:n])} for n in sizes}
    seconds: dict[int, list[float]] = {n: [] for n in sizes}
    cpu: dict[int, list[float]] = {n: [] for n in sizes}
    clock = Measurements()
    for number in range(job["rounds"] + 1):  # the first round traces and is not counted
        if number == 1:
            clock.begin()
        for n in sizes if number % 2 == 0 else sizes[::-1]:
            used, start = cpu_seconds(), time.perf_counter()
            float(step(selection, batches[n], learning_rate=1e-5).loss)
            seconds[n].append(time.perf_counter() - start)
            cpu[n].append(cpu_seconds() - used)
    clock.end()
    cores = devices.core_count() if job["clock"] == "cpu" else 1
    least = {n: min(values[1:]) / cores for n, values in (cpu if job["clock"] == "cpu" else seconds).items()}
    found = fit_compute((sizes[0], least[sizes[0]]), (sizes[1], least[sizes[1]]))
    return {
        "seconds_per_example": found.seconds_per_example,
        "seconds_per_step": found.seconds_per_step,
        "measured": {
            "device": device.to_json(),
            "clock": job["clock"],
            "step_seconds": {str(n): values[1:] for n, values in seconds.items()},
            "step_cpu_seconds": {str(n): values[1:] for n, values in cpu.items()},
            "micro_batch_size": job["micro_batch_size"] or None,
            "taken_by_others": clock.taken,
            "peak_rss_bytes": peak_rss_bytes(),
        },
    }
