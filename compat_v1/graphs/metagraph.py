"""Reads an old MetaGraph (``.meta``, or the ``saved_model.pb`` of a SavedModel) as data, without building or running it.

Building a graph is not harmless: where a shape depends on constants, TensorFlow evaluates the ops in between as soon as
the graph is imported, even if they read files. So a MetaGraph is read, checked and repaired as a message, and
``graph`` refuses ops that importing could run.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorflow.core.framework import variable_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from compat_v1.graphs.endpoints import all_nodes
from engine import tensorflow_private
from engine.audit.graph_collections import GraphFacts
from engine.errors import InputError
from engine.graphs.graph_variables import GraphVariable, read_nodes
from engine.text import join_some

_LARGEST = 2**31 - 1  # bytes in a protocol buffer message
_VERSION = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.+-]+)?")
_REPAIRED_VERSION = "1.15.0"
# Stateless, so that importing may evaluate them, but not mere arithmetic.
_REACHES_OUT = re.compile(
    r"ReadFile|WriteFile|MatchingFiles|PyFunc|Debug|Abort|ImmutableConst|Proto|Remote|Rpc|Send|Recv|Print|Record|Sql|Xla|TPU"
)


class MetaGraphError(InputError):
    """A file that is not a MetaGraph, is damaged, or needs unknown ops. The message names it."""


@dataclass(frozen=True, eq=False)
class MetaGraph:
    """The MetaGraphDef of a file, checked and repaired; ``repairs`` says what was repaired, a sentence each."""

    path: pathlib.Path
    definition: Any
    repairs: tuple[str, ...]

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags, such as ("serve",) for a SavedModel; a ``.meta`` file mostly has none."""
        return tuple(self.definition.meta_info_def.tags)

    def names(self, collection: str) -> tuple[str, ...]:
        """Returns the ops or tensors in a collection of nodes, such as "train_op"; () if there is no such collection."""
        found = self.definition.collection_def
        return tuple(found[collection].node_list.value) if collection in found else ()

    def variable_names(self, collection: str) -> tuple[str, ...]:
        """Returns the nodes of the variables in a collection; raises MetaGraphError if an entry is no VariableDef."""
        return tuple(entry.variable_name.partition(":")[0] for entry in self._entries(collection))

    def variables(self) -> list[GraphVariable]:
        """Returns all variables of the graph, including local ones and slots, in the order of its nodes.

        Raises MetaGraphError if the collection of variables is damaged.
        """
        entries = [*self._entries("variables"), *self._entries("local_variables")]
        initial = {entry.variable_name.partition(":")[0]: entry.initial_value_name for entry in entries}
        collected = frozenset(self.variable_names("trainable_variables"))
        return read_nodes(self.definition.graph_def.node, collected=collected, initial=initial)

    def facts(self) -> GraphFacts:
        """Returns what an audit needs to know; raises MetaGraphError if a collection of variables is damaged."""
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
        """Imports the graph into a new one. Nothing is run except for shapes that are computed from constants.

        Raises MetaGraphError if TensorFlow refuses it, or importing could run an op that reaches outside.
        """
        for node in all_nodes(self.definition.graph_def):
            op = tensorflow_private.op_definition(node.op)
            if op is not None and not op.is_stateful and _REACHES_OUT.search(node.op):
                raise MetaGraphError(
                    f"{self.path}: {node.name}: importing a graph can run {node.op}, which reaches outside of it; "
                    "extract the part that you need, without such ops"
                )
        made = tf.Graph()
        with made.as_default():
            try:
                tf.graph_util.import_graph_def(self.definition.graph_def, name="")
            except (ValueError, TypeError, tf.errors.OpError) as error:
                raise MetaGraphError(f"{self.path}: TensorFlow cannot import the graph: {error}") from None
        return made

    def _entries(self, collection: str) -> list[Any]:
        found = self.definition.collection_def
        if collection not in found:
            return []
        try:
            return [variable_pb2.VariableDef.FromString(entry) for entry in found[collection].bytes_list.value]
        except DecodeError:
            raise MetaGraphError(f"{self.path}: an entry of the collection {collection} is not a VariableDef") from None


