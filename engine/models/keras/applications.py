"""Builds ``keras:NAME``: the networks of keras.applications as backbones, each with its own preprocessing.

The network is ``network/{NAME, head}``, with paths such as ``MobileNetV2/Conv1/kernel`` for every image size. A backbone
always has three input channels and the layers that its ImageNet weights require, even if it starts from random weights.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine import keras_private
from engine.models.images import describe_colours, probe_preprocessing
from engine.models.keras import dense_heads, heads, weights
from engine.models.keras.safe_loading import import_keras
from engine.models.keras.scopes import dtype_policy, seeded
from engine.models.keras.weights import ImagenetFile
from engine.models.spec import Model, ModelSpecError, Request, read_image_shape
from engine.text import nearest

# Arguments that the engine sets itself, or that would change what ImageNet weights mean.
_RESERVED = {"include_top", "weights", "input_tensor", "input_shape", "pooling", "classes", "classifier_activation"}
_RESERVED |= {"name", "weights_name", "include_preprocessing", "model_name", "default_size"}
_PLAIN = "imagenet_layers"  # an option of ours: whether the backbone has the layers that only ImageNet weights require
# The native side of an application's images in pixels, where it is not 224 (Keras: default_size).
_NATIVE = {"xception": 299, "inceptionv3": 299, "inceptionresnetv2": 299, "nasnetlarge": 331}
_NATIVE |= {f"efficientnetb{n}": side for n, side in enumerate((224, 240, 260, 300, 380, 456, 528, 600))}
_NATIVE |= {f"efficientnetv2b{n}": side for n, side in enumerate((224, 240, 260, 300))}
_NATIVE |= {"efficientnetv2s": 384, "efficientnetv2m": 480, "efficientnetv2l": 480}


@dataclass(frozen=True)
class _Loaded:
    """Takes the place of the weights file while a backbone is built."""


def find_applications() -> dict[str, Callable[..., Any]]:
    """The model functions of keras.applications, by name."""
    keras = import_keras()
    found = {name: getattr(keras.applications, name) for name in dir(keras.applications) if name[0].isupper()}
    return {name: function for name, function in found.items() if inspect.isfunction(function)}


def native_size(name: str) -> tuple[int, int]:
    """The (height, width) in pixels of an application's native images; the case of its name does not matter."""
    side = _NATIVE.get(name.lower(), 224)
    return side, side


def build_application(request: Request) -> Model:
    """Builds an application without its top, and a new head ("gap" by default).

    The case of the application's name does not matter. Options are the arguments of its function, such as ``alpha=0.35``,
    and ``imagenet_layers=false``, which leaves out layers that only ImageNet weights require (EfficientNet has one). Raises ModelSpecError for an unknown name or option or too small images, and HeadError for a head that is not valid.
    """
    spec, name, image_shape = request.spec, request.name, read_image_shape(request)
    known = find_applications()
    right = {each.lower(): each for each in known}.get(name.lower())
    if right is None:
        hint = nearest_name(name, list(known)) or f"; expected one of {', '.join(known)}"
        raise ModelSpecError(f"model={spec!r}: keras.applications has no {name!r}{hint}")
    chosen = dict(request.options)
    plain = _is_plain(spec, chosen.pop(_PLAIN, "true"))
    options = _options(spec, known[right], chosen)
    make = functools.partial(known[right], include_top=False, input_shape=(*image_shape[:2], 3), **options)
    parsed = heads.parse_head(request.head or "gap")
    with seeded(request.seed), dtype_policy(request.policy):
        backbone, file = _backbone(spec, make, image_shape, plain=plain)
        backbone.name = right  # Keras' own name has the width, and the size of the weights that it would load
        if parsed.on_stages:
            given: dict[str, Any] = {"image": image_shape[:2], "spec": spec}
            network, said = dense_heads.add_dense_head(backbone, parsed, request.outputs, **given)
        else:
            network, said = heads.add_head(backbone, parsed, request.tasks or request.outputs), ()
    normalise = probe_preprocessing(inspect.getmodule(known[right]).preprocess_input)  # type: ignore[union-attr]
    return Model(
        spec,
        network,
        request.outputs,
        normalise,
        upper=heads.choose_upper(network),
        statistics="frozen",
        notes=(*said, *describe_colours(normalise, image_shape)),
        tasks=request.tasks,
        load=functools.partial(
            weights.load_weights,
            spec=spec,
            network=network,
            backbone=backbone,
            imagenet=file,
            hint=_hint(right, plain),
            images=normalise,
        ),
    )


