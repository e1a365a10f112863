"""What is printed at the end of a run."""

from __future__ import annotations

import pathlib
from types import SimpleNamespace

import pytest

from engine.training.phases import Evaluation
from scripts import finetune_text


def test_the_end_names_the_step_of_the_last_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    """A run that failed or was stopped has trained further than it has been evaluated."""
    run = {
        "steps": 27,
        "final": {},
        "freeze_proof": {"verified": True, "variables": 3},
        "memory": {"peak_rss_bytes": 0},
        "timing": {"total_seconds": 1.0, "until_first_step": None},
        "skipped_steps": 0,
        "left_out_terms": {},
    }
    evaluations = [
        Evaluation(step, "train", loss, accuracy, None) for step, loss, accuracy in ((0, 2, 0.1), (20, 1, 0.5))
    ]
    given = {"run": run, "evaluations": evaluations, "out": pathlib.Path("run"), "code": 1, "reason": "lost"}
    finetune_text.print_end(SimpleNamespace(**given))  # type: ignore[arg-type]
    assert "evaluation accuracy: 0.1000 before, 0.5000 after 20 steps" in capsys.readouterr().out
