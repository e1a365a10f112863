"""finetune with schedules, learning rates and weight decays by filter: what it trains, prints, resumes and refuses."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest

SMALL = ("--model=cnn:mini", "--eval_fraction=0.2", "--batch_size=8", "--weights=none", "--log_every=1")


def trained(out: pathlib.Path) -> bytes:
    return (out / "trained.npz").read_bytes()


def rates_of(out: pathlib.Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["learning_rate"] for row in rows if row["kind"] == "train"]


def test_phases_with_rates_of_their_own_are_printed_kept_and_resumed_to_the_bit(
    call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    line = [
        *SMALL, f"--data=npz:{small_data}", f"--out={tmp_path / 'a'}", "--checkpoint_every=1", "--keep=9",
        "--rates=@head=1e-2 stages/3/.*=5e-3", "--decays=@head=0.5", "--schedule=exponential,rate=0.5,steps=1",
        "--phase=name=low train='@head stages/[23]/.* !@stats' steps=2",
        "--phase=name=top train=@head steps=3 rates='@bias=1e-4' schedule=step,at=1,factor=0.25",
    ]  # fmt: skip
    code, printed, err = call(*line)
    assert code == 0, err
    words = re.sub(" +", " ", printed)
    assert "phase low: 2 steps, learning rate 0.001 (exponential,rate=0.5,steps=1; 0.0005 in the last step)" in words
    assert "\n 0.01 0.5 1 192 `@head=0.01`, decay `@head=0.5` head\n" in words
    assert "\n 0.005 0 2 128 `stages/3/.*=0.005` stages/3\n" in words
    assert "\n 0.001 0.01 1 18,432 --learning_rate stages/2\n" in words
    assert "phase top: 3 steps, learning rate 0.001 (step,at=1,factor=0.25; 0.00025 in the last step)" in words
    assert "\n 0.0001 0 1 3 `@bias=0.0001` head\n" in words
    assert rates_of(tmp_path / "a") == [1e-3, 1e-3 * 0.5, 1e-3, 1e-3 * 0.25, 1e-3 * 0.25]
    rows = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    assert [row["rates"] for row in rows if row["kind"] == "train"] == [
        {"@head": 1e-2, "stages/3/.*": 5e-3}, {"@head": 5e-3, "stages/3/.*": 2.5e-3},
        {"@bias": 1e-4}, {"@bias": 2.5e-5}, {"@bias": 2.5e-5},
    ]  # fmt: skip
    events = b"".join(file.read_bytes() for file in (tmp_path / "a/tensorboard/train").iterdir())
    assert all(tag in events for tag in (b"rates/@head", b"rates/stages/3/.*", b"rates/@bias"))
    whole = trained(tmp_path / "a")

    code, _, err = call(*[word.replace("stages/3/.*=5e-3", "stages/3/.*=6e-3") for word in line], "--resume")
    assert code == 2
    assert "--rates: '@head=1e-2 stages/3/.*=5e-3' in the checkpoint, '@head=1e-2 stages/3/.*=6e-3' now" in err
    for left in (tmp_path / "a/checkpoints").iterdir():
        if left.name > "step-00000001.npz":
            left.unlink()
    code, printed, err = call(*line, "--resume")
    assert (code, "1 steps trained" in printed) == (0, True), err
    assert trained(tmp_path / "a") == whole


@pytest.mark.slow  # the step's own test of this is quick
def test_a_rate_for_all_is_the_learning_rate(call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    line = [*SMALL, f"--data=npz:{small_data}", "--train=@head stages/3/.*", "--steps=3", "--clip_norm=1"]
    assert call(*line, "--learning_rate=2e-3", f"--out={tmp_path / 'a'}")[0] == 0
    assert call(*line, "--learning_rate=1e-3", "--rates=@all=2e-3", f"--out={tmp_path / 'b'}")[0] == 0
    assert trained(tmp_path / "a") == trained(tmp_path / "b")
    assert rates_of(tmp_path / "b") == [rate / 2 for rate in rates_of(tmp_path / "a")]


def test_decay_toward_the_start_keeps_it_in_slots(call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    line = [*SMALL, f"--data=npz:{small_data}", "--train=@head", "--weight_decay=20", "--decay_toward=start"]
    code, printed, err = call(*line, "--steps=2", f"--out={tmp_path / 'a'}")
    assert code == 0, err
    assert "decay:   toward the values that variables have when they begin to train" in printed
    memory = json.loads((tmp_path / "a/run.json").read_text())["memory"]
    with np.load(tmp_path / "a/checkpoints/step-00000002.npz") as last:
        assert not np.array_equal(last["head/kernel"], last["optimizer/head/kernel/start"])
        assert memory["slot_bytes"] == 3 * (last["head/kernel"].nbytes + last["head/bias"].nbytes)


@pytest.mark.slow
def test_decay_toward_the_start_is_kept_in_slots_resumed_and_gone_on_with(
    call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    line = [*SMALL, f"--data=npz:{small_data}", "--train=@head", "--weight_decay=20", "--decay_toward=start"]
    run = [*line, "--steps=3", "--checkpoint_every=1", "--keep=9", f"--out={tmp_path / 'a'}"]
    code, printed, err = call(*run)
    assert code == 0, err
    assert "decay:   toward the values that variables have when they begin to train" in printed
    memory = json.loads((tmp_path / "a/run.json").read_text())["memory"]
    whole, first = trained(tmp_path / "a"), tmp_path / "a/checkpoints/step-00000001.npz"
    sizes = {name: value.nbytes for name, value in np.load(first).items() if name in ("head/kernel", "head/bias")}
    assert memory["slot_bytes"] == memory["forecast_bytes"]["slots"] == 3 * sum(sizes.values())
    for left in first.parent.iterdir():
        if left.name > first.name:
            left.unlink()
    assert call(*run, "--resume")[0] == 0
    assert trained(tmp_path / "a") == whole
    with np.load(first) as one, np.load(first.parent / "step-00000003.npz") as last:
        start = one["optimizer/head/kernel/start"]
        np.testing.assert_array_equal(last["optimizer/head/kernel/start"], start)
        assert not np.array_equal(last["head/kernel"], start)
    again = [*SMALL, f"--data=npz:{small_data}", "--train=@head", f"--weights={first}", "--steps=1", "--dry_run"]
    code, printed, err = call(*again, "--decay_toward=start")
    assert code == 0, err
    assert "adamw continues from m, v, start of 2 of 2 trained variables (t = 1)" in printed
    code, printed, err = call(*again)  # toward zero: the start is not needed
    assert "adamw continues from m, v of 2 of 2 trained variables (t = 1)" in printed


BAD = {
    "a filter without a match": (["--rates=hed/.*=1e-3"], r"rates='hed/\.\*=0\.001': item 1 `hed/\.\*` matches nothing.*nearest: head/"),
    "a second filter without a match": (["--rates=@head=1 @blocks=1e-3"], r"item 2 `@blocks\[:\]` matches nothing; the model has no blocks"),
    "what does not train": (["--rates=@head=1 stages/0/.*=1"], r"rates: rule 2 `stages/0/\.\*=1` matches nothing that trains; expected variables of head"),
    "an overruled rule": (["--rates=head/bias=1 @head=2"], r"rule 1 `head/bias=1` has no effect.*a later rule \(`@head=2`\)"),
    "what does not decay": (["--decays=@bias=0.1"], r"matches nothing that trains and decays \(--decay says what decays\)"),
    "in no phase": (["--phase=name=b train=@head steps=2 rates=stages/1/.*=1"], r"rule 1 `stages/1/\.\*=1` matches nothing that trains"),
    "a late drop": (["--schedule=step,at=2:4"], r"phase 'train': schedule='step,at=2:4,factor=0\.1': .* after 4 steps, but the phase has 4"),
    "a high end": (["--schedule=linear,end=1e-3"], r"phase 'train': .*end=0\.001: expected a learning rate below the phase's, 0\.001"),
    "layer decay of nothing": (["--rates=@head=1", "--layer_decay=0.5"], r"layer_decay=0\.5: it is not used, because rules of rates decide every"),
    "a pull without decay": (["--optimizer=sgd", "--decay_toward=start"], r"decay_toward=start: no variable decays in any phase; give --weight_decay"),
    "a pull without a decaying variable": (["--decay_toward=start", "--decay=@bias", "--decays=@bias=0"], r"decay_toward=start: no variable decays"),
    "a filter for decays": (["--decays=@head"], r"decays='@head': rule 1 `@head`: expected FILTER=DECAY"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_would_have_no_effect_is_refused_before_anything_is_written(
    call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path, name: str
) -> None:
    words, message = BAD[name]
    train = [] if "--phase" in words[0] else ["--train=@head", "--steps=4"]
    code, _, err = call(*SMALL, f"--data=npz:{small_data}", f"--out={tmp_path / 'run'}", *train, *words)
    assert code == 2, err
    assert re.search(message, err.replace("\n", " ")), err
    assert not list(tmp_path.iterdir())
