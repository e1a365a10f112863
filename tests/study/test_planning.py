"""The plan of a study: what it says, and when it goes on in a folder."""

from __future__ import annotations

import pathlib
import shutil

import pytest

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
