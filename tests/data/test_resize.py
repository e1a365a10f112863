"""Images at the size that a model wants."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from engine import data
from engine.data.resize import Resized, parse_image_size, resize, resize_all


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), ("192x256", (192, 256)), (" 5X7 ", (5, 7))])
def test_an_image_size_is_a_side_or_height_by_width(text: str, size: tuple[int, int]) -> None:
    assert parse_image_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "224x0", "-3", "big", "224x224x3", "9000", "2.5", "1e2"])
def test_what_is_no_image_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(data.DataError, match=r"image_size='.*': .*(224 or 192x256|1 to 8192)"):
        parse_image_size(text)


@pytest.mark.parametrize("size", [(45, 60), (180, 240), (30, 40)])
def test_the_same_proportions_are_resized_as_tensorflow_does(photo: Image.Image, size: tuple[int, int]) -> None:
    image = np.asarray(photo)[None]
    wanted = tf.image.resize(image, size, antialias=True).numpy()
    np.testing.assert_allclose(resize(image, size), wanted, atol=0.51)


@pytest.mark.parametrize("size", [(40, 40), (100, 50), (20, 200), (200, 30)])
def test_other_proportions_cover_the_size_and_are_cropped_about_the_centre(
    photo: Image.Image, size: tuple[int, int]
) -> None:
    """Pillow is the judge; at the edges it does not look beyond the crop, as we do."""
    width, height = (side / max(size[0] / 90, size[1] / 120) for side in size[::-1])
    box = (60 - width / 2, 45 - height / 2, 60 + width / 2, 45 + height / 2)
    wanted = np.asarray(photo.resize(size[::-1], Image.Resampling.BILINEAR, box=box)).astype(int)
    np.testing.assert_allclose(resize(np.asarray(photo)[None], size)[0, 3:-3, 3:-3], wanted[3:-3, 3:-3], atol=1)


def test_a_crop_alone_keeps_every_bit(photo: Image.Image) -> None:
    image = np.asarray(photo)[None]
    np.testing.assert_array_equal(resize(image, (90, 60)), image[:, :, 30:90])
    assert resize(image, (90, 120)) is image


def test_a_long_panorama_is_resized_where_it_is_seen() -> None:
    strip = np.zeros((1, 2, 60_000, 3), np.uint8)
    strip[:, :, 29_999:30_001] = 200
    np.testing.assert_array_equal(resize(strip, (2, 2)), np.full((1, 2, 2, 3), 200))


def test_images_in_memory_and_images_resized_when_read_are_the_same() -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 9, 12, 1), np.uint8)
    kept, late = resize_all(images, (6, 6), budget=300 * 36), resize_all(images, (6, 6), budget=300 * 36 - 1)
    assert isinstance(kept, np.ndarray)
    assert isinstance(late, Resized)
    numbers = np.array([299, 0, 7, 7, 256])
    np.testing.assert_array_equal(kept[numbers], late[numbers])
    assert kept.shape == late.shape == (300, 6, 6, 1)
    assert kept.dtype == late.dtype


def test_float_images_stay_floats_in_range() -> None:
    images = np.random.default_rng(0).random((2, 8, 8, 3)).astype(np.float32)
    small = resize(images, (5, 5))
    assert small.dtype == np.float32
    assert small.min() >= 0
    assert small.max() <= 1


def test_image_size_applies_to_arrays_and_the_run_is_the_same_whatever_the_budget() -> None:
    kept = data.open_data("fashion_mnist_mini", image_size=(20, 24))
    late = data.open_data("fashion_mnist_mini", image_size=(20, 24), image_cache=0)
    assert kept.image_shape == late.image_shape == (20, 24, 1)
    for part in ("train", "eval", "test"):
        one, other = (getattr(source, part).read(np.arange(5)) for source in (kept, late))
        for name in ("image", "label", "index"):
            np.testing.assert_array_equal(one[name], other[name])
    assert data.open_data("fashion_mnist_mini").image_shape == (28, 28, 1)
