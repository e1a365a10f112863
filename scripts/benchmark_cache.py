"""Measure what keeping the frozen part's outputs saves: whole jobs, steps and memory, with the cache and without.

job: head-only training from features, against the equal Keras ViT with a frozen backbone in model.fit, and against one
bare forward pass over the same images; the cache is new, and writing it counts. depth: the last two blocks and the head,
against the same engine uncached. Each runner has a process of its own; they run one after the other, not interleaved.
step: a step of kept features against a hand-written step on features held in memory, in turn in one process.
memory: head-only training from features of few and of many examples, the same number of steps each.
Images are made: noise, and labels that are their numbers modulo the classes. Nothing is evaluated.
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
from scripts import cli
from scripts.baselines import harness

F = flags.FLAGS

WHAT = ("job", "depth", "step", "memory")
RUNNERS = ("engine_cached", "engine", "keras_fit", "forward", "keras_forward", "step", "memory")
HEAD, DEPTH = "@head", "@head @blocks[-2:]"
# what is asked: the ratio -> its bound, and whether that is the least or the most
ASKED = {
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

flags.DEFINE_list("what", list(WHAT), f"Comma-separated, what is measured: {', '.join(WHAT)}.")
flags.DEFINE_string("model", "vit:S/16", "A plain ViT as in benchmark_step; depth needs two blocks.")
flags.DEFINE_integer("image_size", 224, "Height and width of the images of job and depth in pixels.")
flags.DEFINE_integer("images", 1024, "Examples in job, depth and step (there those that fill its last step).")
flags.DEFINE_integer("epochs", 10, "Passes over the examples in job and depth.")
flags.DEFINE_integer("batch_size", 32, "Examples per step in job and depth.")
flags.DEFINE_integer("classes", 10, "Outputs of the head, in classes, at least 2.")
flags.DEFINE_integer("step_batch_size", 128, "Examples per step in step and memory.")
flags.DEFINE_integer("rounds", 300, "Pairs of steps that are counted in step; then as many again in runs.")
flags.DEFINE_integer("warmup", 20, "Pairs before them that are not counted, at least 1 (the first one compiles).")
flags.DEFINE_integer(
    "small_image_size", 32, "Pixels, in step and memory: features are as wide, whatever they were made from."
)
flags.DEFINE_string(
    "memory_model", "vit:S/16,depth=1", "The ViT in memory: its features are as wide as with all blocks."
)
flags.DEFINE_list("memory_examples", ["1000", "50000"], "Comma-separated: two numbers of examples, few and many.")
flags.DEFINE_integer("seed", 0, "Of the initial weights, the images and their order.")
flags.DEFINE_string("out", None, "A .json file for the results (seconds, bytes); unless given, none.")
flags.DEFINE_enum("child", None, RUNNERS, "Internal: be the process of this runner; reads a job in JSON.")
flags.DEFINE_string("folder", None, "Internal: of a child's cache and result.")


def main() -> int:
    if F.child:
        return _child(F.child)
    memory_examples = _check_flags()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a child does not outlive this process
    results: dict[str, Any] = {"versions": _versions(), "processors": os.cpu_count()}
    try:
        if "job" in F.what:
            results["job"] = _job()
        if "depth" in F.what:
            results["depth"] = _depth()
        if "step" in F.what:
            results["step"] = _step()
        if "memory" in F.what:
            results["memory"] = _memory(memory_examples)
    except harness.BenchmarkError as error:
        print(f"benchmark_cache: {error}", file=sys.stderr)
        return cli.FAILED
    _print(results)
    if F.out:
        from engine.files import write_json

        write_json(F.out, results)
        print(f"\nwritten: {F.out}")
    return cli.DONE


# ---- what is measured


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
    """Each runner's whole job in a process of its own."""
    per_epoch = -(-F.images // F.batch_size)
    with tempfile.TemporaryDirectory(prefix="benchmark_cache-") as folder:
        job = _made(folder, train, F.model, F.image_size, F.batch_size, steps=F.epochs * per_epoch)
        found = {runner: _start(runner, job, folder, F.images) for runner in runners}
    trained = {name: result for name, result in found.items() if "first_loss" in result}
    harness.check_agreement(job, trained, {})
    return found


def _step() -> dict[str, Any]:
    size = F.step_batch_size
    with tempfile.TemporaryDirectory(prefix="benchmark_cache-") as folder:
        job = _made(folder, HEAD, F.model, F.small_image_size, size, steps=F.rounds, warmup=F.warmup)
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
            job = _made(folder, HEAD, F.memory_model, F.small_image_size, size, steps=-(-max(examples) // size))
            found.append(_start("memory", job, folder, count))
    few, many = found
    return {
        "few": few,
        "many": many,
        "more_peak_rss_bytes": many["peak_rss_bytes"] - few["peak_rss_bytes"],
        "more_cache_bytes": many["cache_bytes"] - few["cache_bytes"],
    }


# ---- processes


def _made(
    folder: str, train: str, model: str, image_size: int, batch_size: int, *, steps: int, warmup: int = 0
) -> harness.Job:
    from scripts.baselines import vit_jobs

    (job,) = vit_jobs.make(
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
    words = ["scripts.benchmark_cache", f"--child={runner}", f"--images={count}", f"--folder={own}"]
    found = harness.start(words, job, runner, result=own / "result.json")
    print(f"  {job.train}: {runner}, {count:,} examples: {time.monotonic() - begun:.0f} s", flush=True)
    return found


def _child(name: str) -> int:
    from engine.errors import InputError
    from engine.files import write_json
    from scripts.baselines import cached, vit_jobs

    job = vit_jobs.read(name)
    if F.folder is None:
        raise InputError(f"child={name}: it is started by a benchmark with a --folder")
    folder, count = pathlib.Path(F.folder), F.images
    result: dict[str, Any]
    if name == "keras_fit":
        result = cached.keras_fit(job, count)
    elif name == "step":
        result = cached.feature_steps(job, count, folder / "cache")
    elif name in ("forward", "keras_forward"):
        result = cached.forward(job, count, keras=name == "keras_forward")
    else:
        cache = None if name == "engine" else folder / "cache"
        result = cached.engine(job, count, cache=cache, held=name != "memory")
    write_json(folder / "result.json", result)
    return cli.DONE


def _versions() -> dict[str, str]:
    from engine import host

    return host.versions()


# ---- what is shown


def _print(results: dict[str, Any]) -> None:
    print("\n" + ", ".join(f"{name} {version}" for name, version in results["versions"].items()), end="")
    print(f", {results['processors']} processors")
    for what, train in (("job", HEAD), ("depth", DEPTH)):
        if what in results:
            print(
                f"\n{what}: {F.model} at {F.image_size} px, {F.images:,} images, batch {F.batch_size}, {F.epochs} epochs,"
            )
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
        f"  engine_cached: {cached['seconds_to_cut']:.2f} s until cut, {cached['seconds_to_fill']:.2f} s until the cache "
        f"was filled and verified, {cached['cache_bytes'] / 2**20:.1f} MiB"
    )
    for name, ratio in found["ratios"].items():
        _print_ratio(name, ratio)


def _print_ratio(name: str, ratio: float, spread: str = "") -> None:
    said = ""
    if name in ASKED:
        bound, kind = ASKED[name]
        reached = ratio >= bound if kind == "at least" else ratio <= bound
        said = f"; {kind} {bound:g} is asked: {'reached' if reached else 'NOT reached'}"
    print(f"  {name.replace('_', ' ')}: {ratio:.3f}{spread}{said}")


def _print_step(found: dict[str, Any]) -> None:
    ours, hand = (found["step_ms"][name] for name in ("engine", "hand"))
    print(f"\nstep of features: {F.model}, train {HEAD}, batch {F.step_batch_size}, {found['examples']:,} examples,")
    print(
        f"{len(found['engine']['seconds'])} pairs in turn in one process; AdamW by the same kernels, each loss fetched"
    )
    for name, row in (("engine", ours), ("hand", hand)):
        print(f"  {name:<8}{row['median']:>8.3f} ms ({row['p10']:.3f} to {row['p90']:.3f})")
    for name, key in (("step_to_hand", "step_to_hand"), ("in_runs", "runs_to_hand")):
        ratio = found[key]
        spread = f" ({ratio['p10']:.3f} to {ratio['p90']:.3f})"
        _print_ratio(name, ratio["median"], spread)
    print(f"  runs: {found['runs']['steps']} steps of each in turn, reading and its thread's start included")


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


# ---- what is asked


def _check_flags() -> list[int]:
    """The numbers of examples in memory.

    Raises:
        InputError: flags that contradict themselves, or lie outside their ranges.
    """
    from engine.errors import InputError
    from engine.text import nearest

    cli.check_numbers(_LIMITS)
    for what in F.what:
        if what not in WHAT:
            raise InputError(f"what={what!r}: known are {', '.join(WHAT)}{nearest(what, list(WHAT))}")
    if not F.what or len(set(F.what)) < len(F.what):
        raise InputError(f"what={','.join(F.what)!r}: at least one is wanted, and each once")
    if {"job", "depth"} & set(F.what) and F.batch_size > F.images:
        raise InputError(f"batch_size={F.batch_size}: there are {F.images} images")
    if "step" in F.what and F.step_batch_size > F.images:
        raise InputError(f"step_batch_size={F.step_batch_size}: there are {F.images} images")
    examples = [int(word) if word.isdecimal() else 0 for word in F.memory_examples]
    if len(examples) != 2 or not F.step_batch_size <= examples[0] < examples[1] <= 10_000_000:
        raise InputError(
            f"memory_examples={','.join(F.memory_examples)!r}: two numbers are wanted, the first no less than "
            f"step_batch_size={F.step_batch_size}, the second larger"
        )
    cli.check_out(F.out)
    return examples


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
