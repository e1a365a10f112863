"""Data with two labels for an example, of which some are missing, and a tiny network with two outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from engine.data.part import Part, Source, Target
from engine.data.tasks import view_task

CLASSES = ("ant", "bee", "cat")
LOSS = "species=softmax, age=mse weight=0.5"
SHAPE = (8, 8, 1)


class TwoOutputs(tf.Module):
    """A trunk of one convolution, and an output for the species and one for the age."""

    def __init__(self, dtype: Any = tf.float32, *, outputs: Any = None) -> None:
        super().__init__()
        counts = dict(outputs or {"species": len(CLASSES), "age": 1})

        def draw(*shape: int, seed: int) -> tf.Variable:
            return tf.Variable(tf.random.stateless_normal(shape, [seed, 7], dtype=dtype) * 0.5)

        self.trunk = {"kernel": draw(3, 3, SHAPE[2], 4, seed=1)}
        self.head = {name: {"kernel": draw(4, count, seed=2 + n)} for n, (name, count) in enumerate(counts.items())}

    def __call__(self, images: Any) -> Any:
        features = tf.nn.conv2d(images, tf.cast(self.trunk["kernel"], images.dtype), 2, "SAME")
        pooled = tf.reduce_mean(tf.nn.tanh(features), axis=[1, 2])
        return {name: pooled @ head["kernel"] for name, head in self.head.items()}


def factory(image_shape: Any, outputs: Any) -> TwoOutputs:
    """For ``--model=py:two_tasks:factory``."""
    return TwoOutputs(outputs=outputs)


def make_arrays(count: int, *, seed: int = 0, missing: bool = True) -> dict[str, np.ndarray]:
    """Images, and labels of both tasks that they decide; an example in three has no species, one in four no age."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *SHAPE), np.uint8)
    species = rng.integers(0, len(CLASSES), count)
    images[np.arange(count), 0, species] = 255  # something to learn
    age = (images.mean(axis=(1, 2, 3)) / 255.0).astype(np.float32)
    has_species = np.arange(count) % 3 != 1 if missing else np.ones(count, bool)
    has_age = np.arange(count) % 4 != 2 if missing else np.ones(count, bool)
    return {
        "image": images,
        "label/species": np.where(has_species, species, 0),
        "weight/species": has_species.astype(np.float32),
        "label/age": np.where(has_age, age, np.nan).astype(np.float32),
        "weight/age": has_age.astype(np.float32),
    }


def make_source(train: int = 24, evaluation: int = 10, *, missing: bool = True, test: int = 0) -> Source:
    """A source with the tasks species (classes) and age (a number)."""

    def make_part(count: int, seed: int) -> Part:
        arrays = make_arrays(count, seed=seed, missing=missing)
        labels = arrays.pop("label/species")
        return Part(arrays.pop("image"), labels, np.arange(count), label_name="label/species", columns=arrays)

    tasks = (Target("species", CLASSES), Target("age"))
    parts = {
        "train": make_part(train, 0),
        "eval": make_part(evaluation, 1),
        "test": make_part(test, 2) if test else None,
    }
    return Source("two_tasks", CLASSES, **parts, tasks=tasks)


def make_batch(count: int, *, seed: int = 0, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """A batch of examples as a step takes it; labels that are missing are not finite, or 0."""
    arrays = make_arrays(count, seed=seed)
    return arrays | {
        "image": (arrays["image"] / 127.5 - 1.0).astype(dtype),
        "label/age": arrays["label/age"].astype(dtype),
        "seeds": np.random.default_rng(seed).integers(0, 1 << 30, (count, 2), np.int32),
    }


def as_single(source: Source) -> Source:
    """The same data with the species alone, as data with one label have them."""
    return view_task(source, "species")


def keras_trunk() -> Any:
    """A Keras model without a top."""
    import keras

    image = keras.Input(SHAPE)
    return keras.Model(image, keras.layers.Conv2D(4, 3, activation="relu")(image), name="trunk")


def keras_outputs(second: str = "age") -> Any:
    """A Keras model with a list of outputs, called as the layers that compute them; one of them is a softmax."""
    import keras

    image = keras.Input(SHAPE)
    features = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, activation="relu", name="conv")(image))
    species = keras.layers.Dense(len(CLASSES), activation="softmax", name="species")(features)
    return keras.Model(image, [species, keras.layers.Dense(1, name=second)(features)])


