"""Which phases train from cached features; a higher line is made from a lower one; several heads on one frozen part."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, select
from engine.data import EvalBatches, TrainBatches
from engine.data.part import Part
from engine.feature_cache import decision, eviction, filling, store
from engine.feature_cache.batches import FeatureBatches
from engine.feature_cache.options import CacheError, CacheOptions
from engine.feature_cache.policy import CachePolicy
from engine.feature_cache.store import Features
from engine.frostline.cuts import cut_step
from engine.frostline.line import FrostLine
from engine.frostline.watch import frozen_output_norms
from engine.models import build_model
from engine.selection.selection import Selection
from engine.training import losses, optimizers, schedules
from engine.training.evaluation import Evaluator
from engine.training.loop import Event, LoopError, Stage, State
from engine.training.losses import Loss
from engine.training.phases import Phase


def part(count: int, labels: Any = None) -> Part:
    rng = np.random.default_rng(count)
    given = rng.integers(0, 3, count) if labels is None else labels(rng, count)
    return Part(rng.integers(0, 256, (count, 8, 8, 1), np.uint8), given, np.arange(count))


def stage(name: str, selection: Selection, steps: int = 6) -> Stage:
    phase = Phase(name=name, train="@all", steps=steps)
    return Stage(phase, selection, optimizers.AdamW(), schedules.parse("constant"), 1e-3)


class Job:
    """A small ViT, its data and caching."""

    def __init__(self, root: pathlib.Path, mode: decision.Mode = "require", said: list[str] | None = None) -> None:
        self.model = build_model("vit:mini,depth=1", image_shape=(8, 8, 1), outputs=3).network
        loss_fn = losses.supervised_loss(self.model)
        self.step, self.evaluator = (
            TrainStep(loss_fn, optimizers.AdamW()),
            Evaluator(loss_fn, watch=frozen_output_norms),
        )
        self.train, self.evaluation = TrainBatches(part(20), batch_size=8), EvalBatches(part(7), batch_size=8)
        self.said: list[str] = said if said is not None else []
        self.caching = CachePolicy(
            self.step,
            self.evaluator,
            train=self.train,
            evaluation=self.evaluation,
            data="the data",
            options=CacheOptions(mode=mode, root=root),
            say=self.said.append,
        )

    def begin(self, at: Stage) -> list[Mapping[str, Any]]:
        self.caching(Event("phase", State(), at))
        return list(self.caching.batches(at, 0, 3))


@pytest.mark.slow
def test_a_higher_line_is_made_from_the_tensors_of_a_lower_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path)
    lower, higher = (stage(n, select(job.model, f)) for n, f in (("low", "@head norm/.*"), ("high", "@head")))
    job.caching.decide([lower, higher], per_epoch=3, eval_every=3)
    given = job.begin(lower)
    for batch in given:
        job.step(lower.selection, batch, learning_rate=1e-3)

    def no_images(*_: Any) -> Any:
        raise AssertionError("the images are read again")

    with monkeypatch.context() as patch:
        patch.setattr(TrainBatches, "prepared", no_images)
        patch.setattr(EvalBatches, "prepared", no_images)
        kept = job.begin(higher)
    plain = [job.train.at(number) for number in range(3)]
    line = cut_step(job.step, higher.selection, plain[0])
    assert isinstance(line, FrostLine)
    for ours, theirs in zip(kept, plain, strict=True):
        (key,) = set(ours) - {"label", "seeds", "index"}
        np.testing.assert_allclose(ours[key], line.replace_images(theirs)[key], atol=2e-5)
    assert [row["computed_rows"] for row in job.caching.facts()["phases"]] == [27, 27]


LOWER = "@head norm/.*"  # its line lies below that of @head


def count_reads(patch: pytest.MonkeyPatch) -> list[int]:
    """How many images are prepared from now on, batch by batch."""
    found: list[int] = []
    for kind in (TrainBatches, EvalBatches):

        def prepared(self: Any, index: Any, epoch: int = 0, own: Any = kind.prepared) -> Any:
            found.append(len(index))
            return own(self, index, epoch)

        patch.setattr(kind, "prepared", prepared)
    return found


def shards_of(root: pathlib.Path) -> dict[str, bytes]:
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in root.rglob("shard-*")}


def phases_of(job: Job, *texts: str) -> list[Stage]:
    found = [stage(f"{number}", select(job.model, text)) for number, text in enumerate(texts)]
    job.caching.decide(found, per_epoch=3, eval_every=3)
    return found


@pytest.mark.parametrize(
    "each", [16, pytest.param(1024, marks=pytest.mark.slow), pytest.param(6, marks=pytest.mark.slow)]
)
def test_one_pass_fills_the_caches_of_a_later_lower_line_with_the_bits_of_two(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, each: int
) -> None:
    monkeypatch.setattr(store, "_SHARD_ROWS", each)
    for number, text in enumerate(("@head", LOWER)):
        alone = Job(tmp_path / "two")
        alone.begin(phases_of(alone, text)[0])
        assert alone.said[-1].startswith("cache  | 0: 0 of 27"), number
    job = Job(tmp_path / "one")
    with monkeypatch.context() as patch:
        read = count_reads(patch)
        head, lower = phases_of(job, "@head", LOWER)
        job.begin(head)
        assert sum(read) == 27, "each image is prepared once"
        job.begin(lower)
        assert sum(read) == 27
    assert job.said[1] == "cache  | 0: one pass over the images also computes the features of phase 1 (27 rows)"
    assert job.said[-1].startswith("cache  | 1: 27 of 27 rows exist, 0 will be computed")
    assert [row["computed_rows"] for row in job.caching.facts()["phases"]] == [27, 27]
    assert shards_of(tmp_path / "one") == shards_of(tmp_path / "two")


@pytest.mark.slow
def test_a_pass_that_rounds_otherwise_is_not_shared(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "_same_bits", lambda *_: False)
    job = Job(tmp_path)
    job.begin(phases_of(job, "@head", LOWER)[0])
    assert any("one pass would round otherwise than separate passes" in line for line in job.said)
    monkeypatch.undo()
    for text in ("@head", LOWER):
        alone = Job(tmp_path / "two")
        alone.begin(phases_of(alone, text)[0])
    made = shards_of(tmp_path / "two")
    assert {name: content for name, content in shards_of(tmp_path).items() if name in made} == made


@pytest.fixture
def ahead(tmp_path: pathlib.Path) -> Callable[..., str]:
    """(folder, filters of the phases, cache options) -> what is said when the first phase begins."""

    def begin(name: str, *texts: str, **options: Any) -> str:
        job = Job(tmp_path / name)
        if options:
            changed = dataclasses.replace(job.caching._options, **options)
            job.caching._options = job.caching._decider._options = changed
        job.begin(phases_of(job, *texts)[0])
        return "\n".join(job.said)

    return begin


def test_caches_are_made_ahead_only_where_all_fit(tmp_path: pathlib.Path, ahead: Any) -> None:
    assert "one pass" in ahead("free", "@head", LOWER)
    whole = sum(len(content) for content in shards_of(tmp_path / "free").values())
    tight = ahead("tight", "@head", LOWER, budget=whole - 1)
    assert "the features of phase 1 are computed when it begins: together the caches would take" in tight
    assert "one pass" not in tight


@pytest.mark.slow
def test_caches_are_made_ahead_for_several_phases_but_not_across_training(ahead: Any) -> None:
    assert "one pass" not in ahead("moved", LOWER, "@head"), "norm is trained before @head is cut above it"
    assert "one pass" not in ahead("equal", "@head", "head/.*"), "both phases have the same cache"
    assert "phase 1 (27 rows), 2 (27 rows)" in ahead("three", "@head", LOWER, f"{LOWER} blocks/0/mlp/down/.*")


@pytest.mark.slow
def test_a_pass_that_was_stopped_goes_on_with_what_is_missing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_SHARD_ROWS", 8)
    whole = Job(tmp_path / "whole")
    whole.begin(phases_of(whole, "@head", LOWER)[0])
    cut = Job(tmp_path / "cut")
    asked: list[int] = []
    cut.caching._stop = lambda: asked.append(1) is None and len(asked) > 1
    cut.caching(Event("phase", State(), phases_of(cut, "@head", LOWER)[0]))
    assert 0 < len(shards_of(tmp_path / "cut")) < len(shards_of(tmp_path / "whole"))
    next((tmp_path / "cut").rglob("shard-*")).unlink()  # one cache lacks more than the other
    again = Job(tmp_path / "cut")
    for begun in phases_of(again, "@head", LOWER):
        again.begin(begun)
    assert shards_of(tmp_path / "cut") == shards_of(tmp_path / "whole")


@pytest.mark.slow
def test_evaluations_read_the_cache_and_watch_images(tmp_path: pathlib.Path) -> None:
    job = Job(tmp_path)
    head = stage("head", select(job.model, "@head"))
    job.caching.decide([head], per_epoch=3, eval_every=3)
    plain = job.evaluator(head.selection, job.evaluation)
    job.begin(head)
    batches, watched = job.caching.evaluation()
    assert all("image" not in batch for batch in batches)
    assert watched is not None
    kept = job.evaluator(head.selection, batches, watched=watched)
    assert kept.loss == pytest.approx(plain.loss, rel=1e-6)
    assert kept.frozen_output_norm == pytest.approx(plain.frozen_output_norm, rel=1e-6)


def test_auto_weighs_the_work_and_counts_what_is_there(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision, "_PREPARING", 0.0)
    monkeypatch.setattr(decision, "_WRITTEN", 0)
    monkeypatch.setattr(decision, "_READ", 0)
    for steps, paid in ((2, False), (6, True)):  # 27 rows once against 16 + 7, and 48 + 7
        job = Job(tmp_path, "auto")
        (choice,) = job.caching.decide([stage("a", select(job.model, "@head"), steps)], per_epoch=3, eval_every=9)
        assert choice.used is paid, steps
    job.begin(stage("a", select(job.model, "@head")))
    again = Job(tmp_path, "auto")
    again.model.norm.gamma.assign(2 * again.model.norm.gamma)
    (choice,) = again.caching.decide([stage("a", select(again.model, "@head"), 2)], per_epoch=3, eval_every=9)
    assert choice.used is False, "other weights"
    for ours, theirs in zip(again.model.variables, job.model.variables, strict=True):
        ours.assign(theirs)
    (choice,) = again.caching.decide([stage("a", select(again.model, "@head"), 2)], per_epoch=3, eval_every=9)
    assert choice.used is True, "it is there already"
    saved = Job(tmp_path / "empty", "auto")
    stages = [stage("a", select(saved.model, "@head"), 2)]
    (choice,) = saved.caching.decide(stages, per_epoch=3, eval_every=9, saved=[True])
    assert choice.used is True, "a resume does what was decided"


def test_a_disk_that_fails_ends_a_run_or_only_its_cache(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine import files

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for mode in ("auto", "require"):
        monkeypatch.setattr(decision, "_PREPARING", 0.0)
        job = Job(tmp_path / mode, mode)
        head = stage("head", select(job.model, "@head"), 200)
        assert job.caching.decide([head], per_epoch=3, eval_every=3)[0].used
        with monkeypatch.context() as patch:
            patch.setattr(files, "write_atomically", full)
            if mode == "require":
                with pytest.raises(LoopError, match=r"cache=require: phase 'head': .*no space is left"):
                    job.begin(head)
                continue
            batches = job.begin(head)
        assert all("image" in batch for batch in batches)
        assert any("training without a cache" in line for line in job.said)
        assert job.caching.facts()["used"] is False


def test_a_folder_that_is_a_file_is_an_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    job = Job(tmp_path / "file")
    head = stage("head", select(job.model, "@head"))
    job.caching.decide([head], per_epoch=3, eval_every=3)
    with pytest.raises(LoopError, match=r"phase 'head': .*file: cannot keep the cache there \(Not a directory\)"):
        job.begin(head)


def test_options_that_make_no_sense_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CacheError, match="cache='yes' is not a valid mode; expected auto, off or require"):
        Job(tmp_path, "yes")  # type: ignore[arg-type]
    job = Job(tmp_path)
    with pytest.raises(CacheError, match=r"phase 'all' cannot train from a cache: no frost line: .*trains and reads"):
        job.caching.decide([stage("all", select(job.model, "@all"))], per_epoch=3, eval_every=3)


# --- space on the disk


def cache_of(root: pathlib.Path, digit: str, size: int, age: int) -> pathlib.Path:
    import os

    folder = root / (digit * 32)
    folder.mkdir(parents=True)
    (folder / "shard-000000").write_bytes(bytes(size))
    os.utime(folder, (1e9 - age, 1e9 - age))
    return folder


def test_the_cache_used_longest_ago_goes_first_and_none_in_use(tmp_path: pathlib.Path) -> None:
    old, used, new = (cache_of(tmp_path, digit, 100, age) for digit, age in (("a", 3), ("b", 2), ("c", 1)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_bytes(bytes(1000))
    with eviction.hold_cache(used):
        assert eviction.evict_caches(tmp_path, 100, 400) == []
        assert eviction.evict_caches(tmp_path, 100, 350) == [old]
        assert eviction.evict_caches(tmp_path, 100, 50) == [new]
        assert (used / "shard-000000").exists()
    assert not old.exists()
    (used / "notes.txt").write_text("a user's own")
    assert eviction.evict_caches(tmp_path, 100, 50) == [used]
    assert [path.name for path in used.iterdir()] == ["notes.txt"]
    assert (tmp_path / "mine/file").exists()


# --- several tasks on one frozen part


class TwoTasks(tf.Module):
    """A classifier and a regressor on the features of one ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.body = build_model("vit:mini,depth=1", image_shape=(8, 8, 1), outputs=3).network
        self.size = tf.Variable(tf.random.stateless_normal([96, 1], [1, 2], stddev=0.1), name="size")
        self.kind = tf.Variable(tf.random.stateless_normal([96, 3], [1, 3], stddev=0.1), name="kind")

    def loss(self, batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        features = self.body.features(batch["image"], training=training, seeds=seeds)[:, 0]
        kind, size = batch["label"][:, 0], batch["label"][:, 1]
        logits = tf.matmul(features, self.kind)
        values = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(kind, tf.int32), logits)
        error = tf.square(tf.squeeze(tf.matmul(features, self.size), -1) - tf.cast(size, tf.float32))
        known = tf.cast(size > 0, tf.float32)  # an example without a size has no weight in that term
        return Loss({"kind": (values, None), "size": (error, known)}, metrics={"error": (error, known)})


