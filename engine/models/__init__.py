"""Models by name: ``vit:mini``, ``vit:S/16`` and their options, ``cnn:mini``."""

from engine.models.factory import Model, ModelSpecError, build, default_image_size

__all__ = ["Model", "ModelSpecError", "build", "default_image_size"]
