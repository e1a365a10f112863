"""Models by name: ``vit:mini``, ``vit:S/16`` and their options, ``cnn:mini``."""

from engine.models.registry import IMAGES, Model, ModelSpecError, build, default_image_size, images_as, network

__all__ = ["IMAGES", "Model", "ModelSpecError", "build", "default_image_size", "images_as", "network"]
