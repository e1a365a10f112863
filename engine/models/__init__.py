"""Models by name: ``vit:mini``, ``vit:S/16`` and their options, ``cnn:mini``."""

from engine.models.images import IMAGES, images_as
from engine.models.registry import build_model, build_network, default_image_size
from engine.models.spec import Model, ModelSpecError

__all__ = ["IMAGES", "Model", "ModelSpecError", "build_model", "build_network", "default_image_size", "images_as"]
