"""An old graph as programs that only compute: for evaluation, and for training with some of its layers in training mode.

A program takes data and the values of variables, and gives outputs and the new values of statistics. Layers that do not
train run in inference mode: their own uses of the graph's switches get the value for evaluation, and where a graph was
built for training alone, the moments of the batch are replaced by the statistics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.errors import GraphError
from compat_v1.graphs import extract, input_text
from compat_v1.graphs.endpoints import PLACEHOLDERS, Graph, producer, tensor_name
from compat_v1.graphs.extract import Extracted, OldVariable
from compat_v1.graphs.frozen import Thawed, thaw
from compat_v1.graphs.metagraph import MetaGraph
from compat_v1.models import switches as switching
from compat_v1.models.statistics_layers import StatisticsLayer, find_statistics_layers
from compat_v1.models.switches import Switch
from compat_v1.models.values import use_values
from engine.graphs.op_allowlist import VARIABLES
from engine.text import join_some

_FUSED = {"FusedBatchNorm": (1, 2), "FusedBatchNormV2": (1, 2), "FusedBatchNormV3": (1, 2)}
_PASSES = frozenset(["Identity", "Reshape", "Squeeze", "StopGradient", "CheckNumerics", "Cast"])
_PROBABILITIES = frozenset(["Softmax", "Sigmoid"])


@dataclass(frozen=True, eq=False)
class Program:
    """A part of an old graph that only computes.

    Attributes:
        part: the checked part. Each of its variables stands for its value.
        updates: variable -> the output that is its new value.
    """

    part: Extracted
    updates: Mapping[str, str]


class OldGraph:
    """An old graph, its endpoints, switches and layers with statistics.

    Attributes:
        input: the tensor that is fed with images, or other data.
        output: the tensor that the network computes.
        switches: the inputs that are the same for a whole step.
        layers: the layers whose statistics move in training.
    """

    def __init__(
        self,
        meta: MetaGraph,
        *,
        inputs: str | None = None,
        outputs: Sequence[str] | None = None,
        graph_inputs: str | None = None,
        constants: str | None = None,
        argument: str = "outputs",
    ) -> None:
        """``argument`` is what messages call ``outputs``; the others are flags of finetune (engine.models.spec)."""
        before = Graph(meta.definition.graph_def, where=str(meta.path))
        wanted = [before.tensor(name, argument=argument) for name in outputs or ()]
        self.frozen: Thawed | None = None
        if not any(node.op in VARIABLES for node in meta.definition.graph_def.node):
            meta = self._thaw(meta, wanted or None, constants)
        elif constants is not None:
            raise GraphError(f"constants={constants}: {meta.path} has variables, so its constants are not weights")
        given_shapes = {
            name: value for name, value in input_text.parse_inputs(inputs or "").items() if isinstance(value, tuple)
        }
        self.meta = meta = _restate_shapes(meta, given_shapes)
        self.where = str(meta.path)
        self._programs: dict[tuple[Any, ...], Program] = {}
        graph = self._graph = Graph(meta.definition.graph_def, where=self.where)
        given, arrays = switching.parse_graph_inputs(graph_inputs or "")
        self._arrays = {graph.tensor(name, argument="graph_inputs"): key for name, key in arrays.items()}
        named = {
            graph.tensor(name, argument="inputs"): value
            for name, value in input_text.parse_inputs(inputs or "").items()
        }
        self._shapes = {name: value for name, value in named.items() if isinstance(value, tuple)}
        constant = {name: value for name, value in named.items() if value is not None and name not in self._shapes}
        fed = [name for name in named if name not in constant]
        fixed = {name: np.asarray(value) for name, value in constant.items()}
        for name, (value, _) in given.items():
            fixed[graph.tensor(name, argument="graph_inputs")] = np.asarray(value)
        if not wanted:
            fed, wanted = extract.find_endpoints(meta.definition, graph, fed, fixed)
        if len(wanted) != 1:
            raise GraphError(
                f"outputs=: {self.where} has {len(wanted)} outputs; a model has one of them: {join_some(wanted, most=12)}"
            )
        fed = fed or extract.find_only_input(graph, wanted, [*fixed, *self._arrays])
        if len(fed) != 1:
            raise GraphError(
                f"inputs=: {wanted[0]} of {self.where} needs {len(fed)} inputs with data ({join_some(fed) or 'none'}); "
                "a model has one; graph_inputs= gives others a value"
            )
        self.input, self.output = fed[0], wanted[0]
        found = switching.find_switches(graph, wanted, given, [*fed, *self._arrays, *constant])
        self.switches = (*found, *(Switch(name, value, value, "given") for name, value in constant.items()))
        self.layers = find_statistics_layers(graph, meta.names("update_ops"), [producer(self.input)])

    def _thaw(self, meta: MetaGraph, outputs: Sequence[str] | None, constants: str | None) -> MetaGraph:
        """A frozen graph with variables in place of those constants that are weights."""
        self.frozen = thaw(meta.definition.graph_def, where=str(meta.path), outputs=outputs, chosen=constants)
        made = type(meta.definition)()
        made.CopyFrom(meta.definition)
        made.graph_def.CopyFrom(self.frozen.definition)
        return dataclasses.replace(meta, definition=made)

    @property
    def input_type(self) -> tf.DType:
        """The dtype of what the graph is fed with."""
        return self._graph.type_of(self.input)

    def strip_activation(self) -> str:
        """Makes the logits the output, where a softmax or sigmoid comes last; its type, or "" if there is none."""
        name = self.output
        for _ in range(8):
            node = self._graph.nodes[producer(name)]
            if node.op in _PROBABILITIES:
                self.output = tensor_name(node.input[0])
                return str(node.op)
            if node.op not in _PASSES:
                break
            name = node.input[0]
        return ""

    def tensor(self, name: str, *, argument: str) -> str:
        """The full name of a tensor of the graph; GraphError, with the nearest, if there is none."""
        return self._graph.tensor(name, argument=argument)

    def find_arrays(self, target: str) -> dict[str, str]:
        """What must be fed for a tensor besides the data: tensor -> the key of an array in a batch.

        Inputs that ``graph_inputs`` does not mention are fed with the labels, if there is only one. Raises GraphError if
        there are several.
        """
        known = [self.input, *self._arrays, *(each.tensor for each in self.switches)]
        needed = self._graph.needed([target], known)
        found = {
            tensor: key for tensor, key in self._arrays.items() if producer(tensor) in self._graph.needed([target])
        }
        others = [name for name in self._graph.sources(needed) if f"{name}:0" not in known]
        if len(others) > 1 or (others and "label" in found.values()):
            raise GraphError(
                f"graph_inputs=: {target} also needs {join_some(others)}; NAME=label says which input is fed with the labels, "
                "NAME=batch[KEY] feeds another array of the batch, and NAME=VALUE gives it a value"
            )
        return found | {f"{name}:0": "label" for name in others}

    def program(
        self, targets: Sequence[str], *, training: bool, moving: Collection[str] = (), arrays: Collection[str] = ()
    ) -> Program:
        """The part that computes some tensors, from the data and perhaps from other ``arrays`` of the batch.

        In ``training``, the layers whose paths are in ``moving`` run in training mode and update their statistics; all
        others run in inference mode. Raises GraphError and UnsafeGraphError as ``extract`` does.
        """
        key = (tuple(targets), training, frozenset(moving), tuple(arrays))
        if key not in self._programs:
            self._programs[key] = self._build(targets, training, [e for e in self.layers if e.path in moving], arrays)
        return self._programs[key]

    def _build(
        self, targets: Sequence[str], training: bool, moving: Sequence[StatisticsLayer], arrays: Collection[str]
    ) -> Program:
        meta = type(self.meta.definition)()
        meta.CopyFrom(self.meta.definition)
        moving = moving if training else []
        still = [layer for layer in self.layers if layer not in moving]
        if training:
            switching.separate_layers(
                meta.graph_def, self.switches, [e.scope for e in still if e.scope], where=self.where
            )
        assigned = {variable: name for layer in moving for variable, name in layer.updates.items()}
        for layer in still:
            _use_statistics(meta.graph_def, layer)
        _wait_for_none(meta.graph_def, {name for layer in still for name in layer.updates.values()})
        use_values(meta.graph_def, assigned.values(), where=self.where)
        values = {each.tensor: each.training if training else each.evaluation for each in self.switches}
        fed: dict[str, Any] = {self.input: self._shapes.get(self.input)} | dict.fromkeys(arrays)
        updates = {variable: f"{name}:0" for variable, name in assigned.items()}
        part = extract.extract(
            meta, path=self.where, inputs=fed | values, outputs=list(dict.fromkeys([*targets, *updates.values()]))
        )
        self._check_still(part, still)
        return Program(part, updates)

    def _check_still(self, part: Extracted, still: Sequence[StatisticsLayer]) -> None:
        """Raises GraphError if a layer in inference mode would still normalise by the moments of the batch."""
        left = {node.name: node for node in part.definition.node}
        switched = any(isinstance(each.training, bool) for each in self.switches)
        for layer in still:
            inside = [node for name, node in left.items() if layer.scope and name.startswith(f"{layer.scope}/")]
            wrong = [node.name for node in inside if node.op in _FUSED and node.attr["is_training"].b]
            for tensor in layer.moments.values():
                name = producer(tensor)
                while self._graph.nodes[name].op in _PASSES:
                    name = producer(self._graph.nodes[name].input[0])
                if name in left and left[name].op not in _FUSED:
                    wrong.append(name)
            if inside and not layer.moments and not switched:
                wrong.append(inside[0].name)
            if wrong:
                raise GraphError(
                    f"{self.where}: {layer.path} cannot run in inference mode, since nothing switches it and it is not known how "
                    f"{wrong[0]} uses the moments of the batch; let it train with @stats, or name a tensor before it with outputs="
                )

    def variables(self, targets: Sequence[str], arrays: Collection[str] = ()) -> tuple[OldVariable, ...]:
        """The variables that some tensors need in training or in evaluation, in the order of the graph."""
        found: dict[str, OldVariable] = {}
        every = [layer.path for layer in self.layers]
        for training, moving in ((True, every), (True, ()), (False, ())):
            part = self.program(targets, training=training, moving=moving, arrays=arrays).part
            found |= {variable.node: variable for variable in part.variables}
        order = {name: number for number, name in enumerate(self._graph.nodes)}
        return tuple(sorted(found.values(), key=lambda variable: order[variable.node]))

    def notes(self) -> list[str]:
        """What a user should know of the graph, a sentence each."""
        found = [] if self.frozen is None else _describe_frozen(self.frozen)
        penalties = self.meta.names("regularization_losses")
        if penalties:
            found.append(
                f"the {len(penalties)} regularisation losses of the graph are part only of --loss=graph:NAME, if that includes them"
            )
        mixing = [
            node.name
            for node in self.program([self.output], training=False).part.definition.node
            if node.op in _FUSED and node.attr["is_training"].b
        ]
        if mixing:
            found.append(
                f"normalises by the moments of the batch in evaluation too, as nothing moves statistics: {join_some(mixing)}"
            )
        return found

    def trainable(self) -> frozenset[str] | None:
        """The nodes of the variables that were created as trainable; None if the graph does not say."""
        if self.frozen is not None:
            return frozenset(weight.name for weight in self.frozen.weights if weight.kind == "weight")
        names = self.meta.variable_names("trainable_variables")
        return frozenset(names) if names else None


def _restate_shapes(meta: MetaGraph, shapes: Mapping[str, tuple[int | None, ...]]) -> MetaGraph:
    """The graph with other shapes of its placeholders: data need not have the size that it was exported for."""
    named = {producer(name): shape for name, shape in shapes.items()}
    if not named:
        return meta
    made = type(meta.definition)()
    made.CopyFrom(meta.definition)
    for node in made.graph_def.node:
        if node.name in named and node.op in PLACEHOLDERS:
            node.attr["shape"].shape.CopyFrom(tf.TensorShape(named[node.name]).as_proto())
    return dataclasses.replace(meta, definition=made)


def _describe_frozen(frozen: Thawed) -> list[str]:
    found = [f"frozen: {len(frozen.weights)} of its constants are weights", *frozen.notes]
    if frozen.unclear:
        listed = join_some([f"{each.name} ({each.reason})" for each in frozen.unclear])
        found.append(
            f"{len(frozen.unclear)} constants stay as they are, since nothing shows whether they are weights; --constants=REGEX "
            f"makes them so: {listed}"
        )
    return found


def _wait_for_none(definition: Any, updates: Collection[str]) -> None:
    """Removes what makes an operation wait for updates that are left out: some graphs have them run with the layer."""
    for node in definition.node:
        kept = [source for source in node.input if not (source.startswith("^") and source[1:] in updates)]
        if len(kept) < len(node.input):
            del node.input[:]
            node.input.extend(kept)


def _use_statistics(definition: Any, layer: StatisticsLayer) -> None:
    """Replaces the moments of a batch by the statistics, wherever a layer normalises by them without a switch."""
    moments = {tensor: variable for variable, tensor in layer.moments.items()}
    updates = _slice_of_updates(definition, layer)
    for node in definition.node:
        if node.op in _FUSED and node.attr["is_training"].b:
            found = [moments.get(f"{node.name}:{place}") for place in _FUSED[node.op]]
            if all(found):
                node.input[3:5] = found
                node.attr["is_training"].b = False
    for node in definition.node:
        if node.name in updates:
            continue
        for position, source in enumerate(node.input):
            variable = "" if source.startswith("^") else moments.get(tensor_name(source), "")
            if variable and node.op not in _FUSED:
                node.input[position] = variable


def _slice_of_updates(definition: Any, layer: StatisticsLayer) -> set[str]:
    """The nodes between the moments of a batch and the assignments of a layer."""
    nodes = {node.name: node for node in definition.node}
    found: set[str] = set()
    pending = list(layer.updates.values())
    ends = {producer(tensor) for tensor in layer.moments.values()}
    while pending:
        name = pending.pop()
        if name in found or name in ends or name not in nodes:
            continue
        found.add(name)
        pending += [producer(source) for source in nodes[name].input if not source.startswith("^")]
    return found