def _is_plain(spec: str, text: str) -> bool:
    """Reads the option ``imagenet_layers``: "false" builds a backbone as ``weights=None`` of keras.applications does."""
    if text.lower() not in ("true", "false"):
        raise ModelSpecError(f"model={spec!r}: {_PLAIN}={text!r} is not true or false")
    return text.lower() == "false"


def _hint(name: str, plain: bool) -> str:
    if not name.startswith("EfficientNetB"):
        return ""
    if plain:
        return f"Without {_PLAIN}=false, the network has the second Rescaling layer that ImageNet weights require."
    return (
        f"keras:{name},{_PLAIN}=false builds the network without the second Rescaling layer, as weights=None "
        "of keras.applications does; only ImageNet weights require that layer."
    )


def _backbone(
    spec: str, make: Callable[..., Any], image: tuple[int, int, int], *, plain: bool
) -> tuple[Any, ImagenetFile | str]:
    """A random backbone with the layers that ImageNet weights require, and their file (or why there is none)."""
    try:
        if plain:
            raise ValueError(f"{_PLAIN}=false leaves out layers that they require")
        with _not_loading() as files:
            backbone = make(weights="imagenet")
        return backbone, files[0]
    except ValueError as error:
        reason = str(error)
    try:
        return make(weights=None), reason
    except ValueError as error:
        if match := re.search(r"at least (\d+)x(\d+)", str(error)):
            least = match.group(1)
            raise ModelSpecError(
                f"model={spec!r}: images of {image[0]}x{image[1]} are too small; expected at least {least}x{least}"
            ) from None
        raise ModelSpecError(f"model={spec!r}: {error}") from None


@contextlib.contextmanager
def _not_loading() -> Iterator[list[ImagenetFile]]:
    """A scope in which building with weights="imagenet" loads nothing and records the file that it would load.

    Keras has no other way to find out that file, and some networks (EfficientNet) get another layer when they are built
    for ImageNet weights.
    """
    import keras

    files: list[ImagenetFile] = []
    load_weights = keras.Model.load_weights

    def named(fname: str, origin: str, *, file_hash: str | None = None, **_: Any) -> _Loaded:
        files.append(ImagenetFile(fname, origin, file_hash))
        return _Loaded()

    def skipped(self: Any, filepath: Any, *args: Any, **kwargs: Any) -> Any:
        return None if isinstance(filepath, _Loaded) else load_weights(self, filepath, *args, **kwargs)

    keras.Model.load_weights = skipped
    try:
        with keras_private.replaced_get_file(named), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*input_shape.*")  # MobileNet's, on the file that it picks
            yield files
    finally:
        keras.Model.load_weights = load_weights


def _options(spec: str, function: Callable[..., Any], options: Mapping[str, str]) -> dict[str, Any]:
    """Converts options to the types of the function's defaults."""
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in _RESERVED and isinstance(parameter.default, (bool, int, float))
    }
    chosen: dict[str, Any] = {}
    for name, text in options.items():
        if name not in known:
            listed = f"expected one of {', '.join(f'{n}={d}' for n, d in known.items())}" if known else "it has none"
            raise ModelSpecError(f"model={spec!r}: `{name}` is not an option of {function.__name__}; {listed}")
        kind = type(known[name])
        try:
            # a float if Keras' default is one: Keras writes alpha=1.0 into the name of the weights file
            chosen[name] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
            raise ModelSpecError(f"model={spec!r}: {name}={text!r} is not {wanted}") from None
    return chosen


def nearest_name(name: str, known: list[str]) -> str:
    """ "; nearest: ..." for a name in any case."""
    lower = {each.lower(): each for each in known}
    found = nearest(name.lower(), list(lower))
    return re.sub(r"[\w.]+", lambda match: lower.get(match.group(0), match.group(0)), found)
