"""Reads an old MetaGraph (``.meta``, or a SavedModel's ``saved_model.pb``) as data: nothing of it is built or run.

Building is not harmless: where a shape depends on constants, TensorFlow evaluates the ops in between as soon as a
graph is imported, files that they read included. So a MetaGraph is read, checked and repaired as a message, and
``graph`` refuses what importing could run.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorflow.core.framework import variable_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from engine import tensorflow_private
from engine.audit.graph_collections import GraphFacts
from engine.errors import InputError
from engine.graphs.graph_variables import GraphVariable, of_nodes

_LARGEST = 2**31 - 1  # bytes of a protocol buffer message
_VERSION = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.+-]+)?")
_REPAIRED_VERSION = "1.15.0"
# Stateless, so that importing may evaluate them, and no mere arithmetic.
_REACHES_OUT = re.compile(
    r"ReadFile|WriteFile|MatchingFiles|PyFunc|Debug|Abort|ImmutableConst|Proto|Remote|Rpc|Send|Recv|Print|Record|Sql|Xla|TPU"
)


class MetaGraphError(InputError):
    """A file that is no MetaGraph, is damaged, or needs what is not here. The message names it."""


@dataclass(frozen=True, eq=False)
class MetaGraph:
    """A MetaGraphDef, checked and repaired.

    Attributes:
        path: the file.
        definition: the MetaGraphDef, repaired.
        repairs: what was repaired, a sentence each.
    """

    path: pathlib.Path
    definition: Any
    repairs: tuple[str, ...]

    @property
    def tags(self) -> tuple[str, ...]:
        """Of a SavedModel, such as ("serve",); of a ``.meta`` mostly none."""
        return tuple(self.definition.meta_info_def.tags)

    def names(self, collection: str) -> tuple[str, ...]:
        """Names of the ops or tensors in a collection of nodes, such as "train_op"; none where it is not there."""
        return tuple(self.definition.collection_def[collection].node_list.value) if self._has(collection) else ()

    def variable_names(self, collection: str) -> tuple[str, ...]:
        """Nodes of the variables in a collection, such as "trainable_variables".

        Raises:
            MetaGraphError: an entry is no VariableDef.
        """
        return tuple(entry.variable_name.partition(":")[0] for entry in self._entries(collection))

    def variables(self) -> list[GraphVariable]:
        """All variables of the graph, local ones and slots included, in the order of its nodes.

        Raises:
            MetaGraphError: the collection of variables is damaged.
        """
        entries = [*self._entries("variables"), *self._entries("local_variables")]
        initial = {entry.variable_name.partition(":")[0]: entry.initial_value_name for entry in entries}
        collected = frozenset(self.variable_names("trainable_variables"))
        return of_nodes(self.definition.graph_def.node, collected=collected, initial=initial)

    def facts(self) -> GraphFacts:
        """What an audit asks of a graph.

        Raises:
            MetaGraphError: a collection of variables is damaged.
        """
        saver = self.definition.saver_def.save_tensor_name
        return GraphFacts(
            source=str(self.path),
            definition=self.definition.graph_def,
            variables=frozenset(self.variable_names("variables")),
            collected=frozenset(self.variable_names("trainable_variables")),
            update_ops=self.names("update_ops"),
            losses=self.names("losses"),
            train_ops=tuple(dict.fromkeys(self.names("train_op"))),
            savers=(saver,) if saver else (),
        )

    def graph(self) -> tf.Graph:
        """The graph, imported as it is into a new one. Runs nothing, but for shapes computed from constants.

        Raises:
            MetaGraphError: TensorFlow refuses it, or importing could run an op that reaches outside.
        """
        for node in _nodes(self.definition.graph_def):
            op = tensorflow_private.op_definition(node.op)
            if op is not None and not op.is_stateful and _REACHES_OUT.search(node.op):
                raise MetaGraphError(
                    f"{self.path}: {node.name}: importing a graph can run {node.op}, which reaches outside of it; "
                    "extract the part that is wanted, without such ops"
                )
        made = tf.Graph()
        with made.as_default():
            try:
                tf.graph_util.import_graph_def(self.definition.graph_def, name="")
            except (ValueError, TypeError, tf.errors.OpError) as error:
                raise MetaGraphError(f"{self.path}: TensorFlow cannot import the graph: {error}") from None
        return made

    def _has(self, collection: str) -> bool:
        return collection in self.definition.collection_def

    def _entries(self, collection: str) -> list[Any]:
        if not self._has(collection):
            return []
        try:
            return [
                variable_pb2.VariableDef.FromString(entry)
                for entry in self.definition.collection_def[collection].bytes_list.value
            ]
        except DecodeError:
            raise MetaGraphError(f"{self.path}: collection {collection}: an entry is no VariableDef") from None


def read(path: str | os.PathLike[str], *, tags: Collection[str] | None = None) -> MetaGraph:
    """Reads a ``.meta`` file, a SavedModel's folder, or a ``saved_model.pb``.

    Args:
        path: the file or folder.
        tags: of the graph wanted, where a SavedModel holds several.

    Raises:
        MetaGraphError: no such file; no MetaGraph; truncated; several graphs and no tags that tell which; ops that
            this TensorFlow does not know; a node whose input is not there.
    """
    file = _file(pathlib.Path(path))
    content = _content(file)
    definition = _saved(file, content, tags) if file.name == "saved_model.pb" else _parse(file, content)
    if not definition.graph_def.node:
        raise MetaGraphError(f"{file}: no MetaGraph: it holds no node of a graph")
    repairs = _repair(definition)
    _check_ops(file, definition.graph_def)
    _check_edges(file, definition.graph_def)
    return MetaGraph(file, definition, tuple(repairs))


def _file(path: pathlib.Path) -> pathlib.Path:
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return path / "saved_model.pb"
        here = sorted(str(path / name) for name in os.listdir(path) if name.endswith((".meta", ".pbtxt")))
        hint = f"; a file to name in it: {', '.join(here[:3])}" if here else ""
        raise MetaGraphError(f"{path}: the folder holds no saved_model.pb{hint}")
    if not path.is_file():
        hint = f"; there is {path}.meta" if path.with_name(path.name + ".meta").is_file() else ""
        raise MetaGraphError(f"{path}: there is no such file{hint}")
    return path


def _content(file: pathlib.Path) -> bytes:
    try:
        size = file.stat().st_size
        if not 0 < size <= _LARGEST:
            raise MetaGraphError(f"{file}: {size} bytes; a MetaGraph has from 1 to {_LARGEST}")
        content = file.read_bytes()
    except OSError as error:
        raise MetaGraphError(f"{file}: cannot be read ({error.strerror})") from None
    if content.startswith(b"version https://git-lfs"):
        raise MetaGraphError(f"{file}: a pointer of Git LFS, not the file itself: fetch that with `git lfs pull`")
    if content.lstrip().startswith(
        (b"meta_info_def {", b"meta_info_def:", b"graph_def {", b"saved_model_schema_version:")
    ):
        raise MetaGraphError(f"{file}: a MetaGraph in text form; the binary form is wanted")
    return content


def _parse(file: pathlib.Path, content: bytes) -> Any:
    try:
        return meta_graph_pb2.MetaGraphDef.FromString(content)
    except DecodeError:
        raise MetaGraphError(f"{file}: no MetaGraph, or a truncated one") from None


def _saved(file: pathlib.Path, content: bytes, tags: Collection[str] | None) -> Any:
    try:
        found = list(saved_model_pb2.SavedModel.FromString(content).meta_graphs)
    except DecodeError:
        raise MetaGraphError(f"{file}: no SavedModel, or a truncated one") from None
    listed = "; ".join(",".join(sorted(one.meta_info_def.tags)) or "(no tags)" for one in found)
    if tags is None and len(found) == 1:
        return found[0]
    wanted = [one for one in found if tags is not None and set(one.meta_info_def.tags) == set(tags)]
    if len(wanted) == 1:
        return wanted[0]
    asked = (
        f"tags={','.join(sorted(tags))}: no graph has these" if tags is not None else "tags=None: which graph is meant"
    )
    raise MetaGraphError(f"{file}: {asked}; it holds {len(found)}, with the tags: {listed or 'none'}")


def _nodes(definition: Any) -> Iterator[Any]:
    """NodeDefs of a GraphDef, those in its functions included."""
    yield from definition.node
    for function in definition.library.function:
        yield from function.node_def


def _repair(definition: Any) -> list[str]:
    """Mends what keeps old graphs from being imported; says what."""
    repairs = []
    version = definition.meta_info_def.tensorflow_version
    if not _VERSION.fullmatch(version):
        definition.meta_info_def.tensorflow_version = _REPAIRED_VERSION
        repairs.append(f"tensorflow_version was {version!r}, which is no version; set to {_REPAIRED_VERSION!r}")
    removed = 0
    for node in _nodes(definition.graph_def):
        if "_output_shapes" in node.attr:
            del node.attr["_output_shapes"]
            removed += 1
    if removed:
        repairs.append(
            f"_output_shapes removed from {removed} nodes: shapes are inferred anew, and those of old files contradict that"
        )
    return repairs


def _check_ops(file: pathlib.Path, definition: Any) -> None:
    functions = {function.signature.name for function in definition.library.function}
    unknown: dict[str, str] = {}
    for node in _nodes(definition):
        if node.op not in functions and tensorflow_private.op_definition(node.op) is None:
            unknown.setdefault(node.op, node.name)
    if unknown:
        listed = ", ".join(f"{op} (at {node})" for op, node in list(unknown.items())[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise MetaGraphError(
            f"{file}: {len(unknown)} kind(s) of op that TensorFlow {tf.__version__} does not know: {listed}{more}; they "
            "come from a library of their own, or were taken out, and no library is loaded for a file"
        )


def _check_edges(file: pathlib.Path, definition: Any) -> None:
    names: set[str] = set()
    for node in definition.node:
        if node.name in names:
            raise MetaGraphError(f"{file}: {node.name}: two nodes have this name; the file is damaged")
        names.add(node.name)
    for node in definition.node:
        for source in node.input:
            if source.removeprefix("^").partition(":")[0] not in names:
                raise MetaGraphError(
                    f"{file}: {node.name}: its input {source} is not in the graph; the file is damaged"
                )
