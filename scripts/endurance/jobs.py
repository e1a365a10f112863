"""The jobs that are killed and run out of disk: what is run, what it must leave behind, and what it must not."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Folder = pathlib.Path

_TRAIN = [
    "--model=vit:mini,depth=1,dropout=0.1",
    "--weights=none",
    "--phase=name=head train=@head steps=4",
    "--phase=name=upper train='@head @blocks[-1:] !@norm' steps=5 learning_rate=5e-4",
    "--optimizer=adamw",
    "--batch_size=8",
    "--eval_every=3",
    "--checkpoint_every=2",
    "--keep=2",
    "--keep_best",
    "--log_every=1",
]


@dataclass(frozen=True)
class Job:
    """A job.

    Attributes:
        program: the program, a module of ``scripts``.
        words: its flags, for the folder with shared inputs and the folder of the job.
        resume: further flags of a run that goes on.
        result: what the job has made, as values that two runs must have in common; raises if it is not whole.
        before: puts older results there that a killed job must not have lost; None if there is nothing to lose.
    """

    program: str
    words: Callable[[Folder, Folder], Sequence[str]]
    resume: Sequence[str]
    result: Callable[[Folder], Any]
    before: Callable[[Folder, Folder], object] | None = None
    seconds: float = 120.0


def write_inputs(shared: Folder) -> None:
    """Writes what the jobs read. It starts TensorFlow."""
    import tensorflow as tf

    from engine.files import write_npz
    from engine.models import build_network
    from engine.selection.variables import name_variables

    rng = np.random.default_rng(3)
    images = {
        name: rng.integers(0, 256, (count, 8, 8, 1)).astype(np.uint8) for name, count in (("train", 24), ("test", 9))
    }
    labels = {name: (np.arange(len(array)) % 3).astype(np.uint8) for name, array in images.items()}
    arrays: dict[str, Any] = {f"{n}_images": a for n, a in images.items()} | {
        f"{n}_labels": a for n, a in labels.items()
    }
    np.savez(shared / "data.npz", **arrays)
    for name, seed in (("new", 1), ("old", 2)):
        tf.random.set_seed(seed)
        network = build_network("vit:mini,depth=1,classes=3", image_size=(8, 8), channels=1, seed=seed)
        write_npz(shared / f"{name}.npz", ((e.path, e.variable.numpy()) for e in name_variables(network)))
    (shared / "same.rules").write_text("(.+) <- \\1\n", encoding="utf-8")


def _arrays(path: Folder) -> dict[str, str]:
    from engine.porting.readers.source import open_tensors

    from .outcomes import sums

    with open_tensors(path) as source:
        return sums((name, source.read(name)) for name in source.names())


def _result_of_run(folder: Folder) -> Any:
    out = folder / "out"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row.pop("examples_per_second", None)  # the only thing that time decides
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    files = ["trained.npz", *sorted(f"checkpoints/{path.name}" for path in (out / "checkpoints").glob("*.npz"))]
    kept = {key: run[key] for key in ("phases", "steps", "final", "freeze_proof", "exit")}
    return {"files": {name: _arrays(out / name) for name in files}, "metrics": rows, "run": kept}


def _result_of_study(folder: Folder) -> Any:
    rows = json.loads((folder / "out/results.json").read_text(encoding="utf-8"))
    return [[row[key] for key in ("strategy", "runner", "final_loss", "freeze_verified", "failed")] for row in rows]


def _copy_old(name: str) -> Callable[[Folder, Folder], object]:
    def copy(shared: Folder, folder: Folder) -> None:
        for path in (shared / name).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())

    return copy


def _finetune(*more: str) -> Callable[[Folder, Folder], Sequence[str]]:
    def words(shared: Folder, folder: Folder) -> list[str]:
        if "--cache=require" in more:  # below the frost line nothing must draw, and it must be worth a cache
            train = [word.replace(",dropout=0.1", "") for word in _TRAIN if "name=upper" not in word]
            cache = [f"--cache_dir={folder}/cache"]
        else:
            train, cache = _TRAIN, ["--cache=off"]
        return [*train, *more, *cache, f"--data=npz:{shared}/data.npz", f"--out={folder}/out"]

    return words


_TARGET = ["--target=vit:mini,depth=1,classes=3", "--image_size=8", "--channels=1"]


def port_words(shared: Folder, folder: Folder, which: str = "new") -> list[str]:
    return [f"--source={shared}/{which}.npz", *_TARGET, f"--out={folder}/ported.npz"]


def reverse_words(shared: Folder, folder: Folder, which: str = "new") -> list[str]:
    rules = f"--rules={shared}/same.rules"
    return ["--reverse", f"--source={shared}/{which}.npz", *_TARGET, rules, f"--out={folder}/model"]


def _study(shared: Folder, folder: Folder) -> list[str]:
    few = ["--strategies=head", "--runners=engine", "--repeats=2", "--steps=3", "--eval_every=3", "--batch_size=8"]
    return ["--model=vit:mini,depth=1", "--weights=none", *few, f"--data=npz:{shared}/data.npz", f"--out={folder}/out"]


JOBS = {
    "finetune": Job("finetune", _finetune(), ["--resume"], _result_of_run),
    "cache": Job("finetune", _finetune("--cache=require"), ["--resume"], _result_of_run),
    "port": Job("port_checkpoint", port_words, [], lambda f: _arrays(f / "ported.npz"), _copy_old("ported")),
    "reverse": Job("port_checkpoint", reverse_words, [], lambda f: _arrays(f / "model"), _copy_old("reversed")),
    "study": Job("benchmark_freezing", _study, [], _result_of_study, seconds=300.0),
}


def list_leftovers(folder: Folder) -> list[str]:
    """Unfinished files of processes that have ended."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith(".tmp"))
