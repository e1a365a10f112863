"""finetune as its users run it: the run directory, exit codes, bad input, signals."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from absl import flags

from engine.files import Npz
from engine.models import build_model
from engine.selection.variables import name_variables

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = ("--model=cnn:mini", "--eval_fraction=0.2", "--batch_size=8", "--steps=4", "--weights=none", "--log_every=1")


@pytest.mark.usefixtures("curves")
def test_a_run_directory_holds_the_whole_contract(call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "run"
    code, printed, _ = call(
        *SMALL, f"--data=npz:{small_data}", f"--out={out}", "--train=@head stages/3/.*", "--keep_best", "--histograms"
    )
    assert code == 0
    run = json.loads((out / "run.json").read_text())
    assert set(run) == {
        "format", "flags", "versions", "model", "data", "phases", "steps", "final", "freeze_proof", "timing", "memory", "cache",
        "skipped_steps", "left_out_terms", "exit", "device", "jit_compile", "precision", "distribution",
    }  # fmt: skip
    assert (next(iter(run)), run["format"]) == ("format", 1)
    assert run["model"] == {"name": "cnn:mini", "parameters": 61_402 - 10 * 65 + 3 * 65, "notes": []}
    assert run["data"]["train_examples"] == 48
    assert run["data"]["eval_examples"] == 12
    assert run["data"]["classes"] == 3
    (phase,) = run["phases"]
    assert phase["trained"] == [
        "stages/3/conv/kernel",
        "stages/3/norm/gamma",
        "stages/3/norm/beta",
        "head/kernel",
        "head/bias",
    ]
    assert phase["moving"] == ["stages/3/norm/moving_mean", "stages/3/norm/moving_variance"]
    assert (phase["from_step"], phase["to_step"], phase["reason"]) == (0, 4, "steps")
    assert phase["trained_parameters"] + phase["frozen_parameters"] + 128 == run["model"]["parameters"]
    assert run["freeze_proof"] == {"verified": True, "variables": 15, "changed": []}
    assert run["steps"] == 4
    assert run["exit"] == {"code": 0, "reason": "done"}
    assert (run["skipped_steps"], run["left_out_terms"]) == (0, {})
    assert set(run["memory"]["forecast_bytes"]) == {
        "weights", "slots", "averages", "accumulators", "gradients", "activations", "batches", "graph", "process", "total",
    }  # fmt: skip
    assert all(isinstance(v, int) for v in run["memory"]["forecast_bytes"].values())
    assert (
        run["memory"]["slot_bytes"] == run["memory"]["forecast_bytes"]["slots"] == 2 * 4 * phase["trained_parameters"]
    )
    assert set(run["timing"]) == {
        "total_seconds", "first_step_seconds", "step_ms", "examples_per_second", "until_first_step",
    }  # fmt: skip
    assert {"imports", "data", "model", "trace", "forecast", "first run"} <= set(run["timing"]["until_first_step"])
    assert set(run["final"]) >= {"train_loss", "eval_loss", "eval_accuracy", "test_accuracy", "test_class_accuracy"}
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in train] == [1, 2, 3, 4]
    wanted = {"step", "phase", "loss", "learning_rate", "examples_per_second", "grad_norm", "loss_scale", "skipped"}
    assert all(wanted <= set(row) for row in train)
    evals = [row for row in rows if row["kind"] == "eval"]
    assert all({"step", "phase", "eval_loss", "eval_accuracy", "frozen_output_norm"} <= set(row) for row in evals)
    assert len({row["frozen_output_norm"] for row in evals}) == 1, "what is frozen puts out the same"
    assert evals[0]["frozen_output_norm"] > 0
    with Npz(out / "trained.npz") as npz:
        assert npz.names() == [*phase["trained"][:3], *phase["moving"], *phase["trained"][3:]]
    for name in ("curves.png", "frostline.png"):
        assert (out / name).read_bytes()[:4] == b"\x89PNG"
    assert {p.name for p in (out / "checkpoints").iterdir()} == {"best.npz", "step-00000004.npz"}
    assert list((out / "tensorboard/train").iterdir())
    assert list((out / "tensorboard/eval").iterdir())
    assert "decided by" in printed
    assert "freeze proof:        verified; 15 frozen variables" in printed
    assert re.search(r"evaluation accuracy: 0\.\d{4} before, [01]\.\d{4} after 4 steps", printed)


def test_a_checkpoint_is_a_weights_file(call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    data = f"--data=npz:{small_data}"
    assert call(*SMALL, data, f"--out={tmp_path / 'a'}", "--train=@head stages/3/.*")[0] == 0
    last = tmp_path / "a/checkpoints/step-00000004.npz"
    code, printed, _ = call(*SMALL, data, f"--out={tmp_path / 'b'}", f"--weights={last}", "--train=@head")
    assert code == 0
    assert "22 variables loaded" in printed
    first = json.loads((tmp_path / "b/metrics.jsonl").read_text().splitlines()[0])
    assert first["eval_loss"] == json.loads((tmp_path / "a/run.json").read_text())["final"]["eval_loss"]


def test_sigmoid_and_mse_losses_train(call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with np.load(small_data) as npz:
        arrays = dict(npz)
    for prefix in ("train", "test"):
        arrays[f"{prefix}_labels"] = (arrays[f"{prefix}_labels"] == 1).astype(np.int64)
    np.savez(tmp_path / "two.npz", **arrays)
    code, _, err = call(
        *SMALL, f"--data=npz:{tmp_path / 'two.npz'}", "--loss=sigmoid", "--train=@head", f"--out={tmp_path / 's'}"
    )
    assert code == 0, err
    for prefix in ("train", "test"):
        arrays[f"{prefix}_labels"] = arrays[f"{prefix}_labels"].astype(np.float32) * 0.5
    np.savez(tmp_path / "targets.npz", **arrays)
    code, _, err = call(
        *SMALL, f"--data=npz:{tmp_path / 'targets.npz'}", "--loss=mse", "--train=@head", f"--out={tmp_path / 'm'}"
    )
    assert code == 0, err
    assert json.loads((tmp_path / "m/run.json").read_text())["final"]["eval_accuracy"] is None


FLAGS = (
    ("--optimizer=sgd", "--schedule=linear,warmup=1", "--clip_norm=0.1", "--weight_decay=0.1"),
    ("--optimizer=momentum", "--momentum=0.5", "--nesterov", "--schedule=exponential", "--layer_decay=0.5"),
    ("--optimizer=adam", "--schedule=constant", "--label_smoothing=0.1", "--nodeterministic"),
    ("--decay=@all", "--weight_decay=0.5", "--monitor=eval_accuracy", "--train_examples=20", "--seed=5"),
    ("--augment=flip,crop,color,rotate,zoom,contrast", "--checkpoint_every=1", "--keep=3", "--log_every=2"),
)


def test_what_a_flag_offers_changes_the_run(call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    kernels = []
    for number, more in enumerate(((), *FLAGS)):
        out = tmp_path / str(number)
        code, _, err = call(*SMALL, f"--data=npz:{small_data}", "--train=@head stages/3/.*", f"--out={out}", *more)
        assert code == 0, err
        with Npz(out / "trained.npz") as npz:
            kernels.append(npz.read("stages/3/conv/kernel"))
        if "--keep=3" in more:
            assert len(list((out / "checkpoints").iterdir())) == 3
    for (one, kernel), (other, another) in itertools.combinations(enumerate(kernels), 2):
        assert not np.array_equal(kernel, another), (one, other)


@pytest.mark.usefixtures("curves")
def test_phases_end_by_steps_epochs_and_plateau(call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "run"
    code, _, err = call(
        "--model=cnn:mini", "--weights=none", "--eval_fraction=0.2", "--batch_size=8", f"--data=npz:{small_data}", f"--out={out}",
        "--eval_every=1",
        "--phase=name=a train=@head epochs=0.5",
        "--phase=name=b train='stages/3/.* !@stats' until=plateau patience=2 min_delta=9 max_steps=20",
        "--phase=name=c train=@all steps=2 learning_rate=1e-5 schedule=linear weight_decay=0 clip_norm=1 layer_decay=0.9",
    )  # fmt: skip
    assert code == 0, err
    phases = json.loads((out / "run.json").read_text())["phases"]
    assert [(p["name"], p["from_step"], p["to_step"], p["reason"]) for p in phases] == [
        ("a", 0, 3, "steps"),
        ("b", 3, 6, "plateau"),  # the first evaluation is the best, the next two are not better by 9
        ("c", 6, 8, "steps"),
    ]
    assert phases[1]["moving"] == []


def test_one_step_trains_the_first_default_phase_alone(
    call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    words = ["--model=cnn:mini", "--weights=none", "--eval_fraction=0.2", "--batch_size=8", f"--data=npz:{small_data}"]
    assert call(*words, "--steps=1", f"--out={tmp_path / 'r'}")[0] == 0
    run = json.loads((tmp_path / "r/run.json").read_text())
    assert [phase["name"] for phase in run["phases"]] == ["head"]
    assert run["steps"] == 1


def test_what_a_run_left_that_died_before_its_first_checkpoint_is_dropped(
    call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "r"
    out.mkdir()
    left = {
        "kind": "eval",
        "step": 0,
        "phase": "train",
        "eval_loss": 1.0,
        "eval_accuracy": 0.5,
        "frozen_output_norm": 1.0,
    }
    (out / "metrics.jsonl").write_text(json.dumps(left) + "\n")
    assert call(*SMALL, f"--data=npz:{small_data}", f"--out={out}", "--train=@head", "--resume")[0] == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["step"]) for row in rows] == [
        ("eval", 0),
        *(("train", n) for n in (1, 2, 3, 4)),
        ("eval", 4),
    ]


def test_early_stop_ends_the_run(call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    flags_ = [
        "--model=cnn:mini",
        "--weights=none",
        "--eval_fraction=0.2",
        "--batch_size=8",
        f"--data=npz:{small_data}",
        f"--out={tmp_path / 'r'}",
    ]
    more = ["--train=@head", "--steps=50", "--eval_every=1", "--early_stop=2", "--learning_rate=30", "--optimizer=sgd"]
    code, _, err = call(*flags_, *more)
    assert code == 0, err
    run = json.loads((tmp_path / "r/run.json").read_text())
    assert run["exit"]["reason"] == run["phases"][0]["reason"] == "early_stop"
    assert run["steps"] < 50
    again = call(*flags_, *more, "--resume")
    assert again[0] == 0
    assert json.loads((tmp_path / "r/run.json").read_text())["steps"] == run["steps"]


BAD = {
    "misspelt filter item": (["--train=hed/.*"], r"item 1 `hed/\.\*` matches nothing.*nearest: head/\.\*"),
    "unknown group": (["--train=@haed"], r"`@haed` is not a group; nearest: @head"),
    "overshadowed item": (["--train=head/kernel @head"], r"item 1 `head/kernel` has no effect.*item 2 `@head`"),
    "trains nothing": (["--train=@none"], "trains nothing"),
    "model": (["--model=vit:mimi"], "nearest: vit:mini"),
    "model option": (["--model=vit:mini,pol=mean"], "`pol=mean` is not an option.*nearest: pool=mean"),
    "patch": (["--model=vit:S/15"], "do not divide into patches"),
    "data": (["--data=fashion_mnist_min"], "nearest: fashion_mnist_mini"),
    "data file": (["--data=npz:nowhere.npz"], "nowhere.npz: there is no such file"),
    "loss": (["--loss=sofmax"], "nearest: softmax"),
    "optimizer": (["--optimizer=adamm"], "nearest: adam"),
    "optimizer option": (["--optimizer=sgd", "--momentum=0.9"], "momentum: the optimizer sgd has no such"),
    "schedule": (["--schedule=cosin"], "nearest: cosine"),
    "schedule option": (["--schedule=cosine,warm=3"], "`warm=3` is not a valid option"),
    "phase key": (["--phase=name=a train=@head stepps=3"], "`stepps=3` is not a key=value.*nearest: steps"),
    "phase value": (["--phase=train=@head steps=many"], "steps='many' is not a whole number"),
    "phase length": (["--phase=train=@head steps=3 epochs=2"], "exactly one of"),
    "phase filter": (["--phase=name=x train=nothing steps=1"], r"phase 'x', train='nothing': item 1 `nothing` matches nothing"),
    "augment": (["--augment=flop"], "nearest: flip"),
    "weights missing": (["--weights=nowhere.npz"], "nowhere.npz: there is no such file"),
    "batch size 0": (["--batch_size=0"], "batch_size=0: expected a number of at least 1"),
    "batch above data": (["--batch_size=49"], "batch_size=49: expected 1 to 48, the number of training"),
    "negative rate": (["--learning_rate=-1"], r"learning_rate=-1\.0: expected a number above 0"),
    "rate nan": (["--learning_rate=nan"], "learning_rate=nan: expected a number above 0"),
    "steps 0": (["--steps=0"], "steps=0: expected a number of at least 1"),
    "steps and epochs": (["--steps=3", "--epochs=2"], "give only one of them"),
    "negative decay": (["--weight_decay=-0.1"], r"weight_decay=-0\.1: expected a number of at least 0"),
    "clip 0": (["--clip_norm=0"], "clip_norm=0: expected a number above 0"),
    "layer decay": (["--layer_decay=1.5"], r"layer_decay=1\.5: expected a number above 0 and at most 1"),
    "smoothing": (["--label_smoothing=1"], r"label_smoothing=1\.0: expected a number of at least 0 and below 1"),
    "eval fraction": (["--eval_fraction=1"], r"eval_fraction=1\.0: expected a number above 0 and below 1"),
    "train examples": (["--train_examples=1000"], "train_examples=1000.*48"),
    "classes": (["--model=cnn:mini,classes=2"], r"train_labels\[\d+\]=2 is out of range; the classes are 0 to 1"),
    "resume without out": (["--resume"], "--out=FOLDER must say which run to resume"),
    "decay filter": (["--decay=hed"], "item 1 `hed` matches nothing"),
    "unknown flag": (["--lerning_rate=1"], "lerning_rate"),
    "no flag": (["head"], "unexpected argument 'head'; expected only --flags"),
    "no number": (["--steps=ten"], "ten"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_with_a_clear_message_and_writes_nothing(
    call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    words, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    base = ["--model=cnn:mini", "--weights=none", "--eval_fraction=0.2", "--batch_size=8", f"--data=npz:{small_data}"]
    if not any("resume" in word for word in words):
        base.append("--out=run")
    code, _, err = call(*base, *words)
    assert code == 2, err
    assert re.search(message, err.replace("\n", " ")), err
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_fit_list_both_sides(call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    data = f"--data=npz:{small_data}"
    network = build_model("cnn:mini", image_shape=(16, 16, 1), outputs=3).network
    arrays = {entry.path: entry.variable.numpy() for entry in name_variables(network)}
    good = tmp_path / "good.npz"
    np.savez(good, **arrays)
    code, printed, _ = call(*SMALL, data, f"--out={tmp_path / 'b'}", f"--weights={good}", "--dry_run")
    assert (code, "22 variables loaded" in printed) == (0, True)
    arrays["stages/0/convolution/kernel"] = arrays.pop("stages/0/conv/kernel")
    arrays["stages/1/norm/gamma"] = arrays["stages/1/norm/gamma"][:5]
    np.savez(tmp_path / "bad.npz", **arrays)
    code, _, err = call(*SMALL, data, f"--out={tmp_path / 'b'}", f"--weights={tmp_path / 'bad.npz'}")
    assert code == 2
    assert "in the model, not in the file (1):\n    stages/0/conv/kernel [3, 3, 1, 16]" in err
    assert "in the file, not in the model (1):\n    stages/0/convolution/kernel" in err
    assert "stages/1/norm/gamma: [5] in the file, [32] in the model" in err
    (tmp_path / "cut.npz").write_bytes(good.read_bytes()[:-1000])
    code, _, err = call(*SMALL, data, f"--out={tmp_path / 'b'}", f"--weights={tmp_path / 'cut.npz'}")
    assert code == 2
    assert "truncated" in err
    assert not (tmp_path / "b").exists()


def test_a_folder_with_a_run_is_refused_and_a_contradicting_resume_names_the_flags(
    call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    line = [*SMALL, f"--data=npz:{small_data}", f"--out={tmp_path / 'a'}", "--train=@head"]
    assert call(*line)[0] == 0
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    code, _, err = call(*line)
    assert code == 2
    assert re.search(r"holds a run \(run\.json.*--resume", err)
    code, _, err = call(*line, "--resume", "--seed=3", "--learning_rate=0.5")
    assert code == 2
    assert "--seed: 0 in the checkpoint, 3 now" in err
    assert "--learning_rate: 0.001 in the checkpoint, 0.5 now" in err
    assert "batch_size" not in err
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_resume_with_all_checkpoints_damaged_is_an_error(
    call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    line = [*SMALL, f"--data=npz:{small_data}", f"--out={tmp_path / 'a'}", "--train=@head", "--resume"]
    code, printed, _ = call(*line)
    assert code == 0
    assert "does not hold a checkpoint; starting at step 0" in printed
    for path in (tmp_path / "a/checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    code, _, err = call(*line)
    assert code == 2
    assert "none of the 1 checkpoints can be used" in err


@pytest.mark.slow
@pytest.mark.usefixtures("curves")
def test_a_loss_that_explodes_fails_with_a_hint(call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    code, printed, _ = call(
        "--model=cnn:mini", "--weights=none", "--eval_fraction=0.2", "--batch_size=8", f"--data=npz:{small_data}",
        f"--out={tmp_path / 'a'}", "--train=@all", "--steps=30", "--optimizer=sgd", "--learning_rate=1e30",
    )  # fmt: skip
    assert code == 1
    assert "lower the learning rate" in printed
    assert json.loads((tmp_path / "a/run.json").read_text())["exit"]["code"] == 1


@pytest.mark.parametrize("unseen", [False, True])
def test_a_planted_write_is_refused_before_the_first_step_and_one_that_no_trace_shows_fails_the_run(
    call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, unseen: bool
) -> None:
    import tensorflow as tf

    from engine.training import losses

    original = losses.supervised_loss

    def planting(model: Any, kind: str, **options: Any) -> Any:
        inner, mean = original(model, kind, **options), model.stages[0].norm.moving_mean

        def write() -> None:
            mean.assign_add(mean + 1e-6)

        def loss_fn(batch: Any, *, training: bool, seeds: Any) -> Any:
            if training and unseen:
                tf.py_function(write, [], [])
            elif training:
                write()
            return inner(batch, training=training, seeds=seeds)

        return loss_fn

    monkeypatch.setattr(losses, "supervised_loss", planting)
    out = tmp_path / "a"
    code, printed, err = call(*SMALL, f"--data=npz:{small_data}", f"--out={out}", "--train=@head")
    if not unseen:
        assert code == 2
        assert "would change 1 frozen variable(s), although nothing trains them: stages/0/norm/moving_mean" in err
        assert not out.exists()
        return
    assert code == 1
    assert "FAILED; 1 frozen variables changed: stages/0/norm/moving_mean" in printed
    proof = json.loads((out / "run.json").read_text())["freeze_proof"]
    assert proof["verified"] is False
    assert proof["changed"] == ["stages/0/norm/moving_mean"]


def kill_at_work(process: int, number: signal.Signals, out: pathlib.Path, running: Callable[[], bool]) -> None:
    """Sends a signal when some steps are trained."""
    metrics, deadline = out / "metrics.jsonl", time.monotonic() + 120
    while running() and time.monotonic() < deadline:
        if metrics.exists() and len(metrics.read_text().splitlines()) > 3:
            os.kill(process, number)
            return
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "apart"), [(signal.SIGINT, False), pytest.param(signal.SIGTERM, True, marks=pytest.mark.slow)]
)
def test_a_signal_checkpoints_writes_run_json_and_exits_3(
    call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path, number: signal.Signals, apart: bool
) -> None:
    out = tmp_path / "a"
    line = [
        *SMALL,
        f"--data=npz:{small_data}",
        f"--out={out}",
        "--train=@head",
        "--steps=100000",
        "--eval_every=100000",
    ]
    if apart:
        command = [sys.executable, "-m", "scripts.finetune", *line]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            kill_at_work(process.pid, number, out, lambda: process.poll() is None)
            printed, err = process.communicate(timeout=120)
        code = process.returncode
    else:
        ended = threading.Event()
        killer = threading.Thread(target=kill_at_work, args=(os.getpid(), number, out, lambda: not ended.is_set()))
        killer.start()
        code, printed, err = call(*line)
        ended.set()
        killer.join()
    assert code == 3, printed + err
    assert "Traceback" not in printed + err
    run = json.loads((out / "run.json").read_text())
    assert run["exit"]["code"] == 3
    assert number.name in run["exit"]["reason"]
    assert run["freeze_proof"]["verified"] is True
    assert (out / f"checkpoints/step-{run['steps']:08d}.npz").exists()


def test_help_lists_every_flag_and_exits_0(finetune: Any) -> None:
    from scripts import finetune_flags

    printed = finetune("--helpfull").stdout
    for flag in flags.FLAGS.flags_by_module_dict()[finetune_flags.__name__]:
        assert f"--{flag.name}\n" in printed
    assert finetune("--help").stdout.startswith("Fine-tune a model under an explicit filter")


def test_bad_flags_exit_with_2_in_a_process_of_their_own(finetune: Any) -> None:
    assert finetune("--steps=0", code=2).stderr == "finetune: steps=0: expected a number of at least 1\n"
    assert "item 1 `hed` matches nothing" in finetune("--train=hed", code=2).stderr
    assert "Unknown command line flag" in finetune("--nonsense", code=2).stderr
