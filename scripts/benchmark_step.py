"""Time one training step: the engine against a hand-written loop, Keras and PyTorch, all in turn.

Every runner has a process of its own and is told when to do a step; while one works, the others wait. The order is
reversed after each round, and ratios are taken round by round, so that all runners see the same machine. They train equal
networks from equal weights with AdamW on one random batch, so nothing is read or decoded. CPU seconds are those of all
threads of a runner's process in a step (user and system); they suffer less from other programs than the clock does.

For a ViT: engine is TrainStep; hand is the tf.function that an expert would write for one selection and one batch shape,
without the gradient norm that the engine reports; keras is train_on_batch of an equal model of keras.layers; torch and
torch_compile are an equal model of PyTorch. For keras:NAME: engine, and keras, which is Keras' own train_step of the very
same network.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from absl import flags

from . import cli
from .baselines import harness, step_results, turns

F = flags.FLAGS

_VIT = {
    "engine": "tensorflow_vit:Engine",
    "hand": "tensorflow_vit:Hand",
    "keras": "keras_vit:Keras",
    "torch": "torch_vit:Torch",
    "torch_compile": "torch_vit:TorchCompile",
}
_KERAS = {"engine": "keras_models:Engine", "keras": "keras_models:Keras"}
_PRODUCT = "product:Product"
RUNNERS = tuple(_VIT)
PRECISIONS = ("float32", "mixed_bfloat16")
_LIMITS = {
    "image_size": (1, 4096),
    "batch_size": (1, 65536),
    "classes": (2, 1_000_000),
    "rounds": (1, 1_000_000),
    "warmup": (1, 1_000_000),
    "patience": (1, 1_000_000),
}

flags.DEFINE_string(
    "model",
    "vit:S/16",
    "A plain ViT: vit:mini, vit:Ti/16, vit:S/16, vit:B/16, vit:L/16 (any patch size in pixels; options after a comma: depth=N blocks, gelu=tanh, classes=N); or keras:NAME, a network of keras.applications.",
)
flags.DEFINE_integer("image_size", 224, "The height and width of the images in pixels, a multiple of the patch size.")
flags.DEFINE_integer("batch_size", 16, "The number of examples per step (one optimizer update).")
flags.DEFINE_integer("classes", 1000, "The number of outputs of the head, at least 2.")
flags.DEFINE_multi_string(
    "train",
    None,
    "A filter of what is trained; repeatable, each is measured separately (default: @all, @head, and for a ViT '@blocks[-2:] @head').",
)
flags.DEFINE_integer("rounds", 10, "The number of timed rounds; in each, every runner does one step.")
flags.DEFINE_integer(
    "warmup", 2, "The number of rounds before these, which are not timed, at least 1 (the first one compiles)."
)
flags.DEFINE_list(
    "runners",
    None,
    "The runners, comma-separated: engine, hand, keras, torch, torch_compile (default: all that the model has). One whose library is missing is reported.",
)
flags.DEFINE_list(
    "precisions",
    ["float32"],
    "The precisions, comma-separated: float32, mixed_bfloat16. All take their turns together, each runner in a process for each of them.",
)
flags.DEFINE_integer(
    "patience", 1800, "The seconds after which a runner that has not answered is stopped; compiling takes minutes."
)
flags.DEFINE_integer("seed", 0, "The seed of the initial weights, the images and the labels.")
flags.DEFINE_string(
    "out",
    None,
    "A .json file for the results (times in ms and s, memory in bytes), written after each round; by default none is written.",
)


def main() -> int:
    cli.import_tensorflow(keras=cli.needs_keras(F.model))
    runners = _check_flags()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no process of a runner outlives this one
    with tempfile.TemporaryDirectory(prefix="benchmark_step-") as folder:
        results = step_results.Results(out=F.out, facts=_facts())
        for job in _build_jobs(pathlib.Path(folder)):
            _measure(job, runners, results, folder)
    results.finish()
    print(results.text())
    if F.out:
        print(f"\nwritten: {F.out}")
    if reasons := results.failures():
        print("\n".join(f"benchmark_step: {reason}" for reason in reasons), file=sys.stderr)
    return cli.FAILED if reasons else cli.DONE


def _measure(job: harness.Job, runners: Sequence[str], results: step_results.Results, folder: str) -> None:
    """Measures all runners and precisions on one selection, in turn."""
    jobs = {precision: dataclasses.replace(job, precision=precision) for precision in F.precisions}
    asked = [(runner, precision) for precision in F.precisions for runner in (*runners, step_results.PRODUCT)]
    participants = [
        turns.Participant(runner, precision, _starter(runner, jobs[precision], folder), required=runner == "engine")
        for runner, precision in asked
    ]
    print(f"\n{job.train}: {len(participants)} processes start", flush=True)
    part = results.begin(job, participants)

    def say(line: str) -> None:
        print(line, flush=True)

    def after(number: int) -> None:
        results.write()
        name = f"round {number} of {F.rounds}" if number > 0 else f"warm-up {number + F.warmup} of {F.warmup}"
        say(f"  {name}: {part.progress()}")

    turns.take_turns(
        participants, warmup=F.warmup, rounds=F.rounds, check=lambda: part.check(say), after=after, say=say
    )


def _starter(runner: str, job: harness.Job, folder: str) -> Any:
    """What starts the process of a runner."""
    target = _PRODUCT if runner == step_results.PRODUCT else (_KERAS if _is_keras() else _VIT)[runner]
    torch = runner.startswith("torch")
    # threads that wait for work must not count as work, and what is compiled is left nowhere
    environment = {
        "OMP_WAIT_POLICY": "PASSIVE",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": os.path.join(folder, "compiled"),
    }
    return lambda: turns.Process(
        f"{harness.__package__}.{target}",
        job,
        tensorflow=not torch,
        environment=environment if torch else {},
        patience=F.patience,
    )


def _is_keras() -> bool:
    return str(F.model).startswith("keras:")


def _build_jobs(folder: pathlib.Path) -> list[harness.Job]:
    shared = {name: getattr(F, name) for name in ("model", "image_size", "classes", "batch_size", "seed")}
    if _is_keras():
        from .baselines import keras_models

        return keras_models.build_jobs(**shared, train=F.train or ["@all", "@head"])
    from .baselines import vit_jobs

    train = F.train or ["@all", "@head", "@blocks[-2:] @head"]
    return vit_jobs.build_jobs(folder, **shared, train=train, warmup=F.warmup, steps=F.rounds)


def _facts() -> dict[str, Any]:
    from engine import devices, host

    names = ("model", "image_size", "batch_size", "classes", "warmup", "rounds", "seed")
    machine = {
        "processor": devices.processor(),
        "instructions": devices.vector_instructions(),
        "cores": devices.core_count(),
    }
    return {"machine": machine, "versions": host.versions(), **{name: getattr(F, name) for name in names}}


def _check_flags() -> tuple[str, ...]:
    """Checks the flags and returns the runners."""
    from engine.errors import InputError
    from engine.text import nearest

    cli.check_numbers(_LIMITS)
    known = {"runners": tuple(_KERAS if _is_keras() else _VIT), "precisions": PRECISIONS}
    runners = known["runners"] if F.runners is None else tuple(F.runners)
    given = {"runners": runners, "precisions": F.precisions, "train": F.train or ["@all"]}
    for name, values in given.items():
        for value in values if name in known else ():
            if value not in known[name]:
                what = f"{name}={value!r} is not a known {name.removesuffix('s')}"
                if name == "runners" and value in RUNNERS:
                    what = f"runners={value!r}: it cannot run model={F.model!r}"
                raise InputError(f"{what}; expected {', '.join(known[name])}{nearest(value, known[name])}")
        if not values or len(set(values)) < len(values):
            raise InputError(f"{name}={','.join(values)!r}: expected at least one, and none twice")
    cli.check_out(F.out)
    return runners


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
