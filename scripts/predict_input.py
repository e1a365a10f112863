"""What predict reads: images, texts or a table, found before TensorFlow starts and opened once the model is."""

from __future__ import annotations

import csv
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from absl import flags

from engine.errors import InputError

if TYPE_CHECKING:
    from engine.data.unlabelled import Unlabelled
    from engine.recipes.predictor import FileBatch, Predictor
    from engine.recipes.reopen import OpenedRun

FLAGS = ("images", "texts", "table")
_EXPECTED = (
    "expected one of --images (a folder, a file or a pattern such as 'photos/*.jpg'), --texts (a file or a folder of texts) and "
    "--table (a file with numbers)"
)
Say = Callable[[str], None]


class Given(Protocol):
    """What is predicted: what identifies an example in what is written, how examples are called, and how many there are."""

    @property
    def key(self) -> str:
        """file, line or index."""

    @property
    def called(self) -> str:
        """The word for examples."""

    def __len__(self) -> int: ...

    def compute(self, predictor: Predictor, function: Any, size: int, *, places: bool) -> Iterator[FileBatch]:
        """What a function of the network says of all examples, batch by batch."""

    def end(self, say: Say) -> None:
        """Says what is known when all is done."""


class Images:
    """Image files."""

    key, called = "file", "images"

    def __init__(self, files: list[pathlib.Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def compute(self, predictor: Predictor, function: Any, size: int, *, places: bool) -> Iterator[FileBatch]:
        from engine.data.image_files import printable

        for batch in predictor.predict_files(self.files, function=function, size=size, places=places):
            for file, reason in batch.bad:
                print(f"cannot be read: {printable(str(file))}: {reason}", file=sys.stderr)
            yield batch

    def end(self, say: Say) -> None:
        pass


class Rows:
    """Texts, or the rows of a table."""

    def __init__(self, rows: Unlabelled, called: str) -> None:
        self._rows, self.key, self.called = rows, rows.key, called
        self._encoder: Any = None

    def __len__(self) -> int:
        return self._rows.count

    def compute(self, predictor: Predictor, function: Any, size: int, *, places: bool) -> Iterator[FileBatch]:
        self._encoder = predictor.encoder
        return predictor.predict_rows(self._rows.read(), function=function, size=size)

    def end(self, say: Say) -> None:
        if cut := getattr(self._encoder, "too_long", 0):
            say(f"texts: {cut:,} of {len(self):,} have more tokens than the model was trained to read, and are cut")


def check_flags() -> str:
    """The flag of ``FLAGS`` that is given; InputError unless it is exactly one, with what belongs to it."""
    given = [name for name in FLAGS if flags.FLAGS[name].value is not None]
    if len(given) != 1:
        raise InputError(f"{', '.join(given or FLAGS)}: {_EXPECTED}" + (", not several" if given else ""))
    if flags.FLAGS.text_columns is not None and given != ["texts"]:
        raise InputError(f"text_columns={flags.FLAGS.text_columns}: it is about --texts; leave it out")
    return given[0]


def find_files(flag: str, say: Say) -> list[pathlib.Path]:
    """The files that a flag names, as far as they are known without the model; InputError if there are none."""
    given = flags.FLAGS[flag].value
    if flag == "images":
        from engine.data.image_list import list_images

        return list_images(given, say=say)
    from engine.data.unlabelled import find_table, find_texts

    if flag == "table":
        return [pathlib.Path(find_table(given).file)]
    path, columns = find_texts(given).path, flags.FLAGS.text_columns
    if columns is not None and (path.is_dir() or path.suffix.lower() == ".txt"):
        raise InputError(f"text_columns={columns}: texts={given} has texts and no columns; leave it out")
    return [path]


def check_target(name: str, files: list[pathlib.Path]) -> None:
    """Raises InputError if a file that will be written is one of those that are read."""
    if os.path.exists(name):
        weights = flags.FLAGS.weights
        read = [*files, *([pathlib.Path(weights)] if weights else [])]
        if any(path.exists() and os.path.samefile(path, name) for path in read):
            raise InputError(f"out={name}: it is one of the files that are read; choose another name")


def open_given(flag: str, files: list[pathlib.Path], opened: OpenedRun, encoder: Any, say: Say) -> Given:
    """Opens what is to be predicted by a model; ``encoder`` is that of its predictor."""
    if flag == "images":
        return Images(files)
    given, config = flags.FLAGS[flag].value, opened.config
    from engine.data.unlabelled import open_table, open_texts

    if flag == "table":
        known: dict[str, Any] = {"columns": encoder.columns, "count": encoder.count, "nan": encoder.nan}
        return Rows(open_table(given, **known, source=config.data, say=say), "rows")
    if opened.data.texts is None:
        say(f"texts:   the tokenizer of the run is not recorded; that in {encoder.files.folder} is taken as it is now")
    named = flags.FLAGS.text_columns
    columns = encoder.facts.columns if encoder.facts is not None else _named_columns(config.data)
    if named is not None:
        columns = tuple(name.strip() for name in next(csv.reader([named])))
    encoder.check()  # its complaint comes before anything is read
    return Rows(open_texts(given, columns=columns, count=encoder.count, source=config.data, say=say), "texts")


def _named_columns(source: str) -> tuple[str, ...]:
    """The columns of text that the name of a source names; none where it numbers them, or is not one of texts."""
    from engine.data.text_name import parse_text_name

    own = parse_text_name(source).columns if source.startswith("text:") else None
    found = [] if own is None else [name for name in (own.text, own.text_b) if name is not None]
    return () if any(name.isdecimal() for name in found) else tuple(found)
