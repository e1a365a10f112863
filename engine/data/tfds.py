"""``tfds:NAME``: data sets of TensorFlow Datasets that are prepared on this machine, read by position.

Nothing is downloaded. Images stay encoded until they are read; where the files give access by position (ArrayRecord), they
also stay on disk.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from engine.data.divided import make_divided
from engine.data.image_files import ImageFiles
from engine.data.image_options import ImageForm, ImageOptions
from engine.data.part import DataError, Part, Source, number_classes
from engine.data.resize import Size
from engine.data.source_request import SourceRequest
from engine.data.tfds_options import TfdsOptions, parse_tfds
from engine.reading import check_memory, read_file
from engine.text import join_some, join_words, nearest

_VALIDATION = ("validation", "valid", "val", "dev")
_OWN = "tensorflow_datasets."  # the package of the features that a prepared data set may name


def open_tfds(request: SourceRequest) -> Source:
    """Opens a data set that is prepared on this machine; ``eval is train`` if it has no validation split.

    Raises DataError if the package is not installed, the data set is not prepared, or its features are not an image and
    a label.
    """
    about, options = request.about, parse_tfds(request.spec)
    tfds = _import_package(about)
    folder = find_prepared(about, options)
    _check_features(about, folder)
    try:
        builder = tfds.builder_from_directory(str(folder))
        splits = builder.info.splits
    except Exception as error:  # the package raises a dozen types
        raise DataError(f"{about}: {folder} cannot be opened ({type(error).__name__}: {str(error)[:200]})") from None
    image = _find_image(about, builder.info.features, options, tfds)
    _check_dtype(about, image, builder.info.features[image])
    label = _find_label(about, builder.info.features, options)
    chosen = _choose_splits(about, options, list(splits), to_train=request.to_train)
    _check_apart(about, tfds, splits, chosen)
    read = {part: _Split(about, tfds, builder, folder, text, image) for part, text in chosen.items()}
    labels = {part: each.read_labels(label) for part, each in read.items()}
    if options.test is None and "test" in labels and labels["test"].dtype.kind == "i" and (labels["test"] < 0).all():
        request.say("data: the split test has no labels (all are -1), so it is left out")
        del labels["test"], read["test"]
    classes, named = _name_classes(about, label, builder.info.features[label], options.label_kind, labels)
    if not classes:
        labels = {part: found.astype(np.float32) for part, found in labels.items()}
    request.say(f"data: {folder}: {', '.join(f'{part} is {chosen[part]} ({len(labels[part]):,})' for part in labels)}")
    feature = builder.info.features[image]
    images = EncodedImages(request, list(read.values()), list(labels), tuple(feature.shape), np.dtype(feature.np_dtype))
    starts = np.cumsum([0, *(len(found) for found in labels.values())])
    parts = {
        part: Part(images, found, np.arange(start, start + len(found)))
        for (part, found), start in zip(labels.items(), starts, strict=False)
    }
    return make_divided(request.spec, classes, parts, named=named)


class EncodedImages(ImageFiles):
    """Images that lie encoded in the records of several splits, numbered one split after the other."""

    paths = None

    def __init__(
        self,
        request: SourceRequest,
        splits: Sequence[_Split],
        parts: Sequence[str],
        shape: tuple[int | None, ...],
        dtype: np.dtype[Any],
    ) -> None:
        self._splits = splits
        self._places = [(split, at) for split in splits for at in range(len(split))]
        self._own, self._dtype_of_feature = shape, dtype
        names = [f"{part} {at}" for part, split in zip(parts, splits, strict=True) for at in range(len(split))]
        height, width = shape[:2]
        native = (height, width) if height and width and request.size is None else request.choose_size()
        if height and width and request.size is None and request.to_train and request.images.image_fit == "pad":
            raise DataError(
                f"image_fit=pad: the images of {request.spec} all have {height}x{width} pixels and keep them unless --image_size "
                "gives another size; give it"
            )
        options = ImageOptions(
            image_pixels="stored",
            image_fit=request.images.image_fit,
            image_mask=request.images.image_mask,
            nan=request.images.nan,
        )
        super().__init__(
            request.spec,
            pathlib.Path(),
            names,
            size=native,
            budget=request.budget,
            skip_bad=False,
            options=options,
            say=request.say,
        )

    def _open(self, number: Any) -> BinaryIO:
        split, at = self._places[number]
        return io.BytesIO(split.read_image(at))

    def _settle(self, size: Size, options: ImageOptions) -> ImageForm:
        deep = self._dtype_of_feature.itemsize > 1
        return ImageForm(
            size=size,
            channels=self._own[2] or 3,
            dtype=np.dtype(np.float32 if deep else np.uint8),
            options=options,
        )


class _Split:
    """The examples of a split or slice, in the order of the data set's files."""

    def __init__(self, about: str, tfds: Any, builder: Any, folder: pathlib.Path, text: str, image: str) -> None:
        self._about, self._image = about, image
        skip = {image: tfds.decode.SkipDecoding()}
        try:
            info = builder.info.splits[text]
            self._count = int(info.num_examples)
            if builder.info.file_format.name == "ARRAY_RECORD":
                self._records: Sequence[Mapping[str, Any]] = builder.as_data_source(split=text, decoders=skip)
            else:
                check_memory(folder, int(getattr(info, "num_bytes", 0) or 0), f"the split {text}")
                config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
                found = builder.as_dataset(split=text, decoders=skip, shuffle_files=False, read_config=config)
                self._records = list(tfds.as_numpy(found))
        except (Exception, SystemExit) as error:  # the package raises a dozen types
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{about}: split {text!r}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            ) from None
        if not self._count:
            raise DataError(f"{about}: the split {text} has no examples")

    def __len__(self) -> int:
        return self._count

    def read_image(self, at: int) -> bytes:
        return bytes(self._records[at][self._image])

    def read_labels(self, name: str) -> np.ndarray:
        found = np.stack([np.asarray(record[name]) for record in self._iterate()])
        if found.ndim != 1 or found.dtype.kind not in "iufb":
            raise DataError(
                f"{self._about}: label={name}: it is {found.dtype} {list(found.shape[1:])} an example; expected one number"
            )
        return found.astype(np.float32 if found.dtype.kind == "f" else np.int64)

    def _iterate(self) -> Iterator[Mapping[str, Any]]:
        for at in range(self._count):
            yield self._records[at]


