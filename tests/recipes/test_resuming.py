"""A resume takes its flags from the run, and recognises data that have moved."""

from __future__ import annotations

import itertools
import json
import pathlib
import shutil
from types import SimpleNamespace
from typing import Any

import keras
import pytest

from engine import select
from engine.distribution.shares import Share
from engine.errors import InputError
from engine.files import Npz
from engine.recipes import prepare
from engine.recipes.job import REPLICAS
from engine.recipes.resuming import resume_config
from engine.runs.saved_flags import read_flags, write_flags


def kept(folder: pathlib.Path, **flags: Any) -> pathlib.Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/step-00000001.npz").touch()
    write_flags(folder, {"out": "elsewhere", "resume": False, "seed": 3, "steps": 7, "log_every": 2} | flags)
    return folder


def refused(out: pathlib.Path, **given: Any) -> str:
    with pytest.raises(InputError) as caught:
        resume_config(out, given)
    return str(caught.value)


def test_the_flags_are_those_of_the_run_and_what_does_not_decide_its_course_may_change(tmp_path: pathlib.Path) -> None:
    out = kept(tmp_path / "run", phase=["train=@head steps=2"], steps=None)
    config = resume_config(out, {"log_every": 5, "seed": 3})
    assert (config.seed, config.phase, config.log_every) == (3, ("train=@head steps=2",), 5)
    assert (config.out, config.resume) == (str(out), True)


def test_a_resume_may_change_how_it_is_distributed(tmp_path: pathlib.Path) -> None:
    out = kept(tmp_path / "run", distribute="mirrored", logical_devices=3, sync_batch_norm=True)
    same, workers, alone = (
        resume_config(out, given) for given in ({}, {"distribute": "multiworker"}, {"distribute": "none"})
    )
    assert (same.distribute, same.logical_devices, same.sync_batch_norm) == ("mirrored", 3, True)
    assert (workers.logical_devices, workers.sync_batch_norm) == (None, True)
    assert (alone.logical_devices, alone.sync_batch_norm) == (None, False)
    out = kept(tmp_path / "workers", distribute="multiworker", worker_timeout=20.0)
    same, alone = (resume_config(out, given) for given in ({}, {"distribute": "none"}))
    assert (same.worker_timeout, alone.worker_timeout) == (20.0, 60.0)


@pytest.mark.parametrize(
    ("before", "now", "synchronised", "differs"),
    [
        (
            3,
            1,
            False,
            "1 replica now, 3 before: the steps may differ, and not only in their last bits; 1 BatchNormalization",
        ),
        (
            1,
            2,
            False,
            "2 replicas now, 1 before: the steps may differ, and not only in their last bits; 1 BatchNormalization",
        ),
        (3, 1, True, "1 replica now, 3 before: the last bits of the steps may differ"),
        (3, 3, False, None),
        (1, 1, True, None),
        (
            3,
            3,
            True,
            "sync_batch_norm=False now, True before: the steps may differ, and not only in their last bits; 1 Batch",
        ),
    ],
)
def test_a_resume_says_what_another_number_of_replicas_changes(
    before: int, now: int, synchronised: bool, differs: str | None, tmp_path: pathlib.Path
) -> None:
    inputs = keras.Input((4,))
    selection = select(keras.Model(inputs, keras.layers.BatchNormalization()(inputs)), "@all @stats")
    out = kept(tmp_path / "run", distribute="mirrored", sync_batch_norm=synchronised)
    given: list[Any] = [
        SimpleNamespace(sync_batch_norm=False),
        SimpleNamespace(share=Share(0, now, now)),
        SimpleNamespace(computing={REPLICAS: before}),
    ]
    found = prepare._compare_replicas(*given, [SimpleNamespace(selection=selection)], out=out)  # type: ignore[list-item]
    assert found is None if differs is None else str(found).startswith(f"resume: {differs}")


