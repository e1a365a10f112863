"""An old graph as a job for two runners: a Session with its own train op, and the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.graphs.endpoints import Graph, producer, tensor_name
from compat_v1.graphs.extract import list_variables
from compat_v1.graphs.metagraph import MetaGraph, read_metagraph
from compat_v1.graphs.original import read_value
from compat_v1.models.losses import make_loss
from compat_v1.models.network import GraphNetwork
from compat_v1.models.old_graph import OldGraph
from compat_v1.models.weights import read_values
from engine import porting
from engine.graphs import safety
from engine.graphs.widening import widen_graph
from engine.selection.selection import select
from engine.training.optimizers import build_optimizer
from engine.training.step import TrainStep

Arrays = Mapping[str, np.ndarray]
_READS = ("read", "Read/ReadVariableOp")  # what reads a variable, below its name


@dataclass(frozen=True, kw_only=True)
class GraphJob:
    """A step of an old graph. Texts are as in the flags of benchmark_graph; ``feed`` is an .npz file of what is fed."""

    graph: str
    checkpoint: str
    inputs: str
    outputs: str
    loss: str
    train_op: str
    feed: str
    train: str
    optimizer: str
    learning_rate: float

    def feeds(self) -> dict[str, np.ndarray]:
        with np.load(self.feed, allow_pickle=False) as file:
            return {tensor_name(name): file[name] for name in file.files}


class OldSession:
    """An old graph in a Session: what some fetches need, with the values of its variables, in float32 or float64.

    The part may compute and change variables, and nothing else. Raises UnsafeGraphError otherwise.
    """

    def __init__(self, meta: MetaGraph, fetches: Sequence[str], values: Arrays, *, dtype: Any = tf.float32) -> None:
        definition = meta.definition.graph_def
        known = {node.name for node in definition.node}
        ends = [producer(name) for name in fetches] + [f"{name}/Assign" for name in values]
        ends += [name for name in (f"{node}/{kind}" for node in values for kind in _READS) if name in known]
        definition = tf.compat.v1.graph_util.extract_sub_graph(definition, ends)
        safety.check_graph(definition, where=str(meta.path), changes=True)
        given = [node.attr["dtype"].type for node in definition.node if node.op == "Placeholder"]
        if dtype == tf.float64 and dtype.as_datatype_enum not in given:
            widen_graph(definition, where=str(meta.path))
        self.graph = tf.Graph()
        with self.graph.as_default():
            tf.graph_util.import_graph_def(definition, name="")
        self.session = tf.compat.v1.Session(graph=self.graph)
        for name, value in values.items():
            assign = self.graph.get_operation_by_name(f"{name}/Assign")
            new = assign.inputs[1]
            self.session.run(assign, {new: np.asarray(value).astype(new.dtype.as_numpy_dtype)})

    def __enter__(self) -> OldSession:
        return self

    def __exit__(self, *unused: object) -> None:
        self.session.close()

    def run(self, fetches: Any, feeds: Mapping[str, Any]) -> Any:
        """Runs the graph once; ``feeds`` is tensor -> value."""
        return self.session.run(fetches, {self.graph.get_tensor_by_name(name): value for name, value in feeds.items()})

    def gradients(self) -> dict[str, Any]:
        """The tensors with the gradient that the graph's own optimizer applies to each variable, by its node."""
        found = {}
        for op in self.graph.get_operations():
            names = [argument.name for argument in op.op_def.input_arg]
            if "Apply" in op.type and "Sparse" not in op.type and names[0] == "var":
                found[op.inputs[0].op.name] = op.inputs[names.index("delta" if "delta" in names else "grad")]
        return found

    def values(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The values of variables now, by their nodes."""
        reads = {}
        for name in names:
            handle = self.graph.get_operation_by_name(name).outputs[0]
            readers = [each for each in handle.consumers() if each.name in {f"{name}/{kind}" for kind in _READS}]
            reads[name] = readers[0].outputs[0]
        found: dict[str, np.ndarray] = self.session.run(reads)
        return found


def read_all(meta: MetaGraph, checkpoint: str) -> dict[str, np.ndarray]:
    """The value in a checkpoint of every variable of a graph, slots included, by its node."""
    graph = Graph(meta.definition.graph_def, where=str(meta.path))
    held = list_variables(meta.definition, graph, set(graph.nodes))
    with porting.open_tensors(checkpoint) as source:
        names = set(source.names())
        return {v.node: read_value(v, source, str(meta.path)) for v in held if v.saved.key in names}


class Session:
    """Trains a job's graph in a Session, by its own train op."""

    def __init__(self, job: GraphJob) -> None:
        meta = read_metagraph(job.graph)
        self._fetches = [tensor_name(job.loss), producer(job.train_op)]
        self._session = OldSession(meta, self._fetches, read_all(meta, job.checkpoint))
        self._feeds = job.feeds()

    def train_step(self) -> float:
        return float(self._session.run(self._fetches, self._feeds)[0])

    def facts(self) -> dict[str, Any]:
        return {"operations": len(self._session.graph.get_operations())}


class Engine:
    """Trains a job's graph by the engine, from the same weights."""

    def __init__(self, job: GraphJob) -> None:
        feeds = job.feeds()
        image = next(name for name in feeds if name == tensor_name(job.inputs.partition("[")[0]))
        keys = {name: f"fed_{number}" for number, name in enumerate(feeds) if name != image}
        texts = [
            f"{name}={feeds[name].item()}" if feeds[name].ndim == 0 else f"{name}=batch[{key}]"
            for name, key in keys.items()
        ]
        old = OldGraph(
            read_metagraph(job.graph), inputs=job.inputs, outputs=[job.outputs], graph_inputs=" ".join(texts)
        )
        tensor = old.tensor(job.loss, argument="loss")
        variables = old.variables([old.output, tensor], old.find_arrays(tensor))
        network = GraphNetwork(old, variables, read_values(variables, job.checkpoint, f"graph:{job.graph}"))
        batch = {"image": feeds[image]} | {key: feeds[name] for name, key in keys.items() if feeds[name].ndim}
        self._selection = select(network, job.train)
        self._step = TrainStep(
            make_loss(network, job.loss), build_optimizer(job.optimizer), nonfinite="skip", give_up=10**6
        )
        self._batch = self._step.tensors(batch)  # with the seeds of its examples, as a run gets its batches
        self._rate = job.learning_rate
        self._random = bool(old.program([tensor], training=True, arrays=tuple(old.find_arrays(tensor))).part.random)

    def train_step(self) -> float:
        return float(self._step(self._selection, self._batch, learning_rate=self._rate).loss)

    def facts(self) -> dict[str, Any]:
        return {"trained_parameters": self._selection.trained_parameters, "random": self._random}
