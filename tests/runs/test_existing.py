"""Whether a folder can hold a run, or an evaluation: it is none that is read, and no run is written over."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from PIL import Image

from engine import FinetuneConfig, finetune
from engine.errors import InputError
from engine.runs.existing import RunDirectoryError, check_apart, check_no_run


def test_a_run_is_not_written_among_the_files_that_it_reads(tmp_path: pathlib.Path) -> None:
    photos, model = tmp_path / "photos", tmp_path / "model"
    (photos / "cat").mkdir(parents=True)
    model.mkdir()
    (tmp_path / "link").symlink_to(photos)
    for out in (photos, photos / "cat", tmp_path / "link", photos / "runs" / "new"):
        with pytest.raises(
            RunDirectoryError, match=r"the folder of the data, .*photos, where the files of the run would be taken"
        ):
            check_apart(out, data=photos, model=None)
    with pytest.raises(RunDirectoryError, match="it is the folder of the model; choose another folder"):
        check_apart(model, data=photos, model=model)
    check_apart(tmp_path / "runs" / "new", data=photos, model=model)
    check_apart(model / "new", data=None, model=model)


def test_finetune_refuses_the_folder_of_its_data_before_it_writes(tmp_path: pathlib.Path) -> None:
    for number in range(4):
        file = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file)
    before = sorted(tmp_path.rglob("*"))
    out = str(tmp_path / "photos")
    with pytest.raises(InputError, match=r"out=.*: it is the folder of the data"):
        finetune(
            FinetuneConfig(
                data=f"folder:{out}", model="cnn:mini", weights="none", steps=1, deterministic=False, out=out
            )
        )
    assert sorted(tmp_path.rglob("*")) == before


def test_an_evaluation_is_not_written_over_a_run(tmp_path: pathlib.Path) -> None:
    check_no_run(tmp_path)
    (tmp_path / "flags.json").touch()
    with pytest.raises(RunDirectoryError, match="it holds a run, whose files would be replaced; choose another folder"):
        check_no_run(tmp_path)
