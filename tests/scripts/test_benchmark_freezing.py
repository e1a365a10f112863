"""benchmark_freezing, run as a program: what it writes, that it resumes, what it refuses, and what it survives."""

from __future__ import annotations

import csv
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from engine.study.config import StudyConfig
from engine.study.run import run_study

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROW = {
    "strategy", "runner", "repeats", "precision", "micro_batches", "trained_parameters", "frozen_parameters", "step_ms",
    "examples_per_second", "peak_rss_bytes", "slot_bytes", "backward_ops", "gflop_per_example", "eval_accuracy",
    "job_seconds", "final_loss", "freeze_verified", "failed",
    "eval_loss", "job_seconds_spread", "time_to_target_seconds", "gflop_forward", "gflop_backward", "gemm_share",
    "frozen_output_norm", "first_step_seconds", "cache", "weights_sha256", "reason",
}  # fmt: skip
V1 = ["v1_trainable", "v1_stop_gradient", "v1_var_list"]

CNN = ("--batch_size=8", "--repeats=1", "--weights=none", "--model=cnn:mini", "--steps=4", "--eval_every=2")

# A Keras model with BatchNorm, whose statistics follow; and what a test wants of the process that builds it.
MODELS = """
import errno, os, pathlib, signal, sys, time
here = pathlib.Path(__file__).parent

def keras_model(image_shape, outputs):
    import keras
    layers = keras.layers
    image = keras.Input(image_shape)
    x = layers.Conv2D(4, 3, strides=2, name="block1_conv")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="block1_bn")(x))
    x = layers.Conv2D(4, 3, strides=2, use_bias=False, name="block2_conv")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="block2_bn")(x))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, name="block3_conv")(x))
    return keras.Model(image, layers.Dense(outputs, name="logits")(x))

def crashing(image_shape, outputs):
    if "server.py" in sys.argv[0]:
        if not (here / "crashed").exists():
            (here / "crashed").touch()
            print("about to fall", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if (here / "slow").exists():
            (here / "slow").write_text(str(os.getpid()))
            time.sleep(60)
    return keras_model(image_shape, outputs)

def full_disk(image_shape, outputs):
    from engine import files
    write = files.write_atomically
    def refuse(path, content):
        if pathlib.Path(path).parent.name == "runs":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)
    files.write_atomically = refuse
    return keras_model(image_shape, outputs)
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "freezing_models.py").write_text(MODELS)
    return folder


@pytest.fixture(scope="module")
def done(
    run_each: Any, small_data: pathlib.Path, own: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Name -> (exit code, stdout, stderr) of each of these commands, and "out" the folder of their studies."""
    out = tmp_path_factory.mktemp("studies")
    tiny = [f"--data=npz:{small_data}", *CNN[:2]]
    cnn = [*tiny, *CNN[2:]]
    keras = [*tiny, "--model=py:freezing_models:keras_model", "--learning_rate=3e-3"]
    main = [*cnn, "--strategies=head,attention", "--train=head/.* stages/3/.*", f"--out={out / 'main'}"]
    full = [*tiny, "--model=py:freezing_models:full_disk", "--strategies=head", "--runners=engine"]
    commands = {
        "main": [*main, "--skip_unmatched", "--target_accuracy=0.01"],
        "more": [
            *cnn, "--strategies=head", "--runners=engine,v1_var_list", "--repeats=2", "--target_accuracy=0.01",
            f"--out={out / 'main'}",
        ],
        "other": [*main, "--skip_unmatched", "--batch_size=4"],
        "another filter": [*cnn, "--train=head/bias", "--strategies=head", f"--out={out / 'main'}"],
        "keras": [
            *keras, "--strategies=gradual,gradual_plateau,moving=@norm @stats logits/.*", "--steps=9",
            f"--out={out / 'keras'}",
        ],
        "diverges": [
            *keras, "--strategies=full", "--steps=3", "--learning_rate=1e30", "--check_numerics", f"--out={out / 'bad'}",
        ],
        "v1 diverges": [
            *cnn, "--strategies=full", "--runners=v1_var_list", "--learning_rate=1e30", "--check_numerics",
            f"--out={out / 'bad v1'}",
        ],
        "quick": [*tiny[:2], "--model=cnn:mini", "--quick", "--histograms", f"--out={out / 'quick'}"],
        "mse": [
            *tiny, "--weights=none", "--model=cnn:mini", "--loss=mse", "--strategies=head", "--runners=engine,v1_var_list", "--epochs=1",
            "--precision=float64", "--micro_batches=3", "--seed=3", "--train_examples=24", "--eval_examples=0",
            "--image_size=12", f"--out={out / 'mse'}",
        ],
        "full disk": [*full, f"--out={out / 'full'}"],
    }  # fmt: skip
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(own)
    try:
        answers = run_each("scripts.benchmark_freezing", list(commands.values()), seconds=1200)
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    return dict(zip(commands, answers, strict=True)) | {"out": out}


