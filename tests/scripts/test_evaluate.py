"""evaluate: figures of a run as a table, as files and as pictures."""

from __future__ import annotations

import csv
import json
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
from PIL import Image

from engine.recipes.finetune import RunResult
from engine.recipes.reopen import open_run

RunEach = Callable[..., list[tuple[int, str, str]]]


def test_a_run_is_evaluated_and_what_it_confuses_is_written(
    run_each: RunEach, photo_run: RunResult, photos: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run, out = f"--run={photo_run.out}", tmp_path / "out"
    weights = f"--weights={photo_run.out}/checkpoints/step-00000012.npz"
    asked = [
        [run, f"--out={out}", "--corrupt=noise:3,jpeg:1"],
        [run, "--part=test", "--metrics=f1,confusion"],
        [run, "--part=test", "--interpolate=0.5,1", f"--out={tmp_path / 'between'}"],
        ["--model=cnn:mini", weights, "--image_size=16", f"--data=folder:{photos}"],
        [run, f"--data=folder:{photos}/nowhere"],
        [run, "--part=nothing"],
        [run, f"--out={photos}/train/bag/bag1.png"],
        ["--model=cnn:mini", weights],
        [run, "--data=photos"],
        [run, "--corrupt=blur:9"],
        [run, "--metrics=f1,acc"],
        [run, "--interpolate=2"],
        ["--model=cnn:mini", weights, f"--data=folder:{photos}", "--interpolate=auto"],
    ]
    (code, text, err), test, between, model, *refused = run_each("scripts.evaluate", asked)
    assert code == 0, err
    final = photo_run.run["final"]
    assert f"loss:              {final['eval_loss']:.6f} (the run's own, to the bit)" in text
    assert f"accuracy:          {final['eval_accuracy']:.4f}" in text
    assert "calibration error: " in text
    assert "macro average" in text
    shown = [line.split() for line in text[text.index("seen through") :].splitlines()]
    assert [line[0] for line in shown[1:4]] == ["as", "noise:3", "jpeg:1"]
    assert shown[1][-2] == f"{final['eval_accuracy']:.4f}"
    assert f"written: {out} (evaluation.json, confusion.csv, confusion.png, mistakes.png)" in text

    found = json.loads((out / "evaluation.json").read_text())
    assert (found["loss"], found["accuracy"]) == (final["eval_loss"], final["eval_accuracy"])
    assert found["run_figures"] == {"loss": found["loss"], "accuracy": found["accuracy"], "same": True}
    assert [(each["kind"], each["strength"]) for each in found["corruptions"]["each"]] == [("noise", 3), ("jpeg", 1)]
    assert f"{found['corruptions']['mean']['accuracy']:.4f}" == shown[4][-2]
    assert found["data"] == {"name": f"folder:{photos}", "part": "eval", "examples": 21, "own": True}
    part = photo_run.task.source.eval
    probabilities = open_run(photo_run.out, averages=True).predictor()(part.read(np.arange(21))["image"])
    predicted = probabilities.argmax(axis=1)
    matrix = [[int(((part.labels == a) & (predicted == b)).sum()) for b in range(3)] for a in range(3)]
    assert found["confusions"] == matrix
    head, *rows = csv.reader((out / "confusion.csv").open())
    assert head == ["true class", "bag", "boot", "trouser"]
    assert [[int(cell) for cell in row[1:]] for row in rows] == matrix
    wrong = np.flatnonzero(predicted != part.labels)
    worst = wrong[np.argmax(probabilities.max(axis=1)[wrong])]
    assert found["most_confident_mistakes"][0]["example"] == part.images.name(int(part.index[worst]))  # type: ignore[attr-defined]
    assert found["mistakes"] == len(wrong)
    for name in ("confusion.png", "mistakes.png"):
        assert min(Image.open(out / name).size) > 200

    assert test[0] == 0
    assert f"loss:              {final['test_loss']:.6f} (the run's own, to the bit)" in test[1]
    assert "\nf1:                0." in test[1]
    assert "\nconfusion:         in evaluation.json" in test[1]
    assert between[0] == 0, between[2]
    chosen = json.loads((tmp_path / "between/evaluation.json").read_text())["interpolation"]
    assert f"ratio:   {chosen['ratio']:g}, the best on the 21 examples of the evaluation part\n" in between[1]
    assert [each["ratio"] for each in chosen["each"]] == [0.5, 1.0]
    with np.load(tmp_path / "between/interpolated.npz") as delta, np.load(photo_run.out / "ema.npz") as whole:
        assert set(delta.files) == set(whole.files)
    assert model[0] == 0
    assert "the run's own" not in model[1]  # nor is it, with last values in place of averages
    assert [code for code, _, _ in refused] == [2] * len(refused)
    for (_, _, error), said in zip(
        refused,
        (
            "there is no folder",
            "flag --part=nothing",
            "expected a folder",
            "only a --run has data of its own",
            "data='photos'",
            "`blur:9`: expected a strength from 1 to 3",
            "`acc` is not a metric; expected some of accuracy",
            "interpolate='2': `2`: expected auto, or numbers from 0 to 1",
            "only a --run says from which weights it began",
        ),
        strict=True,
    ):
        assert said in error, error


def test_data_that_are_gone_or_changed_and_damaged_images_are_told(
    run_each: RunEach, photo_run: RunResult, photos: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = shutil.copytree(photo_run.out, tmp_path / "run")
    flags = json.loads((run / "flags.json").read_text())
    flags["flags"]["data"] = f"folder:{tmp_path}/gone"
    (run / "flags.json").write_text(json.dumps(flags))
    new = shutil.copytree(photos, tmp_path / "new")
    image = new / "val/boot/boot3.png"
    image.write_bytes(image.read_bytes()[:70])
    stale = tmp_path / "stale"
    stale.mkdir()
    asked = [
        [f"--run={run}", f"--out={tmp_path}/out"],
        [f"--run={run}", f"--data=folder:{photos}"],
        [f"--run={run}", f"--data=folder:{new}", f"--out={tmp_path}/out"],
        [f"--run={run}", f"--data=folder:{new}", "--bad_images=skip"],
    ]
    gone, moved, damaged, skipped = run_each("scripts.evaluate", asked)
    assert gone[0] == 2
    assert "are not there; --data says where they are now" in gone[2]
    assert moved[0] == 0
    assert "to the bit" in moved[1]
    assert damaged[0] == 2
    assert "val/boot/boot3.png" in damaged[2]
    assert not (tmp_path / "out").exists()
    assert skipped[0] == 0
    assert "20 examples (evaluation part)" in skipped[1]
    assert "to the bit" not in skipped[1]
