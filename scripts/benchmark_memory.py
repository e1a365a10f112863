"""Measure the peak memory of training against its forecast, and against Keras' model.fit.

Each --run has a process of its own, one after the other: it builds the model with random weights, makes the forecast,
trains some steps on one random batch and reports the peak memory of the process, including the interpreter and TensorFlow.
runner=keras_fit is an equal ViT of keras.layers in Keras' own fit; runs of the engine with the same model, batch and
selection are compared with it.
"""

from __future__ import annotations

import pathlib
import shlex
import sys
import tempfile
import time
from typing import Any

from absl import flags

from . import cli
from .baselines import harness

F = flags.FLAGS

KEYS = {
    "runner": "engine",
    "model": "vit:B/16",
    "image_size": "224",
    "classes": "1000",
    "train": "@all",
    "batch_size": "32",
    "micro_batches": "1",
    "remat": "none",
    "precision": "float32",
    "optimizer": "adamw",
    "ema": "0",
    "memory_budget": "0",
    "steps": "2",
}
_OURS_ALONE = ("micro_batches", "remat", "precision", "optimizer", "ema", "memory_budget")
RUNS = (
    "model=vit:B/16 batch_size=4",
    "model=vit:B/16 batch_size=64 memory_budget=3GB",
    "model=vit:B/16 batch_size=32 micro_batches=4 remat=blocks ema=0.999",
    "model=vit:B/16 batch_size=32 train='@head @blocks[-2:]'",
    "model=vit:S/16 batch_size=32",
    "model=vit:S/16 batch_size=32 remat=elementwise optimizer=momentum",
    "model=vit:S/16 batch_size=32 micro_batches=2 precision=mixed_bfloat16",
    "model=keras:ResNet50 batch_size=16",
)

flags.DEFINE_multi_string(
    "run",
    list(RUNS),
    "A run to measure, repeatable: keys and values as in 'model=vit:B/16 batch_size=64 memory_budget=3GB'. Keys: "
    + ", ".join(f"{key} ({value})" for key, value in KEYS.items())
    + ". runner is engine or keras_fit; steps is the number of steps trained; the other keys are flags of finetune, where 0 means none.",
)
flags.DEFINE_string("out", None, "A .json file for the results (bytes, seconds); by default none is written.")


def main() -> int:
    cli.import_tensorflow()
    runs = [_parse(text) for text in F.run]
    cli.check_out(F.out)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="benchmark_memory-") as folder:
        for number, run in enumerate(runs, 1):
            print(f"{number} of {len(runs)}: {_text(run)} ...", end="", flush=True)
            try:
                rows.append(run | (_keras(run, pathlib.Path(folder)) if run["runner"] == "keras_fit" else _start(run)))
            except harness.BenchmarkError as error:
                print(f"\nbenchmark_memory: {error}", file=sys.stderr)
                return cli.FAILED
            print(f" {rows[-1]['peak_rss_bytes'] / 1e9:.2f} GB", flush=True)
    _print(rows)
    cli.write_out(rows)
    return cli.DONE


def _parse(text: str) -> dict[str, str]:
    from engine import sizes
    from engine.errors import InputError
    from engine.text import nearest
    from engine.training import optimizers, precision, remat
    from engine.training.ema import Averages

    run = dict(KEYS)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"run={text!r}: {error}") from None
    for word in words:
        key, equals, value = word.partition("=")
        if key not in KEYS or not equals:
            raise InputError(
                f"run={text!r}: `{word}` is not a valid key=value; keys: {', '.join(KEYS)}{nearest(key, list(KEYS))}"
            )
        run[key] = value
    for key in ("image_size", "classes", "batch_size", "micro_batches", "steps"):
        if not run[key].isdecimal() or not 1 <= int(run[key]) <= 1_000_000:
            raise InputError(f"run={text!r}: {key}={run[key]!r}: expected a whole number of at least 1")
    if run["runner"] not in ("engine", "keras_fit"):
        raise InputError(f"run={text!r}: runner={run['runner']!r}: expected engine or keras_fit")
    if int(run["micro_batches"]) > int(run["batch_size"]):
        raise InputError(f"run={text!r}: there are more micro-batches than examples")
    try:
        precision.parse(run["precision"])
        optimizers.build_optimizer(run["optimizer"])
        remat.check(run["remat"])
        budget = sizes.parse_bytes(run["memory_budget"], name="memory_budget")
        if decay := float(run["ema"]):
            Averages(decay)
    except InputError as error:
        raise InputError(f"run={text!r}: {error}") from None
    except ValueError:
        raise InputError(f"run={text!r}: ema={run['ema']!r}: expected a number") from None
    if budget and (run["micro_batches"], run["remat"]) != (KEYS["micro_batches"], KEYS["remat"]):
        raise InputError(f"run={text!r}: memory_budget chooses micro_batches and remat; leave them out")
    if run["runner"] == "keras_fit":
        other = [key for key in _OURS_ALONE if run[key] != KEYS[key]]
        if other:
            raise InputError(
                f"run={text!r}: keras_fit does not support {', '.join(other)}; it is AdamW in float32, in one piece"
            )
    return run


