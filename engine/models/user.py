"""Builds ``py:module:factory``: a model from the user's own code.

``factory(image_shape, outputs)``, or ``factory()``, returns a ``tf.Module`` or a Keras model. Its ``__call__`` takes
images, or inputs by name, and optionally ``training`` and ``seeds``. It returns [B, outputs]; for several tasks, ``outputs``
is a dict of their numbers of outputs, and the model returns a dict of tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from engine.data import Normalise
from engine.errors import InputError
from engine.models import images
from engine.models.keras import heads, saved
from engine.models.keras.named_outputs import check_outputs, name_outputs
from engine.models.keras.precision import check_precision, set_precision
from engine.models.keras.safe_loading import load_model
from engine.models.keras.scopes import seeded
from engine.models.spec import Model, ModelSpecError, Request, fits_outputs, shape_outputs
from engine.outside_names import describe_error, import_function
from engine.seeds import kept_global_generators
from engine.selection.variables import is_keras, name_variables
from engine.text import join_words
from engine.training.losses import accepted_keywords


def build_user_model(request: Request) -> Model:
    """Imports ``module`` (the working directory is searched too) and calls ``factory``.

    The request's name is ``module:factory``. Only Keras models can get a new head or lose a final softmax. Raises
    ModelSpecError if the factory cannot be called, or returns something other than a model whose outputs fit.
    """
    spec, name, image_shape = request.spec, request.name, request.image_shape
    wanted = dict(request.tasks) or request.outputs
    network, arguments = call_factory(spec, name, (image_shape, wanted), seed=request.seed)
    if (not isinstance(network, tf.Module) and not is_keras(network)) or not callable(network):
        raise ModelSpecError(
            f"model={spec!r}: {name}{_shown(arguments)} returned {type(network).__name__}; "
            "expected a tf.Module with __call__ or a Keras model"
        )
    own = f"those from {name}"
    pictures = not request.inputs and len(image_shape) == 3
    if pictures and is_keras(network) and getattr(network, "inputs", None):  # it knows its shapes before it is called
        return saved.adopt_model(request, network, own=own)
    if request.head is not None:
        raise ModelSpecError(
            f"head={request.head!r}: {name} does not return a graph of Keras layers, so it must build the head itself"
        )
    return _wrap_network(request, network, own=own)


def build_saved_network(request: Request) -> Model:
    """Loads a saved Keras model for other data than one image: several inputs by name, or one of another shape.

    Raises ModelSpecError if the file does not exist, is not a Keras model or is unsafe, or does not take such inputs.
    """
    if request.head is not None:
        raise ModelSpecError(
            f"head={request.head!r}: a head is put on models with one input, an image; this data have "
            f"{join_words(request.inputs) or list(request.image_shape)}"
        )
    return _wrap_network(request, load_model(request.name, "model"), own=f"those of {request.name}")


def _wrap_network(request: Request, network: Any, *, own: str) -> Model:
    """A network as it is, with what training it requires; ``own`` describes where its weights come from.

    Raises ModelSpecError if it cannot be called on the inputs, or its outputs do not fit.
    """
    spec, image_shape, outputs = request.spec, request.image_shape, request.outputs
    pictures = not request.inputs and len(image_shape) == 3
    if request.tasks:
        network = name_outputs(network)
    _build(request, network)
    notes = set_precision(request, network)
    traced = _trace(request, network)
    if request.tasks:
        check_outputs(request, traced)
    else:
        _check_output(request, traced)
    notes += check_precision(request, network, traced)
    if pictures:
        found = images.choose_preprocessing(request, traced, name_variables(network), image_shape[2])
    else:
        found = _preprocess_others(request)
    normalise, note, chosen = found
    if normalise.mean == normalise.std == (0.5,):
        normalise = Normalise()  # -1 to 1, for images with any number of channels

    def check_images() -> None:
        images.check_preprocessing(request, normalise, _trace(request, network), name_variables(network))

    return Model(
        spec,
        network,
        outputs,
        normalise,
        images_chosen=chosen,
        upper=heads.choose_upper(network),
        statistics="frozen" if is_keras(network) else "follow",
        notes=(*notes, *note, *(images.describe_colours(normalise, image_shape) if pictures else ())),
        load=lambda weights: own if weights in ("auto", "none") else None,
        check_images=check_images if pictures and images.parse_mode(request) is None else None,
        tasks=request.tasks,
    )


def _check_output(request: Request, traced: Any) -> None:
    """Raises ModelSpecError unless a traced network returns one tensor [B, outputs], of logits where the loss expects them."""
    spec, structure = request.spec, traced.structured_outputs
    if len(traced.outputs) != 1 or isinstance(structure, Mapping):
        names = list(structure) if isinstance(structure, Mapping) else []
        example = ", ".join(f"{name}=softmax" for name in names)
        hint = f"; the loss of each output is named as in --loss='{example}'" if names else ""
        raise ModelSpecError(
            f"model={spec!r}: it returns {len(traced.outputs)} tensors; expected one, [B, outputs]{hint}"
        )
    shape = tuple(traced.outputs[0].shape)
    if not fits_outputs(shape, request):
        raise ModelSpecError(
            f"model={spec!r}: its outputs have shape {list(shape)}; expected {shape_outputs(request)} for these data"
        )
    kind = heads.output_operation(traced)
    if request.logits and kind in ("Softmax", "Sigmoid"):
        raise ModelSpecError(
            f"model={spec!r}: it ends in {kind.lower()}; expected logits, so leave the {kind.lower()} out"
        )


def _preprocess_others(request: Request) -> tuple[Normalise, tuple[str, ...], bool]:
    """The preprocessing of the images among several inputs, which is not probed: what the option says, or -1 to 1."""
    mode = images.parse_mode(request)
    pictures = [name for name, each in request.inputs.items() if each.is_image]
    if mode is not None and not pictures:
        raise ModelSpecError(f"model={request.spec!r}: preprocess={mode} is about images, of which the data have none")
    if mode is not None:
        return images.build_preprocessing(mode, request.inputs[pictures[0]].shape[2]), (), True
    where = f"images ({', '.join(pictures)}) are scaled to -1 to 1 (the option preprocess changes this)"
    return Normalise(), (where,) if pictures else (), True


def native_size(spec: str, name: str) -> tuple[int, int] | None:
    """The (height, width) in pixels for which a factory ``module:factory`` builds its model, or None for any size.

    It is that of the default of its first parameter where that is a shape; otherwise the factory is called, for images of
    224x224 if it accepts a shape, and what it returns may have an input of another size. A factory that does not exist or
    raises has none.
    """
    try:
        factory = _factory(spec, name)
        if (size := _default_size(factory)) is not None:
            return size
        arguments = ((224, 224, 3), 1000) if _accepts(factory, ((224, 224, 3), 1000)) else ()
        with kept_global_generators():
            network = call_factory(spec, name, arguments, seed=0)[0]
    except ModelSpecError:
        return None  # the model itself will be built for the images, and say what is wrong
    size = saved.input_size(network) if is_keras(network) else _signature_size(network)
    return None if arguments and size == (224, 224) else size


def _default_size(factory: Any) -> tuple[int, int] | None:
    """The size in the default of a factory's first parameter."""
    try:
        first = next(iter(inspect.signature(factory).parameters.values()), None)
    except ValueError:  # a callable without a signature
        return None
    shape = first.default if first is not None else None
    if not isinstance(shape, (tuple, list)) or len(shape) not in (2, 3):
        return None
    return (shape[0], shape[1]) if all(isinstance(size, int) for size in shape) else None


