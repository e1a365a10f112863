"""predict of runs with several outputs: one line for each image, with what every output says of it."""

from __future__ import annotations

import csv
import io
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import two_tasks
from PIL import Image

from engine import FinetuneConfig, finetune
from engine.data import Normalise
from engine.errors import InputError
from engine.recipes.predictor import Predictor
from engine.recipes.reopen import open_run
from engine.runs import picture, records

RunEach = Callable[..., list[tuple[int, str, str]]]


def train(out: pathlib.Path, source: Any, **fields: Any) -> pathlib.Path:
    given: dict[str, Any] = {"weights": "none", "train": "@head", "steps": 3, "batch_size": 4, "cache": "off"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "draw_curves", lambda *_: None)
        patch.setattr(picture, "draw", lambda *_: None)
        patch.setattr("engine.data.open_data", lambda *_, **__: source)
        result = finetune(FinetuneConfig(**given | {"deterministic": False} | fields, out=str(out)))
    assert result.code == 0
    return result.out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run with the outputs species and age, one whose network takes two images, and four images."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "tasks", two_tasks.make_source(), model="py:two_tasks:factory", loss=two_tasks.LOSS)
    train(folder / "pairs", two_tasks.make_pairs(), model="py:two_tasks:siamese")
    (folder / "new").mkdir()
    for number, image in enumerate(two_tasks.make_arrays(4, seed=5)["image"]):
        Image.fromarray(image[..., 0]).save(folder / f"new/{number}.png")
    (folder / "new/9.png").write_text("not an image")
    return folder


def test_each_image_gets_a_line_with_all_outputs(
    run_each: RunEach, runs: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parents[1]))
    run, new = f"--run={runs}/tasks", f"--images={runs}/new"
    table, lines, features, pairs = run_each(
        "scripts.predict",
        [
            [run, new, "--top=2", f"--out={tmp_path}/found.csv"],
            [run, new, "--format=jsonl"],
            [run, new, f"--features={tmp_path}/f.npz"],
            [f"--run={runs}/pairs", new],
        ],
    )
    assert (table[0], lines[0], features[0], pairs[0]) == (2, 2, 2, 2)
    assert f"cannot be read: {runs}/new/9.png: not a JPEG" in table[2]
    opened = open_run(runs / "tasks")
    images = two_tasks.make_arrays(4, seed=5)["image"]
    species, age = (opened.for_task(name).predictor()(images) for name in ("species", "age"))
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    names = ["file", "species", "species_probability", "species_2", "species_probability_2", "age"]
    assert [list(row) for row in rows] == [names] * 4
    found = [json.loads(line) for line in lines[1].splitlines()]
    for row, told, chances, value in zip(rows, found, species, age, strict=True):
        first, second = np.argsort(-chances)[:2]
        assert (row["species"], row["species_2"]) == (two_tasks.CLASSES[first], two_tasks.CLASSES[second])
        assert float(row["species_probability"]) == pytest.approx(chances[first], rel=1e-5)
        assert float(row["species_probability_2"]) == pytest.approx(chances[second], rel=1e-5)
        assert float(row["age"]) == pytest.approx(value[0], rel=1e-5, abs=1e-6)
        assert told["file"] == row["file"]
        assert list(told["outputs"]) == ["species", "age"]
        assert told["outputs"]["species"]["predictions"][0]["class"] == row["species"]
        assert list(told["outputs"]["age"]["values"].values()) == pytest.approx([value[0]], rel=1e-5, abs=1e-6)
    with np.load(tmp_path / "f.npz") as npz:
        heads = {entry.path: entry.variable.numpy() for entry in opened.variables}
        np.testing.assert_allclose(npz["features"] @ heads["head/age/kernel"], age, rtol=1e-4, atol=1e-6)
    assert "it takes several inputs for an example (left and right), and predict gives it one image alone" in pairs[2]
    assert "evaluate takes such data, by --data=..., and in Python open_run(RUN).network takes a batch" in pairs[2]


def test_columns_are_called_after_their_outputs_and_never_twice() -> None:
    from scripts.predict_output import TaskLines

    def predictor(loss: str, *names: str) -> Predictor:
        return Predictor(network=None, normalise=Normalise(), image_shape=(4, 4, 1), loss=loss, class_names=names)

    one = {
        "kind": predictor("softmax", "a", "b"),
        "tags": predictor("sigmoid", "x", "y"),
        "at": predictor("mse", "u", "v"),
    }
    lines = TaskLines(one, "csv", top=None, outputs=[2, 2, 2])
    assert lines.heading() == "file,kind,kind_probability,tags_x,tags_y,at_u,at_v\n"
    values = [np.array([[0.0, 0.0]]), np.array([[0.0, 800.0]]), np.array([[1.0, 2.0]])]
    assert next(csv.reader(io.StringIO(lines.format([pathlib.Path("i.png")], values)))) == [
        "i.png", "a", "0.5", "0.5", "1.0", "1.0", "2.0"
    ]  # fmt: skip
    doubled = {"kind": predictor("softmax", "a", "b"), "kind_probability": predictor("mse", "v")}
    with pytest.raises(InputError, match=r"two columns would be called 'kind_probability'.*--out=FILE\.jsonl"):
        TaskLines(doubled, "csv", top=None, outputs=[2, 1]).heading()
    assert TaskLines(doubled, "jsonl", top=None, outputs=[2, 1]).heading() == ""
