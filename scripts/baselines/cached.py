"""The runners of benchmark_cache: whole jobs with and without cached features, forward passes, and steps on features."""

from __future__ import annotations

import contextlib
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from engine.data import EvalBatches, TrainBatches
from engine.data.part import Part
from engine.feature_cache import policy
from engine.feature_cache.batches import FeatureBatches
from engine.feature_cache.options import CacheOptions
from engine.feature_cache.store import Features
from engine.frostline.cuts import cut_step
from engine.frostline.line import FrostLine
from engine.host import peak_rss_bytes, quantiles
from engine.runs.progress import show_progress
from engine.training.evaluation import Evaluator
from engine.training.loop import Event, Loop, Stage, State
from engine.training.phases import Evaluation, Phase
from engine.training.schedules import parse as parse_schedule

from . import harness, keras_vit, tensorflow_vit
from .harness import BenchmarkError, Job


class SyntheticImages:
    """Noise images, generated from the seed and their numbers when they are read, so that they take no memory.

    They are uint8 [count, height, width, channels], uniformly distributed.
    """

    def __init__(self, job: Job, count: int) -> None:
        self.shape: tuple[int, ...] = (count, *job.config["image"])
        self.dtype = np.dtype(np.uint8)
        self._seed = job.seed

    def __getitem__(self, numbers: Any, /) -> np.ndarray:
        one = [np.random.default_rng([self._seed, n]).integers(0, 256, self.shape[1:], np.uint8) for n in numbers]
        return np.stack(one)


def build_batches(job: Job, count: int, *, held: bool) -> TrainBatches:
    """Builds steps of synthetic examples, whose labels are their numbers modulo the classes; ``held`` keeps the images."""
    numbers = np.arange(count)
    images = SyntheticImages(job, count)
    part = Part(images[numbers] if held else images, numbers % job.config["classes"], numbers)
    return TrainBatches(part, batch_size=job.batch_size, seed=job.seed)


# ---- whole jobs


def train_engine(job: Job, count: int, *, cache: pathlib.Path | None, held: bool = True) -> dict[str, Any]:
    """Trains ``job.steps`` steps as finetune does, but evaluates nothing and writes no files except the cache's.

    The clock runs from the moment when model and images are ready to the end of the last step. It includes cutting,
    tracing, digests, writing and verifying the cache, and the freeze proof. ``cache`` is a folder without caches; None
    trains without one. ``held``: whether the images of the ``count`` examples are kept in memory.
    """
    runner = tensorflow_vit.Engine(job)
    batches = build_batches(job, count, held=held)
    watch = _Watch(count, job)
    start = time.perf_counter()
    stage = Stage(
        Phase(name="train", train=job.train, steps=job.steps),
        runner.selection,
        runner.step.optimizer,
        parse_schedule("constant"),
        runner.learning_rate,
    )
    keeping = policy.CachePolicy(
        runner.step,
        Evaluator(runner.step.loss_fn),
        train=batches,
        evaluation=EvalBatches(Part(batches.part.images, np.zeros(1, np.int64), np.zeros(1, np.int64)), batch_size=1),
        data=f"synthetic: seed {job.seed}",
        options=CacheOptions(mode="off" if cache is None else "require", root=cache or ""),
    )
    keeping.shows = show_progress
    keeping.decide([stage], per_epoch=batches.per_epoch, eval_every=job.steps)
    decided = time.perf_counter() - start
    with watch:
        outcome = Loop(
            step=runner.step,
            stages=[stage],
            batches=keeping.batches,
            per_epoch=batches.per_epoch,
            evaluate=lambda stage, steps: Evaluation(steps, stage.phase.name, math.nan, None, None),  # nothing
            eval_every=job.steps,
            actions=(keeping, watch),
        ).run(State())
    if any(outcome.state.proven):
        raise BenchmarkError(f"{job.train}: frozen variables changed: {outcome.state.proven}")
    cached = keeping.facts()
    return watch.report(watch.last - start) | {
        "examples": count,
        "peak_rss_bytes": peak_rss_bytes(),
        "parameters": runner.selection.variables.parameters,
        "trained_parameters": runner.selection.trained_parameters,
        "cut": cached["cut"],
        "cache_bytes": cached["bytes"],
        "seconds_to_cut": decided,
        "seconds_to_fill": sum(phase["seconds"] for phase in cached["phases"]),
        "step_ms": quantiles([1e3 * value for value in watch.steps]),
    }


