"""Pictures of masks: their legends name every class, however many there are."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from engine.runs import mask_pictures


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names in the legends that are drawn, each of which lies in its picture and covers no other."""
    found: list[str] = []
    save = Figure.savefig

    def look(self: Any, *args: Any, **given: Any) -> None:
        save(self, *args, **given)
        (legend,) = self.legends
        box, page = legend.get_window_extent(), self.bbox
        assert page.y0 - 1 <= box.y0
        assert box.y1 <= page.y1 + 1
        assert page.x0 - 1 <= box.x0
        assert box.x1 <= page.x1 + 1
        found.extend(text.get_text() for text in legend.get_texts())

    monkeypatch.setattr(Figure, "savefig", look)
    return found


@pytest.mark.parametrize("count", [2, 13, 14, 150, 255])
def test_a_legend_names_all_classes_but_the_background(tmp_path: pathlib.Path, named: list[str], count: int) -> None:
    names = [f"class {number}" for number in range(count)]
    mask_pictures.draw_legend(tmp_path / "colours.png", names)
    assert named == names[1:]
    with Image.open(tmp_path / "colours.png") as picture:
        assert picture.size[0] == 750


@pytest.mark.parametrize("name", ["a class of things", "WWWWWWWWWWWWWWWWWWWWWW", "Größe"])
def test_long_names_stand_in_fewer_columns_and_none_is_cut(tmp_path: pathlib.Path, named: list[str], name: str) -> None:
    names = [f"{name} {number}" for number in range(40)]
    mask_pictures.draw_legend(tmp_path / "colours.png", names)
    assert len(named) == 39
    labels = np.arange(40, dtype=np.uint8)[None, :, None].repeat(8, axis=2)
    mask_pictures.draw_masks(tmp_path / "a.png", np.zeros((1, 40, 8, 3), np.uint8), labels, labels, names)
    assert len(named) == 2 * 39


def test_of_very_many_classes_it_says_how_many_are_left_out(
    tmp_path: pathlib.Path, named: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_pictures, "_NAMED", 20)
    names = [f"class {number}" for number in range(1021)]
    mask_pictures.draw_legend(tmp_path / "colours.png", names)
    assert named == [*names[1:21], "and 1,000 more, named in the table"]


def test_the_pictures_of_a_run_name_all_classes_that_occur(tmp_path: pathlib.Path, named: list[str]) -> None:
    names = [f"class {number}" for number in range(64)]
    truths = np.arange(64, dtype=np.uint8).reshape(1, 8, 8) // 2 * 2
    images = np.zeros((1, 8, 8, 3), np.uint8)
    mask_pictures.draw_masks(tmp_path / "a.png", images, truths, truths, names)
    assert named == names[2::2]
