"""The engine and the three ways to freeze in TF1, side by side: same weights, same data, same optimizer.

Each runner (engine, v1_trainable, v1_stop_gradient, v1_var_list) trains in a process of its own. compare.json and the
table show what each lists, keeps slots for and would lose in a checkpoint, what it costs, and whether all end with the
same weights. --show=leaks also demonstrates what each method lets through when it is used as TF1 programs use it.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from typing import Any

from absl import flags

from engine import text

from . import cli
from .baselines import harness

F = flags.FLAGS

_DEFAULTS = {
    "model": "vit:mini", "weights": "auto", "data": "fashion_mnist_mini", "loss": "softmax", "optimizer": "adam",
    "learning_rate": 1e-3, "batch_size": 64, "steps": 20, "micro_batches": 1, "precision": "float32", "seed": 0,
}  # fmt: skip
cli.define_flags(
    __name__,
    {
        "model": "The model: vit:mini, vit:SIZE/PATCH with options (as in finetune) or cnn:mini, which have TF1 forms.",
        "weights": "auto (the weights that ship with the model, if there are any), none (random) or a file that finetune accepts.",
        "data": "The data, as in finetune: fashion_mnist_mini, idx:DIR, npz:FILE, folder:DIR.",
        "loss": "The loss, by name.",
        "optimizer": "The optimizer, with the rule of its tf.compat.v1.train namesake: sgd, momentum, adam, adamw, rmsprop, adagrad, adadelta or ftrl, with options after commas as in finetune, clipping and decays included, such as rmsprop,momentum=0.9,epsilon=1.0 or adam,clip_norm=1,layer_decay=0.75.",
        "train": "The filter of what is trained (by default the upper part of the model and the head).",
        "learning_rate": "The learning rate, constant.",
        "batch_size": "The number of examples per step (one optimizer update).",
        "steps": "The number of steps, at least 2 (the first one compiles and is not timed).",
        "micro_batches": "The number of micro-batches in which a step is computed, one after the other.",
        "precision": "float32, mixed_bfloat16, mixed_float16 or float64 (in which all agree to 1e-10).",
        "seed": "The seed of the initial weights, the order of the data and dropout.",
        "show": "leaks: also demonstrate, and measure, what each method lets through.",
        "out": "Where to write compare.json: a file ending in .json, or a folder (by default nowhere).",
    },
    _DEFAULTS,
    choices={"loss": ["softmax", "sigmoid", "mse"], "show": ["leaks"]},
)

_LIMITS = {"batch_size": (1, 65536), "steps": (2, 1_000_000), "seed": (0, 2**31 - 1)}
# the bound of contract E3 for the first step in float32; longer float32 runs grow apart by rounding alone
_FIRST_LOSS = 1e-6
_LISTS = ("trainable_collection", "in_compute_gradients", "slots", "saver_would_lose")


def main() -> int:
    _check_flags()
    out = _open_out()
    cli.import_tensorflow()
    from engine.files import write_json

    from .baselines import v1 as runners

    with tempfile.TemporaryDirectory(prefix="compare_v1-") as folder:
        job = _build_job(pathlib.Path(folder), runners)
        rows = []
        for number, runner in enumerate(runners.RUNNERS, start=1):
            print(f"[{number}/{len(runners.RUNNERS)}] {runner}", flush=True)
            argument = {"job": job.to_json(), "runner": runner}
            rows.append({"runner": runner} | harness.run_apart("v1:train", argument, what=f"{runner} on {job.train}"))
        differences = _differences(pathlib.Path(folder), rows)
        leaks = []
        if F.show == "leaks":
            print("[leaks] what each method lets through", flush=True)
            leaks = harness.run_apart("v1:measure_leaks", {"job": job.to_json()}, what="measuring leaks")["leaks"]
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
    from engine.errors import InputError, check_range
    from engine.outside_names import is_outside
    from engine.training.optimizers import build_optimizer

    for name, (least, most) in (_LIMITS | {"micro_batches": (1, F.batch_size)}).items():
        check_range(name, F[name].value, least, most)
    if not 0 < F.learning_rate < float("inf"):
        raise InputError(f"learning_rate={F.learning_rate}: expected a number above 0")
    if is_outside(F.optimizer):
        raise InputError(f"optimizer={F.optimizer}: it has no namesake in tf.compat.v1.train; expected one of --help")
    build_optimizer(F.optimizer)


def _open_out() -> pathlib.Path | None:
    """The path of compare.json, whose folder is created and held."""
    if F.out is None:
        return None
    path = pathlib.Path(F.out)
    path = path if path.suffix == ".json" else path / "compare.json"
    cli.hold_folder(str(path.parent), ours=path.name.__eq__)
    cli.check_out(str(path))
    return path


def _build_job(folder: pathlib.Path, runners: Any) -> Any:
    """Builds the model with its weights, and writes these for all runners; all errors in the input appear here."""
    from engine.files import write_npz
    from engine.selection.selection import select

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
    task = runners.Setting(job, load=F.weights).task
    job = dataclasses.replace(job, train=F.train or f"{task.model.upper} @head", images=task.images)
    print(f"weights: {task.weights.text}")
    write_npz(job.weights, ((e.path, e.variable.numpy()) for e in task.variables))
    print(select(task.variables, job.train, statistics=task.model.statistics).table(), end="\n\n")
    return job


# ---- results


def _differences(folder: pathlib.Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The relative differences of each TF1 runner from the engine: of the first loss, and of all weights at the end."""
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
                *(str(len(row[name])) for name in _LISTS),
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
            f"{row['runner']} against engine: the first loss differs by {row['first_loss']:.1e}, the final weights by "
            f"{row['weights']:.1e} (relative)"
        )
    print("step times come from separate processes; benchmark_v1 measures them in turn")
    if found["leaks"]:
        print("\nleaks (the largest change of an element; for missing slots, their number)")
        for leak in found["leaks"]:
            moved = leak["moved"]
            print(f"  {leak['size']:.2g}  {len(moved)} variables  {leak['name']}: {', '.join(moved[:2])}")


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
