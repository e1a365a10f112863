"""Interpolating a run with its base: the ends are the run's own figures, and the delta goes onto the base."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest

from engine import build_model, load_weights
from engine.errors import InputError
from engine.recipes.evaluate import evaluate
from engine.recipes.evaluation_data import open_examples
from engine.recipes.finetune import RunResult
from engine.recipes.reopen import open_run
from engine.recipes.wise_ft import choose_ratio, write_interpolated
from engine.selection.variables import name_variables


def test_a_run_is_interpolated_with_what_it_began_with(photo_run: RunResult, tmp_path: pathlib.Path) -> None:
    opened = open_run(photo_run.out, averages=True)
    examples = open_examples(opened)
    done: list[int] = []
    between, found = choose_ratio(opened, examples, ratios=(0.0, 0.5, 1.0), progress=done.append)
    assert done == [21, 42, 63]
    rows = [json.loads(line) for line in (photo_run.out / "metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if row["kind"] == "eval")
    final = photo_run.run["final"]
    assert [(each["loss"], each["accuracy"]) for each in found.each[::2]] == [
        (pytest.approx(first["eval_loss"], rel=1e-6), first["eval_accuracy"]),
        (pytest.approx(final["eval_loss"], rel=1e-6), final["eval_accuracy"]),
    ]
    best = max(found.each, key=lambda each: (each["accuracy"], -each["loss"]))
    assert found.ratio == best["ratio"]
    report = evaluate(between, examples)
    assert report.figures["accuracy"] == best["accuracy"]
    assert report.figures["run_figures"] is None  # they are not the run's weights
    assert f"(ratio {found.ratio:g})" in between.weights

    half, found = choose_ratio(open_run(photo_run.out, averages=True), examples, ratios=(0.5,))
    write_interpolated(tmp_path / "interpolated.npz", half, found)
    again = build_model("cnn:mini", image_shape=opened.image_shape, outputs=3, seed=1)
    start = {entry.path: entry.variable.numpy() for entry in name_variables(again.network)}
    load_weights(again, f"none+{tmp_path / 'interpolated.npz'}")
    tuned = open_run(photo_run.out, averages=True).variables.by_path()
    for entry in name_variables(again.network):
        value = entry.variable.numpy()
        assert value.tobytes() == half.variables.by_path()[entry.path].variable.numpy().tobytes()
        np.testing.assert_allclose(value, (start[entry.path] + tuned[entry.path].variable.numpy()) / 2, atol=1e-6)


def test_a_base_that_is_gone_or_another_is_refused(photo_run: RunResult, tmp_path: pathlib.Path) -> None:
    examples = open_examples(open_run(photo_run.out, averages=True))
    run = shutil.copytree(photo_run.out, tmp_path / "run")
    flags = json.loads((run / "flags.json").read_text())
    flags["flags"]["seed"] = 7  # then the model begins with other random values
    (run / "flags.json").write_text(json.dumps(flags))
    with pytest.raises(InputError, match=r"--weights=none does not give the values from which the run started"):
        choose_ratio(open_run(run, averages=True), examples)
    (run / "ema.npz").unlink()
    with pytest.raises(InputError, match=r"it has no trained.npz that says|it has no ema.npz|nothing to interpolate"):
        choose_ratio(open_run(run, averages=True), examples)
