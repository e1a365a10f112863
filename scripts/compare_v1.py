"""The engine and TF1's three ways to freeze, side by side: same weights, same data, same optimizer.

Each runner (engine, v1_trainable, v1_stop_gradient, v1_var_list) trains in a process of its own. compare.json and
the table say what each lists, keeps slots for and would lose, what it costs, and whether all end with the
same weights. --show=leaks also demonstrates what each method lets through when it is used as TF1 programs use it.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tempfile
import time
from typing import Any

from absl import flags

from engine import text
from engine.host import quantiles
from scripts import cli
from scripts.baselines import harness

F = flags.FLAGS

flags.DEFINE_string(
    "model", "vit:mini", "vit:mini, vit:SIZE/PATCH with options (as in finetune) or cnn:mini: what the TF1 path has."
)
flags.DEFINE_string(
    "weights", "auto", "auto (those that ship with the model, if any), none (random) or a file that finetune takes."
)
flags.DEFINE_string("data", "fashion_mnist_mini", "As in finetune: fashion_mnist_mini, idx:DIR, npz:FILE, folder:DIR.")
flags.DEFINE_enum("loss", "softmax", ["softmax", "sigmoid", "mse"], "The loss, by name.")
flags.DEFINE_enum("optimizer", "adam", ["sgd", "momentum", "adam"], "By the tf.compat.v1.train optimizer's rule.")
flags.DEFINE_string("train", None, "Filter: what trains (unless given, the model's upper part and the head).")
flags.DEFINE_float("learning_rate", 1e-3, "Constant.")
flags.DEFINE_integer("batch_size", 64, "Examples per step (one optimizer update).")
flags.DEFINE_integer("steps", 20, "Steps, at least 2 (the first is not timed: it compiles).")
flags.DEFINE_integer("micro_batches", 1, "Parts in which a step is computed, one after the other.")
flags.DEFINE_string(
    "precision", "float32", "float32, mixed_bfloat16, mixed_float16 or float64 (then all agree to 1e-10)."
)
flags.DEFINE_integer("seed", 0, "Of the initial weights, the order of the data and dropout.")
flags.DEFINE_enum("show", None, ["leaks"], "leaks: also show, and measure, what each method lets through.")
flags.DEFINE_string("out", None, "compare.json: a file ending in .json, or a folder for it (unless given, none).")
flags.DEFINE_enum(
    "child", None, ["train", "leaks"], "Internal: be a subprocess; reads a job in JSON from standard input."
)
flags.DEFINE_string("runner", None, "Internal: which runner the subprocess is.")

# float32 first step, as contract E3 has it; a longer run in float32 grows apart by rounding alone
_FIRST_LOSS = 1e-6


def main() -> int:
    if F.child:
        return _child()
    from engine.files import write_json
    from scripts.baselines import v1 as runners

    _check_flags()
    out = _out()
    with tempfile.TemporaryDirectory(prefix="compare_v1-") as folder:
        job = _job(pathlib.Path(folder), runners)
        rows = []
        for number, runner in enumerate(runners.RUNNERS, start=1):
            print(f"[{number}/{len(runners.RUNNERS)}] {runner}", flush=True)
            words = ["scripts.compare_v1", "--child=train", f"--runner={runner}"]
            rows.append({"runner": runner, **harness.start(words, job, runner)})
        differences = _differences(pathlib.Path(folder), rows)
        leaks = []
        if F.show == "leaks":
            print("[leaks] what each method lets through", flush=True)
            leaks = harness.start(["scripts.compare_v1", "--child=leaks"], job, "leaks")["leaks"]
    v1 = [row for row in rows if row["runner"] != "engine"]
    identical = all(r["losses"] == v1[0]["losses"] and r["weights_sha256"] == v1[0]["weights_sha256"] for r in v1)
    found = {
        "model": F.model,
        "steps": F.steps,
        "optimizer": F.optimizer,
        "rows": rows,
        "identical": identical,
        "leaks": leaks,
        "differences": differences,
    }
    _print(found)
    if out is not None:
        write_json(out, found)
        print(f"\nwritten: {out}")
    first = max(row["first_loss"] for row in differences)
    if not identical or (F.precision in ("float32", "float64") and not first <= _FIRST_LOSS):
        return cli.FAILED
    return cli.DONE


def _check_flags() -> None:
    from engine.errors import InputError

    for name, low, high in (("batch_size", 1, 65536), ("steps", 2, 1_000_000), ("micro_batches", 1, F.batch_size)):
        if not low <= F[name].value <= high:
            raise InputError(f"{name}={F[name].value}: it lies between {low} and {high}")
    if not 0 < F.learning_rate < float("inf"):
        raise InputError(f"learning_rate={F.learning_rate}: it must be above 0")
    if not 0 <= F.seed < 2**31:
        raise InputError(f"seed={F.seed}: it lies between 0 and {2**31 - 1}")


def _out() -> pathlib.Path | None:
    """Where compare.json goes; its folder is made."""
    from engine.errors import InputError

    if F.out is None:
        return None
    path = pathlib.Path(F.out)
    path = path if path.suffix == ".json" else path / "compare.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out={F.out!r}: the folder cannot be made ({error})") from None
    cli.check_out(str(path))
    return path


def _job(folder: pathlib.Path, runners: Any) -> Any:
    """Builds the model once, with its weights, and writes them for all; every complaint comes here."""
    from engine import porting
    from engine.errors import InputError
    from engine.files import write_npz

    job = runners.Job(
        model=F.model,
        data=F.data,
        loss=F.loss,
        train=F.train or "@all",
        optimizer=F.optimizer,
        precision=F.precision,
        weights=str(folder / "weights.npz"),
        images=None,
        batch_size=F.batch_size,
        micro_batches=F.micro_batches,
        steps=F.steps,
        learning_rate=F.learning_rate,
        seed=F.seed,
    )
    setting = runners.Setting(job)
    model = setting.model
    if F.train is None:
        job = dataclasses.replace(job, train=f"{model.upper} @head")
        setting = runners.Setting(job)
        model = setting.model
    if F.weights == "none" or (F.weights == "auto" and model.shipped_weights is None):
        print("weights: random")
    else:
        file = model.shipped_weights if F.weights == "auto" else pathlib.Path(F.weights)
        try:
            ledger = porting.load(model.network, file)
        except porting.PortError as error:
            hint = f" They are for {model.shipped_for}; --weights=none starts from random ones." * (F.weights == "auto")
            raise InputError(f"weights={F.weights!r}: {error}{hint}") from None
        if not model.images_chosen:
            job = dataclasses.replace(job, images=ledger.images)
        print(f"weights: {file.name}, {ledger.summary()}")
    write_npz(job.weights, ((e.path, e.variable.numpy()) for e in setting.selection.variables))
    print(setting.selection.table(), end="\n\n")
    return job


# ---- a subprocess


def _child() -> int:
    import tensorflow as tf

    from engine.files import write_npz
    from scripts.baselines import v1 as runners

    tf.keras.utils.set_random_seed(F.seed)
    tf.config.experimental.enable_op_determinism()
    job = runners.Job.read()
    setting = runners.Setting(job)
    if F.child == "leaks":
        return _show_leaks(setting)
    runner = runners.make(F.runner, setting)
    losses, seconds = [], []
    for number in range(job.steps):
        batch = setting.batches.at(number)
        start = time.perf_counter()
        losses.append(runner.train(batch))
        seconds.append(time.perf_counter() - start)
    write_npz(pathlib.Path(job.weights).parent / f"{F.runner}.npz", runner.weights().items())
    facts = runner.facts()
    runner.close()
    step = quantiles([1e3 * value for value in seconds[1:]])
    print(json.dumps({"losses": losses, **facts, "step_ms": step, "peak_rss_bytes": harness.peak_rss_bytes()}))
    return cli.DONE


def _show_leaks(setting: Any) -> int:
    import numpy as np

    from compat_v1.training import leaks

    by_path = setting.selection.variables.by_path()
    for path, value in setting.weights():
        by_path[path].variable.assign(value)
    batch = {name: np.asarray(value) for name, value in setting.batches.at(0).items()}
    seeds = batch.pop("seeds")
    batch.pop("index")
    subject = leaks.Subject(setting.network, setting.selection, batch, seeds, setting.job.loss)
    print(json.dumps({"leaks": [leak._asdict() for leak in leaks.show(subject)]}))
    return cli.DONE


# ---- what came out


def _differences(folder: pathlib.Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each TF1 runner against the engine: relative difference of the first loss, and of all weights at the end."""
    import numpy as np

    engine, found = rows[0], []
    for row in rows[1:]:
        squares = np.zeros(2)
        with np.load(folder / "engine.npz") as one, np.load(folder / f"{row['runner']}.npz") as other:
            for path in one.files:
                a, b = one[path].astype(np.float64), other[path].astype(np.float64)
                squares += np.sum((a - b) ** 2), np.sum(a**2)
        found.append(
            {
                "runner": row["runner"],
                "first_loss": abs(row["losses"][0] - engine["losses"][0]) / abs(engine["losses"][0]),
                "weights": float(np.sqrt(squares[0] / squares[1])),
            }
        )
    return found


