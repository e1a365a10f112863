"""PNet, the first stage of the face detector MTCNN (Zhang et al. 2016), as trained by github.com/AITTSMD/MTCNN-Tensorflow.

``pnet.rules`` ports its TensorFlow 1 checkpoints; the outputs are those of ``Reshape_4`` (as [B, 2]), ``bbox_pred`` and
``landmark_pred``.
"""

from __future__ import annotations

from typing import Any

from engine.models.keras.safe_loading import import_keras


def build(image_shape: tuple[int, int, int] = (12, 12, 3), outputs: int = 2) -> Any:
    """Builds the Keras model for images [B, H, W, 3] in -1 to 1, with H and W at least 12, or None for any size.

    It has three heads: the probabilities of the classes, a box (4) and landmarks (10). At 12x12 each is [B, n]; at
    larger sizes [B, rows, columns, n], with one place every 2 pixels.
    """
    keras = import_keras()
    layers = keras.layers
    images = keras.Input(image_shape, name="images")
    features = images
    for number, filters in enumerate((10, 16, 32), 1):
        features = layers.Conv2D(filters, 3, name=f"conv{number}")(features)
        features = layers.PReLU(shared_axes=[1, 2], name=f"prelu{number}")(features)
        if number == 1:
            features = layers.MaxPooling2D(2, padding="same", name="pool")(features)
    heads = {}
    for name, filters, activation in (("classifier", outputs, "softmax"), ("boxes", 4, None), ("landmarks", 10, None)):
        head = layers.Conv2D(filters, 1, activation=activation, name=name)(features)
        single = tuple(head.shape[1:3]) == (1, 1)
        heads[name] = layers.Reshape((filters,), name=f"{name}_flat")(head) if single else head
    return keras.Model(images, list(heads.values()), name="pnet")
