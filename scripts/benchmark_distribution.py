"""Time a step under a distribution strategy: with one device against none, and with several logical devices against none.

Three runners train equal networks on one random batch with AdamW, each in a process of its own: none (one device, no
strategy), mirrored (a MirroredStrategy with one device, whose ratio to none is the overhead), and mirrored_N (N logical
devices of the CPU, which share its cores and the examples). They do a step in turn, in rounds whose order is reversed after
each; ratios are taken round by round, and GPUs are not used. The bytes that a replica exchanges in a step are counted in the traced graph and must
be those of the gradients of what trains, and a few scalars.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

from absl import flags

from . import cli
from .baselines import turns
from .baselines.replica_results import Results, find_fault

F = flags.FLAGS

_LIMITS = {
    "image_size": (1, 4096),
    "batch_size": (1, 65536),
    "micro_batch_size": (0, 65536),
    "classes": (2, 1_000_000),
    "devices": (2, 64),
    "rounds": (1, 1_000_000),
    "warmup": (1, 1_000_000),
    "patience": (1, 1_000_000),
}

flags.DEFINE_string("model", "vit:S/16", "A model that the engine builds: vit:NAME, cnn:mini or keras:NAME.")
flags.DEFINE_integer("image_size", 224, "The height and width of the images in pixels.")
flags.DEFINE_integer("batch_size", 16, "The number of examples per step, which all devices share.")
flags.DEFINE_integer(
    "micro_batch_size", 0, "The number of examples of a micro-batch; 0 computes each share in one piece."
)
flags.DEFINE_integer("classes", 1000, "The number of outputs of the head, at least 2.")
flags.DEFINE_multi_string(
    "train",
    ["@head", "@blocks[-2:] @head", "@all"],
    "A filter of what is trained; repeatable, each is measured separately.",
)
flags.DEFINE_integer("devices", 2, "The number of logical devices of the last runner, at least 2.")
flags.DEFINE_integer("rounds", 10, "The number of timed rounds; in each, every runner does one step.")
flags.DEFINE_integer("warmup", 2, "The number of rounds before these, which are not timed, at least 1.")
flags.DEFINE_integer("patience", 1800, "The seconds after which a runner that has not answered is stopped.")
flags.DEFINE_integer("seed", 0, "The seed of the initial weights, the images and the labels.")
flags.DEFINE_string(
    "out",
    None,
    "A .json file for the results (times in ms, memory in bytes), written after each round; by default none is written.",
)


def main() -> int:
    cli.check_numbers(_LIMITS)
    cli.import_tensorflow(keras=cli.needs_keras(F.model))
    _check_filters()
    cli.check_out(F.out)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no process of a runner outlives this one
    results = Results(_facts(), out=F.out)
    for train in F.train:
        _measure(train, results)
    results.write(finished=True)
    print(f"\n{results.text()}")
    if F.out:
        print(f"\nwritten: {F.out}")
    if reasons := results.failures():
        print("\n".join(f"benchmark_distribution: {reason}" for reason in reasons), file=sys.stderr)
    return cli.FAILED if reasons else cli.DONE


def _check_filters() -> None:
    """Raises InputError for a model that does not exist or a filter that does not fit it, before any process starts."""
    from engine import models, select
    from engine.models.abstract import abstract_variables

    with abstract_variables():
        built = models.build_model(F.model, image_shape=(F.image_size, F.image_size, 3), outputs=F.classes)
    for train in F.train:
        select(built.network, train, statistics=built.statistics)


def _measure(train: str, results: Results) -> None:
    """Measures the three runners on one selection, in turn."""
    both = {"none": 0, "mirrored": 1, f"mirrored_{F.devices}": F.devices}
    runners = [turns.Participant(name, "float32", _starter(train, n), required=True) for name, n in both.items()]
    print(f"\n{train}: {len(runners)} processes start", flush=True)
    results.parts.append((train, runners))

    def say(line: str) -> None:
        print(line, flush=True)

    def check() -> None:
        for one in runners:
            if one.failed is None and (reason := find_fault(one, runners[0])) is not None:
                one.fail(reason, say=say)

    def after(number: int) -> None:
        results.write(finished=False)
        times = [f"{one.runner} {one.last['seconds']:.3g} s" for one in runners if one.last is not None]
        name = f"round {number} of {F.rounds}" if number > 0 else f"warm-up {number + F.warmup} of {F.warmup}"
        say(f"  {name}: {', '.join(times)}")

    turns.take_turns(runners, warmup=F.warmup, rounds=F.rounds, check=check, after=after, say=say, cost=False)


def _starter(train: str, devices: int) -> Any:
    from .baselines.replicas import ReplicaJob

    names = ("model", "image_size", "classes", "batch_size", "micro_batch_size", "seed")
    job = ReplicaJob(train=train, devices=devices, **{name: F[name].value for name in names})
    # devices are chosen before TensorFlow starts, so that is left to the runner
    target = f"{turns.__package__}.replicas:Replicas"
    return lambda: turns.Process(target, job, tensorflow=False, environment={}, patience=F.patience)


def _facts() -> dict[str, Any]:
    from engine import devices, host

    names = ("model", "image_size", "batch_size", "micro_batch_size", "classes", "warmup", "rounds", "seed")
    machine = {"processor": devices.processor(), "cores": devices.core_count()}
    return {"machine": machine, "versions": host.versions(), **{name: F[name].value for name in names}}


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