def find_prepared(about: str, options: TfdsOptions) -> pathlib.Path:
    """The folder of a prepared data set and version: below ``data_dir``, TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises DataError, which says what is prepared and how the data set is.
    """
    root = pathlib.Path(options.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    place = root / options.name
    found = sorted((_version(path.name), path) for path in _folders(place) if (path / "dataset_info.json").is_file())
    configs = [
        path.name for path in _folders(place) if any((each / "dataset_info.json").is_file() for each in _folders(path))
    ]
    if not found and configs:
        raise DataError(
            f"{about}: it has several configurations; expected tfds:{options.name}/CONFIG with one of {join_words(configs)}"
        )
    wanted = [path for _, path in found if options.version is None or _fits(path.name, options.version)]
    if wanted:
        return wanted[-1]
    if found:
        raise DataError(
            f"{about}: version {options.version} is not prepared in {place}, only {join_words(path.name for _, path in found)}"
        )
    there = [path.name for path in _folders(root)]
    name = options.name + (f":{options.version}" if options.version else "")
    raise DataError(
        f"{about}: the data set is not prepared in {root}{nearest(options.name.split('/')[0], there)}, and nothing is "
        f'downloaded; prepare it, which needs a network, by python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{root}').download_and_prepare()\", or name the folder with data_dir="
    )


def _folders(place: pathlib.Path) -> list[pathlib.Path]:
    try:
        return sorted(path for path in place.iterdir() if path.is_dir())
    except OSError:
        return []


def _version(text: str) -> tuple[int, ...]:
    words = text.split(".")
    return tuple(int(word) for word in words) if all(word.isdecimal() for word in words) else ()


def _fits(version: str, wanted: str) -> bool:
    pairs = list(zip(version.split("."), wanted.split("."), strict=False))
    return version.count(".") == wanted.count(".") and all(own == one or one == "*" for own, one in pairs)


def _import_package(about: str) -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise DataError(
            f"{about}: needs the package tensorflow-datasets: pip install 'frostline[tfds]' ({error})"
        ) from None
    return tensorflow_datasets


def _check_features(about: str, folder: pathlib.Path) -> None:
    """Raises DataError if the description of the features names code from elsewhere, which opening it would import."""
    try:
        found = json.loads(read_file(folder / "features.json", 1 << 24))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{about}: {folder}/features.json cannot be read ({error})") from None
    waiting = [found]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            name = one.get("pythonClassName", _OWN)
            if not str(name).startswith(_OWN):
                raise DataError(
                    f"{about}: {folder}/features.json names {str(name)[:100]}, which is not of {_OWN.rstrip('.')}"
                )
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _find_image(about: str, features: Any, options: TfdsOptions, tfds: Any) -> str:
    """The feature with the image."""
    names = list(features.keys())
    images = [name for name in names if isinstance(features[name], tfds.features.Image)]
    if options.image is not None:
        if options.image not in images:
            raise DataError(
                f"{about}: image={options.image}: there is no such image{nearest(options.image, names)}; the images are "
                f"{join_words(images) or 'none'}"
            )
        return options.image
    if len(images) != 1:
        raise DataError(
            f"{about}: {join_words(images) or 'no feature'} {'are images; image= says which' if images else 'is an image'}; the "
            f"features are {join_some(names, most=30)}"
        )
    return images[0]


