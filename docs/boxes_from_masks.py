"""Writes a table of boxes for `--data=boxes:FILE.csv` from masks of instances: images of numbers, 0 where there is nothing.

    python docs/boxes_from_masks.py MASKS IMAGES boxes.csv CLASS

Each number in a mask becomes a box around its pixels. An image and its mask have the same name; one without a mask is named,
and gets no row.
"""

import csv
import os
import pathlib
import sys

import numpy as np
import tensorflow as tf


def find_boxes(mask: np.ndarray) -> list[tuple[int, int, int, int]]:
    """x1, y1, x2, y2 around the pixels of each number above 0; the last two lie outside."""
    boxes = []
    for number in np.unique(mask[mask > 0]):
        rows, columns = np.nonzero(mask == number)
        boxes.append((int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1))
    return boxes


def write_table(masks: pathlib.Path, images: pathlib.Path, out: pathlib.Path, name: str) -> None:
    with out.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["image", "x1", "y1", "x2", "y2", "class"])
        for image in sorted(images.glob("*.png")):
            path = os.path.relpath(image, out.parent)
            if not (masks / image.name).exists():
                print(f"{image.name} has no mask")
                continue
            mask = tf.io.decode_png((masks / image.name).read_bytes(), channels=1, dtype=tf.uint16).numpy()[..., 0]
            found = find_boxes(mask)
            rows.writerows([path, *box, name] for box in found)
            if not found:
                rows.writerow([path, "", "", "", "", ""])


if __name__ == "__main__":
    masks, images, out, name = sys.argv[1:]
    write_table(pathlib.Path(masks), pathlib.Path(images), pathlib.Path(out), name)