def targets(rng: Any, count: int) -> np.ndarray:
    return np.stack([rng.integers(0, 3, count), rng.integers(-1, 4, count)], axis=1).astype(np.float32)


@pytest.mark.slow
def test_several_heads_train_together_or_one_after_the_other_from_one_cache(tmp_path: pathlib.Path) -> None:
    def trained(filters: list[str], *, kept: bool) -> tuple[list[np.ndarray], list[int]]:
        model, computed = TwoTasks(), []
        step = TrainStep(model.loss, optimizers.AdamW())
        batches = TrainBatches(part(20, targets), batch_size=8)
        for text in filters:
            selection = select(model, text)
            given: Any = batches
            if kept:
                line = cut_step(step, selection, batches.at(0))
                assert isinstance(line, FrostLine)
                features = Features(tmp_path, line, batches, data="tasks")
                assert features.fill()
                computed.append(features.computed)
                given = FeatureBatches(batches, features)
            for batch in given.between(0, 6):
                step(selection, batch, learning_rate=1e-2)
        return [model.size.numpy(), model.kind.numpy()], computed

    for filters, rows in ((["size kind"], [20]), (["size", "kind"], [0, 0])):
        ours, computed = trained(filters, kept=True)
        theirs, _ = trained(filters, kept=False)
        assert computed == rows, "the first run made it; each head alone, and both, read the same tensors"
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
