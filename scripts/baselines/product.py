"""The runner product: large matrix products alone, for the rate of this machine with which steps are compared."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from engine.training import precision

from .harness import Job

_SIZE, _TIMES = 1536, 4  # about the size of a ViT's products


class Product:
    """Products of square matrices in the type in which the job computes."""

    def __init__(self, job: Job) -> None:
        dtype = precision.parse(job.precision).compute
        self.left, self.right = (
            tf.cast(tf.random.stateless_uniform([_SIZE, _SIZE], seed=[0, number]), dtype) for number in (1, 2)
        )
        self.product = tf.function(tf.matmul, autograph=False)

    def train_step(self) -> float:
        for _ in range(_TIMES):
            found = self.product(self.left, self.right)
            found[0, 0].numpy()  # waits for it
        return 0.0

    def facts(self) -> dict[str, Any]:
        return {"gflop": 2e-9 * _TIMES * _SIZE**3}
