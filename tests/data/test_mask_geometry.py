"""Classes of pixels go back to where they came from: through every fit, reduction and orientation of an image file."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.data.box_geometry import place_boxes, place_file, restore_boxes
from engine.data.decode import decode, turn_pixels, undo_orientation
from engine.data.header import Header, read_header
from engine.data.image_options import ImageForm, ImageOptions
from engine.data.mask_geometry import choose_label_dtype, restore_labels
from engine.data.part import DataError

PAD = ImageOptions(image_fit="pad")


def of_png(height: int, width: int, **given: Any) -> Header:
    return Header(kind="PNG", height=height, width=width, **given)


def test_what_was_cropped_has_no_class_and_all_else_is_exact() -> None:
    rng = np.random.default_rng(0)
    chances = rng.random([16, 16, 3])
    found = restore_labels(chances, of_png(20, 16), ImageForm(size=(16, 16)))
    assert found.dtype == np.uint8
    assert (found[2:18] == chances.argmax(axis=-1)).all()
    assert (found[:2] == 255).all()
    assert (found[18:] == 255).all()


def test_padding_has_no_say_and_no_pixel_is_lost() -> None:
    chances = np.zeros([12, 12, 3])
    chances[..., 2] = 9.0  # what the model says of the padding
    chances[3:9, :, :] = np.eye(3)[np.random.default_rng(1).integers(0, 2, (6, 12))]
    found = restore_labels(chances, of_png(18, 36), ImageForm(size=(12, 12), options=PAD))
    assert found.shape == (18, 36)
    assert set(np.unique(found)) == {0, 1}
    assert (found[1::3, 1::3] == chances[3:9].argmax(axis=-1)).all()  # the middle of each three by three pixels
    for height, width in ((33, 100), (31, 97), (100, 33), (36, 100), (7, 1000), (1, 400)):
        found = restore_labels(np.ones([10, 10, 2]), of_png(height, width), ImageForm(size=(10, 10), options=PAD))
        assert (found == 0).all()


def test_probabilities_are_mixed_before_a_class_is_chosen() -> None:
    chances = np.array(
        [[[0.6, 0.4, 0.0], [0.0, 0.4, 0.6]]]
    )  # halfway, the class that is second in both is the likeliest
    found = restore_labels(chances, of_png(4, 8), ImageForm(size=(1, 2)))
    assert found[0].tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("options", [ImageOptions(), PAD], ids=["cover", "pad"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("height", "width", "size"), [(60, 44, (24, 40)), (21, 30, (40, 40)), (400, 520, (24, 32))])
def test_a_photo_and_its_array_agree_on_every_place(
    height: int, width: int, size: tuple[int, int], orientation: int, options: ImageOptions
) -> None:
    """A photo that is bright on one side of a line: where the array is bright, so is the photo, however it was turned."""
    rows, columns = np.mgrid[:height, :width]
    beyond = (rows + 0.5) / height + 2 * (columns + 0.5) / width - 1.4  # the line
    bright = beyond > 0
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    Image.fromarray(np.uint8(bright * 255)).save(file, "JPEG", quality=95, exif=exif)
    file.seek(0)
    header, form = read_header(file), ImageForm(size=size, options=options)
    white = decode(file.getvalue(), form)[..., 0] / 255.0
    found = restore_labels(np.stack([1 - white, white], axis=-1), header, form)
    upright = turn_pixels(bright, orientation)
    assert found.shape == upright.shape == header.upright
    known = found != 255
    scale, across = place_file(header, form).scale
    assert scale == across
    far = turn_pixels(np.abs(beyond) > 1.5 * (1 / height + 2 / width) * max(1, 1 / scale), orientation)
    assert (found == upright)[known & far].all()
    assert (known & far).sum() > 0.5 * known.sum()
    if options is PAD:
        assert known.all()
        return
    whole = restore_boxes(
        np.array([0.0, 0.0, size[1], size[0]]), header, form
    )  # what the array shows, by the rule for boxes
    y, x = np.nonzero(known)
    x1, y1, x2, y2 = np.clip(whole, 0, np.array([*header.upright[::-1]] * 2))
    shown = [x.min(), y.min(), x.max() + 1, y.max() + 1]
    np.testing.assert_allclose(shown, [x1, y1, x2, y2], rtol=0, atol=0.5 + 1e-6)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(("height", "width"), [(24, 1600), (3, 1000), (60, 1000), (1600, 24)])
def test_masks_and_boxes_of_thin_images_lie_where_they_were_seen(
    height: int, width: int, orientation: int, kind: str
) -> None:
    long, short = max(height, width), min(height, width)
    bright = np.zeros((height, width), bool)
    (bright if width == long else bright.T)[:, : long // 4] = True
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    Image.fromarray(np.uint8(bright * 255)).save(file, kind, exif=exif)
    file.seek(0)
    header, form = read_header(file), ImageForm(size=(32, 32), options=PAD)
    white = decode(file.getvalue(), form)[..., 0] / 255.0
    found = restore_labels(np.stack([1 - white, white], axis=-1), header, form)
    upright = turn_pixels(bright, header.orientation)
    assert found.shape == upright.shape
    assert (found != 255).all(), "nothing is lost"
    assert (found != upright).sum() <= short * long // 32
    box = np.array([0.0, 0.0, *header.upright[::-1]])
    placed = place_boxes(box, header, form)
    y, x = np.nonzero(decode(_white(height, width, orientation, kind), form)[..., 0])
    whole_blocks = kind == "PNG" or short % 8 == 0  # a decoder that reduces by 8 makes one row of 3, as of 8
    np.testing.assert_allclose(
        placed, [x.min(), y.min(), x.max() + 1, y.max() + 1], rtol=0, atol=0.51 if whole_blocks else 0.63
    )
    np.testing.assert_allclose(restore_boxes(placed, header, form), box, rtol=0, atol=1e-6)


def _white(height: int, width: int, orientation: int, kind: str) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[274] = orientation
    Image.fromarray(np.full((height, width), 255, np.uint8)).save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_is_undone_by_its_opposite(orientation: int) -> None:
    image = np.arange(6).reshape(2, 3)
    assert (turn_pixels(turn_pixels(image, orientation), undo_orientation(orientation)) == image).all()


def test_many_classes_get_16_bits_and_too_many_are_refused() -> None:
    found = restore_labels(np.eye(300)[None, [299, 0, 255]], of_png(1, 6), ImageForm(size=(1, 3)))
    assert found.dtype == np.uint16
    assert (choose_label_dtype(255), choose_label_dtype(256)) == (np.uint8, np.uint16)
    assert found[0, [0, 3, 5]].tolist() == [65535, 0, 65535]
    with pytest.raises(DataError, match="numbers for at most 65,535 classes"):
        choose_label_dtype(1 << 16)
