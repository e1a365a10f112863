"""predict: what a run trained, used on files; what cannot be read or done is named, and nothing is half written."""

from __future__ import annotations

import csv
import io
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engine.data import Normalise
from engine.recipes.finetune import RunResult
from engine.recipes.predictor import PredictionError, Predictor
from engine.recipes.reopen import open_run

Answers = list[tuple[int, str, str]]
RunEach = Callable[..., Answers]


@pytest.fixture
def images(photos: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of new photos: sub-folders, numbers without zeros, a text file, a hidden file and two damaged images."""
    folder = tmp_path / "new"
    (folder / "more").mkdir(parents=True)
    for number, name in ((1, "bag"), (2, "boot"), (10, "trouser")):
        shutil.copy(photos / f"test/{name}/{name}1.png", folder / f"img{number}.png")
    shutil.copy(photos / "test/boot/boot2.png", folder / "more/a.png")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("hidden")
    (folder / "img3.png").write_bytes((folder / "img1.png").read_bytes()[:60])
    (folder / "img4.jpg").write_text("a text with the name of an image")
    return folder


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_a_folder_is_predicted_and_what_cannot_be_read_is_named_and_counted(
    run_each: RunEach, photo_run: RunResult, images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run, out = f"--run={photo_run.out}", tmp_path / "found"
    asked = [
        [run, f"--images={images}", "--top=2"],
        [run, f"--images={images}", f"--out={out}.jsonl"],
        [run, f"--images={images}/**/*.png", "--top=9", f"--out={out}.csv", "--batch_size=2"],
        [run, f"--images={images}", f"--features={out}.npz"],
        [run, f"--images={images}/img1.png", "--format=jsonl"],
        [run, f"--images={images}/img1.png", "--format=jsonl", "--noema"],
    ]
    printed, lines, pattern, features, single, last = run_each("scripts.predict", asked)

    assert printed[0] == lines[0] == pattern[0] == features[0] == 2  # something could not be read
    head, *body = rows(printed[1])
    assert head == ["file", "class", "probability", "class_2", "probability_2"]
    good = [images / name for name in ("img1.png", "img2.png", "img10.png", "more/a.png")]
    assert [row[0] for row in body] == [str(path) for path in good]
    predictor = open_run(photo_run.out, averages=True).predictor()  # the run evaluated its averages
    stacked = np.stack([predictor.read_file(path) for path in good])
    wanted = predictor(stacked)
    for row, probabilities in zip(body, wanted, strict=True):
        first, second = np.argsort(-probabilities)[:2]
        assert (row[1], row[3]) == (predictor.class_names[first], predictor.class_names[second])  # type: ignore[index]
        assert [float(row[2]), float(row[4])] == pytest.approx(probabilities[[first, second]], rel=1e-5)
    for err in (printed[2], lines[2]):
        assert f"cannot be read: {images}/img3.png: a damaged or truncated PNG" in err
        assert (
            f"cannot be read: {images}/img4.jpg: not a JPEG, PNG, GIF or BMP; the file begins with 'a text with" in err
        )
        assert "2 of 6 files could not be read; the others were predicted" in err
    assert "images: left out .txt files: notes.txt" in printed[2]
    assert "images: left out hidden files: .hidden.png" in printed[2]
    assert (
        f"weights: averages in {photo_run.out}/checkpoints/step-00000012.npz, after 12 steps; --noema takes"
        in printed[2]
    )

    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [each["file"] for each in found] == [row[0] for row in body]
    assert [each["predictions"][0]["class"] for each in found] == [row[1] for row in body]
    assert f"written: {out}.jsonl (4 images)" in lines[1]
    table = rows((tmp_path / "found.csv").read_text())
    assert len(table) == 1 + 4
    assert table[0][-2:] == ["class_3", "probability_3"]  # three classes, although nine were asked for
    assert sum(map(float, table[1][2::2])) == pytest.approx(1.0, abs=1e-5)
    assert [row[1] for row in table[1:]] == [row[1] for row in body]

    with np.load(f"{out}.npz") as npz:
        assert npz["files"].tolist() == [str(path) for path in good]
        head = {variable.name.split(":")[0]: variable.numpy() for variable in predictor.network.head.variables}
        logits = npz["features"] @ head["kernel"] + head["bias"]
    assert np.argmax(logits, axis=1).tolist() == np.argmax(wanted, axis=1).tolist()
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), wanted, rtol=1e-4)
    assert single[0] == 0
    answer = json.loads(single[1])
    assert answer["file"] == f"{images}/img1.png"
    assert f"weights: {photo_run.out}/checkpoints/step-00000012.npz, after 12 steps\n" in last[2]
    plain = photo_run.predictor()(stacked[:1])[0]
    assert json.loads(last[1])["predictions"][0]["probability"] == pytest.approx(plain.max(), rel=1e-5)
    assert answer["predictions"] != json.loads(last[1])["predictions"]


def test_a_model_without_a_run_gives_the_same_answers(
    run_each: RunEach, photo_run: RunResult, photos: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    weights = photo_run.out / "checkpoints/step-00000012.npz"
    plain = tmp_path / "plain.npz"
    with np.load(weights) as npz:
        np.savez(
            plain,
            **{
                name: npz[name]
                for name in npz.files
                if not name.startswith("optimizer/") and not name.endswith(".json")
            },
        )
    names = tmp_path / "names.txt"
    names.write_text("bag\nboot\ntrouser\n")
    common = ["--model=cnn:mini", "--image_size=16", f"--images={photos}/test/*/*1.png"]
    asked = [
        [f"--run={photo_run.out}", "--noema", common[2]],
        [*common, f"--weights={weights}"],
        [*common, f"--weights={plain}", f"--classes={names}"],
        [*common, f"--weights={plain}", "--classes=3"],
        [*common, f"--weights={plain}"],
        [*common, f"--weights={weights}", "--classes=boot,bag,trouser"],
        [*common, "--weights=none", "--classes=3"],
        [*common, f"--weights={plain}", "--classes=cat,dog"],
    ]
    run, named, listed, numbered, unnamed, other, random, few = run_each("scripts.predict", asked)
    assert run[0] == named[0] == listed[0] == numbered[0] == 0, (listed, numbered)
    assert run[1] == named[1] == listed[1]
    numbers = {"bag": "0", "boot": "1", "trouser": "2"}
    assert [row[1] for row in rows(numbered[1])[1:]] == [numbers[row[1]] for row in rows(run[1])[1:]]
    assert [code for code, _, _ in (unnamed, other, random, few)] == [2, 2, 2, 2]
    assert "--classes names them in their order, or gives their number" in unnamed[2]
    assert "has a head for bag, boot and trouser, in this order; leave out --classes" in other[2]
    assert "variables have the values that they were built with, because no weights were loaded" in random[2]
    assert "head/kernel" in few[2]


def test_bad_input_is_answered_with_exit_code_2_and_nothing_is_written(
    run_each: RunEach, photo_run: RunResult, images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run, new = f"--run={photo_run.out}", f"--images={images}"
    (tmp_path / "empty").mkdir()
    kept = tmp_path / "kept.csv"
    kept.write_text("before")
    before = {path.name: path.read_bytes() for path in photo_run.out.glob("*.*")}
    wanted: dict[tuple[str, ...], str] = {
        (new,): "run, model: expected one of them",
        (run, "--model=cnn:mini", new): "run, model: expected one of them",
        (run, "--classes=3", new): "classes=3: the run says it; leave it out",
        ("--model=cnn:mini", "--checkpoint=last", new): "checkpoint=last: it needs --run",
        (run,): "images, texts, table: expected one of --images (a folder, a file or a pattern",
        (run, f"--images={tmp_path}/nwe"): "there is no such file or folder; nearest: new",
        (run, f"--images={tmp_path}/empty"): "there are no image files (.jpg,",
        (run, f"--images={tmp_path}/*.tiff"): "no file matches this pattern",
        (
            run,
            f"--images={images}/notes.txt",
            f"--out={kept}",
        ): "none of the 1 files can be read as an image; nothing was",
        (run, f"--images={images}/notes.txt", f"--features={tmp_path}/f.npz"): "none of the 1 files can be read",
        (run, new, "--top=0"): "top=0: expected a number of at least 1",
        (run, new, "--batch_size=0"): "batch_size=0: expected a number of at least 1",
        (run, new, f"--out={tmp_path}/found.txt"): "expected a name that ends in .csv or .jsonl",
        (run, new, f"--out={tmp_path}/nowhere/found.csv"): "is not a folder",
        (run, new, f"--out={kept}", "--format=jsonl"): "format=jsonl: the suffix of --out=",
        (run, new, f"--features={tmp_path}/f.npy"): "expected a name that ends in .npz",
        (run, new, f"--features={photo_run.out}/trained.npz"): "it is a file of a run, and is not overwritten",
        (run, new, f"--out={photo_run.out}/metrics.jsonl"): "it is a file of a run, and is not overwritten",
        (run, new, f"--features={tmp_path}/f.npz", "--top=1"): "--features writes features and no predictions",
        (run, new, "--features_below=@head"): "it needs --features=FILE.npz",
        (run, new, f"--features={tmp_path}/f.npz", "--features_below=@all"): "computes nothing from its inputs without",
        (run, new, f"--features={tmp_path}/f.npz", "--features_below=haed"): "nearest: head",
        (run, new, "--checkpoint=best"): "the run kept none (--keep_best of finetune); the checkpoints of",
        (f"--run={tmp_path}/nowhere", new): "there is no such folder",
    }
    answers = run_each("scripts.predict", [list(words) for words in wanted])
    for (words, said), (code, out, err) in zip(wanted.items(), answers, strict=True):
        assert (code, said in err) == (2, True), (words, code, out, err)
        assert "file," not in out
    assert kept.read_text() == "before"
    assert {path.name: path.read_bytes() for path in photo_run.out.glob("*.*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "kept.csv", "new"]


@pytest.mark.parametrize(
    ("loss", "outputs", "names", "top", "table", "line"),
    [
        ("softmax", [0.0, 1.0], ("cat", "dog"), None, "class,probability|dog,0.7310586", [["dog", 0.7310586]]),
        ("softmax", [0.0, -900.0, 0.0], ("cat", "dog"), 2, "class,probability,class_2,probability_2|cat,0.5,2,0.5", [["cat", 0.5], ["2", 0.5]]),
        ("sigmoid", [np.log(3.0)], None, 2, "class,probability,class_2,probability_2|1,0.75,0,0.25", [["1", 0.75], ["0", 0.25]]),
        ("sigmoid", [-800.0], ("ripe",), None, "class,probability|not ripe,1.0", [["not ripe", 1.0]]),
        ("sigmoid", [0.0, 800.0], ("a", "b"), None, "a,b|0.5,1.0", {"a": 0.5, "b": 1.0}),
        ("sigmoid", [0.0, 800.0], ("a", "b"), 1, "class,probability|b,1.0", [["b", 1.0]]),
        ("mse", [2.5], None, None, "value|2.5", {"value": 2.5}),
        ("mse", [2.5, -1.0], ("x", "y"), None, "x,y|2.5,-1.0", {"x": 2.5, "y": -1.0}),
    ],
)  # fmt: skip
def test_what_outputs_mean_decides_what_is_told(
    loss: str, outputs: list[float], names: tuple[str, ...] | None, top: int | None, table: str, line: Any
) -> None:
    from scripts.predict_output import Lines

    predictor = Predictor(network=None, normalise=Normalise(), image_shape=(4, 4, 1), loss=loss, class_names=names)
    values, files = predictor.probabilities(np.array([outputs])), [pathlib.Path("a, b.png")]
    found = Lines(predictor, "csv", top=top, outputs=len(outputs))
    head, row = table.split("|")
    assert found.heading() == f"file,{head}\n"
    assert found.format(files, values) == f'"a, b.png",{row}\n'
    found = Lines(predictor, "jsonl", top=top, outputs=len(outputs))
    assert found.heading() == ""
    said = json.loads(found.format(files, values))
    assert said.pop("file") == "a, b.png"
    (key,) = said
    assert key == {"mse": "values"}.get(loss, "predictions" if isinstance(line, list) else "probabilities")
    told = [list(each.values()) for each in said[key]] if isinstance(line, list) else said[key]
    assert told == line


def test_outputs_that_are_not_finite_are_refused_and_not_told() -> None:
    predictor = Predictor(network=None, normalise=Normalise(), image_shape=(4, 4, 1), loss="softmax", class_names=None)
    with pytest.raises(PredictionError, match="not finite for 1 of 2 examples, such as number 2"):
        predictor.probabilities(np.array([[0.0, 1.0], [np.nan, 0.0]]))
