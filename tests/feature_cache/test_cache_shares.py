"""Workers that fill a cache in shares leave the files of one; what one cannot, none does."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from stand_ins import made_by_all, work_as

from engine import TrainStep, select
from engine.data import EvalBatches, TrainBatches
from engine.data.part import DataError, Part
from engine.distribution.distribution import ALONE, DisagreementError, Distribution
from engine.distribution.together import is_of_kind
from engine.errors import InputError
from engine.feature_cache import decision, policy, store, workers
from engine.feature_cache.options import CacheOptions
from engine.feature_cache.policy import CachePolicy
from engine.frostline.watch import frozen_output_norms
from engine.training import losses, optimizers, schedules
from engine.training.evaluation import Evaluator
from engine.training.loop import Event, Stage, State
from engine.training.phases import Phase


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_SHARD_ROWS", 6)
    monkeypatch.setattr(workers, "PATIENCE", 0.2)
    monkeypatch.setattr(policy, "PATIENCE", 0.2)
    monkeypatch.setattr(decision, "_PAYS", 1e9)  # so small a network is never worth a cache


def part(count: int) -> Part:
    rng = np.random.default_rng(count)
    return Part(rng.integers(0, 256, (count, 8, 8, 1), np.uint8), rng.integers(0, 3, count), np.arange(count))


class Network(tf.Module):
    """Three layers, of which the upper two train."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        shapes = {"stem": (64, 16), "middle": (16, 8), "head": (8, 3)}
        self.layers = {name: tf.Variable(rng.normal(size=shape).astype(np.float32)) for name, shape in shapes.items()}

    def __call__(self, images: Any, *, training: bool = False, seeds: Any = None) -> Any:
        values = tf.reshape(images, [-1, 64])
        for name in ("stem", "middle", "head"):
            values = tf.tanh(values @ self.layers[name])
        return values


class Job:
    """A run of two phases that train from caches: one of several workers, or alone."""

    def __init__(self, root: pathlib.Path, workers: Distribution = ALONE, *, seed: int = 0, **options: Any) -> None:
        model = Network(seed)
        loss_fn = losses.supervised_loss(model)
        self.said: list[str] = []
        self.stages = [
            Stage(
                Phase(name=name, train=train, steps=6), select(model, train), optimizers.SGD(), schedules.parse("constant"), 0.1
            )
            for name, train in (("low", "layers/head layers/middle"), ("high", "layers/head"))
        ]  # fmt: skip
        step = TrainStep(loss_fn, optimizers.SGD())
        step._share = workers.share  # as with a strategy, which these workers do not have
        self.policy = CachePolicy(
            step,
            Evaluator(loss_fn, watch=frozen_output_norms),
            train=TrainBatches(part(20), batch_size=8, share=workers.share),
            evaluation=EvalBatches(part(7), batch_size=4),
            data="the data",
            options=CacheOptions(mode=options.pop("mode", "require"), root=root),
            distribution=workers,
            say=self.said.append,
            **options,
        )
        self.policy.decide(self.stages, per_epoch=3, eval_every=3)

    def fill(self, stages: Sequence[Stage] = ()) -> Job:
        for stage in stages or self.stages:
            self.policy(Event("phase", State(), stage))
        return self

    def computed(self) -> list[int]:
        return [row["computed_rows"] for row in self.policy.facts()["phases"]]


def files(root: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], list[int]]:
    """The files of one worker, and how many rows it computed for each phase."""
    root = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_SHARD_ROWS", 6)
        job = Job(root).fill()
    return files(root), job.computed()


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_files_are_those_of_one_worker(
    tmp_path: pathlib.Path, alone: tuple[dict[str, bytes], list[int]], count: int
) -> None:
    jobs = made_by_all(count, lambda workers: Job(tmp_path, workers).fill())
    assert files(tmp_path) == alone[0]
    assert [job.computed() for job in jobs] == [alone[1]] * count
    whole = Job(tmp_path).fill()  # a later run with another number finds everything
    assert whole.computed() == [0, 0]
    stage = whole.stages[-1]
    expected = list(whole.policy.batches(stage, 0, 3))
    shares = [list(job.policy.batches(stage, 0, 3)) for job in jobs]
    for step, batch in enumerate(expected):
        assert [len(own[step]["index"]) for own in shares] == [
            np.diff(job.policy._train.share.bounds(len(batch["index"])))[0] for job in jobs
        ]
        for name, values in batch.items():
            np.testing.assert_array_equal(np.concatenate([own[step][name] for own in shares]), values)
        assert all(own[step]["examples"] == len(batch["index"]) for own in shares)


