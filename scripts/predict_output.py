"""What predict writes: a line of CSV or JSON for each image, text or row, or the arrays of an .npz file."""

from __future__ import annotations

import csv
import io
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from engine.data.image_files import printable
from engine.errors import InputError
from engine.files import write_npz
from engine.recipes.detections import restore_boxes
from engine.recipes.predictor import Predictor
from engine.recipes.restored_masks import draw_mask, measure_shares, name_masks, restore_mask
from engine.runs.mask_pictures import draw_legend
from engine.training.metrics import find_top

FORMATS = ("csv", "jsonl")


class Lines:
    """Formats predictions. The heading comes first, where the format has one.

    Of classes, the ``top`` most probable ones are told with their probabilities. Of several labels, and of values, all are
    told under their names unless ``top`` is given. Of one of several outputs, columns are called after ``task``. ``key`` is what
    identifies an example, and the name of the first column.
    """

    def __init__(
        self, predictor: Predictor, kind: str, *, top: int | None, outputs: int, task: str = "", key: str = "file"
    ) -> None:
        self._kind, self._loss, self._task, self._key = kind, predictor.loss, task, key
        count = 2 if predictor.loss == "sigmoid" and outputs == 1 else outputs
        self._names = predictor.name_outputs(count)
        several = predictor.loss == "sigmoid" and outputs > 1
        self._all = predictor.loss == "mse" or (several and top is None)
        self._top = min(top or 1, count)

    @property
    def columns(self) -> list[str]:
        """The names of the columns of a table behind the first."""
        if self._all:
            if self._task and len(self._names) == 1:
                return [self._task]
            return [f"{self._task}_{name}" if self._task else name for name in self._names]
        chosen, chance = (self._task, f"{self._task}_probability") if self._task else ("class", "probability")
        more = [word for n in range(2, self._top + 1) for word in (f"{chosen}_{n}", f"{chance}_{n}")]
        return [chosen, chance, *more]

    def heading(self) -> str:
        return _heading(self._key, *self.columns) if self._kind == "csv" else ""

    def format(self, files: Sequence[Any], values: np.ndarray) -> str:
        """The lines of some files or rows; ``values`` are their probabilities or values, [n, names]."""
        return "".join(self._line(file, told) for file, told in zip(files, self.tell(values), strict=True))

    def tell(self, values: np.ndarray) -> list[list[tuple[str, float]]]:
        """For each row of probabilities or values, [n, names], the names and numbers that are told."""
        chosen = [range(len(self._names))] * len(values) if self._all else find_top(values, self._top)
        return [
            [(self._names[number], float(f"{row[number]:.7g}")) for number in numbers]
            for row, numbers in zip(values, chosen, strict=True)
        ]

    def cells(self, told: Sequence[tuple[str, float]]) -> list[Any]:
        """What is told of an example, for ``columns``."""
        return [number for _, number in told] if self._all else [word for pair in told for word in pair]

    def as_json(self, told: Sequence[tuple[str, float]]) -> dict[str, Any]:
        """What is told of an example, as JSON values."""
        if self._all:
            return {"values" if self._loss == "mse" else "probabilities": dict(told)}
        return {"predictions": [{"class": name, "probability": number} for name, number in told]}

    def _line(self, file: Any, told: Sequence[tuple[str, float]]) -> str:
        if self._kind == "csv":
            return _csv([printable(str(file)), *self.cells(told)])
        return _json({self._key: _as_key(file)} | self.as_json(told))


