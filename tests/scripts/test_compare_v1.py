"""compare_v1 and benchmark_v1, run as programs: what they write, and what they refuse."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

ROW = {
    "runner", "losses", "weights_sha256", "trainable_collection", "in_compute_gradients", "slots", "saver_would_lose",
    "backward_ops", "step_ms", "peak_rss_bytes",
}  # fmt: skip


OPTIMIZER = "rmsprop,momentum=0.9,epsilon=0.1,clip_norm=0.5,weight_decay=0.1,layer_decay=0.8"
BAD = [
    (["--train=haed/.*"], "item 1 `haed/.*` matches nothing"),
    (["--model=keras:MobileNetV2"], "the TF1 path has only vit:SIZE"),
    (["--micro_batches=100"], "micro_batches=100"),
    (["--optimizer=rmsprop,moment=0.9"], "`moment=0.9`: expected a hyperparameter of rmsprop"),
    (["--optimizer=rmsprop,epsilon_placement=outside"], "RMSPropOptimizer of tf.compat.v1.train always has inside"),
    (["--model=vit:mini,depth=1"], "--weights=none starts from random weights"),
]


def test_the_methods_are_identical_agree_with_the_engine_and_the_leaks_are_shown(
    run_each: Any, small_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (code, printed, error), *others = run_each("scripts.compare_v1", [[
        "--model=cnn:mini", f"--data=npz:{small_data}", "--train=head/.* stages/[13]/.*", "--steps=4",
        "--batch_size=8", "--micro_batches=2", "--precision=float64", f"--optimizer={OPTIMIZER}", "--show=leaks",
        f"--out={tmp_path / 'new'}",
    ], *(flags for flags, _ in BAD)])  # fmt: skip
    assert code == 0, error
    found = json.loads((tmp_path / "new/compare.json").read_text())
    assert (found["model"], found["steps"], found["optimizer"], found["identical"]) == ("cnn:mini", 4, OPTIMIZER, True)
    rows = {row["runner"]: row for row in found["rows"]}
    assert list(rows) == ["engine", "v1_trainable", "v1_stop_gradient", "v1_var_list"]
    assert all(set(row) >= ROW for row in rows.values())
    trained = rows["engine"]["trainable_collection"]
    weights = rows["v1_var_list"]["trainable_collection"]
    assert rows["v1_trainable"]["trainable_collection"] == trained
    assert len(weights) == 14
    listed = {name: row["in_compute_gradients"] for name, row in rows.items()}
    assert listed["v1_trainable"] == listed["v1_var_list"] == trained
    assert sorted(listed["v1_stop_gradient"]) == sorted(weights)
    for name in ("v1_trainable", "v1_stop_gradient", "v1_var_list"):
        assert rows[name]["slots"] == [f"{path}/{slot}" for slot in ("RMSProp_1", "RMSProp") for path in trained]
        assert rows[name]["losses"] == pytest.approx(rows["engine"]["losses"], rel=1e-10)
    lost = set(rows["v1_trainable"]["saver_would_lose"])
    assert "stages/0/conv/kernel" in lost
    assert set(rows["v1_var_list"]["saver_would_lose"]) < lost  # statistics are in no trainable collection
    assert all(row["weights"] < 1e-10 for row in found["differences"])
    assert len(found["leaks"]) == 9
    assert all(leak["moved"] and leak["size"] > 0 for leak in found["leaks"])
    assert "are bit-identical" in printed
    for (code, _, error), (flags, message) in zip(others, BAD, strict=True):
        assert code == 2, flags
        assert message in error


@pytest.mark.slow
def test_steps_are_timed_in_turn(run_each: Any, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "times.json"
    asked = [
        "--model=cnn:mini", "--image_size=16", "--classes=3", "--batch_size=4", "--steps=2", "--warmup=1",
        "--train=@head", "--optimizer=adagrad", f"--out={out}",
    ]  # fmt: skip
    (code, _, error), (bad, _, message) = run_each("scripts.benchmark_v1", [asked, ["--image_size=4"]])
    assert code == 0, error
    assert bad == 2
    assert "image_size=4" in message
    rows = json.loads(out.read_text())
    assert [row["runner"] for row in rows] == ["engine", "v1_trainable", "v1_stop_gradient", "v1_var_list"]
    assert all(row["ratio_to_engine"]["median"] > 0 for row in rows)
    assert rows[0]["ratio_to_engine"] == {"median": 1.0, "p10": 1.0, "p90": 1.0}