def _print(found: dict[str, Any]) -> None:
    head = ("runner", "first loss", "last loss", "trainable", "listed", "slots", "saver loses", "backward ops",
            "step ms", "peak MiB", "weights")  # fmt: skip
    table = [head]
    for row in found["rows"]:
        table.append(
            (
                row["runner"],
                f"{row['losses'][0]:.6f}",
                f"{row['losses'][-1]:.6f}",
                *(
                    str(len(row[k]))
                    for k in ("trainable_collection", "in_compute_gradients", "slots", "saver_would_lose")
                ),
                str(row["backward_ops"]),
                f"{row['step_ms']['median']:.1f}",
                f"{row['peak_rss_bytes'] / 2**20:.0f}",
                row["weights_sha256"][:8],
            )
        )
    print("\n" + text.table(table, right=range(1, len(head))))
    print(f"\nthe three TF1 methods are {'' if found['identical'] else 'NOT '}bit-identical in losses and weights")
    for row in found["differences"]:
        print(
            f"{row['runner']} to engine: first loss {row['first_loss']:.1e}, weights at the end {row['weights']:.1e} (relative)"
        )
    print("step times are of separate processes; scripts.benchmark_v1 measures them in turn")
    if found["leaks"]:
        print("\nleaks (largest change of an element; for missing slots, how many)")
        for leak in found["leaks"]:
            print(
                f"  {leak['size']:.2g}  {len(leak['moved'])} variables  {leak['name']}: {', '.join(leak['moved'][:2])}"
            )


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
