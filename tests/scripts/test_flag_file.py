"""flags.cfg repeats a run to the same bits, whatever its flags were."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import Any

import pytest
from absl import flags
from absl.testing import flagsaver

from engine import FinetuneConfig
from engine.runs.flag_file import NAME, write_flag_file
from scripts import finetune_flags

CONFIGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "phases": {"phase": ("name=a steps=3 train='head/.*'", 'name=b epochs=0.5 train="@head !@norm" rates=@head=1e-3')},
    "numbers": {"learning_rate": 1 / 3, "ema": 0.1 + 0.2, "epsilon": 1e-300, "seed": 2**31 - 1, "optimizer": "adam"},
    "yes and no": {"deterministic": False, "keep_best": True, "optimizer": "momentum", "nesterov": False},
    "nesterov": {"optimizer": "momentum", "nesterov": True, "histograms": True},
    "odd paths": {"data": "npz:a file with #, = and ü.npz", "weights": "c++/w.npz", "rules": "-my.rules"},
    "filters over lines": {"train": "head/.*\n  @blocks[-1:]\n", "rates": "@head=1e-3\n@all=1e-4"},
    "comments": {"train": "#x|head/.*", "decay": "//a|@bias"},
    "a base": {"weights": "auto+runs/a/trained.npz", "force_base": True},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_the_flags_come_back(tmp_path: pathlib.Path, case: str) -> None:
    config = FinetuneConfig(**CONFIGS[case], out="elsewhere")
    write_flag_file(tmp_path, config.to_json())
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["finetune", f"--flagfile={tmp_path / NAME}"])
        found = finetune_flags.config()
    for name in ("train", "rates"):  # a line break is a space there
        if (text := getattr(config, name)) is not None:
            config = dataclasses.replace(config, **{name: " ".join(text.splitlines()).strip()})
    assert found == dataclasses.replace(config, out=None)


def test_a_value_that_a_line_cannot_hold_is_told(tmp_path: pathlib.Path) -> None:
    write_flag_file(tmp_path, {"data": "npz:a\nb.npz", "out": "x", "steps": 3})
    text = (tmp_path / NAME).read_text()
    assert re.search(r"^# --data='npz:a\\nb.npz' cannot be written here", text, re.MULTILINE)
    assert text.endswith("\n--steps=3\n")


RUNS = {
    "phases, averages and augmentation": ["--phase=name=a steps=2 train=@head", "--phase=name=b steps=2 train='@head stages/3/.*'", "--ema=0.9", "--augment=flip,crop"],
    "a memory budget": ["--train=@head", "--steps=2", "--memory_budget=60GB"],
}  # fmt: skip


@pytest.mark.parametrize("case", [next(iter(RUNS)), pytest.param(list(RUNS)[1], marks=pytest.mark.slow)])
def test_a_run_is_repeated_bit_for_bit(call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path, case: str) -> None:
    given = ["--model=cnn:mini", "--weights=none", f"--data=npz:{small_data}", "--batch_size=8", "--cache=off"]
    code, _, error = call(*given, *RUNS[case], f"--out={tmp_path / 'one'}")
    assert code == 0, error
    code, _, error = call(f"--flagfile={tmp_path / 'one' / NAME}", f"--out={tmp_path / 'two'}")
    assert code == 0, error
    names = ["trained.npz", *(["ema.npz"] if case.startswith("phases") else [])]
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    without_comments = [
        [line for line in (tmp_path / run / NAME).read_text().splitlines() if not line.startswith("#")]
        for run in ("one", "two")
    ]
    assert without_comments[0] == without_comments[1]
    assert not any("memory_budget" in line for line in without_comments[0])
