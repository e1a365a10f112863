"""Measure what moving BatchNorm statistics cost the fine-tuning recipe of the Keras guide, on a folder of photos.

The recipe: train a head on a frozen MobileNetV2 that is called with ``training=False``, then unfreeze the whole base
and go on at a learning rate of 1e-5. It is run twice from the same head: as the guide's example writes it, and with
``trainable = False`` on every BatchNormalization layer, which truly holds the statistics.

    python docs/keras_recipe.py PHOTOS [WEIGHTS.h5]

PHOTOS has train/, val/ and test/, each with a folder per class. Without WEIGHTS, Keras downloads those of ImageNet.
"""

import sys

import keras
import numpy as np

from engine import open_data

SIZE, SEEDS, HEAD_EPOCHS, EPOCHS, BATCH = 96, 3, 5, 2, 32


def read(part):
    batch = part.read(np.arange(len(part)))
    return batch["image"].astype("float32") / 127.5 - 1.0, batch["label"]


def accuracy(model, images, labels):
    return float(np.mean(np.argmax(model.predict(images, verbose=0), axis=-1) == labels))


def fit(model, data, learning_rate, epochs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(learning_rate), loss)
    model.fit(*data, batch_size=BATCH, epochs=epochs, verbose=0)


def main(photos, weights="imagenet"):
    source = open_data(f"folder:{photos}", image_size=(SIZE, SIZE))
    train, test = read(source.train), read(source.test)
    for seed in range(SEEDS):
        keras.utils.set_random_seed(seed)
        named = weights if weights == "imagenet" else None
        base = keras.applications.MobileNetV2(input_shape=(SIZE, SIZE, 3), include_top=False, weights=named)
        if named is None:
            base.load_weights(weights)
        base.trainable = False
        inputs, head = keras.Input((SIZE, SIZE, 3)), keras.layers.Dense(len(source.classes))
        pooled = keras.layers.GlobalAveragePooling2D()(base(inputs, training=False))
        extract, model = keras.Model(inputs, pooled), keras.Model(inputs, head(keras.layers.Dropout(0.2)(pooled)))
        top = keras.Sequential([keras.layers.Dropout(0.2), head])  # a frozen base gives the same features every epoch
        fit(top, (extract.predict(train[0], verbose=0), train[1]), 1e-3, HEAD_EPOCHS)
        start, found = model.get_weights(), {"head alone": accuracy(model, *test)}
        for name in ("training=False", "BatchNorm layers frozen"):
            model.set_weights(start)
            base.trainable = True
            for layer in base.layers:
                if name != "training=False" and isinstance(layer, keras.layers.BatchNormalization):
                    layer.trainable = False
            keras.utils.set_random_seed(seed)
            fit(model, train, 1e-5, EPOCHS)
            found[name] = accuracy(model, *test)
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
