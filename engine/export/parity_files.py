"""Inputs and outputs of a model, and a script that compares a PyTorch module with them, for a machine without TensorFlow."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine.export.config import side_files
from engine.files import write_bytes, write_npz
from engine.models.scaling import measure_scaling
from engine.models.vit import ViT
from engine.selection.variables import is_keras, name_variables
from engine.training.losses import accepted_keywords

_EXAMPLES = 2
_ANY_SIZE = 64  # pixels, where the model takes any
_ACTIVATIONS = ("softmax", "sigmoid")
_TEMPLATE = pathlib.Path(__file__).with_name("parity_script.txt")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a model computed.

    Attributes:
        image: the images [B, channels, height, width], scaled as the module expects them.
        outputs: what the model computes for them, each [B, ...]; maps of features have their channels second.
        activation: what the model ends in: "softmax", "sigmoid" or "", which the module may leave out.
        scale: (gain, offset) of each channel by which the model scales images from 0 to 255 itself, or None.
    """

    image: np.ndarray
    outputs: Sequence[np.ndarray]
    activation: str
    scale: tuple[np.ndarray, np.ndarray] | None = None


def make_reference(
    network: Any, *, scales: bool, image_size: tuple[int, int] | None = None, seed: int = 0
) -> Reference | str:
    """Runs a model on random images in inference mode; returns a text that says why, if that cannot be done.

    Args:
        network: the model with its weights.
        scales: whether it scales images by variables that the other library does not have.
        image_size: the (height, width) of images, where the model does not say.
    """
    shape = _image_shape(network, image_size)
    if shape is None:
        return "the model does not take one batch of images"
    rng = np.random.default_rng(seed)
    scale = None
    if scales:
        spec = tf.TensorSpec([1, *shape], tf.float32)
        traced = tf.function(lambda x: _forward(network, x), autograph=False).get_concrete_function(spec)
        scale = measure_scaling(traced, name_variables(network))
        if scale is None:
            return "how the model scales images is not known"
    images = rng.uniform(0, 255, [_EXAMPLES, *shape]) if scale else rng.standard_normal([_EXAMPLES, *shape])
    images = images.astype(np.float32)
    found = tf.nest.flatten(_forward(network, tf.constant(images)))
    given = images if scale is None else (images * scale[0] + scale[1]).astype(np.float32)
    outputs = [_channels_second(np.asarray(each)) for each in found]
    if not all(np.isfinite(each).all() for each in outputs):
        return "the outputs of the model are not finite"
    return Reference(image=_channels_second(given), outputs=outputs, activation=_activation(network), scale=scale)


def _forward(network: Any, images: Any) -> Any:
    given = {"training": False, "seeds": None}
    taken = accepted_keywords(network)
    return network(images, **{name: given[name] for name in taken})


def _image_shape(network: Any, size: tuple[int, int] | None) -> tuple[int, ...] | None:
    if isinstance(network, ViT):
        return tuple(network.config.image)
    inputs = getattr(network, "inputs", None) if is_keras(network) else None
    if not inputs or len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[3] is None:
        return None
    height, width = (own or given for own, given in zip(inputs[0].shape[1:3], size or (_ANY_SIZE,) * 2, strict=True))
    return height, width, inputs[0].shape[3]


def _activation(network: Any) -> str:
    layer = network
    while getattr(layer, "layers", None):
        layer = layer.layers[-1]
    name = getattr(getattr(layer, "activation", None), "__name__", "")
    return name if name in _ACTIVATIONS and len(getattr(network, "outputs", ())) == 1 else ""


def _channels_second(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(array, -1, 1)) if array.ndim == 4 else array


def is_script(content: bytes) -> bool:
    """Whether a file begins as the script does."""
    return content.startswith(_TEMPLATE.read_bytes().split(b"\n", 1)[0])


def write_script(out: pathlib.Path, reference: Reference | str | None) -> list[pathlib.Path]:
    """Writes both beside ``out``; only the script, if there are no outputs to compare with."""
    script, arrays = side_files(out)
    activation = reference.activation if isinstance(reference, Reference) else ""
    text = _TEMPLATE.read_text(encoding="utf-8")
    for mark, value in (("@TENSORS@", out.name), ("@ARRAYS@", arrays.name), ("@ACTIVATION@", activation)):
        text = text.replace(mark, ascii(value))
    write_bytes(script, text.encode())
    if not isinstance(reference, Reference):
        arrays.unlink(missing_ok=True)  # of another file of this name
        return [script]
    outputs = ((f"output_{number}", each) for number, each in enumerate(reference.outputs))
    write_npz(arrays, [("image", reference.image), *outputs])
    return [script, arrays]
