"""Where a file of a run does not do as weights, those that do are named."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from engine import models, porting
from engine.files import FileError
from engine.selection.variables import name_variables


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
    """A run directory whose trained.npz has the head alone."""
    network = models.build_model("cnn:mini", image_shape=(8, 8, 1), outputs=3, seed=1).network
    arrays = {entry.path: entry.variable.numpy() for entry in name_variables(network)}
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("step-00000002.npz", "step-00000011.npz"):
        np.savez(folder / "checkpoints" / name, **arrays)
    np.savez(folder / "trained.npz", **{name: array for name, array in arrays.items() if name.startswith("head/")})
    return folder


def refused(path: pathlib.Path) -> str:
    network = models.build_model("cnn:mini", image_shape=(8, 8, 1), outputs=3).network
    with pytest.raises((porting.PortError, FileError)) as caught:
        porting.load(network, path)
    return str(caught.value)


def test_a_delta_names_the_checkpoints_of_its_run(run: pathlib.Path) -> None:
    error = refused(run / "trained.npz")
    assert "in the model, not in the file (20)" in error
    assert "it holds what the run trained, and a checkpoint of the run is whole" in error
    assert f"({run}/checkpoints/step-00000011.npz and {run}/checkpoints/step-00000002.npz)" in error
    moved = (run / "trained.npz").rename(run.parent / "trained.npz")
    assert "(RUN/checkpoints/step-N.npz, or best.npz there with --keep_best)" in refused(moved)


def test_the_folder_of_a_run_and_a_file_that_is_not_in_it_name_them_too(run: pathlib.Path) -> None:
    (run / "checkpoints/step-00000002.npz").rename(run / "checkpoints/best.npz")
    wanted = f"{run}/checkpoints/best.npz and {run}/checkpoints/step-00000011.npz"
    for path in (run, run / "checkpoints", run / "best.npz"):
        assert wanted in refused(path)
