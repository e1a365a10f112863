"""Tiny real images as files, and damaged ones."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(os.environ.get("FROSTLINE_SHARED") or ROOT.parent / "shared")

Write = Callable[..., pathlib.Path]


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    """Real images of clothes, coloured by class: uint8 [28, 28, 3], 30 of each of the first three classes."""
    from engine import data

    part = data.open_data("fashion_mnist_mini").train
    found = []
    for label in range(3):
        grey = part.read(np.flatnonzero(part.labels == label)[:30])["image"].astype(np.float32)
        tint = np.array([[1.0, 0.6, 0.3], [0.3, 1.0, 0.6], [0.6, 0.3, 1.0]], np.float32)[label]
        found += list((grey * tint).astype(np.uint8))
    return found


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A smooth colour image of 120x90, in which every pixel and every corner is different."""
    y, x = np.mgrid[0:90, 0:120].astype(np.float32)
    bands = [x * 2.1, y * 2.8, 127 + 100 * np.sin(x / 17) * np.cos(y / 13)]
    return Image.fromarray(np.stack(bands, axis=-1).astype(np.uint8))


@pytest.fixture
def make_folder(tmp_path: pathlib.Path, pictures: list[np.ndarray]) -> Write:
    """Writes an image folder: ``make({"cat": 5, "train/dog": 3})`` -> DIR with so many files of each class."""

    def make(counts: dict[str, int], *, name: str = "photos", suffix: str = ".png") -> pathlib.Path:
        folder = tmp_path / name
        for number, (place, count) in enumerate(counts.items()):
            (folder / place).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                Image.fromarray(pictures[(number % 3) * 30 + i % 30]).save(folder / place / f"{i:03}{suffix}")
        folder.mkdir(exist_ok=True)
        return folder

    return make