@pytest.mark.slow
def test_shards_that_one_worker_finds_damaged_are_computed_again(
    tmp_path: pathlib.Path, alone: tuple[dict[str, bytes], list[int]]
) -> None:
    Job(tmp_path).fill()
    for shard in sorted(tmp_path.rglob("shard-000001")):
        shard.write_bytes(b"damaged")
    jobs = made_by_all(2, lambda workers: Job(tmp_path, workers).fill())
    assert files(tmp_path) == alone[0]
    assert jobs[0].computed() == jobs[1].computed() != [0, 0]


def test_a_stop_of_one_worker_is_a_stop_of_all_and_what_is_finished_stays(tmp_path: pathlib.Path) -> None:
    def fill(workers: Distribution) -> Job:
        job = Job(tmp_path, workers, stop=lambda: workers.worker == 1, rows_at_once=2)
        return job.fill(job.stages[:1])

    jobs = made_by_all(3, fill)
    assert [job.policy._open for job in jobs] == [None] * 3
    stopped = jobs[0].computed()[0]
    again = made_by_all(2, lambda workers: Job(tmp_path, workers, rows_at_once=2).fill())
    assert [job.computed()[0] for job in again] == [27 - stopped] * 2
    assert 0 < stopped < 27


@pytest.mark.parametrize("mode", ["auto", pytest.param("require", marks=pytest.mark.slow)])
def test_a_folder_that_is_not_shared_is_refused_before_anything_is_computed(tmp_path: pathlib.Path, mode: str) -> None:
    found = work_as(3, lambda workers: Job(tmp_path / str(workers.worker), workers, mode=mode))
    for error in found:
        assert isinstance(error, InputError)
        assert "cache_dir=" in str(error)
        assert "--cache_dir (by default feature_cache next to --out) must lie on a disk that all of them have" in str(
            error
        )
    assert f"{tmp_path / '1'}: worker 1 (127.0.0.1:1001) has no file there" in str(found[0])
    assert files(tmp_path) == {}


def test_a_folder_that_stops_being_shared_ends_in_a_run_without_caches(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.feature_cache.policy.check_shared", lambda *given: None)
    jobs = made_by_all(2, lambda workers: Job(tmp_path / str(workers.worker), workers, mode="auto").fill())
    for job in jobs:
        assert "are not there, or are damaged; the workers of a run share the folder" in "\n".join(job.said)
        assert [row["used"] for row in job.policy.facts()["phases"]] == [False, False]


def test_workers_that_would_compute_other_features_are_refused(tmp_path: pathlib.Path) -> None:
    found = work_as(2, lambda workers: Job(tmp_path, workers, seed=workers.worker).fill())
    assert all(isinstance(error, DisagreementError) for error in found)
    assert "features of the cache: item 1 is" in str(found[0]) == str(found[1])


@pytest.mark.parametrize(
    ("mode", "error"),
    [("auto", DataError), pytest.param("require", DataError, marks=pytest.mark.slow), ("auto", OSError)],
)
def test_a_failure_of_one_worker_is_one_of_all(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, mode: str, error: Callable[[str], Exception]
) -> None:
    def fill(workers: Distribution) -> Job:
        job = Job(tmp_path, workers, mode=mode)
        if workers.worker == 1:

            def broken(*given: Any) -> Any:
                raise error("it is damaged")

            job.policy._train.prepared = broken  # type: ignore[method-assign]
            job.policy._decider._train.prepared = broken  # type: ignore[method-assign]
        return job.fill()

    found = work_as(2, fill)
    if error is DataError:  # an example that cannot be read
        assert all(isinstance(each, Exception) and is_of_kind(each, DataError) for each in found)
    else:
        for job in found:
            assert isinstance(job, Job)
            assert "training without a cache" in "\n".join(job.said)
            assert [row["used"] for row in job.policy.facts()["phases"]] == [False, False]
