"""VGGish (Hershey et al. 2017), which turns 0.96 seconds of log-mel spectrogram into 128 numbers.

``vggish.rules`` ports its checkpoint. TF-Slim's definition had a ReLU after the last layer until 2020, and none since;
the weights are the same, so the model has none, and ``build_relu`` has one.
"""

from __future__ import annotations

from typing import Any

from engine.models.keras.safe_loading import import_keras

Shape = tuple[int, int, int]


def build(image_shape: Shape = (96, 64, 1), outputs: int = 128) -> Any:
    """Builds the Keras model: spectrograms [B, frames, mels, 1] -> embeddings [B, outputs], which may be negative."""
    return _build(image_shape, outputs, activation=None)


def build_relu(image_shape: Shape = (96, 64, 1), outputs: int = 128) -> Any:
    """Builds the Keras model as it was defined until 2020: its embeddings are not negative."""
    return _build(image_shape, outputs, activation="relu")


def _build(image_shape: Shape, outputs: int, *, activation: str | None) -> Any:
    keras = import_keras()
    layers = keras.layers
    x = spectrograms = keras.Input(image_shape, name="spectrograms")
    for number, (filters, names) in enumerate(
        ((64, ("conv1",)), (128, ("conv2",)), (256, ("conv3_1", "conv3_2")), (512, ("conv4_1", "conv4_2"))), 1
    ):
        for name in names:
            x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=name)(x)
        x = layers.MaxPooling2D(2, padding="same", name=f"pool{number}")(x)
    x = layers.Flatten(name="flat")(x)
    x = layers.Dense(4096, activation="relu", name="fc1_1")(x)
    x = layers.Dense(4096, activation="relu", name="fc1_2")(x)
    return keras.Model(spectrograms, layers.Dense(outputs, activation=activation, name="fc2")(x), name="vggish")
