"""Builds ``py:module:factory``: a model from the user's own code.

``factory(image_shape, outputs)``, or ``factory()``, returns a ``tf.Module`` or a Keras model. Its ``__call__`` takes
images, and optionally ``training`` and ``seeds``.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Any

import tensorflow as tf

from engine.data import Normalise
from engine.models.images import build_preprocessing, describe_colours, parse_mode
from engine.models.keras import heads, saved
from engine.models.keras.scopes import seeded
from engine.models.spec import Model, ModelSpecError, Request
from engine.selection.variables import is_keras, name_variables
from engine.text import nearest
from engine.training.losses import accepted_keywords


def build_user_model(request: Request) -> Model:
    """Imports ``module`` (the working directory is searched too) and calls ``factory``.

    The request's name is ``module:factory``. Only Keras models can get a new head or lose a final softmax. Raises
    ModelSpecError if the factory cannot be called, or returns something other than a model whose outputs fit.
    """
    spec, name, image_shape, outputs = request.spec, request.name, request.image_shape, request.outputs
    network, arguments = call_factory(spec, name, (image_shape, outputs), seed=request.seed)
    if (not isinstance(network, tf.Module) and not is_keras(network)) or not callable(network):
        raise ModelSpecError(
            f"model={spec!r}: {name}{_shown(arguments)} returned {type(network).__name__}; "
            "expected a tf.Module with __call__ or a Keras model"
        )
    own = f"those from {name}"
    if is_keras(network) and getattr(network, "inputs", None):  # a graph of layers knows its shapes before it is called
        return saved.adopt_model(request, network, own=own)
    if request.head is not None:
        raise ModelSpecError(
            f"head={request.head!r}: {name} does not return a graph of Keras layers, so it must build the head itself"
        )
    found = _outputs(spec, network, image_shape)
    shape = tuple(found.outputs[0].shape)
    if len(shape) != 2 or shape[1] != outputs:
        raise ModelSpecError(
            f"model={spec!r}: its outputs have shape {list(shape)}; expected [None, {outputs}] for these data"
        )
    kind = heads.output_operation(found)
    if request.logits and kind in ("Softmax", "Sigmoid"):
        raise ModelSpecError(
            f"model={spec!r}: it ends in {kind.lower()}; expected logits, so leave the {kind.lower()} out"
        )
    saved.follow_precision(request, network)
    mode = parse_mode(request) or "tf"
    normalise = Normalise() if mode == "tf" else build_preprocessing(mode, image_shape[2])
    return Model(
        spec,
        network,
        outputs,
        normalise,
        upper=heads.choose_upper(network),
        statistics="frozen" if is_keras(network) else "follow",
        notes=describe_colours(normalise, image_shape),
        load=lambda weights: own if weights in ("auto", "none") else None,
    )


def call_factory(spec: str, name: str, arguments: tuple[Any, ...], *, seed: int) -> tuple[Any, tuple[Any, ...]]:
    """Imports and calls a factory ``module:factory``: without arguments if it does not accept the given ones.

    Returns what the factory returned, and the arguments with which it was called. Raises ModelSpecError if there is no such
    module or factory, or if it raises.
    """
    factory = _factory(spec, name)
    try:
        inspect.signature(factory).bind(*arguments)
    except TypeError:
        arguments = ()
    except ValueError:  # a callable without a signature
        pass
    with seeded(seed):
        try:
            return factory(*arguments), arguments
        except (Exception, SystemExit) as error:
            raise ModelSpecError(f"model={spec!r}: {name}{_shown(arguments)} raised {_text(error)}") from None


def _factory(spec: str, name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ModelSpecError(f"model={spec!r} is not a valid factory; expected py:module:factory")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # an installed program does not search the working directory by default
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's code may raise anything, even SystemExit
        raise ModelSpecError(f"model={spec!r}: importing {module_name} raised {_text(error)}") from None
    factory = getattr(module, attribute, None)
    if not callable(factory):
        known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise ModelSpecError(f"model={spec!r}: {module_name} has no function {attribute!r}{nearest(attribute, known)}")
    return factory


def _outputs(spec: str, network: Any, image_shape: tuple[int, int, int]) -> Any:
    """The traced network; afterwards its variables exist, even if they are created by the first call."""
    try:
        network(tf.zeros([1, *image_shape]), **_training(network))
        traced = tf.function(lambda image: network(image, **_training(network)), autograph=False)
        concrete = traced.get_concrete_function(tf.TensorSpec([None, *image_shape], tf.float32))
        name_variables(network)
    except (Exception, SystemExit) as error:
        raise ModelSpecError(
            f"model={spec!r}: calling it on images {list(image_shape)} raised {_text(error)}"
        ) from None
    if len(concrete.outputs) != 1:
        raise ModelSpecError(f"model={spec!r}: it returns {len(concrete.outputs)} tensors; expected one, [B, outputs]")
    return concrete


def _training(network: Any) -> dict[str, bool]:
    return {name: False for name in accepted_keywords(network) if name == "training"}


def _shown(arguments: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, arguments))})"


def _text(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
