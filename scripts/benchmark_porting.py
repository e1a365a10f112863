"""Measure the time and memory of porting a large checkpoint, against TensorFlow's own reading and writing.

A synthetic checkpoint is written (random float32, some large tensors and many small ones, with Adam's slots). Then, in
turn and each in a process of its own, `port` streams it into an .npz (checked, with slots), `back` writes that to a
checkpoint again through the rules, and `tensorflow` reads it with tf.train.load_checkpoint and writes it with SaveV2. The
memory is the peak above what the process held before.
"""

from __future__ import annotations

import pathlib
import tempfile
import time
from typing import Any

from absl import flags

from engine.host import peak_rss_bytes, quantiles
from engine.study import child

from . import cli

F = flags.FLAGS

RUNNERS = ("port", "back", "tensorflow")
_RULES = r"""
(.*)/kernel <- \1/weights
"""
_HERE = f"{__package__}.benchmark_porting"

flags.DEFINE_string("size", "4GB", "The size of the checkpoint, in bytes or with a unit.")
flags.DEFINE_string("largest", "512MB", "The size of its largest tensors, in bytes or with a unit.")
flags.DEFINE_integer("repeats", 3, "How many times each is run, in turn.")
flags.DEFINE_string("folder", None, "The folder in which the files are written, temporarily (by default the system's).")
flags.DEFINE_string("out", None, "A .json file for the results (seconds, bytes); by default none is written.")


def main() -> int:
    cli.import_tensorflow()
    from engine import sizes
    from engine.errors import InputError

    total = sizes.parse_bytes(F.size, name="size")
    largest = sizes.parse_bytes(F.largest, name="largest")
    if not 1 <= F.repeats <= 100 or not (1 << 20) <= largest <= total:
        raise InputError(
            f"size={F.size}, largest={F.largest}, repeats={F.repeats}: expected 1MiB <= largest <= size, and repeats from 1 "
            "to 100"
        )
    cli.check_out(F.out)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in RUNNERS}
    with tempfile.TemporaryDirectory(prefix="benchmark_porting-", dir=F.folder) as folder:
        print(f"writing a checkpoint of {total / 1e9:.2f} GB", flush=True)
        child.run_job(f"{_HERE}:write_checkpoint", {"folder": folder, "total": total, "largest": largest})
        for number in range(F.repeats):
            for name in RUNNERS if number % 2 == 0 else RUNNERS[::-1]:
                found[name].append(child.run_job(f"{_HERE}:measure", {"runner": name, "folder": folder}))
                last = found[name][-1]
                print(
                    f"[{number + 1}/{F.repeats}] {name:<10} {last['seconds']:6.1f} s, {last['peak_bytes'] / 1e6:5.0f} MB above idle",
                    flush=True,
                )
    base = [run["seconds"] for run in found["tensorflow"]]
    rows: list[dict[str, Any]] = [
        {
            "runner": name,
            "seconds": quantiles([run["seconds"] for run in runs]),
            "throughput_to_tensorflow": quantiles([b / run["seconds"] for b, run in zip(base, runs, strict=True)]),
            "peak_bytes": max(run["peak_bytes"] for run in runs),
        }
        for name, runs in found.items()
    ]
    print(f"\n{'runner':<12}{'seconds':>9}{'GB/s':>7}  throughput to TensorFlow's   peak above idle, MB")
    for row in rows:
        ratio = row["throughput_to_tensorflow"]
        print(
            f"{row['runner']:<12}{row['seconds']['median']:>9.1f}{total / 1e9 / row['seconds']['median']:>7.2f}  "
            f"{ratio['median']:.2f} ({ratio['p10']:.2f} to {ratio['p90']:.2f}){row['peak_bytes'] / 1e6:>22.0f}"
        )
    cli.write_out(rows)
    return cli.DONE


def write_checkpoint(job: dict[str, Any]) -> None:
    """Writes the synthetic checkpoint, with the names that TF1 gives; in a process whose memory is then gone."""
    import numpy as np
    import tensorflow as tf

    total, largest = job["total"], job["largest"]
    rng = np.random.default_rng(0)
    names, tensors, left, number = [], [], total, 0
    while left > 0:
        size = min(largest if number < 2 else max(4096, min(largest, left) // (1 + number % 7 * 10)), max(left, 4096))
        rows = max(1, size // 4096)
        value = tf.constant(rng.random((rows, 1024), np.float32))
        for end in ("", "/Adam", "/Adam_1") if number % 5 == 2 else ("",):
            names.append(f"block_{number}/weights{end}")
            tensors.append(value)
            left -= rows * 4096
        number += 1
    names += ["beta1_power", "beta2_power"]
    tensors += [tf.constant(np.float32(0.9) ** np.float32(4)), tf.constant(np.float32(0.999) ** np.float32(4))]
    prefix = job["folder"] + "/model"
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)


def measure(job: dict[str, Any]) -> dict[str, float]:
    """Runs one of ``RUNNERS`` in a folder, and removes what it wrote."""
    folder = pathlib.Path(job["folder"])
    work = {"port": _port, "back": _back, "tensorflow": _tensorflow}[job["runner"]]
    prepared = _prepare(folder) if job["runner"] != "tensorflow" else None
    idle = peak_rss_bytes()
    start = time.perf_counter()
    work(folder, prepared)
    seconds, peak = time.perf_counter() - start, peak_rss_bytes() - idle
    for file in folder.iterdir():
        if not file.name.startswith("model"):
            file.unlink()
    return {"seconds": seconds, "peak_bytes": peak}


def _prepare(folder: pathlib.Path) -> Any:
    """The target: a variable for each one in the checkpoint, without memory (engine.models.abstract)."""
    import tensorflow as tf

    from compat_v1.checkpoints.families import group_families
    from compat_v1.checkpoints.reader import open_source
    from engine.models.abstract import abstract_variables
    from engine.selection.variables import name_variables

    with open_source(folder / "model") as source, abstract_variables():
        return name_variables(
            {
                family.name.replace("/weights", "/kernel"): tf.Variable(
                    lambda s=family.shape: tf.zeros(s), shape=family.shape
                )
                for family in group_families(source).variables
            }
        )


def _port(folder: pathlib.Path, variables: Any) -> None:
    from compat_v1.checkpoints.reader import open_source
    from compat_v1.porting import port
    from engine.porting.rules import language

    with open_source(folder / "model") as source:
        decided = port.plan_port(
            port.Weights(source), variables, language.parse_rules(_RULES, name="benchmark"), slots="auto"
        )
        decided.write_npz(folder / "ported.npz")


def _back(folder: pathlib.Path, _variables: Any) -> None:
    """Writes the checkpoint without a change: whatever did not change is copied from the base."""
    from compat_v1.checkpoints.export import export_checkpoint

    export_checkpoint({}, folder / "back", base=folder / "model")


def _tensorflow(folder: pathlib.Path, _variables: Any) -> None:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(folder / "model"))
    names = list(reader.get_variable_to_shape_map())
    tensors = [reader.get_tensor(name) for name in names]
    tf.raw_ops.SaveV2(
        prefix=str(folder / "written"), tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors
    )


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
