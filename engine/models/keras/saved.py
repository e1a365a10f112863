"""Builds ``file:X.keras`` and ``file:X.h5``: a saved Keras model, as it is or with a new head.

Files are not trusted: they are loaded in Keras' safe mode, which runs no code from a file.
"""

from __future__ import annotations

import functools
from typing import Any

from engine.models import images
from engine.models.keras import heads, scopes, weights
from engine.models.keras.dense_heads import add_dense_head
from engine.models.keras.named_outputs import check_outputs, name_outputs, remove_activations
from engine.models.keras.precision import check_precision, set_precision
from engine.models.keras.safe_loading import load_model
from engine.models.spec import Model, ModelSpecError, Request, fits_outputs, read_image_shape
from engine.selection.variables import name_variables


def build_saved_model(request: Request) -> Model:
    """Loads a saved model: the request's name is a ``.keras`` file, or a legacy ``.h5`` or ``.hdf5`` file.

    The option ``preprocess=tf|torch|caffe|unit|pixels`` chooses the preprocessing of its images. A file keeps the dtype of
    its variables. Raises ModelSpecError if the file does not exist, is not a Keras model or is unsafe, or if its dtype,
    images or outputs do not fit; HeadError if it cannot get a new head.
    """
    model = adopt_model(request, load_model(request.name, "model"), own=f"those of {request.name}")
    model.own_file = request.name if request.head is None else None
    return model


def read_input_size(path: str) -> tuple[int, int] | None:
    """The (height, width) in pixels of a saved model's only input, or None for any size; raises as ``load_model`` does."""
    return input_size(load_model(path, "model"))


def input_size(model: Any) -> tuple[int, int] | None:
    """The (height, width) in pixels of a Keras model's only input, or None for any size."""
    inputs = getattr(model, "inputs", None) or []
    shape = list(inputs[0].shape) if len(inputs) == 1 else []
    if len(shape) != 4 or (shape[1] is None and shape[2] is None):
        return None
    return shape[1] or shape[2], shape[2] or shape[1]


def adopt_model(request: Request, model: Any, *, own: str) -> Model:
    """Prepares a Keras model for training: checks its input and outputs, and adds a head or removes an activation.

    ``own`` describes where its weights come from. Raises as ``build_saved_model`` does.
    """
    spec, outputs = request.spec, request.outputs
    shape, named = read_image_shape(request), bool(request.tasks) and request.head is None
    _check_input(spec, model, shape, several=named)
    model = name_outputs(model) if named else _plain(model)
    notes = list(set_precision(request, model))
    traced = heads.trace(model, shape[:2])
    notes += check_precision(request, model, traced)
    variables = name_variables(model) if model.weights else ()
    normalise, note, chosen = images.choose_preprocessing(request, traced, variables, model.input_shape[3])
    notes += note
    backbone, kind = None, heads.output_operation(traced)
    if request.head is not None:
        parsed = heads.parse_head(request.head)
        with scopes.seeded(request.seed), scopes.dtype_policy(request.policy):
            backbone, cut = heads.cut_head(model, spec, kind)
            if parsed.on_stages:
                network, said = add_dense_head(backbone, parsed, outputs, image=shape[:2], spec=spec)
            else:
                network = heads.add_head(backbone, parsed, request.tasks or outputs)
                features = _size(backbone.output_shape)
                tasks = "".join(f", {count} for {task}" for task, count in request.tasks.items())
                said = (f"a new head with {outputs} outputs{tasks} on {backbone.name}'s {features} features",)
        notes += [f"{line}; {cut}" for line in said]
    elif named:
        with scopes.dtype_policy(request.policy):
            network, removed_all = remove_activations(request, model)
        check_outputs(request, heads.trace(network, shape[:2]))
        notes += removed_all
    else:
        if not fits_outputs(model.output_shape, request):
            raise ModelSpecError(
                f"model={spec!r}: its outputs have shape {_size(model.output_shape)}, but the data require {outputs}; "
                "--head=gap replaces its last layer by a new head (--head=unet by one with outputs for each pixel)"
            )
        with scopes.dtype_policy(request.policy):
            network, removed = heads.remove_activation(model, spec, kind) if request.logits else (model, "")
        notes += [removed] if removed else []

    def check_images() -> None:
        images.check_preprocessing(request, normalise, heads.trace(network, shape[:2]), name_variables(network))

    return Model(
        spec,
        network,
        outputs,
        normalise,
        images_chosen=chosen,
        upper=heads.choose_upper(network),
        statistics="frozen",
        notes=(*notes, *images.describe_colours(normalise, request.image_shape)),
        load=functools.partial(
            weights.load_weights, spec=spec, network=network, backbone=backbone, own=own, images=normalise
        ),
        tasks=request.tasks,
        check_images=None if images.parse_mode(request) else check_images,
    )


def _plain(model: Any) -> Any:
    """The model with a single tensor as its input and output: some are saved with lists of one."""
    import keras

    if isinstance(model, keras.Sequential) or not isinstance(model, keras.Model):
        return model
    if hasattr(model.input, "shape") and hasattr(model.output, "shape"):
        return model
    return keras.Model(model.inputs[0], model.outputs[0], name=model.name)


def _check_input(spec: str, model: Any, image: tuple[int, ...], *, several: bool) -> None:
    """Raises ModelSpecError unless a model takes such images, and has one output, or ``several``."""
    shapes = [tuple(tensor.shape) for tensor in model.inputs], [tuple(tensor.shape) for tensor in model.outputs]
    if len(shapes[0]) != 1 or (len(shapes[1]) != 1 and not several):
        names = list(getattr(model, "output_names", None) or ())
        example = ", ".join(f"{name}=softmax" for name in names)
        hint = f"; the loss of each output is named as in --loss='{example}'" if len(names) > 1 else ""
        raise ModelSpecError(
            f"model={spec!r}: it has {len(shapes[0])} inputs and {len(shapes[1])} outputs; expected one of each{hint}"
        )
    wanted = shapes[0][0]
    if len(wanted) != 4 or wanted[3] not in (1, 3):
        raise ModelSpecError(f"model={spec!r}: its input has shape {_size(wanted)}; expected [height, width, 1 or 3]")
    if any(size is not None and size != given for size, given in zip(wanted[1:3], image[:2], strict=True)):
        raise ModelSpecError(
            f"model={spec!r}: the images are {image[0]}x{image[1]}, but its input is {_size(wanted[:3])}; "
            f"--image_size={'x'.join(str(size or given) for size, given in zip(wanted[1:3], image[:2], strict=True))} resizes "
            "them"
        )


def _size(shape: Any) -> str:
    return "x".join("any" if size is None else str(size) for size in shape[1:])
