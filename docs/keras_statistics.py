"""Keras' ``fit`` moves the statistics of a BatchNorm that was asked to stay in inference mode; Frostline does not."""

import keras
import numpy as np

from engine import AdamW, TrainStep, select, supervised_loss

keras.utils.set_random_seed(0)
images = np.random.default_rng(0).normal(3.0, 2.0, size=(64, 8)).astype("float32")
labels = (images[:, 0] > 3.0).astype("int32")
base = keras.Sequential([keras.layers.Dense(4), keras.layers.BatchNormalization(name="norm")], name="base")
inputs = keras.Input((8,))
model = keras.Model(inputs, keras.layers.Dense(2)(base(inputs, training=False)))  # as the Keras guide does
mean = base.get_layer("norm").moving_mean

selection, step = select(model, "@all !@stats"), TrainStep(supervised_loss(model), AdamW())
step(selection, {"image": images, "label": labels}, learning_rate=1e-5)
print(f"Frostline: the moving mean moved by {abs(mean.numpy()).max():g}")

model.compile(keras.optimizers.Adam(1e-5), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(images, labels, batch_size=64, verbose=0)
print(f"Keras fit: the moving mean moved by {abs(mean.numpy()).max():g}")
