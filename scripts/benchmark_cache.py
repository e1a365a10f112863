"""Measure what caching the outputs of the frozen part saves: whole jobs, steps and memory, with and without the cache.

job: head-only training on cached features, against the equal Keras ViT with a frozen backbone in model.fit, and against a
single forward pass over the same images; the cache is new, and writing it counts. depth: training the last two blocks and
the head, against the same engine without a cache. Each runner has a process of its own; they run one after the other, not
interleaved. step: a step on cached features against a hand-written step on features in memory, in turn in one process.
memory: head-only training on the features of few and of many examples, for the same number of steps.
The images are noise, and their labels are their numbers modulo the number of classes. Nothing is evaluated.
"""

from __future__ import annotations

import os
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

WHAT = ("job", "depth", "step", "memory")
HEAD, DEPTH = "@head", "@head @blocks[-2:]"
# ratio -> its required bound, and whether that is a minimum or a maximum
REQUIRED = {
    "keras_fit_to_cached": (8.5, "at least"),
    "cached_to_forward": (1.2, "at most"),
    "uncached_to_cached": (2.0, "at least"),
    "step_to_hand": (1.3, "at most"),
}
_LIMITS = {
    "image_size": (1, 4096),
    "small_image_size": (1, 4096),
    "images": (1, 10_000_000),
    "epochs": (1, 1_000_000),
    "batch_size": (1, 65536),
    "step_batch_size": (1, 65536),
    "classes": (2, 1_000_000),
    "rounds": (1, 1_000_000),
    "warmup": (1, 1_000_000),
}

flags.DEFINE_list("what", list(WHAT), f"What is measured, comma-separated: {', '.join(WHAT)}.")
flags.DEFINE_string("model", "vit:S/16", "A plain ViT, as in benchmark_step; depth needs two blocks.")
flags.DEFINE_integer("image_size", 224, "The height and width of the images in job and depth, in pixels.")
flags.DEFINE_integer(
    "images", 1024, "The number of examples in job, depth and step (in step, rounded down to whole steps)."
)
flags.DEFINE_integer("epochs", 10, "The number of passes over the examples in job and depth.")
flags.DEFINE_integer("batch_size", 32, "The number of examples per step in job and depth.")
flags.DEFINE_integer("classes", 10, "The number of outputs of the head, at least 2.")
flags.DEFINE_integer("step_batch_size", 128, "The number of examples per step in step and memory.")
flags.DEFINE_integer("rounds", 300, "The number of timed pairs of steps in step; then the same number again, in runs.")
flags.DEFINE_integer(
    "warmup", 20, "The number of pairs before these, which are not timed, at least 1 (the first one compiles)."
)
flags.DEFINE_integer(
    "small_image_size",
    32,
    "The height and width of the images in step and memory, in pixels; the width of features does not depend on it.",
)
flags.DEFINE_string(
    "memory_model", "vit:S/16,depth=1", "The ViT in memory; its features are as wide as with all blocks."
)
flags.DEFINE_list(
    "memory_examples", ["1000", "50000"], "The two numbers of examples in memory, few and many, comma-separated."
)
flags.DEFINE_integer("seed", 0, "The seed of the initial weights, the images and their order.")
flags.DEFINE_string("out", None, "A .json file for the results (seconds, bytes); by default none is written.")


def main() -> int:
    from engine import host

    cli.import_tensorflow()
    memory_examples = _check_flags()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no process of a runner outlives this one
    results: dict[str, Any] = {"versions": host.versions(), "processors": os.cpu_count()}
    try:
        for what, measure in (("job", _job), ("depth", _depth), ("step", _step)):
            if what in F.what:
                results[what] = measure()
        if "memory" in F.what:
            results["memory"] = _memory(memory_examples)
    except harness.BenchmarkError as error:
        print(f"benchmark_cache: {error}", file=sys.stderr)
        return cli.FAILED
    _print(results)
    cli.write_out(results)
    return cli.DONE


# ---- measurements


def _job() -> dict[str, Any]:
    runners = ("engine_cached", "keras_fit", "forward", "keras_forward")
    found = _whole(HEAD, runners)
    seconds = {name: found[name]["seconds"] for name in runners}
    return found | {
        "ratios": {
            "keras_fit_to_cached": seconds["keras_fit"] / seconds["engine_cached"],
            "cached_to_forward": seconds["engine_cached"] / seconds["forward"],
            "cached_to_keras_forward": seconds["engine_cached"] / seconds["keras_forward"],
        }
    }


