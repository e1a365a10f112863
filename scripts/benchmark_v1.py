"""Time one training step: the engine against each of the three ways to freeze in TF1, in turn in one process.

All have the same ViT, weights, batch, selection and optimizer; the order is reversed every round, and ratios are taken
round by round. A TF1 step is one Session.run of a train op, with its batch fed from memory; a step of the engine is one
call of TrainStep.
"""

from __future__ import annotations

import pathlib
import tempfile
import time
from typing import Any

from absl import flags

from engine.host import quantiles

from . import cli
from .baselines import harness

F = flags.FLAGS

flags.DEFINE_string("model", "vit:S/16", "The model: a ViT, as in finetune, or cnn:mini.")
flags.DEFINE_integer("image_size", 224, "The height and width of the images in pixels.")
flags.DEFINE_integer("classes", 1000, "The number of outputs of the head, at least 2.")
flags.DEFINE_integer("batch_size", 16, "The number of examples per step.")
flags.DEFINE_multi_string(
    "train", ["@blocks[-2:] @head"], "A filter of what is trained; repeatable, each is measured separately."
)
flags.DEFINE_string(
    "optimizer", "adam", "The optimizer, with the rule of its tf.compat.v1.train namesake, as in compare_v1."
)
flags.DEFINE_integer("steps", 10, "The number of timed rounds, in each of which every runner trains one step.")
flags.DEFINE_integer(
    "warmup", 2, "The number of rounds before these, which are not timed, at least 1 (the first one compiles)."
)
flags.DEFINE_integer("seed", 0, "The seed of the initial weights, the images and the labels.")
flags.DEFINE_string("out", None, "A .json file for the results (times in ms); by default none is written.")


def main() -> int:
    cli.import_tensorflow()
    import numpy as np

    from engine.errors import check_range
    from engine.files import write_npz

    from .baselines import v1 as runners

    for name, low, high in (
        ("image_size", 8, 4096), ("classes", 2, 1_000_000), ("batch_size", 1, 65536), ("steps", 1, 1_000_000),
        ("warmup", 1, 1_000_000), ("seed", 0, 2**31 - 1),
    ):  # fmt: skip
        check_range(name, F[name].value, low, high)
    cli.check_out(F.out)
    rng = np.random.default_rng(F.seed)
    shape = (F.batch_size, F.image_size, F.image_size, 3)
    rows = []
    with tempfile.TemporaryDirectory(prefix="benchmark_v1-") as folder:
        images = pathlib.Path(folder) / "images.npz"
        pixels = rng.integers(0, 256, shape, np.uint8)
        labels = np.arange(F.batch_size) % F.classes
        write_npz(
            images, [(f"{p}_{n}", v) for p in ("train", "val") for n, v in (("images", pixels), ("labels", labels))]
        )
        for train in F.train:
            job = runners.Job(
                model=f"{F.model},classes={F.classes}",
                data=f"npz:{images}",
                loss="softmax",
                train=train,
                optimizer=F.optimizer,
                precision="float32",
                weights=str(pathlib.Path(folder) / "weights.npz"),
                images=None,
                batch_size=F.batch_size,
                micro_batches=1,
                steps=F.steps,
                learning_rate=1e-4,
                seed=F.seed,
            )
            setting = runners.Setting(job)
            write_npz(job.weights, ((e.path, e.variable.numpy()) for e in setting.task.variables))
            rows += _measure(job, runners)
    _print(rows)
    cli.write_out(rows)
    return cli.DONE


def _measure(job: Any, runners: Any) -> list[dict[str, Any]]:
    """One row for each runner: step_ms, and its ratio to that of the engine, round by round."""
    built = {}
    for name in runners.RUNNERS:
        print(f"{job.train}: preparing {name}", flush=True)
        built[name] = runners.build_runner(name, runners.Setting(job))
    batch = next(iter(built.values())).setting.batches.at(0)
    seconds: dict[str, list[float]] = {name: [] for name in built}
    for number in range(F.warmup + F.steps):
        losses = {}
        for name in list(built) if number % 2 == 0 else list(built)[::-1]:
            start = time.perf_counter()
            losses[name] = built[name].train(batch)
            seconds[name].append(time.perf_counter() - start)
        print(f"{job.train}: round {number + 1} of {F.warmup + F.steps}", flush=True)
        if number == 0 and any(abs(v - losses["engine"]) > 1e-5 * abs(losses["engine"]) for v in losses.values()):
            raise harness.BenchmarkError(f"{job.train}: the losses of the first step do not agree: {losses}")
    rows = []
    for name, runner in built.items():
        counted = seconds[name][F.warmup :]
        rows.append(
            {
                "selection": job.train,
                "runner": name,
                "step_ms": quantiles([1e3 * value for value in counted]),
                "ratio_to_engine": quantiles(
                    [a / b for a, b in zip(counted, seconds["engine"][F.warmup :], strict=True)]
                ),
                "backward_ops": runner.facts()["backward_ops"],
            }
        )
        runner.close()
    return rows


def _print(rows: list[dict[str, Any]]) -> None:
    width = max(len(row["selection"]) for row in rows)
    print(f"\n{'train'.ljust(width)}  runner            step ms  to engine (p10 to p90)  backward ops")
    for row in rows:
        ratio = row["ratio_to_engine"]
        print(
            f"{row['selection'].ljust(width)}  {row['runner'].ljust(16)}  {row['step_ms']['median']:7.1f}  "
            f"{ratio['median']:5.3f} ({ratio['p10']:.3f} to {ratio['p90']:.3f})   {row['backward_ops']:>12}"
        )


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