def read_metagraph(path: str | os.PathLike[str], *, tags: Collection[str] | None = None) -> MetaGraph:
    """Reads a ``.meta`` file, the folder of a SavedModel, or a ``saved_model.pb``; ``tags`` choose one of several.

    Raises MetaGraphError if there is no such file; it is not a MetaGraph, or truncated; it holds several graphs and the
    tags do not choose one; this TensorFlow does not know an op; or an input of a node is missing.
    """
    file = _file(pathlib.Path(path))
    content = _content(file)
    definition = _saved(file, content, tags) if file.name == "saved_model.pb" else _parse(file, content)
    if not definition.graph_def.node:
        raise MetaGraphError(f"{file}: not a MetaGraph; it holds no node of a graph")
    repairs = _repair(definition)
    _check_ops(file, definition.graph_def)
    _check_edges(file, definition.graph_def)
    return MetaGraph(file, definition, tuple(repairs))


def _file(path: pathlib.Path) -> pathlib.Path:
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return path / "saved_model.pb"
        here = sorted(str(path / name) for name in os.listdir(path) if name.endswith((".meta", ".pbtxt")))
        hint = f"; name a file in it, such as {join_some(here, most=3)}" if here else ""
        raise MetaGraphError(f"{path}: the folder holds no saved_model.pb{hint}")
    if not path.is_file():
        hint = f"; did you mean {path}.meta?" if path.with_name(path.name + ".meta").is_file() else ""
        raise MetaGraphError(f"{path}: there is no such file{hint}")
    return path


def _content(file: pathlib.Path) -> bytes:
    try:
        size = file.stat().st_size
        if not 0 < size <= _LARGEST:
            raise MetaGraphError(f"{file}: the file has {size} bytes; expected 1 to {_LARGEST} for a MetaGraph")
        content = file.read_bytes()
    except OSError as error:
        raise MetaGraphError(f"{file}: the file cannot be read ({error.strerror})") from None
    if content.startswith(b"version https://git-lfs"):
        raise MetaGraphError(f"{file}: this is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
    if content.lstrip().startswith(
        (b"meta_info_def {", b"meta_info_def:", b"graph_def {", b"saved_model_schema_version:")
    ):
        raise MetaGraphError(f"{file}: this is a MetaGraph in text form; expected the binary form")
    return content


def _parse(file: pathlib.Path, content: bytes) -> Any:
    try:
        return meta_graph_pb2.MetaGraphDef.FromString(content)
    except DecodeError:
        raise MetaGraphError(f"{file}: not a MetaGraph, or a truncated one") from None


def _saved(file: pathlib.Path, content: bytes, tags: Collection[str] | None) -> Any:
    try:
        found = list(saved_model_pb2.SavedModel.FromString(content).meta_graphs)
    except DecodeError:
        raise MetaGraphError(f"{file}: not a SavedModel, or a truncated one") from None
    listed = "; ".join(",".join(sorted(one.meta_info_def.tags)) or "(no tags)" for one in found)
    if tags is None and len(found) == 1:
        return found[0]
    wanted = [one for one in found if tags is not None and set(one.meta_info_def.tags) == set(tags)]
    if len(wanted) == 1:
        return wanted[0]
    problem = f"tags={','.join(sorted(tags))}: no graph has these tags" if tags is not None else "name a graph by tags="
    raise MetaGraphError(f"{file}: {problem}; the file holds {len(found)} graphs, with the tags: {listed or 'none'}")


def _repair(definition: Any) -> list[str]:
    """Repairs what keeps old graphs from being imported; returns a sentence for each repair."""
    repairs = []
    version = definition.meta_info_def.tensorflow_version
    if not _VERSION.fullmatch(version):
        definition.meta_info_def.tensorflow_version = _REPAIRED_VERSION
        repairs.append(
            f"tensorflow_version was {version!r}, which is not a valid version; set to {_REPAIRED_VERSION!r}"
        )
    shaped = [node for node in all_nodes(definition.graph_def) if "_output_shapes" in node.attr]
    for node in shaped:
        del node.attr["_output_shapes"]
    if shaped:
        repairs.append(
            f"_output_shapes removed from {len(shaped)} nodes, since old files contradict the shapes that are inferred now"
        )
    return repairs


def _check_ops(file: pathlib.Path, definition: Any) -> None:
    functions = {function.signature.name for function in definition.library.function}
    unknown: dict[str, str] = {}
    for node in all_nodes(definition):
        if node.op not in functions and tensorflow_private.op_definition(node.op) is None:
            unknown.setdefault(node.op, node.name)
    if unknown:
        listed = join_some([f"{op} (at {node})" for op, node in unknown.items()])
        raise MetaGraphError(
            f"{file}: TensorFlow {tf.__version__} does not know {len(unknown)} kind(s) of op: {listed}; they "
            "belong to a custom library, or were removed, and no library is loaded for a file"
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