def _text(run: dict[str, str]) -> str:
    return " ".join(f"{key}={run[key]}" for key in KEYS if run[key] != KEYS[key] or key == "model")


def _start(run: dict[str, str]) -> dict[str, Any]:
    from engine.errors import InputError
    from engine.study import child

    try:
        return child.run_job(f"{__package__}.benchmark_memory:measure_engine", run)
    except child.ChildError as error:
        if error.bad_input:
            raise InputError(f"run={_text(run)!r}: {error}") from None
        raise harness.BenchmarkError(str(error)) from None


def _keras(run: dict[str, str], folder: pathlib.Path) -> dict[str, Any]:
    from .baselines import vit_jobs

    (job,) = vit_jobs.build_jobs(
        folder,
        model=run["model"],
        image_size=int(run["image_size"]),
        classes=int(run["classes"]),
        train=[run["train"]],
        batch_size=int(run["batch_size"]),
        warmup=0,
        steps=int(run["steps"]),
        seed=0,
    )
    found = harness.run_apart("keras_vit:measure_fit", job.to_json(), what="keras_fit")
    return {key: found[key] for key in ("peak_rss_bytes", "seconds")} | {"forecast_bytes": None, "plan": None}


def measure_engine(run: dict[str, str]) -> dict[str, Any]:
    """Does a run in this process: first the forecast, then training, then a look at the peak."""
    import numpy as np

    from engine import models, select, sizes
    from engine.host import peak_rss_bytes
    from engine.memory.planner import Planner
    from engine.training import losses, optimizers, precision, remat
    from engine.training.step import TrainStep

    numbers = precision.parse(run["precision"])
    side, classes, batch_size = int(run["image_size"]), int(run["classes"]), int(run["batch_size"])
    model = models.build_model(
        run["model"], image_shape=(side, side, 3), outputs=classes, dtype=numbers.variables, compute=numbers.compute
    )
    selection = select(model.network, run["train"], statistics=model.statistics)
    optimizer = optimizers.build_optimizer(run["optimizer"])
    loss_fn = losses.supervised_loss(model.network)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.standard_normal((batch_size, side, side, 3), np.float32),
        "label": rng.integers(0, classes, batch_size, np.int32),
    }

    def make_step(size: int | None, mode: remat.Mode) -> TrainStep:
        scale = precision.LossScale() if numbers.scaled else None
        ema = float(run["ema"]) or None
        return TrainStep(loss_fn, optimizer, micro_batch_size=size, remat=mode, loss_scale=scale, ema=ema)

    budget = sizes.parse_bytes(run["memory_budget"], name="memory_budget")
    planner = Planner(make_step=make_step, batch=batch, batch_size=batch_size, budget=budget or 2**62)
    parts = int(run["micro_batches"])
    if budget:
        plan = planner.plan_micro_batches([(selection, optimizer)])
    else:
        size = None if parts == 1 else -(-batch_size // parts)
        plan = planner.forecast_plan([(selection, optimizer)], size, remat.check(run["remat"]))
    step = planner.build_step(plan)
    seconds = []
    for _ in range(int(run["steps"])):
        start = time.perf_counter()
        step(selection, batch, learning_rate=1e-4)
        seconds.append(time.perf_counter() - start)
    return {
        "peak_rss_bytes": peak_rss_bytes(),
        "seconds": seconds,
        "forecast_bytes": plan.total,
        "forecast": plan.forecasts[0].text(),
        "plan": plan.to_json(),
    }


def _print(rows: list[dict[str, Any]]) -> None:
    def kind(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(row[key] for key in ("model", "image_size", "classes", "train", "batch_size"))

    keras = {kind(row): row["peak_rss_bytes"] for row in rows if row["runner"] == "keras_fit"}
    print(f"\n{'GB':>6}{'forecast':>10}{'ratio':>8}{'to keras':>10}{'step s':>10}  run")
    for row in rows:
        peak, forecast, other = row["peak_rss_bytes"], row["forecast_bytes"], keras.get(kind(row))
        cells = [
            f"{peak / 1e9:>6.2f}",
            f"{forecast / 1e9:>10.2f}{forecast / peak:>8.2f}" if forecast else " " * 18,
            f"{peak / other:>10.3f}" if other and row["runner"] == "engine" else " " * 10,
            f"{row['seconds'][-1]:>10.1f}",
        ]
        plan = row["plan"]
        how = ""
        if plan and plan["reasons"]:
            size = plan["micro_batch_size"]
            how = f" -> {'one piece' if size is None else f'micro-batches of {size}'}, remat {plan['remat']}"
        print("".join(cells) + f"  {_text(row)}{how}")


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
