"""The cache of features: reused when nothing changed, never when something did; whole again after any harm."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import signal
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, select
from engine.data import EvalBatches, TrainBatches
from engine.data.batches import Normalise
from engine.data.part import Part
from engine.feature_cache import store
from engine.feature_cache.batches import EvalFeatureBatches, FeatureBatches
from engine.feature_cache.store import Features, FeaturesError
from engine.frostline.cuts import cut_evaluation, cut_step
from engine.frostline.line import FrostLine, Refused
from engine.frostline.watch import frozen_output_norms
from engine.models import build_model
from engine.training import losses, optimizers

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = "fingerprint of the data"


def part_of(count: int = 40) -> Part:
    """Positions in another order than numbers, of which some are no example of the part."""
    rng = np.random.default_rng(0)
    index = rng.permutation(count + 7)[:count]
    return Part(rng.integers(0, 256, (count + 7, 8, 8, 1), np.uint8), rng.integers(0, 3, count), index)


class Run:
    """A model whose head trains, its batches and its line."""

    def __init__(self, train: str = "head/.*", **options: Any) -> None:
        self.model = build_model("vit:mini,depth=1", image_shape=(8, 8, 1), outputs=3).network
        self.selection = select(self.model, train)
        self.step = TrainStep(losses.supervised_loss(self.model), optimizers.AdamW())
        self.batches = TrainBatches(part_of(), batch_size=16, seed=5, **options)
        line = cut_step(self.step, self.selection, self.batches.at(0))
        assert isinstance(line, FrostLine)
        self.line = line

    def features(self, root: pathlib.Path, **options: Any) -> Features:
        return Features(root, self.line, self.batches, data=DATA, **options)


@pytest.fixture(scope="module")
def run() -> Run:
    return Run()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_SHARD_ROWS", 12)


def filled(root: pathlib.Path, run: Run, **options: Any) -> Features:
    made = run.features(root, **options)
    assert made.fill(batch_size=5)
    return made


# --- what is in it


def test_it_holds_the_prefix_of_every_example_by_its_number(tmp_path: pathlib.Path, run: Run) -> None:
    made = filled(tmp_path, run)
    assert made.computed == made.rows == 40
    numbers = run.batches.part.index[[3, 39, 0, 3]]
    (right,) = run.line.prefix(run.batches.prepared(numbers, 0))
    found = made.read(numbers)
    assert list(found) == [tensor.key for tensor in run.line.tensors]
    # sums over the features may be taken in another order for another number of rows: relative to the largest one
    np.testing.assert_allclose(found["frozen0"], right, rtol=1e-5, atol=1e-6 * np.abs(right).max())
    files = [path for path in made.folder.iterdir() if path.name.startswith("shard")]
    assert sum(path.stat().st_size for path in files) == made.bytes
    assert {path.name for path in made.folder.iterdir()} == {"manifest.json", *(f"shard-00000{n}" for n in range(4))}
    manifest = json.loads((made.folder / "manifest.json").read_text())
    assert manifest["key"] == made.key
    assert manifest["of"]["format"] == 1
    assert [shard["bytes"] for shard in manifest["shards"]] == [path.stat().st_size for path in sorted(files)]


@pytest.mark.parametrize(("dtype", "rounding"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_half_precision_takes_half_the_bytes(tmp_path: pathlib.Path, run: Run, dtype: str, rounding: float) -> None:
    whole, half = filled(tmp_path, run), filled(tmp_path, run, dtype=dtype)
    assert half.key != whole.key
    assert (half.bytes - 4 * 128) * 2 == whole.bytes - 4 * 128
    index = run.batches.part.index
    one, other = whole.read(index)["frozen0"], half.read(index)["frozen0"]
    assert other.dtype == np.float32
    np.testing.assert_allclose(other, one, rtol=rounding, atol=1e-7)
    assert not np.array_equal(one, other)


def test_a_value_that_a_type_cannot_represent_is_reported(tmp_path: pathlib.Path) -> None:
    run = Run()
    run.model.norm.gamma.assign(run.model.norm.gamma * 1e6)
    with pytest.raises(
        FeaturesError, match=r"cache_dtype=float16 cannot represent .*e\+06, a value of .*bfloat16 has the range"
    ):
        run.features(tmp_path, dtype="float16").fill()
    assert filled(tmp_path, run, dtype="bfloat16").missing_rows == 0


def test_unknown_arguments_and_numbers_are_reported(tmp_path: pathlib.Path, run: Run) -> None:
    with pytest.raises(FeaturesError, match="cache_dtype='int8' is not a valid type; expected bfloat16 or float16"):
        run.features(tmp_path, dtype="int8")
    made = run.features(tmp_path)
    with pytest.raises(FeaturesError, match="does not exist yet"):
        made.read(run.batches.part.index[:1])
    made.fill()
    absent = np.setdiff1d(np.arange(47), run.batches.part.index)[:1]
    for index in (absent, np.array([47]), np.array([-1])):
        with pytest.raises(FeaturesError, match=f"index={index[0]}: the cache has no such image"):
            made.read(index)
    with pytest.raises(FeaturesError, match="view=1: expected a view from 0 to 0"):
        made.read(run.batches.part.index[:1], view=1)


# --- reused when the key is equal, never when not


def test_it_is_reused_when_nothing_changed(tmp_path: pathlib.Path, run: Run) -> None:
    first = filled(tmp_path, run)
    run.model.head.kernel.assign(run.model.head.kernel + 1.0)  # above the line
    again = filled(tmp_path, Run())  # another model, with the same values below the line
    assert (again.computed, again.key) == (0, first.key)
    assert again.damaged == []


def test_whatever_could_change_a_feature_changes_the_key(tmp_path: pathlib.Path, run: Run) -> None:
    keys = {run.features(tmp_path).key, run.features(tmp_path, dtype="bfloat16").key}
    keys.add(Features(tmp_path, run.line, run.batches, data="other data").key)
    for options in ({"normalise": Normalise(mean=(0.4,))}, {"normalise": Normalise(reverse=True)}):
        keys.add(Features(tmp_path, run.line, TrainBatches(part_of(), batch_size=16, **options), data=DATA).key)
    keys.add(Features(tmp_path, run.line, TrainBatches(part_of(39), batch_size=16), data=DATA).key)
    other = Run()
    other.model.blocks[0].mlp.up.bias[3].assign(0.25)
    keys.add(other.features(tmp_path).key)
    for seed in (0, 1):
        flipped = TrainBatches(part_of(), batch_size=16, seed=seed, augment=("flip",))
        keys |= {Features(tmp_path, run.line, flipped, data=DATA, views=views).key for views in (1, 2)}
    assert len(keys) == 11
    same = TrainBatches(part_of(), batch_size=3, seed=99)  # without augmentation neither decides a feature
    assert Features(tmp_path, run.line, same, data=DATA).key == run.features(tmp_path).key


# --- harm


KILLED = """
import os, pathlib, signal, sys
from engine import files
from engine.feature_cache import store
from tests.feature_cache.test_store import Run
store._SHARD_ROWS = 12
run, real, calls = Run(), os.fsync, []
def fsync(file):
    calls.append(file)
    if len(calls) == 5:  # two a shard, of the file and of the folder: while the third is written
        os.kill(os.getpid(), signal.SIGKILL)
    real(file)
