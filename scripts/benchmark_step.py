"""Time one training step: the engine against a hand-written loop, Keras' model.fit and PyTorch.

engine is TrainStep with AdamW; hand is the tf.function that an expert would write for the same ViT, one selection and one
batch shape, without the gradient norm that the engine reports. These two run in turn in one process, step by step, and
their ratio is taken pair by pair. keras_fit and torch are equal ViTs with equal weights, each timed alone in a process of
its own, so that their times are not interleaved with the others. Peak memory is always that of a process with a single
runner; it includes the interpreter and the libraries. The data are one random batch, so nothing is read or decoded.
"""

from __future__ import annotations

import importlib.util
import pathlib
import signal
import sys
import tempfile
import time
from typing import Any

from absl import flags

from engine.host import quantiles

from . import cli
from .baselines import harness

F = flags.FLAGS

RUNNERS = ("engine", "hand", "keras_fit", "torch")
_PACKAGES = {"keras_fit": "keras", "torch": "torch"}
_TARGETS = {
    "pair": "tensorflow_vit:measure_pair",
    "engine": "tensorflow_vit:measure_engine",
    "hand": "tensorflow_vit:measure_hand",
    "keras_fit": "keras_vit:measure_fit",
    "torch": "torch_vit:measure",
}
_LIMITS = {
    "image_size": (1, 4096),
    "batch_size": (1, 65536),
    "classes": (2, 1_000_000),
    "steps": (1, 1_000_000),
    "warmup": (1, 1_000_000),
}

flags.DEFINE_string(
    "model",
    "vit:S/16",
    "A plain ViT: vit:mini, vit:Ti/16, vit:S/16, vit:B/16, vit:L/16 (any patch size in pixels; options after a comma: depth=N blocks, gelu=tanh, classes=N).",
)
flags.DEFINE_integer("image_size", 224, "The height and width of the images in pixels, a multiple of the patch size.")
flags.DEFINE_integer("batch_size", 16, "The number of examples per step (one optimizer update).")
flags.DEFINE_integer("classes", 1000, "The number of outputs of the head, at least 2.")
flags.DEFINE_multi_string(
    "train", ["@head", "@all"], "A filter of what is trained; repeatable, each is measured separately."
)
flags.DEFINE_integer("steps", 10, "The number of timed steps per runner and selection (for engine and hand: pairs).")
flags.DEFINE_integer(
    "warmup", 2, "The number of steps before these, which are not timed, at least 1 (the first one compiles)."
)
flags.DEFINE_list(
    "runners",
    list(RUNNERS),
    "The runners, comma-separated: engine, hand, keras_fit, torch. A runner whose library is missing is reported as not installed.",
)
flags.DEFINE_integer("seed", 0, "The seed of the initial weights, the images and the labels.")
flags.DEFINE_string(
    "out", None, "A .json file for the results (times in ms, memory in bytes); by default none is written."
)


def main() -> int:
    cli.import_tensorflow()
    from .baselines import vit_jobs

    _check_flags()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no process of a runner outlives this one
    try:
        with tempfile.TemporaryDirectory(prefix="benchmark_step-") as folder:
            jobs = vit_jobs.build_jobs(
                pathlib.Path(folder),
                model=F.model,
                image_size=F.image_size,
                classes=F.classes,
                train=F.train,
                batch_size=F.batch_size,
                warmup=F.warmup,
                steps=F.steps,
                seed=F.seed,
            )
            rows = [row for job in jobs for row in _measure(job)]
    except harness.BenchmarkError as error:
        print(f"benchmark_step: {error}", file=sys.stderr)
        return cli.FAILED
    harness.print_table(rows)
    cli.write_out(rows)
    return cli.DONE


# ---- measurements


def _measure(job: harness.Job) -> list[dict[str, Any]]:
    """Measures all runners on one selection: one row each."""
    results: dict[str, dict[str, Any]] = {}
    paired = {"engine", "hand"} <= set(F.runners)
    interleaved = _start("pair", job) if paired else {}
    for runner in F.runners:
        if importlib.util.find_spec(_PACKAGES.get(runner, "tensorflow")) is not None:
            results[runner] = _start(runner, job)
    for runner, result in interleaved.items():
        results[runner]["seconds"] = result["seconds"]
    harness.check_agreement(job, results, interleaved)
    return [_row(job, runner, results, interleaved) for runner in F.runners]


def _row(job: harness.Job, runner: str, results: dict[str, Any], interleaved: dict[str, Any]) -> dict[str, Any]:
    result, hand = results.get(runner, {}), results.get("hand")
    ratio = None
    if runner == "engine" and interleaved:
        one, other = (interleaved[name]["seconds"] for name in ("engine", "hand"))
        ratio = quantiles([a / b for a, b in zip(one, other, strict=True)])
    return {
        "selection": job.train,
        "runner": runner,
        "installed": bool(result),
        "step_ms": quantiles([1e3 * s for s in result["seconds"]]) if result else None,
        "interleaved": runner in interleaved,
        "ratio_to_hand": ratio,
        "peak_rss_bytes": result.get("peak_rss_bytes"),
        "rss_ratio_to_hand": result["peak_rss_bytes"] / hand["peak_rss_bytes"] if result and hand else None,
        "slot_bytes": result.get("slot_bytes"),
        "backward_ops": result.get("backward_ops"),
        "trained_parameters": result.get("trained_parameters"),
        "parameters": result.get("parameters"),
        "first_loss": result.get("first_loss"),
        "tape": result.get("tape"),
    }


def _start(runner: str, job: harness.Job) -> dict[str, Any]:
    """Measures one runner, or the pair, in a process of its own."""
    what = "engine and hand in turn" if runner == "pair" else f"{runner} alone"
    print(f"  {job.train}: {what} ...", end="", flush=True)
    start = time.monotonic()
    found = harness.run_apart(
        _TARGETS[runner], job.to_json(), what=f"{runner} on {job.train}", tensorflow=runner != "torch"
    )
    print(f" {time.monotonic() - start:.0f} s")
    return found


# ---- flags


def _check_flags() -> None:
    from engine.errors import InputError
    from engine.text import nearest

    cli.check_numbers(_LIMITS)
    for runner in F.runners:
        if runner not in RUNNERS:
            raise InputError(
                f"runners={runner!r} is not a known runner; expected {', '.join(RUNNERS)}{nearest(runner, RUNNERS)}"
            )
    for name in ("runners", "train"):
        if not F[name].value or len(set(F[name].value)) < len(F[name].value):
            raise InputError(f"{name}={','.join(F[name].value)!r}: expected at least one, and none twice")
    cli.check_out(F.out)


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
