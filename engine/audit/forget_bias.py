"""Finds in an old graph what its LSTM cells add to their forget gates as they run: a checkpoint does not hold it."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from engine.graphs.graphdef import FlatGraph
from engine.graphs.nodes import FlatGraphError, Node, Tensor
from engine.porting.errors import PortError
from engine.porting.ledger import Loaded
from engine.porting.readers import graph_file
from engine.porting.rules.facts import GivenGraph
from engine.porting.rules.transforms import Target, apply_transforms, parse_transform
from engine.text import join_some, listed

_FORWARDING = frozenset(
    {
        "_Arg",
        "_Loop",
        "_Ret",
        "Identity",
        "RefIdentity",
        "Enter",
        "RefEnter",
        "ReadVariableOp",
        "Cast",
        "StopGradient",
        "Switch",
        "RefSwitch",
    }
)
_VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable", "Const"})  # a frozen graph has constants
_ADDITIONS = frozenset({"Add", "AddV2", "BiasAdd", "BiasAddV1"})
_KERNELS_AT = {"LSTMBlockCell": 3, "BlockLSTM": 4}  # the input that is the kernel; the bias is the last one
_MOST_STEPS = 64


def read_forget_biases(definition: Any) -> dict[str, float | None]:
    """Returns variable -> forget bias for the kernel and the bias of every LSTM cell of TensorFlow 1 in a GraphDef.

    None stands for one that is not a constant. The graph is read as data. Raises PortError if cells that share a variable
    add different constants; FlatGraphError if the graph contradicts itself, or has unknown operations.
    """
    graph = FlatGraph(definition)
    found: dict[str, float | None] = {}
    for node in graph.nodes:
        for cell, value in _cells(graph, node):
            for name in cell:
                if found.setdefault(name, value) != value:
                    raise PortError(
                        f"{name}: the graph adds a forget_bias of {_text(found[name])} in one place and of {_text(value)} in "
                        "another; a layer of Keras cannot do both"
                    )
    return found


def find_forget_biases(weights: pathlib.Path, graph: GivenGraph | None = None) -> dict[str, float | None]:
    """Does what ``read_forget_biases`` does for a graph, by default the one that lies beside the weights.

    Finds nothing if there is no graph, or it cannot be read.
    """
    try:
        if graph is None and (file := graph_file.find_graph_file(weights)) is not None:
            graph = graph_file.read_graph_file(file)
        return {} if graph is None else read_forget_biases(graph.definition.graph_def)
    except (graph_file.MetaGraphError, FlatGraphError):
        return {}


def check_forget_biases(loaded: Iterable[Loaded], weights: pathlib.Path, *, graph: GivenGraph | None = None) -> str:
    """Compares what rules added to the biases of LSTM cells with what the graph adds (``find_forget_biases``).

    ``loaded`` is what became of each variable, from tensors by their names in the file. Returns a sentence that says what
    was checked and what is assumed, "" where no rule concerns such a cell. Raises PortError, with the transforms to write,
    if they differ.
    """
    cells = [made for made in loaded if len(made.shape) == 1 and "lstm_gates" in made.transforms]
    known = find_forget_biases(weights, graph) if cells else {}
    checked, assumed, wrong = [], [], []
    for made in cells:
        added = _added_by_rule(made)
        said = "something else than one number to the forget gate" if added is None else f"{added!r}"
        values = {value for name in made.source if (value := known.get(name.removesuffix(":0"))) is not None}
        if not values:
            assumed.append(f"{made.target} ({said})")
        elif added is not None and all(np.float32(value) == np.float32(added) for value in values):
            checked.append(made.target)
        else:
            theirs = next(iter(values))
            right = f"| lstm_gates | add({theirs!r}, 0, 4, 1)" if theirs else "| lstm_gates"
            wrong.append(f"{made.target}: the rule adds {said}, the graph {theirs!r}; the line should end in `{right}`")
    if wrong:
        raise PortError(f"{weights}: the rules add another forget bias than the graph" + listed("forget gates", wrong))
    facts = [f"the forget bias of {join_some(checked)} is that of the graph"] if checked else []
    if assumed:
        facts.append(
            f"the forget bias of {join_some(assumed)} is assumed: no graph that would say it was read (verify_graph= of "
            f"port_checkpoint, or {weights.name}.meta beside the checkpoint)"
        )
    return "; ".join(facts)


def _added_by_rule(made: Loaded) -> float | None:
    """Returns the number that a rule adds to the forget gate of a bias of Keras; None if it adds anything else."""
    steps = [parse_transform(text) for text in made.transforms if text.startswith(("add", "lstm_gates"))]
    moved = apply_transforms([np.zeros(made.shape)], steps, Target(made.shape)).reshape(4, -1)
    first = float(moved[1].flat[0])
    wanted = np.zeros_like(moved)
    wanted[1] = first
    return first if np.array_equal(moved, wanted) else None


def _cells(graph: FlatGraph, node: Node) -> Iterator[tuple[set[str], float | None]]:
    """Yields the variables of a cell that has this node, and its forget bias."""
    if node.op in _KERNELS_AT and len(node.inputs) > _KERNELS_AT[node.op]:
        ends = (node.inputs[_KERNELS_AT[node.op]], node.inputs[-1])
        value = float(node.definition.attr["forget_bias"].f) if "forget_bias" in node.definition.attr else 1.0
        yield {name for end in ends for name in _variables(end)}, value
    elif node.op == "Split" and node.definition.attr["num_split"].i == 4 and len(node.inputs) == 2:
        found, known = _added(graph, node)
        computed = _origin(node.inputs[1]).node.op not in _VARIABLES
        if known and computed and (names := set(_variables(node.inputs[1]))):
            yield names, found


def _added(graph: FlatGraph, split: Node) -> tuple[float | None, bool]:
    """Returns what is added to the third of four gates (i, j, f, o) before its sigmoid, and whether this is such a cell."""
    for reader in graph.readers(split):
        places = [n for n, tensor in enumerate(reader.inputs) if tensor == Tensor(split, 2)]
        if not places:
            continue
        if reader.op == "Sigmoid":
            return 0.0, True
        if reader.op in ("Add", "AddV2") and any(after.op == "Sigmoid" for after in graph.readers(reader)):
            return _constant(reader.inputs[1 - places[0]]), True
    return None, False


def _origin(tensor: Tensor) -> Tensor:
    """Follows a tensor back through what only forwards it."""
    for _ in range(_MOST_STEPS):
        if tensor.node.op not in _FORWARDING or not tensor.node.inputs:
            break
        tensor = tensor.node.inputs[0]
    return tensor


def _constant(tensor: Tensor) -> float | None:
    node = _origin(tensor).node
    if node.op != "Const":
        return None
    value = node.definition.attr["value"].tensor
    if any(dim.size != 1 for dim in value.tensor_shape.dim):
        return None
    return float(str(np.ravel(tf.make_ndarray(value))[0]))


def _variables(tensor: Tensor, steps: int = _MOST_STEPS) -> Sequence[str]:
    """Returns the variables of the product and the sum that a tensor is; their names lack the number of a part."""
    node = _origin(tensor).node
    if node.op in _VARIABLES:
        return [re.sub(r"/part_\d+$", "", node.name)]
    if steps == 0:
        return []
    inputs: Sequence[Tensor] = ()
    if node.op == "MatMul":
        inputs = node.inputs[1:2]
    elif node.op in _ADDITIONS:
        inputs = node.inputs
    elif node.op == "ConcatV2":  # of a partitioned kernel
        inputs = node.inputs[:1]
    return [name for each in inputs for name in _variables(each, steps - 1)]


def _text(value: float | None) -> str:
    return "something that is not a constant" if value is None else f"{value!r}"
