"""How image files become arrays: which values are kept, how an image is fitted to the size, what becomes of NaN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.text import nearest

Size = tuple[int, int]  # height, width
CHOICES = {"image_pixels": ("rgb", "stored"), "image_fit": ("cover", "pad"), "nan": ("stop", "zero")}
_BYTE = np.dtype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """What is asked of images, by the flags of the same names.

    Attributes:
        image_pixels: "rgb" makes uint8 colour of every file; "stored" keeps the channels of the files, and 16 bits and
            floats as float32 in [0, 1].
        image_fit: "cover" resizes an image until it covers the size, and crops it about the centre; "pad" resizes it until
            it fits within the size, and pads it with zeros about it.
        image_mask: whether images get one more channel, the last: 1 where a pixel is the image's own, 0 where it is padding
            or was NaN (255 and 0 in uint8), and values between where both are mixed in resizing.
        nan: NaN among float values is an error ("stop"), or missing pixels that become 0 ("zero").

    Raises InputError if a value is not valid, or there is nothing for the mask to mark.
    """

    image_pixels: str = "rgb"
    image_fit: str = "cover"
    image_mask: bool = False
    nan: str = "stop"

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise InputError(f"{name}={value!r}: expected {' or '.join(known)}{nearest(str(value), known)}")
        if self.image_mask and self.image_fit != "pad" and self.nan != "zero":
            raise InputError(
                "image_mask: every pixel is the image's own, so there is nothing to mark; --image_fit=pad pads images, and "
                "--nan=zero fills missing pixels"
            )


DEFAULT = ImageOptions()


@dataclass(frozen=True, kw_only=True)
class ImageForm:
    """The arrays that image files become: uint8, or float32 in [0, 1], [*size, channels].

    ``channels`` counts those of the files, without the mask.
    """

    size: Size
    channels: int = 3
    dtype: np.dtype[Any] = _BYTE
    options: ImageOptions = DEFAULT

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image."""
        return *self.size, self.channels + self.options.image_mask

    @property
    def bytes(self) -> int:
        """The memory of one image."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    @property
    def description(self) -> str:
        """What a fingerprint covers; "" for what image files have always become."""
        asked = self.options.image_fit, self.options.image_mask, self.options.nan
        found = (self.channels, self.dtype.str, *asked)
        return "" if found == (3, "|u1", DEFAULT.image_fit, False, DEFAULT.nan) else repr(found)


def make_form(shape: Sequence[int], dtype: Any, options: ImageOptions) -> ImageForm | None:
    """The form of images of this shape and dtype, to read further files alike; None for the usual one, and for no images."""
    if options == DEFAULT or len(shape) != 3:
        return None
    height, width, channels = shape
    return ImageForm(
        size=(height, width), channels=channels - options.image_mask, dtype=np.dtype(dtype), options=options
    )
