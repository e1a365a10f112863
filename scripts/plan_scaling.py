"""Plan on paper how step time falls with more workers: measured compute, counted bytes, and the links between workers.

For each model, strategy and link it predicts the time of a step with each number of workers, one device each: the compute of
the worker with most examples, and after it the reduction of the gradients of what trains, as a ring or a tree. Nothing
overlaps, because the engine reduces when all gradients are there. The docstring of engine/distribution/scaling.py has the
formulas with their sources. Trained parameters are counted from the model itself, which is not run for that. The seconds of
an example come from --measure, on this machine, or from --compute.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

from absl import flags

from engine.distribution.scaling import ALGORITHMS

from . import cli
from .baselines import harness

F = flags.FLAGS

flags.DEFINE_multi_string("model", ["vit:B/16", "vit:L/16"], "A model, as for finetune; repeatable.")
flags.DEFINE_string("image_size", None, "Pixels of the images, N or HEIGHTxWIDTH (default: the size for each model).")
flags.DEFINE_integer("classes", 1000, "The number of outputs of the head.")
flags.DEFINE_multi_string(
    "strategies",
    ["full,last_2,head"],
    "What trains, comma-separated, as for benchmark_freezing: full, last_N, head, norms, bias, attention, or name=FILTER.",
)
flags.DEFINE_integer("batch_size", 1024, "The number of examples of a step that all workers share.")
flags.DEFINE_integer(
    "worker_batch_size", 32, "The number of examples of each worker where every worker brings examples of its own."
)
flags.DEFINE_list("workers", ["1", "4", "16", "64", "256", "1024"], "The numbers of workers, comma-separated.")
flags.DEFINE_list(
    "bandwidths",
    ["1Gbit", "10Gbit", "100Gbit"],
    "What the link of a worker carries in a second in one direction, comma-separated, in bits with a prefix k, M, G or T.",
)
flags.DEFINE_float("latency", 50e-6, "The seconds from sending a message between workers to its arrival.")
flags.DEFINE_enum(
    "all_reduce",
    "ring",
    ALGORITHMS,
    "How sums are formed: ring (TensorFlow's own on CPUs), or tree (halving and doubling, whose messages grow with log2).",
)
flags.DEFINE_bool("measure", False, "Measure the compute on one device of this machine; big models take minutes.")
flags.DEFINE_integer("measure_examples", 8, "Of --measure: steps have so many examples, and half as many.")
flags.DEFINE_integer(
    "micro_batch_size", 0, "Of --measure: the examples of a micro-batch; 0 computes steps in one piece."
)
flags.DEFINE_integer("rounds", 3, "Of --measure: the number of timed rounds, of which the least time counts.")
flags.DEFINE_enum(
    "clock",
    "wall",
    ("wall", "cpu"),
    "Of --measure: wall, or cpu for CPU seconds divided by cores: the least that a step can take, for a machine that other "
    "programs use too.",
)
flags.DEFINE_string(
    "precision",
    "float32",
    "The precision, as for finetune, in which --measure computes, or in which what --compute gives was measured. float64 also "
    "doubles the bytes of a gradient.",
)
flags.DEFINE_string(
    "compute",
    None,
    "Instead of --measure: the seconds of an example, a number where there is one model and one strategy; or a JSON file with "
    "a list of objects with model, strategy, seconds_per_example and seconds_per_step, such as scaling.json of another run.",
)
flags.DEFINE_string(
    "out", None, "A folder for scaling.json (seconds, bytes) and scaling.png; by default nothing is written."
)
FILES = ("scaling.json", "scaling.png")


def main() -> int:
    workers, bandwidths = _check_flags()
    cli.import_tensorflow(keras=any(map(cli.needs_keras, F.model)), device="cpu")  # nothing is computed in this process

    from . import plan_scaling_cases as cases
    from . import plan_scaling_output as output

    settings = cases.Settings.from_flags(F)
    found = [case for model in dict.fromkeys(F.model) for case in cases.count_cases(model, F.strategies, settings)]
    if F.measure:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no measurement outlives this process
        try:
            found = _measure(found, settings)
        except harness.BenchmarkError as error:
            print(f"plan_scaling: {error}", file=sys.stderr)
            return cli.FAILED
    else:
        given = cases.read_compute(F.compute, found, settings)
        found = [case.with_compute(each) for case, each in zip(found, given, strict=True)]
    rows = cases.predict(found, settings, workers=workers, links=cases.make_links(bandwidths, F.latency))
    print(output.tables(found, rows, settings))
    if F.out is not None:
        output.write(F.out, found, rows, settings)
    return cli.DONE


def _measure(found: list[Any], settings: Any) -> list[Any]:
    """Measures the compute of each case in a process of its own."""
    from . import plan_scaling_output as output

    done: list[Any] = []
    for case in found:
        about = {"model": case.model, "classes": settings.classes, "image_size": case.image_size, "train": case.train}
        about |= {"precision": settings.precision, "rounds": F.rounds, "clock": F.clock}
        about |= {"examples": F.measure_examples, "micro_batch_size": F.micro_batch_size}
        print(f"measuring {case.name} ...", end="", flush=True)
        done.append(case.with_compute(harness.run_apart("compute:measure", about, what=case.name)))
        print(f" {done[-1].compute.seconds_per_example:.4g} s for an example", flush=True)
        if F.out is not None:
            output.write(F.out, done, None, settings)
    return done


def _check_flags() -> tuple[list[int], list[str]]:
    """Checks what can be checked without TensorFlow; returns the numbers of workers and the bandwidths."""
    from engine import writing
    from engine.errors import InputError, check_range
    from engine.sizes import parse_bandwidth

    limits = {"classes": 1_000_000, "batch_size": 10**9, "worker_batch_size": 10**9, "rounds": 1000}
    for name, most in limits.items():
        check_range(name, F[name].value, 1, most)
    check_range("measure_examples", F.measure_examples, 2, 65536)
    check_range("micro_batch_size", F.micro_batch_size, 0, 65536)
    check_range("latency", F.latency, 0, 60)
    if F.measure == (F.compute is not None):
        raise InputError(
            "measure, compute: expected one of them; --measure times steps on this machine, --compute=FILE.json or "
            "--compute=SECONDS gives what was measured before or elsewhere"
        )
    if F.measure_examples % 2 or (F.micro_batch_size and F.measure_examples // 2 % F.micro_batch_size):
        raise InputError(
            f"measure_examples={F.measure_examples}: expected an even number, half of which is a multiple of "
            f"micro_batch_size={F.micro_batch_size}"
        )
    for word in F.workers:
        if not word.strip().isdecimal() or not 1 <= int(word) <= 1_000_000:
            raise InputError(f"workers={word!r}: expected whole numbers from 1 to 1000000, separated by commas")
    workers = [int(word) for word in F.workers]
    for name, values in (("workers", workers), ("bandwidths", F.bandwidths)):
        if not values or len(set(values)) < len(values):
            raise InputError(f"{name}={','.join(map(str, values))!r}: expected at least one, and none twice")
    for text in F.bandwidths:
        parse_bandwidth(text, name="bandwidths")
    if F.out is not None:
        writing.check_folder(F.out)
        cli.hold_folder(F.out, ours=FILES.__contains__)
    return workers, list(F.bandwidths)


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
