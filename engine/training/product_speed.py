"""How fast a device multiplies matrices in float32 and in bfloat16, measured in well under a second."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

from engine import host

_TIMES = 16
# kind of device -> the size of the matrices, and how many products are timed together (a GPU computes them in the background)
_WORK = {"cpu": (384, 1), "gpu": (2048, 16)}


def clock(kind: str) -> Callable[[], float]:
    """The clock for a kind of device. That of a CPU counts the seconds of its cores, which other processes do not lengthen."""
    return time.process_time if kind == "cpu" else time.perf_counter


@dataclass(frozen=True)
class ProductSpeed:
    """Floating-point operations per second of matrix products: in float32, as the device computes it, and in bfloat16.

    ``cores`` says that these are seconds of a core, as on a CPU.
    """

    float32: float
    bfloat16: float
    cores: bool = False

    @property
    def ratio(self) -> float:
        """How many times as fast bfloat16 is."""
        return self.bfloat16 / self.float32

    def text(self) -> str:
        """The figures in words."""
        if not self.bfloat16:
            return "the device cannot multiply bfloat16"
        return (
            f"bfloat16 products are {self.ratio:.2f} times as fast as those of float32 ({self.bfloat16 / 1e9:,.0f} and "
            f"{self.float32 / 1e9:,.0f} GFLOP/s{' for each core' if self.cores else ''})"
        )


@functools.cache
def measure_products(kind: str) -> ProductSpeed:
    """Measures a kind of device, once in a process: the best of some products of each dtype, in turn.

    It draws nothing and changes nothing that a run uses. A device that refuses to multiply bfloat16 does it at speed 0.
    """
    import tensorflow as tf

    size, count = _WORK[kind]
    matrices = {"float32": tf.ones([size, size])}
    try:
        with host.stderr_on_failure():  # of a bfloat16 that is not the hardware's own, oneDNN complains
            narrow = tf.cast(matrices["float32"], tf.bfloat16)
            tf.matmul(narrow, narrow)[0, 0].numpy()
        matrices["bfloat16"] = narrow
    except tf.errors.OpError:
        pass
    best: dict[str, float] = {}
    now = clock(kind)
    for number in range(1 + _TIMES):
        for name, matrix in matrices.items():
            start = now()
            for _ in range(count):
                product = tf.matmul(matrix, matrix)
            product[0, 0].numpy()  # waits for it
            if number:  # the first one also prepares
                seconds = now() - start
                best[name] = min(seconds, best.get(name, seconds))
    work = 2.0 * size**3 * count
    if kind == "gpu":
        tf.config.experimental.reset_memory_stats("GPU:0")  # the run's own peak is what it reports
    bfloat16 = work / best["bfloat16"] if "bfloat16" in best else 0.0
    return ProductSpeed(work / best["float32"], bfloat16, kind == "cpu")
