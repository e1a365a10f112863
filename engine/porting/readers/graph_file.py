"""Reads the graph that weights belong to from a file, as data: nothing of it is built or run.

| file | holds |
|---|---|
| ``.meta`` | a MetaGraphDef: the graph with its Saver, collections and signatures |
| ``saved_model.pb``, or its folder | a SavedModel: MetaGraphDefs, told apart by their tags |
| a frozen ``.pb``, ``graph.pbtxt`` | a bare GraphDef; in a frozen one, the weights are constants |

Each may be in binary or in text form. Which one a file is, is recognised by its content.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from google.protobuf import text_format  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from engine.errors import InputError
from engine.files import FileError, PathLike
from engine.reading import check_names, check_regular, read_file
from engine.text import join_some

LARGEST = 2**31 - 1  # bytes in a protocol buffer message
_SAVED = ("saved_model.pb", "saved_model.pbtxt")
_KINDS = {
    "meta_info_def graph_def saver_def collection_def signature_def asset_file_def": meta_graph_pb2.MetaGraphDef,
    "saved_model_schema_version meta_graphs": saved_model_pb2.SavedModel,
    "node versions version library": graph_pb2.GraphDef,
}
_MESSAGES = {field: kind for fields, kind in _KINDS.items() for field in fields.split()}
_TEXT = re.compile(rb"(?:\s|#[^\n]*\n)*(\w+)\s*[:{<]")
_OTHERS = (
    (b"\x89HDF\r\n\x1a\n", "a Keras or HDF5 file"),
    (b"PK\x03\x04", "a zip archive, such as a .keras or .npz file"),
    (b"TFL3", "a TensorFlow Lite model"),
)


class MetaGraphError(InputError):
    """A file that is not a graph, is damaged, or needs unknown operations. The message names it."""


class GraphFile(NamedTuple):
    """A graph as a MetaGraphDef. ``note`` says which of several graphs it is, and is "" where there is only one."""

    path: pathlib.Path
    definition: Any
    note: str = ""


def read_graph_file(path: PathLike, *, tags: Collection[str] | None = None, training: bool = False) -> GraphFile:
    """Reads a graph file of any kind in the table above.

    ``tags`` choose one of several graphs of a SavedModel, () the one without tags. By default that is the graph that
    serves: the one tagged ``serve``, else the one without tags, else the only one without ``train``; or with
    ``training`` the one that trains. Raises MetaGraphError if there is no such file; it is not a graph, or truncated;
    it holds several graphs of which neither the tags nor these rules choose one.
    """
    file = _file(pathlib.Path(path))
    found = _parse(file, _content(file))
    note = ""
    if isinstance(found, saved_model_pb2.SavedModel):
        found, note = _choose(file, found.meta_graphs, tags, training)
    else:
        if isinstance(found, graph_pb2.GraphDef):
            found = meta_graph_pb2.MetaGraphDef(graph_def=found)
        if tags is not None and set(tags) != set(found.meta_info_def.tags):
            raise MetaGraphError(
                f"tags={','.join(sorted(tags))}: {file} holds one graph; only a SavedModel has several"
            )
    if not found.graph_def.node:
        raise MetaGraphError(f"{file}: not a graph; it holds no node of one")
    check_names(file, (node.name for node in found.graph_def.node))
    return GraphFile(file, found, note)


def list_tags(path: PathLike) -> list[tuple[str, ...]]:
    """Lists the tags of each graph of a SavedModel, sorted; raises MetaGraphError as ``read_graph_file`` does."""
    file = _file(pathlib.Path(path))
    found = _parse(file, _content(file))
    graphs = found.meta_graphs if isinstance(found, saved_model_pb2.SavedModel) else [found]
    return [tuple(sorted(each.meta_info_def.tags)) if hasattr(each, "meta_info_def") else () for each in graphs]


def find_graph_file(weights: pathlib.Path) -> pathlib.Path | None:
    """Returns the graph that lies beside a checkpoint, given the checkpoint's prefix or folder; None if there is none.

    That is ``PREFIX.meta``, ``DIR/.meta`` for a checkpoint without a name, or the SavedModel that it is part of. A frozen graph
    is its own.
    """
    if weights.suffix in (".pb", ".pbtxt") and weights.is_file():
        return weights
    beside = [weights.with_name(f"{weights.name}.meta"), weights / ".meta"]
    folders = [weights, *([weights.parent.parent] if weights.parent.name == "variables" else [])]
    beside += [folder / name for folder in folders for name in _SAVED]
    return next((file for file in beside if file.is_file()), None)


def _file(path: pathlib.Path) -> pathlib.Path:
    if path.is_dir():
        for name in _SAVED:
            if (path / name).is_file():
                return path / name
        here = sorted(str(path / name) for name in os.listdir(path) if name.endswith((".meta", ".pbtxt", ".pb")))
        hint = f"; name a file in it, such as {join_some(here, most=3)}" if here else ""
        raise MetaGraphError(f"{path}: the folder holds no saved_model.pb{hint}")
    try:
        check_regular(path)
    except FileError as error:
        hint = f"; did you mean {path}.meta?" if path.with_name(path.name + ".meta").is_file() else ""
        raise MetaGraphError(f"{error}{hint}") from None
    return path


def _content(file: pathlib.Path) -> bytes:
    try:
        size = file.stat().st_size
        if not 0 < size <= LARGEST:
            raise MetaGraphError(f"{file}: the file has {size} bytes; expected 1 to {LARGEST} for a graph")
        content = read_file(file, LARGEST)
    except OSError as error:
        raise MetaGraphError(f"{file}: the file cannot be read ({error.strerror})") from None
    if content.startswith(b"version https://git-lfs"):
        raise MetaGraphError(f"{file}: this is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
    for start, kind in _OTHERS:
        if content.startswith(start) or content[4:8] == start:
            raise MetaGraphError(f"{file}: this is {kind}, not a graph of TensorFlow 1")
    return content


def _parse(file: pathlib.Path, content: bytes) -> Any:
    """Parses a message of the kind that the content has."""
    match = _TEXT.match(content)
    if match is not None and (kind := _MESSAGES.get(match[1].decode(errors="replace"))) is not None:
        try:
            return text_format.Parse(content.decode(), kind())
        except (text_format.ParseError, UnicodeDecodeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise MetaGraphError(
                f"{file}: this text is not a valid {kind.__name__}, or a truncated one ({reason})"
            ) from None
    first = [saved_model_pb2.SavedModel] if file.name == _SAVED[0] else []
    for kind in [*first, meta_graph_pb2.MetaGraphDef, graph_pb2.GraphDef, saved_model_pb2.SavedModel]:
        try:
            found = kind.FromString(content)
        except DecodeError:
            continue
        if _is_graph(found):
            return found
    if set(content) <= {0}:
        raise MetaGraphError(f"{file}: the file holds nothing but zeros")
    for kind in (meta_graph_pb2.MetaGraphDef, graph_pb2.GraphDef):  # a valid message without a graph
        try:
            return kind.FromString(content)
        except DecodeError:
            continue
    raise MetaGraphError(
        f"{file}: not a graph, or a truncated one; expected a MetaGraph (.meta), a SavedModel, or a GraphDef "
        "(a frozen .pb, or graph.pbtxt)"
    )


def _is_graph(found: Any) -> bool:
    """Whether a message makes sense: any bytes may happen to be a valid message of another kind."""
    if isinstance(found, saved_model_pb2.SavedModel):
        return bool(found.meta_graphs)
    nodes = (found if isinstance(found, graph_pb2.GraphDef) else found.graph_def).node
    return bool(nodes) and all(node.name and node.op for node in nodes)


def _choose(file: pathlib.Path, found: Sequence[Any], tags: Collection[str] | None, training: bool) -> tuple[Any, str]:
    """Returns the graph of a SavedModel that the tags or the defaults choose, and a note if there are several."""
    sets = [frozenset(one.meta_info_def.tags) for one in found]
    listed = "; ".join(_tag_text(each) for each in sets) or "none"
    held = f"the file holds {len(found)} graphs, with the tags: {listed}"
    chosen = list(_candidates(sets, None if tags is None else frozenset(tags), training))
    if len(chosen) == 1:
        which = f"the graph tagged {_tag_text(sets[chosen[0]])}" if sets[chosen[0]] else "the graph without tags"
        note = f"{which}, of {len(found)} ({listed}); tags= chooses another"
        return found[chosen[0]], note if len(found) > 1 else ""
    if tags is not None:
        count = "no graph has" if not chosen else f"{len(chosen)} graphs have"
        raise MetaGraphError(f"{file}: tags={','.join(sorted(tags))}: {count} these tags; {held}")
    such_as = f"choose one by its tags, such as tags={','.join(sorted(sets[chosen[0]]))}; " if chosen else ""
    raise MetaGraphError(f"{file}: {such_as}{held}")


def _candidates(sets: Sequence[frozenset[str]], tags: frozenset[str] | None, training: bool) -> Iterator[int]:
    """Yields the numbers of the graphs that are meant."""
    if tags is not None:
        yield from (number for number, each in enumerate(sets) if each == tags)
        return
    fitting = [number for number, each in enumerate(sets) if ("train" in each) == training] or list(range(len(sets)))
    for usual in ({"train"}, {"serve"}, set()):
        exact = [number for number in fitting if sets[number] == usual]
        if len(exact) == 1 < len(fitting):
            fitting = exact
    yield from fitting


def _tag_text(tags: Collection[str]) -> str:
    return ",".join(sorted(tags)) or "(no tags)"