def other_outputs() -> Any:
    """A Keras model one of whose outputs is not called as the task."""
    return keras_outputs("weight")


# ---- two inputs that share a trunk


class Siamese(tf.Module):
    """Whether two images are alike, from the difference of what one trunk makes of each."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = TwoOutputs().trunk
        self.head = {"kernel": tf.Variable(tf.random.stateless_normal([4, 2], [5, 7]))}

    def __call__(self, inputs: Any) -> Any:
        def embed(images: Any) -> Any:
            features = tf.nn.conv2d(images, self.trunk["kernel"], 2, "SAME")
            return tf.reduce_mean(tf.nn.tanh(features), axis=[1, 2])

        return tf.abs(embed(inputs["left"]) - embed(inputs["right"])) @ self.head["kernel"]


def siamese() -> Siamese:
    """For ``--model=py:two_tasks:siamese``."""
    return Siamese()


def make_pairs(train: int = 12, evaluation: int = 6) -> Source:
    """A source whose examples are two images, and whether they are of the same class."""

    def make_part(count: int, seed: int) -> Part:
        left, right = (make_arrays(count, seed=seed + n)["image"] for n in (0, 10))
        labels = np.arange(count) % 2
        right = np.where(labels[:, None, None, None] == 1, left, right)
        return Part(left, labels, np.arange(count), input_name="left", inputs={"right": right})

    return Source("pairs", ("other", "same"), make_part(train, 3), make_part(evaluation, 4), None)


# ---- vectors


class Vectors(tf.Module):
    """A frozen layer, and an output for each task, on vectors."""

    def __init__(self, width: int, outputs: Any) -> None:
        super().__init__()
        self.trunk = {"kernel": tf.Variable(tf.random.stateless_normal([width, 6], [6, 7]))}
        self.head = {name: {"kernel": tf.Variable(tf.zeros([6, count]))} for name, count in outputs.items()}

    def __call__(self, x: Any) -> Any:
        features = tf.nn.tanh(x @ self.trunk["kernel"])
        return {name: features @ head["kernel"] for name, head in self.head.items()}


def vectors(image_shape: Any, outputs: Any) -> Vectors:
    """For ``--model=py:two_tasks:vectors``."""
    return Vectors(image_shape[0], outputs)


def write_table(path: Any, count: int = 40) -> None:
    """A table of two numbers, the kind that they decide, and a size; some cells are empty."""
    rng = np.random.default_rng(0)
    rows = ["a,b,kind,size"]
    for number, (a, b) in enumerate(rng.standard_normal((count, 2))):
        kind = "" if number % 5 == 1 else "high" if a > b else "low"
        rows.append(f"{a:.4f},{b:.4f},{kind},{'' if number % 7 == 3 else f'{a + b:.4f}'}")
    path.write_text("\n".join(rows) + "\n")


def keras_siamese() -> Any:
    """For ``--model=py:two_tasks:keras_siamese``: two inputs by name, and one trunk."""
    import keras

    trunk = keras.Sequential(
        [keras.Input(SHAPE), keras.layers.Conv2D(4, 3, name="conv"), keras.layers.GlobalAveragePooling2D()]
    )
    inputs = {name: keras.Input(SHAPE, name=name) for name in ("left", "right")}
    difference = keras.ops.abs(trunk(inputs["left"]) - trunk(inputs["right"]))
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(difference))