def test_flags_that_contradict_are_all_refused_with_both_values(tmp_path: pathlib.Path) -> None:
    error = refused(kept(tmp_path / "run"), seed=4, epochs=2.0, steps=7, phase=["train=@head"], keep=1)
    assert "--seed: 3 in the checkpoint, 4 now" in error
    assert "keep" not in error
    assert "steps" not in error
    out = kept(tmp_path / "whole", phase=[], epochs=None)
    error = refused(out, epochs=2.0, phase=["train=@head"])
    assert "--epochs: None in the checkpoint, 2.0 now" in error
    assert "--phase: [] in the checkpoint, ['train=@head'] now" in error


def test_before_the_first_checkpoint_other_flags_begin_another_run(tmp_path: pathlib.Path) -> None:
    out = kept(tmp_path / "run", rules="my.rules", weights="w.npz")
    (out / "checkpoints/step-00000001.npz").unlink()
    assert resume_config(out, {"weights": "none"}).seed == 0
    assert resume_config(out, {"log_every": 5, "weights": "w.npz"}).seed == 3


def test_a_folder_without_a_run_needs_flags_and_names_its_neighbours(tmp_path: pathlib.Path) -> None:
    kept(tmp_path / "photos")
    assert "there is no such folder; nearest: photos" in refused(tmp_path / "photo")
    (tmp_path / "empty").mkdir()
    assert "the folder holds no run (neither flags.json nor a checkpoint)" in refused(tmp_path / "empty", log_every=3)
    assert resume_config(tmp_path / "empty", {"seed": 9}).seed == 9


def test_flags_that_cannot_be_read_are_an_error_with_the_way_out(tmp_path: pathlib.Path) -> None:
    out = kept(tmp_path / "run")
    for content in ("", "[]", '{"format": 9}', '{"format": 1, "flags": 3}', "[" * 100_000):
        (out / "flags.json").write_text(content)
        assert "delete it and give the flags" in refused(out)
    for flags in ({"steps": "many"}, {"nonsense": 1}):
        (out / "flags.json").write_text(json.dumps({"format": 1, "flags": flags}))
        assert next(iter(flags)) in refused(out)


def test_data_that_are_gone_are_an_error_that_names_the_flag(tmp_path: pathlib.Path) -> None:
    out = kept(tmp_path / "run", data=f"folder:{tmp_path / 'gone'}")
    assert "--data says where they are now" in refused(out)
    assert resume_config(out, {"data": "folder:here"}).data == "folder:here"


def test_a_resume_alone_ends_as_one_piece_does_although_its_data_have_moved(
    call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts import cli

    data = shutil.copy(small_data, tmp_path / "before.npz")
    flags = ["--model=cnn:mini", "--weights=none", "--train=@all", f"--data=npz:{data}", "--batch_size=8", "--seed=5"]
    flags += ["--eval_fraction=0.2", "--steps=4", "--log_every=1", "--optimizer=sgd", "--cache=off"]
    assert call(*flags, f"--out={tmp_path / 'whole'}")[0] == 0
    asked, out = itertools.count(), tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(cli.StopSignal, "__call__", lambda _: next(asked) > 2)
        assert call(*flags, f"--out={out}")[0] == 3
    pathlib.Path(data).rename(tmp_path / "after.npz")
    code, _, error = call("--resume", f"--out={out}")
    assert (code, "--data says where they are now" in error) == (2, True)
    code, _, error = call("--resume", str(out))
    assert (code, f"--resume --out={out}" in error) == (2, True)
    (out / "flags.json").unlink()  # as an earlier version left it
    kept_flags = read_flags(out)
    assert kept_flags is not None
    assert kept_flags["seed"] == 5
    code, printed, error = call("--resume", f"--out={out}", f"--data=npz:{tmp_path / 'after.npz'}", "--log_every=1")
    assert code == 0, error
    assert "after.npz has the content that npz:" in printed
    with Npz(tmp_path / "whole/trained.npz") as one, Npz(out / "trained.npz") as other:
        assert {name: one.read(name).tobytes() for name in one.names()} == {
            name: other.read(name).tobytes() for name in other.names()
        }
