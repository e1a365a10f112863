"""What a step's replicas exchange is known beforehand: equal to what the graph of the step has."""

from __future__ import annotations

import json
from typing import Any

# Logical devices are made before TensorFlow starts, so that takes a process. A small bucket gives several collectives.
PROGRAM = """
import json
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from engine import TrainStep, models, select
from engine.distribution import reduction
from engine.training import losses, optimizers
from engine.training.communication import SCALARS, expect_communication

reduction.BUCKET = 20_000
strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
for model, train, dtype in (
    ("vit:mini,depth=1", "@head", tf.float32),
    ("vit:mini,depth=1", "@blocks[-1:] @head", tf.float32),
    ("vit:mini,depth=1", "@head", tf.float64),
    ("cnn:mini", "stages/2/.* @stats", tf.float32),
):
    built = models.build_model(model, image_shape=(8, 8, 1), outputs=4, dtype=dtype)
    selection = select(built.network, train, statistics=built.statistics)
    step = TrainStep(losses.supervised_loss(built.network), optimizers.SGD(), strategy=strategy)
    batch = {"image": np.zeros([2, 8, 8, 1], dtype.as_numpy_dtype), "label": np.zeros([2], np.int32)}
    numbers = selection.trained_parameters + sum(entry.size for entry in selection.moving)
    both = [step.communication(selection, batch), expect_communication(selection)]
    print(json.dumps([[each.to_json() for each in both], 8 * SCALARS + dtype.size * numbers, len(selection.moving)]))
"""


def test_bytes_and_collectives_are_those_of_the_traced_step(programs: Any) -> None:
    done = programs.run(["-c", PROGRAM], seconds=300)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 4
    for (traced, expected), size, _ in found:
        assert traced == expected
        assert traced["bytes"] == size
    assert found[1][0][0]["collectives"] > 2
    assert found[2][0][0]["collectives"] == 1  # float64 gradients travel with the scalars
    assert found[3][2] > 0  # statistics that move
