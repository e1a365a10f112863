"""predict of runs with a class for each pixel: label images in the size of each photo, drawings, and a table of shares."""

from __future__ import annotations

import csv
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pixel_scenes import SIZE, write_scenes

from engine import FinetuneConfig, finetune
from engine.data.label_images import read_label_image
from engine.recipes.reopen import open_run
from engine.recipes.restored_masks import name_masks, restore_mask
from engine.recipes.run_result import RunResult
from engine.runs import picture, records

RunEach = Callable[..., list[tuple[int, str, str]]]
COLOURS = np.array([[30, 60, 90], [200, 90, 20], [20, 160, 200]], np.uint8)


@pytest.fixture(scope="module")
def pixel_run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("pixels")
    write_scenes(folder / "scenes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "draw_curves", lambda *_: None)
        patch.setattr(picture, "draw", lambda *_: None)
        given: dict[str, Any] = {
            "model": "py:pixel_scenes:pixels,preprocess=tf", "weights": "none", "data": f"folder:{folder / 'scenes'}",
            "image_size": "16", "eval_fraction": 0.4, "train": "@all", "steps": 60, "batch_size": 4,
            "learning_rate": 0.05, "cache": "off", "deterministic": False, "out": str(folder / "run"),
        }  # fmt: skip
        return finetune(FinetuneConfig(**given))


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of the run, for the program."""
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parents[1]))


@pytest.fixture
def images(tmp_path: pathlib.Path) -> pathlib.Path:
    """A wide image of three stripes, its half in a folder, one of the same stem, and a damaged one."""
    folder = tmp_path / "new"
    (folder / "more").mkdir(parents=True)
    stripes = COLOURS[np.repeat([0, 1, 2], 16)][None].repeat(32, axis=0)
    Image.fromarray(stripes).save(folder / "a.png")
    Image.fromarray(stripes).save(folder / "a.bmp")
    Image.fromarray(stripes[:, :32]).save(folder / "more/b.png")
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes()[:60])
    return folder


def test_each_image_gets_a_label_image_of_its_size_a_drawing_and_a_row(
    run_each: RunEach, pixel_run: RunResult, images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run, out = f"--run={pixel_run.out}", tmp_path / "found"
    lines = tmp_path / "other.jsonl"
    one, table, again = run_each(
        "scripts.predict",
        [
            [run, f"--images={images}", f"--out={out}.csv", "--batch_size=2"],
            [run, f"--images={images}/more", f"--out={lines}"],
            [run, f"--images={images}", f"--out={out}.csv"],
        ],
    )
    assert (one[0], table[0], again[0]) == (2, 0, 2)
    assert f"cannot be read: {images}/c.png: a damaged or truncated PNG" in one[2]
    assert f"written: {out}.csv (3 images), and {out}_masks with their label images" in one[1]
    assert f"{out}_masks: it exists, and is never replaced" in again[2]
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    assert list(rows[0]) == ["file", "mask", "lost", "ground", "disc", "sea"]
    assert [row["mask"] for row in rows] == [f"found_masks/labels/{n}.png" for n in ("a.bmp", "a.png", "more/b")]
    predictor = open_run(pixel_run.out).predictor()
    for row in rows:
        file = pathlib.Path(row["file"])
        labels = read_label_image(tmp_path / row["mask"])
        with Image.open(file) as image, Image.open(tmp_path / row["mask"].replace("labels", "drawn")) as drawn:
            assert labels.shape == image.size[::-1]
            assert drawn.size == (3 * image.width, 3 * image.height)
        chances = predictor(predictor.read_file(file)[None])[0]
        assert (labels == restore_mask(file, chances, predictor)).all()
        known = labels[labels != 255]
        assert float(row["lost"]) == pytest.approx(1 - known.size / labels.size, rel=1e-6)
        shares = [float(row[name]) for name in ("ground", "disc", "sea")]
        assert shares == pytest.approx([(known == number).mean() for number in range(3)], rel=1e-6)
    wide = read_label_image(tmp_path / rows[0]["mask"])
    assert (wide[:, :8] == 255).all()  # 48x32 covers 16x16: 8 pixels at either end are cropped
    assert (wide[:, 10:15] == 0).all()
    assert (wide[:, 18:30] == 1).all()
    assert (wide[:, 33:40] == 2).all()
    with Image.open(tmp_path / "found_masks/colours.png") as legend:
        assert legend.size[0] > 100
    told = json.loads(lines.read_text())
    assert told["mask"] == "other_masks/labels/b.png"
    assert set(told["shares"]) == {"ground", "disc", "sea"}
    assert told["lost"] == 0.0
    assert sum(told["shares"].values()) == pytest.approx(1, abs=1e-6)


def test_what_masks_need_is_asked_for_and_nothing_is_half_written(
    run_each: RunEach, pixel_run: RunResult, images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run, new = f"--run={pixel_run.out}", f"--images={images}"
    frame = Image.new("P", (20, 20))
    frame.save(tmp_path / "part.gif")
    data = bytearray((tmp_path / "part.gif").read_bytes())
    data[6:10] = (40).to_bytes(2, "little") * 2  # a screen that the first frame does not fill
    (tmp_path / "part.gif").write_bytes(data)
    before = sorted(path.name for path in tmp_path.iterdir())
    asked = {
        (run, new): "out: run=",
        (run, new, "--format=csv"): "--out=FILE.csv writes a table, and the folder FILE_masks beside it",
        (run, new, f"--out={tmp_path}/m.csv", "--top=2"): "the share of every class is told; leave it out",
        (run, f"--images={images}/c.png", f"--out={tmp_path}/m.csv"): "none of the 1 files can be read as an image",
        (
            run,
            f"--images={tmp_path}/part.gif",
            f"--out={tmp_path}/m.csv",
        ): "the first frame of the GIF does not fill it",
    }
    for (words, said), (code, _, err) in zip(
        asked.items(), run_each("scripts.predict", [list(words) for words in asked]), strict=True
    ):
        assert (code, said in err) == (2, True), (words, err)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_padded_run_loses_nothing(
    run_each: RunEach, pixel_run: RunResult, images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(pixel_run.out, tmp_path / "padded")
    flags = tmp_path / "padded/flags.json"
    kept = json.loads(flags.read_text())
    kept["flags"]["image_fit"] = "pad"
    flags.write_text(json.dumps(kept))
    (found,) = run_each(
        "scripts.predict", [[f"--run={tmp_path}/padded", f"--images={images}/a.png", f"--out={tmp_path}/f.csv"]]
    )
    assert found[0] == 0, found
    labels = read_label_image(tmp_path / "f_masks/labels/a.png")
    for number in range(3):
        assert (labels[:, 16 * number + 3 : 16 * number + 13] == number).all()
    assert SIZE == 16


def test_no_label_image_has_the_name_of_a_folder_of_others(
    run_each: RunEach, pixel_run: RunResult, images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.move(images / "more", images / "a.png.png")
    (images / "c.png").unlink()
    (found,) = run_each(
        "scripts.predict", [[f"--run={pixel_run.out}", f"--images={images}", f"--out={tmp_path}/f.csv"]]
    )
    assert found[0] == 0, found
    rows = list(csv.DictReader((tmp_path / "f.csv").open()))
    told = {pathlib.Path(row["file"]).relative_to(images).as_posix(): row["mask"] for row in rows}
    assert told == {
        "a.bmp": "f_masks/labels/a.bmp.png",
        "a.png": "f_masks/labels/a.png.png.png",
        "a.png.png/b.png": "f_masks/labels/a.png.png/b.png",
    }
    assert all((tmp_path / mask).is_file() for mask in told.values())


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.jpg", "b/c.jpg"], ["a.png", "b/c.png"]),
        (["a.jpg", "a.png/b.jpg"], ["a.jpg.png", "a.png/b.png"]),
        (["a.jpg", "a.png/b.jpg", "a.jpg.png/c.jpg"], ["a.jpg.png.png", "a.png/b.png", "a.jpg.png/c.png"]),
        (["a.jpg", "a.png/b.jpg", "a.jpg.bmp"], ["a.jpg.png.png", "a.png/b.png", "a.jpg.png"]),
        (["a.jpg", "a.bmp", "a.jpg.png/b.jpg"], ["a.jpg.png.png", "a.bmp.png", "a.jpg.png/b.png"]),
        (["d/e.jpg", "d/e.png/f.png/g.jpg", "d/e.png/f.jpg"], ["e.jpg.png", "e.png/f.png/g.png", "e.png/f.jpg.png"]),
    ],
)
def test_names_of_label_images_differ_from_one_another_and_from_folders(files: list[str], names: list[str]) -> None:
    found = name_masks([pathlib.Path(file) for file in files])
    assert [name.as_posix() for name in found] == names
    assert len(set(found)) == len(found)
    assert not {folder for name in found for folder in name.parents} & set(found)
