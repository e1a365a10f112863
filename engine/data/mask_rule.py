"""The rule by which the numbers in label images become classes: said by the user, never guessed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.data.part import IGNORED, DataError
from engine.text import nearest

KINDS = ("classes", "instances")
OBJECT_NAMES = ("background", "object")
MOST_CLASSES = IGNORED  # 0 to 254
_MOST_UNNAMED = 32  # more classes than that are believed only where something says so
_WAYS_OUT = {  # by whether the masks are trained on
    True: "--masks=instances reads 0 as the background and any other number as an object; --masks=classes takes the numbers as "
    "those of classes, from 0",
    False: "The run was trained without --masks, on the numbers of classes. If these are such numbers, name the classes in "
    "classes.txt, one in each line, beside the folders; if they are objects, save them as the numbers of their classes",
}
_EXAMPLE = "such as classes, instances or classes,ignore=0"


@dataclass(frozen=True)
class MaskRule:
    """How the numbers in label images become classes.

    Attributes:
        kind: "classes": a number is that of a class. "instances": 0 is the background, and any other number an object.
            None: not said; numbers are those of classes unless they look like anything else, which is an error.
        ignore: the number of pixels that do not count; None if every pixel counts.
    """

    kind: Literal["classes", "instances"] | None = None
    ignore: int | None = IGNORED


def parse_masks(text: str | None) -> MaskRule:
    """Reads ``--masks``: classes or instances, and ``,ignore=N`` or ``,ignore=none``; None says nothing.

    Numbers of classes have 255 as the number of ignored pixels unless another is given, those of instances have none.

    Example:
        >>> parse_masks("classes,ignore=0"), parse_masks("instances")
        (MaskRule(kind='classes', ignore=0), MaskRule(kind='instances', ignore=None))
    """
    if text is None:
        return MaskRule()
    kind, *options = [word.strip() for word in text.split(",")]
    if kind not in KINDS:
        raise DataError(f"masks={text!r}: expected {' or '.join(KINDS)}, {_EXAMPLE}{nearest(kind, list(KINDS))}")
    ignore = IGNORED if kind == "classes" else None
    for option in options:
        match = re.fullmatch(r"ignore=(none|\d{1,5})", option)
        if match is None or len(options) > 1 or (match[1] != "none" and int(match[1]) > 65535):
            raise DataError(f"masks={text!r}: `{option}` is not valid; expected ignore=N or ignore=none, {_EXAMPLE}")
        ignore = None if match[1] == "none" else int(match[1])
    return MaskRule("classes" if kind == "classes" else "instances", ignore)


@dataclass
class Numbers:
    """What the numbers in label images are like, as far as they have been read.

    Attributes:
        counts: how many pixels have each number, int64 [65536], ignored ones left out.
        runs: for each label image, the largest number K if its numbers are 1 to K without a gap, beside 0; else -1.
        ignored: how many pixels have the number that is ignored.
    """

    counts: np.ndarray
    runs: list[int]
    ignored: int = 0

    @classmethod
    def empty(cls) -> Numbers:
        return cls(np.zeros(65536, np.int64), [])

    def add(self, found: np.ndarray, ignored: int = 0) -> None:
        """Counts in another label image, by the pixels of each number, int64 [at most 65536], and those that are ignored."""
        self.ignored += ignored
        self.counts[: len(found)] += found
        used = np.flatnonzero(found[1:]) + 1
        self.runs.append(len(used) if not len(used) or used[-1] == len(used) else -1)


def count_numbers(labels: np.ndarray, rule: MaskRule) -> tuple[np.ndarray, int]:
    """How many pixels of a label image have each number, int64 [65536], without those that the rule ignores; and how many these are."""
    found, ignored = np.bincount(labels.ravel(), minlength=65536), 0
    if rule.ignore is not None:
        ignored, found[rule.ignore] = int(found[rule.ignore]), 0
    return found, ignored


def apply_rule(labels: np.ndarray, rule: MaskRule) -> np.ndarray:
    """Numbers of a label image as classes, uint8 with ``IGNORED`` for pixels that do not count.

    Numbers of 255 and more, which ``check_numbers`` refuses, come out as anything.
    """
    classes = (labels != 0).astype(np.uint8) if rule.kind == "instances" else labels.astype(np.uint8)
    if rule.ignore is not None:
        classes[labels == rule.ignore] = IGNORED
    return classes


def check_numbers(
    spec: str, numbers: Numbers, rule: MaskRule, names: Sequence[str] | None, *, to_train: bool = True
) -> int:
    """Returns the number of classes; raises DataError, with the way out, if the numbers in label images cannot be theirs.

    ``names`` are those of ``classes.txt``, if there are any. Masks of one class alone are nothing to train on. Unless
    ``to_train``, the run decides the rule, so no way out is a flag.
    """
    used = np.flatnonzero(numbers.counts)
    if not len(used):
        way_out = "give another number, or ignore=none" if to_train else "there is nothing to evaluate in them"
        whose = "--masks says" if to_train else "the run read its own"
        raise DataError(
            f"data={spec}: every pixel of the masks is ignored, as {whose} (ignore={rule.ignore}); {way_out}"
        )
    if rule.kind == "instances":
        if names is not None and len(names) != 2:
            way_out = "--masks=classes takes the numbers as those of classes" if to_train else "name these two"
            raise DataError(
                f"data={spec}: classes.txt names {len(names)} classes, but --masks=instances gives two: background and "
                f"object; {way_out}"
            )
        return 2
    largest = int(used[-1])
    suspicion = _suspicion(numbers, used, named=names is not None, to_train=to_train)
    if rule.kind is None and suspicion is not None:
        raise DataError(
            f"data={spec}: the masks do not say what their numbers mean: {suspicion}. {_WAYS_OUT[to_train]}"
        )
    if names is not None and largest >= len(names):
        way_out = f", or leave pixels out by --masks=classes,ignore={largest}" if to_train else ""
        raise DataError(
            f"data={spec}: the masks have pixels of number {largest}, but classes.txt names {len(names)} classes, 0 to "
            f"{len(names) - 1}; name the others too{way_out}"
        )
    if largest >= MOST_CLASSES:
        way_out = "; --masks=instances is for masks that number objects" if to_train else ", as the run has them"
        raise DataError(
            f"data={spec}: the masks have numbers up to {largest}; expected classes from 0 to at most {MOST_CLASSES - 1}{way_out}"
        )
    count = largest + 1 if names is None else len(names)
    if count < 2 and to_train:
        ignored = "" if rule.ignore is None else f" (pixels of {rule.ignore} are ignored)"
        raise DataError(
            f"data={spec}: the masks have only class 0{ignored}; expected two classes or more. If any other number is the "
            "object, --masks=instances reads it so"
        )
    return count


def _suspicion(numbers: Numbers, used: np.ndarray, *, named: bool, to_train: bool) -> str | None:
    """Why numbers may not be those of classes; None if nothing speaks against it.

    Of masks that are only evaluated, a few may have few of the classes, which the run decided; what they are not is known later,
    when they are held against the model.
    """
    largest, runs = int(used[-1]), [run for run in numbers.runs if run]
    if largest >= MOST_CLASSES:
        return f"they go up to {largest}, more than there can be classes"
    hidden = largest == 0 and numbers.ignored > 0  # 255 may be the object
    if len(used) == 1 and ((to_train and not named) or (hidden and (to_train or not named))):
        return f"all pixels that count are {largest} (255 is ignored)"
    if named:
        return None
    gapless = [run for run in runs if run > 0]
    if largest > 1 and len(set(gapless)) > 1 and len(gapless) >= 0.8 * len(runs):
        return (
            f"in most masks they count from 1 without a gap, up to {min(gapless)} in one and {max(gapless)} in another, as "
            "objects are numbered"
        )
    if to_train and (largest >= _MOST_UNNAMED or largest > 2 * len(used)):
        return f"they go up to {largest}, {len(used)} of them occur, and there is no classes.txt"
    return None
