"""Random numbers of a graph from a file, drawn from the seeds of the examples instead of a generator that no checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from engine import seeds as example_seeds
from engine.errors import GraphError
from engine.graphs.batch_shapes import BatchShapes
from engine.graphs.node_editing import all_nodes, replace_node
from engine.graphs.op_kinds import is_random
from engine.text import join_some

SEED = "draws/seed"  # the tensor that replaced operations read: int32 [2]
# Operation -> the one that draws the same from a seed.
_STATELESS = {
    "RandomUniform": "StatelessRandomUniform",
    "RandomStandardNormal": "StatelessRandomNormal",
    "TruncatedNormal": "StatelessTruncatedNormal",
}


@dataclass(frozen=True)
class Draw:
    """A place where the graph draws. ``shape`` is that of an example, None if the numbers do not belong to examples."""

    tensor: str
    site: int
    dtype: tf.DType
    shape: tuple[int, ...] | None


def find_random(definition: Any) -> list[str]:
    """The names of the operations that draw, those in functions too."""
    return [node.name for node in all_nodes(definition) if is_random(node.op)]


def find_inner(definition: Any) -> list[Any]:
    """The operations in loops, branches and other functions that draw."""
    return [node for function in definition.library.function for node in function.node_def if is_random(node.op)]


def find_draws(
    definition: Any,
    input_map: Mapping[str, Any],
    batch: str,
    *,
    where: str,
    set_call_shapes: Callable[[Any, Mapping[str, Any]], None] = lambda definition, input_map: None,
) -> tuple[Draw, ...]:
    """Finds where a graph draws and, in place, makes what does not draw for each example apart read a seed.

    The numbers of an example are drawn from its own seeds where they are uniform in [0, 1) and their first axis is the
    batch: as in dropout. Others are drawn from one seed, so they depend on how a step is split. ``input_map`` are the
    specs of what the graph reads, ``batch`` the name of the input whose first axis is the batch, and ``set_call_shapes``
    states what loops and branches return. Raises GraphError
    for operations that draw in another way. Those in a loop or branch keep TensorFlow's own generator.
    """
    nodes = [node for node in definition.node if is_random(node.op)]
    if other := [node.name for node in nodes if node.op not in _STATELESS]:
        raise GraphError(
            f"{where}: {join_some(other)} cannot draw from the seeds of the examples; "
            "cut after it with inputs=, or switch it off with graph_inputs="
        )
    for number, node in enumerate(find_inner(definition)):
        node.attr["seed"].i, node.attr["seed2"].i = 1, number + 1  # deterministic ops need some
    if not nodes:
        return ()
    set_call_shapes(definition, input_map)
    shapes = _infer_shapes(definition, [f"{node.name}:0" for node in nodes], input_map, batch)
    found = []
    for site, node in enumerate(nodes):
        shape = shapes[f"{node.name}:0"] if node.op == "RandomUniform" else None
        dtype = tf.as_dtype(node.attr["dtype"].type)
        found.append(Draw(f"{node.name}:0", site, dtype, shape))
        if shape is None:
            kept = {"dtype": dtype, "T": tf.as_dtype(node.attr["T"].type), "Tseed": tf.int32}
            controls = [source for source in node.input if source.startswith("^")]
            replace_node(node, _STATELESS[node.op], [node.input[0], f"{SEED}_{site}", *controls], kept)
    return tuple(found)


def draw(draws: Sequence[Draw], seeds: Any) -> dict[str, Any]:
    """What the graph reads in place of its own numbers: tensor -> value, given the seeds of the examples, int32 [B, 2]."""
    found = {}
    for each in draws:
        if each.shape is not None:
            found[each.tensor] = tf.cast(example_seeds.uniform(seeds, each.shape, site=each.site), each.dtype)
        else:
            found[f"{SEED}_{each.site}:0"] = seeds[0] + tf.constant([each.site, 0], tf.int32)
    return found


def hold(draws: Sequence[Draw], images: Any, value: float) -> dict[str, Any]:
    """What the graph reads in evaluation, where its numbers must not matter: all of them have one value in [0, 1)."""
    found: dict[str, Any] = {}
    for each in draws:
        if each.shape is not None:
            found[each.tensor] = tf.fill([tf.shape(images)[0], *each.shape], tf.constant(value, each.dtype))
        else:
            found[f"{SEED}_{each.site}:0"] = tf.constant([int(value * 2**30), each.site], tf.int32)
    return found


def _infer_shapes(
    definition: Any, tensors: Sequence[str], input_map: Mapping[str, Any], batch: str
) -> dict[str, tuple[int, ...] | None]:
    """The shape per example of each tensor; None where the first axis is not the batch or a length is not known."""
    graph = tf.Graph()
    with graph.as_default():
        fed = {name: tf.compat.v1.placeholder(spec.dtype, spec.shape) for name, spec in input_map.items()}
        made = tf.graph_util.import_graph_def(definition, input_map=fed, return_elements=list(tensors), name="")
    shapes = BatchShapes(graph, [fed[batch]])
    found: dict[str, tuple[int, ...] | None] = {}
    for name, tensor in zip(tensors, made, strict=True):
        lengths = shapes(tensor)
        settled = lengths is not None and len(lengths) > 0 and (lengths[0].each, lengths[0].fixed) == (1, 0)
        rest = lengths[1:] if lengths is not None else ()
        found[name] = tuple(n.fixed for n in rest) if settled and not any(n.each for n in rest) else None
    return found
