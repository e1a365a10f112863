"""Models by name: ``vit:mini``, ``vit:S/16`` and their options, ``cnn:mini``."""

from engine.models.registry import (
    IMAGES,
    Model,
    ModelSpecError,
    build_model,
    build_network,
    default_image_size,
    images_as,
)

__all__ = ["IMAGES", "Model", "ModelSpecError", "build_model", "build_network", "default_image_size", "images_as"]
