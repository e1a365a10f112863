"""benchmark_cache as its user runs it: exact facts, no timed assertion."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest

SMALL = [
    "--model=vit:Ti/16,depth=3",
    "--image_size=32",
    "--images=10",
    "--epochs=2",
    "--batch_size=4",
    "--step_batch_size=4",
    "--rounds=6",
    "--warmup=1",
    "--memory_model=vit:Ti/16,depth=1",
    "--memory_examples=4,20",
]
WIDTH = 192
HEAD = (WIDTH + 1) * 10

BAD = [
    ("--what=jobs", "what='jobs' is not a valid measurement; expected job, depth, step, memory; nearest: job"),
    ("--what=job,job", "what='job,job': expected at least one, and none twice"),
    ("--images=3", "batch_size=4: there are only 3 images"),
    ("--step_batch_size=11", "step_batch_size=11: there are only 10 images"),
    ("--memory_examples=4", "memory_examples='4': expected two numbers"),
    ("--memory_examples=3,20", "the first of at least step_batch_size=4"),
    ("--memory_examples=20,20", "the second larger"),
    ("--epochs=0", "epochs=0: expected a number from 1"),
    ("--model=cnn:mini", "model='cnn:mini': it is compared with plain ViTs"),
    ("--out=nowhere/results.json", "expected the name of a file in an existing, writable folder"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "apart", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["one process", "each its own"]
)
def test_jobs_steps_and_memory_are_measured_and_bad_flags_are_named(
    run_each: Any, tmp_path: pathlib.Path, apart: bool
) -> None:
    out = tmp_path / "results.json"
    asked = [[*SMALL, f"--out={out}"], *([*SMALL, flag] for flag, _ in BAD)]
    (code, printed, error), *others = run_each("scripts.benchmark_cache", asked, apart=apart)
    for (flag, said), (bad_code, _, bad_error) in zip(BAD, others, strict=True):
        assert (bad_code, said in bad_error) == (2, True), (flag, bad_error)
    assert code == 0, error
    results = json.loads(out.read_text())
    assert list(results) == ["versions", "processors", "job", "depth", "step", "memory"]
    assert {"tensorflow", "keras", "numpy", "python"} <= set(results["versions"])

    job, depth, step, memory = (results[what] for what in ("job", "depth", "step", "memory"))
    assert list(job) == ["engine_cached", "keras_fit", "forward", "keras_forward", "ratios"]
    cached, keras = job["engine_cached"], job["keras_fit"]
    for row in (cached, keras):
        assert (row["steps"], row["examples"], row["trained_parameters"]) == (6, 10, HEAD)
    # the same images in the same order: the whole course agrees, not its start alone
    assert keras["first_loss"] == pytest.approx(cached["first_loss"], rel=1e-4)
    assert keras["last_epoch_loss"] == pytest.approx(cached["last_epoch_loss"], rel=1e-4)
    assert cached["cache_bytes"] == (10 + 1) * 4 * WIDTH  # one row is the evaluation part's
    assert 0 < cached["seconds_to_cut"] + cached["seconds_to_fill"] < cached["seconds"]
    assert job["ratios"] == {
        "keras_fit_to_cached": keras["seconds"] / cached["seconds"],
        "cached_to_forward": cached["seconds"] / job["forward"]["seconds"],
        "cached_to_keras_forward": cached["seconds"] / job["keras_forward"]["seconds"],
    }

    cached, plain = depth["engine_cached"], depth["engine"]
    assert (plain["cut"], plain["cache_bytes"], plain["seconds_to_fill"]) == ([], 0, 0)
    assert cached["cache_bytes"] == (10 + 1) * 4 * WIDTH * 5  # all tokens
    assert cached["trained_parameters"] == plain["trained_parameters"] > HEAD
    assert cached["last_epoch_loss"] == pytest.approx(plain["last_epoch_loss"], rel=1e-4)
    assert cached["last_epoch_loss"] != pytest.approx(keras["last_epoch_loss"], rel=1e-4)  # more trains
    assert depth["ratios"] == {"uncached_to_cached": plain["seconds"] / cached["seconds"]}

    assert step["examples"] == 8  # two whole steps
    assert len(step["engine"]["seconds"]) == len(step["hand"]["seconds"]) == 6
    assert step["engine"]["last_loss"] == pytest.approx(step["hand"]["last_loss"], rel=1e-4)
    assert step["engine"]["slot_bytes"] == step["hand"]["slot_bytes"] == 2 * 4 * HEAD
    assert (len(step["runs"]["engine"]), step["runs"]["steps"]) == (5, 1)
    for name in ("step_to_hand", "runs_to_hand"):
        assert 0 < step[name]["p10"] <= step[name]["median"] <= step[name]["p90"]

    assert (memory["few"]["examples"], memory["many"]["examples"]) == (4, 20)
    assert memory["few"]["steps"] == memory["many"]["steps"] == 5
    more = memory["many"]["peak_rss_bytes"] - memory["few"]["peak_rss_bytes"]
    assert memory["more_peak_rss_bytes"] == more
    assert memory["more_cache_bytes"] == 16 * 4 * WIDTH

    number = r"\d+\.\d+"
    assert re.search(rf"keras fit to cached: {number}; required: at least 8\.5, (NOT )?reached", printed)
    assert re.search(rf"cached to forward: {number}; required: at most 1\.2", printed)
    assert re.search(rf"uncached to cached: {number}; required: at least 2", printed)
    assert re.search(rf"step to hand: {number} \({number} to {number}\); required: at most 1\.3", printed)
    assert re.search(rf"[+-]{number} MiB of peak memory for \+{number} MiB of cache", printed)
    assert f"tensorflow {results['versions']['tensorflow']}" in printed


def test_made_images_depend_on_seed_and_number_alone() -> None:
    from scripts.baselines.cached import SyntheticImages
    from scripts.baselines.harness import Job

    def made(seed: int) -> SyntheticImages:
        fields: dict[str, Any] = {"model": "", "train": "", "trained": [], "decayed": [], "weights": "", "adamw": {}}
        return SyntheticImages(
            Job(**fields, config={"image": [4, 5, 3]}, batch_size=2, warmup=0, steps=1, seed=seed), 9
        )

    images = made(0)
    assert (images.shape, images.dtype) == ((9, 4, 5, 3), np.uint8)
    np.testing.assert_array_equal(images[np.array([7, 3])][1], made(0)[np.array([3])][0])
    assert (images[np.array([3])] != images[np.array([4])]).any()
    assert (images[np.array([3])] != made(1)[np.array([3])]).any()
