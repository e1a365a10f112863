"""What a run leaves behind and reads again: checkpoints, cached features, flags, metrics, run.json; and rule files."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from . import aware
from .formats import Digests, Folder, Format
from .outcomes import sums

_KEY = "5a" * 32


def _write_checkpoint(folder: Folder) -> None:
    import tensorflow as tf

    from engine.selection.variables import name_variables
    from engine.training import checkpoint

    model = {"stem/kernel": tf.Variable(tf.reshape(tf.range(12.0), [3, 4])), "head/bias": tf.Variable([1.0, 2.0])}
    slots = [("optimizer/head/bias/momentum", np.array([0.5, 0.25], np.float32))]
    checkpoint.save(folder, 3, variables=name_variables(model), arrays=lambda: slots, state={"loop": {"step": 3}})


def _read_checkpoint(folder: Folder) -> Digests:
    from engine.training import checkpoint

    (file,) = folder.iterdir()
    found = checkpoint.read(file)
    return sums([*found.arrays.items(), ("state", json.dumps([found.step, found.state], sort_keys=True).encode())])


def _shards(folder: Folder) -> Any:
    from engine.feature_cache.shards import Column, Shards

    columns = [Column((6,), np.dtype(np.float32)), Column((), np.dtype(np.int64))]
    return Shards(folder, _KEY, columns, rows=10, each=4)


def _write_shards(folder: Folder) -> None:
    shards = _shards(folder)
    for shard in range(len(shards)):
        rows = shards.rows_of(shard)
        shards.write(shard, [np.full((rows, 6), shard + 0.5, np.float32), np.arange(rows) + 4 * shard])


def _read_shards(folder: Folder) -> Digests:
    shards = _shards(folder)
    return sums((f"row {row}", b"".join(a.tobytes() for a in shards.read(np.array([row])))) for row in range(10))


def _write_flags(folder: Folder) -> None:
    from engine.runs.saved_flags import write_flags

    write_flags(folder, {"model": "vit:mini", "train": "@head", "steps": 12, "phase": ["name=a steps=3"], "ema": None})


def _read_flags(folder: Folder) -> Digests:
    from engine.runs.saved_flags import read_flags

    return sums((name, json.dumps(value).encode()) for name, value in (read_flags(folder) or {}).items())


def _write_rules(folder: Folder) -> None:
    (folder / "model.rules").write_text(
        "# a comment\nstem/kernel <- conv.weight | transpose(2, 3, 1, 0)\nblocks/(\\d+)/k <- layer.\\1.w\nskip .*/Adam.*\n",
        encoding="utf-8",
    )


def _read_rules(folder: Folder) -> Digests:
    from engine.porting.rules.language import read_rules

    rules = read_rules(folder / "model.rules").rules
    texts = [re.sub(r" at 0x[0-9a-f]+", "", repr(rule)) for rule in rules]  # transforms are functions
    return sums((f"rule {number}", text.encode()) for number, text in enumerate(texts))


def _write_metrics(folder: Folder) -> None:
    rows = [{"kind": "train", "step": step, "phase": "head", "loss": 1.0 / step} for step in range(1, 9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _read_metrics(folder: Folder) -> Digests:
    from engine.runs.records import Metrics

    found = Metrics(folder / "metrics.jsonl", keep_to_step=8)
    # A line that is damaged may be lost: the run wrote it for people, and a killed run leaves a half line.
    lines = {row["step"]: json.dumps(row, sort_keys=True) for row in found.rows}
    return sums((f"line {number}", lines.get(number, "").encode()) for number in range(1, 9))


FORMATS = (
    Format("checkpoint", True, _write_checkpoint, _read_checkpoint, (aware.edit_zip_directory,)),
    Format("cache", True, _write_shards, _read_shards),
    Format("flags.json", False, _write_flags, _read_flags, (aware.edit_json,), counted=False),
    Format("rules", False, _write_rules, _read_rules, counted=False),
    Format("metrics.jsonl", False, _write_metrics, _read_metrics, counted=False),
)
