"""Which strategy for texts: a study in quality mode, and why cost mode is not offered."""

from __future__ import annotations

import pathlib

import made_bert
import pytest

from engine.errors import InputError
from engine.study.config import StudyConfig
from engine.study.run import run_study

pytest.importorskip("tokenizers", reason="the extra text (package tokenizers) is not installed")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A model in tiny/, and reviews in reviews/."""
    place = tmp_path_factory.mktemp("texts")
    made_bert.make_folder(place / "tiny")
    for seed, (part, count) in enumerate({"train": 40, "val": 16, "test": 16}.items()):
        made_bert.write_reviews(place / f"reviews/{part}.tsv", count, seed=seed)
    return place


def config(place: pathlib.Path, **given: object) -> StudyConfig:
    settings: dict[str, object] = {
        "model": f"bert:{place}/tiny", "data": f"text:{place}/reviews", "strategies": ["head", "bias"], "batch_size": 8, "steps": 4,
        "eval_every": 2, "out": str(place / "study"),
    }  # fmt: skip
    return StudyConfig(**settings | given)  # type: ignore[arg-type]


def test_strategies_are_judged_on_texts_which_no_corruption_changes(place: pathlib.Path) -> None:
    done = run_study(config(place, mode="quality", learning_rates="1e-2"))
    rows = {row["strategy"]: row for row in done.study["results"]}
    assert list(rows) == ["head", "bias"]
    for row in rows.values():
        assert row["freeze_verified"]
        assert 0 <= row["quality"]["test"]["accuracy"] <= 1
        assert row["quality"]["shifted"] is None
    assert (place / "study/report.html").stat().st_size > 10_000


def test_what_a_study_of_texts_does_not_offer_is_refused(place: pathlib.Path) -> None:
    with pytest.raises(
        InputError, match=r"the runners of cost mode take an image, and .* has tokens; give --mode=quality"
    ):
        run_study(config(place, mode="cost"))
    with pytest.raises(
        InputError, match=r"corruptions are of an image, and an example of .* has tokens; expected none"
    ):
        run_study(config(place, mode="quality", corrupt="blur:1"))