def _depth() -> dict[str, Any]:
    found = _whole(DEPTH, ("engine_cached", "engine"))
    return found | {"ratios": {"uncached_to_cached": found["engine"]["seconds"] / found["engine_cached"]["seconds"]}}


def _whole(train: str, runners: tuple[str, ...]) -> dict[str, Any]:
    """Measures whole jobs, each runner in a process of its own."""
    per_epoch = -(-F.images // F.batch_size)
    with tempfile.TemporaryDirectory(prefix="benchmark_cache-") as folder:
        job = _build_job(folder, train, F.model, F.image_size, F.batch_size, steps=F.epochs * per_epoch)
        found = {runner: _start(runner, job, folder, F.images) for runner in runners}
    trained = {name: result for name, result in found.items() if "first_loss" in result}
    harness.check_agreement(job, trained, {})
    return found


def _step() -> dict[str, Any]:
    size = F.step_batch_size
    with tempfile.TemporaryDirectory(prefix="benchmark_cache-") as folder:
        job = _build_job(folder, HEAD, F.model, F.small_image_size, size, steps=F.rounds, warmup=F.warmup)
        found = _start("step", job, folder, F.images // size * size)
    pairs, runs = zip(found["engine"]["seconds"], found["hand"]["seconds"], strict=True), found["runs"]
    return found | {
        "step_ms": {name: quantiles([1e3 * s for s in found[name]["seconds"]]) for name in ("engine", "hand")},
        "step_to_hand": quantiles([ours / theirs for ours, theirs in pairs]),
        "runs_to_hand": quantiles([a / b for a, b in zip(runs["engine"], runs["hand"], strict=True)]),
    }


def _memory(examples: list[int]) -> dict[str, Any]:
    size = F.step_batch_size
    found = []
    for count in examples:
        with tempfile.TemporaryDirectory(prefix="benchmark_cache-") as folder:
            job = _build_job(folder, HEAD, F.memory_model, F.small_image_size, size, steps=-(-max(examples) // size))
            found.append(_start("memory", job, folder, count))
    few, many = found
    return {
        "few": few,
        "many": many,
        "more_peak_rss_bytes": many["peak_rss_bytes"] - few["peak_rss_bytes"],
        "more_cache_bytes": many["cache_bytes"] - few["cache_bytes"],
    }


# ---- processes


def _build_job(
    folder: str, train: str, model: str, image_size: int, batch_size: int, *, steps: int, warmup: int = 0
) -> harness.Job:
    from .baselines import vit_jobs

    (job,) = vit_jobs.build_jobs(
        pathlib.Path(folder),
        model=model,
        image_size=image_size,
        classes=F.classes,
        train=[train],
        batch_size=batch_size,
        warmup=warmup,
        steps=steps,
        seed=F.seed,
    )
    return job


def _start(runner: str, job: harness.Job, folder: str, count: int) -> dict[str, Any]:
    print(f"  {job.train}: {runner}, {count:,} examples", flush=True)
    begun, own = time.monotonic(), pathlib.Path(folder) / f"{runner}-{count}"
    own.mkdir()
    argument = {"job": job.to_json(), "runner": runner, "count": count, "folder": str(own)}
    found = harness.run_apart("cached:measure", argument, what=f"{runner} on {job.train}", show=True)
    print(f"  {job.train}: {runner}, {count:,} examples: {time.monotonic() - begun:.0f} s", flush=True)
    return found


# ---- results


def _print(results: dict[str, Any]) -> None:
    print("\n" + ", ".join(f"{name} {version}" for name, version in results["versions"].items()), end="")
    print(f", {results['processors']} processors")
    for what, train in (("job", HEAD), ("depth", DEPTH)):
        if what in results:
            much = f"{F.images:,} images, batch {F.batch_size}, {F.epochs} epochs"
            print(f"\n{what}: {F.model} at {F.image_size} px, {much},")
            print(f"train {train}; each in a process of its own, one after the other")
            _print_jobs(results[what])
    if "step" in results:
        _print_step(results["step"])
    if "memory" in results:
        _print_memory(results["memory"])


def _print_jobs(found: dict[str, Any]) -> None:
    print(f"  {'runner':<14}{'seconds':>10}{'step ms':>11}{'last loss':>11}{'peak MiB':>10}")
    for name, row in found.items():
        if name != "ratios":
            loss = f"{row['last_epoch_loss']:.4f}" if "last_epoch_loss" in row else ""
            line = f"  {name:<14}{row['seconds']:>10.2f}{row['step_ms']['median']:>11.2f}{loss:>11}"
            print(f"{line}{row['peak_rss_bytes'] / 2**20:>10.0f}")
    cached = found["engine_cached"]
    print(
        f"  engine_cached: {cached['seconds_to_cut']:.2f} s to cut the graph, {cached['seconds_to_fill']:.2f} s to fill and "
        f"verify the cache of {cached['cache_bytes'] / 2**20:.1f} MiB"
    )
    for name, ratio in found["ratios"].items():
        _print_ratio(name, ratio)


def _print_ratio(name: str, ratio: float, spread: str = "") -> None:
    said = ""
    if name in REQUIRED:
        bound, kind = REQUIRED[name]
        reached = ratio >= bound if kind == "at least" else ratio <= bound
        said = f"; required: {kind} {bound:g}, {'reached' if reached else 'NOT reached'}"
    print(f"  {name.replace('_', ' ')}: {ratio:.3f}{spread}{said}")


def _print_step(found: dict[str, Any]) -> None:
    ours, hand = (found["step_ms"][name] for name in ("engine", "hand"))
    print(f"\nsteps on features: {F.model}, train {HEAD}, batch {F.step_batch_size}, {found['examples']:,} examples,")
    print(
        f"{len(found['engine']['seconds'])} pairs in turn in one process; AdamW with the same kernels, every loss fetched"
    )
    for name, row in (("engine", ours), ("hand", hand)):
        print(f"  {name:<8}{row['median']:>8.3f} ms ({row['p10']:.3f} to {row['p90']:.3f})")
    for name, ratio in (("step_to_hand", found["step_to_hand"]), ("in_runs", found["runs_to_hand"])):
        _print_ratio(name, ratio["median"], f" ({ratio['p10']:.3f} to {ratio['p90']:.3f})")
    print(f"  runs: {found['runs']['steps']} steps of each in turn, including reading and the start of its thread")


def _print_memory(found: dict[str, Any]) -> None:
    few, many = found["few"], found["many"]
    print(f"\nmemory: {F.memory_model}, train {HEAD}, batch {F.step_batch_size}, {few['steps']} steps each")
    for row in (few, many):
        print(
            f"  {row['examples']:>9,} examples: peak {row['peak_rss_bytes'] / 2**20:.1f} MiB, cache "
            f"{row['cache_bytes'] / 2**20:.1f} MiB, {row['seconds']:.1f} s"
        )
    more, cache = found["more_peak_rss_bytes"] / 2**20, found["more_cache_bytes"] / 2**20
    print(f"  {more:+.1f} MiB of peak memory for {cache:+.1f} MiB of cache")


# ---- flags


def _check_flags() -> list[int]:
    """Checks the flags, and returns the two numbers of examples in memory."""
    from engine.errors import InputError
    from engine.text import nearest

    cli.check_numbers(_LIMITS)
    for what in F.what:
        if what not in WHAT:
            raise InputError(
                f"what={what!r} is not a valid measurement; expected {', '.join(WHAT)}{nearest(what, WHAT)}"
            )
    if not F.what or len(set(F.what)) < len(F.what):
        raise InputError(f"what={','.join(F.what)!r}: expected at least one, and none twice")
    if {"job", "depth"} & set(F.what) and F.batch_size > F.images:
        raise InputError(f"batch_size={F.batch_size}: there are only {F.images} images")
    if "step" in F.what and F.step_batch_size > F.images:
        raise InputError(f"step_batch_size={F.step_batch_size}: there are only {F.images} images")
    examples = [int(word) if word.isdecimal() else 0 for word in F.memory_examples]
    if len(examples) != 2 or not F.step_batch_size <= examples[0] < examples[1] <= 10_000_000:
        raise InputError(
            f"memory_examples={','.join(F.memory_examples)!r}: expected two numbers, the first of at least "
            f"step_batch_size={F.step_batch_size}, the second larger"
        )
    cli.check_out(F.out)
    return examples


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
