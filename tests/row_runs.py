"""Runs on texts and on tables of numbers: tiny data, tiny networks, and nothing drawn."""

from __future__ import annotations

import pathlib
from typing import Any

import made_bert
import numpy as np
import pytest

from engine import FinetuneConfig, finetune
from engine.recipes.finetune import RunResult
from engine.runs import picture, records

NAMES = ("height", "width", "depth")
NETWORKS = """
import tensorflow as tf

class Layer(tf.Module):
    def __init__(self, size, outputs):
        self.kernel = tf.Variable(tf.random.stateless_normal([size, outputs], [1, 2]))
    def __call__(self, x):
        return x @ self.kernel

class Mlp(tf.Module):
    def __init__(self, shape, outputs):
        self.body, self.head = Layer(shape[0], 3), Layer(3, outputs)
    def __call__(self, x, training=False):
        return self.head(tf.nn.tanh(self.body(x)))

class Two(tf.Module):
    def __init__(self, shape, outputs):
        self.body, self.head = Layer(shape[0], 3), {name: Layer(3, count) for name, count in outputs.items()}
    def __call__(self, x):
        x = tf.nn.tanh(self.body(x))
        return {name: layer(x) for name, layer in self.head.items()}
"""
ON_TABLES = {"model": "py:row_networks:Mlp", "weights": "none", "train": "@all", "nan": "zero"}


def train(out: pathlib.Path, **fields: Any) -> RunResult:
    """A run of a few steps; its module of networks lies beside it."""
    given: dict[str, Any] = {"batch_size": 8, "steps": 4, "cache": "off", "deterministic": False, "learning_rate": 0.05}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "draw_curves", lambda *_: None)
        patch.setattr(picture, "draw", lambda *_: None)
        result = finetune(FinetuneConfig(**given | fields, out=str(out)))
    assert result.code == 0
    return result


def on_texts(place: pathlib.Path, data: str, *, out: pathlib.Path, **fields: Any) -> RunResult:
    """A run of the tiny BERT in ``place``, with its folder and reviews in train.tsv and val.tsv."""
    if not (place / "tiny").exists():
        made_bert.make_folder(place / "tiny")
        for part, count, seed in (("train", 32, 0), ("val", 20, 1)):
            made_bert.write_reviews(place / f"reviews/{part}.tsv", count, seed)
    given: dict[str, Any] = {"model": f"bert:{place}/tiny", "train": "@head", "max_tokens": 12}
    return train(out, data=data, **given | fields)


def write_pairs(folder: pathlib.Path) -> None:
    """The same reviews as pairs, under names that are not usual."""
    folder.mkdir()
    for part, count, seed in (("train", 32, 0), ("val", 20, 1)):
        rows = [
            f"{label}\t{text}\tgood film {n}" for n, (text, label) in enumerate(made_bert.make_reviews(count, seed))
        ]
        (folder / f"{part}.tsv").write_text("\n".join(["gold\tpremise\tclaim", *rows]))


def write_table(file: pathlib.Path, *, seed: int = 3) -> pathlib.Path:
    """24 rows of three features on different scales, one of them missing; every third row is for evaluation."""
    rows = np.random.default_rng(seed).normal(size=(24, 3)) * [1, 10, 100] + [0, 5, -50]
    lines = [",".join([*NAMES, "label", "split"])]
    for number, row in enumerate(rows):
        cells = ["" if number == 5 and at == 1 else f"{row[at]:.3f}" for at in range(3)]
        lines.append(",".join([*cells, "yes" if row[0] > 0 else "no", "val" if number % 3 == 2 else "train"]))
    file.write_text("\n".join(lines))
    return file
