"""Lists the files that a project of TensorFlow 1 left, by what each is for. Only names and first bytes are read."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from compat_v1.migration.commands import count
from compat_v1.migration.foreign import recognise
from engine.errors import InputError
from engine.files import FileError
from engine.porting.readers import locate
from engine.porting.readers.graph_file import MetaGraphError, find_graph_file, list_tags
from engine.reading import open_file
from engine.text import join_some, nearest

_SAVED = ("saved_model.pb", "saved_model.pbtxt")
_CHECKPOINT_FILE = re.compile(r"(?P<prefix>.*)\.(index|data-\d{5}-of-\d{5})")
_DEEPEST, _MOST_FOLDERS = 6, 2000
_TEXT_GRAPH = re.compile(
    rb"(?:\s|#[^\n]*\n)*(?:node|versions?|library|meta_info_def|graph_def|saver_def|collection_def|signature_def|meta_graphs"
    rb"|saved_model_schema_version)\b"
)
_USUAL = {
    "graph.pbtxt": "the graph of a training run as text, without weights or collections",
    "tfhub_module.pb": "marks a module of TensorFlow Hub",
    "fingerprint.pb": "the fingerprint of a SavedModel",
    "keras_metadata.pb": "the layers of a SavedModel that Keras wrote",
}


@dataclass(frozen=True)
class Item:
    """A file, or several that belong together: what they are for, and what is wrong with them ("" if nothing is)."""

    path: str
    purpose: str
    damage: str = ""


@dataclass(frozen=True)
class Scan:
    """What lies at a path.

    Attributes:
        root: the folder, or the file that was named.
        kind: what it is as a whole, for people.
        items: the files.
        checkpoints: the prefixes of the checkpoints, except those inside of SavedModels.
        latest: the one of them that the file ``checkpoint`` names, or that is named by the user; None if nothing says it.
        graphs: the files with graphs, the most useful first.
    """

    root: pathlib.Path
    kind: str
    items: tuple[Item, ...]
    checkpoints: tuple[str, ...]
    latest: str | None
    graphs: tuple[pathlib.Path, ...]


def scan(path: str | os.PathLike[str]) -> Scan:
    """Lists what lies at a path: a folder, a graph file, or a checkpoint by its prefix or one of its files.

    Raises InputError if there is nothing, or nothing of TensorFlow 1; the message says what it is and what reads it.
    """
    text = os.fspath(path)
    place = pathlib.Path(text)
    if place.name in (*_SAVED, "tfhub_module.pb", "checkpoint") and place.is_file():
        place = place.parent
    if place.is_dir() and not (text.endswith("/") and pathlib.Path(f"{text}.index").is_file()):
        return _scan_folder(pathlib.Path(os.path.abspath(place)))
    if place.is_file() and place.name.endswith((".meta", ".pb", ".pbtxt")):
        return _scan_graph(place)
    return _scan_checkpoint(text)


def _scan_folder(folder: pathlib.Path) -> Scan:
    items: list[Item] = []
    checkpoints: list[str] = []
    graphs: list[pathlib.Path] = []
    others: list[str] = []
    for place, names in _walk(folder):
        found = _scan_names(place, names, items, checkpoints, graphs)
        others += [str(place / name) for name in found]
    if not checkpoints and not graphs and not any(item.damage for item in items):
        what = recognise(folder)
        known = [f"{name} ({clause})" for name in others[:20] if (clause := recognise(pathlib.Path(name)))]
        here = what or "; ".join(known[:3]) or join_some([os.path.relpath(name, folder) for name in others], most=8)
        raise InputError(
            f"old={folder}: nothing of TensorFlow 1 was found; it {'is' if what else 'holds'} {here or 'no file'}"
        )
    top = {str(folder / name) for name in os.listdir(folder)}
    latest = _latest(folder, checkpoints)
    if others:
        names = [os.path.relpath(name, folder) for name in others]
        items.append(Item(f"{count(len(others), 'other file')}", f"not of TensorFlow 1: {join_some(names, most=4)}"))
    return Scan(
        folder,
        _name_kind(folder, top, checkpoints, graphs),
        tuple(items),
        tuple(checkpoints),
        latest,
        _order(graphs, latest),
    )


def _walk(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, list[str]]]:
    """The folders below one, itself first, with the names of their files; links to folders are not followed."""
    for number, (place, folders, names) in enumerate(os.walk(folder)):
        if number >= _MOST_FOLDERS:
            return
        depth = len(pathlib.Path(place).relative_to(folder).parts)
        folders[:] = sorted(folders) if depth < _DEEPEST else []
        yield pathlib.Path(place), sorted(names)


def _scan_names(
    place: pathlib.Path, names: list[str], items: list[Item], checkpoints: list[str], graphs: list[pathlib.Path]
) -> list[str]:
    """Adds what lies in one folder; returns the names of the files that belong to no kind."""
    if place.name == "variables" and any((place.parent / name).is_file() for name in _SAVED):
        return []  # part of the SavedModel above
    left = []
    prefixes = locate.list_prefixes(place)
    checkpoints += prefixes
    items += [_describe_checkpoint(prefix) for prefix in prefixes]
    shown = {os.path.basename(prefix) for prefix in prefixes}
    orphans: dict[str, None] = {}
    summaries = 0
    for name in names:
        path = place / name
        match = _CHECKPOINT_FILE.fullmatch(name)
        if name in _SAVED:
            graphs.append(path)
            items.append(_describe_saved(path))
        elif name == "checkpoint":
            items.append(Item(str(path), _describe_state(place, shown)))
        elif name in _USUAL and name != "graph.pbtxt":
            items.append(Item(str(path), _USUAL[name]))
        elif name.endswith((".meta", ".pb")) or (name.endswith(".pbtxt") and _is_text_graph(path)):
            graphs.append(path)
            items.append(Item(str(path), _graph_purpose(path)))
        elif match is not None:
            if match["prefix"] not in shown:
                orphans[match["prefix"]] = None
        elif re.search(r"tfevents", name):
            summaries += 1
        elif place.name == "assets" or place.parent.name == "assets":
            items.append(Item(str(path), "an asset, a file that the graph reads"))
        elif name not in shown and re.sub(r"-\d{5}-of-\d{5}$", "", name) not in shown:
            if damage := _find_damage(path):
                items.append(Item(str(path), "checkpoint", damage))
            else:
                left.append(name)
    items += [
        Item(
            str(place / prefix),
            "checkpoint",
            f"{place / prefix}.index is missing, without which its data cannot be read",
        )
        for prefix in orphans
    ]
    if summaries:
        where = "of the evaluations" if "eval" in place.name else "of the training"
        items.append(Item(str(place), f"{count(summaries, 'file')} of summaries {where}, for TensorBoard"))
    return left


def _describe_state(place: pathlib.Path, shown: set[str]) -> str:
    """What a file ``checkpoint`` says; it often names a place on its author's disk, of which the last part counts."""
    named = locate.read_state(place)
    if named is None:
        return "should name the latest checkpoint, and names none"
    name = re.split(r"[/\\]", named)[-1]
    return f"names the latest checkpoint, {name or named}" + ("" if name in shown else ", which is not there")


