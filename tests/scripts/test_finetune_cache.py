"""finetune with --cache: trained from kept features, told in words, and the same run."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest

from engine.feature_cache import decision
from engine.files import Npz

BASE = ("--model=vit:mini,depth=1", "--weights=none", "--eval_fraction=0.2", "--batch_size=8", "--log_every=1")
HEAD = ("--train=@head", "--steps=9", "--eval_every=3")


@pytest.fixture
def run(call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path) -> Any:
    """finetune in tmp_path/NAME: (what it printed, run.json or {})."""

    def start(name: str, *flags: str, code: int = 0) -> tuple[str, dict[str, Any]]:
        own = () if any(flag.startswith("--phase") for flag in flags) else HEAD
        found, out, err = call(*BASE, *own, f"--data=npz:{small_data}", f"--out={tmp_path / name}", *flags)
        assert found == code, out + err
        file = tmp_path / name / "run.json"
        return out + err, json.loads(file.read_text()) if file.exists() else {}

    return start


def losses(folder: pathlib.Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] if row["kind"] == "train" else row["eval_loss"] for row in rows]


def weights(folder: pathlib.Path) -> dict[str, np.ndarray]:
    with Npz(folder / "trained.npz") as npz:
        return {name: npz.read(name) for name in npz.names()}


def test_a_cached_run_is_the_uncached_run_and_its_cache_serves_the_next(run: Any, tmp_path: pathlib.Path) -> None:
    _, plain = run("plain", "--cache=off")
    printed, kept = run("kept", "--cache=require")
    np.testing.assert_allclose(losses(tmp_path / "kept"), losses(tmp_path / "plain"), rtol=1e-5)
    for path, value in weights(tmp_path / "kept").items():
        np.testing.assert_allclose(value, weights(tmp_path / "plain")[path], atol=1e-4)
    assert plain["cache"] | {"phases": []} == {
        "used": False, "cut": [], "bytes": 0, "reason": "phase train: --cache=off", "phases": [],
    }  # fmt: skip
    assert kept["cache"]["used"] is True
    assert len(kept["cache"]["cut"]) == 1
    assert kept["cache"]["bytes"] == 60 * 96 * 4
    assert kept["cache"]["phases"][0]["computed_rows"] == 60
    assert "the frozen part is computed once for 60 rows instead of 72 times in 9 steps" in kept["cache"]["reason"]
    assert "line:    phase train: the frost line is at" in printed
    assert "384 bytes per example" in printed
    assert "cache  | train: 0 of 60 rows exist, 60 will be computed" in printed
    assert sum(f.stat().st_size for f in (tmp_path / "feature_cache").rglob("shard-*")) >= kept["cache"]["bytes"]
    norms = [
        {row["frozen_output_norm"] for row in map(json.loads, (tmp_path / name / "metrics.jsonl").open()) if row["kind"] == "eval"}
        for name in ("plain", "kept")
    ]  # fmt: skip
    assert [len(found) for found in norms] == [1, 1]
    assert norms[0].pop() == pytest.approx(norms[1].pop(), rel=1e-6)
    printed, again = run("again", "--cache=require")
    assert again["cache"]["phases"][0]["computed_rows"] == 0
    assert "60 of 60 rows exist" in printed
    assert losses(tmp_path / "again") == losses(tmp_path / "kept")


def test_the_dry_run_prints_the_line_and_writes_nothing(run: Any, tmp_path: pathlib.Path) -> None:
    for mode in ("auto", "off"):
        printed, _ = run("dry", f"--cache={mode}", "--dry_run")
        assert "(after norm/beta): 384 bytes per example, with 99.9% of the forward pass" in printed
        assert "cache:   phase train: not used" in printed
    assert list(tmp_path.iterdir()) == []


def test_auto_keeps_features_where_that_pays(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    printed, _ = run("tiny", "--dry_run")
    assert "cache:   phase train: not used" in printed
    assert "a cache would not pay: an estimated" in printed
    monkeypatch.setattr(decision, "_PREPARING", 0.0)
    printed, found = run("pays", "--steps=30")
    assert found["cache"]["used"] is True
    assert "cache:   phase train: used (22.5 KiB on disk); an estimated" in printed


@pytest.mark.slow
def test_phases_are_cut_each_at_its_own_line(run: Any, tmp_path: pathlib.Path) -> None:
    """Head, one block lower, and the head again, whose weights below the line have been trained by then."""
    trains = {"a": "@head", "b": "@head norm/.*", "c": "@head"}
    phases = [f"--phase=name={name} steps=3 train='{train}'" for name, train in trains.items()]
    printed, kept = run("kept", "--cache=require", *phases)
    run("plain", "--cache=off", *phases)
    np.testing.assert_allclose(losses(tmp_path / "kept"), losses(tmp_path / "plain"), rtol=1e-5)
    rows = kept["cache"]["phases"]
    assert [row["computed_rows"] for row in rows] == [60, 60, 60]
    assert rows[0]["cut"] == rows[2]["cut"] != rows[1]["cut"]
    assert "cache  | c: 0 of 60 rows exist" in printed
    assert kept["freeze_proof"]["verified"]


@pytest.mark.slow
def test_phases_with_the_same_line_share_a_cache(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision, "_PREPARING", 0.0)
    phases = [f"--phase=name={name} steps=12 train=@head learning_rate={rate}" for name, rate in (("a", 1), ("b", 2))]
    _, found = run("both", *phases)
    assert [(row["used"], row["computed_rows"]) for row in found["cache"]["phases"]] == [(True, 60), (True, 0)]


TWO = ("--augment=flip,crop", "--steps=12")


def test_augmented_images_need_views(run: Any, tmp_path: pathlib.Path) -> None:
    printed, _ = run("no", "--cache=require", "--augment=flip,crop", code=2)
    assert "phase 'train' cannot train from a cache: augment=flip,crop draws anew in every epoch" in printed
    assert "--cache_views=K keeps K draws" in printed
    printed, _ = run("auto", "--augment=flip", "--dry_run")
    assert "--cache_views=K" in printed
    _, found = run("views", "--cache=require", "--cache_views=2", *TWO)
    assert found["cache"]["phases"][0]["computed_rows"] == 2 * 48 + 12


@pytest.mark.slow
def test_views_train_as_the_images_of_their_epochs(run: Any, tmp_path: pathlib.Path) -> None:
    run("views", "--cache=require", "--cache_views=2", *TWO)
    run("plain", "--cache=off", *TWO)
    np.testing.assert_allclose(losses(tmp_path / "views"), losses(tmp_path / "plain"), rtol=1e-5)


@pytest.mark.slow
def test_fewer_bits_and_a_budget(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = run("half", "--cache=require", "--cache_dtype=bfloat16")
    assert found["cache"]["bytes"] == 60 * 96 * 2
    printed, _ = run("over", "--cache=require", "--cache_budget=20KiB", code=2)
    assert "the cache would take 22.5 KiB, but --cache_budget is 20 KiB" in printed
    monkeypatch.setattr(decision, "_PREPARING", 0.0)
    _, found = run("auto", "--cache_budget=20KiB", "--steps=30")
    assert found["cache"]["used"] is False
    assert "--cache_budget is 20 KiB" in found["cache"]["reason"]
    _, found = run("room", "--cache=require", "--cache_budget=25KiB", "--steps=2")  # the narrow one makes room
    assert found["cache"]["used"] is True


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--cache_dtype=int8",), "cache_dtype='int8' is not a valid type; expected bfloat16 or float16"),
        (("--cache=off", "--cache_views=2"), "cache_views=2 has no effect: --cache=off caches nothing"),
        (("--cache=off", "--cache_dtype=float16"), "cache_dtype=float16 has no effect: --cache=off caches nothing"),
        (("--cache=require", "--cache_views=2"), "cache_views=2: without --augment all views of an example are the same"),
        (("--cache=require", "--cache_views=0", "--augment=flip"), "cache_views=0: expected a number of at least 1"),
        (("--cache_budget=much",), "cache_budget='much': expected a number and a unit"),
        (("--cache=require", "--phase=name=x steps=2 train=@all"), "phase 'x' cannot train from a cache: no frost line"),
    ],
)  # fmt: skip
def test_bad_wishes_are_refused_in_words(run: Any, tmp_path: pathlib.Path, flags: tuple[str, ...], said: str) -> None:
    printed, _ = run("bad", *flags, code=2)
    assert said in printed
    assert not (tmp_path / "bad").exists()


@pytest.mark.slow
def test_stopped_while_it_writes_and_resumed_it_ends_with_the_same_bits(
    run: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.feature_cache import store
    from scripts import cli

    monkeypatch.setattr(store, "_SHARD_ROWS", 16)
    required = ("--cache=require", f"--cache_dir={tmp_path / 'one'}")
    run("whole", *required)
    required = ("--cache=require", f"--cache_dir={tmp_path / 'two'}")
    asked: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(cli.StopSignal, "__call__", lambda _: asked.append(1) is None and len(asked) >= 3)
        printed, found = run("cut", *required, code=3)
    assert "train: 0 of 60 rows exist" in printed
    assert (found["steps"], found["exit"]["code"]) == (0, 3)
    there = {path.name for path in (tmp_path / "two").rglob("shard-*")}
    assert 0 < len(there) < 4
    printed, found = run("cut", "--resume", *required)
    assert 0 < int(re.findall(r"train: (\d+) of 60 rows exist", printed)[0]) < 60
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    for path, value in weights(tmp_path / "cut").items():
        np.testing.assert_array_equal(value, weights(tmp_path / "whole")[path])


@pytest.mark.slow
def test_a_damaged_shard_is_named_and_computed_again(run: Any, tmp_path: pathlib.Path) -> None:
    run("first", "--cache=require", "--steps=2")
    shard = next(path for path in (tmp_path / "feature_cache").rglob("shard-*"))
    data = bytearray(shard.read_bytes())
    data[200] ^= 1
    shard.write_bytes(data)
    printed, _ = run("second", "--cache=require", "--steps=2")
    assert "damaged, will be recomputed" in printed
    assert "its content does not match its checksum" in printed
    assert losses(tmp_path / "second") == losses(tmp_path / "first")


@pytest.mark.parametrize("mode", ["require", pytest.param("off", marks=pytest.mark.slow)])
def test_a_frozen_part_that_changes_is_told(run: Any, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept features would hide it; the watched examples go through the network each time."""
    from engine.training.step import TrainStep

    trains = TrainStep.__call__

    def plant(self: Any, selection: Any, *args: Any, **more: Any) -> Any:
        frozen = next(entry for entry in selection.frozen if entry.path == "norm/gamma")
        frozen.variable.assign(frozen.variable * 1.01)
        return trains(self, selection, *args, **more)

    monkeypatch.setattr(TrainStep, "__call__", plant)
    printed, found = run(mode, f"--cache={mode}", code=1)
    assert "WARNING: the output of the frozen part is not what it was at the start of this phase" in printed
    assert found["freeze_proof"]["changed"] == ["norm/gamma"]
