"""predict of runs on texts and on tables: the bits of the evaluation, a line for each row, and what is refused."""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import made_bert
import numpy as np
import pytest
import row_runs
from tensorflow.python.framework import config  # there is no public way to switch op determinism off again

from engine.data.batch_names import join_inputs
from engine.recipes.evaluate import evaluate
from engine.recipes.evaluation_data import open_examples
from engine.recipes.finetune import RunResult
from engine.recipes.joined import join_outputs, open_predictors
from engine.recipes.reopen import OpenedRun, open_run

pytest.importorskip("tokenizers", reason="the extra text (package tokenizers) is not installed")
RunEach = Callable[..., list[tuple[int, str, str]]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """Runs on texts, on pairs of texts and on a table, of one and of two outputs; each with its data."""
    place = tmp_path_factory.mktemp("rows")
    table = row_runs.write_table(place / "table.csv")
    row_runs.write_pairs(place / "pairs")
    (place / "row_networks.py").write_text(row_runs.NETWORKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        row_runs.on_texts(place, f"text:{place}/reviews", out=place / "texts")
        row_runs.on_texts(place, f"text:{place}/pairs,text=premise,text_b=claim,label=gold", out=place / "both")
        row_runs.train(place / "vectors", data=f"table:{table},standardise", **row_runs.ON_TABLES)
        two = {"model": "py:row_networks:Two", "loss": "label=softmax, height=mse"}
        columns = "features=width,features=depth,label=label,label=height:number"
        row_runs.train(place / "tasks", data=f"csv:{table},{columns}", **row_runs.ON_TABLES | two)
        yield place
    config.disable_op_determinism()


def evaluated(opened: OpenedRun) -> tuple[np.ndarray, np.ndarray, float]:
    """The probabilities and labels of the run's evaluation part, in its batches, and its accuracy."""
    examples = open_examples(opened)
    compute = join_outputs(opened, predictors := open_predictors(opened, inputs=examples.part.input_specs))
    size, part = opened.data.eval_size, examples.part
    starts = range(0, len(part), size)
    parts = [part.read(np.arange(at, min(at + size, len(part)))) for at in starts]
    outputs = np.concatenate(
        [compute(join_inputs({k: _tensor(v) for k, v in each.items()}))[0].numpy() for each in parts]
    )
    return predictors[""].probabilities(outputs), part.labels, float(evaluate(opened, examples).figures["accuracy"])


def _tensor(value: np.ndarray) -> Any:
    import tensorflow as tf

    return tf.constant(value)


def only_val(file: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """The rows of the part val, without the columns of labels and parts."""
    with file.open() as opened, out.open("w") as written:
        rows = list(csv.DictReader(opened))
        writer = csv.DictWriter(written, [*row_runs.NAMES[::-1], "id"])
        writer.writeheader()
        for row in rows:
            if row["split"] == "val":
                writer.writerow({name: row[name] for name in row_runs.NAMES} | {"id": "7"})
    return out


@pytest.mark.parametrize("kind", ["texts", "both", "vectors"])
def test_predictions_are_those_of_the_evaluation_to_the_bit(
    kind: str, place: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    opened = open_run(place / kind)
    wanted, labels, accuracy = evaluated(opened)
    predictor = opened.predictor()
    if kind == "vectors":
        with (place / "table.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "val"]
        examples: Any = np.array([[float(row[name] or "nan") for name in row_runs.NAMES] for row in rows])
        assert np.isnan(examples).any()
    else:
        told = made_bert.make_reviews(20, seed=1)
        examples = (
            [text for text, _ in told] if kind == "texts" else [(t, f"good film {n}") for n, (t, _) in enumerate(told)]
        )
    found = predictor(examples)
    np.testing.assert_array_equal(found, wanted)
    assert (found.argmax(axis=1) == labels).mean() == accuracy
    assert predictor(examples[:0]).shape == (0, 2)


def test_new_texts_get_a_line_each(run_each: RunEach, place: pathlib.Path, tmp_path: pathlib.Path) -> None:
    reviews = made_bert.make_reviews(20, seed=1)
    lines = tmp_path / "new.txt"
    lines.write_text("".join(f"{text}\n" for text, _ in reviews))
    (tmp_path / "d").mkdir()
    for number, (text, _) in enumerate(reviews[:3]):
        (tmp_path / f"d/{number + 8}.txt").write_text(text)
    run, pairs = f"--run={place}/texts", f"--run={place}/both"
    asked = [
        [run, f"--texts={lines}", f"--out={tmp_path}/a.csv", "--top=2"],
        [run, f"--texts={place}/reviews/val.tsv", "--format=jsonl"],
        [run, f"--texts={tmp_path}/d", "--batch_size=2"],
        [pairs, f"--texts={place}/pairs/val.tsv", "--format=jsonl"],
        [pairs, f"--texts={place}/pairs/val.tsv", "--text_columns=premise,claim", f"--features={tmp_path}/f.npz"],
        [f"--model=bert:{place}/tiny", f"--weights={place}/texts/checkpoints/step-00000004.npz", f"--texts={lines}"],
    ]
    table, objects, files, both, features, bare = run_each("scripts.predict", asked)
    assert [code for code, *_ in (table, objects, files, both, features, bare)] == [0] * 6, table[2] + both[2] + bare[2]
    opened = open_run(place / "texts")
    wanted = opened.predictor()([text for text, _ in reviews])
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["line", "class", "probability", "class_2", "probability_2"]
    assert [int(row["line"]) for row in rows] == list(range(1, 21))
    for row, told, chances in zip(rows, map(json.loads, objects[1].splitlines()), wanted, strict=True):
        best = int(chances.argmax())
        assert row["class"] == ("bad", "good")[best]
        assert row["probability"] == str(float(f"{chances[best]:.7g}"))
        assert told == {
            "line": int(row["line"]) + 1,
            "predictions": [{"class": row["class"], "probability": float(row["probability"])}],
        }
    assert "written: " in table[1]
    assert "a.csv (20 texts)" in table[1]
    body = list(csv.DictReader(files[1].splitlines()))
    assert [pathlib.Path(row["file"]).name for row in body] == ["8.txt", "9.txt", "10.txt"]
    assert [row["class"] for row in body] == [row["class"] for row in rows[:3]]
    assert "20 texts, features [8] each" in features[1].replace("(", "")
    with np.load(tmp_path / "f.npz") as npz:
        assert npz["lines"].tolist() == list(range(2, 22))
        heads = {entry.path: entry.variable.numpy() for entry in open_run(place / "both").variables}
        logits = npz["features"] @ heads["head/kernel"] + heads["head/bias"]
    for told, row in zip(map(json.loads, both[1].splitlines()), logits, strict=True):
        assert told["predictions"][0]["class"] == ("bad", "good")[int(row.argmax())]
    assert len(bare[1].splitlines()) == 21


def test_new_rows_of_a_table_get_a_line_each(
    run_each: RunEach, place: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(place))
    new, run = only_val(place / "table.csv", tmp_path / "new.csv"), f"--run={place}/vectors"
    with new.open() as file:
        x = np.array([[float(row[name] or "nan") for name in row_runs.NAMES] for row in csv.DictReader(file)])
    np.savez(tmp_path / "new.npz", x=x, y=np.zeros(len(x)))
    asked = [
        [run, f"--table={new}", "--format=jsonl"],
        [run, f"--table={tmp_path}/new.npz", f"--out={tmp_path}/b.csv"],
        [run, f"--table={new}", f"--features={tmp_path}/f.npz"],
        [f"--run={place}/tasks", f"--table={new}"],
    ]
    objects, arrays, features, tasks = run_each("scripts.predict", asked)
    assert [objects[0], arrays[0], features[0], tasks[0]] == [0] * 4, objects[2] + arrays[2] + features[2] + tasks[2]
    wanted, _, _ = evaluated(open_run(place / "vectors"))
    told = [json.loads(line) for line in objects[1].splitlines()]
    assert [each["line"] for each in told] == list(range(2, len(x) + 2))
    assert [each["predictions"][0]["probability"] for each in told] == [float(f"{row.max():.7g}") for row in wanted]
    assert "table: not used: id" in objects[2]
    with (tmp_path / "b.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(len(x)))
    assert [float(row["probability"]) for row in rows] == [float(f"{row.max():.7g}") for row in wanted]
    assert (
        "table: x has no names, so its columns are taken in the order of the run: height, width and depth" in arrays[1]
    )
    with np.load(tmp_path / "f.npz") as npz:
        assert npz["features"].shape == (len(x), 3)
    several = open_run(place / "tasks")
    label, height = (several.for_task(name).predictor()(x[:, 1:]) for name in ("label", "height"))
    rows = list(csv.DictReader(tasks[1].splitlines()))
    assert list(rows[0]) == ["line", "label", "label_probability", "height"]
    assert [float(row["label_probability"]) for row in rows] == [float(f"{row.max():.7g}") for row in label]
    assert [float(row["height"]) for row in rows] == [float(f"{row[0]:.7g}") for row in height]


def test_what_a_run_is_not_for_is_refused_with_the_right_flag(
    run_each: RunEach,
    place: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    photo_run: RunResult,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(place))
    lines, table = tmp_path / "a.txt", place / "table.csv"
    lines.write_text("good film\n")
    photos = next(pathlib.Path(photo_run.out).parent.rglob("*.png"))
    texts, vectors = f"--run={place}/texts", f"--run={place}/vectors"
    cases = {
        (texts, f"--images={photos}"): "its model takes texts, and --images gives it images; use --texts=FILE",
        (texts, f"--table={table}"): "its model takes texts, and --table gives it vectors of numbers; use --texts=FILE",
        (vectors, f"--texts={lines}"): "takes vectors of numbers, and --texts gives it texts; use --table=FILE",
        (
            f"--run={photo_run.out}",
            f"--texts={lines}",
        ): "its model takes images, and --texts gives it texts; use --images=FOLDER",
        (texts,): "images, texts, table: expected one of --images",
        (texts, f"--texts={lines}", f"--table={table}"): "texts, table: expected one of --images",
        (vectors, f"--table={table}", "--text_columns=a"): "text_columns=a: it is about --texts; leave it out",
        (texts, f"--texts={lines}", "--text_columns=a"): "a.txt has texts and no columns; leave it out",
        (texts, f"--texts={lines}x"): "there is no such file; nearest: a.txt",
        (texts, f"--texts={lines}", f"--out={lines}"): "expected a name that ends in .csv or .jsonl",
        (vectors, f"--table={table}", f"--out={table}"): "it is one of the files that are read",
        (
            f"--run={place}/both",
            f"--texts={lines}",
        ): "the model takes two texts for an example, and a .txt file has one",
        (texts, f"--texts={table}"): "text=text: there is no such column",
    }
    for (code, out, err), message in zip(run_each("scripts.predict", list(cases)), cases.values(), strict=True):
        assert code == 2, out
        assert message in err


def test_a_card_names_the_command_that_works(place: pathlib.Path) -> None:
    for kind, said in (("texts", "predict texts"), ("both", "predict texts"), ("vectors", "predict rows of a table")):
        card, flag = (place / kind / "card.md").read_text(), "--table" if kind == "vectors" else "--texts"
        assert (
            f"{said[0].upper()}{said[1:]}:\n\n    frostline predict --run={place}/{kind} {flag}=FILE --out=found.csv"
            in card
        )
        assert f"frostline export --run={place}/{kind} --format=savedmodel" in card
        assert "--images" not in card
