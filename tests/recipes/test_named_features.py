"""Columns of features are found by their names wherever a run meets a file again: evaluated, and resumed."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine import FinetuneConfig, finetune
from engine.errors import InputError
from engine.recipes.evaluate import evaluate
from engine.recipes.evaluation_data import Examples, open_examples
from engine.recipes.reopen import OpenedRun, open_run
from engine.recipes.resuming import resume_config
from engine.runs import picture, records

NAMES = ("height", "width", "depth")
MLP = """
import tensorflow as tf

class Layer(tf.Module):
    def __init__(self, size, outputs):
        self.kernel = tf.Variable(tf.random.stateless_normal([size, outputs], [1, 2]))
        self.bias = tf.Variable(tf.zeros([outputs]))
    def __call__(self, x):
        return x @ self.kernel + self.bias

class Mlp(tf.Module):
    def __init__(self, shape, outputs):
        self.body, self.head = Layer(shape[0], 3), Layer(3, outputs)
    def __call__(self, x, training=False):
        return self.head(tf.nn.relu(self.body(x)))
"""


@pytest.fixture(autouse=True)
def own(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    from tensorflow.python.framework import config  # there is no public way to switch it off again

    monkeypatch.setattr(records, "draw_curves", lambda *_: None)
    monkeypatch.setattr(picture, "draw", lambda *_: None)
    (tmp_path / "named_mlp.py").write_text(MLP)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    config.disable_op_determinism()


def write(name: str, *, order: tuple[int, ...] = (0, 1, 2), names: tuple[str, ...] = NAMES, seed: int = 0) -> None:
    """A table of the same rows, with its columns in an order, and perhaps under other names."""
    rows = np.random.default_rng(seed).normal(size=(16, 3)) * [1, 10, 100]
    lines = [",".join([*(names[at] for at in order), "label", "split"])]
    for number, row in enumerate(rows):
        cells = [f"{row[at]:.3f}" for at in order]
        lines.append(",".join([*cells, "yes" if row[0] > 0 else "no", "val" if number % 4 == 3 else "train"]))
    pathlib.Path(name).write_text("\n".join(lines))


def trained(data: str, **fields: Any) -> OpenedRun:
    given: dict[str, Any] = {
        "model": "py:named_mlp:Mlp",
        "weights": "none",
        "train": "@all",
        "batch_size": 8,
        "steps": 2,
    }
    assert finetune(FinetuneConfig(**given | {"cache": "off", "out": "run", "data": data} | fields)).code == 0
    return open_run("run")


def opened_examples(opened: OpenedRun, data: str) -> tuple[Examples, list[str]]:
    said: list[str] = []
    return open_examples(opened, data=data, say=said.append), said


def loss(opened: OpenedRun, examples: Examples) -> float:
    return float(evaluate(opened, examples).figures["loss"])


@pytest.mark.parametrize("scaled", ["", ",standardise=a.csv"])
def test_other_data_with_the_columns_in_another_order_are_put_into_that_of_the_run(scaled: str) -> None:
    write("a.csv")
    write("b.csv", order=(2, 0, 1))
    opened = trained(f"table:a.csv{scaled}")
    assert opened.data.features == NAMES
    assert json.loads(pathlib.Path("run/flags.json").read_text())["data"]["features"] == list(NAMES)
    examples, said = opened_examples(opened, f"table:b.csv{scaled}")
    assert examples.own, "the same content by the same names"
    assert loss(opened, examples) == opened.run["final"]["eval_loss"]
    told = "data:    the columns of features stand in another order; they are put into that of the run: height, width and depth"
    assert told in said
    write("c.csv", seed=1)
    write("d.csv", seed=1, order=(1, 2, 0))
    in_order, silent = opened_examples(opened, f"table:c.csv{scaled}")
    mixed, said = opened_examples(opened, f"csv:d.csv,features=*{scaled}")
    assert told in said
    assert told not in silent
    assert loss(opened, mixed) == loss(opened, in_order)


def test_columns_of_other_names_are_refused_and_listed_also_where_the_values_are_the_same() -> None:
    write("a.csv")
    opened = trained("table:a.csv")
    write("b.csv", names=("height", "widht", "age"))
    message = (
        r"data=table:b\.csv: the model was trained on the features height, width and depth; these data lack width and depth and "
        "also have widht and age; nearest: widht. Rename the columns of the file, or name those to read"
    )
    with pytest.raises(InputError, match=message):
        open_examples(opened, data="table:b.csv")
    write("more.csv", names=("height", "width", "depth"))
    text = pathlib.Path("more.csv").read_text().splitlines()
    more = [f"{'id' if number == 0 else number},{line}" for number, line in enumerate(text)]
    pathlib.Path("more.csv").write_text("\n".join(more))
    with pytest.raises(InputError, match="these data also have id"):
        open_examples(opened, data="table:more.csv")
    examples, _ = opened_examples(opened, "table:more.csv,features=width,features=height,features=depth")
    assert examples.own
    write("a.csv", names=("height", "depth", "width"))  # the run's own file, with its names exchanged
    examples, said = opened_examples(opened, "table:a.csv")
    assert not examples.own
    assert any("stand in another order" in line for line in said)


def test_a_run_that_did_not_record_names_goes_on_by_position_and_says_so() -> None:
    write("a.csv")
    opened = trained("table:a.csv")
    file = pathlib.Path("run/flags.json")
    found = json.loads(file.read_text())
    del found["data"]["features"]
    file.write_text(json.dumps(found))
    old = open_run("run")
    assert old.data.features is None
    write("b.csv", names=("a", "b", "c"), seed=1)
    write("c.csv", seed=1)
    examples, said = opened_examples(old, "table:b.csv")
    assert (
        "data:    the names of the features that the model was trained on are not recorded, so these are taken in their order: a, "
        "b and c" in said
    )
    assert loss(old, examples) == loss(opened, opened_examples(opened, "table:c.csv")[0])
    _, said = opened_examples(old, "table:a.csv")
    assert not any("not recorded" in line for line in said), "the run's own data are known by their content"


def test_arrays_without_names_go_by_position_and_count() -> None:
    write("a.csv")
    opened = trained("table:a.csv")
    x, y = np.random.default_rng(3).normal(size=(6, 3)), np.arange(6) % 2
    np.savez("b.npz", x=x, y=y)
    _, said = opened_examples(opened, "table:b.npz")
    assert any("so those of table:b.npz are taken in their order" in line for line in said)
    np.savez("c.npz", x=x[:, :2], y=y)
    with pytest.raises(InputError, match=r"an example has shape \[2\], but the model takes \[3\]"):
        open_examples(opened, data="table:c.npz")


def test_a_resume_finds_the_columns_by_their_names() -> None:
    write("a.csv")
    trained("table:a.csv", steps=4, checkpoint_every=2)
    whole = np.load("run/trained.npz")["head/kernel"]
    (pathlib.Path("run") / "checkpoints/step-00000004.npz").unlink()  # as if it had been killed after 2 steps
    for folder in ("reordered", "renamed", "exchanged"):
        shutil.copytree("run", folder)
    write("a.csv", order=(1, 0, 2))
    result = finetune(resume_config("reordered", {}))
    np.testing.assert_array_equal(np.load("reordered/trained.npz")["head/kernel"], whole)
    assert open_run("reordered").data.features == NAMES
    assert result.code == 0
    write("a.csv", names=("height", "width", "age"))
    with pytest.raises(InputError, match="these data lack depth and also have age"):
        finetune(resume_config("renamed", {}))
    write("a.csv", names=("width", "height", "depth"))  # the same numbers, of which two are called otherwise now
    with pytest.raises(InputError, match="so the data have changed"):
        finetune(resume_config("exchanged", {}))


def test_numbers_beside_images_are_found_by_their_names_too(own: pathlib.Path) -> None:
    from engine.data.features import order_columns
    from engine.data.source import open_data

    for number in range(4):
        Image.fromarray(np.full((4, 4, 3), 60 * number, np.uint8)).save(f"{number}.png")
    for name, columns in (("a", ("x", "z")), ("b", ("z", "x"))):
        lines = [f"path,label,{','.join(columns)},split"]
        for number in range(4):
            values = {"x": f"{number}.5", "z": f"-{number}.25"}
            row = [
                f"{number}.png",
                "ab"[number % 2],
                *(values[each] for each in columns),
                ("train", "val")[number // 2],
            ]
            lines.append(",".join(row))
        pathlib.Path(f"{name}.csv").write_text("\n".join(lines))
    spec = "csv:{}.csv,image=path,features=?"
    one, other = (open_data(spec.format(n), image_size=4, say=lambda line: None) for n in "ab")
    assert one.fingerprint() != other.fingerprint()
    said: list[str] = []
    assert order_columns(other, ("x", "z"), say=said.append).fingerprint() == one.fingerprint()
    assert len(said) == 1


def test_the_runs_own_file_may_have_become_one_that_is_only_evaluated() -> None:
    write("a.csv")
    opened = trained("table:a.csv")
    text = pathlib.Path("a.csv").read_text()
    pathlib.Path("a.csv").write_text(text.replace(",train", ",test").replace(",val", ",test"))
    examples, _ = opened_examples(opened, "table:a.csv")
    assert (examples.own, examples.name, len(examples.part)) == (False, "test", 16)
    with pytest.raises(InputError, match="no row is of the part train"):
        open_examples(opened)


@pytest.mark.parametrize("scaled", [",standardise", ",standardise=a.csv"])
def test_features_are_not_scaled_for_a_model_of_unscaled_ones(scaled: str) -> None:
    write("a.csv")
    opened = trained("table:a.csv")
    write("c.csv", seed=1)
    with pytest.raises(
        InputError, match=r"was trained on features as they are \(table:a.csv\); give --data without standardise"
    ):
        open_examples(opened, data=f"table:c.csv{scaled}")
