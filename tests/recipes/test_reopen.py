"""A run directory is opened as the model that the run trained, to the bit, or refused in words."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

from engine.errors import InputError
from engine.files import Npz
from engine.recipes.config import FinetuneConfig
from engine.recipes.finetune import RunResult, finetune
from engine.recipes.reopen import OpenedRun, open_run
from engine.runs import picture, records

FIELDS: dict[str, Any] = {
    "model": "cnn:mini", "weights": "none", "eval_fraction": 0.2, "batch_size": 8, "train": "@head stages/3/.*",
    "steps": 3, "checkpoint_every": 2, "ema": 0.5, "keep_best": True, "cache": "off", "seed": 3,
}  # fmt: skip


def train(data: pathlib.Path, out: pathlib.Path, **fields: Any) -> RunResult:
    from tensorflow.python.framework import config  # there is no public way to switch it off again

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "draw_curves", lambda *_: None)
        patch.setattr(picture, "draw", lambda *_: None)
        result = finetune(FinetuneConfig(**FIELDS | {"data": f"npz:{data}", "out": str(out)} | fields))
    config.disable_op_determinism()
    return result


@pytest.fixture(scope="module")
def result(small_data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("runs")
    data = shutil.copy(small_data, folder / "data.npz")
    done = train(data, folder / "done")
    pathlib.Path(data).unlink()  # a run is opened without its data
    return done


@pytest.fixture
def run(result: RunResult, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the run that a test may spoil."""
    shutil.copytree(result.out, tmp_path / "run")
    return tmp_path / "run"


def values(variables: Any) -> dict[str, bytes]:
    return {entry.path: entry.variable.numpy().tobytes() for entry in variables}


def refused(path: pathlib.Path, **given: Any) -> str:
    with pytest.raises(InputError) as caught:
        open_run(path, **given)
    return str(caught.value)


def test_the_last_weights_come_back_to_the_bit_without_the_data(result: RunResult) -> None:
    opened = open_run(result.out)
    assert isinstance(opened, OpenedRun)
    assert values(opened.variables) == values(result.task.variables)
    assert (opened.image_shape, opened.data.outputs, opened.class_names) == ((16, 16, 1), 3, None)
    assert (opened.step, opened.config.seed, opened.loss) == (3, 3, "softmax")
    assert opened.weights == f"{result.out}/checkpoints/step-00000003.npz, after 3 steps"
    assert opened.normalise == result.task.normalise
    assert opened.data.fingerprint == result.task.source.fingerprint()
    images = np.zeros([2, 16, 16, 1], np.uint8)
    assert np.array_equal(opened.normalise(images), result.task.normalise(images))


def test_without_checkpoints_the_base_and_the_delta_give_the_same_bits(result: RunResult, run: pathlib.Path) -> None:
    shutil.rmtree(run / "checkpoints")
    opened = open_run(run)
    assert opened.weights == f"{run}/trained.npz on random"
    assert values(opened.variables) == values(result.task.variables)
    averages = open_run(run, averages=True)
    assert averages.weights == f"{run}/ema.npz on random"
    assert values(averages.variables) == values(open_run(result.out, averages=True).variables)


def test_a_damaged_last_checkpoint_is_told_and_the_delta_is_taken(result: RunResult, run: pathlib.Path) -> None:
    last = run / "checkpoints/step-00000003.npz"
    last.write_bytes(last.read_bytes()[:-100])
    said: list[str] = []
    assert values(open_run(run, say=said.append).variables) == values(result.task.variables)
    assert "step-00000003.npz" in said[0]
    assert "trained.npz" in said[0]
    assert "step-00000003.npz" in refused(run, checkpoint="last")


def test_averages_are_those_that_the_run_kept(result: RunResult) -> None:
    opened = open_run(result.out, averages=True)
    with Npz(result.out / "ema.npz") as npz:
        kept = {name: npz.read(name).tobytes() for name in npz.names()}
    found = values(opened.variables)
    assert kept
    assert {name: found[name] for name in kept} == kept
    last = values(result.task.variables)
    assert {name: value for name, value in found.items() if name not in kept} == {
        name: value for name, value in last.items() if name not in kept
    }
    assert any(found[name] != last[name] for name in kept)
    assert opened.weights.startswith("averages in ")
    assert opened.averaged


