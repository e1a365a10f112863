"""Builds ``savedmodel:DIR`` and ``hub:HANDLE``: the network of a SavedModel, as it is or with a new head."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from engine import porting
from engine.data import Normalise
from engine.errors import GraphError
from engine.models import images, outside
from engine.models.keras.heads import HeadError, choose_upper, parse_head
from engine.models.pooled_head import PooledHead, TaskHeads
from engine.models.saved_model import traces
from engine.models.saved_model.hub import resolve_handle
from engine.models.saved_model.network import SavedNetwork
from engine.models.saved_model.of_tf1 import build_old_model
from engine.models.saved_model.reading import SavedFile, read_saved_model
from engine.models.saved_model.traces import choose_traces, shown_shape
from engine.models.saved_model.trunk import Trunk
from engine.models.spec import (
    Model,
    ModelSpecError,
    Request,
    fits_outputs,
    parse_options,
    read_image_shape,
    shape_outputs,
)
from engine.selection import groups
from engine.selection.variables import name_variables
from engine.text import join_words, nearest

_OPTIONS = ("signature", "output", "preprocess", "tags")
_BELOW = "trunk"  # what the variables of the file lie under where some of them would pass for the new head


def build_saved_trunk(request: Request) -> Model:
    """Builds the network of a SavedModel with its weights.

    The request's name is a folder, or for ``hub:`` a handle. Options are ``signature`` (the function; by default the one
    that is called, or served), ``output`` (one of the tensors that it returns), ``preprocess`` as for other files, and
    ``tags`` of a SavedModel with several graphs. Without ``head`` the outputs are the file's own, if they fit the data, or
    those of a new head with average pooling. A SavedModel of TensorFlow 1 is built as ``graph:`` is (compat_v1).

    Raises:
        ModelSpecError: there is no such folder, function or output, or the data do not fit.
        UnsafeGraphError: the file does more than compute.
        MetaGraphError, FileError, GraphError: the file is damaged, or has something that cannot be run here.
    """
    _check_request(request)
    if len(request.inputs) > 1:
        read_image_shape(request)  # which says that there are several
    options = request.options
    folder = str(resolve_handle(request.name, spec=request.spec)) if _is_hub(request.spec) else request.name
    file = read_saved_model(folder, tags=_tags(options, request.graph), spec=request.spec)
    if file.is_of_tf1:
        return build_old_model(request, file)
    if unknown := [name for name in request.graph if name not in ("tags", "loss")]:
        raise ModelSpecError(
            f"{unknown[0]}={request.graph[unknown[0]]}: it is about a graph of TensorFlow 1, and {file.folder} is a SavedModel of "
            "TensorFlow 2; the options signature= and output= of the model name a function and one of its results"
        )
    given: dict[str, Any] = {"image_shape": request.image_shape, "spec": request.spec}
    with file.explaining_damage():
        chosen = choose_traces(file, signature=options.get("signature"), output=options.get("output"), **given)
        trunk = Trunk(file, chosen)
    notes = [f"{file.folder.name}: {chosen.inference.source} takes {trunk.data.name}{_describe_output(chosen)}"]
    head = request.head
    activation = trunk.activation
    logits = request.expects_logits()
    if head is None and request.tasks:
        head = "gap"
    elif head is None and request.outputs_of in ("example", None) and not _fits(trunk, request):
        if activation:
            raise ModelSpecError(
                f"model={request.spec!r}: its outputs have shape {shown_shape(trunk.features.shape)}, but the data require "
                f"{request.outputs}, and they end in {activation.lower()}; output= names its features, on which a new head "
                "stands, and --head=gap puts one on these probabilities"
            )
        head = "gap"
    elif head is None and logits and (kind := trunk.strip_activation()):
        notes.append(f"the final {kind.lower()} was left out, since the loss expects logits")
    elif head is None and logits and activation:
        raise ModelSpecError(
            f"model={request.spec!r}: it ends in {activation.lower()}, which cannot be left out, but the loss expects logits; "
            "--head=gap gives it a new head"
        )
    network = _build_network(request, trunk, with_head=head is not None)
    if head is not None:
        notes.append(_add_head(request, network, head))
    return _finish(request, file, network, notes)


def native_size(spec: str) -> tuple[int, int] | None:
    """The (height, width) in pixels that a SavedModel is made for; None for any size. Raises as building it does."""
    first, *texts = [part.strip() for part in spec.split(",")]
    name, options = first.partition(":")[2], parse_options(spec, texts)
    folder = str(resolve_handle(name, spec=spec)) if _is_hub(spec) else name
    file = read_saved_model(folder, tags=_tags(options, {}), spec=spec)
    if file.is_of_tf1:
        return outside.find_builder("graph").native_size(str(file.folder))
    with file.explaining_damage():
        return traces.native_size(file, options.get("signature"))


def _is_hub(spec: str) -> bool:
    return spec.partition(":")[0] == "hub"


def _tags(options: Mapping[str, str], graph: Mapping[str, str]) -> list[str] | None:
    text = options.get("tags", graph.get("tags"))
    return None if text is None else [tag for tag in text.replace("+", ",").split(",") if tag]


def _check_request(request: Request) -> None:
    if not request.name:
        raise ModelSpecError(f"model={request.spec!r}: expected savedmodel:DIR or hub:HANDLE")
    for name, value in request.options.items():
        if name not in _OPTIONS:
            raise ModelSpecError(
                f"model={request.spec!r}: `{name}` is not an option of a SavedModel; expected one of "
                f"{', '.join(_OPTIONS)}, classes{nearest(name, list(_OPTIONS))}"
            )
        if not value and name != "tags":
            raise ModelSpecError(f"model={request.spec!r}: {name}= has no value; expected {name}=NAME")
    if request.compute != request.dtype:
        raise ModelSpecError(
            f"model={request.spec!r}: a SavedModel computes in float32 or float64; {request.policy} is not offered for it"
        )
    if "loss" in request.graph:
        raise ModelSpecError(
            f"loss=graph:{request.graph['loss']}: a SavedModel has no losses; expected softmax or another"
        )


def _describe_output(chosen: Any) -> str:
    name, shape = chosen.output, shown_shape(chosen.features.shape)
    return f" and returns {f'{name} ' if name else ''}{shape}"


def _fits(trunk: Trunk, request: Request) -> bool:
    """Whether the features may be logits for the data."""
    shape = trunk.features.shape
    return shape is not None and len(shape) in (2, 4) and fits_outputs(shape, request)


def _build_network(request: Request, trunk: Trunk, *, with_head: bool) -> SavedNetwork:
    paths = dict(trunk.paths)
    if with_head and any(groups.in_head(path) for path in paths.values()):
        paths = {number: f"{_BELOW}/{path}" for number, path in paths.items()}
    values = trunk.file.read_values(trunk.variables)
    if not values:
        raise GraphError(
            f"{trunk.where}: {trunk.chosen.inference.source} computes without variables; a trunk needs some"
        )
    return SavedNetwork(trunk, values, paths, image_shape=request.image_shape, dtype=request.dtype)


def _add_head(request: Request, network: SavedNetwork, text: str) -> str:
    """Puts a new head on the network; a sentence about it."""
    shape = tf.TensorShape(network.trunk.features.shape)
    if shape.rank is None or None in shape.as_list()[1:]:
        shape = _trace(request, network).outputs[0].shape
    if shape.rank is None:
        raise HeadError(f"head={text!r}: the SavedModel does not state the shape of its features")
    given: dict[str, Any] = {"seed": request.seed, "dtype": request.dtype}
    parsed, features = parse_head(text), tuple(shape[1:])
    head: tf.Module
    if request.tasks:
        head = TaskHeads(parsed, features, request.tasks, **given)
        what = f"new heads ({text}) for {join_words(request.tasks)} stand"
    else:
        head = PooledHead(parsed, features, request.outputs, **given)
        what = f"a new head ({text}) with {request.outputs} outputs stands"
    network.add_head(head)
    default = "" if request.head is not None else "; --head chooses another"
    return f"{what} on its features {shown_shape(shape.as_list())}{default}"


def _finish(request: Request, file: SavedFile, network: SavedNetwork, notes: list[str]) -> Model:
    options = {name: value for name, value in request.options.items() if name == "preprocess"}
    plain = dataclasses.replace(request, options=options)
    shape = request.image_shape
    normalise, chosen = Normalise(), True
    note: tuple[str, ...] = ()
    traced = _trace(request, network)
    if len(shape) == 3:
        variables = name_variables(network)
        normalise, note, chosen = images.choose_preprocessing(plain, traced, variables, shape[2])
        if network.trunk.data.dtype.is_integer and images.parse_mode(plain) != "pixels":
            raise ModelSpecError(
                f"model={request.spec!r}: {network.trunk.data.name} takes whole numbers; preprocess=pixels gives it images from "
                "0 to 255"
            )
        if not chosen:
            raise ModelSpecError(
                f"model={request.spec!r}: the SavedModel does not scale its input, and nothing says which values it was trained "
                f"on; say so with the option preprocess, as in --model={request.spec},preprocess=tf: one of "
                f"{', '.join(images.MODES)} (unit, 0 to 1, is what models of TensorFlow Hub take)"
            )
        note = (*note, *images.describe_colours(normalise, shape))
    return Model(
        request.spec,
        network,
        _check_outputs(request, traced),
        normalise,
        upper=choose_upper(network),
        statistics="frozen",
        images_chosen=chosen,
        notes=(*notes, *network.trunk.notes(), *network.notes(), *note),
        tasks=request.tasks,
        load=functools.partial(_load, spec=request.spec, own=str(file.folder), count=len(network.trunk.variables)),
    )


def _load(name: str, *, spec: str, own: str, count: int) -> str | None:
    """Loads weights by their name in a flag: a SavedModel comes with its own; None for a file."""
    if name == "auto":
        return f"{own}, {count} variables"
    if name in ("none", "imagenet"):
        raise porting.PortError(
            f"weights={name!r}: model={spec!r} has only the weights of its folder; expected auto or a file"
        )
    return None


def _check_outputs(request: Request, traced: Any) -> int:
    shape = traced.outputs[0].shape
    if request.tasks:
        return request.outputs  # of heads that were made for them
    if shape.rank not in (2, 4) or not fits_outputs(shape.as_list(), request):
        raise ModelSpecError(
            f"model={request.spec!r}: its outputs have shape {shown_shape(None if shape.rank is None else shape.as_list())}; "
            f"expected {shape_outputs(request)} for these data. "
            + (
                "--head=gap adds a new head"
                if request.outputs_of == "example"
                else "output= names another of its results"
            )
        )
    return request.outputs


def _trace(request: Request, network: SavedNetwork) -> Any:
    """The network in inference mode, as a concrete function of images."""
    traced = tf.function(lambda image: network(image, training=False), autograph=False)
    dtype = next((each.dtype for each in request.inputs.values()), tf.float32)
    try:
        return traced.get_concrete_function(tf.TensorSpec([None, *request.image_shape], dtype))
    except (GraphError, ModelSpecError):
        raise
    except (ValueError, TypeError, tf.errors.OpError) as error:
        text = " ".join(str(error).split())[:300]
        raise ModelSpecError(
            f"model={request.spec!r}: on data of shape {list(request.image_shape)} its graph fails: {text}"
        ) from None