def study(done: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done["out"] / name / "study.json").read_text())
    return found


def test_a_small_study_is_whole_and_continued(run_each: Any, small_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    main = [
        f"--data=npz:{small_data}", *CNN, "--strategies=head", "--runners=engine,engine_cached",
        f"--out={tmp_path / 'main'}",
    ]  # fmt: skip
    answers = run_each("scripts.benchmark_freezing", [main, main, [*main, "--batch_size=4"]])
    (code, printed, error), (code_again, printed_again, error_again), (code_other, _, error_other) = answers
    assert code == 0, error
    assert "[2/2] head, " in printed
    found = study({"out": tmp_path}, "main")
    rows = {row["runner"]: row for row in found["results"]}
    assert set(rows) == {"engine", "engine_cached"}
    for row in rows.values():
        assert set(row) == ROW
        assert row["freeze_verified"]
        assert not row["failed"]
        assert row["final_loss"] == pytest.approx(rows["engine"]["final_loss"], rel=1e-4)
    assert rows["engine_cached"]["cache"]["used"]
    assert "<html" in (tmp_path / "main/report.html").read_text(encoding="utf-8")
    assert code_again == 0, error_again
    assert "2 of them already finished" in printed_again
    assert code_other == 2
    assert "batch_size: 8 in" in error_other


@pytest.mark.slow
def test_a_study_is_the_same_from_python(run_each: Any, small_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    flags = [f"--data=npz:{small_data}", *CNN, "--strategies=head", "--runners=engine,engine_cached"]
    ((code, _, error),) = run_each("scripts.benchmark_freezing", [[*flags, f"--out={tmp_path / 'main'}"]])
    assert code == 0, error
    rows = {row["runner"]: row for row in study({"out": tmp_path}, "main")["results"]}
    config = StudyConfig(
        data=f"npz:{small_data}", model="cnn:mini", weights="none", batch_size=8, repeats=1, steps=4, eval_every=2,
        strategies=["head"], runners=["engine", "engine_cached"], out=str(tmp_path / "python"),
    )  # fmt: skip
    done = run_study(config)
    assert (done.planned, done.done, done.stopped, done.failed, done.broken) == (2, 2, False, [], [])
    assert done.study == json.loads((done.out / "study.json").read_text())
    assert "run_study(StudyConfig(model='cnn:mini', weights='none', data='npz:" in done.study["job"]["command"]
    for row in done.study["results"]:
        exact = (
            "weights_sha256",
            "eval_loss",
            "final_loss",
            "eval_accuracy",
            "slot_bytes",
            "backward_ops",
            "gflop_per_example",
        )
        assert {key: row[key] for key in exact} == {key: rows[row["runner"]][key] for key in exact}


@pytest.mark.slow
def test_disturbed_runs_are_redone(run_each: Any, small_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    main = [
        f"--data=npz:{small_data}", *CNN, "--strategies=head", "--runners=engine,engine_cached,v1_var_list",
        f"--out={tmp_path / 'main'}",
    ]  # fmt: skip
    ((code, _, error),) = run_each("scripts.benchmark_freezing", [main])
    assert code == 0, error
    for path in (tmp_path / "main/runs").glob("*.json"):
        run = json.loads(path.read_text())
        assert 0 <= run["taken"] <= 1  # of this machine; how much is not known here
        path.write_text(json.dumps(run | {"taken": 0.5 if run["runner"] == "engine" else 0.0, "job_seconds": 1e6}))
    ((code, printed, error),) = run_each("scripts.benchmark_freezing", [[*main, "--redo_disturbed"]])
    assert code == 0, error
    assert "2 of them already finished" in printed
    rows = {row["runner"]: row["job_seconds"] for row in study({"out": tmp_path}, "main")["results"]}
    assert rows["engine"] < 1e6
    assert rows["engine_cached"] == rows["v1_var_list"] == 1e6


@pytest.mark.slow
def test_a_study_has_all_rows_of_the_contract(done: dict[str, Any]) -> None:
    code, _, error = done["main"]
    assert code == 0, error
    found = study(done, "main")
    job = {
        "model", "data", "train_examples", "eval_examples", "classes", "image_shape", "batch_size", "steps", "epochs",
        "precision", "micro_batches", "seed", "optimizer", "learning_rate", "repeats", "target_accuracy", "command",
    }  # fmt: skip
    assert set(found["job"]) == job
    assert found["format"] == 2
    assert set(found["machine"]) == {"cpu", "cores", "memory_bytes", "system", "gemm_gflops"}
    assert found["machine"]["gemm_gflops"]["median"] > 0
    assert [v["block"] for v in found["variables"]][::5] == ["stages/0", "stages/1", "stages/2", "stages/3", "head"]
    rows = {(row["strategy"], row["runner"]): row for row in found["results"]}
    assert set(rows) == {(s, r) for s in ("head", "train") for r in ("engine", "engine_cached", *V1)}
    for row in rows.values():
        assert set(row) == ROW
        assert not row["failed"]
        assert row["freeze_verified"]
        assert row["peak_rss_bytes"] > 1e8
        assert row["time_to_target_seconds"] is not None
        assert row["gflop_per_example"] == pytest.approx(row["gflop_forward"] + row["gflop_backward"])
        assert row["frozen_output_norm"] > 0
        assert row["first_step_seconds"] > 0
    points = {(c["strategy"], c["runner"]): c["points"] for c in found["curves"]}
    assert [p["step"] for p in points["head", "engine"]] == [0, 2, 4]
    seconds = [p["seconds"] for p in points["head", "engine"]]
    assert seconds == sorted(seconds)
    assert seconds[-1] <= rows["head", "engine"]["job_seconds_spread"]["most"]  # points are of one of two repeats


@pytest.mark.slow
def test_the_runners_train_the_same(done: dict[str, Any]) -> None:
    found = study(done, "main")
    assert not [note for note in found["notes"] if "the loss of" in note or "bits" in note]
    rows = {(row["strategy"], row["runner"]): row for row in found["results"]}
    for strategy in ("head", "train"):
        assert len({rows[strategy, runner]["weights_sha256"][0] for runner in V1}) == 1
        engine = rows[strategy, "engine"]
        for runner in ("engine_cached", *V1):
            other = rows[strategy, runner]
            assert other["final_loss"] == pytest.approx(engine["final_loss"], rel=1e-4)
            assert other["eval_loss"] == pytest.approx(engine["eval_loss"], rel=1e-4)
            assert other["slot_bytes"] == engine["slot_bytes"]
            assert other["frozen_output_norm"] == pytest.approx(engine["frozen_output_norm"], rel=1e-5)
            assert other["trained_parameters"] == engine["trained_parameters"]
    head, kept = rows["head", "engine"], rows["head", "engine_cached"]
    assert head["slot_bytes"] == 2 * 4 * head["trained_parameters"]
    assert kept["cache"]["used"]
    assert kept["cache"]["bytes"] > 0
    assert kept["gflop_per_example"] < head["gflop_per_example"] / 10
    assert head["gflop_forward"] == pytest.approx(rows["head", "v1_trainable"]["gflop_forward"])
    assert rows["head", "v1_stop_gradient"]["backward_ops"] > rows["head", "v1_trainable"]["backward_ops"]


@pytest.mark.slow
def test_what_does_not_fit_the_model_is_left_out_and_named(done: dict[str, Any]) -> None:
    printed = done["main"][1]
    assert "left out: keras_fit on head, train: cnn:mini is not a Keras model" in printed
    assert re.search(r"left out: engine, .*, v1_var_list on attention: strategy attention, .*matches nothing", printed)
    left = study(done, "quick")["left_out"]
    assert ("full", "engine_cached") in {(row["strategy"], row["runner"]) for row in left}
    assert all(set(row) == {"strategy", "runner", "reason"} for row in left)


@pytest.mark.slow
def test_the_files_say_the_same(done: dict[str, Any]) -> None:
    folder = done["out"] / "main"
    found = study(done, "main")
    rows = json.loads((folder / "results.json").read_text())
    assert rows == found["results"]
    with open(folder / "results.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(line["final_loss"]) for line in table] == [row["final_loss"] for row in rows]
    assert [float(line["step_ms.median"]) for line in table] == [row["step_ms"]["median"] for row in rows]
    assert '"strategy":"train"' in (folder / "report.html").read_text(encoding="utf-8").replace(" ", "")
    assert not list(folder.glob(".cache*"))
    assert "[1/10] head, engine, repeat 1" in re.sub(r"\[\d+/", "[1/", done["main"][1])


@pytest.mark.slow
def test_the_same_folder_is_gone_on_with(done: dict[str, Any]) -> None:
    code, printed, error = done["more"]
    assert code == 0, error
    assert "4 runs in" in printed
    assert "2 of them already finished" in printed
    assert re.findall(r"\[\d/4\] head, (\w+), repeat (\d)", printed) == [("v1_var_list", "2"), ("engine", "2")]
    rows = study(done, "main")["results"]
    assert {(row["strategy"], row["runner"]) for row in rows if row["repeats"] == 2} == {
        ("head", "engine"),
        ("head", "v1_var_list"),
    }
    assert len(rows) == 10  # what was done before stays
    for row in rows:
        assert len(set(row["weights_sha256"])) == 1  # the repeats end with the same bits


@pytest.mark.slow
def test_another_job_is_refused_by_the_folder(done: dict[str, Any]) -> None:
    assert done["other"][0] == 2
    assert "batch_size: 8 in" in done["other"][2]
    assert "4 now" in done["other"][2]
    code, _, error = done["another filter"]
    assert code == 2
    assert "give this one another name" in error


@pytest.mark.slow
def test_keras_fit_agrees_through_phases_and_batch_norm(done: dict[str, Any]) -> None:
    code, _, error = done["keras"]
    assert code == 0, error
    found = study(done, "keras")
    assert not [note for note in found["notes"] if "the loss of" in note or "bits" in note or "parameters" in note]
    rows = {(row["strategy"], row["runner"]): row for row in found["results"]}
    for strategy in ("gradual", "gradual_plateau", "moving"):
        engine, keras = rows[strategy, "engine"], rows[strategy, "keras_fit"]
        assert keras["final_loss"] == pytest.approx(engine["final_loss"], rel=1e-4)
        assert keras["eval_loss"] == pytest.approx(engine["eval_loss"], rel=1e-4)
        assert keras["eval_accuracy"] == pytest.approx(engine["eval_accuracy"])
        assert keras["freeze_verified"]
        assert keras["slot_bytes"] == engine["slot_bytes"]
        assert keras["gflop_per_example"] == pytest.approx(engine["gflop_per_example"], rel=1e-6)
        curves = {c["runner"]: c["points"] for c in found["curves"] if c["strategy"] == strategy}
        assert [p["step"] for p in curves["keras_fit"]] == [p["step"] for p in curves["engine"]]
        for one, other in zip(curves["engine"][1:], curves["keras_fit"][1:], strict=True):
            assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
    strategies = {strategy["name"]: strategy for strategy in found["strategies"]}
    gradual = strategies["gradual"]["phases"]
    assert [phase["name"] for phase in gradual] == ["head", "last_2", "full"]
    assert [phase["from_step"] for phase in gradual] == [0, 3, 6]
    assert strategies["gradual_plateau"]["phases"][-1]["to_step"] == 9
    assert any(path.endswith("moving_mean") for path in strategies["moving"]["trained"])


@pytest.mark.slow
def test_a_run_that_is_not_finite_fails_and_says_where(done: dict[str, Any]) -> None:
    code, _, error = done["diverges"]
    assert code == 1
    rows = {row["runner"]: row for row in study(done, "bad")["results"]}
    assert set(rows) == {"engine", "keras_fit"}
    assert all(row["failed"] and row["job_seconds"] is None for row in rows.values())
    assert "the first operation with a non-finite result is" in rows["engine"]["reason"]
    assert "the weights have moved already" in rows["keras_fit"]["reason"]
    assert "full, engine failed" in error
    assert done["v1 diverges"][0] == 1
    assert "the first operation with a non-finite result is" in study(done, "bad v1")["results"][0]["reason"]


@pytest.mark.slow
def test_quick_takes_few_and_histograms_are_drawn(done: dict[str, Any]) -> None:
    code, _, error = done["quick"]
    assert code == 0, error
    found = study(done, "quick")
    assert {row["runner"] for row in found["results"]} == {"engine", "engine_cached", "v1_var_list"}
    assert {row["strategy"] for row in found["results"]} == {"head", "last_2", "bias", "full"}
    assert found["job"]["repeats"] == 1
    assert found["job"]["steps"] == 10
    folder = done["out"] / "quick"
    assert {path.stem for path in (folder / "histograms").glob("*.png")} == {"head", "last_2", "bias", "full"}
    assert list((folder / "tensorboard" / "head-engine_cached").glob("events*"))
    assert any(r["strategy"] == "full" and r["runner"] == "engine_cached" for r in found["left_out"])


@pytest.mark.slow
def test_a_loss_without_accuracy_has_none(done: dict[str, Any]) -> None:
    code, _, error = done["mse"]
    assert code == 0, error
    found = study(done, "mse")
    job = found["job"]
    assert (job["train_examples"], job["image_shape"], job["steps"], job["seed"]) == (24, [12, 12, 1], 3, 3)
    assert (job["precision"], job["micro_batches"], job["target_accuracy"]) == ("float64", 3, None)
    engine, v1 = found["results"]
    assert engine["eval_accuracy"] is None
    assert v1["final_loss"] == pytest.approx(engine["final_loss"], rel=1e-9)


BAD = [
    (["--model=vit:huge"], "is not a valid ViT; expected vit:mini"),
    (["--strategies=haed"], "strategies='haed' is not a strategy of this model; expected head, last_1"),
    (["--strategies=head,attention"], "(skip_unmatched leaves such strategies out)"),
    (["--strategies=attention", "--skip_unmatched"], "none of them matches anything on this model"),
    (
        ["--runners=engine,enigne"],
        "expected engine, engine_cached, keras_fit, v1_trainable, v1_stop_gradient, v1_var_list; nearest: engine",
    ),
    (["--runners=engine,keras_fit"], "it cannot run this job, because cnn:mini is not a Keras model"),
    (["--runners=v1_var_list", "--histograms"], "runners has neither"),
    (["--repeats=0"], "repeats=0"),
    (["--target_accuracy=2"], "target_accuracy=2"),
    (["--epochs=1"], "both set the length of a run; give one of them"),
    (["--train_examples=100000"], "train_examples=100000"),
    (["--eval_examples=100000"], "eval_examples=100000"),
    (["--strategies=head", "--strategies=head"], "head appears twice"),
]


def test_bad_input_is_refused_in_words(run_each: Any, small_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps({"version": 1, "job": {}, "command": "frostline"}))
    older = "job.json: the file has an older format, without a number; expected format 2"
    bad = [
        *BAD,
        ([f"--out={tmp_path}"], older),
        ([f"--out={tmp_path}"], "choose another out="),
        ([f"--out={small_data.parent}"], "not the folder of a study"),
        ([f"--out={small_data}"], "expected a folder, but this is a file"),
    ]
    asked = [[f"--data=npz:{small_data}", *CNN, *words] for words, _ in bad]
    answers = run_each("scripts.benchmark_freezing", asked)
    for (words, message), (code, _, error) in zip(bad, answers, strict=True):
        assert (code, message in error) == (2, True), (words, error)


FORKED = """
import os
from engine.host import import_tensorflow, peak_rss_bytes
from engine.study import server
import_tensorflow(start=False)
from compat_v1.training import study_runner
from engine.study import worker
from scripts.baselines import keras_runner
pages = server.library_pages()
print(len(os.listdir("/proc/self/task")), peak_rss_bytes(), flush=True)
if os.fork():
    os.wait()
else:
    print(peak_rss_bytes(), flush=True)
    for start, stop in pages:
        server.touch_pages(start, stop)
    print(peak_rss_bytes(), flush=True)
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/pagemap").exists(), reason="a system without /proc/self/pagemap")
def test_a_forked_run_has_the_memory_of_a_process_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    threads, imported, forked, touched = (int(word) for word in done.stdout.split())
    assert threads == 1  # TensorFlow has started none yet: a fork loses nothing
    assert forked < 0.8 * imported
    assert touched > 0.98 * imported  # nothing is missing
    assert touched < 1.1 * imported  # Linux maps more around a touch, if more of the file came into its cache meanwhile


@pytest.mark.slow
def test_a_full_disk_is_said_in_words(done: dict[str, Any]) -> None:
    code, _, error = done["full disk"]
    assert code == 1
    assert "no space left on the disk" in error
    assert "does the rest" in error


def alive(process: int, *, within: float = 10.0) -> bool:
    """Whether a process still runs; one that nobody has waited for does not."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            state = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state in "ZX":
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
def test_a_killed_run_fails_alone_and_a_stopped_study_goes_on(
    small_data: pathlib.Path, own: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    command = [
        sys.executable, "-m", "scripts.benchmark_freezing", "--model=py:freezing_models:crashing",
        f"--data=npz:{small_data}", "--batch_size=8", "--steps=2", "--repeats=1", "--strategies=head",
        "--runners=engine,engine_cached", f"--out={tmp_path / 'study'}",
    ]  # fmt: skip
    options: dict[str, Any] = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(own)}, "text": True}
    done = subprocess.run(command, capture_output=True, timeout=200, check=False, **options)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    rows = {row["runner"]: row for row in json.loads((tmp_path / "study/results.json").read_text())}
    assert rows["engine"]["failed"]
    assert "killed by SIGKILL" in rows["engine"]["reason"]
    assert "about to fall" in rows["engine"]["reason"]
    assert not rows["engine_cached"]["failed"]
    assert rows["engine_cached"]["job_seconds"] > 0

    (own / "slow").touch()  # the run that failed is tried again, and hangs
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        until = time.monotonic() + 120
        while not (own / "slow").read_text() and time.monotonic() < until:
            time.sleep(0.1)
        child = int((own / "slow").read_text())
        second = subprocess.run(command, capture_output=True, timeout=200, check=False, **options)
        assert second.returncode == 2
        assert "another study is running in this folder" in second.stderr
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 3, error
    assert "stopped; 1 of 2 runs are done" in error
    assert "Traceback" not in error
    assert not alive(child)

    (own / "slow").unlink()
    done = subprocess.run(command, capture_output=True, timeout=200, check=False, **options)
    assert done.returncode == 0, done.stderr
    assert "1 of them already finished" in done.stdout
    assert not any(row["failed"] for row in json.loads((tmp_path / "study/results.json").read_text()))
    assert not list((tmp_path / "study").glob(".cache*"))