def test_any_checkpoint_may_be_asked_for(result: RunResult) -> None:
    for asked, step in (("last", 3), ("best", None), ("step-00000002.npz", 2)):
        opened = open_run(result.out, checkpoint=asked)
        assert step in (opened.step, None)
        with Npz(opened.weights.split(",")[0]) as npz:
            assert (
                opened.variables.by_path()["head/kernel"].variable.numpy().tobytes()
                == npz.read("head/kernel").tobytes()
            )
    whole = result.out / "checkpoints/step-00000002.npz"
    assert open_run(result.out, checkpoint=whole).step == 2
    error = refused(result.out, checkpoint="step-00000009.npz")
    assert "checkpoint=step-00000009.npz: there is no such file; the checkpoints of" in error
    assert "step-00000003.npz and step-00000002.npz" in error


@pytest.mark.parametrize("state", ["killed", "stopped", "failed"])
def test_a_run_that_has_not_finished_offers_its_last_checkpoint(
    result: RunResult, run: pathlib.Path, state: str
) -> None:
    found = json.loads((run / "run.json").read_text())
    (run / "run.json").unlink()
    if state != "killed":
        found["exit"] = {"code": 3 if state == "stopped" else 1, "reason": state}
        (run / "run.json").write_text(json.dumps(found))
    error = refused(run)
    assert f"run={run}: the run has not finished: " in error
    assert (state in error) is (state != "killed")
    assert f"--checkpoint=last takes its last checkpoint, {run}/checkpoints/step-00000003.npz" in error
    assert f"--resume --out={run} goes on with it" in error
    assert values(open_run(run, checkpoint="last").variables) == values(result.task.variables)
    shutil.rmtree(run / "checkpoints")
    assert "it has no checkpoint yet" in refused(run)
    assert "checkpoints holds none" in refused(run, checkpoint="last")


def edit(path: pathlib.Path, change: Any) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def test_a_run_of_another_version_is_refused_in_words(run: pathlib.Path) -> None:
    edit(run / "run.json", lambda found: found.update(format=9))
    assert "its run.json has format 9, so another version wrote the run" in refused(run)
    edit(run / "run.json", lambda found: found.pop("format"))
    assert "its run.json has no format, so Frostline 0.1 wrote the run" in refused(run)
    edit(run / "run.json", lambda found: found.update(format=1))
    edit(run / "flags.json", lambda found: found["flags"].update(future=1))
    assert "future: this version has no such flag" in refused(run)
    edit(run / "flags.json", lambda found: found["flags"].pop("future"))
    edit(run / "flags.json", lambda found: found.pop("data"))
    assert "did not record the shape of its images" in refused(run)
    for damage in ({"image_shape": [1]}, {"image_shape": [8, 8, 1], "outputs": "many"}):
        edit(run / "flags.json", lambda found, damage=damage: found.update(data=damage))
        assert "flags.json: damaged" in refused(run)


def test_what_is_no_run_is_refused_and_its_neighbours_are_named(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert "there is no such folder; nearest: run" in refused(tmp_path / "runn")
    assert "it is a file; expected the folder of a run" in refused(run / "trained.npz")
    assert "the folder does not hold a run" in refused(tmp_path)
    assert "it has folders of runs: run" in refused(tmp_path)
    (run / "run.json").write_text("{")
    assert "run.json: damaged" in refused(run)
    assert open_run(run, checkpoint="last").step == 3


def test_a_base_that_is_gone_and_a_delta_of_another_model_are_refused(run: pathlib.Path, result: RunResult) -> None:
    shutil.rmtree(run / "checkpoints")
    edit(run / "flags.json", lambda found: found["flags"].update(weights="gone.npz"))
    error = refused(run)
    assert "its last checkpoint is gone, and trained.npz holds only what the run trained" in error
    assert "--weights=gone.npz: weights='gone.npz+" in error
    assert "there is no file of this name" in error
    edit(run / "flags.json", lambda found: found["flags"].update(weights="none", seed=4))
    error = refused(run)
    assert "it belongs to other weights than none" in error
    assert "--force_base" not in error  # the program has no such flag
    edit(run / "flags.json", lambda found: found["flags"].update(seed=3))
    with np.load(run / "trained.npz") as npz:
        arrays = {name: npz[name] for name in npz.files}
    np.savez(run / "trained.npz", **{name: array for name, array in arrays.items() if name != "base.json"})
    assert "does not say which weights it belongs to" in refused(run)
    (run / "trained.npz").unlink()
    assert "neither the checkpoint of its last step nor trained.npz" in refused(run)


def test_a_run_without_averages_says_so(small_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    train(small_data, tmp_path / "plain", ema=None, steps=1, train="@head")
    assert "the run kept no averages; it trained without --ema" in refused(tmp_path / "plain", averages=True)
    shutil.rmtree(tmp_path / "plain/checkpoints")
    assert "the run kept no averages; it trained without --ema" in refused(tmp_path / "plain", averages=True)
