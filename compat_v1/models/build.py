"""Builds ``graph:PATH``: the network of an old graph, with its weights, as a model of the engine."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import tensorflow as tf

from compat_v1.graphs import metagraph
from compat_v1.graphs.extract import OldVariable
from compat_v1.models import weights as old_weights
from compat_v1.models.losses import make_loss
from compat_v1.models.network import GraphNetwork
from compat_v1.models.old_graph import OldGraph
from compat_v1.models.switches import describe
from engine.graphs.safety import UnsafeGraphError
from engine.graphs.tracing import CALLS
from engine.models import images
from engine.models.keras.heads import parse_head
from engine.models.pooled_head import PooledHead
from engine.models.spec import Model, ModelSpecError, Request
from engine.porting.readers.graph_file import MetaGraphError
from engine.selection.variables import name_variables


def build_model(request: Request) -> Model:
    """Builds the network of an old graph; ``request.graph`` are flags of finetune (engine.models.spec).

    Raises ModelSpecError, GraphError, UnsafeGraphError, MetaGraphError or PortError if the graph, its endpoints or its
    weights do not fit, or it does more than compute.
    """
    _check_request(request)
    given, spec = request.graph, request.spec
    tags = None if "tags" not in given else [tag for tag in given["tags"].split(",") if tag]
    meta = metagraph.read_metagraph(request.name, tags=tags)
    features = given.get("features")
    wanted = features or given.get("outputs")
    old = OldGraph(
        meta,
        inputs=given.get("inputs"),
        outputs=None if wanted is None else [wanted],
        graph_inputs=given.get("graph_inputs"),
        constants=given.get("constants"),
        argument="outputs" if features is None else "features",
    )
    notes = [f"{pathlib.Path(request.name).name}: {old.input} -> {old.output}"]
    if meta.note:
        notes.append(meta.note)
    if request.logits and features is None and (kind := old.strip_activation()):
        notes.append(f"the final {kind.lower()} was left out, since the loss expects logits: {old.output}")
    if old.switches:
        notes.append(f"switches: {describe(old.switches)}")
    weights = old_weights.find_weights(old)
    variables = _list_variables(old)
    if loss := given.get("loss"):
        tensor = old.tensor(loss, argument="loss")
        variables = old.variables([old.output, tensor], old.find_arrays(tensor))
    values = old_weights.read_values(variables, weights, spec, frozen=old.frozen)
    network = GraphNetwork(old, variables, values, dtype=request.dtype)
    if features is not None:
        _add_head(request, network)
    outputs = _check_outputs(request, network)
    traced = _trace(request, network)
    named = name_variables(network)
    normalise, note, chosen = images.choose_preprocessing(request, traced, named, request.image_shape[2])
    if old.input_type.is_integer and images.parse_mode(request) != "pixels":
        raise ModelSpecError(
            f"model={spec!r}: {old.input} takes whole numbers; preprocess=pixels gives it images from 0 to 255"
        )
    if not chosen:
        raise ModelSpecError(
            f"model={spec!r}: the graph does not scale its input, and nothing says which values it was trained on; say so with "
            f"the option preprocess, as in --model={spec},preprocess=tf: one of {', '.join(images.MODES)}"
        )
    return Model(
        spec,
        network,
        outputs,
        normalise,
        upper="@all",
        statistics="frozen",
        images_chosen=chosen,
        notes=(*notes, *old.notes(), *network.notes(), *note, *images.describe_colours(normalise, request.image_shape)),
        load=functools.partial(old_weights.load, spec=spec, network=network, own=weights),
        own_loss=functools.partial(make_loss, network),
        own_slots=functools.partial(old_weights.open_slots, weights, network),
    )


def _list_variables(old: OldGraph) -> tuple[OldVariable, ...]:
    try:
        return old.variables([old.output])
    except UnsafeGraphError as error:
        if not any(node.op in CALLS for node in old.meta.definition.graph_def.node):
            raise
        raise UnsafeGraphError(
            f"{error}\n{old.where} computes in functions, as TensorFlow 2 exports do. py:module:factory trains a module that holds "
            "what tf.saved_model.load returns"
        ) from None


def native_size(name: str) -> tuple[int, int] | None:
    """The (height, width) of the only placeholder of a graph that has the shape of images; None for any size."""
    try:
        definition = metagraph.read_metagraph(name).definition.graph_def
    except MetaGraphError:
        return None  # the model itself will be built for the images, and say what is wrong
    sizes = {
        (int(dims[1].size), int(dims[2].size))
        for node in definition.node
        if node.op == "Placeholder" and len(dims := node.attr["shape"].shape.dim) == 4
        if dims[1].size > 0 and dims[2].size > 0
    }
    return sizes.pop() if len(sizes) == 1 else None


def _check_request(request: Request) -> None:
    if not request.name:
        raise ModelSpecError(f"model={request.spec!r}: expected graph:PATH, a .meta file, a SavedModel or a GraphDef")
    if unknown := sorted(set(request.options) - {"preprocess"}):
        raise ModelSpecError(
            f"model={request.spec!r}: `{unknown[0]}` is not an option of a graph; expected preprocess=MODE"
        )
    if request.compute != request.dtype:
        raise ModelSpecError(
            f"model={request.spec!r}: a graph computes in float32 or float64; {request.policy} is not offered for it"
        )
    if request.head is not None and "features" not in request.graph:
        raise ModelSpecError(
            f"head={request.head!r}: --features=TENSOR must say on which tensor of {request.name} the new head stands"
        )


def _add_head(request: Request, network: GraphNetwork) -> None:
    features = _trace(request, network).outputs[0].shape
    if features.rank is None:
        raise ModelSpecError(f"features={request.graph['features']}: the graph does not state its shape")
    head = PooledHead(
        parse_head(request.head or "gap"), tuple(features[1:]), request.outputs, seed=request.seed, dtype=request.dtype
    )
    network.add_head(head)


def _check_outputs(request: Request, network: GraphNetwork) -> int:
    """The number of outputs; ModelSpecError unless they are [B, outputs] for these data."""
    shape = _trace(request, network).outputs[0].shape
    if shape.rank != 2 or shape[1] != request.outputs:
        listed = "unknown" if shape.rank is None else str(["?" if n is None else n for n in shape])
        raise ModelSpecError(
            f"model={request.spec!r}: its output {network.old.output} has shape {listed}; expected [B, {request.outputs}] for these data. "
            "--outputs names another tensor, or --features=TENSOR --head=gap adds a new head"
        )
    return request.outputs


def _trace(request: Request, network: GraphNetwork) -> Any:
    """The network in inference mode, as a concrete function of images."""
    traced = tf.function(lambda image: network(image, training=False), autograph=False)
    try:
        return traced.get_concrete_function(tf.TensorSpec([None, *request.image_shape], tf.float32))
    except (ValueError, TypeError, tf.errors.OpError) as error:
        text = " ".join(str(error).split())[:300]
        raise ModelSpecError(
            f"model={request.spec!r}: on data of shape {list(request.image_shape)} its graph fails: {text}"
        ) from None
