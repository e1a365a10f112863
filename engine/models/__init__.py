"""Builds models by name: ``vit:mini``, ``vit:S/16`` and their options, ``cnn:mini``, Keras models, a user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.lazy import import_lazily

if TYPE_CHECKING:
    from engine.models.images import IMAGES as IMAGES
    from engine.models.images import images_as as images_as
    from engine.models.registry import build_model as build_model
    from engine.models.registry import build_network as build_network
    from engine.models.registry import default_image_size as default_image_size
    from engine.models.registry import default_token_shape as default_token_shape
    from engine.models.registry import find_tokenizer as find_tokenizer
    from engine.models.spec import Model as Model
    from engine.models.spec import ModelSpecError as ModelSpecError
else:
    __getattr__, __all__ = import_lazily(
        __name__,
        {
            "images": ("IMAGES", "images_as"),
            "registry": ("build_model", "build_network", "default_image_size", "default_token_shape", "find_tokenizer"),
            "spec": ("Model", "ModelSpecError"),
        },
    )