class _Watch:
    """An action of the loop: shows the progress, and records losses and seconds of steps, and when the last one ended."""

    def __init__(self, count: int, job: Job) -> None:
        self._steps, self._per_epoch = job.steps, -(-count // job.batch_size)
        self._losses: list[tuple[float, int]] = []
        self._shown = contextlib.ExitStack()
        self._show: Callable[..., None] | None = None
        self.steps: list[float] = []
        self.last = 0.0

    def __enter__(self) -> None:
        self._shown.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._shown.__exit__(*error)

    def __call__(self, event: Event) -> None:
        if event.result is not None:
            loss = float(event.result.loss)
            self.steps.append(event.seconds)
            self._losses.append((loss, event.examples))
            if self._show is None:  # not earlier, because the cache shows its own progress
                self._show = self._shown.enter_context(show_progress(self._steps, "steps"))
            self._show(len(self._losses), f"loss {loss:.4f}")
        self.last = time.perf_counter()

    def report(self, seconds: float) -> dict[str, Any]:
        last = self._losses[-self._per_epoch :]
        return {
            "seconds": seconds,
            "steps": len(self._losses),
            "first_loss": self._losses[0][0],
            "last_epoch_loss": sum(loss * size for loss, size in last) / sum(size for _, size in last),
        }


def train_keras(job: Job, count: int) -> dict[str, Any]:
    """Trains the equal Keras ViT, with its frozen layers not trainable, in one ``fit`` on the same images in the same order.

    The images are in memory and prepared by tf.data; the clock runs from the compiled model to the end of fit.
    """
    import keras

    model = keras_vit.build_compiled(job)
    batches = build_batches(job, count, held=True)
    images = tf.constant(batches.part.images)
    labels = tf.constant(batches.part.labels)
    losses_seen = keras_vit.Stopwatch()

    class Show(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            show(len(losses_seen.losses), f"loss {losses_seen.losses[-1]:.4f}")

    start = time.perf_counter()

    def order() -> Iterator[np.ndarray]:
        for number in range(job.steps):
            yield batches.place(number)[1]

    def prepared(positions: Any) -> Any:
        pixels = tf.cast(tf.gather(images, positions), tf.float32) / 255.0
        return batches.normalise(pixels), tf.gather(labels, positions)

    data = tf.data.Dataset.from_generator(order, output_signature=tf.TensorSpec([None], tf.int64))
    with show_progress(job.steps, "keras fit") as show:
        model.fit(
            data.map(prepared).prefetch(2),
            epochs=job.steps // batches.per_epoch,
            steps_per_epoch=batches.per_epoch,
            verbose=0,
            callbacks=[losses_seen, Show()],
        )
    return {
        "seconds": time.perf_counter() - start,
        "steps": len(losses_seen.losses),
        "first_loss": losses_seen.losses[0],
        "last_epoch_loss": losses_seen.losses[-1],  # fit reports the mean over the epoch
        "examples": count,
        "peak_rss_bytes": peak_rss_bytes(),
        "step_ms": quantiles([1e3 * value for value in losses_seen.seconds]),
        **keras_vit.describe(model),
    }


def pass_forward(job: Job, count: int, *, keras: bool) -> dict[str, Any]:
    """Passes the images once, in batches, through a plain tf.function of the engine's network or the Keras one.

    The time includes tracing and the preparation of the images; only the last logits are kept.
    """
    network = keras_vit.build_compiled(job) if keras else tensorflow_vit.build(job)
    batches = build_batches(job, count, held=True)
    function = tf.function(lambda images: network(images, training=False), autograph=False)
    seconds = []
    start = time.perf_counter()
    with show_progress(count, "forward") as show:
        for first in range(0, count, job.batch_size):
            begun = time.perf_counter()
            numbers = np.arange(first, min(first + job.batch_size, count))
            logits = function(batches.prepared(numbers, 0)).numpy()
            show(first + len(numbers))
            seconds.append(time.perf_counter() - begun)
    if not np.isfinite(logits).all():
        raise BenchmarkError(f"{job.model}: the logits are not finite")
    return {
        "seconds": time.perf_counter() - start,
        "examples": count,
        "step_ms": quantiles([1e3 * value for value in seconds]),
        "peak_rss_bytes": peak_rss_bytes(),
    }


# ---- steps of features


class EngineOnFeatures(tensorflow_vit.Engine):
    """TrainStep on the steps that FeatureBatches reads, ahead of time and on another thread, from a cache on disk."""

    def __init__(self, job: Job, count: int, root: pathlib.Path) -> None:
        super().__init__(job)
        self.batches = build_batches(job, count, held=False)
        line = cut_step(self.step, self.selection, self.batches.at(0))
        if not isinstance(line, FrostLine):
            raise BenchmarkError(f"{job.train}: {line.describe()}")
        self.features = Features(root, line, self.batches, data=f"synthetic: seed {job.seed}")
        with show_progress(self.features.rows, "cache") as show:
            self.features.fill(batch_size=job.batch_size, progress=lambda done, _: show(done))
        self._kept = FeatureBatches(self.batches, self.features)
        self.batch = self._kept.at(0)
        self.cut = [tensor.name for tensor in line.tensors]

    def reading(self, start: int, count: int) -> Callable[[], float]:
        """Returns a function that trains on the next step, from step ``start`` on."""
        steps = self._kept.between(start, start + count)

        def step() -> float:
            return float(self.step(self.selection, next(steps), learning_rate=self.learning_rate).loss)

        return step


class HandOnFeatures(tensorflow_vit.Hand):
    """The hand-written step on the head alone; features and labels are arrays in memory, from which batches are indexed."""

    def __init__(self, job: Job, features: np.ndarray, labels: np.ndarray) -> None:
        self.features, self.targets = features, labels
        size = job.batch_size
        super().__init__(job, (features[:size], labels[:size]))

    def logits(self, images: Any) -> Any:
        return self.network.head(images)

    def reading(self, order: list[np.ndarray]) -> Callable[[], float]:
        """Returns a function that trains on the next of these steps, each given by the numbers of its examples."""
        steps = iter(order)

        def step() -> float:
            numbers = next(steps)
            return float(self.step(tf.constant(self.features[numbers]), tf.constant(self.targets[numbers]))[0])

        return step


def time_feature_steps(job: Job, count: int, root: pathlib.Path) -> dict[str, Any]:
    """Times both on the same steps: first in turn, step by step; then in turn, in runs of many steps.

    The reading thread of the engine works ahead, even during the step of the other runner; in runs of many steps it works
    at the expense of the engine alone.
    """
    ours = EngineOnFeatures(job, count, root)
    (features,) = ours.features.read(np.arange(count)).values()
    hand = HandOnFeatures(job, features, (np.arange(count) % job.config["classes"]).astype(np.int32))

    def order(start: int, length: int) -> list[np.ndarray]:
        return [ours.batches.place(start + number)[1] for number in range(length)]

    total = job.warmup + job.steps
    ours.train_step = ours.reading(0, total)  # type: ignore[method-assign]
    hand.train_step = hand.reading(order(0, total))  # type: ignore[method-assign]
    one, other = harness.run_pair(ours, hand, job)
    harness.check_agreement(job, {"engine": one, "hand": other}, {})
    runs: tuple[list[float], list[float]] = ([], [])
    length, start = max(1, job.steps // 5), total
    for number in range(6):  # the first run is not counted
        these = order(start, length)
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            begun = time.perf_counter()
            train_step = ours.reading(start, length) if which == 0 else hand.reading(these)
            for _ in range(length):
                train_step()
            del train_step  # ends the reading thread
            runs[which].append((time.perf_counter() - begun) / length)
        start += length
    return {
        "engine": one,
        "hand": other,
        "runs": {"steps": length, "engine": runs[0][1:], "hand": runs[1][1:]},
        "cut": ours.cut,
        "cache_bytes": ours.features.bytes,
        "examples": count,
    }


def measure(argument: dict[str, Any]) -> dict[str, Any]:
    """Measures one runner of benchmark_cache: ``job``, ``runner``, ``count`` examples, and an empty ``folder``."""
    job, runner, count = Job(**argument["job"]), argument["runner"], argument["count"]
    cache = pathlib.Path(argument["folder"]) / "cache"
    if runner == "keras_fit":
        return train_keras(job, count)
    if runner == "step":
        return time_feature_steps(job, count, cache)
    if runner in ("forward", "keras_forward"):
        return pass_forward(job, count, keras=runner == "keras_forward")
    return train_engine(job, count, cache=None if runner == "engine" else cache, held=runner != "memory")
