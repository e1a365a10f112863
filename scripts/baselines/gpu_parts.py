"""The parts of gpu_check, each for a process of its own: the contracts, and steps of the engine and of Keras."""

from __future__ import annotations

import pathlib
import signal
import tempfile
import time
from typing import Any

from engine import devices, host
from engine.host import quantiles

from . import harness

# name of a row -> the precision, and whether products in float32 may be computed in TF32
PRECISIONS = {
    "float32": ("float32", False),
    "tf32": ("float32", True),
    "bfloat16": ("mixed_bfloat16", True),
    "float16": ("mixed_float16", True),
}


def check_contract(argument: dict[str, Any]) -> list[dict[str, Any]]:
    """Checks one contract, with or without XLA: what was found, with its bound, a row each."""
    tf = _start(argument)
    from .gpu_contracts import CONTRACTS

    tf.config.experimental.enable_tensor_float_32_execution(False)
    tf.config.experimental.enable_op_determinism()
    tf.random.set_seed(0)
    return CONTRACTS[argument["contract"]](xla=argument["xla"])


def measure_steps(argument: dict[str, Any]) -> dict[str, Any]:
    """Times steps of one runner in one precision, with or without XLA, and its peak memory beside the forecast."""
    tf = _start(argument)
    from .vit_jobs import build_jobs

    precision, tf32 = PRECISIONS[argument["precision"]]
    tf.config.experimental.enable_tensor_float_32_execution(tf32)
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as folder:
        sizes = {name: argument[name] for name in ("model", "image_size", "batch_size", "steps")}
        (job,) = build_jobs(pathlib.Path(folder), classes=10, train=["@all"], warmup=2, seed=0, **sizes)
        measure = _measure_engine if argument["runner"] == "engine" else _measure_keras
        found = measure(job, precision, xla=argument["xla"])
    seconds = found.pop("seconds")
    peak = devices.peak_device_bytes()
    return {
        "step_ms": quantiles([1e3 * value for value in seconds]),
        "peak_bytes": host.peak_rss_bytes() if peak is None else peak,
        **found,
    }


def _start(argument: dict[str, Any]) -> Any:
    """TensorFlow, started on the device; the process ends when its time is up, whatever it does then."""
    signal.alarm(argument["seconds"])
    return host.import_tensorflow(device=argument["device"])


def _measure_engine(job: harness.Job, precision: str, *, xla: bool) -> dict[str, Any]:
    import tensorflow as tf

    from engine.memory.forecast import Forecaster
    from engine.selection.selection import select
    from engine.training import losses
    from engine.training import precision as precisions
    from engine.training.optimizers import AdamW
    from engine.training.step import TrainStep

    from . import tensorflow_vit

    network = tensorflow_vit.build(job)
    numbers = precisions.parse(precision)
    network.compute = numbers.compute
    selection = select(network, job.train)
    hyperparameters: dict[str, Any] = dict(job.adamw)
    rate = hyperparameters.pop("learning_rate")
    scale = precisions.LossScale() if numbers.scaled else None
    step = TrainStep(
        losses.supervised_loss(network),
        AdamW(**hyperparameters),
        loss_scale=scale,
        jit_compile="on" if xla else "off",
    )
    images, labels = job.batch()
    batch = {"image": tf.constant(images), "label": tf.constant(labels)}
    forecaster = Forecaster(step, selection, step.optimizer, batch)
    forecast = forecaster.at(job.batch_size, None, process=host.resident_bytes()).on(devices.computing_kind())
    losses_seen: list[float] = []
    seconds: list[float] = []
    for _ in range(job.warmup + job.steps):
        start = time.perf_counter()
        losses_seen.append(float(step(selection, batch, learning_rate=rate).loss))
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": seconds[job.warmup :],
        "compile_seconds": seconds[0],
        "forecast_bytes": forecast,
        "first_loss": losses_seen[0],
    }


def _measure_keras(job: harness.Job, precision: str, *, xla: bool) -> dict[str, Any]:
    import keras
    import tensorflow as tf

    from . import keras_vit

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        model = keras_vit.build_compiled(job)
        model.jit_compile = xla
        watch = keras_vit.Stopwatch()
        steps = job.warmup + job.steps
        data = tf.data.Dataset.from_tensors(job.batch()).repeat(steps)
        model.fit(data, epochs=1, steps_per_epoch=steps, verbose=0, callbacks=[watch])
    finally:
        keras.config.set_dtype_policy(before)
    return {
        "seconds": watch.seconds[job.warmup :],
        "compile_seconds": watch.seconds[0],
        "forecast_bytes": None,
        "first_loss": watch.losses[0],
    }