def _check_dtype(about: str, name: str, feature: Any) -> None:
    """Raises DataError for images of floats, which are stored as the bytes of a picture that is none."""
    if np.dtype(feature.np_dtype).kind == "f":
        raise DataError(
            f"{about}: the images {name} are {np.dtype(feature.np_dtype)}, which cannot be read as they are stored; write a source "
            "of your own, py:module:name"
        )


def _find_label(about: str, features: Any, options: TfdsOptions) -> str:
    """The feature with the label."""
    names = list(features.keys())
    wanted = options.label or "label"
    if wanted not in names:
        raise DataError(
            f"{about}: there is no feature {wanted}{nearest(wanted, names)}; label= names the one to learn; the features are "
            f"{join_some(names, most=30)}"
        )
    return wanted


def _choose_splits(about: str, options: TfdsOptions, names: Sequence[str], *, to_train: bool) -> dict[str, str]:
    """The split or slice of each part."""
    asked = set(re.findall(r"\w+", " ".join(filter(None, (options.split, options.evaluation, options.test)))))
    usual = [name for name in names if name not in asked]  # a split that is named belongs to what names it
    several = [name for name in _VALIDATION if name in usual]
    if options.evaluation is None and len(several) > 1:
        raise DataError(
            f"{about}: {join_words(several)} could each be the evaluation part; eval= says which: eval={several[0]}"
        )
    val = options.evaluation or next(iter(several), None)
    test = options.test or ("test" if "test" in usual else None)
    given = {"train": options.split or ("train" if "train" in names else None), "val": val, "test": test}
    found = {part: text for part, text in given.items() if text is not None}
    if "train" not in found and (to_train or not found):
        raise DataError(f"{about}: there is no split train; split= says what to train on: {join_words(names)}")
    return found


def _check_apart(about: str, tfds: Any, splits: Any, chosen: Mapping[str, str]) -> None:
    """Raises DataError if a slice is not valid, or two parts have examples in common."""
    taken: list[tuple[str, str, int, int]] = []
    for part, text in chosen.items():
        try:
            pieces = tfds.core.ReadInstruction.from_spec(text).to_absolute(splits)
        except Exception as error:  # the package raises several types
            text_of = " ".join(str(error).split())[:200]
            raise DataError(
                f"{about}: split {text!r} is not valid ({text_of}); the splits are {join_words(list(splits))}"
            ) from None
        for piece in pieces:
            first, last = piece.from_ or 0, splits[piece.splitname].num_examples if piece.to is None else piece.to
            for other, name, start, stop in taken:
                if other != part and name == piece.splitname and first < stop and start < last:
                    raise DataError(f"{about}: {other} ({chosen[other]}) and {part} ({text}) have examples in common")
            taken.append((part, piece.splitname, first, last))


def _name_classes(
    about: str, label: str, feature: Any, kind: str | None, labels: Mapping[str, np.ndarray]
) -> tuple[tuple[str, ...], bool]:
    """The names of the classes, and whether they are the data's own; none for numbers."""
    if kind == "class" and next(iter(labels.values())).dtype.kind == "f":
        raise DataError(f"{about}: label={label}:class: its values are not whole numbers; expected {label}:number")
    if next(iter(labels.values())).dtype.kind == "f" or kind == "number":
        return (), True
    names = getattr(feature, "names", None)
    if kind is None and not hasattr(feature, "names") and feature.np_dtype != np.bool_:
        raise DataError(
            f"{about}: {label} has whole numbers: label={label}:class if they are classes, label={label}:number if they are "
            "amounts"
        )
    count = getattr(feature, "num_classes", None) or max(int(found.max()) for found in labels.values()) + 1
    for part, found in labels.items():
        if len(wrong := np.flatnonzero((found < 0) | (found >= count))):
            raise DataError(
                f"{about}: the label of example {wrong[0]} of {part} is {found[wrong[0]]}; the classes are 0 to {count - 1}"
            )
    return (tuple(names), True) if names else (number_classes(count), False)
