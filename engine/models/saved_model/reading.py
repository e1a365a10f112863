"""Reads the folder of a SavedModel of TensorFlow 2 as data: its functions, its object graph and its variables."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine.errors import InputError
from engine.files import FileError
from engine.graphs.constants import read_constant
from engine.models.spec import ModelSpecError
from engine.porting.readers.checkpoint_file import Checkpoint, readable_name
from engine.porting.readers.graph_file import read_graph_file
from engine.selection.walk import find_kind


@dataclass(frozen=True)
class SavedVariable:
    """A variable of a SavedModel: its number in the object graph, what the file says of it, and its attribute path."""

    number: int
    name: str
    place: str
    dtype: tf.DType
    shape: tuple[int | None, ...]
    weight: bool


class SavedFile:
    """The graph of a SavedModel, and the objects that it consists of.

    Attributes:
        folder: the folder of the SavedModel.
        definition: its MetaGraphDef.
        note: which of several graphs it is; "" for the only one.
        nodes: the objects; the first is the root, and children refer to others by number.
        functions: the library functions, by name.
        concrete: what the object graph says of the concrete functions, by name.
    """

    def __init__(self, folder: pathlib.Path, definition: Any, note: str) -> None:
        self.folder, self.definition, self.note = folder, definition, note
        self.nodes = definition.object_graph_def.nodes
        self.concrete = definition.object_graph_def.concrete_functions
        self.functions = {each.signature.name: each for each in definition.graph_def.library.function}
        self._places: dict[int, str] | None = None

    @property
    def is_of_tf1(self) -> bool:
        """Whether the SavedModel is a graph of TensorFlow 1, without objects and functions."""
        return not self.concrete

    def child(self, number: int, name: str) -> int | None:
        """The number of an object's attribute; None if it has none of this name."""
        return next((each.node_id for each in self.nodes[number].children if each.local_name == name), None)

    def children(self, number: int) -> dict[str, int]:
        """The attributes of an object: name -> number."""
        return {each.local_name: each.node_id for each in self.nodes[number].children}

    def place(self, number: int) -> str:
        """The path of an object by attributes from the root."""
        if self._places is None:
            self._places = {0: ""}
            pending = [0]
            for parent in pending:  # grows
                for name, each in self.children(parent).items():
                    if each not in self._places:
                        before = self._places[parent]
                        self._places[each] = f"{before}/{name}" if before else name
                        pending.append(each)
        return self._places.get(number, "")

    def variable(self, number: int) -> SavedVariable:
        """What the file says of a variable."""
        found = self.nodes[number].variable
        try:
            dtype = tf.as_dtype(found.dtype)
        except TypeError:
            raise self.damaged(f"the variable {found.name} has the unknown dtype {found.dtype}") from None
        shape = tuple(None if dim.size < 0 else int(dim.size) for dim in found.shape.dim)
        name = found.name.removesuffix(":0")
        weight = find_kind(None, "", found) == "weight"
        return SavedVariable(number, name, self.place(number), dtype, shape, weight)

    def constant(self, number: int) -> np.ndarray:
        """The value of a constant that functions capture; raises FileError if the file does not hold it."""
        name = self.nodes[number].constant.operation
        node = next((each for each in self.definition.graph_def.node if each.name == name), None)
        if node is None or node.op != "Const":
            raise self.damaged(f"the constant {name!r} is not in its graph")
        try:
            return read_constant(node.attr["value"].tensor)
        except ValueError as error:
            raise self.damaged(f"{name}: {error}") from None

    def read_values(self, variables: Iterable[SavedVariable]) -> dict[int, np.ndarray]:
        """The values of variables by number, from the checkpoint of the folder; FileError if it is damaged or lacks one."""
        wanted = {each.number: each for each in variables}
        if not wanted:
            return {}
        with Checkpoint(self.folder / "variables" / "variables") as source:
            keys = self._keys(source.object_graph(), set(wanted))
            known = set(source.names())
            found = {}
            for number, variable in wanted.items():
                key = readable_name(keys.get(number, ""))
                if key not in known:
                    raise self.damaged(
                        f"its checkpoint has no value of the variable {variable.name} ({variable.place})"
                    )
                value = source.read(key)
                if not tf.TensorShape(variable.shape).is_compatible_with(value.shape):
                    raise self.damaged(
                        f"the variable {variable.name} has shape {list(variable.shape)}, and its checkpoint {list(value.shape)}"
                    )
                found[number] = value
        return found

    def _keys(self, saved: Any, wanted: set[int]) -> dict[int, str]:
        """The key of each variable in the checkpoint, found by going the same ways through both object graphs."""
        if not saved:
            raise self.damaged("its checkpoint does not say which object has which value")
        found: dict[int, str] = {}
        seen = {(0, 0)}
        pending = [(0, 0)]
        for here, there in pending:  # grows
            if here in wanted and here not in found:
                values = [each.checkpoint_key for each in saved[there].attributes if each.name == "VARIABLE_VALUE"]
                found |= {here: values[0]} if values else {}
            others = {each.local_name: each.node_id for each in saved[there].children}
            for name, number in self.children(here).items():
                pair = (number, others.get(name, -1))
                if pair[1] >= 0 and pair not in seen:
                    seen.add(pair)
                    pending.append(pair)
        return found

    def damaged(self, what: str) -> FileError:
        """The error of a file that contradicts itself."""
        return FileError(f"{self.folder}: {what}; the SavedModel is damaged")

    @contextlib.contextmanager
    def explaining_damage(self) -> Iterator[None]:
        """Raises FileError for what reading a file that contradicts itself raises."""
        try:
            yield
        except InputError:
            raise
        except (LookupError, ValueError, TypeError, AttributeError, RecursionError, tf.errors.OpError) as error:
            raise self.damaged(f"it cannot be read ({' '.join(str(error).split())[:200]})") from None

    def library(self, name: str) -> list[Any]:
        """A library function and all that it calls; FileError if one is not in the file."""
        from engine.graphs.op_kinds import called_functions

        found: dict[str, Any] = {}
        pending = [name]
        for each in pending:  # grows
            if each in found:
                continue
            if each not in self.functions:
                raise self.damaged(f"the function {each} is not in its library")
            found[each] = self.functions[each]
            for node in found[each].node_def:
                pending += [other for other in called_functions(node) if other not in found]
                pending += [node.op] if node.op in self.functions else []
        return list(found.values())


