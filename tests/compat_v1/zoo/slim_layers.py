"""The layers of TF-Slim's networks on plain TensorFlow 1 variables, under the names that its checkpoints have."""

from __future__ import annotations

import contextlib
import hashlib
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1
Network = Callable[["Layers", Any], Any]


class Layers:
    """Makes layers in the current graph. A norm has a gamma only with ``gamma``, as ``scale`` of slim's batch_norm.

    Where ``values`` is a dict, variables are these values, by name, and are drawn where it lacks them. While
    ``calibrating``, norms use the moments of the batch and make them their statistics.
    """

    def __init__(self, *, epsilon: float = 1e-3, gamma: bool = True, activation: Any = tf.nn.relu) -> None:
        self.epsilon, self.gamma, self.activation = epsilon, gamma, activation
        self.values: dict[str, np.ndarray] | None = None
        self.calibrating = False
        self._scopes: list[str] = []

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        self._scopes.append(name)
        yield
        self._scopes.pop()

    def variable(self, name: str, *shape: int) -> Any:
        name = "/".join([*self._scopes, name])
        if self.values is None:
            return v1.get_variable(name, shape, initializer=v1.zeros_initializer())
        if name not in self.values:
            self.values[name] = random_value(name, tuple(shape))
        return tf.constant(self.values[name])

    def statistics(self, x: Any) -> tuple[Any, Any]:
        """The moving mean and variance for a norm of ``x``."""
        names = ["/".join([*self._scopes, name]) for name in ("moving_mean", "moving_variance")]
        if self.calibrating:
            mean, variance = map(np.asarray, tf.nn.moments(x, list(range(len(x.shape) - 1))))
            half = mean / 2  # the mean itself would leave only how the images differ, rounding included
            self.values |= dict(zip(names, (half, variance + (mean - half) ** 2), strict=True))
        return self.variable("moving_mean", x.shape[-1]), self.variable("moving_variance", x.shape[-1])

    def norm(self, x: Any, name: str = "BatchNorm", *, gamma: bool | None = None, activation: Any = None) -> Any:
        with self.scope(name):
            size = x.shape[-1]
            scaled = self.gamma if gamma is None else gamma
            scale = self.variable("gamma", size) if scaled else tf.ones(size)
            shift = self.variable("beta", size)
            mean, variance = self.statistics(x)
        y = tf.nn.batch_normalization(x, mean, variance, shift, scale, self.epsilon)
        return y if activation is None else activation(y)

    def conv(
        self,
        x: Any,
        name: str,
        filters: int,
        kernel: Any,
        stride: int = 1,
        *,
        padding: str = "SAME",
        norm: bool = True,
        bias: bool | None = None,
        activation: Any = "default",
        rate: int = 1,
        weights: str = "weights",
    ) -> Any:
        """slim.conv2d: without a norm it has biases."""
        rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
        if padding == "FIXED":  # conv2d_same of resnet_utils: the padding does not depend on the size of the image
            if stride > 1:
                total = rate * (rows - 1)
                edges = [total // 2, total - total // 2]
                x = tf.pad(x, [[0, 0], edges, edges, [0, 0]])
            padding = "SAME" if stride == 1 else "VALID"
        with self.scope(name):
            y = tf.nn.conv2d(
                x, self.variable(weights, rows, columns, x.shape[-1], filters), stride, padding, dilations=rate
            )
            y = self._finish(y, norm, bias)
        return self._activate(y, activation)

    def depthwise(
        self,
        x: Any,
        name: str,
        kernel: int,
        stride: int = 1,
        *,
        rate: int = 1,
        padding: str = "SAME",
        norm: bool = True,
        activation: Any = "default",
        weights: str = "depthwise_weights",
    ) -> Any:
        """slim.separable_conv2d without a pointwise part."""
        with self.scope(name):
            kernels = self.variable(weights, kernel, kernel, x.shape[-1], 1)
            y = tf.nn.depthwise_conv2d(x, kernels, [1, stride, stride, 1], padding, dilations=[rate, rate])
            y = self._finish(y, norm, None)
        return self._activate(y, activation)

    def dense(self, x: Any, name: str, units: int, *, activation: Any = None, weights: str = "weights") -> Any:
        biases = {"weights": "biases", "kernel": "bias"}[weights]
        with self.scope(name):
            y = x @ self.variable(weights, x.shape[-1], units) + self.variable(biases, units)
        return y if activation is None else activation(y)

    def _finish(self, y: Any, norm: bool, bias: bool | None) -> Any:
        if norm:
            return self.norm(y)
        return y + self.variable("biases", y.shape[-1]) if bias in (None, True) else y

    def _activate(self, y: Any, activation: Any) -> Any:
        chosen = self.activation if isinstance(activation, str) else activation
        return y if chosen is None else chosen(y)


def max_pool(x: Any, size: int, stride: int = 1, padding: str = "SAME") -> Any:
    return tf.nn.max_pool2d(x, size, stride, padding)


def avg_pool(x: Any, size: int, stride: int = 1, padding: str = "SAME") -> Any:
    return tf.nn.avg_pool2d(x, size, stride, padding)


class Ran(NamedTuple):
    """What a network computed, and the shapes of its variables by name."""

    outputs: np.ndarray
    shapes: dict[str, tuple[int, ...]]

    def digest(self) -> str:
        """The number of variables, and a digest of their names and shapes."""
        lines = "".join(f"{name} {list(shape)}\n" for name, shape in sorted(self.shapes.items()))
        return f"{len(self.shapes)} {hashlib.sha256(lines.encode()).hexdigest()[:16]}"


def run(
    network: Network, layers: Layers, images: np.ndarray, checkpoint: pathlib.Path, *, averages: bool, session: bool
) -> Ran:
    """Draws values, writes them into a checkpoint, and runs the network with them.

    Statistics are first set to those of the images, so that no signal dies or explodes. With ``averages``, the values are
    those of the averages, and the checkpoint has others as of the last step. With ``session``, the checkpoint is restored
    by a Saver into the network's graph.
    """
    layers.values = values = {}
    layers.calibrating = True
    network(layers, tf.constant(images))
    layers.calibrating = False
    keys = {f"{name}/ExponentialMovingAverage" if averages else name: name for name in values}
    saved = {key: values[name] for key, name in keys.items()} | {"global_step": np.int64(9)}
    write(checkpoint, saved | {name: 2 * value for name, value in values.items() if averages})
    if not session:
        return Ran(
            np.asarray(network(layers, tf.constant(images))), {name: each.shape for name, each in values.items()}
        )
    layers.values = None
    settings = v1.ConfigProto()  # the graph optimizer's rearrangements are rounded differently
    settings.graph_options.rewrite_options.disable_meta_optimizer = True
    with tf.Graph().as_default() as graph, v1.Session(graph=graph, config=settings) as running:
        inputs = v1.placeholder(images.dtype, images.shape)
        outputs = network(layers, inputs)
        variables = {variable.op.name: variable for variable in v1.global_variables()}
        saver = v1.train.Saver({key: variables[name] for key, name in keys.items()})
        saver.restore(running, str(checkpoint))
        found = np.asarray(running.run(outputs, {inputs: images}))
    return Ran(found, {name: tuple(variable.shape) for name, variable in variables.items()})


def write(checkpoint: pathlib.Path, values: dict[str, np.ndarray]) -> None:
    names = sorted(values)
    tf.raw_ops.SaveV2(
        prefix=str(checkpoint),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(values[name]) for name in names],
    )


def random_value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A value that keeps activations at about unit scale; the same for the same name and shape."""
    generator = np.random.default_rng([*name.encode()])
    last = name.rpartition("/")[2]
    if last in ("gamma", "moving_variance"):
        return generator.uniform(0.7, 1.3, shape).astype(np.float32)
    if len(shape) < 2:
        return (0.1 * generator.standard_normal(shape)).astype(np.float32)
    fan = math.prod(shape[:-1]) if "depthwise" not in last else math.prod(shape[:2])
    return (math.sqrt(2 / fan) * generator.standard_normal(shape, np.float32)).astype(np.float32)
