"""Images at the size that a model wants."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from engine import data
from engine.data.resize import Resized, find_fit, fit_within, parse_image_size, resize, resize_all


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


@pytest.mark.parametrize(
    ("shape", "size", "inner"),
    [
        ((3, 1000), (224, 224), (1, 224)),
        ((1, 5000), (16, 16), (1, 16)),
        ((40, 1000), (16, 16), (1, 16)),
        ((7, 1000), (224, 224), (2, 224)),  # rounded up, so that 28% of it would be cropped
        ((36, 100), (10, 10), (4, 10)),
        ((1000, 3), (64, 224), (64, 1)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_padding_loses_nothing_of_a_thin_image(
    shape: tuple[int, int], size: tuple[int, int], inner: tuple[int, int], dtype: type
) -> None:
    most = 255 if dtype is np.uint8 else 1
    image = np.full((1, *shape, 1), most, dtype)
    along = int(np.argmax(shape))
    ends = np.moveaxis(image, along + 1, 0)
    reach = -(-shape[along] // size[along])  # a pixel of the result
    ends[reach:-reach] = 0
    fitted = fit_within(image, size)
    assert (fitted.shape, fitted.dtype) == ((1, *size, 1), dtype)
    assert find_fit(*shape, size) == (inner, True)
    line = np.moveaxis(fitted, along + 1, 0).max(axis=(1, 2, 3)) / most
    assert line[0] > 0.5
    assert line[-1] > 0.5
    assert line[2:-2].max() < 0.1
    filled = np.argwhere(fit_within(np.full_like(image, most), size)[0, :, :, 0] > 0.99 * most)
    assert tuple(filled.max(axis=0) - filled.min(axis=0) + 1) == inner


@pytest.mark.parametrize(
    ("shape", "size"), [((90, 120), (32, 32)), ((33, 100), (10, 10)), ((31, 97), (10, 10)), ((667, 1000), (224, 224)), ((5, 4), (64, 48)), ((30, 20), (8, 40))]
)  # fmt: skip
def test_other_images_are_padded_to_the_same_bits_as_ever(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), np.uint8)
    scale = min(size[0] / shape[0], size[1] / shape[1])
    inner = round(shape[0] * scale), round(shape[1] * scale)
    assert find_fit(*shape, size) == (inner, False)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    wanted = np.zeros((2, *size, 3), np.uint8)
    wanted[:, top : top + inner[0], left : left + inner[1]] = resize(image, inner)
    np.testing.assert_array_equal(fit_within(image, size), wanted)