def _is_text_graph(path: pathlib.Path) -> bool:
    """Whether a text may be a graph; label maps and other messages have the same ending."""
    try:
        with open_file(path) as file:
            return path.name == "graph.pbtxt" or _TEXT_GRAPH.match(file.read(4096)) is not None
    except (OSError, FileError):
        return False


def _find_damage(path: pathlib.Path) -> str:
    """What is wrong with a file that seems to have been a checkpoint; "" for any other file."""
    try:
        locate.locate(path)
    except FileError as error:
        return str(error)
    return ""


def _describe_checkpoint(prefix: str) -> Item:
    graph = pathlib.Path(f"{prefix}.meta")
    return Item(prefix, "checkpoint, with its graph beside it" if graph.is_file() else "checkpoint, without its graph")


def _describe_saved(path: pathlib.Path) -> Item:
    what = "a module of TensorFlow Hub" if (path.parent / "tfhub_module.pb").is_file() else "a SavedModel"
    try:
        tags = list_tags(path)
    except (MetaGraphError, FileError) as error:
        return Item(str(path), what, str(error))
    listed = "; ".join(",".join(each) or "(no tags)" for each in tags)
    return Item(str(path), f"{what}: {count(len(tags), 'graph')}, with the tags: {listed}")


def _graph_purpose(path: pathlib.Path) -> str:
    if path.name in _USUAL:
        return _USUAL[path.name]
    return "a graph with its collections and Saver" if path.name.endswith(".meta") else "a graph"


