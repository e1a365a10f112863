"""The models that are built in: ViTs and a small CNN."""

from __future__ import annotations

import pathlib
import re
from typing import Any

from engine.data import Normalise
from engine.models import cnn, vit
from engine.models.images import IMAGES, images_as
from engine.models.spec import Model, ModelSpecError, Request, number, whole_number
from engine.text import nearest

NAMES = ("vit:mini", "vit:Ti/16", "vit:S/16", "vit:B/16", "vit:L/16", "cnn:mini")
_SHIPPED = {"vit:mini": ("vit_mini_fashion5.npz", "grey images (one channel) of 28x28 pixels and 6 blocks")}


def build_cnn(request: Request) -> Model:
    spec, (height, width, channels) = request.spec, request.image_shape
    if request.options:
        raise ModelSpecError(f"model={spec!r}: cnn:mini has no option `{next(iter(request.options))}`; it has classes")
    if min(height, width) < 8:
        raise ModelSpecError(f"model={spec!r}: images of {height}x{width} are too small; 8x8 at least")
    network = cnn.CNN(channels, request.outputs, seed=request.seed, dtype=request.dtype, compute=request.compute)
    return Model(spec, network, request.outputs, Normalise(), upper="stages/[23]/.*")


def build_vit(request: Request) -> Model:
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
            settings[option] = number(spec, option, value, 0.0, 1.0)
        elif option == "layer_scale":
            settings["layer_scale"] = number(spec, option, value or "1e-5", 0.0, 1e6)
        elif option in ("dropout", "drop_path"):
            settings[option] = number(spec, option, value, 0.0, 0.99)
        elif option == "depth":
            depth = whole_number(spec, option, value, 1000)
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
