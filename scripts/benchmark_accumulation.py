"""Measure the cost of accumulation: a step in k micro-batches against one in a single piece, and steps of k micro-batches.

Everything runs in one process, step by step in turn, with the order reversed every time. First the same step in 1, 2, 4
and 8 parts: the ratios to a single piece are taken round by round. Then steps of 1, 2, 4 and 8 equal micro-batches: the
time of a micro-batch should not depend on how many there are. The data are one random batch; the optimizer is AdamW.
"""

from __future__ import annotations

import time
from typing import Any

from absl import flags

from engine.host import quantiles

from . import cli

F = flags.FLAGS

flags.DEFINE_string("model", "vit:S/16", "The model, as in finetune.")
flags.DEFINE_integer("image_size", 224, "The height and width of the images in pixels.")
flags.DEFINE_integer("batch_size", 32, "The number of examples in the step that is split.")
flags.DEFINE_integer("micro_batch_size", 4, "The number of examples in each of the equal micro-batches.")
flags.DEFINE_list("parts", ["1", "2", "4", "8"], "The numbers of micro-batches, comma-separated, 1 first.")
flags.DEFINE_string("train", "@all", "The filter of what is trained.")
flags.DEFINE_string("remat", "none", "What is recomputed in the backward pass: none, elementwise or blocks.")
flags.DEFINE_integer("rounds", 5, "How many times each is timed, after once that is not counted.")
flags.DEFINE_string("out", None, "A .json file for the results (seconds); by default none is written.")


def main() -> int:
    cli.import_tensorflow()
    import numpy as np

    from engine import TrainStep, models, select
    from engine.errors import InputError, check_range
    from engine.training import losses, optimizers

    for word in F.parts:
        if not word.isdecimal() or int(word) < 1:
            raise InputError(f"parts={word!r}: expected whole numbers of at least 1")
    parts = [int(word) for word in F.parts]
    for name in ("image_size", "batch_size", "micro_batch_size", "rounds"):
        check_range(name, F[name].value, 1)
    if parts[:1] != [1] or max(parts) > F.batch_size:
        raise InputError(
            f"parts={','.join(F.parts)}: expected 1 first, and at most {F.batch_size}, the number of examples in a step"
        )
    cli.check_out(F.out)

    model = models.build_model(F.model, image_shape=(F.image_size, F.image_size, 3), outputs=1000)
    selection = select(model.network, F.train, statistics=model.statistics)
    loss_fn = losses.supervised_loss(model.network)
    rng = np.random.default_rng(0)

    def batch(size: int) -> dict[str, Any]:
        images = rng.standard_normal((size, F.image_size, F.image_size, 3), np.float32)
        return {"image": images, "label": rng.integers(0, 1000, size, np.int32)}

    def step(size: int | None) -> TrainStep:
        return TrainStep(loss_fn, optimizers.AdamW(), micro_batch_size=size, remat=F.remat)

    def timed(one: TrainStep, whole: dict[str, Any]) -> float:
        start = time.perf_counter()
        one(selection, whole, learning_rate=1e-5)
        return time.perf_counter() - start

    print(f"{F.model} at {F.image_size} px, train {F.train}, remat {F.remat}, {F.rounds} rounds")
    whole = batch(F.batch_size)
    split = {k: step(None if k == 1 else -(-F.batch_size // k)) for k in parts}
    split_seconds = _rounds({k: lambda one=one: timed(one, whole) for k, one in split.items()})
    steps = {k: batch(k * F.micro_batch_size) for k in parts}
    equal = step(F.micro_batch_size)
    equal_seconds = _rounds({k: lambda k=k: timed(equal, steps[k]) for k in parts})

    results = {
        "split": {k: _against(values, split_seconds[1]) for k, values in split_seconds.items()},
        "equal": {
            k: _against([v / k for v in values], [v / parts[-1] for v in equal_seconds[parts[-1]]])
            for k, values in equal_seconds.items()
        },
    }
    _print(f"a step of {F.batch_size} examples in k micro-batches, relative to k = 1", "step s", results["split"])
    title = f"one of k micro-batches of {F.micro_batch_size} examples, relative to k = {parts[-1]}"
    _print(title, "part s", results["equal"])
    cli.write_out(results)
    return cli.DONE


def _rounds(runners: dict[int, Any]) -> dict[int, list[float]]:
    """Runs each runner once a round, with the order reversed every round; the first round is not counted."""
    seconds: dict[int, list[float]] = {k: [] for k in runners}
    for number in range(F.rounds + 1):
        for k in list(runners) if number % 2 == 0 else list(runners)[::-1]:
            seconds[k].append(runners[k]())
    return {k: values[1:] for k, values in seconds.items()}


def _against(values: list[float], others: list[float]) -> dict[str, Any]:
    return {"seconds": quantiles(values), "ratio": quantiles([a / b for a, b in zip(values, others, strict=True)])}


def _print(title: str, unit: str, rows: dict[int, dict[str, Any]]) -> None:
    print(f"\n{title}\n{'k':>4}{unit:>12}{'ratio':>10}  p10 to p90")
    for k, row in rows.items():
        ratio = row["ratio"]
        spread = f"{ratio['p10']:.3f} to {ratio['p90']:.3f}"
        print(f"{k:>4}{row['seconds']['median']:>12.3f}{ratio['median']:>10.3f}  {spread}")


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
