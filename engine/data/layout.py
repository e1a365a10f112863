"""Decides which folders of an image folder are parts and which are classes; where names and content disagree, it asks."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

from engine.data.image_files import printable
from engine.data.part import DataError
from engine.data.part_names import PARTS, find_part, list_named
from engine.text import join_words

FOLDER_PARTS = ("auto", "off")  # whether a folder may be a part by its name


@dataclass(frozen=True)
class Content:
    """What lies directly in a folder: how many images, and how many folders."""

    images: int
    folders: int

    @property
    def holds_a_class(self) -> bool:
        """Whether it has images but no folders, so that it cannot be a part."""
        return self.images > 0 and self.folders == 0


@dataclass(frozen=True)
class Layout:
    """The folder of each part ("" for the folder itself), the folders beside them, and lines for people."""

    roots: Mapping[str, str]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def decide_layout(
    spec: str, folder: pathlib.Path, top: Mapping[str, Content], *, parts: str = "auto", to_train: bool = True
) -> Layout:
    """Decides by the names in ``top``, the folders in ``folder``, and by what lies in them; with ``parts="off"``, all
    are classes. Unless ``to_train``, there may be other parts without a train, and no error names a flag of ``finetune``.

    Raises:
        DataError: there are parts but no train, two folders could be the evaluation part, or names say that folders are
            parts while their content says that they are classes.
    """
    if parts == "off":
        return Layout({"train": ""})
    named = sorted(name for name in top if find_part(name) is not None)
    others = sorted(set(top) - set(named))
    filled = [name for name in others if top[name].images]
    flat = [name for name in named if top[name].holds_a_class]
    if filled and flat and len(flat) == len(named):
        note = (
            f"data: {join_words(named)} {'is read as a class' if len(named) == 1 else 'are read as classes'}, because images "
            f"lie directly in {'it' if len(named) == 1 else 'them'}, as in the folders beside; a part has a folder for each class"
        )
        return Layout({"train": ""}, notes=(note,))
    if "train" in top:
        return _parts(spec, folder, top, others, "train", to_train=to_train)
    spelt = [name for name in named if name.lower() == "train" and top[name].folders and not top[name].images]
    if len(spelt) == 1 and not filled:
        return _parts(spec, folder, top, others, spelt[0], to_train=to_train)
    if not to_train and not filled and not flat and any(find_part(name) != "train" for name in named):
        return _parts(spec, folder, top, others, None, to_train=to_train)
    if found := sorted({"val", "test"} & set(top)):
        as_classes = "give --parts=off, which reads every folder as a class, or rename it" if to_train else "rename it"
        raise DataError(
            f"data={spec}: there is a folder {' and '.join(found)}, but no folder train; if it is a class, {as_classes}"
        )
    if top and not others:
        as_classes = "--parts=off says so" if to_train else "rename them, or put them into a folder test"
        raise DataError(
            f"data={spec}: its folders are {', '.join(sorted(top))}, which look like parts, not classes; the parts must "
            f"be named train, val and test (if they are classes, {as_classes})"
        )
    notes = [
        f"data: {name} is read as a class, although it has folders and the name of a part; a part needs a folder train "
        "beside it"
        for name in named
    ]
    return Layout({"train": ""}, notes=tuple(notes))


def _parts(
    spec: str,
    folder: pathlib.Path,
    top: Mapping[str, Content],
    others: list[str],
    train: str | None,
    *,
    to_train: bool,
) -> Layout:
    """The layout with the training part ``train``; ``others`` are the folders without the name of a part."""
    roots, notes = {} if train is None else {"train": train}, []
    if train not in (None, "train"):
        notes.append(f"data: the folder {train} is the part train")
    filled = [name for name in top if top[name] != Content(0, 0)]
    for part in PARTS:
        found = list_named(filled, part) or [name for name in top if name == part]
        if len(found) > 1:
            which = "keep" if part in found else "rename"
            raise DataError(
                f"data={spec}: {join_words(map(printable, found))} could each be the part {part}; {which} the one that is meant "
                f"{'as' if part in found else 'to'} {part}, and move the others out of {folder}"
            )
        if found and part != "train":
            roots[part] = found[0]
            if found[0] != part:
                notes.append(f"data: the folder {found[0]} is the part {part}")
    off = "give --parts=off, or " if to_train else ""
    beside = [printable(name) for name in others if top[name] != Content(0, 0)]
    if beside and train is not None and len(roots) == 1:
        if classes := [printable(name) for name in others if top[name].images]:
            directly = "since images lie directly in it" if top[train].images else "in which images lie directly"
            raise DataError(
                f"data={spec}: {train} could be the training part, since it has folders, or a class like "
                f"{join_words(classes)}, {directly}; if it is a class, {off}rename it; if it is the training part, "
                f"--data=folder:{folder / train} reads it alone"
            )
        notes.append(
            f"data: train is the training part, so {join_words(beside)} beside it {'is' if len(beside) == 1 else 'are'} "
            f"left out; if train is a class, rename it{' or give --parts=off' if to_train else ''}"
        )
    left = sorted(set(top) - set(roots.values()))
    return Layout(roots, tuple(left), tuple(notes))
