"""Builds a model from its name in a flag."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from engine.data import Normalise
from engine.errors import InputError
from engine.models import cnn, vit
from engine.selection.filters import nearest
from engine.selection.selection import Statistics

NAMES = ("vit:mini", "vit:Ti/16", "vit:S/16", "vit:B/16", "vit:L/16", "cnn:mini")
KERAS_NAMES = ("keras:NAME", "file:X.keras", "file:X.h5", "py:module:factory")
ANY_SIZE = (224, 224)
# What a ViT's images can be, by the names that Keras has for it: -1 to 1; ImageNet's mean and deviation; 0 to 1.
IMAGES = {
    "tf": Normalise(),
    "torch": Normalise(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "unit": Normalise(mean=(0.0,), std=(1.0,)),
}
_SHIPPED = {"vit:mini": ("vit_mini_fashion5.npz", "grey images (one channel) of 28x28 pixels and 6 blocks")}


class ModelSpecError(InputError):
    """A model name or option that does not exist, or does not suit the images."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of a model's builder, one for every family.

    Attributes:
        spec: as given, for messages.
        name: the part of it after the family, without the options.
        options: text of each option of the spec but ``classes``.
        image_shape: (height, width, channels) of the data.
        outputs: of the head.
        head: a new head for a Keras model (engine.models.keras.heads), or None.
        logits: whether the loss wants logits: a last softmax or sigmoid is then taken off.
        seed: of the initial weights.
        dtype: of the variables.
        compute: dtype of the forward and backward pass.
    """

    spec: str
    name: str
    options: Mapping[str, str]
    image_shape: tuple[int, int, int]
    outputs: int
    head: str | None
    logits: bool
    seed: int
    dtype: Any
    compute: Any

    @property
    def policy(self) -> str:
        """The Keras dtype policy of the two dtypes."""
        name = tf.as_dtype(self.compute).name
        return name if self.compute == self.dtype else f"mixed_{name}"


@dataclass(frozen=True, eq=False)
class Model:
    """A network, and what one must know to train it.

    Attributes:
        name: as given.
        network: ``network(images, training=, seeds=)`` -> logits [B, outputs].
        outputs: how many there are.
        normalise: what its images should be.
        images_chosen: whether the user said so; else weights may (Ledger.images).
        upper: filter text for "the upper part", which the default second phase trains with the head.
        statistics: what statistics of trained layers do by default ("follow" or "frozen").
        shipped_weights: the file that ``--weights=auto`` loads, or None.
        shipped_for: what that file was made for, in words.
        notes: what was decided for the user about it, a sentence each.
        load: loads weights by the name in a flag and says what it did; None for a file that is not
            of the model's own kinds. Such files, or a model without it, are for engine.porting.
    """

    name: str
    network: Any
    outputs: int
    normalise: Normalise
    upper: str
    statistics: Statistics = "follow"
    images_chosen: bool = False
    shipped_weights: pathlib.Path | None = None
    shipped_for: str = ""
    notes: tuple[str, ...] = ()
    load: Callable[[str], str | None] | None = None


def build_model(
    spec: str,
    *,
    image_shape: tuple[int, int, int],
    outputs: int,
    head: str | None = None,
    logits: bool = True,
    seed: int = 0,
    dtype: Any = tf.float32,
    compute: Any = None,
) -> Model:
    """Builds a model with random weights (the head's are small), or a saved one.

    Args:
        spec: ``vit:SIZE[/PATCH][,option...]`` with SIZE in mini, Ti, S, B, L and options
            ``pool=token|mean``, ``class_token`` (with pool=mean too), ``fc_norm``, ``norm_epsilon=R``,
            ``gelu=exact|tanh``, ``layer_scale[=1e-5]``, ``dropout=R``, ``drop_path=R``, ``depth=N``, ``preprocess=tf|torch|unit``;
            ``cnn:mini``; ``keras:NAME`` of keras.applications with its options; ``file:X.keras``,
            ``file:X.h5``; ``py:module:factory``. All take ``classes=N``.
        image_shape: (height, width, channels).
        outputs: outputs of the head when ``classes`` does not say.
        head: a new head for a Keras model (engine.models.keras.heads); None is its own, or ``gap``.
        logits: whether the loss wants logits (mse does not): a saved model's last softmax is then taken off.
        seed: of the initial weights.
        dtype: of the variables, tf.float32 or tf.float64 (engine.training.precision).
        compute: dtype of the forward and backward pass; None is ``dtype``.

    Raises:
        ModelSpecError: unknown name or option, or images that the model cannot take.
    """
    name, *options = [part.strip() for part in spec.split(",")]
    family, _, rest = name.partition(":")
    chosen = _options(spec, options)
    if "classes" in chosen:
        outputs = _whole(spec, "classes", chosen.pop("classes"), 1_000_000)
    request = Request(
        spec=spec,
        name=rest,
        options=chosen,
        image_shape=image_shape,
        outputs=outputs,
        head=head,
        logits=logits,
        seed=seed,
        dtype=dtype,
        compute=compute or dtype,
    )
    if family in ("keras", "file", "py"):
        return _keras(family, request)
    if head is not None:
        raise ModelSpecError(f"head={head!r}: {spec} has a head of its own; --head is for {', '.join(KERAS_NAMES)}")
    if family == "vit":
        return _vit(request)
    if name == "cnn:mini":
        return _cnn(request)
    known = [*NAMES, *KERAS_NAMES]
    raise ModelSpecError(f"model={spec!r}: known models are {', '.join(known)}{nearest(name, known)}")


def build_network(spec: str, *, image_size: tuple[int, int] | None = None, channels: int = 3, seed: int = 0) -> Any:
    """A bare network to put weights into: no head is made, nothing is taken off, outputs may be several.

    Args:
        spec: as ``build``. A ``py:`` factory is called without arguments, unless ``image_size`` or ``classes=N`` is
            given; it may return anything whose variables can be named.
        image_size: (height, width) in pixels; None is what the model is made for.
        channels: of the images.
        seed: of the initial weights.

    Raises:
        ModelSpecError: as ``build``.
    """
    name, *options = (part.strip() for part in spec.split(","))
    family, _, rest = name.partition(":")
    chosen = _options(spec, options)
    if family == "py":
        from engine.models import user

        outputs = _whole(spec, "classes", chosen.pop("classes"), 1_000_000) if "classes" in chosen else None
        if chosen:
            raise ModelSpecError(f"model={spec!r}: `{next(iter(chosen))}` is no option here; classes=N is")
        given = image_size is not None or outputs is not None
        arguments = ((*(image_size or ANY_SIZE), channels), outputs or 1000) if given else ()
        return user.make(spec, rest, arguments, seed=seed)[0]
    if family == "file":
        from engine.models.keras.safe_loading import load_model

        return load_model(rest, "model")
    size = image_size or default_image_size(spec)
    return build_model(spec, image_shape=(*size, channels), outputs=1000, logits=False, seed=seed).network


def images_as(name: str, image_shape: tuple[int, int, int]) -> Normalise:
    """What a ViT's images should be, by a name of IMAGES.

    Raises:
        ModelSpecError: that is of another number of channels than the images have.
    """
    found, channels = IMAGES[name], image_shape[2]
    if len(found.mean) not in (1, channels):
        raise ModelSpecError(
            f"preprocess={name}: it is for images of {len(found.mean)} channels, these have {channels}; "
            "preprocess=tf or preprocess=unit suits any"
        )
    return found


def _keras(family: str, request: Request) -> Model:
    # here, not above: these rooms import Keras, which other models do not need, and this one
    from engine.models import user
    from engine.models.keras import applications, saved

    return {"keras": applications, "file": saved, "py": user}[family].build(request)


def default_image_size(spec: str) -> tuple[int, int]:
    """(height, width) in pixels that image files are resized to for this model, when nothing else is said.

    ``:mini`` models have 28, an application its native size, a saved model that of its input (the file
    is read for it), and all others 224.

    Raises:
        ModelSpecError: a saved model that cannot be read.
    """
    name = spec.split(",")[0].strip()
    family, _, rest = name.partition(":")
    if name.endswith(":mini"):
        return 28, 28
    if family == "keras":
        from engine.models.keras import applications

        return applications.native_size(rest)
    if family == "file":
        from engine.models.keras import saved

        return saved.input_size(rest) or ANY_SIZE
    return ANY_SIZE


def _cnn(request: Request) -> Model:
    spec, (height, width, channels) = request.spec, request.image_shape
    if request.options:
        raise ModelSpecError(f"model={spec!r}: cnn:mini has no option `{next(iter(request.options))}`; it has classes")
    if min(height, width) < 8:
        raise ModelSpecError(f"model={spec!r}: images of {height}x{width} are too small; 8x8 at least")
    network = cnn.CNN(channels, request.outputs, seed=request.seed, dtype=request.dtype, compute=request.compute)
    return Model(spec, network, request.outputs, Normalise(), upper="stages/[23]/.*")


def _vit(request: Request) -> Model:
    spec, size, image = request.spec, request.name, request.image_shape
    match = re.fullmatch(r"([A-Za-z]+)(?:/(\d{1,4}))?", size)
    if match is None or match.group(1) not in vit.SIZES or (match.group(1) != "mini" and match.group(2) is None):
        raise ModelSpecError(
            f"model={spec!r}: a ViT is vit:mini or vit:SIZE/PATCH with SIZE one of Ti, S, B, L"
            + nearest(f"vit:{size}", list(NAMES))
        )
    width, depth, heads = vit.SIZES[match.group(1)]
    patch = int(match.group(2) or 4)
    if patch < 1 or image[0] % patch or image[1] % patch:
        raise ModelSpecError(
            f"model={spec!r}: images of {image[0]}x{image[1]} do not divide into patches of {patch}x{patch}"
        )
    settings: dict[str, Any] = {}
    images: str | None = None
    for option, value in request.options.items():
        if option == "pool" and value in ("token", "mean"):
            settings["pool"] = value
        elif option == "gelu" and value in ("exact", "tanh"):
            settings["gelu"] = value
        elif option in ("class_token", "fc_norm") and not value:
            settings[option] = True
        elif option == "norm_epsilon":
            settings[option] = _number(spec, option, value, 0.0, 1.0)
        elif option == "layer_scale":
            settings["layer_scale"] = _number(spec, option, value or "1e-5", 0.0, 1e6)
        elif option in ("dropout", "drop_path"):
            settings[option] = _number(spec, option, value, 0.0, 0.99)
        elif option == "depth":
            depth = _whole(spec, option, value, 1000)
        elif option == "preprocess" and value in IMAGES:
            images = value
        else:
            known = [
                "pool=token",
                "pool=mean",
                "class_token",
                "fc_norm",
                "norm_epsilon=R",
                "gelu=exact",
                "gelu=tanh",
                "layer_scale",
                "dropout=R",
                "drop_path=R",
                "depth=N",
                *(f"preprocess={name}" for name in IMAGES),
                "classes=N",
            ]
            written = f"{option}={value}" if value else option
            raise ModelSpecError(
                f"model={spec!r}: `{written}` is no option of a ViT; options: {', '.join(known)}{nearest(written, known)}"
            )
    config = vit.Config(
        width=width, depth=depth, heads=heads, patch=patch, image=image, classes=request.outputs, **settings
    )
    shipped, made_for = _SHIPPED.get(f"vit:{size}", (None, ""))
    return Model(
        spec,
        vit.ViT(config, seed=request.seed, dtype=request.dtype, compute=request.compute),
        request.outputs,
        images_as(images or "tf", image),
        images_chosen=images is not None,
        upper=f"@blocks[-{min(2, depth)}:]",
        shipped_weights=pathlib.Path(__file__).parent / "weights" / shipped if shipped else None,
        shipped_for=made_for,
    )


def _options(spec: str, options: list[str]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key in chosen:
            raise ModelSpecError(f"model={spec!r}: `{key}` is given twice")
        chosen[key] = value
    return chosen


def _whole(spec: str, option: str, text: str, high: int) -> int:
    if not re.fullmatch(r"\d{1,9}", text) or not 1 <= int(text) <= high:
        raise ModelSpecError(f"model={spec!r}: {option}={text!r} is no whole number from 1 to {high}")
    return int(text)


def _number(spec: str, option: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ModelSpecError(f"model={spec!r}: {option}={text!r} is no number from {low:g} to {high:g}")
    return value
