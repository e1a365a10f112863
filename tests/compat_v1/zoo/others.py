"""EfficientNet's release for TPUs, DeepLab's Xception and TF-Slim's NASNet in TensorFlow 1."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
from mobilenets import divisible
from slim_layers import Layers, Network, avg_pool, max_pool

# kernel, repeats, filters, expansion, stride
_STAGES = "3 1 16 1 1, 3 2 24 6 2, 5 2 40 6 2, 3 3 80 6 2, 5 3 112 6 1, 5 4 192 6 2, 3 1 320 6 1"


class _Counted:
    """Names layers of a kind in one scope as tf.layers does: conv2d, conv2d_1, ..."""

    def __init__(self, layers: Layers) -> None:
        self.layers, self.counts = layers, {"conv2d": 0, "tpu_batch_normalization": 0}

    def name(self, kind: str) -> str:
        self.counts[kind] += 1
        return kind if self.counts[kind] == 1 else f"{kind}_{self.counts[kind] - 1}"

    def conv(self, x: Any, filters: int, kernel: int, stride: int = 1, *, bias: bool = False) -> Any:
        with self.layers.scope(self.name("conv2d")):
            y = tf.nn.conv2d(x, self.layers.variable("kernel", kernel, kernel, x.shape[-1], filters), stride, "SAME")
            return y + self.layers.variable("bias", filters) if bias else y

    def norm(self, x: Any, activation: Any = tf.nn.silu) -> Any:
        return self.layers.norm(x, self.name("tpu_batch_normalization"), activation=activation)


def efficientnet(size: str, width: float, depth: float, *, classes: int = 1000) -> Network:
    def block(layers: Layers, x: Any, kernel: int, filters: int, expansion: int, stride: int) -> Any:
        made, inputs = _Counted(layers), x
        if expansion > 1:
            x = made.norm(made.conv(x, expansion * x.shape[-1], 1))
        kernels = layers.variable("depthwise_conv2d/depthwise_kernel", kernel, kernel, x.shape[-1], 1)
        x = made.norm(tf.nn.depthwise_conv2d(x, kernels, [1, stride, stride, 1], "SAME"))
        with layers.scope("se"):
            gate = _Counted(layers)
            y = tf.reduce_mean(x, [1, 2], keepdims=True)
            y = tf.nn.silu(gate.conv(y, max(1, int(inputs.shape[-1] * 0.25)), 1, bias=True))
            x = x * tf.sigmoid(gate.conv(y, x.shape[-1], 1, bias=True))
        x = made.norm(made.conv(x, filters, 1), None)
        return x + inputs if stride == 1 and inputs.shape[-1] == filters else x

    def network(layers: Layers, x: Any) -> Any:
        with layers.scope(f"efficientnet-{size}"):
            with layers.scope("stem"):
                made = _Counted(layers)
                x = made.norm(made.conv(x, divisible(32 * width), 3, 2))
            number = 0
            for stage in _STAGES.split(", "):
                kernel, repeats, filters, expansion, stride = map(int, stage.split())
                for repeat in range(math.ceil(repeats * depth)):
                    with layers.scope(f"blocks_{number}"):
                        x = block(layers, x, kernel, divisible(filters * width), expansion, 1 if repeat else stride)
                    number += 1
            with layers.scope("head"):
                made = _Counted(layers)
                x = made.norm(made.conv(x, divisible(1280 * width), 1))
                return layers.dense(tf.reduce_mean(x, [1, 2]), "dense", classes, weights="kernel")

    return network


def xception(*, middle: int = 16, output_stride: int = 16, width: int = 728) -> Network:
    """DeepLab's Xception 65 without what comes after its features."""

    def separable(layers: Layers, x: Any, name: str, filters: int, stride: int, rate: int, activation: Any) -> Any:
        x = tf.nn.relu(x) if activation is None else x
        if stride > 1:
            x, padding = tf.pad(x, [[0, 0], [rate, rate], [rate, rate], [0, 0]]), "VALID"
        else:
            padding = "SAME"
        x = layers.depthwise(x, f"{name}_depthwise", 3, stride, rate=rate, padding=padding, activation=activation)
        return layers.conv(x, f"{name}_pointwise", filters, 1, activation=activation)

    def network(layers: Layers, x: Any) -> Any:
        with layers.scope("xception_65"):
            with layers.scope("entry_flow"):
                x = layers.conv(x, "conv1_1", 32, 3, 2, padding="FIXED")
                x = layers.conv(x, "conv1_2", 64, 3)
            table = [(f"entry_flow/block{n}", 1, [f] * 3, "conv", 2) for n, f in ((1, 128), (2, 256), (3, width))]
            table.append(("middle_flow/block1", middle, [width] * 3, "sum", 1))
            table.append(("exit_flow/block1", 1, [width, 1024, 1024], "conv", 2))
            table.append(("exit_flow/block2", 1, [1536, 1536, 2048], "none", 1))
            reached, rate = 2, 1
            for scope, units, filters, kind, stride in table:
                for unit in range(1, units + 1):
                    here, dilation = (1, rate) if reached == output_stride else (stride, 1)
                    rate *= stride if reached == output_stride else 1
                    reached *= here
                    with layers.scope(f"{scope}/unit_{unit}/xception_module"):
                        y, inside = x, tf.nn.relu if kind == "none" else None
                        for number, size in enumerate(filters, 1):
                            step = here if number == 3 else 1
                            y = separable(layers, y, f"separable_conv{number}", size, step, dilation, inside)
                        if kind == "conv":
                            y += layers.conv(x, "shortcut", filters[-1], 1, here, activation=None)
                        x = y + x if kind == "sum" else y
            return x

    return network