def read_saved_model(path: str, *, tags: Collection[str] | None = None, spec: str) -> SavedFile:
    """Reads the SavedModel in a folder; ``tags`` choose one of several graphs.

    Raises MetaGraphError if the folder holds no graph, or a damaged one; FileError if its objects contradict each other;
    ModelSpecError if there is no such folder.
    """
    folder = pathlib.Path(path)
    if folder.name in ("saved_model.pb", "saved_model.pbtxt"):
        folder = folder.parent
    if not folder.is_dir():
        what = "it is a file" if folder.exists() else "there is no such folder"
        raise ModelSpecError(f"model={spec!r}: {folder}: {what}; expected the folder of a SavedModel")
    _, definition, note = read_graph_file(folder, tags=tags)
    found = SavedFile(folder, definition, note)
    _check_objects(found)
    return found


def _check_objects(file: SavedFile) -> None:
    """Raises FileError if a number in the object graph refers to no object."""
    count = len(file.nodes)
    numbers = [each.node_id for node in file.nodes for each in node.children]
    numbers += [number for each in file.concrete.values() for number in each.bound_inputs]
    if wrong := [number for number in numbers if not 0 <= number < count]:
        raise file.damaged(f"its object graph refers to the object {wrong[0]} of {count}")


def name_variables(variables: Iterable[SavedVariable]) -> Mapping[int, str]:
    """The path of each variable, by number.

    These are the names of the variables, as layers gave them (``block_1/conv/kernel``), if all have names of their own;
    else the paths by attributes, as where a plain tf.Module calls each of them "Variable".
    """
    every = list(variables)
    names = [each.name for each in every]
    told = len(set(names)) == len(names) and all("/" in name for name in names)
    return {each.number: each.name if told else each.place or each.name for each in every}
