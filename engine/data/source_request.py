"""What is asked of a source when it is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.data.image_options import DEFAULT, ImageOptions
from engine.data.part import DataError
from engine.data.resize import Size


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """What is asked of a source.

    Attributes:
        spec: its name, such as ``csv:photos.csv,label=species``.
        size: the (height, width) that was asked for; None leaves arrays as they are, and gives image files ``file_size``,
            which may be a function that is called where it is needed.
        budget: the bytes of memory for decoded or resized images.
        skip_bad: whether unreadable image files are left out; otherwise they are an error.
        images: how images become arrays.
        to_train: whether a model is to be trained on the data. Of data that are only evaluated, no part needs to be one to
            train on, and classes may be missing: the model knows them.
        say: is called with messages.
    """

    spec: str
    size: Size | None = None
    file_size: Size | Callable[[], Size] = (224, 224)
    budget: int = 1 << 30
    skip_bad: bool = False
    images: ImageOptions = DEFAULT
    to_train: bool = True
    say: Callable[[str], None] = print

    def choose_size(self) -> Size:
        """The (height, width) that image files are resized to."""
        if self.size is not None:
            return self.size
        return self.file_size() if callable(self.file_size) else self.file_size

    @property
    def rest(self) -> str:
        """What follows the first colon of the name."""
        return self.spec.partition(":")[2]

    @property
    def about(self) -> str:
        """The beginning of messages."""
        return f"data={self.spec}"

    def check_nan(self, possible: bool, why: str) -> None:
        """Raises DataError if NaN is to become 0 where there cannot be any; other data that a run evaluates may have none."""
        if self.to_train and not possible:
            check_nan(self.spec, self.images, why)

    def refuse_image_options(self, why: str = "these data have no images") -> None:
        """Raises DataError if something is asked of images, for a source that does not read image files."""
        asked = [
            name
            for name in ("image_pixels", "image_fit", "image_mask")
            if getattr(self.images, name) != getattr(DEFAULT, name)
        ]
        if self.size is not None:
            asked.insert(0, "image_size")
        if self.skip_bad:
            asked.append("bad_images=skip")
        if asked:
            raise DataError(f"{self.about}: {why}; leave out --{asked[0]}")


def check_nan(spec: str, images: ImageOptions, why: str, way_out: str = "") -> None:
    """Raises DataError if NaN is to become 0 in data that hold none, which ``why`` says."""
    if images.nan == "zero":
        raise DataError(f"nan=zero: {spec} has no numbers that could be NaN; leave it out{way_out} ({why})")
