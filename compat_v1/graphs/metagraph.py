"""Reads an old graph (``.meta``, SavedModel, frozen ``.pb``, ``graph.pbtxt``) as data, without building or running it.

Building a graph is not harmless: where a shape depends on constants, TensorFlow evaluates the ops in between as soon as
the graph is imported, even if they read files. So a MetaGraph is read, checked and repaired as a message, and
``graph`` refuses ops that importing could run.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorflow.core.framework import variable_pb2

from compat_v1.graphs.endpoints import all_nodes, producer
from engine import tensorflow_private
from engine.audit.graph_collections import GraphFacts
from engine.graphs.graph_variables import GraphVariable, read_nodes
from engine.graphs.op_kinds import called_functions
from engine.graphs.reach import reach
from engine.porting.readers.graph_file import MetaGraphError as MetaGraphError
from engine.porting.readers.graph_file import read_graph_file
from engine.text import join_some

_VERSION = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.+-]+)?")
_REPAIRED_VERSION = "1.15.0"
# Stateless, so that importing may evaluate them, but not mere arithmetic.
_REACHES_OUT = re.compile(
    r"ReadFile|WriteFile|MatchingFiles|PyFunc|Debug|Abort|ImmutableConst|Proto|Remote|Rpc|Send|Recv|Print|Record|Sql|Xla|TPU"
)


@dataclass(frozen=True, eq=False)
class MetaGraph:
    """The MetaGraphDef of a file, checked and repaired.

    ``repairs`` says what was repaired, a sentence each; ``note`` which graph of a SavedModel it is, "" for the only one.
    """

    path: pathlib.Path
    definition: Any
    repairs: tuple[str, ...]
    note: str = ""

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags, such as ("serve",) for a SavedModel; a ``.meta`` file mostly has none."""
        return tuple(self.definition.meta_info_def.tags)

    def names(self, collection: str) -> tuple[str, ...]:
        """Returns the ops or tensors in a collection of nodes, such as "train_op"; () if there is no such collection."""
        found = self.definition.collection_def
        return tuple(found[collection].node_list.value) if collection in found else ()

    def variable_names(self, collection: str) -> tuple[str, ...]:
        """Returns the nodes of the variables in a collection; raises MetaGraphError if an entry is not a VariableDef."""
        return tuple(entry.variable_name.partition(":")[0] for entry in self._entries(collection))

    def variables(self) -> list[GraphVariable]:
        """Returns all variables of the graph, including local ones and slots, in the order of its nodes.

        Raises MetaGraphError if the collection of variables is damaged.
        """
        entries = [*self._entries("variables"), *self._entries("local_variables")]
        initial = {entry.variable_name.partition(":")[0]: entry.initial_value_name for entry in entries}
        collected = frozenset(self.variable_names("trainable_variables"))
        return read_nodes(self.definition.graph_def.node, collected=collected, initial=initial)

    def facts(self, train_op: Collection[str] | None = None) -> GraphFacts:
        """Returns what an audit needs to know; ``train_op`` are the operations that are fetched to train.

        What needs an operation that this TensorFlow does not know is left out, since it cannot be audited. Raises
        MetaGraphError if the train op needs one, or may need one because nothing says which it is; or if a collection
        of variables is damaged.
        """
        definition, left_out = self.definition.graph_def, set[str]()
        train_ops = tuple(dict.fromkeys(self.names("train_op")))
        if unknown := _find_unknown(definition):
            definition, left_out = _without_unknown(definition, unknown)
            wanted = [producer(name) for name in train_op or train_ops]
            problem = next((f"{name} needs" for name in wanted if name in left_out), "")
            if problem or not wanted:
                raise MetaGraphError(
                    f"{self.path}: {problem or 'name the train op with train_op=, since a part of the graph needs'} "
                    f"{self._unknown_text(unknown)}"
                )
        saver = self.definition.saver_def.save_tensor_name
        return GraphFacts(
            source=str(self.path),
            definition=definition,
            variables=frozenset(self.variable_names("variables")),
            collected=frozenset(self.variable_names("trainable_variables")),
            update_ops=self._kept("update_ops", left_out),
            losses=self._kept("losses", left_out),
            train_ops=train_ops,
            savers=(saver,) if saver and producer(saver) not in left_out else (),
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

    def unknown_note(self) -> str:
        """Says what this TensorFlow does not know in the graph; "" if it knows everything."""
        unknown = _find_unknown(self.definition.graph_def)
        return f"left out: what needs {self._unknown_text(unknown)}" if unknown else ""

    def _unknown_text(self, unknown: Mapping[str, str]) -> str:
        listed = join_some([f"{op} (at {node})" for op, node in unknown.items()])
        return (
            f"{len(unknown)} kind(s) of operation that TensorFlow {tf.__version__} does not know: {listed}; they belong "
            "to a custom library, or were removed, and no library is loaded for a file"
        )

    def _kept(self, collection: str, left_out: Collection[str]) -> tuple[str, ...]:
        return tuple(name for name in self.names(collection) if producer(name) not in left_out)

    def _entries(self, collection: str) -> list[Any]:
        found = self.definition.collection_def
        if collection not in found:
            return []
        try:
            return [variable_pb2.VariableDef.FromString(entry) for entry in found[collection].bytes_list.value]
        except DecodeError:
            raise MetaGraphError(f"{self.path}: an entry of the collection {collection} is not a VariableDef") from None


def read_metagraph(
    path: str | os.PathLike[str], *, tags: Collection[str] | None = None, training: bool = False
) -> MetaGraph:
    """Reads a graph file of any kind: ``.meta``, SavedModel, frozen ``.pb`` or ``graph.pbtxt``.

    ``tags`` choose one of several graphs of a SavedModel; otherwise it is the one that serves or, with ``training``,
    the one that trains (engine.porting.readers.graph_file). Raises MetaGraphError if there is no such file, it is not
    a graph or truncated, the choice is not clear, or an input of a node is missing. Operations that this TensorFlow does
    not know are an error only where they are needed.
    """
    file, definition, note = read_graph_file(path, tags=tags, training=training)
    repairs = _repair(definition)
    _check_edges(file, definition.graph_def)
    return MetaGraph(file, definition, tuple(repairs), note)


def _repair(definition: Any) -> list[str]:
    """Repairs what keeps old graphs from being imported; returns a sentence for each repair."""
    repairs = []
    version = definition.meta_info_def.tensorflow_version
    if not _VERSION.fullmatch(version):
        definition.meta_info_def.tensorflow_version = _REPAIRED_VERSION
        if version:  # a bare GraphDef has none
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


def _find_unknown(definition: Any) -> dict[str, str]:
    """Returns operation kind -> a node of it, for the kinds that this TensorFlow does not know."""
    functions = {function.signature.name for function in definition.library.function}
    unknown: dict[str, str] = {}
    for node in all_nodes(definition):
        if node.op not in functions and tensorflow_private.op_definition(node.op) is None:
            unknown.setdefault(node.op, node.name)
    return unknown


def _without_unknown(definition: Any, unknown: Collection[str]) -> tuple[Any, set[str]]:
    """Returns the GraphDef without the operations that need one of the unknown kinds, and their names."""
    kinds = set(unknown)
    functions = list(definition.library.function)
    while calling := [  # a function that needs one is unknown itself
        function
        for function in functions
        if any(node.op in kinds or kinds & set(called_functions(node)) for node in function.node_def)
    ]:
        kinds |= {function.signature.name for function in calling}
        functions = [function for function in functions if function not in calling]
    readers: dict[str, list[str]] = {}
    for node in definition.node:
        for name in node.input:
            readers.setdefault(producer(name), []).append(node.name)
    first = [node.name for node in definition.node if node.op in kinds or kinds & set(called_functions(node))]
    left_out = set(reach(first, lambda name: readers.get(name, ())))
    kept = type(definition)(versions=definition.versions)
    kept.library.CopyFrom(definition.library)
    del kept.library.function[:]
    kept.library.function.extend(functions)
    kept.node.extend(node for node in definition.node if node.name not in left_out)
    return kept, left_out


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