class TaskLines:
    """Formats the predictions of several outputs: a line for each example, with the columns of each task under its name."""

    def __init__(
        self,
        predictors: Mapping[str, Predictor],
        kind: str,
        *,
        top: int | None,
        outputs: Sequence[int],
        key: str = "file",
    ) -> None:
        self._kind, self._predictors, self._key = kind, predictors, key
        self._lines = {
            task: Lines(predictor, kind, top=top, outputs=count, task=task)
            for (task, predictor), count in zip(predictors.items(), outputs, strict=True)
        }

    def heading(self) -> str:
        columns = [column for lines in self._lines.values() for column in lines.columns]
        return _heading(self._key, *columns) if self._kind == "csv" else ""

    def format(self, files: Sequence[Any], outputs: Sequence[np.ndarray]) -> str:
        """The lines of some files or rows; ``outputs`` are those of the network by task, each [n, C]."""
        told = [
            self._lines[task].tell(predictor.probabilities(found))
            for (task, predictor), found in zip(self._predictors.items(), outputs, strict=True)
        ]
        return "".join(self._line(file, rows) for file, rows in zip(files, zip(*told, strict=True), strict=True))

    def _line(self, file: Any, rows: Sequence[Sequence[tuple[str, float]]]) -> str:
        each = zip(self._lines.items(), rows, strict=True)
        if self._kind == "csv":
            return _csv([printable(str(file)), *(cell for (_, lines), row in each for cell in lines.cells(row))])
        return _json({self._key: _as_key(file), "outputs": {task: lines.as_json(row) for (task, lines), row in each}})


def _heading(*columns: str) -> str:
    """The heading of a table; InputError if two columns would have the same name."""
    if doubled := sorted({name for name in columns if columns.count(name) > 1}):
        raise InputError(
            f"format=csv: two columns would be called {doubled[0]!r}, because a class or an output has that name; JSON Lines keep "
            "them apart (--out=FILE.jsonl, or --format=jsonl)"
        )
    return _csv(columns)


def _as_key(key: Any) -> Any:
    """What identifies an example, as a JSON value: the number of a row, or the path of a file."""
    return key if isinstance(key, int) else str(key)


