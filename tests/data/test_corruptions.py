"""Corruptions: formulas checked by hand, the same image in every process, and the same for small, large and grey ones."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from engine.data import Part
from engine.data.corruptions import KINDS, STRENGTHS, Corruption, CorruptionError, corrupted, parse
from engine.errors import InputError


def part_of(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 0) -> Part:
    """Smooth images with some texture, of which the last is read first."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : shape[1], 0 : shape[2]] / max(shape)
    smooth = 0.5 + 0.3 * np.sin(9 * x + 4 * y)[None, :, :, None] + 0.1 * rng.random(shape)
    images = smooth.astype(np.float32) if dtype == "float32" else np.rint(smooth * 255).astype(np.uint8)
    index = np.arange(len(images))[::-1].copy()
    return Part(images, index % 3, index)


@pytest.mark.parametrize("shape", [(3, 28, 28, 1), (3, 32, 20, 3), (2, 96, 70, 3), (2, 66, 64, 1)], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_stronger_corruption_changes_an_image_more(shape: tuple[int, ...], dtype: str) -> None:
    part = part_of(shape, dtype)
    positions = np.arange(len(part))
    clean = part.read(positions)
    for kind in KINDS:
        changes = []
        for strength in STRENGTHS:
            found = corrupted(part, kind, strength, seed=5)
            read = found.read(positions)
            assert (read["image"].dtype, read["image"].shape) == (clean["image"].dtype, clean["image"].shape)
            np.testing.assert_array_equal(read["label"], clean["label"])
            assert read["image"].min() >= 0
            assert read["image"].max() <= (255 if dtype == "uint8" else 1.0)
            one = found.read(positions[1:2])["image"][0]  # alone as among others
            np.testing.assert_array_equal(one, read["image"][1])
            changes.append(np.abs(read["image"].astype(np.float64) - clean["image"]).mean())
        assert 0 < changes[0] < changes[1] < changes[2], (kind, changes)


def test_noise_depends_on_seed_and_image_alone_in_every_process() -> None:
    part = part_of((4, 8, 8, 3), "float32")
    noisy = corrupted(part, "noise", 2, seed=7).read(np.arange(4))["image"]
    again = corrupted(part.take(np.array([2])), "noise", 2, seed=7).read(np.array([0]))["image"]
    np.testing.assert_array_equal(again[0], noisy[2])
    assert (corrupted(part, "noise", 2, seed=8).read(np.arange(4))["image"] != noisy).mean() > 0.9
    same = Part(np.full((2, 8, 8, 1), 0.5, np.float32), np.zeros(2, np.int64), np.arange(2))
    first, second = corrupted(same, "noise", 3).read(np.arange(2))["image"]
    assert (first != second).mean() > 0.9
    code = (
        "import numpy as np; from engine.data.part import Part; from engine.data.corruptions import corrupted; import hashlib;"
        "part = Part(np.full((2, 8, 8, 1), 0.5, np.float32), np.zeros(2, np.int64), np.arange(2));"
        "print(hashlib.sha256(corrupted(part, 'noise', 3).read(np.array([1]))['image'].tobytes()).hexdigest())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert elsewhere.strip() == hashlib.sha256(second.tobytes()).hexdigest()


def test_the_formulas_hold() -> None:
    grey = Part(np.zeros((1, 32, 32, 1), np.float32), np.zeros(1, np.int64), np.arange(1))
    grey.images[0, 16, 16] = 1.0
    spot = corrupted(grey, "blur", 3).read(np.arange(1))["image"][0, :, :, 0].astype(np.float64)
    assert abs(spot.sum() - 1.0) < 1e-6
    np.testing.assert_allclose(spot[16, 17] / spot[16, 16], np.exp(-0.5), rtol=1e-5)  # a deviation of 1 pixel of 32
    np.testing.assert_allclose(spot[17, 17] / spot[16, 16], np.exp(-1.0), rtol=1e-5)

    pixels = np.array([[[0.2, 0.4, 0.1], [0.0, 0.0, 0.0]], [[0.5, 0.9, 0.3], [1.0, 0.0, 0.0]]], np.float32)[None]
    colour = Part(pixels, np.zeros(1, np.int64), np.arange(1))
    bright = corrupted(colour, "brightness", 3).read(np.arange(1))["image"][0]
    expected = [[[0.35, 0.7, 0.175], [0.3] * 3], [[0.5 / 0.9, 1.0, 0.3 / 0.9], [1.0, 0.0, 0.0]]]
    np.testing.assert_allclose(bright, expected, rtol=1e-6)
    pale = corrupted(colour, "contrast", 3).read(np.arange(1))["image"][0]
    mean = pixels[0].mean(axis=(0, 1))
    np.testing.assert_allclose(pale, mean + 0.15 * (pixels[0] - mean), rtol=1e-5)

    flat = Part(np.full((1, 64, 64, 3), 0.5, np.float32), np.zeros(1, np.int64), np.arange(1))
    noise = corrupted(flat, "noise", 1).read(np.arange(1))["image"] - 0.5
    assert abs(noise.std() - 0.08) < 0.002
    assert abs(noise.mean()) < 0.004


def test_a_source_can_tell_corrupted_parts_apart() -> None:
    part = part_of((2, 8, 8, 1))
    prints = {corrupted(part, kind, s, seed=seed).images.fingerprint()  # type: ignore[attr-defined]
              for kind, s, seed in (("noise", 1, 0), ("noise", 2, 0), ("noise", 1, 1), ("blur", 1, 0))}  # fmt: skip
    twice = corrupted(corrupted(part, "blur", 1), "noise", 1).images.fingerprint()  # type: ignore[attr-defined]
    assert len({*prints, twice}) == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("blurr:2", "nearest: blur"),
        ("blur", "strength from 1 to 3, such as blur:2"),
        ("blur:4", "strength from 1 to 3"),
        ("blur:", "strength from 1 to 3"),
        ("blur:2,all", "all stands alone"),
        ("blur:2,noise:1,blur:2", "`blur:2` appears twice"),
        ("", "expected all, or KIND:STRENGTH"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(text: str, said: str) -> None:
    with pytest.raises(CorruptionError, match=said):
        parse(text)


def test_a_list_is_read_in_its_order() -> None:
    assert parse(" noise:3,blur:1") == (Corruption("noise", 3), Corruption("blur", 1))
    with pytest.raises(InputError, match="seed=-1: expected a number from 0"):
        corrupted(part_of((1, 8, 8, 1)), "blur", 1, seed=-1)
