"""Measure what accumulation costs: a step in k micro-batches against one piece, and k times one micro-batch.

All in one process, step by step in turn, the order turned round every time. First the same step
in 1, 2, 4 and 8 parts: ratios to one piece are taken round by round. Then steps of 1, 2, 4 and 8 equal
micro-batches: the time of a micro-batch should not depend on how many there are. One random batch,
AdamW, all variables (--train) of a ViT.
"""

from __future__ import annotations

import time
from typing import Any

from absl import flags

from engine.host import quantiles
from scripts import cli

F = flags.FLAGS

flags.DEFINE_string("model", "vit:S/16", "A model as in finetune.")
flags.DEFINE_integer("image_size", 224, "Height and width of the images in pixels.")
flags.DEFINE_integer("batch_size", 32, "Examples in the step that is split.")
flags.DEFINE_integer("micro_batch_size", 4, "Examples in each of the equal micro-batches.")
flags.DEFINE_list("parts", ["1", "2", "4", "8"], "Comma-separated: numbers of micro-batches, 1 first.")
flags.DEFINE_string("train", "@all", "Filter: what trains.")
flags.DEFINE_string("remat", "none", "none, elementwise or blocks.")
flags.DEFINE_integer("rounds", 5, "How often each is timed, after one time that is not counted.")
flags.DEFINE_string("out", None, "A .json file for the results (seconds); unless given, none.")


def main() -> int:
    import numpy as np

    from engine import TrainStep, models, select
    from engine.errors import InputError
    from engine.training import losses, optimizers

    parts = []
    for word in F.parts:
        if not word.isdecimal() or int(word) < 1:
            raise InputError(f"parts={word!r}: whole numbers from 1 are wanted")
        parts.append(int(word))
    for name in ("image_size", "batch_size", "micro_batch_size", "rounds"):
        if F[name].value < 1:
            raise InputError(f"{name}={F[name].value}: it must be at least 1")
    if parts[:1] != [1] or max(parts) > F.batch_size:
        raise InputError(f"parts={','.join(F.parts)}: 1 comes first, and a step of {F.batch_size} has no more parts")
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
    _print(f"a step of {F.batch_size} examples in k micro-batches, to k = 1", "step s", results["split"])
    _print(f"k micro-batches of {F.micro_batch_size} examples, each, to k = {parts[-1]}", "part s", results["equal"])
    if F.out:
        from engine.files import write_json

        write_json(F.out, results)
        print(f"\nwritten: {F.out}")
    return cli.DONE


def _rounds(runners: dict[int, Any]) -> dict[int, list[float]]:
    """Each runner once a round, in turn, the order turned round every round; the first is not counted."""
    seconds: dict[int, list[float]] = {k: [] for k in runners}
    for number in range(F.rounds + 1):
        for k in list(runners) if number % 2 == 0 else list(runners)[::-1]:
            seconds[k].append(runners[k]())
    return {k: values[1:] for k, values in seconds.items()}


def _against(values: list[float], others: list[float]) -> dict[str, Any]:
    return {
        "seconds": quantiles(values),
        "ratio": quantiles([a / b for a, b in zip(values, others, strict=True)]),
    }


def _print(title: str, unit: str, rows: dict[int, dict[str, Any]]) -> None:
    print(f"\n{title}\n{'k':>4}{unit:>12}{'ratio':>10}  p10 to p90")
    for k, row in rows.items():
        ratio = row["ratio"]
        print(
            f"{k:>4}{row['seconds']['median']:>12.3f}{ratio['median']:>10.3f}  {ratio['p10']:.3f} to {ratio['p90']:.3f}"
        )


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
