"""Time and memory of porting a large checkpoint, against TensorFlow's own reading and writing of it.

A checkpoint is made (random float32, some large tensors and many small ones, with Adam's slots). Then, each in a process
of its own and in turn: `port` streams it into an .npz (checked, slots too), `back` writes it to a checkpoint again
through the rules, `tensorflow` reads it with tf.train.load_checkpoint and writes it with SaveV2. Memory is the peak above
what the process had before it began.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import flags

from engine.host import quantiles
from scripts import cli
from scripts.baselines import harness

F = flags.FLAGS

RUNNERS = ("port", "back", "tensorflow")

flags.DEFINE_string("size", "4GB", "Of the made checkpoint, in bytes or with a unit.")
flags.DEFINE_string("largest", "512MB", "Of its largest tensor.")
flags.DEFINE_integer("repeats", 3, "Runs of each, in turn.")
flags.DEFINE_string(
    "folder", None, "Where the files are made, and removed again (unless given, the system's temporary folder)."
)
flags.DEFINE_string("out", None, "A .json file for the results (seconds, bytes); unless given, none.")
flags.DEFINE_enum("child", None, RUNNERS, "Internal: be a subprocess.")
flags.DEFINE_string("at", None, "Internal: the folder that the subprocess works in.")


def main() -> int:
    from engine import sizes
    from engine.errors import InputError
    from engine.files import write_json

    if F.child:
        return _child(pathlib.Path(F.at))
    total = sizes.parse_bytes(F.size, name="size")
    largest = sizes.parse_bytes(F.largest, name="largest")
    if not 1 <= F.repeats <= 100 or not (1 << 20) <= largest <= total:
        raise InputError(
            f"size={F.size}, largest={F.largest}, repeats={F.repeats}: 1MiB <= largest <= size, repeats 1 to 100"
        )
    cli.check_out(F.out)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in RUNNERS}
    with tempfile.TemporaryDirectory(prefix="benchmark_porting-", dir=F.folder) as folder:
        print(f"making a checkpoint of {total / 1e9:.2f} GB", flush=True)
        subprocess.run([sys.executable, "-c", _MAKE, folder, str(total), str(largest)], check=True, env=_quiet())
        for number in range(F.repeats):
            for name in RUNNERS if number % 2 == 0 else RUNNERS[::-1]:
                found[name].append(_start(name, folder))
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
    if F.out:
        write_json(F.out, rows)
        print(f"\nwritten: {F.out}")
    return cli.DONE


# A process of its own, so that its memory is gone; names as TF1 writes them.
_MAKE = """
import sys
import numpy as np
import tensorflow as tf
folder, total, largest = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
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
tf.raw_ops.SaveV2(prefix=folder + "/model", tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
"""
_RULES = r"""
(.*)/kernel <- \1/weights
"""


def _quiet() -> dict[str, str]:
    return os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"}


def _start(name: str, folder: str) -> dict[str, float]:
    words = [sys.executable, "-m", "scripts.benchmark_porting", f"--child={name}", f"--at={folder}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=_quiet())
    if done.returncode:
        raise harness.BenchmarkError(f"{name} failed: {' '.join(done.stderr.split())[-300:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _child(folder: pathlib.Path) -> int:
    import tensorflow as tf

    tf.constant(0)
    work = {"port": _port, "back": _back, "tensorflow": _tensorflow}[F.child]
    prepared = _prepare(folder) if F.child != "tensorflow" else None
    idle = harness.peak_rss_bytes()
    start = time.perf_counter()
    work(folder, prepared)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_bytes": harness.peak_rss_bytes() - idle}))
    for file in folder.iterdir():
        if not file.name.startswith("model"):
            file.unlink()
    return cli.DONE


def _prepare(folder: pathlib.Path) -> Any:
    """The target: a variable for every one of the checkpoint, without memory (engine.models.abstract)."""
    import tensorflow as tf

    from compat_v1.checkpoints.families import families
    from compat_v1.checkpoints.reader import open_source
    from engine.models.abstract import outline
    from engine.selection.variables import name_variables

    with open_source(folder / "model") as source, outline():
        return name_variables(
            {
                family.name.replace("/weights", "/kernel"): tf.Variable(
                    lambda s=family.shape: tf.zeros(s), shape=family.shape
                )
                for family in families(source).variables
            }
        )


def _port(folder: pathlib.Path, variables: Any) -> None:
    from compat_v1.checkpoints.reader import open_source
    from compat_v1.porting import port
    from engine.porting.rules import language

    with open_source(folder / "model") as source:
        decided = port.make(port.Weights(source), variables, language.parse(_RULES, name="made"), slots="auto")
        decided.write_npz(folder / "ported.npz")


def _back(folder: pathlib.Path, _variables: Any) -> None:
    """Without a change: all that the rules do not touch, and all that did not change, is copied from the base."""
    from compat_v1.checkpoints.export import export

    export({}, folder / "back", base=folder / "model")


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