def _signature_size(network: Any) -> tuple[int, int] | None:
    """The size in the input signature of a network whose ``__call__`` is a tf.function."""
    signature = getattr(vars(type(network)).get("__call__"), "input_signature", None) or ()
    shape = list(getattr(signature[0], "shape", None) or ()) if signature else []
    return (shape[1], shape[2]) if len(shape) == 4 and None not in shape[1:3] else None


def _accepts(factory: Any, arguments: tuple[Any, ...]) -> bool:
    try:
        inspect.signature(factory).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # a callable without a signature
        pass
    return True


def call_factory(spec: str, name: str, arguments: tuple[Any, ...], *, seed: int) -> tuple[Any, tuple[Any, ...]]:
    """Imports and calls a factory ``module:factory``: without arguments if it does not accept the given ones.

    Returns what the factory returned, and the arguments with which it was called. Raises ModelSpecError if there is no such
    module or factory, or if it raises.
    """
    factory = _factory(spec, name)
    arguments = arguments if _accepts(factory, arguments) else ()
    with seeded(seed):
        try:
            return factory(*arguments), arguments
        except (Exception, SystemExit) as error:
            raise ModelSpecError(f"model={spec!r}: {name}{_shown(arguments)} raised {describe_error(error)}") from None


def _factory(spec: str, name: str) -> Any:
    try:
        return import_function("model", spec, name=name, what="factory")
    except InputError as error:
        raise ModelSpecError(str(error)) from None


def _specs(request: Request) -> Any:
    """What the network is called with: the spec of its input, or those of its inputs by name."""
    if not request.inputs:
        return tf.TensorSpec([None, *request.image_shape], tf.float32)
    found = {
        name: tf.TensorSpec([None, *each.shape], tf.float32 if each.is_image else tf.as_dtype(each.dtype))
        for name, each in request.inputs.items()
    }
    return found if len(found) > 1 else next(iter(found.values()))


def _build(request: Request, network: Any) -> None:
    """Calls the network once, so that its variables exist even if the first call creates them."""
    try:
        zeros = tf.nest.map_structure(lambda spec: tf.zeros([1, *spec.shape[1:]], spec.dtype), _specs(request))
        network(zeros, **_training(network))
        name_variables(network)
    except (Exception, SystemExit) as error:
        raise _cannot_call(request, error) from None


def _trace(request: Request, network: Any) -> Any:
    """The network in inference mode, as a concrete function of its input, or of its inputs by name."""
    try:
        traced = tf.function(lambda given: network(given, **_training(network)), autograph=False)
        return traced.get_concrete_function(_specs(request))
    except (Exception, SystemExit) as error:
        raise _cannot_call(request, error) from None


def _cannot_call(request: Request, error: BaseException) -> ModelSpecError:
    spec, image_shape = request.spec, request.image_shape
    if request.inputs or len(image_shape) != 3:
        given = {name: list(each.shape) for name, each in request.inputs.items()} or list(image_shape)
        return ModelSpecError(f"model={spec!r}: calling it on examples of {given} raised {describe_error(error)}")
    return ModelSpecError(
        f"model={spec!r}: calling it on images {list(image_shape)} raised {describe_error(error)}. If it was made for "
        f"another size than {image_shape[0]}x{image_shape[1]}, --image_size=HEIGHTxWIDTH resizes the images"
    )


def _training(network: Any) -> dict[str, bool]:
    return {name: False for name in accepted_keywords(network) if name == "training"}


def _shown(arguments: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, arguments))})"