def _csv(row: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(row)
    return text.getvalue()


def _json(value: Any) -> str:
    return (
        json.dumps(value, ensure_ascii=True) + "\n"
    )  # names that are not text stay what they are, as \udc80 and the like


class BoxLines:
    """Formats the boxes that a detector finds, in pixels of the image as viewers show it: a line of CSV for each box, or a
    line of JSON for each image. At most ``top`` boxes of an image are told, the best first.
    """

    def __init__(self, predictor: Predictor, kind: str, *, top: int | None) -> None:
        self._kind, self._predictor, self._top = kind, predictor, top
        self._names = predictor.name_outputs(len(predictor.class_names or ()))

    def heading(self) -> str:
        return _csv(["file", "class", "score", "x1", "y1", "x2", "y2"]) if self._kind == "csv" else ""

    def format(self, files: Sequence[pathlib.Path], values: np.ndarray) -> str:
        """The lines of some files; ``values`` are their boxes [n, D, 6]."""
        return "".join(self._lines(file, boxes) for file, boxes in zip(files, values, strict=True))

    def _lines(self, file: pathlib.Path, boxes: np.ndarray) -> str:
        boxes = boxes[boxes[:, 0] >= 0][: self._top]
        edges = restore_boxes(file, boxes[:, 2:], self._predictor)
        told = [
            (self._names[int(number)], float(f"{score:.7g}"), [round(float(edge), 2) for edge in own])
            for (number, score, *_), own in zip(boxes, edges, strict=True)
        ]
        if self._kind == "csv":
            return "".join(_csv([printable(str(file)), name, score, *own]) for name, score, own in told)
        found = [{"class": name, "score": score, "box": own} for name, score, own in told]
        return _json({"file": str(file), "boxes": found})


class MaskLines:
    """Writes a label image for each image, and its drawing, and formats the shares of the classes: a line for each image.

    Args:
        told: the path of ``folder`` as lines tell it, from the folder of the table.
        files: all files, which decide the names.
        say: is told once if nothing can be drawn.

    Before anything is formatted, ``folder`` is to be set: where ``labels`` and ``drawn`` are written.
    """

    folder: pathlib.Path

    def __init__(
        self,
        predictor: Predictor,
        kind: str,
        *,
        told: str,
        files: Sequence[pathlib.Path],
        say: Callable[[str], None],
    ) -> None:
        self._kind, self._predictor, self._told, self._say = kind, predictor, told, say
        self._classes = int(predictor.function.outputs[0].shape[-1])
        self._names, self._draws = predictor.name_outputs(self._classes), True
        self._masks = dict(zip(files, name_masks(files), strict=True))

    def heading(self) -> str:
        return _heading("file", "mask", "lost", *self._names) if self._kind == "csv" else ""

    def format(self, files: Sequence[pathlib.Path], outputs: np.ndarray) -> str:
        """The lines of some files, whose label images are then written; ``outputs`` are those of the network [n, h, w, C]."""
        return "".join(self._line(file, each[None]) for file, each in zip(files, outputs, strict=True))

    def write_legend(self) -> None:
        """Writes the names of the classes in their colours."""
        if self._draws:
            draw_legend(self.folder / "colours.png", self._names)

    def _line(self, file: pathlib.Path, outputs: np.ndarray) -> str:
        labels, name = restore_mask(file, self._predictor.probabilities(outputs)[0], self._predictor), self._masks[file]
        place = self.folder / "labels" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(tf.io.encode_png(labels[..., None]).numpy())
        self._draw(file, name, labels)
        shares, lost = measure_shares(labels, self._classes)
        told, numbers = f"{self._told}/labels/{name}", [float(f"{value:.7g}") for value in (lost, *shares)]
        if self._kind == "csv":
            return _csv([printable(str(file)), printable(told), *numbers])
        shown = dict(zip(self._names, numbers[1:], strict=True))
        return _json({"file": str(file), "mask": told, "lost": numbers[0], "shares": shown})

    def _draw(self, file: pathlib.Path, name: pathlib.Path, labels: np.ndarray) -> None:
        if not self._draws:
            return
        place = self.folder / "drawn" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            draw_mask(place, file, labels, self._predictor)
        except ImportError:
            self._draws = False
            shutil.rmtree(self.folder / "drawn")
            self._say("masks were not drawn: the package matplotlib is missing (extra `report`)")


class FeatureFile:
    """Collects rows of features in files without names, so that memory does not grow, and writes them as one .npz file."""

    def __init__(
        self, folder: pathlib.Path, shapes: Sequence[tuple[tuple[int, ...], Any]], *, key: str = "file"
    ) -> None:
        self._shapes, self._key = shapes, key
        self._rows = [tempfile.TemporaryFile(dir=folder) for _ in shapes]  # noqa: SIM115 (closed by close)
        self.keys: list[Any] = []

    def add(self, keys: Sequence[Any], features: Sequence[np.ndarray]) -> None:
        self.keys += keys
        for file, rows in zip(self._rows, features, strict=True):
            file.write(np.ascontiguousarray(rows).data)

    def write(self, path: str) -> None:
        """Writes ``files`` [n] (of rows ``lines`` or ``indices``) and ``features`` [n, ...]; where there are several tensors, ``features_0``, ``features_1``, ..."""
        names = ["features"] if len(self._rows) == 1 else [f"features_{number}" for number in range(len(self._rows))]
        arrays = []
        for name, file, (shape, dtype) in zip(names, self._rows, self._shapes, strict=True):
            file.flush()
            arrays.append((name, np.memmap(file, dtype, "r", shape=(len(self.keys), *shape))))
        name = {"file": "files", "line": "lines", "index": "indices"}[self._key]
        keys: Any = (
            [os.fsencode(key).decode("utf-8", "replace") for key in self.keys] if self._key == "file" else self.keys
        )
        write_npz(path, [(name, np.array(keys)), *arrays])

    def close(self) -> None:
        for file in self._rows:
            file.close()
