"""benchmark_memory as its user runs it: exact facts, no timed assertion."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import pytest

TINY = "model=vit:mini,depth=1 image_size=28 classes=10 batch_size=4 steps=1"


BAD = [
    ("modl=vit:mini", "`modl=vit:mini` is not a valid key=value; keys: runner, model,"),
    ("modl=vit:mini", "nearest: model"),
    ("vit:mini", "`vit:mini` is not a valid key=value"),
    ("batch_size=0", "batch_size='0': expected a whole number of at least 1"),
    ("steps=many", "steps='many': expected a whole number of at least 1"),
    ("image_size=-3", "image_size='-3': expected a whole number of at least 1"),
    ("batch_size=2 micro_batches=3", "there are more micro-batches than examples"),
    ("runner=torch", "runner='torch': expected engine or keras_fit"),
    ("train='@head", 'run="train=\'@head": '),
    ("precision=half", "precision='half': expected one of float32"),
    ("optimizer=adamm", "nearest: adam"),
    ("remat=all", "remat='all'"),
    ("ema=2", "ema=2"),
    ("ema=x", "ema='x'"),
    ("memory_budget=lots", "memory_budget='lots'"),
    ("runner=keras_fit precision=mixed_bfloat16", "keras_fit does not support precision"),
]
# what a model cannot do, said by the process that has it
UNFIT = [
    (f"{TINY} train=hed", "item 1 `hed` matches nothing"),
    (f"{TINY} memory_budget=1MB", "the smallest budget that would suffice is"),
    (f"{TINY} runner=keras_fit model=cnn:mini", "model='cnn:mini': it is compared with plain ViTs"),
]


@pytest.mark.slow
@pytest.mark.parametrize("apart", [False, True], ids=["one process", "each its own"])
def test_runs_are_measured_against_their_forecasts_and_against_keras_and_bad_ones_are_named(
    run_each: Any, tmp_path: pathlib.Path, apart: bool
) -> None:
    out = tmp_path / "results.json"
    runs = [
        TINY,
        f"{TINY} micro_batches=2 remat=blocks ema=0.9 precision=mixed_bfloat16 train='@head @blocks[-1:]'",
        f"{TINY} memory_budget=8GB optimizer=momentum",
        f"{TINY} runner=keras_fit",
    ]
    asked = [
        [*(f"--run={text}" for text in runs), f"--out={out}"],
        [f"--run={TINY}", "--out=nowhere/results.json"],
        *([f"--run={TINY}", f"--run={text}"] for text, _ in BAD),
        *([f"--run={text}"] for text, _ in UNFIT),
    ]
    (code, printed, error), (no_code, _, no_folder), *others = run_each("scripts.benchmark_memory", asked, apart=apart)
    assert no_code == 2
    assert "out='nowhere/results.json': expected the name of a file in an existing, writable folder" in no_folder
    for (text, said), (bad_code, bad_printed, bad_error) in zip([*BAD, *UNFIT], others, strict=True):
        assert (bad_code, said in bad_error) == (2, True), (text, bad_error)
        if (text, said) in BAD:
            assert bad_error.startswith("benchmark_memory: run=")
            assert bad_printed == "", "it is named before anything starts"
    assert code == 0, error
    plain, parts, budget, keras = json.loads(out.read_text())
    for row in (plain, parts, budget):
        assert row["runner"] == "engine"
        assert row["peak_rss_bytes"] > 0
        assert row["forecast_bytes"] > 0
        assert len(row["seconds"]) == 1
        assert "process before" in row["forecast"]
    assert keras["peak_rss_bytes"] > 0
    assert (keras["forecast_bytes"], keras["plan"]) == (None, None)
    assert plain["plan"] == {"micro_batch_size": None, "remat": "none", "blocks": None, "reasons": []}
    assert (parts["plan"]["micro_batch_size"], parts["plan"]["remat"]) == (2, "blocks")
    assert "averages" in parts["forecast"]
    assert "averages" not in plain["forecast"]
    assert parts["train"] == "@head @blocks[-1:]"
    assert len(budget["plan"]["reasons"]) == 1

    table = printed[printed.index("    GB  forecast") :].splitlines()
    assert table[0].split() == ["GB", "forecast", "ratio", "to", "keras", "step", "s", "run"]
    number = r"\d+\.\d+"
    assert re.fullmatch(rf" *{number} +{number} +{number} +{number} +{number}  model=vit:mini,depth=1 .*", table[1])
    assert re.fullmatch(
        rf" *{number} +{number} +{number} +{number}  model=.* micro_batches=2 .*", table[2]
    )  # train differs
    assert table[3].endswith("-> one piece, remat none")
    assert re.fullmatch(rf" *{number} +{number}  runner=keras_fit model=vit:mini.*", table[4])
    ratio = plain["forecast_bytes"] / plain["peak_rss_bytes"]
    assert float(table[1].split()[2]) == pytest.approx(ratio, abs=0.006)
