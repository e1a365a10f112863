"""benchmark_step as its user runs it: exact facts, no timed assertion."""

from __future__ import annotations

import json

import pytest

SMALL = [
    "--model=vit:mini,depth=2",
    "--image_size=28",
    "--batch_size=4",
    "--classes=10",
    "--steps=2",
    "--warmup=1",
    "--runners=engine,hand",
]
HEAD = 97 * 10


BAD = [
    (
        "--runners=engine,hands",
        "runners='hands' is not a known runner; expected engine, hand, keras_fit, torch; nearest: hand",
    ),
    ("--train=heda/.*", "train='heda/.*': "),
    ("--classes=1", "classes=1: expected a number from 2 to 1000000"),
    ("--warmup=0", "warmup=0: expected a number from 1 to 1000000"),
    ("--seed=-1", "seed=-1: expected a number of at least 0"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "apart", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["one process", "each its own"]
)
def test_engine_and_hand_are_compared_on_equal_terms_and_bad_flags_are_named(run_each, tmp_path, apart):
    out = tmp_path / "results.json"
    (code, _, error), *others = run_each(
        "scripts.benchmark_step", [[*SMALL, f"--out={out}"], *([*SMALL, flag] for flag, _ in BAD)], apart=apart
    )
    for (flag, said), (bad_code, _, bad_error) in zip(BAD, others, strict=True):
        assert (bad_code, said in bad_error) == (2, True), (flag, bad_error)
    assert code == 0, error
    rows = {(row["selection"], row["runner"]): row for row in json.loads(out.read_text())}
    assert list(rows) == [("@head", "engine"), ("@head", "hand"), ("@all", "engine"), ("@all", "hand")]

    for row in rows.values():
        assert row["installed"]
        assert row["interleaved"]
        assert row["step_ms"]["p10"] <= row["step_ms"]["median"] <= row["step_ms"]["p90"]
        assert row["peak_rss_bytes"] > 0
        assert row["parameters"] == rows["@all", "engine"]["trained_parameters"]
        assert row["slot_bytes"] == 2 * 4 * row["trained_parameters"]
    for train in ("@head", "@all"):
        engine, hand = rows[train, "engine"], rows[train, "hand"]
        assert engine["first_loss"] == pytest.approx(hand["first_loss"], rel=1e-5)
        assert set(engine["ratio_to_hand"]) == {"median", "p10", "p90"}
        assert hand["ratio_to_hand"] is None
        assert hand["rss_ratio_to_hand"] == 1.0
    assert rows["@head", "engine"]["trained_parameters"] == HEAD
    assert rows["@head", "engine"]["slot_bytes"] == 2 * 4 * HEAD
    assert 0 < rows["@head", "engine"]["backward_ops"] < rows["@all", "engine"]["backward_ops"]
    assert rows["@head", "engine"]["tape"]["watched_variables"] == 2
    # a frozen backbone keeps nothing for the backward pass: the head's input, its logits, per-example losses
    assert (
        rows["@head", "engine"]["tape"]["activation_bytes"] < rows["@all", "engine"]["tape"]["activation_bytes"] / 100
    )


def _job(**changes):
    from scripts.baselines.harness import Job

    config = {"image": [8, 8, 3], "classes": 10}
    fields = {"model": "", "config": config, "train": "@all", "trained": [], "decayed": [], "weights": "", "adamw": {}}
    return Job(**(fields | {"batch_size": 4, "warmup": 1, "steps": 2, "seed": 0} | changes))


def test_a_job_survives_its_way_to_a_process():
    from scripts.baselines.harness import Job

    job = _job(adamw={"learning_rate": 1e-4})
    assert Job(**json.loads(json.dumps(job.to_json()))) == job


def test_a_pair_swaps_its_order_and_leaves_out_the_warmup():
    from scripts.baselines import harness

    order = []

    class Runner:
        def __init__(self, name):
            self.name = name

        def train_step(self):
            order.append(self.name)
            return 1.0

        def facts(self):
            return {}

    one, other = harness.run_pair(Runner("a"), Runner("b"), _job())
    assert "".join(order) == "abbaab"
    assert len(one["seconds"]) == len(other["seconds"]) == 2


@pytest.mark.parametrize("wrong", [{"first_loss": 2.0001}, {"first_loss": float("nan")}, {"parameters": 11}])
def test_runners_that_disagree_are_not_compared(wrong):
    from scripts.baselines import harness

    engine = {"first_loss": 2.0, "parameters": 10, "trained_parameters": 10}
    harness.check_agreement(_job(), {"engine": engine, "hand": engine | {"first_loss": 2.00001}}, {})
    with pytest.raises(harness.BenchmarkError):
        harness.check_agreement(_job(), {"engine": engine, "hand": engine | wrong}, {})