os.fsync = fsync
run.features(pathlib.Path(sys.argv[1])).fill(batch_size=5)
"""


def test_killed_while_writing_only_the_unfinished_shard_is_computed_again(
    tmp_path: pathlib.Path, programs: Any
) -> None:
    done = programs.run(["-c", KILLED, str(tmp_path)], seconds=200)
    assert done.returncode == -signal.SIGKILL, done.stderr
    run = Run()
    made = run.features(tmp_path)
    assert (made.missing_rows, made.damaged) == (16, [])  # of 12, 12, 12 and 4 rows
    assert [path for path in made.folder.iterdir() if path.suffix == ".tmp"]
    assert made.fill(batch_size=5)
    assert made.computed == 16
    assert not [path for path in made.folder.iterdir() if path.suffix == ".tmp"]
    whole = filled(tmp_path / "other", run)
    for number in range(4):
        name = f"shard-{number:06d}"
        assert (made.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_flipped_byte_is_reported_and_its_shard_computed_again(tmp_path: pathlib.Path, run: Run) -> None:
    made = filled(tmp_path, run)
    path = made.folder / "shard-000001"
    right = path.read_bytes()
    path.write_bytes(right[:1000] + bytes([right[1000] ^ 1]) + right[1001:])
    again = run.features(tmp_path)
    assert again.missing_rows == 12
    assert "shard-000001: its content does not match its checksum" in again.damaged[0]
    assert again.fill(batch_size=5)
    assert again.computed == 12
    assert path.read_bytes() == right


def test_when_stopped_it_keeps_the_written_shards(tmp_path: pathlib.Path, run: Run) -> None:
    asked: list[int] = []
    made = run.features(tmp_path)
    assert not made.fill(stop=lambda: asked.append(1) is None and len(asked) == 2)
    assert made.missing_rows == 16
    seen: list[tuple[int, int]] = []
    assert made.fill(progress=lambda done, rows: seen.append((done, rows)))
    assert seen == [(36, 40), (40, 40)]


def test_over_the_budget_nothing_is_written(tmp_path: pathlib.Path, run: Run) -> None:
    made = run.features(tmp_path)
    with pytest.raises(FeaturesError, match=r"would take .* 3\d\d bytes for each of 40 rows, but the budget is 1 KiB"):
        made.fill(budget=1024)
    assert list(tmp_path.iterdir()) == []
    assert made.fill(budget=made.bytes)


def test_a_full_disk_is_reported(tmp_path: pathlib.Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run.features(tmp_path)
    real, calls = os.fsync, []

    def fsync(file: int) -> None:
        calls.append(file)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(FeaturesError, match="no space is left on the disk; finished shards stay"):
        made.fill()
    monkeypatch.setattr(os, "fsync", real)
    again = run.features(tmp_path)
    assert (again.missing_rows, again.damaged) == (28, [])
    monkeypatch.setattr(store.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with pytest.raises(FeaturesError, match="but only 10 bytes are free"):
        again.fill()


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: pathlib.Path, run: Run) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FeaturesError, match="cannot write the cache"):
        run.features(tmp_path / "file").fill()


# --- a higher line


def test_a_higher_line_is_filled_from_a_lower_one_without_the_images(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    low = Run(train="head/.* norm/.*")
    lower = filled(tmp_path, low)
    selection = select(low.model, "head/.*")
    line = cut_step(low.step, selection, low.batches.at(0))
    assert isinstance(line, FrostLine)
    assert line.tensors[0].shape != low.line.tensors[0].shape

    def higher(folder: str) -> Features:
        return Features(tmp_path / folder, line, low.batches, data=DATA)

    right = higher("from images")
    right.fill()
    half = low.features(tmp_path, dtype="bfloat16")
    half.fill()
    asked: list[int] = []
    real = low.batches.prepared
    monkeypatch.setattr(low.batches, "prepared", lambda *given: asked.append(1) or real(*given))
    made = higher("from features")
    assert made.fill(lower=lower)
    assert not asked
    index = low.batches.part.index
    np.testing.assert_allclose(made.read(index)["frozen0"], right.read(index)["frozen0"], rtol=1e-4, atol=1e-5)
    assert higher("from halves").fill(lower=half)  # which keep fewer bits: the images are taken
    assert asked
    assert isinstance(low.line.build_bridge(line), Refused)  # and never the other way


# --- augmentation


def test_random_augmentation_is_refused_without_views(tmp_path: pathlib.Path, run: Run) -> None:
    batches = TrainBatches(part_of(), batch_size=16, augment=("flip", "crop"))
    with pytest.raises(FeaturesError, match=r"augment=flip,crop draws anew .*--cache_views=K"):
        Features(tmp_path, run.line, batches, data=DATA)
    assert store.explain_refusal((), None) is None
    assert store.explain_refusal(("flip",), 1) is None
    assert "all views of an example are the same" in str(store.explain_refusal((), 2))
    assert "at least 1" in str(store.explain_refusal(("flip",), 0))


def test_view_j_is_what_epoch_j_sees(tmp_path: pathlib.Path) -> None:
    run = Run(augment=("flip", "crop", "contrast"))
    made = filled(tmp_path, run, views=2)
    assert made.rows == 80
    cached = FeatureBatches(run.batches, made)
    per_epoch = run.batches.per_epoch
    views = []
    for step in range(3 * per_epoch):
        given, kept = run.batches.at(step), cached.at(step)
        (right,) = run.line.prefix(given["image"])
        close = np.allclose(kept["frozen0"], right, rtol=1e-4, atol=1e-5)
        views.append(close)
    assert views == [True] * 2 * per_epoch + [False] * per_epoch  # epoch 2 sees view 0 again


# --- steps


@pytest.mark.slow
@pytest.mark.usefixtures("deterministic_ops")
def test_steps_of_features_are_the_steps_of_images(tmp_path: pathlib.Path) -> None:
    """Three epochs of 3 steps, the last of 8 examples; losses, weights and evaluation."""
    results = []
    for cached in (True, False):
        run = Run()
        part = part_of()
        batches: Any = run.batches
        held = EvalBatches(part, batch_size=16)
        from engine.training.evaluation import Evaluator

        evaluator = Evaluator(losses.supervised_loss(run.model), watch=frozen_output_norms)
        evaluated: Any = held
        if cached:
            batches = FeatureBatches(run.batches, filled(tmp_path, run))
            kept = Features(tmp_path, run.line, held, data=DATA)
            kept.fill()
            assert cut_evaluation(evaluator, run.selection, run.line, next(iter(held))) is None
            evaluated = EvalFeatureBatches(held, kept)
            assert len(evaluated) == 3
            for one, other in zip(batches.between(0, 9), run.batches.between(0, 9), strict=True):
                assert set(one) == (set(other) - {"image"}) | {"frozen0"}
                for name in ("label", "seeds", "index"):
                    np.testing.assert_array_equal(one[name], other[name])
        found = [float(run.step(run.selection, b, learning_rate=1e-2).loss) for b in batches.between(0, 9)]
        results.append((found, evaluator(run.selection, evaluated)))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-4)
    np.testing.assert_allclose(results[0][0][0], results[1][0][0], rtol=1e-6)
    np.testing.assert_allclose(results[0][1].loss, results[1][1].loss, rtol=1e-4)
    assert results[0][1].frozen_output_norm == pytest.approx(results[1][1].frozen_output_norm, rel=1e-5)


def test_evaluation_shares_the_training_parts_cache_only_for_the_same_images(tmp_path: pathlib.Path, run: Run) -> None:
    train = run.features(tmp_path)
    assert Features(tmp_path, run.line, EvalBatches(part_of(), batch_size=16), data=DATA).key == train.key
    fewer = EvalBatches(part_of().take(np.arange(9)), batch_size=16)
    assert Features(tmp_path, run.line, fewer, data=DATA).key != train.key
    assert tf.config.list_physical_devices("CPU")
