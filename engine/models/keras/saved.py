"""``file:X.keras``, ``file:X.h5``: a saved Keras model, as it is or with a new head.

Files are untrusted: they are loaded in Keras' safe mode, which runs no code that a file brings.
"""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from engine import keras_private
from engine.data import Normalise
from engine.models import images
from engine.models.keras import heads, scopes, weights
from engine.models.keras.safe_loading import load_model
from engine.models.spec import Model, ModelSpecError, Request
from engine.selection.variables import is_keras, name_variables


def build(request: Request) -> Model:
    """Loads a saved model: the request's name is a ``.keras`` file, or a legacy ``.h5`` or ``.hdf5``.

    The option ``preprocess=tf|torch|caffe|unit|pixels`` says what its images should be. A file keeps
    the dtype of its variables, so another is an error.

    Raises:
        ModelSpecError: no such file, no Keras model, unsafe content, or images or outputs that do not fit.
        HeadError: no head can be put on it.
    """
    return adopt(request, load_model(request.name, "model"), own=f"those of {request.name}")


def input_size(path: str) -> tuple[int, int] | None:
    """(height, width) in pixels of a saved model's only input; None where it takes any.

    Raises:
        ModelSpecError: no such file, no Keras model, or unsafe content.
    """
    inputs = getattr(load_model(path, "model"), "inputs", None) or []
    shape = list(inputs[0].shape) if len(inputs) == 1 else []
    if len(shape) != 4 or (shape[1] is None and shape[2] is None):
        return None
    return shape[1] or shape[2], shape[2] or shape[1]


def adopt(request: Request, model: Any, *, own: str) -> Model:
    """Makes a Keras model trainable here: input and outputs checked, a head or logits where wanted.

    ``own`` says where its weights come from. Raises as ``build`` does.
    """
    spec, outputs = request.spec, request.outputs
    _check_input(spec, model, request.image_shape)
    model = _plain(model)
    normalise, note = _preprocessing(request, model)
    notes = [note] if note else []
    backbone = None
    if request.head is not None:
        parsed = heads.parse(request.head)
        backbone = heads.cut(model, spec)
        with scopes.seeded(request.seed), scopes.dtype_policy(request.policy):
            network = heads.compose(backbone, parsed, outputs)
        notes.append(f"a new head of {outputs} outputs on {backbone.name}'s {_size(backbone.output_shape)} features")
    else:
        if model.output_shape != (None, outputs):
            raise ModelSpecError(
                f"model={spec!r}: its outputs have shape {_size(model.output_shape)}, the data want {outputs}; "
                "--head=gap puts a new head in the place of its last layer"
            )
        network, note = heads.without_activation(model, spec) if request.logits else (model, "")
        notes += [note] if note else []
    follow_precision(request, network)
    return Model(
        spec,
        network,
        outputs,
        normalise,
        upper=heads.upper(network),
        statistics="frozen",
        notes=(*notes, *images.colour_notes(normalise, request.image_shape)),
        load=functools.partial(weights.load, spec=spec, network=network, backbone=backbone, own=own),
    )


def follow_precision(request: Request, network: Any) -> None:
    """Makes the layers of a built Keras model compute as the request wants; their variables stay as they are.

    Raises:
        ModelSpecError: weights of another dtype than the request's, or no Keras model that should compute in another.
    """
    wanted = tf.as_dtype(request.dtype).name
    other = {entry.variable.dtype.name for entry in name_variables(network) if entry.kind == "weight"} - {wanted}
    if other:
        raise ModelSpecError(f"model={request.spec!r}: its weights are {', '.join(sorted(other))}; {wanted} is wanted")
    if request.compute == request.dtype:
        return
    if not is_keras(network):
        raise ModelSpecError(
            f"precision={request.policy}: {request.name} returns a tf.Module, which decides itself what it computes in; "
            "vit:, cnn: and Keras models follow --precision"
        )
    import keras

    for layer in keras_private.flatten_layers(network):
        if not isinstance(layer, keras.layers.InputLayer):
            layer.dtype_policy = request.policy


def _plain(model: Any) -> Any:
    """The model with a tensor for input and output: some are saved with lists of one."""
    import keras

    if isinstance(model, keras.Sequential) or not isinstance(model, keras.Model):
        return model
    if hasattr(model.input, "shape") and hasattr(model.output, "shape"):
        return model
    return keras.Model(model.inputs[0], model.outputs[0], name=model.name)


def _check_input(spec: str, model: Any, image: tuple[int, int, int]) -> None:
    shapes = [tuple(tensor.shape) for tensor in model.inputs], [tuple(tensor.shape) for tensor in model.outputs]
    if len(shapes[0]) != 1 or len(shapes[1]) != 1:
        raise ModelSpecError(
            f"model={spec!r}: it has {len(shapes[0])} inputs and {len(shapes[1])} outputs; one of each is wanted"
        )
    wanted = shapes[0][0]
    if len(wanted) != 4 or wanted[3] not in (1, 3):
        raise ModelSpecError(f"model={spec!r}: its input has shape {_size(wanted)}; [height, width, 1 or 3] is wanted")
    if any(size is not None and size != given for size, given in zip(wanted[1:3], image[:2], strict=True)):
        raise ModelSpecError(
            f"model={spec!r}: the images are {image[0]}x{image[1]}, its input is {_size(wanted[:3])}; "
            "--image_size makes them so"
        )


def _preprocessing(request: Request, model: Any) -> tuple[Normalise, str]:
    channels = model.input_shape[3]
    mode = images.chosen_mode(request)
    if mode is not None:
        return images.preprocessing_by_name(mode, channels), ""
    scaling = any(type(x).__name__ in ("Rescaling", "Normalization") for x in keras_private.flatten_layers(model))
    why = "it scales images itself" if scaling else "a file does not say what it was trained on"
    note = f"images are given as {'0 to 255' if scaling else '-1 to 1'} ({why}; ,preprocess= says otherwise)"
    return images.preprocessing_by_name("pixels" if scaling else "tf", channels), note


def _size(shape: Any) -> str:
    return "x".join("any" if size is None else str(size) for size in shape[1:])
