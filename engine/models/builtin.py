"""Builds the engine's own models: ViTs and a small CNN."""

from __future__ import annotations

import pathlib
from typing import Any

from engine.data import Normalise
from engine.models import cnn, vit
from engine.models.images import IMAGES, images_as
from engine.models.spec import (
    Model,
    ModelSpecError,
    Request,
    parse_number,
    parse_vit_size,
    parse_whole_number,
    read_image_shape,
)
from engine.text import nearest

_SHIPPED = {"vit:mini": ("vit_mini_fashion5.npz", "grayscale images (one channel) of 28x28 pixels and 6 blocks")}


def build_cnn(request: Request) -> Model:
    """Builds ``cnn:mini``; ModelSpecError for an option, or for images that are too small."""
    spec, (height, width, channels) = request.spec, request.image_shape
    if request.options:
        raise ModelSpecError(
            f"model={spec!r}: `{next(iter(request.options))}` is not an option of cnn:mini; expected classes"
        )
    if min(height, width) < 8:
        raise ModelSpecError(f"model={spec!r}: images of {height}x{width} are too small; expected at least 8x8")
    outputs = request.tasks or request.outputs
    network = cnn.CNN(channels, outputs, seed=request.seed, dtype=request.dtype, compute=request.compute)
    return Model(spec, network, request.outputs, Normalise(), upper="stages/[23]/.*", tasks=request.tasks)


def build_vit(request: Request) -> Model:
    """Builds ``vit:mini`` or ``vit:SIZE/PATCH``; ModelSpecError for one unknown, or images not divisible into patches."""
    spec, image = request.spec, read_image_shape(request)
    size, patch = parse_vit_size(spec)
    width, depth, heads = vit.SIZES[size]
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
            settings[option] = parse_number(spec, option, value, 0.0, 1.0)
        elif option == "layer_scale":
            settings["layer_scale"] = parse_number(spec, option, value or "1e-5", 0.0, 1e6)
        elif option in ("dropout", "drop_path"):
            settings[option] = parse_number(spec, option, value, 0.0, 0.99)
        elif option == "depth":
            depth = parse_whole_number(spec, option, value, 1000)
        elif option == "preprocess" and value in IMAGES:
            images = value
        else:
            known = [
                "pool=token", "pool=mean", "class_token", "fc_norm", "norm_epsilon=R", "gelu=exact", "gelu=tanh",
                "layer_scale", "dropout=R", "drop_path=R", "depth=N", *(f"preprocess={name}" for name in IMAGES),
                "classes=N",
            ]  # fmt: skip
            written = f"{option}={value}" if value else option
            raise ModelSpecError(
                f"model={spec!r}: `{written}` is not an option of a ViT; expected one of {', '.join(known)}"
                f"{nearest(written, known)}"
            )
    config = vit.Config(
        width=width,
        depth=depth,
        heads=heads,
        patch=patch,
        image=image,
        classes=request.outputs,
        tasks=tuple(request.tasks.items()),
        **settings,
    )
    shipped, made_for = _SHIPPED.get(f"vit:{request.name}", (None, ""))
    return Model(
        spec,
        vit.ViT(config, seed=request.seed, dtype=request.dtype, compute=request.compute),
        request.outputs,
        images_as(images or "tf", image),
        images_chosen=images is not None,
        upper=f"@blocks[-{min(2, depth)}:]",
        shipped_weights=pathlib.Path(__file__).parent / "weights" / shipped if shipped else None,
        shipped_for=made_for,
        tasks=request.tasks,
    )
