"""Time the first training step, tracing and compiling included: the engine against Keras.

engine is the first step of TrainStep with AdamW; keras is the first train_on_batch of an equal ViT of keras.layers with
equal weights. All variables are trained. Each measurement has a process of its own, in turn: engine, keras, keras, engine,
and so on. The clock starts when the model, its weights and the batch are ready, and stops when the update is done and the
loss is on the host; importing, building and model.compile are not counted. The data are one random batch. Keras itself
decides whether to use XLA (jit_compile="auto": not on a machine without accelerators); its decision is reported.
"""

from __future__ import annotations

import pathlib
import signal
import sys
import tempfile
from typing import Any

from absl import flags

from engine.host import quantiles

from . import cli
from .baselines import harness

F = flags.FLAGS

RUNNERS = ("engine", "keras")
_TARGETS = {"engine": "tensorflow_vit:measure_engine", "keras": "keras_vit:measure_first_step"}
_LIMITS = {"image_size": (1, 4096), "batch_size": (1, 65536), "classes": (2, 1_000_000), "repeats": (1, 1000)}

flags.DEFINE_string(
    "model",
    "vit:B/16",
    "A plain ViT: vit:mini, vit:Ti/16, vit:S/16, vit:B/16, vit:L/16 (any patch size in pixels; options after a comma: depth=N blocks, gelu=tanh, classes=N).",
)
flags.DEFINE_integer("image_size", 224, "The height and width of the images in pixels, a multiple of the patch size.")
flags.DEFINE_integer("batch_size", 4, "The number of examples in the batch.")
flags.DEFINE_integer("classes", 1000, "The number of outputs of the head, at least 2.")
flags.DEFINE_integer(
    "repeats", 5, "The number of pairs of measurements, one of each runner, every one in a process of its own."
)
flags.DEFINE_integer("seed", 0, "The seed of the initial weights, the images and the labels.")
flags.DEFINE_string("out", None, "A .json file for the results (seconds, bytes); by default none is written.")


def main() -> int:
    cli.import_tensorflow()
    from .baselines import vit_jobs

    cli.check_numbers(_LIMITS)
    cli.check_out(F.out)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no process of a runner outlives this one
    try:
        with tempfile.TemporaryDirectory(prefix="benchmark_first_step-") as folder:
            (job,) = vit_jobs.build_jobs(
                pathlib.Path(folder),
                model=F.model,
                image_size=F.image_size,
                classes=F.classes,
                train=["@all"],
                batch_size=F.batch_size,
                warmup=0,
                steps=1,
                seed=F.seed,
            )
            pairs = [_pair(job, number) for number in range(F.repeats)]
    except harness.BenchmarkError as error:
        print(f"benchmark_first_step: {error}", file=sys.stderr)
        return cli.FAILED
    results = _results(pairs)
    _print(results)
    cli.write_out(results)
    return cli.DONE


def _pair(job: harness.Job, number: int) -> dict[str, Any]:
    """Measures both runners once; the order is swapped after every pair."""
    found = {}
    for runner in RUNNERS if number % 2 == 0 else RUNNERS[::-1]:
        found[runner] = harness.run_apart(_TARGETS[runner], job.to_json(), what=runner)
        print(f"  {number + 1} of {F.repeats}, {runner}: {found[runner]['seconds'][0]:.2f} s", flush=True)
    harness.check_agreement(job, {runner: found[runner] for runner in RUNNERS}, {})
    return found


def _results(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = {runner: [pair[runner]["seconds"][0] for pair in pairs] for runner in RUNNERS}
    ratios = [one / other for one, other in zip(seconds["engine"], seconds["keras"], strict=True)]
    return {
        "model": F.model,
        "image_size": F.image_size,
        "batch_size": F.batch_size,
        "parameters": pairs[0]["engine"]["parameters"],
        "keras_xla": pairs[0]["keras"]["xla"],
        "seconds": {runner: quantiles(values) for runner, values in seconds.items()},
        "ratio": quantiles(ratios),
        "each": seconds,
        "peak_rss_bytes": {r: quantiles([pair[r]["peak_rss_bytes"] for pair in pairs]) for r in RUNNERS},
    }


def _print(results: dict[str, Any]) -> None:
    print(f"\n{'first step':28}{'median s':>10}{'p10':>8}{'p90':>8}{'peak MiB':>10}")
    xla = "XLA" if results["keras_xla"] else "no XLA"
    for runner, title in (("engine", "engine"), ("keras", f"keras train_on_batch ({xla})")):
        row, peak = results["seconds"][runner], results["peak_rss_bytes"][runner]["median"] / 2**20
        print(f"{title:28}{row['median']:>10.2f}{row['p10']:>8.2f}{row['p90']:>8.2f}{peak:>10.0f}")
    ratio = results["ratio"]
    print(
        f"engine to keras, median of the ratios of the pairs: {ratio['median']:.3f} ({ratio['p10']:.3f} to {ratio['p90']:.3f})"
    )


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
