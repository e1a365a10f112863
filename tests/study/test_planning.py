"""The plan of a study: what it says, and when it goes on in a folder."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import pytest

from engine import locks
from engine.study.config import StudyConfig
from engine.study.job import StudyError
from engine.study.planning import build_plan


def test_a_study_goes_on_although_its_data_have_moved_but_not_with_others(
    small_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def prepare(data: pathlib.Path, seed: int = 0) -> str:
        lines: list[str] = []
        config = StudyConfig(
            model="cnn:mini", weights="none", data=f"npz:{data}", strategies=["head"], runners=["engine"], repeats=1,
            steps=1, batch_size=8, eval_fraction=0.2, seed=seed, out=str(tmp_path / "study"),
        )  # fmt: skip
        plan = build_plan(config, command="study", say=lines.append)
        try:
            plan.prepare()
        finally:
            plan.close()
        return "\n".join(lines)

    assert "weights: random" in prepare(small_data)
    moved = shutil.copy(small_data, tmp_path / "moved.npz")
    prepare(moved)
    with pytest.raises(StudyError, match=r"seed: 0 in .*, 1 now"):
        prepare(moved, seed=1)
    # ---- after kills: while job.json was written, and before the weights were
    study = tmp_path / "study"
    names = sorted(path.name for path in study.iterdir())
    for name in names:
        shutil.rmtree(study / name) if name == "runs" else (study / name).unlink()
    for name in (".lock", ".job.json.7.tmp"):
        (study / name).write_bytes(b"x")
    prepare(moved, seed=1)
    assert sorted(path.name for path in study.iterdir()) == names
    (study / "weights.npz").unlink()
    prepare(moved, seed=1)
    assert sorted(path.name for path in study.iterdir()) == names
    # ---- and while another process works in it
    with (
        locks.hold_folder(study),
        pytest.raises(StudyError, match="another study is running in this folder: process"),
    ):
        prepare(moved, seed=1)
    # ---- a folder of something else is left as it is
    (tmp_path / "study").rename(tmp_path / "mine")
    study.mkdir()
    (study / "weights.npz").write_bytes(b"a user's own")
    with pytest.raises(StudyError, match="it is not the folder of a study"):
        prepare(moved, seed=1)
    assert [path.name for path in study.iterdir()] == ["weights.npz"]


def test_what_decides_while_it_trains_is_left_out_with_the_reason(
    small_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    given: dict[str, Any] = {"model": "cnn:mini", "weights": "none", "data": f"npz:{small_data}", "eval_fraction": 0.2}
    given |= {"runners": ["engine"], "steps": 1, "batch_size": 8, "out": str(tmp_path / "study")}
    plan = build_plan(StudyConfig(**given, strategies=["head", "auto_freeze"]), command="study")
    assert plan.pairs == [("head", "engine")]
    assert [run.strategy for run in plan.runs if run.repeat == 1] == ["head"]
    [row] = plan.left_out
    assert (row["strategy"], row["runner"]) == ("auto_freeze", "engine")
    assert "frostline finetune --auto_freeze=on" in row["reason"]
    with pytest.raises(StudyError, match="strategies=auto_freeze: it decides its phases while it trains"):
        build_plan(StudyConfig(**given, strategies=["auto_freeze"]), command="study")
