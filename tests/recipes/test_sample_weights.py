"""``--sample_weights``: training examples that count more or less, by a file beside the data."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine import FinetuneConfig, Task, finetune
from engine.errors import InputError
from engine.files import Npz
from engine.recipes.evaluate import evaluate
from engine.recipes.evaluation_data import open_examples
from engine.recipes.reopen import open_run
from engine.runs import picture, records

WEIGHTS = [0.5, 3.0, 0.0, 1.0, 2.0, 0.25, 1.5, 4.0, 1.0, 0.75, 0.0, 2.5]


@pytest.fixture(autouse=True)
def _leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from engine.tensorflow_private import disable_op_determinism

    monkeypatch.setattr(records, "draw_curves", lambda *_: None)
    monkeypatch.setattr(picture, "draw", lambda *_: None)
    yield
    disable_op_determinism()


@pytest.fixture
def photos(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The working directory, with a manifest of 12 training and 4 evaluation images, and one that has weights too."""
    monkeypatch.chdir(tmp_path)
    rng, plain, weighted = np.random.default_rng(0), ["image,kind,age,split"], ["image,kind,age,split,weight"]
    for number in range(16):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(f"{number}.png")
        row = f"{number}.png,{'ab'[number % 2]},{number if number % 3 else ''},{'train' if number < 12 else 'val'}"
        plain.append(row)
        weighted.append(f"{row},{WEIGHTS[number] if number < 12 else 1}")
    pathlib.Path("plain.csv").write_text("\n".join(plain))
    pathlib.Path("weighted.csv").write_text("\n".join(weighted))
    pathlib.Path("w.csv").write_text("\n".join(f"{number}.png,{w}" for number, w in enumerate(WEIGHTS)))
    return tmp_path


def config(out: str, **fields: Any) -> FinetuneConfig:
    given: dict[str, Any] = {
        "model": "cnn:mini",
        "weights": "none",
        "train": "@head",
        "image_size": "8",
        "batch_size": 4,
    }
    given |= {"data": "csv:plain.csv,label=kind", "steps": 4, "cache": "off", "out": out, "checkpoint_every": 2}
    return FinetuneConfig(**given | fields)


def values(out: str) -> dict[str, np.ndarray]:
    with Npz(f"{out}/trained.npz") as npz:
        return {name: npz.read(name) for name in npz.names() if npz.dtype(name).kind == "f"}


def assert_same_bits(one: str, other: str) -> None:
    found, expected = values(one), values(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize(
    "fields",
    [
        {"data": "csv:{}.csv,label=kind"},
        {"data": "csv:{}.csv,label=kind", "cache": "require"},
        {
            "data": "csv:{}.csv,label=kind,label=age:number",
            "loss": "kind=softmax, age=mse weight=0.3",
            "micro_batches": 2,
        },
    ],
    ids=["one output", "cached", "two outputs with missing labels"],
)
def test_a_file_of_weights_trains_as_a_column_of_weights_does(photos: pathlib.Path, fields: dict[str, Any]) -> None:
    data = fields.pop("data")
    for name, more in (("weighted", {}), ("plain", {"sample_weights": "w.csv"})):
        assert finetune(config(name, **fields, data=data.format(name), **more)).code == 0
    assert_same_bits("plain", "weighted")
    assert finetune(config("unweighted", **fields, data=data.format("plain"))).code == 0
    assert any((values("unweighted")[name] != value).any() for name, value in values("plain").items())


def test_weights_multiply_those_of_the_data(photos: pathlib.Path) -> None:
    pathlib.Path("two.csv").write_text("\n".join(f"{number}.png,2" for number in range(0, 12, 2)))
    given = {"data": "csv:weighted.csv,label=kind", "sample_weights": "two.csv"}
    result = finetune(config("run", **given))
    expected = [weight * (1 if number % 2 else 2) for number, weight in enumerate(WEIGHTS)]
    np.testing.assert_array_equal(result.task.train_part.columns["weight"], np.float32(expected))
    np.testing.assert_array_equal(result.task.source.train.columns["weight"], np.float32(WEIGHTS))


def test_a_resume_goes_on_with_the_same_weights_only(photos: pathlib.Path) -> None:
    assert finetune(config("whole", sample_weights="w.csv")).code == 0
    for name in ("w.csv", "other.csv"):
        out = f"run of {name}"
        pathlib.Path("now.csv").write_text(pathlib.Path("w.csv").read_text())
        assert finetune(config(out, sample_weights="now.csv")).code == 0
        for late in pathlib.Path(out, "checkpoints").glob("*4.npz"):
            late.unlink()
        if name == "w.csv":
            assert finetune(config(out, sample_weights="now.csv", resume=True)).code == 0
            assert_same_bits(out, "whole")
            continue
        pathlib.Path("now.csv").write_text("0.png,5")
        with pytest.raises(InputError, match=r"--sample_weights \(SHA-256\): '\w+' in the checkpoint, '\w+' now"):
            finetune(config(out, sample_weights="now.csv", resume=True))
        with pytest.raises(InputError, match=r"--sample_weights: .now\.csv. in the checkpoint, None now"):
            finetune(config(out, resume=True))


def test_an_evaluation_needs_no_weights_and_knows_the_data(photos: pathlib.Path) -> None:
    result = finetune(config("run", sample_weights="w.csv"))
    pathlib.Path("w.csv").unlink()
    opened = open_run("run")
    examples = open_examples(opened)
    assert examples.own
    assert evaluate(opened, examples).figures["loss"] == result.run["final"]["eval_loss"]
    assert "weight" not in open_examples(opened, part="train").part.columns


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": "csv:plain.csv,label=kind", "sample_weights": "w.csv"}, "sample_weights=w.csv"),
        ({"data": "csv:weighted.csv,label=kind"}, "the data have weights of examples, or missing labels"),
    ],
)
def test_a_loss_of_a_graph_takes_no_weights(photos: pathlib.Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(
        InputError, match=f"{message}: --loss=graph:loss is computed by the graph, which takes no weights"
    ):
        Task.open(**given, model="cnn:mini", weights=None, loss="graph:loss", image_size=8)
