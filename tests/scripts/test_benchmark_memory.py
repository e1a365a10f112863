"""benchmark_memory as its user runs it: exact facts, no timed assertion."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = "model=vit:mini,depth=1 image_size=28 classes=10 batch_size=4 windows=1"


def run(*texts: str, more: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.benchmark_memory", *(f"--run={text}" for text in texts), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_each_run_is_measured_against_its_forecast_and_against_keras(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "results.json"
    runs = [
        TINY,
        f"{TINY} micro_batches=2 remat=blocks ema=0.9 precision=mixed_bfloat16 train='@head @blocks[-1:]'",
        f"{TINY} memory_budget=8GB optimizer=momentum",
        f"{TINY} runner=keras_fit",
    ]
    done = run(*runs, more=(f"--out={out}",))
    assert done.returncode == 0, done.stderr
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

    table = done.stdout[done.stdout.index("    GB  forecast") :].splitlines()
    assert table[0].split() == ["GB", "forecast", "ratio", "to", "keras", "window", "s", "run"]
    number = r"\d+\.\d+"
    assert re.fullmatch(rf" *{number} +{number} +{number} +{number} +{number}  model=vit:mini,depth=1 .*", table[1])
    assert re.fullmatch(
        rf" *{number} +{number} +{number} +{number}  model=.* micro_batches=2 .*", table[2]
    )  # train differs
    assert table[3].endswith("-> one piece, remat none")
    assert re.fullmatch(rf" *{number} +{number}  runner=keras_fit model=vit:mini.*", table[4])
    ratio = plain["forecast_bytes"] / plain["peak_rss_bytes"]
    assert float(table[1].split()[2]) == pytest.approx(ratio, abs=0.006)


BAD = [
    ("modl=vit:mini", "`modl=vit:mini` is no key=value; keys: runner, model,"),
    ("modl=vit:mini", "nearest: model"),
    ("vit:mini", "`vit:mini` is no key=value"),
    ("batch_size=0", "batch_size='0': a whole number from 1 is wanted"),
    ("windows=many", "windows='many': a whole number from 1 is wanted"),
    ("image_size=-3", "image_size='-3': a whole number from 1"),
    ("batch_size=2 micro_batches=3", "more micro-batches than examples"),
    ("runner=torch", "runner='torch': it is engine or keras_fit"),
    ("train='@head", 'run="train=\'@head": '),
    ("precision=half", "precision='half': known are float32"),
    ("optimizer=adamm", "nearest: adam"),
    ("remat=all", "remat='all'"),
    ("ema=2", "ema=2"),
    ("ema=x", "ema='x'"),
    ("memory_budget=lots", "memory_budget='lots'"),
    ("runner=keras_fit precision=mixed_bfloat16", "keras_fit takes no precision"),
]
PARSE = """
import json, sys
from engine.errors import InputError
from scripts import benchmark_memory
for text in json.load(sys.stdin):
    try:
        print(json.dumps(benchmark_memory._parse(text)))
    except InputError as error:
        print(json.dumps(str(error)))
"""


def test_a_bad_run_is_named_before_anything_starts() -> None:
    done = run(TINY, "modl=vit:mini")
    assert done.returncode == 2
    assert "`modl=vit:mini` is no key=value" in done.stderr
    assert done.stdout == ""
    texts = json.dumps([text for text, _ in BAD])  # all in one process: each would take seconds to start
    done = subprocess.run(
        [sys.executable, "-c", PARSE], input=texts, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    for (text, said), line in zip(BAD, done.stdout.splitlines(), strict=True):
        message = json.loads(line)
        assert isinstance(message, str), text
        assert message.startswith("run="), text
        assert said in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train=hed", "item 1 `hed` matches nothing"),
        ("memory_budget=1MB", "the smallest that would do is"),
        ("runner=keras_fit model=cnn:mini", "model='cnn:mini': the peers are plain ViTs"),
    ],
)
def test_what_a_model_cannot_do_is_named_by_its_run(text: str, said: str) -> None:
    done = run(f"{TINY} {text}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_missing_is_named() -> None:
    done = run(TINY, more=("--out=nowhere/results.json",))
    assert done.returncode == 2
    assert "out='nowhere/results.json': it must be a file in an existing folder" in done.stderr