def _scan_graph(file: pathlib.Path) -> Scan:
    items = [Item(str(file), _graph_purpose(file))]
    prefixes: tuple[str, ...] = ()
    if file.name.endswith(".meta"):
        prefix = str(file)[: -len(".meta")]
        try:
            prefixes = (prefix,) if locate.locate(prefix) is not None else ()
        except FileError as error:
            items.append(Item(prefix, "checkpoint", str(error)))
        items += [_describe_checkpoint(prefix) for prefix in prefixes]
    return Scan(file, "a graph file", tuple(items), prefixes, next(iter(prefixes), None), (file,))


def _scan_checkpoint(text: str) -> Scan:
    place = pathlib.Path(text)
    found = None if recognise(place) else locate.locate(text)
    if found is None:
        if what := recognise(place):
            raise InputError(f"old={text}: this is {what}")
        if not place.exists():
            here = sorted(os.listdir(place.parent)) if place.parent.is_dir() else []
            raise InputError(f"old={text}: there is no such file, folder or checkpoint{nearest(place.name, here)}")
        raise InputError(
            f"old={text}: this is not a file of TensorFlow 1 that is known; expected a folder, a checkpoint, a .meta file, a "
            "SavedModel or a frozen .pb"
        )
    graph = find_graph_file(pathlib.Path(found.prefix))
    items = [_describe_checkpoint(found.prefix), *([Item(str(graph), _graph_purpose(graph))] if graph else [])]
    return Scan(place, "a checkpoint", tuple(items), (found.prefix,), found.prefix, () if graph is None else (graph,))


def _latest(folder: pathlib.Path, checkpoints: list[str]) -> str | None:
    """The only checkpoint, or the one that the file ``checkpoint`` names, of the folder or of the only one with checkpoints."""
    if len(checkpoints) == 1:
        return checkpoints[0]
    places = {os.path.dirname(prefix) for prefix in checkpoints}
    place = places.pop() if len(places) == 1 else str(folder)
    named = locate.read_state(pathlib.Path(place))
    name = None if named is None else re.split(r"[/\\]", named)[-1]
    return next((p for p in checkpoints if name is not None and p == f"{place}/{name}"), None)


def _order(graphs: list[pathlib.Path], latest: str | None) -> tuple[pathlib.Path, ...]:
    """The graphs, first the one of the latest checkpoint, then SavedModels, the newest first, and others."""

    def rank(path: pathlib.Path) -> int:
        if latest is not None and str(path) == f"{latest}.meta":
            return 0
        return 1 if path.name in _SAVED else 2 if path.suffix == ".pb" else 3 if path.name == "graph.pbtxt" else 4

    newest_first = sorted(graphs, key=lambda path: str(path), reverse=True)
    return tuple(sorted(newest_first, key=rank))


def _name_kind(folder: pathlib.Path, top: set[str], checkpoints: list[str], graphs: list[pathlib.Path]) -> str:
    here = {os.path.basename(name) for name in top}
    if "tfhub_module.pb" in here:
        return "a module of TensorFlow Hub"
    if here & set(_SAVED):
        return "a SavedModel"
    direct = [prefix for prefix in checkpoints if os.path.dirname(prefix) == str(folder)]
    if direct and ("graph.pbtxt" in here or "eval" in here or any("tfevents" in name for name in here)):
        return "the model_dir of an Estimator, or another folder of a training run"
    if direct:
        return "a folder with checkpoints" if len(direct) > 1 else "a folder with a checkpoint"
    if graphs or checkpoints:
        return "a folder with graphs" if graphs else "a folder with checkpoints below it"
    return "a folder with damaged files"
