"""A process for tests/distribution/test_metrics_of_replicas.py: every metric on two devices, on one, and in other batches.

The last line of its output is a JSON list of (kind, weighted, {figure: [on two devices, on one, in batches of another size]}),
and of (kind, {metric: [...]}) for the metrics of a step of micro-batches. Logical devices must be configured before
TensorFlow starts, so it is a process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

COUNT, CLASSES, SIDE, FACTOR = 11, 4, 6, 0.75
NAMES = {  # what --metrics offers for each kind of outputs
    "softmax": "accuracy,balanced_accuracy,f1,precision,recall,auc,confusion,top2",
    "sigmoid": "accuracy,balanced_accuracy,f1,precision,recall,auc,confusion",
    "labels": "accuracy,balanced_accuracy,f1,precision,recall,auc",
    "mse": "mae,mse,rmse,r2",
    "pixels": "miou,dice",
    "centers": "ap50",
}


def make(kind: str) -> tuple[str, dict[str, Any], int]:
    """The loss; examples whose images are the outputs up to a factor, so that no batch size changes their bits; the width."""
    import numpy as np

    rng = np.random.default_rng(5)
    shape: tuple[int, ...] = {"sigmoid": (1,), "labels": (3,), "mse": (2,)}.get(kind, (CLASSES,))
    if kind in ("pixels", "centers"):
        shape = (SIDE, SIDE, CLASSES if kind == "pixels" else CLASSES + 4)
    images, labels = rng.standard_normal((COUNT, *shape)), rng.integers(0, CLASSES, COUNT)
    if kind == "softmax":
        images[np.arange(COUNT), labels] += 0.5  # some are right
    elif kind in ("sigmoid", "labels"):
        labels = rng.integers(0, 2, (COUNT, *shape))
    elif kind == "mse":
        labels = images + rng.standard_normal(images.shape)
    elif kind == "pixels":
        labels = rng.integers(0, CLASSES, (COUNT, SIDE, SIDE)).astype(np.uint8)
        labels[:, 0] = 255
    elif kind == "centers":
        labels = np.full([COUNT, 2, 5], -1.0, np.float32)
        for number in range(1, COUNT):
            at = number % SIDE
            labels[number, 0] = [number % CLASSES, at / SIDE, 0.2, (at + 1) / SIDE, 0.6]
            found = [8, 1, 2.4, 0.5, 0.4]  # the score, the size and the place within the cell
            images[number, 2, (at + number % 2) % SIDE, [number % CLASSES, *range(CLASSES, CLASSES + 4)]] = (
                np.array(found) / FACTOR
            )
    loss = {"labels": "sigmoid", "pixels": "softmax"}.get(kind, kind)
    return loss, {"image": images, "label": labels}, shape[-1]


def split(batch: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    for first in range(0, COUNT, size):
        yield {name: value[first : first + size] for name, value in batch.items()}


def measure(kind: str, weighted: bool, strategy: Any) -> tuple[dict[str, list[Any]], dict[str, list[float]]]:
    import numpy as np
    import tensorflow as tf

    from engine import TrainStep, select
    from engine.recipes.task import choose_metrics
    from engine.training import losses, optimizers
    from engine.training.evaluation import Evaluator

    class Scaled(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = tf.Variable(FACTOR, dtype=tf.float64)

        def __call__(self, images: Any) -> Any:
            return images * self.factor

    model = Scaled()
    loss, batch, width = make(kind)
    if weighted:
        batch["weight"] = np.arange(COUNT) % 3 * 0.3
    dense, asked = kind == "pixels", {"": (loss, width)}
    loss_fn = losses.supervised_loss(model, loss, metrics=choose_metrics(NAMES[kind], asked, dense=dense))
    selection = select(model, "@all")
    mirrored = TrainStep(loss_fn, optimizers.SGD(), strategy=strategy, micro_batch_size=2)
    steps = []
    if weighted and loss in ("softmax", "sigmoid"):  # those whose steps have an accuracy
        batch_of_step = batch | {"seeds": np.zeros([COUNT, 2], np.int32)}
        whole, parts = (TrainStep(loss_fn, optimizers.SGD(), micro_batch_size=size) for size in (None, 3))
        for step, more in ((mirrored, {"examples": COUNT}), (whole, {}), (parts, {})):
            steps.append(step(selection, batch_of_step | more, learning_rate=0.0).metrics)
    shared, alone = (Evaluator(loss_fn, replicas=replicas) for replicas in (mirrored.replicas, None))
    found = [evaluator(selection, split(batch, size)) for evaluator, size in ((shared, 3), (alone, 3), (alone, COUNT))]
    figures = [each.figures | {"own accuracy": each.metrics.get("accuracy", 0.0), "loss": each.loss} for each in found]
    return (
        {name: [each[name] for each in figures] for name in figures[0]},
        {name: [float(each[name]) for each in steps] for name in (steps[0] if steps else ())},
    )


def main() -> None:
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    print(json.dumps([(kind, w, *measure(kind, w, strategy)) for kind in NAMES for w in (False, True)]))


if __name__ == "__main__":
    main()
