"""The VGG of musicnn (Pons and Serra 2019), which tags music from 3 seconds of log-mel spectrogram.

``musicnn_vgg.rules`` ports the TensorFlow 1 checkpoint MTT_vgg of github.com/jordipons/musicnn; the output is that of
``model/Sigmoid``. It does not fit MSD_vgg, whose pools have other sizes and strides: the rules say so, and the graph
(``.meta``) is compared with them.
"""

from __future__ import annotations

from typing import Any

from engine.models.keras.safe_loading import import_keras

_EPSILON = 0.001  # the default of tf.layers.batch_normalization
_DROPOUT = 0.25
_FILTERS = 128


def build(image_shape: tuple[int, int, int] = (187, 96, 1), outputs: int = 50) -> Any:
    """Builds the Keras model: spectrograms [B, frames, mels, 1] or [B, frames, mels] -> probabilities [B, outputs]."""
    keras = import_keras()
    layers = keras.layers
    spectrograms = keras.Input(image_shape, name="spectrograms")
    features = layers.BatchNormalization(epsilon=_EPSILON, name="norm0")(spectrograms)
    for number, (step, strides) in enumerate((((4, 1), 2), (2, 2), (2, 2), (2, 2), (4, 4)), 1):
        features = layers.Conv2D(_FILTERS, 3, padding="same", activation="relu", name=f"conv{number}")(features)
        features = layers.BatchNormalization(epsilon=_EPSILON, name=f"norm{number}")(features)
        features = layers.MaxPooling2D(step, strides, name=f"pool{number}")(features)
        if number < 5:
            features = layers.Dropout(_DROPOUT, name=f"dropout{number}")(features)
    features = layers.Flatten(name="flat")(features)
    features = layers.Dropout(2 * _DROPOUT, name="dropout5")(features)
    tags = layers.Dense(outputs, activation="sigmoid", name="head")(features)
    return keras.Model(spectrograms, tags, name="musicnn_vgg")