# operation and state that it reads, for both halves of each combination
_NORMAL = "s5 0 s3 1, s5 1 s3 1, avg 0 none 1, avg 1 avg 1, s3 0 none 0"
_REDUCTION = "s5 0 s7 1, max 0 s7 1, avg 0 s5 1, none 3 avg 2, s3 2 max 0"


def nasnet(*, filters: int = 44, cells: int = 12, classes: int = 1001) -> Network:
    plain = {"norm": False, "bias": False, "activation": None}

    def apply(layers: Layers, x: Any, operation: str, size: int, stride: int) -> Any:
        if operation in ("max", "avg"):
            return (max_pool if operation == "max" else avg_pool)(x, 3, stride)
        for number in (1, 2) if operation != "none" else ():
            kernel = int(operation[1])
            with layers.scope(f"separable_{kernel}x{kernel}_{number}"):
                deep = layers.variable("depthwise_weights", kernel, kernel, x.shape[-1], 1)
                point = layers.variable("pointwise_weights", 1, 1, x.shape[-1], size)
            step = stride if number == 1 else 1
            x = tf.nn.separable_conv2d(tf.nn.relu(x), deep, point, [1, step, step, 1], "SAME")
            x = layers.norm(x, f"bn_sep_{kernel}x{kernel}_{number}")
        return x

    def fit(layers: Layers, before: Any, x: Any, size: int) -> Any:
        if before.shape[2] != x.shape[2]:
            before = tf.nn.relu(before)
            moved = tf.pad(before, [[0, 0], [0, 1], [0, 1], [0, 0]])[:, 1:, 1:]
            halves = [
                layers.conv(part[:, ::2, ::2], f"path{n}_conv", size // 2, 1, **plain)
                for n, part in ((1, before), (2, moved))
            ]
            return layers.norm(tf.concat(halves, -1), "final_path_bn")
        if before.shape[-1] != size:
            return layers.norm(layers.conv(tf.nn.relu(before), "prev_1x1", size, 1, **plain), "prev_bn")
        return before

    def cell(layers: Layers, x: Any, before: Any, scope: str, size: int, table: str) -> Any:
        with layers.scope(scope):
            before = x if before is None else fit(layers, before, x, size)
            states = [layers.norm(layers.conv(tf.nn.relu(x), "1x1", size, 1, **plain), "beginning_bn"), before]
            for number, row in enumerate(table.split(", ")):
                words, found = row.split(), []
                for side, operation, state in (("left", *words[:2]), ("right", *words[2:])):
                    with layers.scope(f"comb_iter_{number}/{side}"):
                        stride = 2 if table == _REDUCTION and int(state) < 2 else 1
                        found.append(apply(layers, states[int(state)], operation, size, stride))
                states.append(found[0] + found[1])
            return tf.concat(states[3:] if table == _REDUCTION else states[1:], -1)

    def network(layers: Layers, x: Any) -> Any:
        x = layers.norm(layers.conv(x, "conv0", 32, 3, 2, padding="VALID", **plain), "conv0_bn")
        outputs = [None, x]
        size = filters
        outputs.append(cell(layers, x, None, "cell_stem_0", size // 4, _REDUCTION))
        outputs.append(cell(layers, outputs[-1], outputs[-2], "cell_stem_1", size // 2, _REDUCTION))
        for number in range(cells):
            if number in (cells // 3, 2 * cells // 3):
                size *= 2
                scope = f"reduction_cell_{0 if number == cells // 3 else 1}"
                outputs.append(cell(layers, outputs[-1], outputs[-2], scope, size, _REDUCTION))
            outputs.append(cell(layers, outputs[-1], outputs[-2], f"cell_{number}", size, _NORMAL))
        x = tf.reduce_mean(tf.nn.relu(outputs[-1]), [1, 2])
        return layers.dense(x, "final_layer/FC", classes)

    return network
