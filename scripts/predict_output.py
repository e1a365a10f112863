"""What predict writes: a line of CSV or JSON for each image, or the arrays of an .npz file."""

from __future__ import annotations

import csv
import io
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from engine.data.image_files import printable
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
    told under their names unless ``top`` is given.
    """

    def __init__(self, predictor: Predictor, kind: str, *, top: int | None, outputs: int) -> None:
        self._kind, self._loss = kind, predictor.loss
        count = 2 if predictor.loss == "sigmoid" and outputs == 1 else outputs
        self._names = predictor.name_outputs(count)
        several = predictor.loss == "sigmoid" and outputs > 1
        self._all = predictor.loss == "mse" or (several and top is None)
        self._top = min(top or 1, count)

    def heading(self) -> str:
        if self._kind != "csv":
            return ""
        if self._all:
            return _csv(["file", *self._names])
        pairs = [("class", "probability"), *((f"class_{n}", f"probability_{n}") for n in range(2, self._top + 1))]
        return _csv(["file", *(word for pair in pairs for word in pair)])

    def format(self, files: Sequence[pathlib.Path], values: np.ndarray) -> str:
        """The lines of some files; ``values`` are their probabilities or values, [n, names]."""
        chosen = None if self._all else find_top(values, self._top)
        return "".join(
            self._line(file, row, None if chosen is None else chosen[number])
            for number, (file, row) in enumerate(zip(files, values, strict=True))
        )

    def _line(self, file: pathlib.Path, row: np.ndarray, chosen: np.ndarray | None) -> str:
        numbers = [float(f"{value:.7g}") for value in row]
        if chosen is None:
            if self._kind == "csv":
                return _csv([printable(str(file)), *numbers])
            key = "values" if self._loss == "mse" else "probabilities"
            return _json({"file": str(file), key: dict(zip(self._names, numbers, strict=True))})
        found = [(self._names[number], numbers[number]) for number in chosen]
        if self._kind == "csv":
            return _csv([printable(str(file)), *(word for pair in found for word in pair)])
        return _json({"file": str(file), "predictions": [{"class": c, "probability": p} for c, p in found]})


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
        folder: where ``labels`` and ``drawn`` are written.
        told: the path of that folder as lines tell it, from the folder of the table.
        files: all files, which decide the names.
        say: is told once if nothing can be drawn.
    """

    def __init__(
        self,
        predictor: Predictor,
        kind: str,
        *,
        folder: pathlib.Path,
        told: str,
        files: Sequence[pathlib.Path],
        say: Callable[[str], None],
    ) -> None:
        self._kind, self._predictor, self._folder, self._told, self._say = kind, predictor, folder, told, say
        self._classes = int(predictor.function.outputs[0].shape[-1])
        self._names, self._draws = predictor.name_outputs(self._classes), True
        self._masks = dict(zip(files, name_masks(files), strict=True))

    def heading(self) -> str:
        return _csv(["file", "mask", "lost", *self._names]) if self._kind == "csv" else ""

    def format(self, files: Sequence[pathlib.Path], outputs: np.ndarray) -> str:
        """The lines of some files, whose label images are then written; ``outputs`` are those of the network [n, h, w, C]."""
        return "".join(self._line(file, each[None]) for file, each in zip(files, outputs, strict=True))

    def write_legend(self) -> None:
        """Writes the names of the classes in their colours."""
        if self._draws:
            draw_legend(self._folder / "colours.png", self._names)

    def _line(self, file: pathlib.Path, outputs: np.ndarray) -> str:
        labels, name = restore_mask(file, self._predictor.probabilities(outputs)[0], self._predictor), self._masks[file]
        place = self._folder / "labels" / name
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
        place = self._folder / "drawn" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            draw_mask(place, file, labels, self._predictor)
        except ImportError:
            self._draws = False
            shutil.rmtree(self._folder / "drawn")
            self._say("masks were not drawn: the package matplotlib is missing (extra `report`)")


class FeatureFile:
    """Collects rows of features in files without names, so that memory does not grow, and writes them as one .npz file."""

    def __init__(self, folder: pathlib.Path, shapes: Sequence[tuple[tuple[int, ...], Any]]) -> None:
        self._shapes = shapes
        self._rows = [tempfile.TemporaryFile(dir=folder) for _ in shapes]  # noqa: SIM115 (closed by close)
        self.files: list[str] = []

    def add(self, files: Sequence[pathlib.Path], features: Sequence[np.ndarray]) -> None:
        self.files += map(str, files)
        for file, rows in zip(self._rows, features, strict=True):
            file.write(np.ascontiguousarray(rows).data)

    def write(self, path: str) -> None:
        """Writes ``files`` [n] and ``features`` [n, ...]; where there are several tensors, ``features_0``, ``features_1``, ..."""
        names = ["features"] if len(self._rows) == 1 else [f"features_{number}" for number in range(len(self._rows))]
        arrays = []
        for name, file, (shape, dtype) in zip(names, self._rows, self._shapes, strict=True):
            file.flush()
            arrays.append((name, np.memmap(file, dtype, "r", shape=(len(self.files), *shape))))
        write_npz(
            path, [("files", np.array([os.fsencode(name).decode("utf-8", "replace") for name in self.files])), *arrays]
        )

    def close(self) -> None:
        for file in self._rows:
            file.close()
